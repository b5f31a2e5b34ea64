"""A table of a report: records of unformatted values, and how each is shown.

The records go to the CSV files and to `report.json` as they are; the cells, which are text, go to the pages.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .cells import Record

NO_FULL = "the full model has no finished seed"


@dataclass
class Table:
    r"""
    One table of a report.

    Args:
        name: name of its CSV file and its anchor in the page.
        title: title, also its caption.
        note: how to read it.
        records: one dictionary of unformatted values per row; None for a missing number.
        columns: by header, a function from a record to the text of the cell.
        gap: why the table has no rows; None if it has some.
        long: whether the page collapses it below its plot.
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
