"""Accuracies of sentiment scores that are put into bins, as the literature on CMU-MOSI and CH-SIMS computes them.

The definitions are those of the public evaluation code of MMSA (thuiar/MMSA). Values are compared in float32, as
there, so that a score of 0.1 is on the edge 0.1 whatever precision it was stored in.

Letters: N turns, K counts.
"""

import numpy as np

from .metrics import scores_from_confusion

# The scores of each kind of bins.
BINS = {
    "mosi": ("acc7", "acc5", "acc3", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0"),
    "sims": ("acc2", "f1", "acc3", "acc5", "acc2_weak", "r2"),
}
SIMS_RANGE = -1.0, 1.0  # labels and predictions are clipped to it before anything is computed
_MOSI_LIMITS = {"acc7": 3, "acc5": 2, "acc3": 1}
_SIMS_EDGES = {"acc3": (-0.1, 0.1), "acc5": (-0.7, -0.1, 0.1, 0.7)}
_WEAK = np.float32(0.4)


def binned_counts(labels: np.ndarray, predictions: np.ndarray, bins: str) -> np.ndarray:
    r"""
    What each turn adds to the counts that [`binned_scores`] needs.

    - `mosi`: `acc7`, `acc5`, `acc3` round scores within ±3, ±2, ±1 to integers, half to even. `has0` separates scores
      >= 0 from others; `non0` scores > 0 from others, over the turns whose label is not 0.
    - `sims`: intervals are closed on the right. `acc2` separates scores > 0 from others, so that 0 is negative;
      `acc2_weak` is the same over the turns whose label is within ±0.4.

    Args:
        labels (`(N,)`).
        predictions (`(..., N)`).
        bins: `"mosi"` or `"sims"`.

    Returns:
        counts (..., N, K).
    """
    labels, predictions = labels.astype(np.float32), predictions.astype(np.float32)
    counts = []
    if bins == "mosi":
        for limit in _MOSI_LIMITS.values():
            bounds = np.float32(-limit), np.float32(limit)
            counts.append(np.round(predictions.clip(*bounds)) == np.round(labels.clip(*bounds)))
        counts += _confusion(labels >= 0, predictions >= 0, np.ones_like(labels, dtype=bool))
        counts += _confusion(labels > 0, predictions > 0, labels != 0)
    else:
        for edges in _SIMS_EDGES.values():
            inner = np.array(edges, dtype=np.float32)
            counts.append(np.searchsorted(inner, predictions) == np.searchsorted(inner, labels))
        counts += _confusion(labels > 0, predictions > 0, np.ones_like(labels, dtype=bool))
        counts += _confusion(labels > 0, predictions > 0, np.abs(labels) <= _WEAK)
    return np.stack(np.broadcast_arrays(*counts), axis=-1).astype(np.float64)


def binned_scores(counts: np.ndarray, turns: np.ndarray, bins: str) -> dict[str, np.ndarray]:
    r"""
    The scores of [`BINS`] but R², which is not of bins.

    Args:
        counts (`(..., K)`): sums of [`binned_counts`].
        turns (`(...)`): number of turns.
        bins: `"mosi"` or `"sims"`.

    Returns:
        scores (...); NaN where no turn counts.
    """
    simple = _MOSI_LIMITS if bins == "mosi" else _SIMS_EDGES
    with np.errstate(invalid="ignore"):
        scores = {name: counts[..., place] / turns for place, name in enumerate(simple)}
    first, second = _two_classes(counts[..., len(simple) : -4]), _two_classes(counts[..., -4:])
    if bins == "mosi":
        scores |= {"acc2_has0": first[0], "f1_has0": first[1], "acc2_non0": second[0], "f1_non0": second[1]}
    else:
        scores |= {"acc2": first[0], "f1": first[1], "acc2_weak": second[0]}
    return scores


def _confusion(positive: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The four cells of a confusion matrix of two classes, true class by row, for the turns that count."""
    return [counts & (positive == row) & (predicted == column) for row in (False, True) for column in (False, True)]


def _two_classes(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and weighted F1 of two classes from the cells of their confusion matrix; NaN without a turn."""
    found = scores_from_confusion(cells.reshape(*cells.shape[:-1], 2, 2))
    there = cells.sum(-1) > 0
    return np.where(there, found["accuracy"], np.nan), np.where(there, found["weighted_f1"], np.nan)
