"""Dataset and collator of single turns, one modality at a time, for [`UtteranceEncoder`]."""

import functools
import logging
from collections.abc import Mapping, Sequence
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
from .processing_utterance_encoder import MisterEProcessor

logger = logging.getLogger(__name__)


class _Recordings:
    """The speech of turns. A further modality is one more class like this one, entered in `_CONTENTS`."""

    def sizes(self, turns: pa.StructArray) -> pa.Array:
        """What batches are made by: seconds."""
        return turns.field("duration")

    def present(self, turns: pa.StructArray) -> np.ndarray:
        return turns.field("audio").is_valid().to_numpy(False)

    def read(self, turns: pa.StructArray, row: int, bad_audio: str) -> np.ndarray | None:
        """Samples (S,) at 16 kHz; None for audio that cannot be read, if `bad_audio` allows that."""
        turn = {name: turns.field(name)[row].as_py() for name in ("utterance_id", "audio", "start", "end")}
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
            if bad_audio == "error":
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

    def read(self, turns: pa.StructArray, row: int, bad_audio: str) -> str | None:
        return turns.field("text")[row].as_py()


_CONTENTS: dict[str, _Recordings | _Transcripts] = {"speech": _Recordings(), "text": _Transcripts()}


class Utterances(torch.utils.data.Dataset):
    r"""
    The turns of one split that have a modality. An item is `{"turn", "label", "index"}`: the text or samples (S,) at
    16 kHz, the class index or -100, and the turn's index among all N turns of the split.

    Args:
        data: a split, one row per dialogue.
        modality: `"speech"` or `"text"`.
        label2id: class index of each label; if None, no turn is labelled.
        bad_audio: `"error"`, or `"missing"`: the turn of an item whose audio cannot be read is None.
        labelled_only: leave out turns without a label.
        dialogues: for each dialogue of the split, whether it is used; by default all are.

    Raises:
        InputError: if a label is not one of the model's.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        modality: str,
        label2id: Mapping[str, int] | None = None,
        bad_audio: str = "error",
        labelled_only: bool = False,
        dialogues: np.ndarray | None = None,
    ):
        if modality not in _CONTENTS:
            raise InputError(f"modality must be one of {', '.join(_CONTENTS)}, got {modality!r}")
        if bad_audio not in ("error", "missing"):
            raise InputError(f"bad_audio must be 'error' or 'missing', got {bad_audio!r}")
        self.modality, self.bad_audio, self._data = modality, bad_audio, data
        self.dialogue_lengths = turns_of_dialogues(data)
        chunks, contents = self._turns, _CONTENTS[modality]
        self.starts = np.cumsum([0, *map(len, chunks)])
        sizes = [contents.sizes(chunk).fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
        present = np.concatenate([contents.present(chunk) for chunk in chunks])
        self.labels = self._labels(data, label2id)
        if labelled_only:
            present &= self.labels != IGNORE_INDEX
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
        # Field by field: a whole turn as Python objects would copy its audio for its text.
        turn = _CONTENTS[self.modality].read(self._turns[chunk], index - int(self.starts[chunk]), self.bad_audio)
        return {"turn": turn, "label": int(self.labels[index]), "index": index}

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


class UtteranceCollator:
    """
    Items of [`Utterances`] -> the inputs of [`UtteranceEncoder`], with `labels` (N,); `random_crop` is for training.
    """

    def __init__(self, processor: MisterEProcessor, random_crop: bool = False):
        self.processor, self.random_crop = processor, random_crop

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([item["turn"] for item in items], random_crop=self.random_crop))
        batch["labels"] = torch.tensor([item["label"] for item in items])
        return batch
