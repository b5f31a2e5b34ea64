"""How many threads of a CPU a small model computes with."""

import contextlib
import os
from collections.abc import Iterator

import torch

# On two cores that others used too, a training step at batch 8 took with two threads, in place of one: 1.3 s in place of 0.14 s at
# hidden_size 48, 6.0 in place of 0.17 at 128, 6.5 in place of 0.33 at 256. Idle cores win little at such widths.
SMALL = 256


@contextlib.contextmanager
def few_threads(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """One thread for a model of hidden size up to 256 on a CPU, until the block ends; where OMP_NUM_THREADS is set, it counts."""
    small = getattr(getattr(model, "config", None), "hidden_size", 0) <= SMALL
    if device.type != "cpu" or not small or os.environ.get("OMP_NUM_THREADS"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_threads(count: int):
    """So many threads from now on, in this process and those that it starts."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
