"""The code of a class, laid flat beside its weights, so that transformers' Auto classes can load them without this package.

transformers looks for remote code in one folder and follows imports of one level (`from .losses import ...`). In this package a file may import from
another folder: the copy differs from it in those lines alone, whose path is shortened to the name of the file.
"""

import re
import sys
from pathlib import Path

_IMPORT = re.compile(r"^([ \t]*from[ \t]+)(\.+)([\w.]*)([ \t]+import\b)", re.MULTILINE)


class CarriesCode:
    """A configuration, model or processor whose `save_pretrained` lays its code beside what it saves."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None):
        """transformers calls this for a class that it loaded from a checkpoint's code. Nothing is to be registered: the code is saved anyway."""

    def _get_files_timestamps(self, working_dir) -> dict:
        # With push_to_hub=True, what is in a folder before transformers saves there counts as pushed already.
        times = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in times.items() if not name.endswith(".py")}


def write_code(folder: str | Path, *starts: type | Path) -> list[str]:
    r"""
    Write the files of classes, and all of this package's that they import, side by side into a folder.

    Args:
        folder: created if it does not exist.
        starts: classes, or files of this package (of those, nothing is loaded).

    Returns:
        What `auto_map` calls each: `"modeling_mister_e.MisterEModel"` (of a file: its name without `.py`).

    Raises:
        ValueError: if two files have the same name, or an import cannot be followed.
    """
    references, files = [], {}
    for start in starts:
        path = Path(sys.modules[start.__module__].__file__) if isinstance(start, type) else start
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


def _collect(path: Path, files: dict[str, Path]):
    if files.setdefault(path.name, path) != path:
        raise ValueError(f"'{files[path.name]}' and '{path}' cannot lie in one folder: rename one of them")
    for _, dots, module, _ in _IMPORT.findall(path.read_text(encoding="utf-8")):
        imported = imported_file(path, dots + module)
        if imported.name not in files or files[imported.name] != imported:
            _collect(imported, files)


def imported_file(path: Path, module: str) -> Path:
    r"""
    The file that a relative import in `path` names: `"..base.errors"`.

    Raises:
        ValueError: if that is a package, which cannot be laid flat, or there is no such file.
    """
    names = module.lstrip(".").split(".")
    folder = path.parents[len(module) - len(module.lstrip(".")) - 1]
    imported = folder.joinpath(*names[:-1], f"{names[-1]}.py")
    if not names[-1] or not imported.is_file():
        raise ValueError(f"'{path}' imports '{module}', which is not a file: nobody could load it beside weights")
    return imported
