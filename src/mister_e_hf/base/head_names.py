"""What the heads of a model are called in tables of scores."""

from collections.abc import Iterable

_MAIN = "mixture"
_WITHOUT_ZEROS = " without zeros"  # how a corpus with scores of zero is scored once more


def head_titles(names: Iterable[str]) -> dict[str, str]:
    """
    Titles by name of `results.json`, where the main head is called `mixture`. A model with fewer than two other heads
    has none to mix, so its own scores are those of the `model`.
    """
    names = list(names)
    others = {name.removesuffix(_WITHOUT_ZEROS) for name in names if not name.startswith(_MAIN)}
    if len(others) > 1:
        return {name: name for name in names}
    return {name: f"model{name.removeprefix(_MAIN)}" if name.startswith(_MAIN) else name for name in names}
