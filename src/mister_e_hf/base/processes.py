"""The processes of one launch: which of them reports, and which works in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from . import progress
from .whole_files import only_process_in


def processes(use_cpu: bool = False) -> PartialState:
    """The state of this process among those of its launch, which form a group even without an accelerator."""
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


def report(text: str):
    """Report progress, only from the first of several processes."""
    if PartialState().is_main_process:
        progress.line(text)


@contextlib.contextmanager
def own_folder(output_dir: Path) -> Iterator[None]:
    """Lock a folder for one run, with all its processes; another run waits until it has ended."""
    state = PartialState()
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            waits = f"waiting for another process that works in '{output_dir}'"
            stack.enter_context(only_process_in(output_dir, lambda: progress.line(waits)))
        state.wait_for_everyone()
        yield
