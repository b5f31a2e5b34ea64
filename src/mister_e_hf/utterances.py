"""The single turns of a corpus of dialogues, one modality at a time, and batches of them for [`UtteranceEncoder`]."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from .audio import AudioError, load_audio
from .corpora.publishing import corpus_of, table_files
from .losses import IGNORE_INDEX
from .processing_mister_e import MisterEProcessor

logger = logging.getLogger(__name__)


def load_dialogues(source: str | Path | datasets.DatasetDict) -> datasets.DatasetDict:
    r"""
    A corpus of dialogues, as a builder of this package or `mister-e corpus` makes it, memory-mapped.

    Args:
        source: a corpus folder, the id of a Hub dataset, or a `datasets.DatasetDict`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no corpus of dialogues.
    """
    if isinstance(source, Mapping):
        corpus = source
    else:
        folder = Path(source).expanduser()
        if folder.is_dir() and not [*folder.glob("*.parquet")]:
            raise FileNotFoundError(f"'{folder}' holds no tables; make a corpus by `mister-e corpus`")
        try:
            corpus = datasets.load_dataset(str(folder if folder.is_dir() else source))
        except Exception as error:
            raise FileNotFoundError(
                f"'{source}' is neither a corpus folder here nor a dataset that could be loaded: {error}"
            ) from error
        for data in corpus.values() if folder.is_dir() else ():
            # The tables' own word on what corpus they are: its licence goes where its vectors go.
            data.info.dataset_name = next(filter(None, map(corpus_of, table_files(folder))), data.info.dataset_name)
    for split, data in corpus.items():
        if "utterances" not in data.column_names or "dialogue_id" not in data.column_names:
            raise ValueError(
                f"Split {split} of '{source}' has the columns {data.column_names}; expected dialogue_id and utterances"
            )
    return datasets.DatasetDict(
        {split: data if data._indices is None else data.flatten_indices() for split, data in corpus.items()}
    )


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
    ):
        if modality not in ("speech", "text"):
            raise ValueError(f"modality must be 'speech' or 'text', got {modality!r}")
        if bad_audio not in ("error", "missing"):
            raise ValueError(f"bad_audio must be 'error' or 'missing', got {bad_audio!r}")
        self.modality, self.bad_audio = modality, bad_audio
        columns = data.data.column("utterances").chunks
        self.dialogue_lengths = np.concatenate(
            [column.value_lengths().to_numpy(zero_copy_only=False) for column in columns]
        )
        chunks = [column.flatten() for column in columns]
        self.turns: list[pa.StructArray] = chunks or [pa.array([], pa.struct([]))]
        self.starts = np.cumsum([0, *map(len, chunks)])
        field = "audio" if modality == "speech" else "text"
        present = np.concatenate([chunk.field(field).is_valid().to_numpy(zero_copy_only=False) for chunk in chunks])
        self.labels = self._labels(data, label2id)
        if labelled_only:
            present &= self.labels != IGNORE_INDEX
        self.indices = np.flatnonzero(present)
        # What batches are made by: seconds, or characters.
        sizes = [
            chunk.field("duration") if modality == "speech" else pa.compute.utf8_length(chunk.field("text"))
            for chunk in chunks
        ]
        sizes = np.concatenate([size.fill_null(0).to_numpy(zero_copy_only=False) for size in sizes]).astype(np.float64)
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
        turn = self.turns[chunk][index - int(self.starts[chunk])].as_py()
        return {"turn": self._content(turn), "label": int(self.labels[index]), "index": index}

    def dialogues(self) -> np.ndarray:
        """Which dialogue each item belongs to, by its number in the split."""
        return np.repeat(np.arange(len(self.dialogue_lengths)), self.dialogue_lengths)[self.indices]

    def _content(self, turn: dict[str, Any]) -> str | np.ndarray | None:
        if self.modality == "text":
            return turn["text"]
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
            [chunk.field("emotion").fill_null(-1).to_numpy(zero_copy_only=False) for chunk in self.turns]
        )
        for number, name in enumerate(names):
            if (given == number).any() and name not in label2id:
                raise ValueError(
                    f"The corpus has the label {name!r}, which is none of the model's labels {list(label2id)}"
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
        if batch and ((len(batch) + 1) * longest > budget or len(batch) == most):
            yield batch
            batch = []
        longest = longest if batch else sizes[item]
        batch.append(item)
    if batch:
        yield batch
