"""Errors for whoever gave the input, as opposed to errors of a library or of this package's own code."""

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
    """
    The input cannot be used: the message says what it is, where it was found, what was expected and what to do.

    The command line prints it as one line and returns status 2; any other `ValueError` counts as a fault of the
    program and returns status 1.
    """


class MissingLibraryError(InputError, ImportError):
    """An optional library is required; the message says how to install it."""


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    r"""
    Turn the errors that a library raises for the content of a file into an [`InputError`] that names the file.

    Args:
        path: the file that is read in this context.
        kind: what it is expected to be, such as `"a YAML file"`.

    Raises:
        InputError: for any error other than those of the disk; an `InputError` without the name of the file gets it.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except InputError as error:
        if type(error) is not InputError or str(path) in str(error):
            raise
        raise InputError(f"'{path}': {error}") from error
    except RecursionError as error:
        raise InputError(f"'{path}' is not {kind} that can be read: it is nested too deeply") from error
    except Exception as error:  # libraries raise errors of many kinds for damaged content
        raise InputError(f"'{path}' is not {kind} that can be read: {short(unwrapped(error))}") from error


def unwrapped(error: BaseException) -> BaseException:
    """The error that a strict dataclass wrapped in its own: it says which field is wrong, and why."""
    while type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__
    return error


def short(value: object, limit: int = 300) -> str:
    """A value or error as one line of at most about `limit` characters, for a message."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text):,} characters)"
