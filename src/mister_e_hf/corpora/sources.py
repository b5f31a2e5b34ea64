"""Files that corpora are read from: tables of text, their encodings, sound inside a table, and a fingerprint of them all."""

import csv
import functools
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import audio
from ..errors import InputError
from ..text_files import read_text

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

_PACKAGE = Path(__file__).parent
_HASHED_WHOLE = {".csv", ".tsv", ".jsonl", ".txt", ".srt", ".vtt", ".annotprocessed"}


class SoundInTable(NamedTuple):
    """A sound file's content in a Parquet table, read when it is needed."""

    table: str
    column: str
    row_group: int
    row: int


def fingerprint(files: Iterable[Path], folder: Path | None) -> str:
    """
    A hash of source files, by name, size, time of change and, for text, content; and of the code that reads them, so that what
    an older version made is not taken for what this one would.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([Path(audio.__file__), *_PACKAGE.rglob("*.py"), *_PACKAGE.rglob("*.json")]):
        digest.update(path.read_bytes())
    for path in sorted(set(files)):
        name = path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path
        state = path.stat() if path.is_file() else None
        digest.update(repr((str(name), state and (state.st_size, state.st_mtime_ns))).encode())
        if state and path.suffix.lower() in _HASHED_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def read_table(path: Path) -> list[dict[str, Any]]:
    """
    The rows of a CSV, TSV, JSONL or Parquet file. Cells of CSV and TSV are strings, also `NA`, `None` and numbers; an empty cell is null in
    all. Sound in a Parquet file becomes a [`SoundInTable`], or its path where the file holds no more of it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No table at '{path}'")
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows = _parquet_rows(path)
    elif kind == ".jsonl":
        rows = _json_rows(path)
    elif kind in (".csv", ".tsv"):
        rows = _csv_rows(path, "," if kind == ".csv" else "\t")
    else:
        raise InputError(f"'{path}' is no table: expected one of {', '.join(TABLES)}")
    if not rows:
        raise InputError(f"'{path}' has no rows")
    return rows


def require_columns(path: Path, rows: list[dict[str, Any]], columns: Iterable[str]):
    lacking = [column for column in columns if column not in rows[0]]
    if lacking:
        raise InputError(f"'{path}' has no column {lacking}; it has {list(rows[0])}")


def stored_sound(source: str | Path | SoundInTable) -> dict[str, Any]:
    """What the corpus keeps of a sound: the path of a file, or the bytes that a table held."""
    if not isinstance(source, SoundInTable):
        return {"path": str(source), "bytes": None}
    changed = Path(source.table).stat().st_mtime_ns
    stored = _sound_column(source.table, source.column, source.row_group, changed)[source.row].as_py()
    if isinstance(stored, dict):
        return {"path": stored.get("path"), "bytes": stored["bytes"]}
    return {"path": None, "bytes": stored}


def _csv_rows(path: Path, delimiter: str) -> list[dict[str, Any]]:
    # Quotes are ordinary characters in TSV only where no field begins with one, as the csv module has it.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) != len(header):
            raise InputError(f"'{path}' has two columns of one name: {header}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"'{path}', line {reader.line_num}: {len(cells)} cells, but {len(header)} columns {header}"
                )
            rows.append({name: cell or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        raise InputError(f"'{path}', line {reader.line_num}: {error}") from error
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows, columns = [], {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{path}', line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"'{path}', line {number}: expected an object of columns, got {type(row).__name__}")
        columns |= dict.fromkeys(row)
        rows.append({name: None if value == "" else value for name, value in row.items()})
    return [columns | row for row in rows]


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if len(set(schema.names)) != len(schema.names):
                raise InputError(f"'{path}' has two columns of one name: {schema.names}")
            sound = [field.name for field in schema if _holds_bytes(field.type)]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                columns = {
                    name: _sounds(path, name, group, table[name]) if name in sound else table[name].to_pylist()
                    for name in schema.names
                }
                for cells in zip(*columns.values(), strict=True):
                    rows.append(
                        {name: None if cell == "" else cell for name, cell in zip(columns, cells, strict=True)}
                    )
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"'{path}' is no Parquet file, or a corrupt one: {error}") from error
    return rows


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _sounds(path: Path, name: str, group: int, column: pa.ChunkedArray) -> list[SoundInTable | str | None]:
    content, paths = column, [None] * len(column)
    if pa.types.is_struct(column.type):
        content = pc.struct_field(column, "bytes")
        if column.type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").to_pylist()
    given = content.is_valid().to_pylist()
    return [SoundInTable(str(path), name, group, row) if there else paths[row] for row, there in enumerate(given)]


@functools.lru_cache(maxsize=1)
def _sound_column(table: str, column: str, row_group: int, changed: int) -> pa.ChunkedArray:
    with pq.ParquetFile(table) as file:
        return file.read_row_group(row_group, columns=[column])[column]
