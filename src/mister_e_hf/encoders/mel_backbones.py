"""Backbones that take mel frames: Whisper's encoder, and Qwen2-Audio, an audio language model.

transformers' own forward takes only windows of 30 seconds, so the layers are run here, on the frames of a turn.

Letters: W rows (turns, or windows of long ones), M mel bins, L mel frames, P positions, H the backbone's width.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers  # the Auto classes when they are used: loading them registers what is here
from torch import nn
from transformers import BatchFeature
from transformers.masking_utils import create_bidirectional_mask

from ..base.devices import moved
from ..base.errors import InputError
from .backbone_kind import BackboneKind, Inputs, TurnProcessor, with_output_last
from .speech_backbones import SAMPLING_RATE, SpeechBackbone, num_windows

_HOP = 160  # samples of a mel frame
_MARGIN = 4  # frames after the last one attended to, which its convolutions see
_AUDIO_TOKEN = "<|AUDIO|>"


class MelBackbone(SpeechBackbone):
    """A model of mel frames, whose windows are at most as long as its table of positions."""

    # The positions are sinusoids, not weights.
    unused = rf"{BackboneKind.unused}|(.*\.)?embed_positions\.weight"

    def misfit(self, config: transformers.PreTrainedConfig) -> str | None:
        return None  # the model types are known

    def longest_window(self, feature_extractor: Any) -> float:
        return feature_extractor.chunk_length

    def _frames(
        self, processor: TurnProcessor, windows: list[np.ndarray], attended: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mel frames (W, M, L) up to the last one attended to, and the numbers of the L frames."""
        length = min(processor.feature_extractor.nb_max_frames, int(attended.max()) + _MARGIN)
        length += length % 2
        # Frames left out are silence, and the extractor scales by the loudest frame: no other frame changes.
        mels = processor.feature_extractor(
            windows, sampling_rate=SAMPLING_RATE, max_length=length * _HOP, padding="max_length", return_tensors="pt"
        ).input_features
        return mels, torch.arange(length)

    def _own(self, processor: TurnProcessor, windows: list[np.ndarray]) -> torch.Tensor:
        """The number of frames of each window's audio."""
        most = processor.feature_extractor.nb_max_frames
        return torch.tensor([math.ceil(len(window) / _HOP) for window in windows]).clamp(min=4, max=most)


