"""What a command shows while it works, on standard error: a line for each finished step, and on a terminal one bar for the step at hand."""

import contextlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

_quiet = False


@contextlib.contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """Without lines and bars, if `silent`, until the block ends."""
    global _quiet
    before, _quiet = _quiet, _quiet or silent
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    return _quiet


def shows_bars() -> bool:
    """Whether bars are drawn: into a log file they would put one endless line."""
    return not _quiet and sys.stderr.isatty()


def line(text: str):
    """Report a finished step. A bar that is being drawn stays below it."""
    if not _quiet:
        tqdm.write(text, file=sys.stderr)


def bar(title: str, total: int, unit: str, shown: bool = True) -> tqdm:
    """A bar with a name, which is erased when it is closed; it counts but is not drawn where there is no terminal, or if not `shown`."""
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        file=sys.stderr,
        disable=not (shown and shows_bars()),
        leave=False,
        dynamic_ncols=True,
    )


def close_bars():
    """Erase what is drawn, so that a message starts on a line of its own."""
    for each in list(getattr(tqdm, "_instances", ())):
        each.close()
