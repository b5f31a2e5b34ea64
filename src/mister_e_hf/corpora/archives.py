"""Unpack a downloaded archive: completely or not at all, plain files and folders only, and of bounded size."""

import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from pathlib import Path

from ..base.errors import InputError, short

DAMAGED = (tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)

_EXPANDS = 20  # times its own size, plus this many bytes: clips hardly compress
_AT_LEAST = 1 << 30


def unpack(archive: Path, folder: Path):
    r"""
    Unpack a tar archive of any compression, and each tar archive in it to a folder of its name beside it.


    Args:
        archive: the file.
        folder: where to; appears whole or not at all.

    Raises:
        InputError: if an archive holds a link, a device, a path that leads out of it, or far more than its size.
        tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError: if an archive is damaged or cut.
    """
    partial = folder.with_name(f".unfinished-{os.getpid()}-{folder.name}")
    try:
        _unpack(archive, partial)
        for inner in sorted(partial.rglob("*.tar*")):
            if inner.is_file() and not inner.name.startswith("."):
                _unpack(inner, inner.with_name(inner.name.split(".")[0]))
                inner.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: Path, folder: Path):
    left = _EXPANDS * archive.stat().st_size + _AT_LEAST
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as content:
        for member in content:
            name, path = short(repr(member.name), 100), Path(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"it holds {name}, which leads out of its folder")
            if member.isdir():
                (folder / path).mkdir(parents=True, exist_ok=True)
                continue
            if not member.isreg():
                raise InputError(f"it holds {name}, which is neither a file nor a folder")
            left -= member.size
            if left < 0:
                raise InputError(f"it holds far more than its size, {archive.stat().st_size:,} bytes")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            # Write new files: owner, permissions and times in the archive do not matter.
            stored = content.extractfile(member)
            assert stored is not None  # a regular file has content
            with (folder / path).open("wb") as file, stored as source:
                shutil.copyfileobj(source, file, 1 << 20)
            if (folder / path).stat().st_size != member.size:
                raise EOFError(f"{name} is cut off")
