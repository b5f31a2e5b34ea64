"""Report what a corpus lacks for its scores to be meaningful."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.plain_text import count_of

FEWEST_TURNS = 100  # turns needed to fit a temperature that describes the model rather than those turns
FEWEST_DIALOGUES = 10  # dialogues needed for intervals by resampling
_NAMED = 20  # classes listed in a sentence
_CONSEQUENCE = {
    "train": "it cannot be learned",
    "validation": "the choice of an epoch does not see it",
    "test": "it has no score, and macro F1 is the mean over the others",
}


def target_shortcomings(
    targets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    turns: Mapping[str, int],
    dialogues: Mapping[str, int],
    chooses_epoch: bool = True,
) -> Iterator[str]:
    r"""
    Yield a sentence for each shortage of data of a regression.

    Args:
        targets: by split and target, the `turns` that have it and their standard deviation `sd`.
        turns: those with any of the targets, by split.
        dialogues: by split.
        chooses_epoch: whether the epoch is chosen on validation.
    """
    for split in (split for split in _CONSEQUENCE if split in targets):
        for name, facts in targets[split].items():
            if not facts["turns"]:
                yield f"{split} has no turn with a score of {name}."
            elif not facts["sd"]:
                yield f"{split} has one score of {name} at all turns: its correlation is undefined."
    if chooses_epoch and 0 < turns.get("validation", 0) < FEWEST_TURNS:
        yield (
            f"validation has {count_of(turns['validation'], 'labelled turn')}: too few to choose an epoch with "
            "confidence."
        )
    yield from _few_dialogues(dialogues)


def shortcomings(
    classes: Mapping[str, Mapping[str, int]], dialogues: Mapping[str, int], chooses_epoch: bool = True
) -> Iterator[str]:
    r"""
    Yield a sentence for each shortage of data that makes the scores less meaningful than they look.


    Args:
        classes: labelled turns of each class, by split.
        dialogues: by split.
        chooses_epoch: whether the epoch is chosen on validation.

    Yields:
        a sentence each; nothing for a corpus without any label.
    """
    if not any(any(counts.values()) for counts in classes.values()):
        return
    for split in (split for split in _CONSEQUENCE if split in classes):
        counts = classes[split]
        if not any(counts.values()):
            yield f"{split} has no labelled turn."
        elif absent := [name for name, count in counts.items() if not count]:
            more = f" and {len(absent) - _NAMED:,} others" if len(absent) > _NAMED else ""
            last = split == "validation" and not chooses_epoch
            consequence = "its scores are without it" if last else _CONSEQUENCE[split]
            yield f"{split} has no turn of {', '.join(absent[:_NAMED])}{more}: {consequence}."
    turns = sum(classes.get("validation", {}).values())
    if 0 < turns < FEWEST_TURNS:
        choice = "too few to choose an epoch with confidence, and " if chooses_epoch else ""
        yield (
            f"validation has {count_of(turns, 'labelled turn')}: {choice}no temperature is fitted to fewer than "
            f"{FEWEST_TURNS}, so probabilities stay as the model gives them."
        )
    yield from _few_dialogues(dialogues)


def _few_dialogues(dialogues: Mapping[str, int]) -> Iterator[str]:
    if 0 < dialogues.get("test", 0) < FEWEST_DIALOGUES:
        yield (
            f"test has {count_of(dialogues['test'], 'dialogue')}: with fewer than {FEWEST_DIALOGUES}, 95 % intervals "
            "over resampled dialogues are too narrow to be relied on."
        )
