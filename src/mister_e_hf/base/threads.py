"""Number of CPU threads for small models and encoders."""

import contextlib
import os
from collections.abc import Iterator

import torch

# Measured on two busy cores at batch 8: a training step took 1.3 s with two threads and 0.14 s with one at hidden_size
# 48, 6.0 s and 0.17 s at 128, 6.5 s and 0.33 s at 256. On idle cores a second thread gains little at such widths.
SMALL = 256
# The width of a small encoder's backbone (MiniLM, Whisper tiny).
SMALL_ENCODER = 384


@contextlib.contextmanager
def few_threads(model: torch.nn.Module, device: torch.device, backbone_width: int | None = None) -> Iterator[None]:
    """
    Use one thread within the block for a model of hidden size up to 256 on a CPU, or an encoder whose backbone has a
    width of up to 384, unless OMP_NUM_THREADS is set, or the model has a language model.
    """
    config = getattr(model, "config", None)
    small = getattr(config, "hidden_size", 0) <= SMALL and getattr(config, "language_model", None) is None
    if backbone_width is not None:
        small = backbone_width <= SMALL_ENCODER
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
    """Set the number of threads of this process and of those that it starts."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
