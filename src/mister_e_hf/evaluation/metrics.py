"""Scores of predicted emotions, in numpy and scikit-learn.

Letters: N scored turns, C classes, n dialogues, R bootstrap draws.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.special
from sklearn.metrics import confusion_matrix

from ..base.errors import InputError

IGNORE_INDEX = -100
CALIBRATION_BINS = 15
# The scalars among the results of emotion_scores. Less is better for the last one.
SCORES = ("weighted_f1", "macro_f1", "accuracy", "unweighted_average_recall", "expected_calibration_error")


def softmax(logits: np.ndarray) -> np.ndarray:
    r"""
    Probabilities over the last axis, in float64.

    Raises:
        InputError: if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise InputError(
            "The model's logits are not finite (NaN or infinity): its weights are damaged, or its input is too large"
        )
    return scipy.special.softmax(logits.astype(np.float64), axis=-1)


def scored_turns(labels: np.ndarray, scores: np.ndarray | None) -> dict[str, np.ndarray]:
    """
    Labels (N,) for each way of scoring: `""` with all turns and, with real-valued scores (CMU-MOSI), `" without
    zeros"`, where turns whose score is zero or missing get -100.
    """
    if scores is None:
        return {"": labels}
    return {"": labels, " without zeros": np.where(np.isnan(scores) | (scores == 0), IGNORE_INDEX, labels)}


def scores_from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    r"""
    Scores of one or many confusion matrices (..., C, C), true class by row: `weighted_f1`, `macro_f1`, `accuracy`,
    `unweighted_average_recall` (...), and `f1_per_class` (..., C).

    The macro mean is over the classes that occur, as labels or as predictions, as is scikit-learn's default. A class
    without a turn is left out of the mean of recalls, and its F1 is 0 here if it was not predicted either.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    total = np.maximum(support.sum(-1), 1)
    f1 = 2 * correct / np.maximum(support + predicted, 1)
    recall = correct / np.maximum(support, 1)
    return {
        "weighted_f1": (f1 * support).sum(-1) / total,
        "macro_f1": f1.sum(-1) / np.maximum((support + predicted > 0).sum(-1), 1),  # what does not occur has F1 0
        "accuracy": correct.sum(-1) / total,
        "unweighted_average_recall": recall.sum(-1) / np.maximum((support > 0).sum(-1), 1),
        "f1_per_class": f1,
    }


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    r"""
    Mean distance between confidence and accuracy over bins of equal mass (Nguyen and O'Connor 2015; the binned error
    is from Naeini et al. 2015), weighted with the sizes of the bins.

    Args:
        labels (`(N,)`), probabilities (`(N, C)`).
        bins: turns are sorted by confidence and cut into this many bins that differ by at most one turn.
    """
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    order = np.argsort(confidence, kind="stable")
    return _binned_error(confidence[order], correct[order], bins)


def _binned_error(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """The calibration error of turns that are sorted by confidence."""
    size, larger = divmod(len(confidence), bins)
    ends = itertools.accumulate([size + 1] * larger + [size] * (bins - larger), initial=0)
    gaps = [abs(confidence[a:b].sum() - correct[a:b].sum()) for a, b in itertools.pairwise(ends) if a < b]
    return float(sum(gaps) / max(len(confidence), 1))


def emotion_scores(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict:
    r"""
    All scores of one set of predictions.

    Args:
        labels (`(N,)`): class indices; turns with -100 are left out.
        probabilities (`(N, C)`): the largest one is the prediction.
        label_names: C names, in the order of the class indices.

    Returns:
        `weighted_f1`, `macro_f1` (over the classes that occur), `accuracy`, `unweighted_average_recall`,
        `expected_calibration_error`, `num_utterances` and `f1_per_class` by name, None for a class without a turn.
    """
    scored = labels != IGNORE_INDEX
    labels, probabilities = labels[scored], probabilities[scored]
    if len(labels) == 0:
        raise InputError("No turn has a label, so there is nothing to score")
    if probabilities.shape[-1] != len(label_names) or labels.min() < 0 or labels.max() >= len(label_names):
        raise InputError(
            f"{len(label_names)} label names, but {probabilities.shape[-1]} probabilities per turn and labels from "
            f"{labels.min()} to {labels.max()}"
        )
    classes = np.arange(len(label_names))
    confusion = confusion_matrix(labels, probabilities.argmax(-1), labels=classes)
    scores = scores_from_confusion(confusion)
    per_class = [
        f1 if turns else None for f1, turns in zip(scores.pop("f1_per_class").tolist(), confusion.sum(-1), strict=True)
    ]
    return {name: float(value) for name, value in scores.items()} | {
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        "num_utterances": int(len(labels)),
        "f1_per_class": dict(zip(label_names, per_class, strict=True)),
    }


def bootstrap_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    dialogues: np.ndarray,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    r"""
    Percentile intervals of the scores by drawing whole dialogues with replacement: turns of one dialogue are not
    independent. Drawing with replacement raises the calibration error, so its draws are shifted to have the computed
    value as their mean.

    Args:
        labels (`(N,)`): class indices; turns with -100 are left out.
        probabilities (`(N, C)`).
        dialogues (`(N,)`): which dialogue each turn belongs to, as integers or names.

    Returns:
        `[low, high]` by the name of each scalar score.
    """
    scored = labels != IGNORE_INDEX
    labels, probabilities = labels[scored], probabilities[scored]
    _, dialogue = np.unique(dialogues[scored], return_inverse=True)
    count, classes = int(dialogue.max()) + 1, probabilities.shape[-1]
    per_dialogue = np.zeros((count, classes, classes))
    np.add.at(per_dialogue, (dialogue, labels, probabilities.argmax(-1)), 1)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)  # [R, n]
    samples = scores_from_confusion(np.einsum("rn,nij->rij", drawn, per_dialogue))
    samples.pop("f1_per_class")
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    order = np.argsort(confidence, kind="stable")  # of every draw, which only repeats turns
    confidence, correct = confidence[order], correct[order]
    samples["expected_calibration_error"] = np.array(
        [
            _binned_error(np.repeat(confidence, times), np.repeat(correct, times), CALIBRATION_BINS)
            for times in drawn[:, dialogue[order]]
        ]
    )
    calibration = samples["expected_calibration_error"]
    shift = expected_calibration_error(labels, probabilities) - calibration.mean()
    samples["expected_calibration_error"] = np.maximum(calibration + shift, 0)
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {name: [float(edge) for edge in np.quantile(values, edges)] for name, values in samples.items()}
