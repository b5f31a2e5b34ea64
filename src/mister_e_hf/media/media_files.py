"""Open what is given as audio or video: the path of a file, its content, or a file object."""

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

_PACKETS = ((0, 188), (4, 192))  # of MPEG-TS and of cameras' M2TS: where the byte G is, and their width
_IN_MEMORY = 1 << 26  # bytes of a file object that cannot seek, beyond which they are kept on disk


def is_file_like(source: Any) -> bool:
    """Whether `source` is a path, bytes or a file object."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")


@contextlib.contextmanager
def opened(source: Any, name: str | None, kind: str, error_type: type[InputError]) -> Iterator[tuple[BinaryIO, str]]:
    r"""
    The file of a path, bytes or file object, at its beginning, and what messages call it. What is opened here is
    closed; a file object stays open, at the place where it was. One that cannot seek is copied first.

    Args:
        source: one for which [`is_file_like`] holds.
        name: what messages call bytes and file objects.
        kind: `"audio"` or `"video"`.
        error_type: what is raised.

    Raises:
        InputError: of `error_type`, if it is missing, not a file, empty, or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        named = getattr(source, "name", None)  # a number, if it was opened by one
        label = name or (f"'{named}'" if isinstance(named, str) else f"{kind} given as a file object")
        try:
            if hasattr(source, "read"):
                file = _seekable(source, label, stack, error_type)
            elif isinstance(source, bytes | bytearray | memoryview):
                label, file = name or f"{kind} given as bytes", io.BytesIO(source)
            else:
                path = Path(os.fspath(source))
                label = f"'{path}'"
                if not path.is_file():  # do not open it: a pipe would block, a device never ends
                    there = " (it is a folder, pipe or device)" if path.exists() else ""
                    raise error_type(f"{kind.capitalize()} file {label} not found{there}")
                file = stack.enter_context(path.open("rb"))
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "strerror", None) or short(error)
            raise error_type(f"{label} cannot be opened: {reason}") from error
        if size == 0:
            raise error_type(f"{label} is empty (0 bytes)")
        if _ends_within_a_packet(file, size):
            remark(f"{label} ends within a packet of MPEG-TS; it may be cut off")
        yield file, label


def _seekable(source: Any, label: str, stack: contextlib.ExitStack, error_type: type[InputError]) -> BinaryIO:
    if isinstance(source, io.TextIOBase):
        raise error_type(f"{label} was opened as text; open it with mode 'rb'")
    if not getattr(source, "seekable", lambda: hasattr(source, "seek"))():
        copy = stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))
        shutil.copyfileobj(source, copy)
        return copy  # type: ignore[return-value]  # typeshed gives it every method of a binary file, but not the name
    stack.callback(source.seek, source.tell())
    return source


def _ends_within_a_packet(file: BinaryIO, size: int) -> bool:
    """Whether a file of MPEG-TS does; such files do not state their length."""
    start = file.read(4 * 192)
    file.seek(0)
    return any(start[place::width][:4] == b"GGGG" and size % width for place, width in _PACKETS)


@functools.lru_cache(1024)  # a recording is read once for each of its turns
def remark(text: str):
    """Warn about a file, once."""
    logger.warning("%s", text)
