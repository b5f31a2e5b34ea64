"""The turns of a corpus of dialogues (`utterances`) as the columns of a table of vectors."""

import json
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pyarrow as pa

from ..base.errors import InputError, short
from ..base.modalities import MODALITIES

# Columns with a list per dialogue, by the field of a turn in `utterances` that each of them holds.
TURN_COLUMNS = {
    "utterance_ids": "utterance_id",
    "texts": "text",
    "speakers": "speaker",
    "labels": "emotion",
    "sentiment": "sentiment",
}
# The fields of a turn that are read otherwise, or say where it is rather than what it is.
_OTHER_FIELDS = {*TURN_COLUMNS.values(), *(each.content for each in MODALITIES.values()), "start", "end", "duration"}


def with_turn_columns(table: pa.Table, split: str) -> pa.Table:
    """Replace `utterances` by the columns of [`turn_columns`]; a column that the table has is kept."""
    column = table["utterances"]
    if not is_list(column.type) or not pa.types.is_struct(column.type.value_type):
        raise InputError(
            f"{split}: 'utterances' must hold a list of turns per dialogue, each with fields, not {column.type}"
        )
    lengths = np.concatenate([[0], *(np.array(chunk.value_lengths().fill_null(0)) for chunk in column.chunks)])
    offsets = pa.array(np.cumsum(lengths), pa.int32())
    for name, values in turn_columns(column, table.schema, split, leave=table.column_names).items():
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, values))
    return table.drop_columns("utterances")


def turn_columns(
    utterances: pa.ChunkedArray, schema: pa.Schema, where: str, leave: Collection[str] = ()
) -> dict[str, pa.Array]:
    r"""
    The fields of the turns of some dialogues as columns, one value per turn: those of [`TURN_COLUMNS`], and every
    further field that is a number or a class, under its own name. Classes are given by name.

    Args:
        utterances: a list of turns per dialogue.
        schema: schema of the table, which names the classes.
        where: what to call the table in messages.
        leave: columns not to make.

    Raises:
        InputError: if a class index has no name, or the schema's metadata is damaged.
    """
    turns, kind = [chunk.flatten() for chunk in utterances.chunks], utterances.type.value_type
    columns = {}
    for name, field in (TURN_COLUMNS | {name: name for name in further_fields(kind)}).items():
        if kind.get_field_index(field) < 0 or name in leave:
            continue
        # Field by field, since joining whole turns would copy the audio in them.
        values = pa.chunked_array([part.field(field) for part in turns], kind.field(field).type).combine_chunks()
        if names := class_names(schema, "utterances", field):  # their order need not be the model's
            values = pa.array(named(values.to_pylist(), names, f"{where}: '{field}'"), pa.string())
        columns[name] = values
    return columns


def further_fields(turn: pa.StructType) -> list[str]:
    """The fields of a turn that become columns of the same name: numbers and classes, such as `valence`."""
    return [
        field.name
        for field in turn
        if field.name not in _OTHER_FIELDS
        and (is_number(field.type) or pa.types.is_null(field.type) or pa.types.is_dictionary(field.type))
    ]


def class_names(schema: pa.Schema, column: str, field: str | None = None) -> list[str] | None:
    r"""
    The names of the classes that a column holds, if `datasets` wrote them into the schema.

    Args:
        schema: schema of the table.
        column: a column with a list per dialogue.
        field: field of the items of the list, if they have fields.

    Raises:
        InputError: if the schema's metadata is damaged.
    """
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", column, "feature", *([field] if field else []), "names"):
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
    return numbers is not None and is_number(numbers)


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type are real numbers."""
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
