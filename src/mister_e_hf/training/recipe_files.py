"""Find recipe files; those of the package are found by name."""

import difflib
from pathlib import Path

_HERE = Path(__file__).parents[1]
# A wheel has the recipes inside the package; a source tree and an editable install have them beside `src`.
_FOLDERS = (_HERE / "hub_configs", _HERE.parents[1] / "hub_configs")


def recipe_folder() -> Path:
    """Folder of the recipes of this package."""
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


def recipe_names() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(recipe: str | Path) -> Path:
    r"""
    Find the file of a recipe.

    Args:
        recipe: path of a YAML file, or the name of a recipe of this package (`mister-e-meld-small`; its path in the
            source tree, `hub_configs/mister-e-meld-small.yaml`, works everywhere). A file with this path comes first.

    Raises:
        FileNotFoundError: if neither exists; the message lists the names.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    if str(path.parent) in (".", "hub_configs") and path.suffix in ("", ".yaml"):
        own = recipe_folder() / f"{path.stem if path.suffix else path.name}.yaml"
        if own.is_file():
            return own
    names = recipe_names()
    nearest = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.8)
    guess = f" Did you mean '{nearest[0]}'?" if nearest else ""
    what = "is a folder, not a recipe" if path.is_dir() else "is neither a file nor the name of a recipe"
    raise FileNotFoundError(
        f"'{recipe}' {what}.{guess} The recipes of this package are {', '.join(names)}; "
        "`mister-e init CORPUS` writes one for a corpus of your own."
    )
