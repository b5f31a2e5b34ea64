"""What all tables of gate weights share.

Letters: E heads of the full model.
"""

from collections.abc import Callable

import numpy as np

from ..study import System
from .cells import Record
from .table import NO_FULL, Table

# Fields of a record of gate weights that are not weights.
GATE_FIELDS = ("group", "turns", "mixture_right", "mixture_error")


def by_head(full: System, weights: np.ndarray) -> Record:
    """The weights (E,) of the heads, by name."""
    return dict(zip(full.heads, weights.tolist(), strict=True))


def gate_table(name: str, title: str, group: str, records: list[Record], full: System | None) -> Table:
    """A table of mean gate weights, whose records have a `group`, its `turns`, and a weight for each head."""
    columns: dict[str, Callable[[Record], str]] = {
        group: lambda record: record["group"],
        "turns a seed": lambda record: f"{record['turns']:,.0f}",
    }
    heads = full.heads if full else ()
    columns |= {head: _weight(head) for head in heads}
    if records and "mixture_right" in records[0]:
        columns["mixture right"] = lambda record: f"{100 * record['mixture_right']:.1f} %"
    if records and "mixture_error" in records[0]:
        columns["mixture MAE"] = lambda record: f"{record['mixture_error']:.3f}"
    gap = None if records else NO_FULL if full is None else "no turn has a label"
    return Table(name, title, "Mean over turns and seeds of the full model.", records, columns, gap)


def _weight(head: str) -> Callable[[Record], str]:
    return lambda record: f"{record[head]:.3f}"
