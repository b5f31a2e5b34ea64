"""The turns of a corpus of dialogues (`utterances`) as the columns of a table of vectors."""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from ..base.errors import InputError, short

# Columns with a list per dialogue, by the field of a turn in `utterances` that each of them holds.
TURN_COLUMNS = {
    "utterance_ids": "utterance_id",
    "texts": "text",
    "speakers": "speaker",
    "labels": "emotion",
    "sentiment": "sentiment",
}


def with_turn_columns(table: pa.Table, split: str) -> pa.Table:
    """Replace `utterances` by a list column for each field of [`TURN_COLUMNS`], with classes by name."""
    column = table["utterances"]
    if not is_list(column.type) or not pa.types.is_struct(column.type.value_type):
        raise InputError(
            f"{split}: 'utterances' must hold a list of turns per dialogue, each with fields, not {column.type}"
        )
    lengths = np.concatenate([[0], *(np.array(chunk.value_lengths().fill_null(0)) for chunk in column.chunks)])
    offsets = pa.array(np.cumsum(lengths), pa.int32())
    turns, kind = [chunk.flatten() for chunk in column.chunks], column.type.value_type
    for name, field in TURN_COLUMNS.items():
        if kind.get_field_index(field) < 0 or name in table.column_names:
            continue
        # Field by field, since joining whole turns would copy the audio in them.
        values = pa.chunked_array([part.field(field) for part in turns], kind.field(field).type).combine_chunks()
        if field == "emotion" and (names := class_names(table.schema)):  # their order need not be the model's
            values = pa.array(named(values.to_pylist(), names, f"{split}: 'emotion'"), pa.string())
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, values))
    return table.drop_columns("utterances")


def class_names(schema: pa.Schema) -> list[str] | None:
    """
    The names of the emotions of `utterances`, if `datasets` wrote them into the schema.

    Raises:
        InputError: if the schema's metadata is damaged.
    """
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", "utterances", "feature", "emotion", "names"):
            found = found.get(key) or {}
        if not isinstance(found, dict) and not all(isinstance(name, str) for name in found):
            raise TypeError("the names of classes must be strings")
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the table's metadata 'huggingface' is damaged ({short(error)})") from error
    return found or None


def named(labels: Iterable[int | None], names: Sequence[str], where: str) -> list[str | None]:
    """Class indices as names; None for a negative index and for None."""
    found: list[str | None] = []
    for label in labels:
        if label is not None and label >= len(names):
            raise InputError(f"{where} has the class index {label}, but there are {len(names)} names: {short(names)}")
        found.append(None if label is None or label < 0 else names[label])
    return found


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of any or of a fixed length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_vectors(kind: pa.DataType) -> bool:
    """Whether values of this type are lists of vectors: one list of numbers per turn."""
    inner = kind.value_type if is_list(kind) else kind
    numbers = inner.value_type if is_list(inner) else None
    return numbers is not None and (pa.types.is_floating(numbers) or pa.types.is_integer(numbers))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
