"""Silence the messages and progress bars of other libraries in a command, and print the warnings of this package."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from ..base import progress
from .plain_text import for_terminal

_PACKAGE = __name__.partition(".")[0]


@contextlib.contextmanager
def calm_libraries() -> Iterator[None]:
    """
    Show only errors of other libraries, and of their bars only that of a download on a terminal, until the block ends.

    Warnings of this package are printed as lines. `PYTHONWARNINGS` and the variables of the libraries take precedence
    where they are set.
    """
    handler = _Lines()
    logger = logging.getLogger(_PACKAGE)
    with warnings.catch_warnings(), _variables(), progress.without_datasets_bars():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


def hide_unnamed_bars():
    """Hide the bars that transformers shows when it reads or writes weights. Downloads keep theirs."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda factory, words, options: logging.EmptyTqdm(*words, **options))


class _Lines(logging.Handler):
    """Prints the warnings of this package above a bar that is being drawn."""

    def __init__(self):
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord):
        progress.write(f"{record.levelname.lower()}: {for_terminal(record.getMessage())}")


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    """Set the variables that libraries read when they are imported."""
    wanted = {
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if not progress.shows_bars():
        wanted["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
