"""This process among those of one launch: who reports, and who works in a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from . import progress
from .files import only_process_in


def processes(use_cpu: bool = False) -> PartialState:
    """This process among those of one launch, which share a group also if there is no accelerator."""
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


def report(text: str):
    """A line of progress, from the first process of several."""
    if PartialState().is_main_process:
        progress.line(text)


@contextlib.contextmanager
def own_folder(output_dir: Path) -> Iterator[None]:
    """One run at a time works in a folder, with all its processes; another waits until it has ended."""
    state = PartialState()
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            waits = f"waiting for another process that works in '{output_dir}'"
            stack.enter_context(only_process_in(output_dir, lambda: progress.line(waits)))
        state.wait_for_everyone()
        yield
