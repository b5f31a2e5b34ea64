"""What commands print, and how they read FIELD=NAME."""

import os
import sys
from collections.abc import Sequence

from ..errors import InputError


def say(text: str):
    """Print, at once. What the output is piped to may have read enough: no reason to leave the work half done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_once(text: str):
    """By one process of several."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        say(text)


def pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in given]
    if not all(equals for _, equals, _ in pairs):
        raise InputError(f"--columns expects FIELD=NAME, got {given}")
    return [(field, name) for field, _, name in pairs]
