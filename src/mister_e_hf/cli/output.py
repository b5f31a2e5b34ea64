"""Print the results of commands, and parse FIELD=NAME options."""

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

# With --json the values of the result so far, by name; None if its text is printed.
_values: dict[str, Any] | None = None


def add_media_policies(parser: argparse.ArgumentParser):
    """Add the options of a command that meets unreadable audio and video."""
    for content in ("audio", "video"):
        parser.add_argument(
            f"--bad_{content}",
            choices=["error", "missing"],
            default="error",
            help=f"what to do with unreadable {content}: stop, or treat it as missing (default: error)",
        )


@contextlib.contextmanager
def printing(quiet: bool = False, as_json: bool = False) -> Iterator[None]:
    r"""
    Print the output of a command until the block ends: progress to standard error, results to standard output.

    Args:
        quiet: print only the result.
        as_json: print the values of the result as one line of JSON instead of its text.
    """
    global _values
    before, _values = _values, {} if as_json else None
    other = os.environ.get("RANK", "0") != "0"  # only the first process of a launch reports
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
    """The result of a command, already printed, reports a failure, such as failed runs."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def _write_values():
    if _values:
        print_line(json.dumps(_values, ensure_ascii=False, allow_nan=False, default=str))


def print_result(text: str, /, **values: Any):
    """Print a part of the result: its text, or with `--json` its values, collected in one object."""
    if _values is None:
        progress.close_bars()
        print_line(text)
    else:
        _values.update(values)


def print_line(text: str):
    """
    Print text at once, with control characters escaped.

    A closed pipe is not an error, since its reader may have read enough and the work should still be finished.
    """
    try:
        with progress.above_bars():
            print(for_terminal(text, lines=True), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_result_once(text: str, /, **values: Any):
    """Like [`print_result`], but only in the first of several processes."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print_result(text, **values)


def parse_pairs(given: Sequence[str], option: str = "--columns", form: str = "FIELD=NAME") -> list[tuple[str, str]]:
    r"""
    Parse words of the form FIELD=NAME.

    Raises:
        InputError: naming the option, if a word does not have this form or a field appears twice.
    """
    pairs = [pair.partition("=") for pair in given]
    if not all(equals for _, equals, _ in pairs):
        raise InputError(f"{option} expects {form}, got {given}")
    fields = [field for field, _, _ in pairs]
    if twice := sorted({field for field in fields if fields.count(field) > 1}):
        raise InputError(f"{option} names {', '.join(twice)} twice: {' '.join(given)}")
    return [(field, name) for field, _, name in pairs]


def with_options(message: str, arguments: argparse.Namespace) -> str:
    """Rewrite the settings in a message (`bad_audio='missing'`) as options of the command (`--bad_audio missing`)."""

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
