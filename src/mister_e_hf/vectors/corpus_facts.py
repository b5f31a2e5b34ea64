"""What a run records of its corpus: where it comes from, and how much there is."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..corpora.provenance import Provenance
from ..corpora.shortcomings import shortcomings, target_shortcomings
from .dialogue_vectors import DialogueVectors


def corpus_facts(
    path: str | Path | None,
    splits: Mapping[str, DialogueVectors],
    label_names: list[str],
    chooses_epoch: bool = True,
) -> dict[str, Any]:
    r"""
    Facts of a corpus for a run's results.

    Args:
        path: path of the corpus: a folder or the id of a Hub dataset; None if it was never on disk.
        splits: the splits of the corpus.
        label_names: label names in the order of the class indices, or the names of a regression's targets.
        chooses_epoch: whether the run chooses an epoch on validation, rather than keep the last.

    Returns:
        `stated`, what the corpus's tables say of their origin; by split `dialogues` and `labelled_turns`;
        `shortcomings`; and for a regression `targets`, by split and target the `turns` that have it and their `mean`
        and standard deviation `sd`.
    """
    dialogues = {split: len(data) for split, data in splits.items()}
    folder = None if path is None else Path(path).expanduser()
    if folder is None:
        stated = {}
    elif folder.is_dir():
        stated = {name: value for name, value in dataclasses.asdict(Provenance.of_folder(folder)).items() if value}
    else:
        stated = {"name": str(path)}
    facts: dict[str, Any] = {"stated": stated, "dialogues": dialogues}
    if any(data.task == "regression" for data in splits.values()):
        targets = target_facts(splits)
        facts["labelled_turns"] = {
            split: 0 if data.labels is None else int((~np.isnan(data.labels)).any(1).sum())
            for split, data in splits.items()
        }
        facts["shortcomings"] = list(target_shortcomings(targets, facts["labelled_turns"], dialogues, chooses_epoch))
        return facts | {"targets": targets}
    classes = class_counts(splits, label_names)
    facts["labelled_turns"] = {split: sum(counts.values()) for split, counts in classes.items()}
    facts["shortcomings"] = list(shortcomings(classes, dialogues, chooses_epoch))
    return facts


def class_counts(splits: Mapping[str, DialogueVectors], label_names: list[str]) -> dict[str, dict[str, int]]:
    """Number of labelled turns of each class, by split."""
    counts = {}
    for split, data in splits.items():
        labels = np.array([], dtype=np.int64) if data.labels is None else data.labels
        found = np.bincount(labels[labels >= 0], minlength=len(label_names))
        counts[split] = dict(zip(label_names, found.tolist(), strict=True))
    return counts


def target_facts(splits: Mapping[str, DialogueVectors]) -> dict[str, dict[str, dict[str, Any]]]:
    """By split and target of a regression: the turns that have it, and their mean and standard deviation."""
    facts: dict[str, dict[str, dict[str, Any]]] = {}
    for split, data in splits.items():
        assert data.labels is not None
        facts[split] = {}
        for name, values in zip(data.targets or (), data.labels.T.astype(np.float64), strict=True):
            values = values[~np.isnan(values)]
            mean, sd = (float(values.mean()), float(values.std())) if len(values) else (None, None)
            facts[split][name] = {"turns": len(values), "mean": mean, "sd": sd}
    return facts
