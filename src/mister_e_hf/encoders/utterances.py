"""The single turns of a corpus of dialogues, one modality at a time, and batches of them for [`UtteranceEncoder`]."""

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
from ..base.losses import IGNORE_INDEX
from ..corpora.dialogues import turns_of_dialogues
from ..media.audio import AudioError, load_audio
from ..media.transcripts import has_words
from .processing_utterance_encoder import MisterEProcessor

logger = logging.getLogger(__name__)


class Utterances(torch.utils.data.Dataset):
    r"""
    The turns of one split that have a modality. An item is `{"turn", "label", "index"}`: the text or samples (S,) at 16 kHz, the class
    index or -100, and the turn's number among all N turns of the split.

    Args:
        data: a split, one row per dialogue.
        modality: `"speech"` or `"text"`.
        label2id: class index of each label; without it no turn is labelled.
        bad_audio: `"error"`, or `"missing"`: an item whose sound cannot be used then has the turn None.
        labelled_only: leave out turns without a label.
        dialogues: which of the split's dialogues to take, True or False for each; by default all.

    Raises:
        ValueError: if a label is none of the model's, naming it.
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
        if modality not in ("speech", "text"):
            raise InputError(f"modality must be 'speech' or 'text', got {modality!r}")
        if bad_audio not in ("error", "missing"):
            raise InputError(f"bad_audio must be 'error' or 'missing', got {bad_audio!r}")
        self.modality, self.bad_audio, self._data = modality, bad_audio, data
        self.dialogue_lengths = turns_of_dialogues(data)
        chunks = self._turns
        self.starts = np.cumsum([0, *map(len, chunks)])
        # What batches are made by: seconds, or characters.
        sizes = [
            chunk.field("duration")
            if modality == "speech"
            else pa.compute.utf8_length(pa.compute.utf8_trim_whitespace(chunk.field("text")))
            for chunk in chunks
        ]
        sizes = np.concatenate([size.fill_null(0).to_numpy(zero_copy_only=False) for size in sizes]).astype(np.float64)
        if modality == "speech":
            present = np.concatenate([chunk.field("audio").is_valid().to_numpy(False) for chunk in chunks])
        else:
            texts = (text for chunk in chunks for text in chunk.field("text"))
            present = np.fromiter((has_words(text.as_py() or "") for text in texts), bool, count=len(sizes))
        self.labels = self._labels(data, label2id)
        if labelled_only:
            present &= self.labels != IGNORE_INDEX
        if dialogues is not None:
            present &= np.repeat(dialogues, self.dialogue_lengths)
        self.indices = np.flatnonzero(present)
        self.lengths = sizes[self.indices]

    @property
    def num_turns(self) -> int:
        """N, the modality's presence aside."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = int(self.indices[item])
        chunk = int(np.searchsorted(self.starts, index, side="right")) - 1
        turn = self._content(self._turns[chunk], index - int(self.starts[chunk]))
        return {"turn": turn, "label": int(self.labels[index]), "index": index}

    def dialogues(self) -> np.ndarray:
        """Which dialogue each item belongs to, by its number in the split."""
        return np.repeat(np.arange(len(self.dialogue_lengths)), self.dialogue_lengths)[self.indices]

    @functools.cached_property
    def _turns(self) -> list[pa.StructArray]:
        return [column.flatten() for column in self._data.data.column("utterances").chunks]

    def __getstate__(self) -> dict[str, Any]:
        # A process that is started afresh maps the tables itself, in place of being sent all sound.
        return {name: value for name, value in vars(self).items() if name != "_turns"}

    def _content(self, turns: pa.StructArray, row: int) -> str | np.ndarray | None:
        # Field by field: the whole turn as Python objects would copy its sound for its text.
        if self.modality == "text":
            return turns.field("text")[row].as_py()
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
            if self.bad_audio == "error":
                raise AudioError(f"Turn {turn['utterance_id']}: {error}") from error
            logger.warning("Turn %s goes without sound: %s", turn["utterance_id"], error)
            return None

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
                    "train on it, name its labels with --corpus.labels, or leave corpus.labels out of the recipe; a trained "
                    "model can only be scored on the labels that it knows"
                )
            labels[given == number] = label2id.get(name, IGNORE_INDEX)
        return labels


class UtteranceCollator:
    """Items of [`Utterances`] -> what [`UtteranceEncoder`] takes, with `labels` (N,). Long sound is cropped at random in training alone."""

    def __init__(self, processor: MisterEProcessor, random_crop: bool = False):
        self.processor, self.random_crop = processor, random_crop

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([item["turn"] for item in items], random_crop=self.random_crop))
        batch["labels"] = torch.tensor([item["label"] for item in items])
        return batch