class WhisperBackbone(MelBackbone):
    """Whisper's encoder. The audio is followed by `trailing_silence`, which is heard but not pooled."""

    tested = ("whisper",)
    main_input = "input_features"
    inputs = ("input_features",)
    prefix = "encoder."

    def encoder(self, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        return model.get_encoder()

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        states = mel_states(backbone, inputs["input_features"], inputs["attention_mask"], depth)
        if len(states) == len(_layers(backbone)) + 1:
            states[-1] = backbone.get_submodule("layer_norm")(states[-1])
        own = inputs.get("pooling_mask", inputs["attention_mask"])
        return states, own[:, ::2][:, : states[-1].shape[1]].bool()

    def costs(self, processor: TurnProcessor, turns: Sequence[Any]) -> list[float]:
        return [self._seconds_heard(processor, seconds) for seconds in turns]

    def _seconds_heard(self, processor: TurnProcessor, seconds: float) -> float:
        windows = num_windows(int(seconds * SAMPLING_RATE), processor.window_seconds)
        if processor.trailing_silence is None:
            return float(processor.feature_extractor.chunk_length * windows)
        return seconds + processor.trailing_silence * windows

    def _rows(self, processor: TurnProcessor, windows: list[np.ndarray]) -> BatchFeature:
        most, own = processor.feature_extractor.nb_max_frames, self._own(processor, windows)
        if processor.trailing_silence is None:
            attended = torch.full_like(own, most)
        else:
            attended = (own + round(processor.trailing_silence * SAMPLING_RATE / _HOP)).clamp(max=most)
        mels, frames = self._frames(processor, windows, attended)
        return BatchFeature(
            {
                "input_features": mels,
                "attention_mask": frames < attended[:, None],
                "pooling_mask": frames < own[:, None],
            }
        )


class AudioLanguageBackbone(MelBackbone):
    """
    Qwen2-Audio: mel frames through its tower, in place of the audio tokens of a prompt, through its language model.
    """

    tested = ("qwen2_audio",)
    main_input = "input_ids"
    inputs = ("input_ids", "input_features")
    parts = ("feature_extractor", "tokenizer")
    placeholder = "{audio}"
    prompt = "<|audio_bos|>{audio}<|audio_eos|>"
    # The audio tower has modules of the same names; the published setting leaves it as it is.
    _targets = {"qwen2_audio": r".*language_model.*\.(q_proj|k_proj)"}

    def sizes(self, config: transformers.PreTrainedConfig) -> tuple[int, int]:
        return super().sizes(config.get_text_config())

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        ids, features = inputs["input_ids"], inputs["input_features"]
        mask = inputs.get("feature_attention_mask")
        if mask is None:
            mask = inputs["attention_mask"].new_ones(features.shape[0], features.shape[-1])
        device, tower = backbone.device, backbone.get_submodule("audio_tower")
        assert isinstance(tower, transformers.PreTrainedModel)
        frames, tokens = _positions_of_tower(mask.sum(-1))
        # What follows the audio is masked, so that the frames there need not be computed.
        attended = torch.arange(mask.shape[1], device=frames.device) < 2 * frames[:, None]
        states = mel_states(tower, features, attended)[-1]
        pooler, norm = tower.get_submodule("avg_pooler"), tower.get_submodule("layer_norm")
        heard = backbone.get_submodule("multi_modal_projector")(norm(pooler(states.transpose(1, 2)).transpose(1, 2)))
        real = torch.arange(heard.shape[1], device=tokens.device) < tokens[:, None]
        heard = heard.flatten(0, 1)[moved(real.flatten().nonzero().squeeze(1), device)]
        is_audio = torch.eq(ids, backbone.config.audio_token_id)
        if int(is_audio.sum()) != len(heard):
            raise InputError(f"input_ids hold {int(is_audio.sum())} audio tokens, but the audio gives {len(heard)}")
        embedded = backbone.get_input_embeddings()(moved(ids, device))
        embedded = embedded.masked_scatter(moved(is_audio, device).unsqueeze(-1), heard.to(embedded.dtype))
        output = backbone.get_submodule("language_model")(
            inputs_embeds=embedded,
            attention_mask=moved(inputs["attention_mask"].long(), device),
            output_hidden_states=True,
            use_cache=False,
        )
        return with_output_last(output), is_audio

    def _rows(self, processor: TurnProcessor, windows: list[np.ndarray]) -> BatchFeature:
        own = self._own(processor, windows)
        mels, frames = self._frames(processor, windows, own)
        _, tokens = _positions_of_tower(own)
        prompts = [processor.prompt.replace("{audio}", _AUDIO_TOKEN * int(count)) for count in tokens]
        encoded = processor.tokens(prompts, [(0, len(prompt)) for prompt in prompts])
        return BatchFeature(
            {
                "input_features": mels,
                "input_ids": encoded["input_ids"],
                "attention_mask": encoded["attention_mask"],
                "feature_attention_mask": frames < own[:, None],
            }
        )


def _positions_of_tower(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions after the convolutions of Qwen2-Audio's tower, and after its pooling, from numbers of mel frames."""
    convolved = (frames - 1) // 2 + 1
    return convolved, (convolved - 2) // 2 + 1


def mel_states(
    encoder: transformers.PreTrainedModel,
    input_features: torch.Tensor,
    attention_mask: torch.Tensor,
    depth: int | None = None,
) -> list[torch.Tensor]:
    """
    Mel frames (W, M, L) through the layers of Whisper's encoder or Qwen2-Audio's tower. P is L / 2; a position is
    attended to where its first frame is. Only the first `depth` layers are run.
    """
    conv1, conv2 = encoder.get_submodule("conv1"), encoder.get_submodule("conv2")
    states = F.gelu(conv1(moved(input_features, encoder.device).to(encoder.dtype)))
    states = F.gelu(conv2(states)).transpose(1, 2)
    states = states + encoder.get_parameter("embed_positions.weight")[: states.shape[1]]
    states = F.dropout(states, encoder.config.dropout, encoder.training)
    attended = moved(attention_mask[:, ::2][:, : states.shape[1]].bool(), states.device)
    states = states.masked_fill(~attended.unsqueeze(-1), 0)  # what is not attended to must still be finite
    mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=states, attention_mask=attended.long())
    found = [states]
    for layer in _layers(encoder)[:depth]:
        states = layer(states, mask)
        states = states[0] if isinstance(states, tuple) else states
        found.append(states)
    return found


def _layers(encoder: transformers.PreTrainedModel) -> nn.ModuleList:
    layers = encoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    return layers
