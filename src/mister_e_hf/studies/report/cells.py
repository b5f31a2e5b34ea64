"""Format the cells of a report's tables: F1 and accuracies in per cent, a dash for a missing number."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...base.score_names import in_per_cent
from ..study import Study

NOTHING = "–"

Record = dict[str, Any]


def system_cell(study: Study) -> Callable[[Record], str]:
    """The title of the record's system."""
    return lambda record: study.title(record["system"])


def seeds_cell(record: Record) -> str:
    """How many of the planned seeds are finished."""
    return f"{record['seeds']} of {record['planned_seeds']}"


def defined(value: float | None) -> float | None:
    """A number, or None in place of NaN, which is an undefined score: JSON cannot hold it."""
    return None if value is None or np.isnan(value) else float(value)


def formatted(value: float | None, form: str) -> str:
    """A number in this format, with a typographic minus; a dash for None."""
    return NOTHING if value is None else form.format(value).replace("-", "−")


def plus_minus(mean: float | None, sd: float | None, form: str) -> str:
    """Mean ± standard deviation; the mean alone without a deviation."""
    return formatted(mean, form) + ("" if sd is None else " ± " + formatted(sd, form))


def score(name: str, per_cent: bool = True) -> Callable[[Record], str]:
    """A score, in per cent or as it is."""
    return lambda record: _number(record[name], per_cent)


def signed(name: str, per_cent: bool = True) -> Callable[[Record], str]:
    """A difference of scores, with its sign."""
    return lambda record: _number(record[name], per_cent, "+")


def with_sd(name: str, per_cent: bool = True) -> Callable[[Record], str]:
    """A score and its standard deviation."""

    def show(record: Record) -> str:
        spread = record[f"{name}_sd"]
        return _number(record[name], per_cent) + ("" if spread is None else f" ± {_number(spread, per_cent)}")

    return show


def interval(name: str, per_cent: bool = True, sign: str = "") -> Callable[[Record], str]:
    """The interval of a score, or of a difference with the sign "+"."""

    def show(record: Record) -> str:
        low, high = record[f"{name}_low"], record[f"{name}_high"]
        return NOTHING if low is None else f"{_number(low, per_cent, sign)} to {_number(high, per_cent, sign)}"

    return show


def mean_and_range(name: str) -> Callable[[Record], str]:
    """Mean, minimum and maximum of a field of a learning curve; losses with four digits."""

    def number(value: float) -> str:
        return formatted(value, "{:.4f}") if name.endswith("loss") else _number(value, in_per_cent(name))

    def show(record: Record) -> str:
        mean, low, high = (record[key] for key in (name, f"{name}_low", f"{name}_high"))
        return NOTHING if mean is None else f"{number(mean)} ({number(low)} to {number(high)})"

    return show


def _number(value: float | None, per_cent: bool, sign: str = "") -> str:
    if value is None:
        return NOTHING
    return formatted(100 * value, f"{{:{sign}.2f}}") if per_cent else formatted(value, f"{{:{sign}.3f}}")


def p_value(name: str) -> Callable[[Record], str]:
    """A p-value; below 0.001 as such."""
    return lambda record: (
        "< 0.001" if record[name] is not None and record[name] < 0.001 else formatted(record[name], "{:.3f}")
    )
