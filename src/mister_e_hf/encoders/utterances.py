"""The single turns of a corpus of dialogues, one modality at a time, and batches of them for [`UtteranceEncoder`]."""

import functools
import glob
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from ..base import progress
from ..base.errors import InputError, reading
from ..base.losses import IGNORE_INDEX
from ..corpora.provenance import Provenance
from ..corpora.publishing import table_files
from ..corpora.schema import dialogue_features
from ..media.audio import AudioError, load_audio
from ..media.transcripts import has_words
from .processing_utterance_encoder import MisterEProcessor

logger = logging.getLogger(__name__)

_LARGE = 200e6  # bytes of tables that take long to read for the first time


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
        corpus = _read_folder(folder) if folder.is_dir() else _read_hub(str(source))
    where = "the corpus" if isinstance(source, Mapping) else f"'{source}'"
    for split, data in corpus.items():
        if "utterances" not in data.column_names or "dialogue_id" not in data.column_names:
            raise InputError(
                f"Split {split} of {where} has the columns {data.column_names}; expected dialogue_id and utterances"
            )
        expected = dialogue_features(["any"])["utterances"].feature
        given = getattr(data.features["utterances"], "feature", None)
        if not isinstance(given, dict) or set(expected) - set(given) or not hasattr(given["emotion"], "names"):
            raise InputError(
                f"The utterances of split {split} of {where} are {given}; expected the fields {list(expected)}, emotion a ClassLabel"
            )
    # A split without rows has no tables to point into, and nothing to give.
    return datasets.DatasetDict(
        {
            split: data if data._indices is None else data.flatten_indices()
            for split, data in corpus.items()
            if len(data)
        }
    )


def _read_folder(folder: Path) -> datasets.DatasetDict:
    tables = table_files(folder)
    if not tables:
        raise FileNotFoundError(f"'{folder}' holds no tables; make a corpus by `mister-e corpus`")
    # The tables' own word on what corpus they are: its licence goes where its vectors go.
    found = [Provenance.of_table(path) for path in tables]
    provenance = next((one for one in found if one.corpus), Provenance(folder.name, folder.name))
    files: dict[str, list[str]] = {}
    for path in tables:
        files.setdefault(re.split("[-.]", path.name)[0], []).append(glob.escape(str(path.absolute())))
    # Not the folder itself: where its card names the tables, datasets takes one folder for another of the same name.
    size = sum(path.stat().st_size for path in tables)
    if size > _LARGE:
        progress.line(f"reading the corpus '{folder}', {size / 1e9:.1f} GB")
    with reading(folder, "a corpus folder"):
        corpus = datasets.load_dataset("parquet", data_files=files)
    for data in corpus.values():
        provenance.put(data.info)
    return corpus


def _read_hub(name: str) -> datasets.DatasetDict:
    progress.line(f"reading '{name}' from the Hub")
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is neither a corpus folder here nor a dataset that could be loaded: {error}"
        ) from error


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


def turns_of_dialogues(data: datasets.Dataset) -> np.ndarray:
    """How many turns each row has."""
    return np.concatenate(
        [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in data.data.column("utterances").chunks]
    )


def folds_of_dialogues(count: int, folds: int) -> np.ndarray:
    """Which of so many folds each dialogue of a split falls into: at random, always the same, of equal size but for one."""
    if not 2 <= folds <= count:
        raise InputError(f"{count} dialogues cannot be parted into {folds} folds")
    return np.random.default_rng(0).permutation(count) % folds


def corpus_fingerprint(data: datasets.Dataset) -> str:
    """A hash of a split's dialogues and label names; of sound files that it names, by size and time of change."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(data.features["utterances"].feature["emotion"].names).encode())
    for table in data.with_format("arrow").iter(batch_size=8):  # few, since they may hold sound
        for row in table.to_pylist():
            for turn in row["utterances"]:
                stored = turn.pop("audio")
                digest.update(repr((row["dialogue_id"], sorted(turn.items()))).encode())
                if stored is not None and stored["bytes"] is not None:
                    digest.update(stored["bytes"])
                elif stored is not None:
                    path = Path(stored["path"])
                    digest.update(
                        repr((str(path), path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns))).encode()
                    )
    return digest.hexdigest()


class UtteranceCollator:
    """Items of [`Utterances`] -> what [`UtteranceEncoder`] takes, with `labels` (N,). Long sound is cropped at random in training alone."""

    def __init__(self, processor: MisterEProcessor, random_crop: bool = False):
        self.processor, self.random_crop = processor, random_crop

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([item["turn"] for item in items], random_crop=self.random_crop))
        batch["labels"] = torch.tensor([item["label"] for item in items])
        return batch
