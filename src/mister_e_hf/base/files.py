"""Outputs: each file appears whole or not at all, under a name of its own until then, and never replaces an input."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows: files of killed processes stay there
    fcntl = None

UNFINISHED = ".unfinished"

_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO}
_FULL = "could not be written whole: the disk is full, or a file is larger than allowed"


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]):
    r"""
    The file appears whole or not at all, whatever happens; of several writers at once the last one wins, whole. Links are followed; what
    exists and is not a plain file (a pipe, a device) is written into.

    Args:
        path: the file.
        write: gets the path to write to.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with writing(path):
            write(path)
        return
    target = Path(os.path.realpath(path))
    with writing(path, target), _own_partial(target) as partial:
        write(partial)
        if target.is_file():
            shutil.copymode(target, partial)
        sync(partial)
        os.replace(partial, target)
        sync(target.parent)


@contextlib.contextmanager
def writing(path: str | os.PathLike, *names: str | os.PathLike) -> Iterator[None]:
    """Around the writing of `path`: errors of a full disk, also as torch and safetensors word them, name it."""
    own = {os.fspath(name) for name in (path, *names)}
    try:
        yield
    except OSError as error:
        name = None if error.filename is None else os.fspath(error.filename)
        beside = isinstance(name, str) and (name in own or os.path.basename(name).startswith(UNFINISHED))
        if beside or (name is None and error.errno in _DISK):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    except Exception as error:
        # PyTorch's and safetensors' own words for a write that the system cut off
        if any(mark in str(error) for mark in ("inline_container", "PytorchStreamWriter", "(os error")):
            raise OSError(f"'{path}' {_FULL}") from error
        raise


@contextlib.contextmanager
def _own_partial(target: Path) -> Iterator[Path]:
    """
    A new empty file beside the target, of this writer alone, locked while it is written and gone afterwards. Those that killed processes
    left of the same target hold no lock, and are removed.
    """
    name = target.name[-40:]
    for stale in target.parent.glob(f"{UNFINISHED}-*"):
        if stale.name.endswith(f"-{name}"):
            _remove_unlocked(stale)
    while True:
        partial = target.with_name(f"{UNFINISHED}-{secrets.token_hex(4)}-{name}")
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with _locked(descriptor) as locked:
            try:
                if not locked or partial.exists():  # else taken for a killed writer's before it was locked
                    yield partial
                    return
            finally:
                partial.unlink(missing_ok=True)


def _remove_unlocked(path: Path):
    with contextlib.suppress(OSError):  # gone meanwhile, or a folder
        with _locked(os.open(path, os.O_RDWR), wait=False) as locked:
            if locked:
                path.unlink()


@contextlib.contextmanager
def only_process_in(folder: str | os.PathLike, waiting: Callable[[], Any] = lambda: None) -> Iterator[None]:
    r"""
    No other process is inside of this context for the same folder; one that comes meanwhile waits, and goes in after the first has left
    or died. Without effect where the file system has no locks.

    Args:
        folder: made where it is missing.
        waiting: called once where another process is inside.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not fcntl:
        yield
        return
    with _locked(os.open(folder, os.O_RDONLY), wait=False) as alone:
        if alone:
            yield
            return
    waiting()
    with _locked(os.open(folder, os.O_RDONLY)):
        yield


@contextlib.contextmanager
def _locked(descriptor: int, wait: bool = True) -> Iterator[bool]:
    """Whether an open file is this process's alone: not where another holds it, nor where the system has no locks. Closed in the end."""
    locked = False
    try:
        with contextlib.suppress(OSError):
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                locked = True
        yield locked
    finally:
        os.close(descriptor)


def sync(path: Path):
    """A file's or folder's content is on the disk before what depends on it, so that a power cut leaves no file of 0 bytes."""
    with contextlib.suppress(OSError):  # Windows opens no folder; some file systems synchronise nothing
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path):
    """All files in a folder, checkpoints aside, are on the disk."""
    for path in (*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/adapter/*")):
        if path.is_file() and not path.parent.name.startswith("checkpoint-"):
            sync(path)
    sync(folder)


def file_digest(path: str | os.PathLike) -> str:
    """A hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OpenedFile:
    """A file as it is when it is opened, to be asked later whether it was written to since; one renamed into its place does no harm."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._state = self._of(self.path.stat())

    @staticmethod
    def _of(found: os.stat_result) -> tuple[int, ...]:
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check(self):
        """Raises an `InputError` if the file was written to; what is mapped from one that became shorter would end the process."""
        try:
            now = self._of(self.path.stat())
        except OSError:  # removed, but what is mapped stays
            return
        if now[:2] == self._state[:2] and now != self._state:
            raise InputError(f"'{self.path}' was changed while it was read; start again with the file as it is now")


def write_bytes(path: str | os.PathLike, content: bytes):
    """Write bytes, the file whole or not at all."""
    write_atomically(path, lambda partial: partial.write_bytes(content))


def write_text(path: str | os.PathLike, text: str):
    """Write text in UTF-8, the file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any):
    r"""
    Write JSON in UTF-8, the file whole or not at all.

    Raises:
        ValueError: if a number is not finite, which JSON has no word for; names where it is.
    """
    if wrong := next(_not_finite(value), None):
        raise ValueError(f"'{path}': {'.'.join(wrong[0])} is {wrong[1]}, which JSON cannot hold")
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: str | os.PathLike, value: Any):
    """Write YAML in UTF-8, its keys in their order, the file whole or not at all."""
    write_text(path, yaml.safe_dump(value, sort_keys=False))


def write_table(path: str | os.PathLike, table):
    """Write a `pyarrow.Table` as Parquet, the file whole or not at all."""
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
    Whether a file can be written there, asked before the work that makes it.

    Args:
        path: the file; its folder must exist.
        inputs: files and folders that are read, a checkpoint included; what does not exist, such as an id on the Hub, is passed over.

    Raises:
        InputError: if it is a folder, its folder is missing or not writable, or it is an input or lies in a folder that is one.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; the output is one file")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return path
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"'{path}': there is no folder '{folder}'; make it first, or choose another output")
    return _check_place(path, folder, inputs)


def check_output_folder(path: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = ()) -> Path:
    r"""
    Whether a folder can be written to, as [`check_output`]; it need not exist.

    Raises:
        InputError: if it is a file or lies below one, is not writable, or it is an input or lies in a folder that is one.
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
    for source in inputs:
        if source is None or not (source := Path(source).expanduser()).exists():
            continue
        for place in (real, *real.parents) if source.is_dir() else (real,):
            if place.exists() and os.path.samefile(place, source):
                lies = "is" if place == real else f"lies in '{source}', which is"
                raise InputError(f"'{path}' {lies} an input of this command; choose another output")
    return path
