"""Progress on standard error: a line for each finished step, and one bar for the current step."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

from tqdm import tqdm

_FIRST_NOTE = 10.0  # seconds until the current step is reported in a log file; doubled each time

_quiet = False


@contextlib.contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """Show neither lines nor bars until the block ends, if `silent`."""
    global _quiet
    before, _quiet = _quiet, _quiet or silent
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether progress is hidden."""
    return _quiet


def shows_bars() -> bool:
    """Whether bars are drawn: only on a terminal, since in a log file they would be one endless line."""
    return not _quiet and sys.stderr.isatty()


def line(text: str):
    """Report a finished step. A bar that is being drawn stays below it."""
    if not _quiet:
        write(text)


def write(text: str):
    """Print a line on standard error, above a bar that is being drawn."""
    tqdm.write(text, file=sys.stderr)


def above_bars() -> contextlib.AbstractContextManager[None]:
    """Context for printing to standard output: a bar that is being drawn on the terminal stays below."""
    return tqdm.external_write_mode(file=sys.stdout)


def bar(title: str, total: int | None, unit: str, shown: bool = True) -> "Bar":
    r"""
    A bar with a title, which is erased when it is closed. It is not drawn while another bar is.

    Without a terminal, a long step is reported in a line now and then.

    Args:
        title: title of the step.
        total: number of units; None if unknown.
        unit: unit in the plural.
        shown: whether to show the bar.
    """
    if shown and not sys.stderr.isatty():
        return Notes(title, total, unit)
    alone = all(each.disable for each in getattr(tqdm, "_instances", ()))
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        file=sys.stderr,
        disable=not (shown and alone and shows_bars()),
        leave=False,
        dynamic_ncols=True,
    )


class Notes:
    """A bar for a log file: a line after ten seconds, after twenty more, forty more, and so on."""

    def __init__(self, title: str, total: int | None, unit: str):
        self.title, self.total, self.unit, self.n = title, total, unit, 0
        self._wait = _FIRST_NOTE
        self._next = time.monotonic() + self._wait

    def update(self, count: int = 1):
        """Count finished units."""
        self.n += count
        now = time.monotonic()
        if now >= self._next:
            self._wait *= 2
            self._next = now + self._wait
            share = "" if self.total is None else f" of {self.total:,}"
            line(f"{self.title}: {self.n:,}{share} {self.unit}")

    def refresh(self):
        """Do nothing, since nothing is drawn."""

    def close(self):
        """Do nothing, since nothing is drawn."""

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *error: Any):
        self.close()


Bar: TypeAlias = tqdm | Notes


def close_bars():
    """Erase all bars, so that a message starts on a new line."""
    for each in list(getattr(tqdm, "_instances", ())):
        each.close()


@contextlib.contextmanager
def without_datasets_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets`, if it is imported, until the block ends."""
    datasets = sys.modules.get("datasets")
    if datasets is None or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
