"""Write a file that appears whole or not at all, and let one process at a time work in a folder.

A model's code needs it, too: the standard library is enough.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
