"""What a run records of its corpus: where it comes from, and how much there is."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..corpora.provenance import Provenance
from ..corpora.shortcomings import shortcomings
from .dialogue_vectors import DialogueVectors


def corpus_facts(
    path: str | Path | None, splits: Mapping[str, DialogueVectors], label_names: list[str]
) -> dict[str, Any]:
    r"""
    Facts of a corpus for a run's results.

    Args:
        path: path of the corpus: a folder or the id of a Hub dataset; None if it was never on disk.
        splits: the splits of the corpus.
        label_names: label names in the order of the class indices.

    Returns:
        `stated`, what the corpus's tables say of their origin; by split `dialogues` and `labelled_turns`; and
        `shortcomings`.
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
    """Number of labelled turns of each class, by split."""
    counts = {}
    for split, data in splits.items():
        labels = np.array([], dtype=np.int64) if data.labels is None else data.labels
        found = np.bincount(labels[labels >= 0], minlength=len(label_names))
        counts[split] = dict(zip(label_names, found.tolist(), strict=True))
    return counts
