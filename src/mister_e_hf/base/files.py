"""Write files that appear whole or not at all, and never replace an input."""

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
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows, where files of killed processes are left behind

UNFINISHED = ".unfinished"

_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO}
_FULL = "could not be written whole: the disk is full, or a file is larger than allowed"


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]):
    r"""
    Write a file that appears whole or not at all; of several writers at once the last one wins.

    Links are followed. A path that exists and is not a plain file (a pipe, a device) is written directly.

    Args:
        path: the file.
        write: function that writes to the path that it is given.

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
    """Context for writing `path` that names it in errors of a full disk, also in those of torch and safetensors."""
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
        # Messages of PyTorch and safetensors for an interrupted write.
        if any(mark in str(error) for mark in ("inline_container", "PytorchStreamWriter", "(os error")):
            raise OSError(f"'{path}' {_FULL}") from error
        raise


@contextlib.contextmanager
def _own_partial(target: Path) -> Iterator[Path]:
    """
    Create an empty file beside the target, lock it until the block ends, and remove it.

    Files that killed processes left for the same target are not locked, and are removed as well.
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
                if not locked or partial.exists():  # otherwise another writer removed it before it was locked
                    yield partial
                    return
            finally:
                partial.unlink(missing_ok=True)


def _remove_unlocked(path: Path):
    with contextlib.suppress(OSError):  # removed meanwhile, or a folder
        with _locked(os.open(path, os.O_RDWR), wait=False) as locked:
            if locked:
                path.unlink()


@contextlib.contextmanager
def only_process_in(folder: str | os.PathLike, waiting: Callable[[], Any] = lambda: None) -> Iterator[None]:
    r"""
    Let only one process at a time enter this context for a folder; others wait until it leaves or dies.

    Without effect on file systems without locks.

    Args:
        folder: created if it does not exist.
        waiting: called once if another process is inside.
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
    """Lock an open file and yield whether that worked: not if another process holds it. It is closed at the end."""
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
    """Flush a file or folder to the disk, so that a power failure leaves no empty file."""
    with contextlib.suppress(OSError):  # Windows cannot open folders; some file systems cannot synchronise
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
