"""Format the cells of a report's tables: F1 in per cent, a dash for a missing number."""

from collections.abc import Callable
from typing import Any

from ..study import Study

NOTHING = "–"

Record = dict[str, Any]


def system_cell(study: Study) -> Callable[[Record], str]:
    """The title of the record's system."""
    return lambda record: study.title(record["system"])


def seeds_cell(record: Record) -> str:
    """How many of the planned seeds are finished."""
    return f"{record['seeds']} of {record['planned_seeds']}"


def formatted(value: float | None, form: str) -> str:
    """A number in this format, with a typographic minus; a dash for None."""
    return NOTHING if value is None else form.format(value).replace("-", "−")


def plus_minus(mean: float | None, sd: float | None, form: str) -> str:
    """Mean ± standard deviation; the mean alone without a deviation."""
    return formatted(mean, form) + ("" if sd is None else " ± " + formatted(sd, form))


def percent(name: str) -> Callable[[Record], str]:
    """A field in per cent."""
    return lambda record: formatted(None if record[name] is None else 100 * record[name], "{:.2f}")


def signed(name: str) -> Callable[[Record], str]:
    """A difference in per cent, with its sign."""
    return lambda record: formatted(None if record[name] is None else 100 * record[name], "{:+.2f}")


def with_sd(name: str) -> Callable[[Record], str]:
    """A field and its standard deviation in per cent."""

    def show(record: Record) -> str:
        mean, sd = record[name], record[f"{name}_sd"]
        return plus_minus(None if mean is None else 100 * mean, None if sd is None else 100 * sd, "{:.2f}")

    return show


def interval(name: str, signed: bool = False) -> Callable[[Record], str]:
    """The interval of a field in per cent."""
    form = "{:+.2f}" if signed else "{:.2f}"

    def show(record: Record) -> str:
        low, high = record[f"{name}_low"], record[f"{name}_high"]
        return NOTHING if low is None else f"{formatted(100 * low, form)} to {formatted(100 * high, form)}"

    return show


def mean_and_range(name: str) -> Callable[[Record], str]:
    """Mean, minimum and maximum of a field; F1 in per cent."""
    factor, form = (100, "{:.2f}") if name.endswith("f1") else (1, "{:.4f}")

    def show(record: Record) -> str:
        mean, low, high = (record[key] for key in (name, f"{name}_low", f"{name}_high"))
        if mean is None:
            return NOTHING
        return (
            f"{formatted(factor * mean, form)} ({formatted(factor * low, form)} to {formatted(factor * high, form)})"
        )

    return show


def p_value(name: str) -> Callable[[Record], str]:
    """A p-value; below 0.001 as such."""
    return lambda record: (
        "< 0.001" if record[name] is not None and record[name] < 0.001 else formatted(record[name], "{:.3f}")
    )
