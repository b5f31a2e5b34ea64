"""The processor of stage 1: raw turns of one modality -> the tensors that [`UtteranceEncoder`] takes."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import BatchFeature
from transformers.utils import cached_file, logging

from ..base.errors import InputError, reading, short
from ..base.remote_code import CarriesCode, write_code
from ..hub.loading import read_json, require
from ..media.video import NUM_FRAMES
from .backbones import check_backbone, kind_of
from .processor_files import PARTS, backbone_beside, check_settings, load_parts
from .speech_backbones import SAMPLING_RATE

logger = logging.get_logger(__name__)

CONFIG_NAME = "processor_config.json"

_ACCESS_OPTIONS = ("cache_dir", "local_files_only", "token")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class MisterEProcessor(CarriesCode):
    r"""
    Prepares the turns of one modality as their backbone expects them.

    Args:
        modality: `"speech"`, `"text"` or `"visual"`.
        backbone_type: the backbone's `model_type`.
        feature_extractor: of the backbone, for speech.
        tokenizer: of the backbone, for text and for audio language models.
        prompt: text around the turn: `{text}` is replaced by the transcript, or `{audio}` by the audio tokens of an
            audio language model. The prompt is read with the turn but not pooled.
        max_tokens: longest text, prompt included, unless backbone or tokenizer take fewer. Longer texts are truncated
            and counted in `num_truncated` and in a warning; texts of which the tokenizer knows no word are counted in
            `num_unknown` likewise. Audio is never truncated.
        window_seconds: audio that is longer is cut into windows of equal length, all of which are pooled. None for no
            limit.
        trailing_silence: seconds of silence that Whisper hears after the turn, or None to fill its window of 30
            seconds, as in its pretraining. Less silence is faster and gives other vectors.
        image_processor: of the backbone, for video.
        num_frames: how many frames of a turn's video are read, at the centres of equal parts of it.
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
        image_processor=None,
        num_frames: int = NUM_FRAMES,
    ):
        self.kind = kind_of(modality, backbone_type)
        given = {"feature_extractor": feature_extractor, "tokenizer": tokenizer, "image_processor": image_processor}
        for name, part in given.items():
            if name in self.kind.parts and part is None:
                raise InputError(f"A processor of {modality} for {backbone_type} needs the backbone's {name}")
        if tokenizer is not None and not tokenizer.is_fast:
            raise InputError(
                f"Expected a fast tokenizer, which knows the position of each token in the text, got {tokenizer}"
            )
        if tokenizer is not None and not (
            isinstance(tokenizer.model_max_length, int | float) and tokenizer.model_max_length >= 1
        ):
            raise InputError(
                f"The tokenizer's model_max_length must be a positive number, got {tokenizer.model_max_length!r}"
            )
        longest = self.kind.longest_window(feature_extractor)
        if not 0 < (float("inf") if window_seconds is None else window_seconds) <= longest:
            raise InputError(
                f"window_seconds must be over 0 and, for {backbone_type}, {longest} at most; got {window_seconds}"
            )
        if trailing_silence is not None and not 0 <= trailing_silence < float("inf"):
            raise InputError(
                f"trailing_silence must be None or a number of seconds that is not negative, got {trailing_silence}"
            )
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
        if num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {num_frames}")
        self.prompt = prompt or self.kind.prompt
        if self.prompt.count(self.kind.placeholder) != 1:
            raise InputError(f"prompt must hold {self.kind.placeholder} once, got {self.prompt!r}")
        if feature_extractor is not None and feature_extractor.sampling_rate != SAMPLING_RATE:
            raise InputError(
                f"Expected a backbone of {SAMPLING_RATE} Hz, got one of {feature_extractor.sampling_rate} Hz"
            )
        self.modality, self.backbone_type = modality, backbone_type
        self.feature_extractor, self.tokenizer, self.image_processor = feature_extractor, tokenizer, image_processor
        self.max_tokens, self.window_seconds, self.trailing_silence = max_tokens, window_seconds, trailing_silence
        self.num_frames = num_frames
        self.num_truncated = self.num_unknown = 0
        self.limit = self._longest() if self.kind.truncates else None

    def __repr__(self) -> str:
        parts = [type(part).__name__ for part in self._parts()]
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in self.kind.settings)
        return f"MisterEProcessor({self.modality} for {self.backbone_type}: {' and '.join(parts)}, {settings})"

    def _parts(self) -> list[Any]:
        given = (self.feature_extractor, self.tokenizer, self.image_processor)
        return [part for part in given if part is not None]

    @property
    def own_settings(self) -> dict[str, Any]:
        """The settings that are saved, and that the vector of a turn may depend on."""
        return {name: getattr(self, name) for name in self.kind.stored_settings}

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike, modality: str, revision: str | None = None, **settings
    ) -> "MisterEProcessor":
        """
        The processor of a pretrained model.

        Args:
            backbone: name on the Hub, or folder, of a pretrained model.
            modality: `"speech"`, `"text"` or `"visual"`.
            revision: branch, tag or commit of the backbone.
            settings: arguments of [`MisterEProcessor`], and cache_dir, token and local_files_only for the Hub.
        """
        hub: dict[str, Any] = {name: settings.pop(name) for name in _ACCESS_OPTIONS if name in settings}
        if revision is not None:
            hub["revision"] = revision
        config = transformers.AutoConfig.from_pretrained(backbone, trust_remote_code=False, **hub)
        kind = check_backbone(config, modality)
        parts = load_parts(backbone, kind, config.model_type, hub)
        return _bounded(cls(modality, kind.part(config).model_type, **parts, **settings), config)

    def __call__(
        self, turns: Sequence[Any], random_crop: bool = False, generator: torch.Generator | None = None
    ) -> BatchFeature:
        r"""
        Args:
            turns: N texts; N arrays (S,) of samples at 16 kHz; or N videos, each a path, bytes, a dictionary of `path`
                or `bytes` and perhaps `start` and `end` in seconds, or an array of frames (K, height, width, 3) in
                uint8.
            random_crop: of audio that is longer than a window, take one random window, as in training.
            generator: of the crops.

        Returns:
            the tensors that [`UtteranceEncoder`] takes, padded at the end.

        Raises:
            InputError: if a turn has no transcript, samples or frames: it lacks the modality, and must be left out.
        """
        if isinstance(turns, str):
            raise InputError(f"Expected a list of turns, got the single text {turns!r}")
        if not len(turns):
            raise InputError("No turns given")
        return self.kind.prepare(self, turns, random_crop, generator)

    def sizes(self, turns: Sequence[str] | Sequence[float]) -> list[float]:
        """
        What each turn costs, for [`packed_batches`].

        Args:
            turns: texts, or lengths of audio in seconds; of videos, anything.

        Returns:
            tokens of each text, prompt included, seconds that the backbone hears, silence included, or frames.
        """
        return self.kind.costs(self, turns)

    def _longest(self) -> int:
        """
        Longest text in tokens. It must not change between calls: it is state of the tokenizer, which threads may
        share.
        """
        rest = len(self.tokenizer(self.prompt.replace("{text}", "")).input_ids)
        limit = int(min(self.max_tokens, self.tokenizer.model_max_length))
        if limit <= rest:
            raise InputError(
                f"max_tokens must be over the {rest} tokens of the prompt and the special ones, got {self.max_tokens} "
                f"(the tokenizer's model_max_length is {self.tokenizer.model_max_length})"
            )
        return limit

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        """What the library of fast tokenizers makes of each text, without transformers' lists of it."""
        nothing = dict.fromkeys(("return_attention_mask", "return_token_type_ids"), False)
        given = self.tokenizer(list(texts), truncation=self.limit is not None, max_length=self.limit, **nothing)
        assert given.encodings is not None  # the tokenizer is a fast one
        return given.encodings

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, after truncation."""
        return [len(encoding) for encoding in self._encode(texts)]

    def tokens(self, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> BatchFeature:
        r"""
        Args:
            texts: N texts.
            spans: of each, the first character that is pooled and the one after the last.

        Returns:
            `input_ids`, `attention_mask` and `pooling_mask`, each (N, P), padded at the end.

        Raises:
            InputError: if nothing of a span is left after truncation.
        """
        encodings = self._encode(texts)
        found = [encoding.ids for encoding in encodings]  # each a list that is made when it is read
        lengths = torch.tensor([len(each) for each in found])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        # Any token does for padding, also where the tokenizer has none for it.
        ids = torch.full(mask.shape, self.tokenizer.pad_token_id or 0, dtype=torch.long)
        ids[mask] = torch.tensor([*itertools.chain.from_iterable(found)], dtype=torch.long)
        pooled = mask.clone()
        unread = self.tokenizer.unk_token_id
        cut = unknown = 0
        for row, (encoding, own_ids, (begin, end)) in enumerate(zip(encodings, found, spans, strict=True)):
            cut += bool(encoding.overflowing)
            entire = (begin, end) == (0, len(texts[row]))
            if entire and unread not in own_ids and any(start < end for start, end in encoding.offsets):
                continue  # most texts: every token is pooled, and there are words among them
            own = [start < end and stop > begin for start, stop in encoding.offsets]
            unknown += not any(mine and token != unread for mine, token in zip(own, own_ids, strict=True))
            if not own_ids or (encoding.overflowing and not any(own)):
                raise InputError(
                    f"Nothing is left of turn {row} of the batch within {self.limit} tokens: "
                    f"{short(ascii(texts[row]))}"
                )
            # Without a prompt, the special tokens are pooled, too; so are all tokens if no word of the turn has one.
            if any(own) and not entire:
                pooled[row, : len(own)] = torch.tensor(own)
        if cut:
            self.num_truncated += cut
            logger.warning(f"Texts truncated to {self.limit} tokens: {cut} ({self.num_truncated} so far)")
        if unknown:
            self.num_unknown += unknown
            logger.warning(
                f"Texts of which the tokenizer knows no word: {unknown} ({self.num_unknown} so far); their vectors do "
                "not depend on what was said"
            )
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "pooling_mask": pooled})

    # Saving and loading

    def save_pretrained(self, save_directory: str | os.PathLike):
        """Write the processor's own settings, and the files of its parts: feature extractor, tokenizer, ..."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for part in self._parts():
            part.save_pretrained(folder)
        settings = {"modality": self.modality, "backbone_type": self.backbone_type, **self.own_settings}
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
            OSError: if no processor is stored there.
        """
        hub = {name: value for name, value in hub.items() if name in _HUB_OPTIONS}  # AutoProcessor says more
        require(pretrained_model_name_or_path, hub)
        path = cached_file(pretrained_model_name_or_path, CONFIG_NAME, **hub)
        assert path is not None  # `require` found it
        settings = read_json(path)
        if settings.pop("processor_class", None) != cls.__name__:
            raise OSError(f"'{path}' is of another processor")
        settings.pop("auto_map", None)
        check_settings(settings, path)
        kind = kind_of(settings["modality"], settings["backbone_type"])
        try:
            # The config.json beside these files is the encoder's, not the backbone's that they belong to.
            parts = load_parts(pretrained_model_name_or_path, kind, settings["backbone_type"], hub)
        except (ValueError, AttributeError, KeyError, TypeError) as error:  # no library names the file
            for part in (Path(path).with_name(name) for name in PARTS):
                if part.is_file():
                    read_json(part)
            raise OSError(f"A file of the processor in '{Path(path).parent}' is damaged: {short(error)}") from error
        with reading(path, "the settings of a processor"):
            return _bounded(cls(**settings, **parts), backbone_beside(path, settings["backbone_type"]))


def _bounded(processor: MisterEProcessor, config: transformers.PreTrainedConfig | None) -> MisterEProcessor:
    """The processor, with texts truncated to what the backbone takes."""
    longest = processor.kind.longest(config) if config is not None else None
    if longest is not None and longest < processor.max_tokens:
        processor.max_tokens = longest
        processor.limit = processor._longest()
    return processor
