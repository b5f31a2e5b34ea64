"""Interrupts that wait until a library in C has returned, since Python drops what is raised in its callbacks."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[None]:
    """
    Keep an interrupt (Ctrl-C, or a signal that this process handles) that arrives meanwhile, and raise it at the end.
    A callback in which it were raised would seem to have read or written nothing, and the file would be cut short
    without a word. A second interrupt is raised at once, for a file that hangs.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread alone
        yield
        return
    before: dict[int, Callable] = {}
    arrived: list[int] = []

    def keep(number: int, frame: object):
        arrived.append(number)
        if len(arrived) > 1:
            before[number](number, frame)

    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
            signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if len(arrived) == 1:
            signal.raise_signal(arrived[0])
