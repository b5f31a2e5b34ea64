"""A corpus of dialogues as vectors: one table per split with a row per dialogue, and one vector per turn and modality.

Two forms are read. In both a row of the table has `dialogue_id`, `utterance_ids`, a label column, and where they are known
`texts`, `has_audio` and `has_text`.

- `train.parquet` with the vectors as list columns `speech_features` and `text_features`; any `datasets` dataset of that form.
- `train.parquet` without them and `train.safetensors` beside it, with tensors of those names of shape (N, D), the split's turns
  one after another in the table's order. They are memory-mapped. `write_vectors` writes this form.

In place of `utterance_ids`, `labels` and so on, a row may have `utterances`, as the corpora of this package do
(`corpora/schema.py`); its emotion is then read as `labels`, its sentiment score as `sentiment`.

Either may be cut into shards (`train-00000-of-00002.parquet`), as the Hub does. Letters: n dialogues, N turns of the split,
D vector width.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .errors import InputError
from .losses import IGNORE_INDEX

MODALITIES = ("speech", "text")
SPLITS = ("train", "validation", "test")
_CHECK_ROWS = 65536


class VectorColumn:
    """The vectors of one modality, (N, D), as one or several tensors after one another; a tensor may be memory-mapped."""

    def __init__(self, chunks: list[torch.Tensor]):
        self.chunks = chunks
        self.starts = np.cumsum([0, *map(len, chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def width(self) -> int:
        return self.chunks[0].shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`, in the stored dtype."""
        parts, chunk = [], int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            first = int(self.starts[chunk])
            part = self.chunks[chunk][start - first : stop - first]
            parts.append(part)
            start, chunk = start + len(part), chunk + 1
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The rows in blocks of bounded size, each with the number of its first row."""
        for start in range(0, len(self), _CHECK_ROWS):
            yield start, self.rows(start, min(start + _CHECK_ROWS, len(self)))


class DialogueVectors(torch.utils.data.Dataset):
    r"""
    One split, as a map-style dataset whose item is one dialogue: a dictionary of `speech_embeddings` (T, Ds),
    `text_embeddings` (T, Dt), `speech_mask`, `text_mask` (T,) and `labels` (T,). A modality that the corpus does not have is
    left out of the item.

    Args:
        table (`pyarrow.Table`): a row per dialogue, as the module's description says.
        label2id (`dict[str, int]`, *optional*): class index of each label name; without it no turn is labelled.
        label_column: labels as names, or as class indices (null or -100: not labelled).
        score_column: a column of real-valued scores to keep beside the labels.
        vectors (`dict[str, VectorColumn]`, *optional*): the vectors by modality, where the table does not hold them.
        name: what to call the split in messages.

    Raises:
        ValueError: naming dialogue and field, if the table is not of the form.
    """

    def __init__(
        self,
        table: pa.Table,
        label2id: Mapping[str, int] | None = None,
        label_column: str = "labels",
        score_column: str | None = None,
        vectors: dict[str, VectorColumn] | None = None,
        name: str = "train",
    ):
        self.name = name
        if "utterances" in table.column_names:
            table = _with_turn_columns(table, name)
        for column in ("dialogue_id", "utterance_ids", *([label_column] if label2id else []), score_column):
            if column is not None and column not in table.column_names:
                raise InputError(f"{name}: the table has no column '{column}'; it has {table.column_names}")
        if not _is_list(table["utterance_ids"].type):
            raise InputError(
                f"{name}: 'utterance_ids' must hold one list per dialogue, not {table['utterance_ids'].type}"
            )
        self.dialogue_ids = [str(value) for value in table["dialogue_id"].to_pylist()]
        self.utterance_ids = table["utterance_ids"].to_pylist()
        self.lengths = np.array([len(ids or []) for ids in self.utterance_ids], dtype=np.int64)
        for dialogue, length in zip(self.dialogue_ids, self.lengths, strict=True):
            if length == 0:
                raise InputError(f"{name}: dialogue '{dialogue}' has no turns (utterance_ids is empty)")
        if not self.dialogue_ids:
            raise InputError(f"{name}: the table has no dialogues")
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])

        self.labels = self._read_labels(table[label_column], label2id, label_column) if label2id else None
        self.scores = self._read_scores(table[score_column], score_column) if score_column else None
        self.vectors, self.present = {}, {}
        for modality, flag in zip(MODALITIES, ("has_audio", "has_text"), strict=True):
            column = f"{modality}_features"
            present = np.ones(self.num_turns, dtype=bool)
            if flag in table.column_names:
                given = self._flatten(table[flag], flag)
                if not pa.types.is_boolean(given.type):
                    raise InputError(f"{name}: '{flag}' must hold true or false per turn, not {given.type}")
                present &= given.fill_null(False).to_numpy(zero_copy_only=False)
            if vectors and modality in vectors:
                self.vectors[modality] = vectors[modality]
                if len(vectors[modality]) != self.num_turns:
                    raise InputError(
                        f"{name}: {column} holds {len(vectors[modality])} vectors, but the table {self.num_turns} turns"
                    )
            elif column in table.column_names:
                self.vectors[modality], given = self._read_vectors(table[column], column)
                present &= given
            if modality in self.vectors:
                self.present[modality] = present
        if not self.vectors:
            raise InputError(
                f"{name}: no vectors. Expected the columns speech_features, text_features or both in the table, or a "
                f"'{name}.safetensors' with tensors of those names beside it; the table has {table.column_names}. Text and sound "
                "become vectors by encoders, before stage 2 is trained."
            )

    @property
    def num_turns(self) -> int:
        """N"""
        return int(self.offsets[-1])

    def __len__(self) -> int:
        return len(self.dialogue_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        item = {}
        for modality, column in self.vectors.items():
            item[f"{modality}_embeddings"] = column.rows(start, stop)
            item[f"{modality}_mask"] = torch.from_numpy(self.present[modality][start:stop])
        if self.labels is not None:
            item["labels"] = torch.from_numpy(self.labels[start:stop])
        return item

    def dialogue_of(self, turn: int) -> str:
        """Id of the dialogue that a turn of the split belongs to."""
        return self.dialogue_ids[self._row_of(turn)]

    def _row_of(self, turn: int) -> int:
        return int(np.searchsorted(self.offsets, turn, side="right")) - 1

    def statistics(self, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (D,) over the turns where the modality is present, in float64."""
        column, total, squares = self.vectors[modality], 0.0, 0.0
        kept = torch.from_numpy(self.present[modality])
        count = int(kept.sum())
        if count == 0:
            raise InputError(f"{self.name}: no turn has {modality}, so its vectors cannot be standardised")
        for start, block in column.blocks():
            total = total + block[kept[start : start + len(block)]].double().sum(0)
        mean = total / count
        for start, block in column.blocks():
            squares = squares + (block[kept[start : start + len(block)]].double() - mean).square().sum(0)
        return mean, (squares / count).sqrt()

    def check(self, widths: Mapping[str, int]):
        """
        Raise ValueError, naming dialogue and field, where a vector has not the width that the model expects
        (`widths`, by modality) or a present vector holds NaN or infinity.
        """
        for modality, column in self.vectors.items():
            field = f"{modality}_features"
            if modality in widths and column.width != widths[modality]:
                raise InputError(
                    f"{self.name}: {field} of dialogue '{self.dialogue_ids[0]}' have width {column.width}, but the model "
                    f"expects {modality}_embedding_dim = {widths[modality]}"
                )
            for start, block in column.blocks():
                broken = ~torch.isfinite(block).all(1) & torch.from_numpy(
                    self.present[modality][start : start + len(block)]
                )
                if broken.any():
                    turn = start + int(broken.nonzero()[0, 0])
                    row = self._row_of(turn)
                    dialogue, utterance = self.dialogue_ids[row], self.utterance_ids[row][turn - self.offsets[row]]
                    raise InputError(
                        f"{self.name}: {field} of utterance '{utterance}' in dialogue '{dialogue}' hold NaN or infinity "
                        f"({int(broken.sum())} such vectors in this block). Mark the turn as absent or mend the vector."
                    )

    def fingerprint(self) -> str:
        """A hash of the ids, labels, presence and vectors."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.dialogue_ids, self.utterance_ids)).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for modality, column in self.vectors.items():
            digest.update(modality.encode() + self.present[modality].tobytes())
            for _, block in column.blocks():
                digest.update(block.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _flatten(self, column: pa.ChunkedArray, field: str) -> pa.Array:
        """A list column's items, one per turn of the split."""
        if not _is_list(column.type):
            raise InputError(f"{self.name}: '{field}' must hold one list per dialogue, not {column.type}")
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        lengths = np.array(column.value_lengths().fill_null(0))
        if not np.array_equal(lengths, self.lengths):
            row = int(np.flatnonzero(lengths != self.lengths)[0])
            raise InputError(
                f"{self.name}: dialogue '{self.dialogue_ids[row]}' has {self.lengths[row]} turns (utterance_ids), but "
                f"{lengths[row]} entries in '{field}'"
            )
        return column.flatten()

    def _read_labels(self, column: pa.ChunkedArray, label2id: Mapping[str, int], field: str) -> np.ndarray:
        values = self._flatten(column, field)
        if pa.types.is_floating(values.type):
            raise InputError(
                f"{self.name}: '{field}' holds real numbers. Name a column of labels or class indices instead."
            )
        if pa.types.is_nested(values.type):
            raise InputError(f"{self.name}: '{field}' must hold a name or a class index per turn, not {values.type}")
        labels = np.full(self.num_turns, IGNORE_INDEX, dtype=np.int64)
        indices = set(label2id.values())
        for turn, value in enumerate(values.to_pylist()):
            if value is None or value == IGNORE_INDEX:
                continue
            if (value not in label2id) if isinstance(value, str) else (value not in indices):
                raise InputError(
                    f"{self.name}: dialogue '{self.dialogue_of(turn)}' has the label {value!r} in '{field}', which is none of "
                    f"the model's labels {dict(label2id)}"
                )
            labels[turn] = label2id[value] if isinstance(value, str) else value
        return labels

    def _read_scores(self, column: pa.ChunkedArray, field: str) -> np.ndarray:
        return self._flatten(column, field).cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)

    def _read_vectors(self, column: pa.ChunkedArray, field: str) -> tuple[VectorColumn, np.ndarray]:
        turns = self._flatten(column, field)
        if pa.types.is_null(turns.type):
            turns = turns.cast(pa.list_(pa.float32()))
        if not _is_list(turns.type) or not (
            pa.types.is_floating(turns.type.value_type) or pa.types.is_integer(turns.type.value_type)
        ):
            raise InputError(f"{self.name}: '{field}' must hold a list of numbers per turn, not {turns.type}")
        given = np.array(turns.is_valid())
        widths = np.array(turns.value_lengths().fill_null(0))[given]
        if not len(widths) or len(set(widths.tolist())) != 1:
            row = 0 if not len(widths) else int(np.flatnonzero(given)[np.flatnonzero(widths != widths[0])[0]])
            found = (
                "is null at every turn" if not len(widths) else f"has vectors of widths {sorted(set(widths.tolist()))}"
            )
            raise InputError(f"{self.name}: '{field}' {found} (see dialogue '{self.dialogue_of(row)}')")
        values = turns.flatten()
        if not widths[0] or values.null_count:
            broken = int(np.flatnonzero(np.array(values.is_null()))[0]) // widths[0] if widths[0] else 0
            row = int(np.flatnonzero(given)[broken])
            raise InputError(
                f"{self.name}: '{field}' holds {'vectors with null entries' if widths[0] else 'vectors of width 0'} "
                f"(see dialogue '{self.dialogue_of(row)}')"
            )
        matrix = np.array(values).reshape(-1, widths[0])
        if not given.all():
            everywhere = np.zeros((self.num_turns, widths[0]), dtype=matrix.dtype)
            everywhere[given] = matrix
            matrix = everywhere
        return VectorColumn([torch.from_numpy(matrix)]), given


