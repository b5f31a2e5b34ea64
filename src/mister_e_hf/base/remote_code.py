"""Write the code of a class beside its weights, so that transformers' Auto classes can load them without this package.

transformers looks for remote code in one folder and follows imports of one level (`from .losses import ...`). In this
package a file may import from another folder. Its copy differs only in those lines, where the path is shortened to the
name of the file.
"""

import inspect
import logging
import os
import re
from pathlib import Path
from typing import Any

from .errors import InputError

logger = logging.getLogger(__name__)

_IMPORT = re.compile(r"^([ \t]*from[ \t]+)(\.+)([\w.]*)([ \t]+import\b)", re.MULTILINE)


class CarriesCode:
    """A configuration, model or processor whose `save_pretrained` also writes its code."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None):
        """Do nothing: transformers calls this for a class loaded from a checkpoint's code, which is saved anyway."""

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        # With push_to_hub=True, transformers does not push files that were in the folder before it saves there.
        times = super()._get_files_timestamps(working_dir)  # type: ignore[misc]  # a mixin beside PushToHubMixin
        return {name: time for name, time in times.items() if not name.endswith(".py")}


def write_code(folder: str | os.PathLike, *starts: type | Path) -> list[str]:
    r"""
    Write the files of classes, and all files of this package that they import, side by side into a folder.

    Args:
        folder: created if it does not exist.
        starts: classes, or files of this package, which are not imported. The code of a class in `__main__` is not
            written, since loading it would run the script; a warning says so.

    Returns:
        the name of each in an `auto_map`: `"modeling_mister_e.MisterEModel"`; for a file, its name without `.py`.

    Raises:
        InputError: if two files have the same name, or an import cannot be followed.
    """
    references: list[str] = []
    files: dict[str, Path] = {}
    for start in starts:
        if isinstance(start, type) and start.__module__ == "__main__":
            logger.warning(
                f"The code of {start.__name__} is not saved, since it is defined in a script. To load the checkpoint "
                "elsewhere, define it in a module of its own"
            )
            continue
        path = Path(inspect.getfile(start)) if isinstance(start, type) else start
        references.append(f"{path.stem}.{start.__name__}" if isinstance(start, type) else path.stem)
        _collect(path, files)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        flat = _IMPORT.sub(
            lambda line: f"{line[1]}.{line[3].rpartition('.')[2]}{line[4]}", path.read_text(encoding="utf-8")
        )
        (folder / name).write_text(flat, encoding="utf-8")
    return references


def write_auto_code(folder: str | os.PathLike, of: type, auto_class: str, config: Any):
    """Write the code of a class ([`write_code`]), which the configuration names for a class such as `"AutoModel"`."""
    for name in write_code(folder, of):
        config.auto_map = {**(getattr(config, "auto_map", None) or {}), auto_class: name}


def _collect(path: Path, files: dict[str, Path]):
    if files.setdefault(path.name, path) != path:
        raise InputError(
            f"'{files[path.name]}' and '{path}' have the same name and cannot be in one folder: rename one"
        )
    for _, dots, module, _ in _IMPORT.findall(path.read_text(encoding="utf-8")):
        imported = imported_file(path, dots + module)
        if imported.name not in files or files[imported.name] != imported:
            _collect(imported, files)


def imported_file(path: Path, module: str) -> Path:
    r"""
    The file that a relative import in `path` names, such as `"..base.errors"`.

    Raises:
        InputError: if it is not a file: a package cannot be written beside weights.
    """
    names = module.lstrip(".").split(".")
    folder = path.parents[len(module) - len(module.lstrip(".")) - 1]
    imported = folder.joinpath(*names[:-1], f"{names[-1]}.py")
    if not names[-1] or not imported.is_file():
        raise InputError(f"'{path}' imports '{module}', which is not a file, so it cannot be written beside weights")
    return imported
