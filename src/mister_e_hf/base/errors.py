"""Errors that are meant for whoever gave the input, told apart from those of a library or of this package's own code."""

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
    """
    What was given cannot be used: the message says what, where it was found, what was expected and what to do. The command line prints it
    as one line with exit status 2; a `ValueError` of a library is a fault of the program there, with status 1.
    """


class MissingLibraryError(InputError, ImportError):
    """An optional library is needed for what was asked; the message says how to install it."""


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    r"""
    Around the reading of one file: whatever a library raises because of its content becomes an [`InputError`] that names the file.

    Args:
        path: the file.
        kind: what it was expected to be, such as `"a YAML file"`.

    Raises:
        InputError: in place of any error but those of the disk; one that is for the user already gets the file's name where it lacks it.
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
    except Exception as error:  # libraries raise errors of every kind for damaged content
        raise InputError(f"'{path}' is not {kind} that can be read: {short(unwrapped(error))}") from error


def unwrapped(error: BaseException) -> BaseException:
    """What a strict dataclass wraps in an error of its own: the one that says which field is wrong, and how."""
    while type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__
    return error


def short(value: object, most: int = 300) -> str:
    """A value or error in one line of bounded length, for a message."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
