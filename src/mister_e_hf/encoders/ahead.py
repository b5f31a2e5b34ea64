"""Work on the host ahead of the model: the next batches are made by a thread while the model runs on one."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_AHEAD = 2  # batches


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """
    `map(make, items)` in order, by one thread, at most two items ahead. An error of an item is raised in its place,
    and closing the generator, as an interrupt does, waits for the item that is being made and for no other.
    """
    waiting: collections.deque[Future[Made]] = collections.deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
