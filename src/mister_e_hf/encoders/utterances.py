"""Dataset and collator of single turns, one modality at a time, for [`UtteranceEncoder`]."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from ..base.errors import InputError
from ..base.modalities import IGNORE_INDEX
from ..corpora.dialogues import turns_of_dialogues
from ..media.audio import AudioError, load_audio
from ..media.transcripts import has_words
from ..media.video import NUM_FRAMES, VideoError, load_frames
from ..vectors.targets import LARGEST_TARGET, as_targets
from ..vectors.turn_fields import further_fields, is_number
from .processing_utterance_encoder import MisterEProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    r"""
    How the media of turns are read.

    Args:
        bad_audio, bad_video: `"error"`, or `"missing"`: a turn whose audio or video cannot be read is used without.
        num_frames: frames read of each turn's video.

    Raises:
        InputError: if a policy is neither.
    """

    bad_audio: str = "error"
    bad_video: str = "error"
    num_frames: int = NUM_FRAMES

    def __post_init__(self):
        for name in ("bad_audio", "bad_video"):
            if getattr(self, name) not in ("error", "missing"):
                raise InputError(f"{name} must be 'error' or 'missing', got {getattr(self, name)!r}")


class _Recordings:
    """The speech of turns. A further modality is one more class like this one, entered in `_CONTENTS`."""

    def sizes(self, turns: pa.StructArray) -> pa.Array:
        """What batches are made by: seconds."""
        return turns.field("duration")

    def present(self, turns: pa.StructArray) -> np.ndarray:
        return turns.field("audio").is_valid().to_numpy(False)

    def read(self, turns: pa.StructArray, row: int, how: Reading) -> np.ndarray | None:
        """Samples (S,) at 16 kHz; None for audio that cannot be read, if `how.bad_audio` allows that."""
        turn = _fields(turns, row, "audio")
        stored = turn["audio"]
        try:
            return load_audio(
                stored,
                start=turn["start"],
                end=turn["end"],
                max_seconds=np.inf,
                name=stored.get("path") or turn["utterance_id"],
            )
        except AudioError as error:
            if how.bad_audio == "error":
                raise AudioError(f"Turn {turn['utterance_id']}: {error}") from error
            logger.warning("Turn %s is used without audio: %s", turn["utterance_id"], error)
            return None


class _Transcripts:
    """The text of turns."""

    def sizes(self, turns: pa.StructArray) -> pa.Array:
        """What batches are made by: characters."""
        return pa.compute.utf8_length(pa.compute.utf8_trim_whitespace(turns.field("text")))

    def present(self, turns: pa.StructArray) -> np.ndarray:
        return np.array([has_words(text.as_py() or "") for text in turns.field("text")], dtype=bool)

    def read(self, turns: pa.StructArray, row: int, how: Reading) -> str | None:
        return turns.field("text")[row].as_py()


class _Videos:
    """The picture of turns."""

    def sizes(self, turns: pa.StructArray) -> pa.Array:
        """What batches are made by: each turn costs the same, whatever its length."""
        return pa.array(np.ones(len(turns)))

    def present(self, turns: pa.StructArray) -> np.ndarray:
        if turns.type.get_field_index("video") < 0:  # a corpus of an older version
            return np.zeros(len(turns), dtype=bool)
        return turns.field("video").is_valid().to_numpy(False)

    def read(self, turns: pa.StructArray, row: int, how: Reading) -> np.ndarray | None:
        """Frames (K, H, W, 3); None for a video that cannot be read, if `how.bad_video` allows that."""
        turn = _fields(turns, row, "video")
        stored = turn["video"]
        try:
            name = stored.get("path") or turn["utterance_id"]
            return load_frames(stored, turn["start"], turn["end"], how.num_frames, name)
        except VideoError as error:
            if how.bad_video == "error":
                raise VideoError(f"Turn {turn['utterance_id']}: {error}") from error
            logger.warning("Turn %s is used without video: %s", turn["utterance_id"], error)
            return None


def _fields(turns: pa.StructArray, row: int, content: str) -> dict[str, Any]:
    """One turn's content, and where in its file it is."""
    # Field by field: a whole turn as Python objects would copy its audio for its text.
    return {name: turns.field(name)[row].as_py() for name in ("utterance_id", content, "start", "end")}


_CONTENTS: dict[str, _Recordings | _Transcripts | _Videos] = {
    "speech": _Recordings(),
    "text": _Transcripts(),
    "visual": _Videos(),
}


