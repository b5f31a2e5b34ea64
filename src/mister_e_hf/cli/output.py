"""What commands print, and how they read FIELD=NAME."""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..base import progress
from ..base.chatter import calm_libraries
from ..base.errors import InputError
from ..base.plain_text import for_terminal

# With --json the values of the result so far, by name; None where its text is printed.
_values: dict[str, Any] | None = None


@contextlib.contextmanager
def printing(quiet: bool = False, as_json: bool = False) -> Iterator[None]:
    r"""
    What a command shows until the block ends. Progress goes to standard error and results to standard output.

    Args:
        quiet: show the result alone.
        as_json: print the values of the result as one line of JSON in place of its text.
    """
    global _values
    before, _values = _values, {} if as_json else None
    other = os.environ.get("RANK", "0") != "0"  # of several processes of one launch the first reports
    with progress.quiet(quiet or other), calm_libraries():
        try:
            yield
            _write_values()
        except Failure:
            _write_values()
            raise
        finally:
            _values = before


class Failure(Exception):
    """A command gave its result, and that shows a failure, as when some of its runs failed."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def _write_values():
    if _values:
        write_line(json.dumps(_values, ensure_ascii=False, allow_nan=False, default=str))


def say(text: str, /, **values: Any):
    """A part of the result: its text, or with `--json` its values, by name, in the one object that is printed in the end."""
    if _values is None:
        progress.close_bars()
        write_line(text)
    else:
        _values.update(values)


def write_line(text: str):
    """
    Print, at once, without what a terminal would obey. What the output is piped to may have read enough: no reason to leave the work half done.
    """
    try:
        with progress.above_bars():
            print(for_terminal(text, lines=True), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_once(text: str, /, **values: Any):
    """As [`say`], by one process of several."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        say(text, **values)


def pairs(given: Sequence[str], option: str = "--columns", form: str = "FIELD=NAME") -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in given]
    if not all(equals for _, equals, _ in pairs):
        raise InputError(f"{option} expects {form}, got {given}")
    fields = [field for field, _, _ in pairs]
    if twice := sorted({field for field in fields if fields.count(field) > 1}):
        raise InputError(f"{option} names {', '.join(twice)} twice: {' '.join(given)}")
    return [(field, name) for field, _, name in pairs]


def in_its_words(message: str, arguments: argparse.Namespace) -> str:
    """A message whose settings are written as in Python (`bad_audio='missing'`) with the options of the command that has them."""

    def option(found: re.Match) -> str:
        return f"--{found[1]} {shlex.quote(found[2])}" if hasattr(arguments, found[1]) else found[0]

    if hasattr(arguments, "columns"):
        column = r"\bcolumns=\{'(\w+)': '([^']*)'\}"
        message = re.sub(column, lambda found: f"--columns {shlex.quote(f'{found[1]}={found[2]}')}", message)
    if hasattr(arguments, "data_dir"):
        message = re.sub(r"(?<![\w/\\'-])data_dir(?![\w/\\'=-])", "--data_dir", message)
    if hasattr(arguments, "num_proc"):
        message = message.replace("(num_proc)", "(--num_proc)")
    return re.sub(r"\b(\w+)='([^']*)'", option, message)
