"""Raw turns -> tensors for [`UtteranceEncoder`]: prompts, tokens, mel frames, windows of long sound."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers  # the Auto classes when they are used: loading them registers what stands here
from transformers import BatchFeature
from transformers.utils import cached_file, logging

from ..base.errors import InputError, reading, short
from ..base.remote_code import CarriesCode, write_code
from ..hub.loading import read_json, require
from ..media.transcripts import transcript
from .backbone_kinds import check_kind, longest_text
from .processor_files import PARTS, backbone_beside, check_settings, load_parts

logger = logging.get_logger(__name__)

SAMPLING_RATE = 16_000
CONFIG_NAME = "processor_config.json"

_WORTH_PADDING, _LIKE = 8, 0.8
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_MEL_MARGIN = 4  # frames behind the last one attended to, that its convolutions see
_HOP = 160  # samples a mel frame


class MisterEProcessor(CarriesCode):
    r"""
    Prepares the turns of one modality as its backbone expects them.

    Args:
        modality: `"speech"` or `"text"`.
        backbone_type: the backbone's `model_type`.
        feature_extractor: of the backbone, for speech.
        tokenizer: of the backbone, for text and for models of speech and language.
        prompt: text around the utterance: `{text}` stands for its words, and `{audio}` for its sound in a model of speech and language. The prompt is
            read with the utterance, but not pooled.
        max_tokens: the longest text, prompt included, where backbone and tokenizer take no fewer; a longer one is cut, which is counted in
            `num_truncated` and in a warning. Texts of which the tokenizer knows no word are counted in `num_unknown` likewise. Audio is never cut.
        window_seconds: sound over this is cut into windows of equal length, all of which are pooled. None for no limit.
        trailing_silence: seconds of silence that Whisper hears behind the utterance, or None to fill its window of 30 seconds, as it was
            pretrained. Less is faster by about the factor that is left out, and another result.
    """

    def __init__(
        self,
        modality: str,
        backbone_type: str,
        feature_extractor=None,
        tokenizer=None,
        prompt: str | None = None,
        max_tokens: int = 512,
        window_seconds: float | None = 30.0,
        trailing_silence: float | None = None,
    ):
        if modality not in ("speech", "text"):
            raise InputError(f"modality must be 'speech' or 'text', got {modality!r}")
        self.is_mel = modality == "speech" and backbone_type in ("whisper", "qwen2_audio")
        if modality == "speech" and feature_extractor is None:
            raise InputError("A processor of speech needs the backbone's feature_extractor")
        if (modality == "text" or backbone_type == "qwen2_audio") and tokenizer is None:
            raise InputError(
                "A processor of text, or of a model of speech and language, needs the backbone's tokenizer"
            )
        if tokenizer is not None and not tokenizer.is_fast:
            raise InputError(
                f"Expected a fast tokenizer, which tells where a token stands in the text, got {tokenizer}"
            )
        if tokenizer is not None and not (
            isinstance(tokenizer.model_max_length, int | float) and tokenizer.model_max_length >= 1
        ):
            raise InputError(
                f"The tokenizer's model_max_length must be a positive number, got {tokenizer.model_max_length!r}"
            )
        longest = feature_extractor.chunk_length if self.is_mel else math.inf
        if not 0 < (math.inf if window_seconds is None else window_seconds) <= longest:
            raise InputError(
                f"window_seconds must be over 0 and, for {backbone_type}, {longest} at most; got {window_seconds}"
            )
        if trailing_silence is not None and not 0 <= trailing_silence < math.inf:
            raise InputError(f"trailing_silence must be None or seconds, none negative, got {trailing_silence}")
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
        placeholder = "{audio}" if backbone_type == "qwen2_audio" else "{text}"
        self.prompt = prompt or (_AUDIO_PROMPT if backbone_type == "qwen2_audio" else "{text}")
        if self.prompt.count(placeholder) != 1:
            raise InputError(f"prompt must hold {placeholder} once, got {self.prompt!r}")
        if feature_extractor is not None and feature_extractor.sampling_rate != SAMPLING_RATE:
            raise InputError(
                f"Expected a backbone of {SAMPLING_RATE} Hz, got one of {feature_extractor.sampling_rate} Hz"
            )
        self.modality, self.backbone_type = modality, backbone_type
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer
        self.max_tokens, self.window_seconds, self.trailing_silence = max_tokens, window_seconds, trailing_silence
        self.num_truncated = self.num_unknown = 0
        self.limit = None if modality == "speech" else self._longest()

    def __repr__(self) -> str:
        parts = [type(part).__name__ for part in (self.feature_extractor, self.tokenizer) if part is not None]
        limits = f"window_seconds={self.window_seconds}, trailing_silence={self.trailing_silence}"
        limits = f"max_tokens={self.max_tokens}" if self.modality == "text" else limits
        return f"MisterEProcessor({self.modality} for {self.backbone_type}: {' and '.join(parts)}, {limits})"

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike, modality: str, revision: str | None = None, **settings
    ) -> "MisterEProcessor":
        """The processor of a pretrained model; settings as above, and cache_dir, token and local_files_only for the Hub."""
        hub = {name: settings.pop(name) for name in ("cache_dir", "token", "local_files_only") if name in settings}
        hub |= {} if revision is None else {"revision": revision}
        config = transformers.AutoConfig.from_pretrained(backbone, trust_remote_code=False, **hub)
        check_kind(config, modality)
        parts = load_parts(backbone, modality, config.model_type, hub)
        return _bounded(cls(modality, config.model_type, **parts, **settings), config)

    def __call__(
        self, turns: Sequence[Any], random_crop: bool = False, generator: torch.Generator | None = None
    ) -> BatchFeature:
        r"""
        Args:
            turns: N texts, or N arrays (S,) of samples at 16 kHz.
            random_crop: in training, take one random window of sound that is over the window in place of all.
            generator: of the crops.

        Returns:
            the tensors that [`UtteranceEncoder`] takes, padded at the end.

        Raises:
            ValueError: if a turn has no words or no samples: such a turn lacks the modality and has no place here.
        """
        if isinstance(turns, str):
            raise InputError(f"Expected a list of turns, got the text {turns!r} alone")
        if not len(turns):
            raise InputError("No turns given")
        return self._texts(turns) if self.modality == "text" else self._sounds(turns, random_crop, generator)

    def num_windows(self, samples: int) -> int:
        """How many windows sound of so many samples is cut into."""
        if self.window_seconds is None:
            return 1
        return max(1, math.ceil(samples / (self.window_seconds * SAMPLING_RATE)))

    def heard_seconds(self, seconds: float) -> float:
        """What sound of this length costs, the silence that its backbone hears with it included."""
        if not self.is_mel or self.backbone_type == "qwen2_audio":
            return seconds
        windows = self.num_windows(int(seconds * SAMPLING_RATE))
        if self.trailing_silence is None:
            return float(self.feature_extractor.chunk_length * windows)
        return seconds + self.trailing_silence * windows

    def sizes(self, turns: Sequence[str] | Sequence[float]) -> list[float]:
        """What turns cost, for [`packed_batches`]: texts in tokens, prompt included, or seconds of sound in seconds heard."""
        if self.modality == "speech":
            return [self.heard_seconds(seconds) for seconds in turns]
        if not turns:
            return []
        before, after = self.prompt.split("{text}")
        encoded = self._encode([before + text + after for text in self._transcripts(turns)])
        return [float(len(ids)) for ids in encoded["input_ids"]]

    # Text

    def _longest(self) -> int:
        """The longest text in tokens: one for all calls, since it is state of the tokenizer, which several threads share."""
        rest = len(self.tokenizer(self.prompt.replace("{text}", "")).input_ids)
        limit = int(min(self.max_tokens, self.tokenizer.model_max_length))
        if limit <= rest:
            raise InputError(
                f"max_tokens must be over the {rest} tokens of the prompt and the special ones, got {self.max_tokens} (the tokenizer's "
                f"model_max_length is {self.tokenizer.model_max_length})"
            )
        return limit

    def _encode(self, texts: list[str], **options):
        return self.tokenizer(texts, truncation=self.limit is not None, max_length=self.limit, **options)

    def _transcripts(self, turns: Sequence[str]) -> list[str]:
        texts = [
            transcript(turn, f"turn {number} of the batch") if isinstance(turn, str) else None
            for number, turn in enumerate(turns)
        ]
        if None in texts:
            number = texts.index(None)
            raise InputError(f"Turn {number} of the batch has no words: {short(ascii(turns[number]))}")
        return texts

    def _texts(self, turns: Sequence[str]) -> BatchFeature:
        turns = self._transcripts(turns)
        before, after = self.prompt.split("{text}")
        spans = [(len(before), len(before) + len(text)) for text in turns]
        return self._tokens([before + text + after for text in turns], spans)

    def _tokens(self, texts: list[str], spans: list[tuple[int, int]]) -> BatchFeature:
        r"""
        Args:
            texts: N.
            spans: of each, first and last character but one that are pooled.
        """
        encodings = self._encode(texts, return_offsets_mapping=True).encodings
        # Any token does for padding, also where the tokenizer has none for it.
        shape = len(texts), max(len(encoding.ids) for encoding in encodings)
        ids = torch.full(shape, self.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask, pooled = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        cut = unknown = 0
        for row, (encoding, (begin, end)) in enumerate(zip(encodings, spans, strict=True)):
            length = len(encoding.ids)
            ids[row, :length] = torch.tensor(encoding.ids)
            mask[row, :length] = True
            own = [start < end and stop > begin for start, stop in encoding.offsets]
            cut += bool(encoding.overflowing)
            known = any(
                mine and token != self.tokenizer.unk_token_id for mine, token in zip(own, encoding.ids, strict=True)
            )
            unknown += not known
            if not length or (encoding.overflowing and not any(own)):
                raise InputError(
                    f"Nothing is left of turn {row} of the batch within {self.limit} tokens: {short(ascii(texts[row]))}"
                )
            # Without a prompt the special tokens are the utterance's own, too; and where no word has a token, there is nothing else.
            whole = not any(own) or (begin, end) == (0, len(texts[row]))
            pooled[row, :length] = True if whole else torch.tensor(own)
        if cut:
            self.num_truncated += cut
            logger.warning(f"Texts truncated to {self.limit} tokens: {cut} ({self.num_truncated} so far)")
        if unknown:
            self.num_unknown += unknown
            logger.warning(
                f"Texts of which the tokenizer knows no word: {unknown} ({self.num_unknown} so far); their vectors do not depend on what was said"
            )
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "pooling_mask": pooled})

    # Sound

    def _sounds(
        self, turns: Sequence[np.ndarray], random_crop: bool, generator: torch.Generator | None
    ) -> BatchFeature:
        windows, owners = [], []
        for number, samples in enumerate(turns):
            samples = np.asarray(samples, dtype=np.float32)
            if samples.ndim != 1 or not len(samples):
                raise InputError(f"Turn {number} of the batch must be samples of shape (S,), got {samples.shape}")
            found = self._windows(samples, random_crop, generator)
            windows += found
            owners += [number] * len(found)
        batch = self._mels(windows) if self.is_mel else self._waveforms(windows)
        batch["utterance_index"] = torch.tensor(owners)
        return batch

    def _windows(self, samples: np.ndarray, random_crop: bool, generator: torch.Generator | None) -> list[np.ndarray]:
        count = self.num_windows(len(samples))
        if count == 1:
            return [samples]
        if random_crop:
            size = int(self.window_seconds * SAMPLING_RATE)
            start = int(torch.randint(len(samples) - size + 1, (), generator=generator))
            return [samples[start : start + size]]
        # Of nearly equal length, so that none is a rest too short to say anything.
        return np.array_split(samples, count)

    def _waveforms(self, windows: list[np.ndarray]) -> BatchFeature:
        # One by one: the extractor normalises over the samples, and would take padding for some.
        values = [self.feature_extractor(window, sampling_rate=SAMPLING_RATE).input_values[0] for window in windows]
        shortest = 400  # samples of the first position; a shorter sound ends in silence
        lengths = [max(len(value), shortest) for value in values]
        padded = torch.zeros(len(values), max(lengths))
        mask = torch.zeros(len(values), max(lengths), dtype=torch.bool)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            padded[row, : len(value)] = torch.as_tensor(np.asarray(value))
            mask[row, :length] = True
        return BatchFeature({"input_values": padded, "attention_mask": mask})

    def _mels(self, windows: list[np.ndarray]) -> BatchFeature:
        most = self.feature_extractor.nb_max_frames
        own = torch.tensor([math.ceil(len(window) / _HOP) for window in windows]).clamp(min=4, max=most)
        if self.backbone_type == "qwen2_audio":
            attended = own
        elif self.trailing_silence is None:
            attended = torch.full_like(own, most)
        else:
            attended = (own + round(self.trailing_silence * SAMPLING_RATE / _HOP)).clamp(max=most)
        length = min(most, int(attended.max()) + _MEL_MARGIN)
        length += length % 2
        # The frames that are left out are silence, and the extractor scales each sound by its own loudest frame: no frame changes.
        mels = self.feature_extractor(
            windows, sampling_rate=SAMPLING_RATE, max_length=length * _HOP, padding="max_length", return_tensors="pt"
        ).input_features
        frames = torch.arange(length)
        batch = {"input_features": mels}
        if self.backbone_type != "qwen2_audio":
            return BatchFeature(
                batch | {"attention_mask": frames < attended[:, None], "pooling_mask": frames < own[:, None]}
            )
        tokens = ((own - 1) // 2 + 1 - 2) // 2 + 1
        prompts = [self.prompt.replace("{audio}", _AUDIO_TOKEN * int(count)) for count in tokens]
        encoded = self._tokens(prompts, [(0, len(prompt)) for prompt in prompts])
        return BatchFeature(
            batch
            | {name: encoded[name] for name in ("input_ids", "attention_mask")}
            | {"feature_attention_mask": frames < own[:, None]}
        )

    # Saving and loading

    def save_pretrained(self, save_directory: str | os.PathLike):
        """Write the processor's own settings, and the files of its feature extractor and tokenizer."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for part in (self.feature_extractor, self.tokenizer):
            if part is not None:
                part.save_pretrained(folder)
        settings = {
            name: getattr(self, name)
            for name in ("modality", "backbone_type", "prompt", "max_tokens", "window_seconds", "trailing_silence")
        }
        # Where AutoProcessor looks, with this package and, by the code that goes along, without it.
        (name,) = write_code(folder, type(self))
        settings |= {"processor_class": type(self).__name__, "auto_map": {"AutoProcessor": name}}
        (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **hub) -> "MisterEProcessor":
        """
        Load what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: folder, or id on the Hub.
            hub: subfolder, revision, token, cache_dir, local_files_only, force_download.

        Raises:
            OSError: if there is no such processor.
        """
        hub = {name: value for name, value in hub.items() if name in _HUB_OPTIONS}  # AutoProcessor says more
        require(pretrained_model_name_or_path, hub)
        path = cached_file(pretrained_model_name_or_path, CONFIG_NAME, **hub)
        settings = read_json(path)
        if settings.pop("processor_class", None) != cls.__name__:
            raise OSError(f"'{path}' is of another processor")
        settings.pop("auto_map", None)
        check_settings(settings, path)
        try:
            # The config.json beside these files is the encoder's, not the backbone's that they belong to.
            parts = load_parts(pretrained_model_name_or_path, settings["modality"], settings["backbone_type"], hub)
        except (ValueError, AttributeError, KeyError, TypeError) as error:  # no library names the file
            for part in (Path(path).with_name(name) for name in PARTS):
                if part.is_file():
                    read_json(part)
            raise OSError(f"A file of the processor in '{Path(path).parent}' is damaged: {short(error)}") from error
        with reading(path, "the settings of a processor"):
            return _bounded(cls(**settings, **parts), backbone_beside(path, settings["backbone_type"]))