class Utterances(torch.utils.data.Dataset):
    r"""
    The turns of one split that have a modality. An item is `{"turn", "label", "index"}`: the text, the samples (S,) at
    16 kHz or the frames (K, H, W, 3) of the video; the class index or -100, or with `targets` the scores (S,), NaN
    where one is missing; and the turn's index among all N turns of the split.

    Args:
        data: a split, one row per dialogue.
        modality: `"speech"`, `"text"` or `"visual"`.
        label2id: class index of each label; if None, no turn is labelled. With `targets`, the index of each target.
        bad_audio: `"error"`, or `"missing"`: the turn of an item whose audio cannot be read is None.
        labelled_only: leave out turns without a label, or without the score of any target.
        dialogues: for each dialogue of the split, whether it is used; by default all are.
        targets: by the name of each target of a regression, the field of a turn that holds it; or the fields, which
            then name the targets.
        bad_video: as `bad_audio`, of video.
        num_frames: number of frames that are read of a turn's video.

    Raises:
        InputError: if a label is not one of the model's, or a target is not a field of numbers.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        modality: str,
        label2id: Mapping[str, int] | None = None,
        bad_audio: str = "error",
        labelled_only: bool = False,
        dialogues: np.ndarray | None = None,
        targets: Mapping[str, str] | Sequence[str] | None = None,
        bad_video: str = "error",
        num_frames: int = NUM_FRAMES,
    ):
        if modality not in _CONTENTS:
            raise InputError(f"modality must be one of {', '.join(_CONTENTS)}, got {modality!r}")
        self.how = Reading(bad_audio, bad_video, num_frames)
        self.modality, self._data = modality, data
        self.targets = None if targets is None else as_targets(targets, label2id)
        self.dialogue_lengths = turns_of_dialogues(data)
        chunks, contents = self._turns, _CONTENTS[modality]
        self.starts = np.cumsum([0, *map(len, chunks)])
        sizes = [contents.sizes(chunk).fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
        present = np.concatenate([contents.present(chunk) for chunk in chunks])
        self.labels = self._labels(data, label2id) if self.targets is None else self._scores(self.targets)
        if labelled_only:
            scored = ~np.isnan(self.labels).all(1) if self.targets is not None else self.labels != IGNORE_INDEX
            present &= scored
        if dialogues is not None:
            present &= np.repeat(dialogues, self.dialogue_lengths)
        self.indices = np.flatnonzero(present)
        self.lengths = np.concatenate(sizes).astype(np.float64)[self.indices]

    @property
    def num_turns(self) -> int:
        """N: all turns of the split, with the modality or without."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = int(self.indices[item])
        chunk = int(np.searchsorted(self.starts, index, side="right")) - 1
        turn = _CONTENTS[self.modality].read(self._turns[chunk], index - int(self.starts[chunk]), self.how)
        label = int(self.labels[index]) if self.targets is None else self.labels[index]
        return {"turn": turn, "label": label, "index": index}

    def dialogues(self) -> np.ndarray:
        """The index in the split of the dialogue that each item belongs to."""
        return np.repeat(np.arange(len(self.dialogue_lengths)), self.dialogue_lengths)[self.indices]

    @functools.cached_property
    def _turns(self) -> list[pa.StructArray]:
        return [column.flatten() for column in self._data.data.column("utterances").chunks]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the tables itself, so that no audio is sent to it.
        return {name: value for name, value in vars(self).items() if name != "_turns"}

    def _labels(self, data: datasets.Dataset, label2id: Mapping[str, int] | None) -> np.ndarray:
        labels = np.full(self.num_turns, IGNORE_INDEX, dtype=np.int64)
        if label2id is None:
            return labels
        names = data.features["utterances"].feature["emotion"].names
        given = np.concatenate(
            [chunk.field("emotion").fill_null(-1).to_numpy(zero_copy_only=False) for chunk in self._turns]
        )
        for number, name in enumerate(names):
            if (given == number).any() and name not in label2id:
                raise InputError(
                    f"The corpus has the label {name!r}, which is none of the model's labels {list(label2id)}. To "
                    "train on it, name its labels with --corpus.labels, or leave corpus.labels out of the recipe; a "
                    "trained model can only be scored on the labels that it knows"
                )
            labels[given == number] = label2id.get(name, IGNORE_INDEX)
        return labels

    def _scores(self, targets: Mapping[str, str]) -> np.ndarray:
        """The targets of all turns, (N, S) in float32, NaN where one is missing."""
        known = further_fields(self._turns[0].type)
        columns = []
        for target, field in targets.items():
            number = self._turns[0].type.get_field_index(field)
            if number < 0 or not is_number(self._turns[0].type.field(number).type):
                numbers = [name for name in ("sentiment", *known) if is_number(self._turns[0].field(name).type)]
                raise InputError(
                    f"The target '{target}' must be a field of numbers of a turn, and '{field}' is not one; "
                    f"there are: {', '.join(numbers)}"
                )
            parts = [chunk.field(field).cast(pa.float64()).fill_null(np.nan) for chunk in self._turns]
            columns.append(np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts]))
        scores = np.stack(columns, 1)
        if (np.abs(scores) > LARGEST_TARGET).any():
            raise InputError(
                f"The targets {list(targets)} hold an infinite score, or one beyond {LARGEST_TARGET:g}, whose "
                "gradient would be infinite in float32. Scale the column"
            )
        return scores.astype(np.float32)


class UtteranceCollator:
    """
    Items of [`Utterances`] -> the inputs of [`UtteranceEncoder`], with `labels` (N,) or (N, S); `random_crop` is for
    training.
    """

    def __init__(self, processor: MisterEProcessor, random_crop: bool = False):
        self.processor, self.random_crop = processor, random_crop

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([item["turn"] for item in items], random_crop=self.random_crop))
        batch["labels"] = torch.as_tensor(np.array([item["label"] for item in items]))
        return batch
