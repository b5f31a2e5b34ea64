"""What all backbones of speech share, and those that take the samples of a waveform: WavLM, HuBERT, wav2vec 2.0.

Letters: W rows (turns, or windows of long ones), S samples, P positions, H the backbone's width.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import BatchFeature

from ..base.devices import moved
from ..base.errors import InputError
from .backbone_kind import BackboneKind, Inputs, TurnProcessor, with_output_last

SAMPLING_RATE = 16_000  # of every backbone of speech

_TRIAL_SAMPLES = (9600, 4000)
_SHORTEST = 400  # samples of the first position; shorter audio is padded with silence


class SpeechBackbone(BackboneKind):
    """A model of audio: turns are cut into windows of equal length, each of which is a row."""

    modality = "speech"
    parts: ClassVar[tuple[str, ...]] = ("feature_extractor",)
    settings = ("window_seconds", "trailing_silence")
    unit = "second"

    def prepare(
        self,
        processor: TurnProcessor,
        turns: Sequence[Any],
        random_crop: bool = False,
        generator: torch.Generator | None = None,
    ) -> BatchFeature:
        windows, owners = [], []
        for number, samples in enumerate(turns):
            samples = np.asarray(samples, dtype=np.float32)
            if samples.ndim != 1 or not len(samples):
                raise InputError(f"Turn {number} of the batch must be samples of shape (S,), got {samples.shape}")
            found = windows_of(samples, processor.window_seconds, random_crop, generator)
            windows += found
            owners += [number] * len(found)
        batch = self._rows(processor, windows)
        batch["utterance_index"] = torch.tensor(owners)
        return batch

    def costs(self, processor: TurnProcessor, turns: Sequence[Any]) -> list[float]:
        return [float(seconds) for seconds in turns]

    def _rows(self, processor: TurnProcessor, windows: list[np.ndarray]) -> BatchFeature:
        """The tensors of W windows, `utterance_index` aside."""
        raise NotImplementedError


def num_windows(samples: int, window_seconds: float | None) -> int:
    """The number of windows that audio of so many samples is cut into."""
    return 1 if window_seconds is None else max(1, math.ceil(samples / (window_seconds * SAMPLING_RATE)))


def windows_of(
    samples: np.ndarray,
    window_seconds: float | None,
    random_crop: bool = False,
    generator: torch.Generator | None = None,
) -> list[np.ndarray]:
    """All of the audio in windows of nearly equal length, so that none is very short; or one random window of it."""
    count = num_windows(len(samples), window_seconds)
    if window_seconds is None or count == 1:
        return [samples]
    if random_crop:
        size = int(window_seconds * SAMPLING_RATE)
        start = int(torch.randint(len(samples) - size + 1, (), generator=generator))
        return [samples[start : start + size]]
    return np.array_split(samples, count)


class WaveformBackbone(SpeechBackbone):
    """A model of samples at 16 kHz, padded at the end."""

    tested = (
        "data2vec-audio",
        "hubert",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-conformer",
        "wavlm",
    )
    takes_others = True
    main_input = "input_values"
    inputs = ("input_values",)
    _targets = {
        "wav2vec2-conformer": r".*\.(linear_q|linear_k)",
        "wavlm": r".*\.(intermediate_dense|output_dense)",
    }
    _convolves_padding = ("data2vec-audio", "wav2vec2-conformer")  # whatever the attention mask says

    def check_lora(self, config: transformers.PreTrainedConfig, modules: Sequence[str]):
        if config.model_type == "wavlm" and any(".attention." in name for name in modules):
            raise InputError(
                "WavLM's attention reads its weights without calling the adapter: LoRA there would do nothing. Target "
                "the feed-forward layers"
            )

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        mask = inputs["attention_mask"].bool()
        lengths = mask.sum(-1)
        values, heard = moved(inputs["input_values"], backbone.device), moved(mask, backbone.device)
        values = values.to(backbone.dtype).masked_fill(~heard, 0)
        by_length = backbone.config.model_type in self._convolves_padding
        if (by_length or getattr(backbone.config, "feat_extract_norm", "layer") == "group") and not mask.all():
            # Group norm computes statistics over time, padding included: only rows of one length are run together.
            return _states_by_length(backbone, values, lengths)
        output = backbone(values, attention_mask=heard.long(), output_hidden_states=True)
        states = with_output_last(output)
        positions = _positions(backbone, lengths)
        return states, torch.arange(states[0].shape[1], device=mask.device) < positions[:, None]

    def trial_lengths(self, config: transformers.PreTrainedConfig) -> tuple[int, int] | None:
        return _TRIAL_SAMPLES

    def samples(self, backbone: transformers.PreTrainedModel, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        counted = torch.arange(max(lengths), device=backbone.device)
        mask = counted < torch.tensor(lengths, device=backbone.device)[:, None]
        audio = (0.1 * torch.sin(counted * counted * 1e-4)).expand(len(lengths), -1)
        return {"input_values": audio.masked_fill(~mask, 0), "attention_mask": mask}

    def _rows(self, processor: TurnProcessor, windows: list[np.ndarray]) -> BatchFeature:
        # One by one: the extractor normalises over the samples, and would count padding among them.
        values = [
            processor.feature_extractor(window, sampling_rate=SAMPLING_RATE).input_values[0] for window in windows
        ]
        lengths = [max(len(value), _SHORTEST) for value in values]
        padded = torch.zeros(len(values), max(lengths))
        mask = torch.zeros(len(values), max(lengths), dtype=torch.bool)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            padded[row, : len(value)] = torch.as_tensor(np.asarray(value))
            mask[row, :length] = True
        return BatchFeature({"input_values": padded, "attention_mask": mask})


def _positions(backbone: transformers.PreTrainedModel, lengths: torch.Tensor) -> torch.Tensor:
    """The number of positions that the convolutions make of so many samples."""
    return backbone._get_feat_extract_output_lengths(lengths)  # type: ignore[operator]  # a method of all of them


def _states_by_length(
    backbone: transformers.PreTrainedModel, values: torch.Tensor, lengths: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The states of rows of one length at a time, put together again."""
    positions = _positions(backbone, lengths)
    together: list[torch.Tensor] = []
    for length in sorted(set(lengths.tolist())):
        rows = moved((lengths == length).nonzero()[:, 0], values.device)
        states = with_output_last(backbone(values[rows, :length], output_hidden_states=True))
        if not together:
            together = [state.new_zeros(len(lengths), int(positions.max()), state.shape[-1]) for state in states]
        together = [
            everything.index_put((rows[:, None], torch.arange(state.shape[1], device=rows.device)[None]), state)
            for everything, state in zip(together, states, strict=True)
        ]
    return together, torch.arange(together[0].shape[1], device=lengths.device) < positions[:, None]
