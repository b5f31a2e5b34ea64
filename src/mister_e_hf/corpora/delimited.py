"""Read CSV and TSV files as spreadsheets and data frames write them."""

import csv
import io
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from ..base.errors import InputError, short
from ..media.text_files import WESTERN, read_text
from .columns import listed

logger = logging.getLogger(__name__)

MOST_COLUMNS = 10_000


class Row(dict):
    """Cells of a row by column, and its `number` in the file as a spreadsheet or editor shows it."""

    def __init__(self, cells: Iterable, number: int):
        super().__init__(cells)
        self.number = number


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEP_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*")  # as Excel writes and reads it


def delimited_rows(path: Path, old_encoding: str = WESTERN) -> list[Row]:
    r"""
    Read a CSV or TSV file; every cell is a string, or None if empty. The delimiter is that of the file's suffix, or
    the one that the header shows (semicolons, as Excel writes in half of Europe). Empty rows, and empty columns
    without a name, are skipped.


    Raises:
        InputError: naming the line, if a row does not fit the columns, or two columns have one name.
    """
    text = read_text(path, old_encoding)
    sep = _SEP_LINE.fullmatch(text.partition("\n")[0])
    delimiter = sep[1] if sep else _delimiter(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    # In TSV, quotes are ordinary characters only if no field begins with one, as in the csv module.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1  # line in which the row begins
    header, rows = None, []  # as spreadsheets count: the header is row 1
    try:
        if sep:
            next(reader)
        for number, cells in enumerate(reader, start=2 if sep else 1):
            # A line of delimiters only; the single cell of a one-column table may be quoted and empty.
            if not cells or (not any(cells) and (len(cells) > 1 or header is None)):
                continue
            if header is None:
                header, begin = _header(path, cells), reader.line_num + 1
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                raise InputError(
                    f"'{path}', line {reader.line_num}: {len(cells)} cells, but {len(header)} columns "
                    f"{listed(header)} between {_DELIMITERS.get(delimiter, repr(delimiter))}"
                )
            _warn_of_rows_in_a_cell(path, cells, delimiter, reader.line_num)
            rows.append(Row(((name, cell or None) for name, cell in zip(header, cells, strict=True)), number))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"'{path}', line {begin}: {error}. A cell that begins with a quote ends with one, and quotes within it "
            "are doubled: "
            '"""Hi,"" she said"'
        ) from error
    return _without_empty_columns(rows)


def _warn_of_rows_in_a_cell(path: Path, cells: list[str], delimiter: str, line: int):
    """Warn about an unclosed quote, which would swallow the rows up to the next quote."""
    for cell in cells:
        within = cell.split("\n") if "\n" in cell and len(cells) > 1 else ()
        if any(part.count(delimiter) >= len(cells) - 1 for part in within):
            logger.warning(
                "'%s', line %d: a cell in quotes holds what looks like other rows: %s. If they are rows, close the "
                "quote before them",
                path,
                line - len(within) + 1,
                short(repr(cell), 100),
            )


def _delimiter(text: str, expected: str) -> str:
    """The delimiter that splits the first line into most cells; the expected one unless another does better."""
    first = next((line for line in io.StringIO(text) if line.strip(" \t\r\n,;|")), "")[: 1 << 16]

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(sorted(_DELIMITERS, key=lambda one: one != expected), key=cells)


def _header(path: Path, cells: list[str]) -> list[str]:
    if len(cells) > MOST_COLUMNS:
        raise InputError(f"'{path}' has {len(cells):,} columns; a table of turns may have {MOST_COLUMNS:,}")
    header = [" ".join(name.split()) for name in cells]
    # The first column may be the unnamed row numbers of a data frame; others without a name get their number.
    header = [name or (f"(column {number + 1})" if number else "") for number, name in enumerate(header)]
    if len(set(header)) != len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise InputError(f"'{path}' has two columns of one name: {listed(twice)} in {listed(header)}")
    return header


def _without_empty_columns(rows: list[Row]) -> list[Row]:
    """Remove columns without a name and without content, which spreadsheets leave at the end."""
    nameless = [name for name in (rows[0] if rows else ()) if not name or name.startswith("(column ")]
    for name in nameless:
        if all(row[name] is None for row in rows):
            for row in rows:
                del row[name]
    return rows
