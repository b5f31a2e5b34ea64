"""
A folder that the processes of one run of the tests share, with pytest-xdist or without: what one of them has made
there, the others need not make again.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

NAME, PREFIX = "ERC_TESTS_RUN", "erc-tests-"


def begin():
    """Create the folder; the processes that this one starts find it in their environment."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not _runs(folder):  # it was killed
            shutil.rmtree(folder, ignore_errors=True)
    os.environ[NAME] = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")


def end():
    shutil.rmtree(os.environ.pop(NAME), ignore_errors=True)


def run_folder() -> Path:
    return Path(os.environ[NAME])


def goes_on() -> bool:
    """Whether the run has not ended, also not by a signal that nobody can catch."""
    return _runs(run_folder()) and run_folder().is_dir()


def _runs(folder: Path) -> bool:
    try:
        os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder or file of this name, made by the first process that asks for it; nobody may change it."""
    path, made = run_folder() / name, run_folder() / f"{name}.made"
    with FileLock(f"{path}.lock"):
        if not made.exists():
            make(path)
            made.touch()
    return path
