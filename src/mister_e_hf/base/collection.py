"""Load libraries and weights without garbage collection."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """
    Context manager in which a process loads what it keeps to its end, libraries and weights. Python's collector would
    look at the millions of objects that these make again and again, and once more at the end of the process.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.unfreeze()  # what an earlier call in the same process has left
    gc.collect()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
