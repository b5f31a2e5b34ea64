"""A table of a report: records of bare numbers, and how each is shown.

A table's records go to the CSV files and to `report.json` as they are; its cells go to the pages.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .cells import Record

NO_FULL = "the full model has no finished seed"


@dataclass
class Table:
    r"""
    One table.

    Args:
        name: of its CSV file, and its anchor.
        title: its caption.
        note: what must be known to read it.
        records: a dictionary of bare numbers and words per row; None where there is no number.
        columns: by header, what turns a record into the cell.
        gap: why there is no row, where there is none.
        long: whether it only backs a picture.
    """

    name: str
    title: str
    note: str
    records: list[Record]
    columns: dict[str, Callable[[Record], str]]
    gap: str | None = None
    long: bool = False

    def cells(self) -> list[list[str]]:
        return [[show(record) for show in self.columns.values()] for record in self.records]
