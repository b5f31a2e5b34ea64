"""Read the rows of Parquet tables with columns of any Arrow type; audio stays in the file until it is needed."""

import functools
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile

from ..base.errors import InputError, reading, short
from ..base.interrupts import delayed_interrupts
from .columns import listed
from .delimited import MOST_COLUMNS, Row

MOST_CHARACTERS = 131_072  # of a cell, as in the csv module
_MOST_CELLS = 50_000_000
_MOST_TEXT = 1 << 30  # characters of a table: one text repeated in all rows takes no space in the file
_BATCH = 1024
_BATCH_OF_AUDIO = 16
_KIND = "a Parquet table"


class Nested(NamedTuple):
    """Stands for a list, map or struct, which is not a field of a turn and is not read."""

    kind: str


class AudioInTable(NamedTuple):
    """Reference to an audio file inside a Parquet table, read when it is needed."""

    table: str
    column: str
    row_group: int
    row: int


def parquet_rows(path: Path) -> list[Row]:
    r"""
    The rows of a Parquet table. Bytes, and structs of bytes or samples, become a [`AudioInTable`], or their path if
    they hold no more of the file; times of day and durations become seconds; NaN and empty strings become None; lists,
    maps and other structs become [`Nested`].

    Raises:
        InputError: naming the table, if it is damaged, two columns have one name, or it is larger than a table of
            turns can be.
    """
    rows: list[Row] = []
    text = 0
    try:
        with reading(path, _KIND):
            schema = pq.read_schema(path)
        # Read strings as dictionaries, so that a repeated one is kept once.
        strings = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        with reading(path, _KIND), pq.ParquetFile(path, read_dictionary=strings) as file:
            names, size = schema.names, len(schema)
            if size > MOST_COLUMNS:
                raise InputError(f"'{path}' has {size:,} columns; a table of turns may have {MOST_COLUMNS:,}")
            if len(set(names)) != size:
                twice = sorted({name for name in names if names.count(name) > 1})
                raise InputError(f"'{path}' has two columns of one name: {listed(twice)} in {listed(names)}")
            if file.metadata.num_rows * size > _MOST_CELLS:
                raise InputError(
                    f"'{path}' has {file.metadata.num_rows:,} rows of {size} columns; a table of turns may have "
                    f"{_MOST_CELLS:,} cells"
                )
            nested = {field.name: Nested(str(field.type)) for field in schema if _is_nested(field.type)}
            classes = _class_names(schema)
            read = [name for name in names if name not in nested]
            if names and not read:
                raise InputError(f"'{path}' has no column but lists and structs: {listed(names)}")
            batch_size = _BATCH_OF_AUDIO if any(_holds_audio(schema.field(name).type) for name in read) else _BATCH
            for group in range(file.num_row_groups):
                first = 0
                for batch in file.iter_batches(batch_size, row_groups=[group], columns=read):
                    columns: dict[str, list[Any]] = {
                        name: [nested[name]] * batch.num_rows
                        if name in nested
                        else _cells(path, name, group, first, batch.column(name))
                        for name in names
                    }
                    for name, known in classes.items():
                        columns[name] = [_named(path, name, cell, known) for cell in columns[name]]
                    first += batch.num_rows
                    text += sum(len(cell) for cells in columns.values() for cell in cells if isinstance(cell, str))
                    if text > _MOST_TEXT:
                        raise InputError(f"'{path}' has more than {_MOST_TEXT:,} characters of text")
                    rows += [
                        Row(zip(columns, cells, strict=True), number)
                        for number, cells in enumerate(zip(*columns.values(), strict=True), start=len(rows) + 1)
                    ]
    except OSError as error:
        raise InputError(f"'{path}' is not {_KIND} that can be read: {short(error)}") from error
    return rows


def texts_of(path: Path, column: str) -> list[str | None]:
    """A column of bytes as text, row by row: some writers do not mark their strings as UTF-8."""
    try:
        with reading(path, f"{_KIND} with UTF-8 text in the column '{column}'"), pq.ParquetFile(path) as file:
            parts = [_plain(part) for part in file.read(columns=[column])[column].chunks]
            return [
                cell or None
                for part in parts
                for cell in part.cast(pa.large_binary()).cast(pa.large_string()).to_pylist()
            ]
    except OSError as error:
        raise InputError(f"'{path}' is not {_KIND} that can be read: {short(error)}") from error