def regroup(splits: Sequence[DialogueVectors], dialogues: Sequence[int], name: str) -> DialogueVectors:
    """
    A split of other dialogues: those with these numbers, counted through all the splits one after another, in this order. Their vectors are copied.
    """
    starts = np.cumsum([0, *map(len, splits)])
    homes = np.searchsorted(starts, dialogues, side="right") - 1
    chosen = [(splits[home], int(number - starts[home])) for home, number in zip(homes, dialogues, strict=True)]

    def turns(values: str) -> np.ndarray | None:
        if getattr(splits[0], values) is None:
            return None
        parts = [getattr(data, values)[data.offsets[number] : data.offsets[number + 1]] for data, number in chosen]
        return np.concatenate(parts)

    new = copy.copy(splits[0])
    new.name = name
    new.dialogue_ids = [data.dialogue_ids[number] for data, number in chosen]
    new.utterance_ids = [data.utterance_ids[number] for data, number in chosen]
    new.lengths = np.array([data.lengths[number] for data, number in chosen], dtype=np.int64)
    new.offsets = np.concatenate([[0], np.cumsum(new.lengths)])
    new.labels, new.scores = turns("labels"), turns("scores")
    items = [data[number] for data, number in chosen]
    new.vectors = {
        modality: VectorColumn([torch.cat([item[f"{modality}_embeddings"] for item in items])])
        for modality in splits[0].vectors
    }
    new.present = {
        modality: torch.cat([item[f"{modality}_mask"] for item in items]).numpy() for modality in splits[0].vectors
    }
    return new


