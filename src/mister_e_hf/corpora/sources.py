"""Read source files of corpora: tables of any kind, audio in tables, folders, and a fingerprint of them all."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base.errors import InputError, short
from ..media.text_files import WESTERN, mend_controls, read_text, text_of_name
from .columns import listed, match_columns
from .delimited import MOST_COLUMNS, Row, delimited_rows
from .parquet_tables import MOST_CHARACTERS, AudioInTable, audio_in_table, parquet_rows

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

_PACKAGE = Path(__file__).parent
_MEDIA = _PACKAGE.parent / "media"
_HASHED_WHOLE = {".csv", ".tsv", ".jsonl", ".json", ".py", ".txt", ".srt", ".vtt", ".annotprocessed"}


def fingerprint(files: Iterable[Path], folder: Path | None) -> str:
    """
    Hash of source files (name, size, time of change and, for text, content) and of the code that reads them, the rooms
    corpora and media, so that the cache of an older version is not reused.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*_PACKAGE.rglob("*.py"), *_PACKAGE.rglob("*.json"), *_MEDIA.rglob("*.py")]):
        digest.update(path.read_bytes())
    for path in sorted(set(files)):
        name = path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path
        state = path.stat() if path.is_file() else None
        digest.update(repr((str(name), state and (state.st_size, state.st_mtime_ns))).encode())
        if state and path.suffix.lower() in _HASHED_WHOLE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class EmptyTableError(InputError):
    """A table has no rows: an error if it is the only table, else it is skipped."""


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, following links, which `rglob` does not; every folder is entered once."""
    entered: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        there = os.stat(root)
        if (there.st_dev, there.st_ino) in entered:
            folders.clear()
            continue
        entered.add((there.st_dev, there.st_ino))
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def read_table(path: Path, old_encoding: str = WESTERN) -> list[Row]:
    r"""
    The rows of a CSV, TSV, JSONL or Parquet file, all with the same columns. Cells of CSV and TSV are strings, also
    `NA`, `None` and numbers; an empty cell is None in all. Audio in a Parquet file becomes a [`AudioInTable`], or its
    path if the file holds no more of it.

    Args:
        path: the file.
        old_encoding: of a CSV or TSV file that is not Unicode ([`read_text`]).

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming the file and the line or row, if it is not such a table or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No table at '{path}'")
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise InputError(f"'{path}' is not a table: expected one of {', '.join(TABLES)}")
    if kind in (".csv", ".tsv"):
        rows = delimited_rows(path, old_encoding)
    else:
        rows = _json_rows(path) if kind == ".jsonl" else parquet_rows(path)
    if not rows:
        raise EmptyTableError(f"'{path}' has no rows")
    if kind in (".jsonl", ".parquet"):  # text files are cleaned when they are read
        for row in rows:
            row |= {name: mend_controls(cell) for name, cell in row.items() if isinstance(cell, str)}
    return rows


def require_columns(path: Path, rows: list[Row], columns: Iterable[str]) -> list[Row]:
    """The rows restricted to these columns, however the table spells them; raises InputError if one is missing."""
    columns, there = list(columns), list(rows[0])
    names = match_columns(path, there, {column: (column,) for column in columns})
    lacking = [column for column, name in names.items() if name is None]
    if lacking:
        raise InputError(f"'{path}' has no column {listed(lacking)}; it has {listed(there)}")
    return [Row(((column, row[name]) for column, name in names.items()), row.number) for row in rows]


def stored_audio(source: str | Path | AudioInTable | dict[str, Any]) -> dict[str, Any]:
    """What the corpus stores for audio: the path of a file, or the bytes from a table."""
    if isinstance(source, AudioInTable):
        return audio_in_table(source)
    if isinstance(source, dict):
        return source
    try:
        str(source).encode()
    except UnicodeEncodeError:
        raise InputError(f"The file name '{text_of_name(source)}' is not valid UTF-8; rename the file") from None
    return {"path": str(source), "bytes": None}


def _json_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {short(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object of columns, got {type(row).__name__}")
        for name, cell in row.items():
            if isinstance(cell, str) and len(cell) > MOST_CHARACTERS:
                raise InputError(
                    f"{where}, column '{short(name, 60)}': {len(cell):,} characters; a cell may have "
                    f"{MOST_CHARACTERS:,}"
                )
            if cell == "" or (isinstance(cell, float) and math.isnan(cell)):
                row[name] = None
        columns |= dict.fromkeys(row)
        rows.append(Row(row, number))
        if len(columns) > MOST_COLUMNS:
            raise InputError(f"{where}: {len(columns):,} columns so far; a table of turns may have {MOST_COLUMNS:,}")
    if len(rows) * len(columns) > 1_000_000 + 20 * sum(map(len, rows)):
        raise InputError(
            f"'{path}': its {len(rows):,} rows have hardly any of their {len(columns):,} columns in common"
        )
    return [Row(columns | row, row.number) for row in rows] if any(rows) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise InputError(f"the key '{short(name, 60)}' appears twice")
    return found