def audio_in_table(source: AudioInTable) -> dict[str, Any]:
    """What the corpus stores for audio in a table: its bytes, and its path if it has one."""
    changed = Path(source.table).stat().st_mtime_ns
    stored = _audio_column(source.table, source.column, source.row_group, changed)[source.row].as_py()
    if not isinstance(stored, dict):
        return {"path": None, "bytes": stored}
    if stored.get("bytes") is None and stored.get("array") is not None:
        return {
            "path": stored.get("path"),
            "bytes": encoded(stored["array"], stored.get("sampling_rate"), source.table),
        }
    return {"path": stored.get("path"), "bytes": stored["bytes"]}


@delayed_interrupts()
def encoded(array: Any, sampling_rate: Any, where: str) -> bytes:
    """Encode samples (S,) or (channels, S), as `datasets` decodes audio, as a WAV file of 32-bit floats."""
    try:
        samples, rate = np.asarray(array, dtype=np.float32), int(sampling_rate)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{where}: audio with samples must be {{'array': numbers, 'sampling_rate': Hz}}, got a sampling_rate of "
            f"{short(sampling_rate, 40)}"
        ) from None
    if samples.ndim > 2 or not samples.size or rate <= 0:
        raise InputError(
            f"{where}: audio with samples must be (S,) or (channels, S) at a rate above 0, got {samples.shape} at "
            f"{rate}"
        )
    file = io.BytesIO()
    soundfile.write(file, samples.T if samples.ndim == 2 else samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _plain(column: pa.Array) -> pa.Array:
    """A column as plain values, without dictionary, run-length or extension encoding."""
    if isinstance(column, pa.ExtensionArray):
        if pa.types.is_fixed_size_binary(column.type.storage_type):  # a UUID
            return pa.array([None if cell is None else str(cell) for cell in column.to_pylist()], pa.string())
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column


def _cells(path: Path, name: str, group: int, first: int, column: pa.Array) -> list[Any]:
    if isinstance(column, pa.DictionaryArray) and not _holds_audio(column.dictionary.type):
        cells = _cells(path, name, group, first, column.dictionary)
        return [None if index is None else cells[index] for index in column.indices.to_pylist()]
    column = _plain(column)
    kind = column.type
    if _holds_audio(kind):
        return _audio_cells(path, name, group, first, column)
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        unit = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        whole = column.cast(pa.int32()).cast(pa.int64()) if pa.types.is_time32(kind) else column.cast(pa.int64())
        return [None if cell is None else cell / unit for cell in whole.to_pylist()]
    if pa.types.is_temporal(kind):
        return column.cast(pa.string()).to_pylist()
    cells = column.to_pylist()
    for row, cell in enumerate(cells):
        if isinstance(cell, str) and len(cell) > MOST_CHARACTERS:
            raise InputError(
                f"'{path}', column '{name}': {len(cell):,} characters; a cell may have {MOST_CHARACTERS:,}"
            )
        if isinstance(cell, str):
            cells[row] = cell or None
        elif isinstance(cell, float) and math.isnan(cell):
            cells[row] = None
    return cells


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Class names of the integer columns for which `datasets` stored them in the table."""
    found = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        for field in schema:
            if pa.types.is_integer(field.type) and features.get(field.name, {}).get("_type") == "ClassLabel":
                found[field.name] = list(map(str, features[field.name]["names"]))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # another library may write anything there
        return {}
    return found


def _named(path: Path, column: str, cell: int | None, names: list[str]) -> str | None:
    if cell is None or cell == -1:  # which `datasets` writes for no class
        return None
    if not 0 <= cell < len(names):
        raise InputError(f"'{path}', column '{column}': class {cell}, but the table names {len(names)} classes")
    return names[cell]


def _is_nested(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_nested(kind) and not _holds_audio(kind)


def _holds_audio(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("array") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _audio_cells(path: Path, name: str, group: int, first: int, column: pa.Array) -> list[AudioInTable | str | None]:
    given, paths = column.is_valid(), [None] * len(column)
    if pa.types.is_struct(column.type):
        content = [
            pc.struct_field(column, field) for field in ("bytes", "array") if column.type.get_field_index(field) >= 0
        ]
        given = functools.reduce(pc.or_, [part.is_valid() for part in content])
        if column.type.get_field_index("path") >= 0:
            paths = [cell or None for cell in pc.struct_field(column, "path").to_pylist()]
    return [
        AudioInTable(str(path), name, group, first + row) if there else paths[row]
        for row, there in enumerate(given.to_pylist())
    ]


@functools.lru_cache(maxsize=1)
def _audio_column(table: str, column: str, row_group: int, changed: int) -> pa.ChunkedArray:
    with reading(table, _KIND), pq.ParquetFile(table) as file:
        return pa.chunked_array(
            [_plain(part) for part in file.read_row_group(row_group, columns=[column])[column].chunks]
        )