def _with_turn_columns(table: pa.Table, split: str) -> pa.Table:
    """The fields of `utterances` as list columns of their own, classes by name."""
    column = table["utterances"]
    if not _is_list(column.type) or not pa.types.is_struct(column.type.value_type):
        raise InputError(
            f"{split}: 'utterances' must hold a list of turns per dialogue, each with fields, not {column.type}"
        )
    lengths = np.concatenate([[0], *(np.array(chunk.value_lengths().fill_null(0)) for chunk in column.chunks)])
    offsets = pa.array(np.cumsum(lengths), pa.int32())
    turns, kind = [chunk.flatten() for chunk in column.chunks], column.type.value_type
    fields = {
        "utterance_ids": "utterance_id",
        "texts": "text",
        "speakers": "speaker",
        "sentiment": "sentiment",
        "labels": "emotion",
    }
    for name, field in fields.items():
        if kind.get_field_index(field) < 0 or name in table.column_names:
            continue
        # Field by field: to join whole turns would copy the sound in them.
        values = pa.chunked_array([part.field(field) for part in turns], kind.field(field).type).combine_chunks()
        if field == "emotion" and (names := _class_names(table.schema)):  # their order need not be the model's
            values = pa.array(
                [None if label is None or label < 0 else names[label] for label in values.to_pylist()], pa.string()
            )
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, values))
    return table.drop_columns("utterances")


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The names of the emotions of `utterances`, where `datasets` wrote them into the schema."""
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", "utterances", "feature", "emotion", "names"):
        found = found.get(key, {})
    return found or None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_corpus(
    source,
    label2id: Mapping[str, int] | None = None,
    label_column: str = "labels",
    score_column: str | None = None,
    splits: tuple[str, ...] = SPLITS,
) -> dict[str, DialogueVectors]:
    r"""
    The splits of a corpus of vectors.

    Args:
        source: a folder of the form above, the id of a Hub dataset, or a `datasets.DatasetDict`.
        label2id, label_column, score_column: as [`DialogueVectors`].
        splits: the splits to read; each must be there.

    Raises:
        FileNotFoundError: if the folder or a split is missing.
        ValueError: naming dialogue and field, if a table is not of the form, or a dialogue stands twice.
    """
    options = {"label2id": label2id, "label_column": label_column, "score_column": score_column}
    corpus = {}
    if isinstance(source, str | Path) and Path(source).expanduser().is_dir():
        for split in splits:
            table, vectors = _read_folder(Path(source).expanduser(), split)
            corpus[split] = DialogueVectors(table, vectors=vectors, name=split, **options)
    else:
        datasets = source if isinstance(source, Mapping) else load_from_hub(str(source))
        for split in splits:
            if split not in datasets:
                raise FileNotFoundError(f"The dataset has no split '{split}'; it has {list(datasets)}")
            table = datasets[split].with_format("arrow")[:]
            table = table.replace_schema_metadata(datasets[split].features.arrow_schema.metadata)
            table = _with_label_names(table, datasets[split].features, label_column)
            corpus[split] = DialogueVectors(table, name=split, **options)
    _check_dialogues_stand_once(corpus)
    return corpus


def holds_vectors(source) -> bool:
    """Whether a source of [`read_corpus`] holds vectors, rather than sound and words alone."""
    columns = {f"{modality}_features" for modality in MODALITIES}
    if isinstance(source, str | Path) and Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        return any(folder.glob("*.safetensors")) or any(
            columns & set(pq.read_schema(path).names) for path in folder.glob("*.parquet")
        )
    datasets = source if isinstance(source, Mapping) else load_from_hub(str(source))
    return any(columns & set(data.column_names) for data in datasets.values())


def _with_label_names(table: pa.Table, features, label_column: str) -> pa.Table:
    """A dataset's `ClassLabel` integers as their names: the order of its classes need not be the model's."""
    names = getattr(getattr(features.get(label_column), "feature", None), "names", None)
    if names is None:
        return table
    labels = [
        [None if label is None or label < 0 else names[label] for label in turns or []]
        for turns in table[label_column].to_pylist()
    ]
    index = table.column_names.index(label_column)
    return table.set_column(index, label_column, pa.array(labels, pa.list_(pa.string())))


def load_from_hub(name: str):
    """A dataset of the Hub, all its splits; FileNotFoundError where the name is neither a folder here nor one that can be loaded."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"No corpus folder at '{name}'")
    from datasets import load_dataset

    try:
        return load_dataset(name)
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor a dataset that could be loaded from the Hub: {error}"
        ) from error


