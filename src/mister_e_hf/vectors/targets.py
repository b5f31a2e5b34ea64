"""The targets of a regression: named scores of a turn, each read from a column of numbers."""

from collections.abc import Mapping, Sequence

from ..base.errors import InputError, short

LARGEST_TARGET = 1e15  # the squares of gradients of larger scores overflow float32


def as_targets(
    targets: Mapping[str, str] | Sequence[str], label2id: Mapping[str, int] | None = None, where: str = "targets"
) -> dict[str, str]:
    r"""
    The column of each target by its name, in the order of the model's outputs.

    Args:
        targets: names of columns, which are then the targets' names, or the column by the target's name.
        label2id: index of each target, if a model fixes the order.
        where: what to call the targets in messages.

    Raises:
        InputError: if these are not names, none is given, one is given twice, or they are not those of `label2id`.
    """
    named = isinstance(targets, Mapping)
    if not named and (isinstance(targets, str) or not isinstance(targets, Sequence)):
        raise InputError(
            f"{where} must be a list of columns, such as [valence, activation], or a column by the name of each "
            f"target, got {short(targets)}"
        )
    pairs = list(targets.items()) if isinstance(targets, Mapping) else [(column, column) for column in targets]
    if not pairs:
        raise InputError(f"{where} name no column; leave them out to train on classes")
    for pair in pairs:
        for name in pair:
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"{where} must be names of columns, none of them empty, got {short(repr(name))}")
    if len(set(pairs)) != len(pairs):
        raise InputError(f"{where} must name each column once, got {short(list(targets))}")
    found = dict(pairs)
    if label2id is None:
        return found
    if set(label2id) != set(found):
        raise InputError(f"{where} are {short(list(found))}, but the model's targets are {short(list(label2id))}")
    return {name: found[name] for name in sorted(label2id, key=lambda name: label2id[name])}