def packed_batches(sizes: Sequence[float], budget: float, most: int) -> Iterator[list[int]]:
    r"""
    Items in batches of like size, longest first, so that what does not fit in memory fails at once.

    Args:
        sizes: of each item: tokens, or seconds.
        budget: largest size of a batch, padding included; an item over it is a batch of its own.
        most: largest number of items in a batch.
    """
    batch: list[int] = []
    longest = 0.0
    for item in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        # Some rows are worth their padding, many are not.
        unlike = len(batch) >= _WORTH_PADDING and sizes[item] < _LIKE * longest
        if batch and ((len(batch) + 1) * longest > budget or len(batch) == most or unlike):
            yield batch
            batch = []
        longest = longest if batch else sizes[item]
        batch.append(item)
    if batch:
        yield batch


def _bounded(processor: MisterEProcessor, config: transformers.PreTrainedConfig | None) -> MisterEProcessor:
    """Texts are cut to what the backbone takes."""
    longest = longest_text(config) if config is not None and processor.modality == "text" else None
    if longest is not None and longest < processor.max_tokens:
        processor.max_tokens = longest
        processor.limit = processor._longest()
    return processor


_AUDIO_TOKEN = "<|AUDIO|>"
_AUDIO_PROMPT = "<|audio_bos|>{audio}<|audio_eos|>"