def _read_folder(folder: Path, split: str) -> tuple[pa.Table, dict[str, VectorColumn]]:
    def files(ending: str) -> list[Path]:
        shards = sorted(folder.glob(f"{split}-*-of-*.{ending}"))
        for path in shards:
            if (count := path.stem.rpartition("-of-")[2]).isdecimal() and int(count) != len(shards):
                raise FileNotFoundError(
                    f"'{folder}' holds {len(shards)} shards '{split}-*.{ending}', but '{path.name}' says {int(count)}"
                )
        return [*folder.glob(f"{split}.{ending}"), *shards]

    tables = files("parquet")
    if not tables:
        there = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"No '{split}.parquet' in '{folder}', which holds {there}")
    chunks: dict[str, list[torch.Tensor]] = {}
    for path in files("safetensors"):
        with safe_open(path, framework="pt") as store:
            for name in store.keys():
                modality = name.removesuffix("_features")
                if modality not in MODALITIES or modality == name:
                    raise InputError(f"'{path}' holds a tensor '{name}'; expected speech_features and text_features")
                chunks.setdefault(modality, []).append(store.get_tensor(name))
    for modality, parts in chunks.items():
        shapes = [tuple(part.shape) for part in parts]
        if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
            raise InputError(
                f"'{folder}': {modality}_features of split {split} must be (N, D) of one width D, got {shapes}"
            )
    table = pa.concat_tables([_read_table(path) for path in tables])
    return table, {modality: VectorColumn(parts) for modality, parts in chunks.items()}


