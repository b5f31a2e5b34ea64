"""Write JSON, YAML and tables that appear whole or not at all, and never replace an input."""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError
from .whole_files import sync, write_atomically


def sync_folder(folder: Path):
    """Flush all files in a folder, except its checkpoints, to the disk."""
    for path in (*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/adapter/*")):
        if path.is_file() and not path.parent.name.startswith("checkpoint-"):
            sync(path)
    sync(folder)


def file_digest(path: str | os.PathLike) -> str:
    """Hash of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OpenedFile:
    """A file whose state is remembered, to check later that it has not changed. It may be replaced by another file."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._state = self._of(self.path.stat())

    @staticmethod
    def _of(found: os.stat_result) -> tuple[int, ...]:
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check(self):
        """Raise an `InputError` if the file was changed: reading memory mapped from a truncated file would crash."""
        try:
            now = self._of(self.path.stat())
        except OSError:  # removed, but its mapped memory stays valid
            return
        if now[:2] == self._state[:2] and now != self._state:
            raise InputError(f"'{self.path}' was changed while it was read; start again with the file as it is now")


def write_bytes(path: str | os.PathLike, content: bytes):
    """Write bytes atomically."""
    write_atomically(path, lambda partial: partial.write_bytes(content))


def write_text(path: str | os.PathLike, text: str):
    """Write text in UTF-8 atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any):
    r"""
    Write JSON in UTF-8 atomically.

    Raises:
        ValueError: naming the place, if a number is not finite, which JSON cannot represent.
    """
    if wrong := next(_not_finite(value), None):
        raise ValueError(f"'{path}': {'.'.join(wrong[0])} is {wrong[1]}, which JSON cannot hold")
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: str | os.PathLike, value: Any):
    """Write YAML in UTF-8 atomically, with keys in their order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False))


def write_table(path: str | os.PathLike, table: Any):
    """Write a `pyarrow.Table` as Parquet atomically."""
    import pyarrow.parquet as pq

    write_atomically(path, lambda partial: pq.write_table(table, partial))


def _not_finite(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _not_finite(item, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _not_finite(item, (*place, str(number)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value


def check_output(path: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = ()) -> Path:
    r"""
    Check that a file can be written, before the work that makes it.

    Args:
        path: the file; its folder must exist.
        inputs: files and folders that are read, such as a checkpoint; those that do not exist (ids on the Hub) are
            ignored.

    Raises:
        InputError: if it is a folder, its folder is missing or not writable, or it is an input or inside of one.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; the output is one file")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return path
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"'{path}': the folder '{folder}' does not exist; create it first, or choose another output")
    return _check_place(path, folder, inputs)


def check_output_folder(path: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = ()) -> Path:
    r"""
    Check that a folder can be written to, like [`check_output`]; it need not exist.

    Raises:
        InputError: if it is a file or below one, is not writable, or it is an input or inside of one.
    """
    path = Path(path)
    above = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise InputError(f"'{path}' cannot be a folder: '{above}' is a file")
    return _check_place(path, above, inputs)


def _check_place(path: Path, folder: Path, inputs: Iterable[str | os.PathLike | None]) -> Path:
    """The path, if its folder can be written to and it is not an input."""
    if not os.access(folder, os.W_OK):
        raise InputError(f"'{path}': the folder '{folder}' cannot be written to; choose another output")
    real = Path(os.path.realpath(path))
    for given in inputs:
        if given is None or not (source := Path(given).expanduser()).exists():
            continue
        for place in (real, *real.parents) if source.is_dir() else (real,):
            if place.exists() and os.path.samefile(place, source):
                is_or_in = "is" if place == real else f"is in '{source}', which is"
                raise InputError(f"'{path}' {is_or_in} an input of this command; choose another output")
    return path
