"""Batches of turns of similar size."""

from collections.abc import Iterator, Sequence

_WORTH_PADDING = 8  # rows of a batch that may be padded as far as they need
_SIMILAR = 0.8  # fraction of the longest row; shorter rows are not added to a larger batch


def packed_batches(sizes: Sequence[float], budget: float, largest_batch: int) -> Iterator[list[int]]:
    r"""
    Group items of similar size, longest first, so that a batch that does not fit in memory fails at once.

    Args:
        sizes: of each item, in tokens or seconds.
        budget: size of a batch, padding included; an item that exceeds it is a batch alone.
        largest_batch: number of items in a batch.

    Yields:
        the indices of a batch's items.
    """
    batch: list[int] = []
    longest = 0.0
    for item in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        # Some rows are worth their padding, many are not.
        dissimilar = len(batch) >= _WORTH_PADDING and sizes[item] < _SIMILAR * longest
        if batch and ((len(batch) + 1) * longest > budget or len(batch) == largest_batch or dissimilar):
            yield batch
            batch = []
        longest = longest if batch else sizes[item]
        batch.append(item)
    if batch:
        yield batch