def _read_table(path: Path) -> pa.Table:
    """A table but for the sound in its turns, which may be large and is not needed."""
    with pq.ParquetFile(path) as file:
        columns = [file.schema.column(number).path for number in range(len(file.schema.names))]
        return file.read([name for name in columns if not re.match(r"utterances\.\w+\.\w+\.audio\.", name)])


def _check_dialogues_stand_once(corpus: dict[str, DialogueVectors]):
    seen: dict[str, str] = {}
    for split, data in corpus.items():
        for dialogue in data.dialogue_ids:
            if dialogue in seen:
                where = f"twice in {split}" if seen[dialogue] == split else f"in {seen[dialogue]} and in {split}"
                raise InputError(
                    f"dialogue_id: dialogue '{dialogue}' stands {where}; each must stand once in the corpus"
                )
            seen[dialogue] = split


def write_vectors(folder: str | Path, split: str, table: pa.Table, **features: torch.Tensor):
    r"""
    Write one split: the table, and its vectors in safetensors beside it. Each file appears whole or not at all, the table last.

    Args:
        folder: made where it is not there.
        split: `"train"`, `"validation"` or `"test"`.
        table: a row per dialogue, without vectors.
        features: `speech_features` (N, Ds), `text_features` (N, Dt), or one of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {f"{modality}_features" for modality in MODALITIES}
    for name, tensor in features.items():
        if name not in expected or tensor.ndim != 2:
            raise InputError(
                f"{split}: expected speech_features and text_features of shape (N, D), got '{name}' of shape "
                f"{tuple(tensor.shape)}"
            )
    # Through the reader, so that nothing is written that cannot be read.
    data = DialogueVectors(
        table,
        vectors={name.removesuffix("_features"): VectorColumn([tensor]) for name, tensor in features.items()},
        name=split,
    )
    _check_dialogues_stand_once({split: data})
    vectors, rows = folder / f"{split}.safetensors", folder / f"{split}.parquet"
    partial = folder / f"{split}.partial"
    rows.unlink(missing_ok=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in features.items()}, partial)
        os.replace(partial, vectors)
        pq.write_table(table, partial)
        os.replace(partial, rows)
    finally:
        partial.unlink(missing_ok=True)
