"""Interrupts that wait until a library in C has returned, since Python drops what is raised in its callbacks."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[None]:
    """
    Keep an interrupt (Ctrl-C, or a signal that this process handles) that arrives meanwhile, and handle it at the end.
    A callback in which it were raised would seem to have read or written nothing, and the file would be cut short
    without a word. With a second interrupt both are handled at once, for a file that hangs.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread alone
        yield
        return
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    waiting: list[tuple[int, FrameType | None]] = []
    seen = 0

    def keep(number: int, frame: FrameType | None):
        nonlocal seen
        seen += 1
        waiting.append((number, frame))
        if seen > 1:
            handle()

    def handle():
        while waiting:
            number, frame = waiting.pop(0)
            before[number](number, frame)

    def restore():
        # Interrupts that arrive between two of these steps are raised there, and the steps begin again.
        try:
            for number, handler in before.items():
                if signal.getsignal(number) is keep:  # a handler may have set another
                    signal.signal(number, handler)
        except BaseException:
            restore()
            raise

    try:
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, keep)
        yield
    finally:
        restore()
        handle()  # not sent again: who waits for signals in another way, as asyncio, has had them
