"""What a raw turn holds of each modality, and how the pipeline reads it for the modality's encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..encoders.image_backbones import check_one_size
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..media.audio import SAMPLING_RATE, load_audio
from ..media.video import has_sound, load_frames
from .raw_turns import Turn


class TurnContent:
    """
    One modality of raw turns; a subclass each.

    Attributes:
        noun: what messages call it.
        window: number of turns whose content is in memory at once; None for all.
        prepared: whether `load` needs the processor, because what it reads would be too large to wait for others.
    """

    noun: str
    window: int | None = None
    prepared = False

    def of(self, turn: Turn) -> Any:
        """What the turn has; None where the modality is missing."""
        raise NotImplementedError

    def load(self, turn: Turn, processor: MisterEProcessor | None) -> Any:
        r"""
        Read it; None if there turns out to be none.

        Raises:
            AudioError, VideoError: if it cannot be read.
        """
        return self.of(turn)

    def sizes(self, processor: MisterEProcessor, contents: Sequence[Any]) -> list[float]:
        """What each costs to encode."""
        return processor.sizes(contents)

    def inputs(self, processor: MisterEProcessor, contents: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        """The tensors of a batch for the encoder."""
        return processor(contents)


class _Speech(TurnContent):
    """Audio, or the audio of the video: samples (S,) at 16 kHz."""

    noun = "audio"
    window = 64

    def of(self, turn: Turn) -> Any:
        return turn.sound

    def load(self, turn: Turn, processor: MisterEProcessor | None) -> np.ndarray | None:
        if turn.audio is None and not has_sound(turn.video):
            return None
        return load_audio(turn.sound, turn.sampling_rate, turn.start, turn.end)

    def sizes(self, processor: MisterEProcessor, contents: Sequence[np.ndarray]) -> list[float]:
        return processor.sizes([len(samples) / SAMPLING_RATE for samples in contents])


class _Text(TurnContent):
    """Transcripts."""

    noun = "text"

    def of(self, turn: Turn) -> str | None:
        return turn.text


class _Visual(TurnContent):
    """Frames of the video, as the encoder takes them: those of a file may be a hundred times as large."""

    noun = "video"
    window = 16
    prepared = True

    def of(self, turn: Turn) -> Any:
        return turn.video

    def load(self, turn: Turn, processor: MisterEProcessor | None) -> Mapping[str, torch.Tensor]:
        assert processor is not None
        frames = load_frames(turn.video, turn.start, turn.end, processor.num_frames)
        return processor([frames])

    def sizes(self, processor: MisterEProcessor, contents: Sequence[Mapping[str, torch.Tensor]]) -> list[float]:
        return [float(processor.num_frames)] * len(contents)

    def inputs(
        self, processor: MisterEProcessor, contents: Sequence[Mapping[str, torch.Tensor]]
    ) -> Mapping[str, torch.Tensor]:
        check_one_size([each["pixel_values"] for each in contents], "The processor of visual_encoder/")
        return {name: torch.cat([each[name] for each in contents]) for name in contents[0]}


# In the order in which they are read: transcription of the audio comes before the text.
CONTENTS: dict[str, TurnContent] = {"speech": _Speech(), "text": _Text(), "visual": _Visual()}
