"""Split the development data (train and validation) by groups of dialogues: folds, or another validation split."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..base.errors import InputError
from .dialogue_vectors import DialogueVectors, regroup


def development_folds(
    corpus: Mapping[str, DialogueVectors], folds: int, group_pattern: str | None = None
) -> list[dict[str, DialogueVectors]]:
    r"""
    Split the development data into folds of whole groups. The test split is not used.

    Args:
        corpus: `train` and `validation`.
        folds: number of folds; with one, the splits are left as they are, and validation is that fold. If there are
            as many groups, each fold is one group (IEMOCAP: each session is held out in turn); otherwise the groups
            are assigned at random, always in the same way, so that the folds have about the same number of turns.
        group_pattern: see [`dialogue_groups`].

    Returns:
        for each fold `train`, the dialogues of the other folds, and `validation`, its own dialogues.

    Raises:
        InputError: if there are fewer groups than folds, or no fold.
    """
    if folds == 1:
        return [{"train": corpus["train"], "validation": corpus["validation"]}]
    splits = [corpus["train"], corpus["validation"]]
    groups = dialogue_groups([name for data in splits for name in data.dialogue_ids], group_pattern)
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise InputError(
            f"{len(names)} groups of dialogues cannot be split into {folds} folds"
            + ("" if group_pattern is None else f" (corpus.group_pattern '{group_pattern}')")
        )
    turns = dict.fromkeys(names, 0)
    for group, length in zip(groups, np.concatenate([data.lengths for data in splits]), strict=True):
        turns[group] += int(length)
    order = names if folds == len(names) else np.random.default_rng(0).permutation(names).tolist()
    held, fold_of = [0] * folds, dict[str, int]()
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
    """
    Split the development data so that `validation` has the dialogues of one group and `train` all others.

    Raises:
        InputError: if this is not one group of several.
    """
    splits = [corpus["train"], corpus["validation"]]
    groups = np.array(dialogue_groups([name for data in splits for name in data.dialogue_ids], group_pattern))
    if group not in groups or (groups == group).all():
        raise InputError(
            f"corpus.validation_group: expected one group of several, got '{group}'; the groups are "
            f"{sorted(set(groups.tolist()))[:20]}"
        )
    return {
        "train": regroup(splits, np.flatnonzero(groups != group), "train"),
        "validation": regroup(splits, np.flatnonzero(groups == group), "validation"),
    }


def dialogue_groups(dialogue_ids: Sequence[str], group_pattern: str | None = None) -> list[str]:
    """
    The group of each dialogue: the match of the pattern in its id; without a pattern the id itself.

    Raises:
        InputError: if the pattern is not a regular expression, or does not match an id, which the message names.
    """
    if group_pattern is None:
        return list(dialogue_ids)
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise InputError(f"corpus.group_pattern '{group_pattern}' is not a regular expression: {error}") from error
    groups = []
    for name in dialogue_ids:
        match = pattern.search(name)
        if match is None:
            raise InputError(f"corpus.group_pattern '{group_pattern}' does not match the id of dialogue '{name}'")
        groups.append(match.group())
    return groups
