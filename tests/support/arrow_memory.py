"""What Arrow allocates while something runs."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

# Never released: threads of Arrow return memory to the pool even after the test.
_POOLS: list[pa.MemoryPool] = []


@contextlib.contextmanager
def counted_arrow_memory() -> Iterator[pa.MemoryPool]:
    """A pool that Arrow takes its memory from in this block; `max_memory()` is the most it held."""
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(default)
