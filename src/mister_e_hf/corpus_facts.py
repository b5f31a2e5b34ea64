"""What a run or a summary says of its corpus: where it comes from, how much there is, and what is too little to score."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import FEWEST_TURNS
from .corpora.provenance import Provenance
from .vectors import SPLITS, DialogueVectors

FEWEST_DIALOGUES = (
    10  # for intervals: resampling so few dialogues repeats them more than it says how others would differ
)


def corpus_facts(
    path: str | Path | None, splits: Mapping[str, DialogueVectors], label_names: list[str]
) -> dict[str, Any]:
    r"""
    For a run's results: `stated`, what the corpus's tables say of their origin; by split `dialogues` and `labelled_turns`; and `shortcomings`.

    Args:
        path: of the corpus, a folder or the id of a Hub dataset; None if it was never on disk.
        splits: as they were read.
        label_names: in the order of the class indices.
    """
    classes, dialogues = class_counts(splits, label_names), {split: len(data) for split, data in splits.items()}
    folder = None if path is None else Path(path).expanduser()
    if folder is None:
        stated = {}
    elif folder.is_dir():
        stated = {name: value for name, value in dataclasses.asdict(Provenance.of_folder(folder)).items() if value}
    else:
        stated = {"name": str(path)}
    return {
        "stated": stated,
        "dialogues": dialogues,
        "labelled_turns": {split: sum(counts.values()) for split, counts in classes.items()},
        "shortcomings": list(shortcomings(classes, dialogues)),
    }


def class_counts(splits: Mapping[str, DialogueVectors], label_names: list[str]) -> dict[str, dict[str, int]]:
    """Labelled turns of each class, by split."""
    counts = {
        split: np.bincount(data.labels[data.labels >= 0], minlength=len(label_names)) for split, data in splits.items()
    }
    return {split: dict(zip(label_names, found.tolist(), strict=True)) for split, found in counts.items()}


def shortcomings(classes: Mapping[str, Mapping[str, int]], dialogues: Mapping[str, int]) -> Iterator[str]:
    r"""
    What of a corpus is too little for its scores to mean what they seem to.

    Args:
        classes: labelled turns of each class, by split.
        dialogues: by split.

    Yields:
        a sentence each.
    """
    for split in (split for split in SPLITS if split in classes):
        counts = classes[split]
        if not any(counts.values()):
            yield f"{split} has no labelled turn."
        elif absent := [name for name, count in counts.items() if not count]:
            yield f"{split} has no turn of {', '.join(absent)}: {_CONSEQUENCE[split]}."
    turns = sum(classes.get("validation", {}).values())
    if 0 < turns < FEWEST_TURNS:
        yield (
            f"validation has {turns} labelled turns: too few to choose an epoch with confidence, and no temperature is fitted to "
            f"fewer than {FEWEST_TURNS}, so probabilities stay as the model gives them."
        )
    if 0 < dialogues.get("test", 0) < FEWEST_DIALOGUES:
        yield (
            f"test has {dialogues['test']} dialogues: with fewer than {FEWEST_DIALOGUES}, 95 % intervals over resampled dialogues are "
            "too narrow to be relied on."
        )


_CONSEQUENCE = {
    "train": "it cannot be learned",
    "validation": "the choice of an epoch does not see it",
    "test": "it has no score, and macro F1 is the mean over the others",
}
