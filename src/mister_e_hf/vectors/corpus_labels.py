"""The label names of a corpus, as its tables state them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..base.errors import InputError, reading
from ..corpora.hub_datasets import load_from_hub
from ..corpora.schema import SPLITS

# Key in the metadata of a table's schema: all label names in the order of the classes, if the columns do not say.
LABELS_KEY = b"mister_e_labels"
_EMOTIONS = "labels"
# What programs write in place of a missing value.
_MISSING_VALUES = {"", "nan", "<na>", "nat", "null", "#n/a", "\\n"}


def corpus_labels(source: str | Path | Mapping[str, datasets.Dataset], label_column: str = _EMOTIONS) -> list[str]:
    r"""
    Names of the classes of a corpus of dialogues or of vectors.

    Args:
        source: a corpus folder, the id of a Hub dataset, or a `datasets.DatasetDict`.
        label_column: column of labels; in tables with `utterances` also a field of the turns.

    Returns:
        the names in the order that the tables store; if they store none, all names that occur, sorted.

    Raises:
        FileNotFoundError: if the corpus does not exist.
        InputError: if the tables hold no names, or names that differ only in case or whitespace.
    """
    where = "the corpus" if isinstance(source, Mapping) else f"'{source}'"
    tables: list[_Table | _Split]
    if not isinstance(source, Mapping) and (folder := Path(source).expanduser()).is_dir():
        tables = [_Table(path) for path in sorted(folder.glob("*.parquet")) if path.name.startswith(SPLITS)]
    else:
        corpus = source if isinstance(source, Mapping) else load_from_hub(str(source))
        tables = [_Split(data) for data in corpus.values()]
    if not tables:
        raise FileNotFoundError(f"{where} holds no tables of {', '.join(SPLITS)}")
    stored = {tuple(found) for table in tables if (found := table.stored(label_column))}
    if len(stored) > 1:
        raise InputError(
            f"{where}: the splits have different label names: "
            f"{'; '.join(', '.join(names) for names in sorted(stored))}. "
            "Write the corpus again as a whole, or name the labels with corpus.labels (--corpus.labels)"
        )
    if stored:
        names = list(stored.pop())
        # What is stored for the emotions also orders another column of the same names, and no other column.
        if label_column == _EMOTIONS or _occurs(tables, label_column) <= set(names):
            return names
    return _occurring(where, tables, label_column)


def _occurs(tables: "Sequence[_Table | _Split]", label_column: str) -> set[str]:
    """All names, rather than indices, that occur in the tables' column."""
    found = [values.drop_null().unique().to_pylist() for table in tables for values in table.values(label_column)]
    return {value for values in found for value in values if isinstance(value, str)}


def _occurring(where: str, tables: "Sequence[_Table | _Split]", label_column: str) -> list[str]:
    """All label names that occur in the tables, sorted."""
    names: set[str] = set()
    for table in tables:
        for values in table.values(label_column):
            if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
                raise InputError(
                    f"{where}: '{label_column}' holds {values.type}, not names, and the table does not name the "
                    "classes; name them in order with corpus.labels (--corpus.labels)"
                )
            names.update(values.drop_null().unique().to_pylist())
    if not names:
        raise InputError(
            f"{where} has no turn with a label in '{label_column}'; name the column with corpus.label_column"
        )
    alike: dict[str, str] = {}
    for name in sorted(names):
        if name.strip().casefold() in _MISSING_VALUES:
            raise InputError(
                f"{where}: programs write {name!r} for a missing label; write null at such turns, or name all labels "
                "with corpus.labels (--corpus.labels)"
            )
        other = alike.setdefault(" ".join(name.split()).casefold(), name)
        if other != name:
            raise InputError(
                f"{where}: the labels {other!r} and {name!r} differ only in case or whitespace. Make them one, or "
                "name all labels with corpus.labels (--corpus.labels) if they are two"
            )
    return sorted(names)


class _Table:
    """A Parquet file of a corpus folder."""

    def __init__(self, path: Path):
        self.path = path
        with reading(path, "a Parquet file"):
            self.schema = pq.read_schema(path)

    def stored(self, label_column: str) -> list[str] | None:
        """The label names that the file's schema states, in the order of the classes."""
        metadata = self.schema.metadata or {}
        with reading(self.path, "a table with readable metadata"):
            if LABELS_KEY in metadata:
                return json.loads(metadata[LABELS_KEY])
            features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            turns = features.get("utterances", {}).get("feature", {})
            turns = turns.get(label_column, turns.get("emotion", {})).get("names")
            return turns or features.get(label_column, {}).get("feature", {}).get("names")

    def values(self, label_column: str) -> Iterator[pa.Array]:
        """Yield the labels of the turns."""
        if label_column in self.schema.names:
            with reading(self.path, "a Parquet file"), pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(columns=[label_column]):
                    yield _flat(batch.column(0))


class _Split:
    """A split of a dataset."""

    def __init__(self, data: datasets.Dataset):
        self.data = data

    def stored(self, label_column: str) -> list[str] | None:
        """The label names that the features state, in the order of the classes."""
        turns = getattr(self.data.features.get("utterances"), "feature", None)
        label = turns.get(label_column, turns.get("emotion")) if isinstance(turns, dict) else None
        label = label or getattr(self.data.features.get(label_column), "feature", None)
        return getattr(label, "names", None)

    def values(self, label_column: str) -> Iterator[pa.Array]:
        """Yield the labels of the turns."""
        if label_column in self.data.column_names:
            for table in self.data.with_format("arrow").select_columns(label_column).iter(batch_size=1000):
                yield from map(_flat, table[label_column].chunks)


def _flat(lists: pa.Array) -> pa.Array:
    values = lists.flatten() if hasattr(lists, "flatten") else lists
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
