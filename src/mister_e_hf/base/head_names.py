"""What the heads of a model are called in tables of scores."""

from collections.abc import Iterable

_MAIN = "mixture"


def head_titles(names: Iterable[str]) -> dict[str, str]:
    """
    Titles by name of `results.json`: the main head is called `mixture`, and a model without other heads has none to
    mix, so its own scores are those of the `model`.
    """
    names = list(names)
    if any(not name.startswith(_MAIN) for name in names):
        return {name: name for name in names}
    return {name: f"model{name.removeprefix(_MAIN)}" for name in names}
