"""Development data, train and validation together, parted by whole groups of dialogues: folds, or another validation split."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..base.errors import InputError
from .dialogue_vectors import DialogueVectors, regroup


def development_folds(
    corpus: Mapping[str, DialogueVectors], folds: int, group_pattern: str | None = None
) -> list[dict[str, DialogueVectors]]:
    r"""
    Part the development data into folds of whole groups. Test takes no part.

    Args:
        corpus: `train` and `validation`.
        folds: how many. With as many groups each fold is one group (IEMOCAP: a session left out in turn), else they are dealt out at random,
            always the same, so that each fold gets about as many turns.
        group_pattern: see [`dialogue_groups`].

    Returns:
        for each fold `train`, the dialogues of the others, and `validation`, its own.
    """
    splits = [corpus["train"], corpus["validation"]]
    groups = dialogue_groups([name for data in splits for name in data.dialogue_ids], group_pattern)
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise InputError(
            f"{len(names)} groups of dialogues cannot be parted into {folds} folds"
            + ("" if group_pattern is None else f" (corpus.group_pattern '{group_pattern}')")
        )
    turns = dict.fromkeys(names, 0)
    for group, length in zip(groups, np.concatenate([data.lengths for data in splits]), strict=True):
        turns[group] += int(length)
    order = names if folds == len(names) else np.random.default_rng(0).permutation(names).tolist()
    held, fold_of = [0] * folds, {}
    for group in order:
        fold_of[group] = held.index(min(held))  # the fold with the fewest turns so far
        held[fold_of[group]] += turns[group]
    fold = np.array([fold_of[group] for group in groups])
    return [
        {
            "train": regroup(splits, np.flatnonzero(fold != number), "train"),
            "validation": regroup(splits, np.flatnonzero(fold == number), f"fold {number}"),
        }
        for number in range(folds)
    ]


def validation_by_group(
    corpus: Mapping[str, DialogueVectors], group_pattern: str | None, group: str
) -> dict[str, DialogueVectors]:
    """`train` and `validation`, the latter of this group's dialogues alone."""
    splits = [corpus["train"], corpus["validation"]]
    groups = np.array(dialogue_groups([name for data in splits for name in data.dialogue_ids], group_pattern))
    if group not in groups or (groups == group).all():
        raise InputError(
            f"corpus.validation_group: expected one group of several, got '{group}'; the groups are {sorted(set(groups.tolist()))[:20]}"
        )
    return {
        "train": regroup(splits, np.flatnonzero(groups != group), "train"),
        "validation": regroup(splits, np.flatnonzero(groups == group), "validation"),
    }


def dialogue_groups(dialogue_ids: Sequence[str], group_pattern: str | None = None) -> list[str]:
    """
    The group of each dialogue: what the pattern finds in its id; without a pattern the id itself.

    Raises:
        ValueError: naming the dialogue in whose id nothing is found.
    """
    if group_pattern is None:
        return list(dialogue_ids)
    try:
        found = [re.search(group_pattern, name) for name in dialogue_ids]
    except re.error as error:
        raise InputError(f"corpus.group_pattern '{group_pattern}' is no regular expression: {error}") from error
    if None in found:
        raise InputError(
            f"corpus.group_pattern '{group_pattern}' finds nothing in the id of dialogue '{dialogue_ids[found.index(None)]}'"
        )
    return [match.group() for match in found]
