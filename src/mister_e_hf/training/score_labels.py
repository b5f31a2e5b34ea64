"""Scores as labels of a regression in transformers' Trainer, which counts, gathers and pads labels as class indices.

Letters: B dialogues of a batch, n of a split, T turns, S targets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..base.modalities import IGNORE_INDEX
from ..evaluation.regression import REGRESSION_SCORES, regression_scores


def as_countable(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The labels of these batches as integers, -100 where a score is missing, which is how the Trainer counts them."""
    return [
        {"labels": torch.where(batch["labels"].isnan(), IGNORE_INDEX, 0)} if "labels" in batch else batch
        for batch in batches
    ]


def as_bits(labels: torch.Tensor) -> torch.Tensor:
    """
    Scores (B, T, S) as the integers of their bits. The Trainer pads what it gathers with -100, whose bits are those of
    a NaN, so that padding is read back as missing.
    """
    return labels.float().view(torch.int32)


def from_bits(labels: np.ndarray) -> np.ndarray:
    """The scores (B, T, S) of [`as_bits`], NaN where one is missing and in padding."""
    return np.ascontiguousarray(labels).view(np.float32)


def with_scores(prediction: EvalPrediction) -> EvalPrediction:
    """What `compute_metrics` gets, with scores in place of their bits."""
    assert isinstance(prediction.label_ids, np.ndarray)
    return EvalPrediction(prediction.predictions, from_bits(prediction.label_ids), prediction.inputs)


def epoch_scores(view: Any, labels: np.ndarray, names: Sequence[str], chosen: str) -> dict[str, float]:
    r"""
    Scores of an epoch: those of every regression, and the mean absolute error of each further head.

    Args:
        view: a [`ConversationOutput`] of arrays.
        labels (`(n, T, S)`): scores, NaN where one is missing and in padding.
        names: of the S targets.
        chosen: the score that chooses the epoch.

    Returns:
        the scores by name, of the targets that have one here (damaged dialogues may have lost all of a target).
        Constant predictions have no correlation: it is left out, or -1 if it chooses the epoch.
    """
    scored = ~np.isnan(labels).all(-1)
    there = ~np.isnan(labels[scored]).all(0)
    if not there.any():
        return {}
    labels, names = labels[scored][:, there], [name for name, given in zip(names, there, strict=True) if given]
    found = regression_scores(labels, view.logits[scored][:, there], names)
    scores = {name: found[name] for name in REGRESSION_SCORES}
    for head, logits in (view.head_logits or {}).items():
        scores[f"{head}_mae"] = regression_scores(labels, logits[scored][:, there], names)["mae"]
    lowest = {chosen: -1.0} if scores.get(chosen, 0.0) is None else {}
    return {name: value for name, value in scores.items() if value is not None} | lowest
