r"""Intervals of scores and tests of differences, over dialogues and over seeds at once.

A system that was trained with S seeds has one score, the mean of its seeds' scores. Two things make it uncertain:
which dialogues it was tested on, and which seeds it was trained with. One draw of the bootstrap (Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, chapters 6 and 13) takes n of the n dialogues and, independently of them, S
of the S seeds, both with replacement, and computes the score again. Every system gets the same draws, so that the
difference of two systems is paired.

Letters: S seeds, n dialogues, N turns, C classes, R draws.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..base.errors import InputError
from .metrics import IGNORE_INDEX, scores_from_confusion
from .regression import scores_from_sums

DRAWS = 2000
LEVEL = 0.95
_SEED = 0


class SeedScores(NamedTuple):
    """
    One score of one system: of each seed as `observed` (S,), and of each seed in each draw of dialogues as `drawn` (R,
    S).
    """

    observed: np.ndarray
    drawn: np.ndarray


class Estimate(NamedTuple):
    """Mean over seeds, sample standard deviation over seeds (None for one seed), and the ends of the interval."""

    mean: float
    sd: float | None
    low: float
    high: float


class Difference(NamedTuple):
    """Difference of two systems' means, the ends of its interval, and its two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def confusion_by_dialogue(
    labels: np.ndarray, predictions: np.ndarray, dialogues: np.ndarray, classes: int
) -> np.ndarray:
    r"""
    Confusion counts of each dialogue that has a scored turn, true class by row.

    Args:
        labels (`(N,)`): class indices; turns with -100 are left out.
        predictions (`(..., N)`): class indices, one row per seed; a turn with -1 is left out of that row.
        dialogues (`(N,)`): which dialogue each turn belongs to.

    Returns:
        (..., n, C, C).

    Raises:
        InputError: if no turn has a label.
    """
    scored = labels != IGNORE_INDEX
    if not scored.any():
        raise InputError("No turn has a label, so there is nothing to compare")
    labels, predictions = labels[scored], np.asarray(predictions)[..., scored]
    _, dialogue = np.unique(dialogues[scored], return_inverse=True)
    count, leading = int(dialogue.max()) + 1, predictions.shape[:-1]
    rows = predictions.reshape(-1, len(labels))
    cell = ((np.arange(len(rows))[:, None] * count + dialogue) * classes + labels) * classes + rows
    counts = np.bincount(cell[rows >= 0], minlength=len(rows) * count * classes * classes)
    return counts.reshape(*leading, count, classes, classes)


def resampled(
    sums: np.ndarray, scores: Callable[[np.ndarray], Mapping[str, np.ndarray]], draws: int = DRAWS
) -> dict[str, SeedScores]:
    r"""
    Scores of every seed, as observed and in every draw of dialogues.

    Args:
        sums (`(S, n, I, J)`): what each dialogue adds to the sums that the scores are computed from, such as the
            counts of a confusion matrix. Further axes between S and n are repetitions of a seed, over which the scores
            are averaged.
        scores: the values (...) of each score, by its name, from sums (..., I, J).
        draws: number R of draws.
    """
    *leading, count, rows, columns = sums.shape
    flat = sums.reshape(*leading, count, rows * columns).astype(np.float64)
    drawn = np.moveaxis(_times_drawn(count, draws, "dialogues") @ flat, -2, 0)  # [R, ..., I * J]
    observed = scores(sums.sum(-3))
    samples = scores(drawn.reshape(draws, *leading, rows, columns))
    repetitions = tuple(range(1, len(leading)))
    return {
        name: SeedScores(values.mean(repetitions), samples[name].mean(tuple(axis + 1 for axis in repetitions)))
        for name, values in observed.items()
    }


def resampled_scores(confusion: np.ndarray, draws: int = DRAWS) -> dict[str, SeedScores]:
    r"""
    Weighted and macro F1 of every seed; see [`resampled`].

    Args:
        confusion (`(S, n, C, C)`): see [`confusion_by_dialogue`].
        draws: number R of draws.

    Returns:
        `weighted_f1` and `macro_f1`.
    """

    def f1(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = scores_from_confusion(counts)
        return {name: found[name] for name in ("weighted_f1", "macro_f1")}

    return resampled(confusion, f1, draws)


def resampled_regression_scores(
    sums: np.ndarray, bins: str | None = None, draws: int = DRAWS
) -> dict[str, SeedScores]:
    r"""
    The scores of a regression, means over its targets, of every seed; see [`resampled`]. NaN where one is undefined:
    the correlation of predictions that are constant, for example.

    Args:
        sums (`(S, n, T, K)`): see [`~mister_e_hf.evaluation.regression.sums_by_dialogue`]; a choice of the T targets
            gives the scores of these.
        bins: those that the sums were made with.
        draws: number R of draws.
    """
    return resampled(
        sums, lambda sums: {name: values.mean(-1) for name, values in scores_from_sums(sums, bins).items()}, draws
    )


def estimate(scores: SeedScores) -> Estimate:
    """Mean, spread over seeds, and 95 % percentile interval over dialogues and seeds."""
    values = scores.observed
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return Estimate(float(values.mean()), spread, *_interval(_means(scores)))


def difference(first: SeedScores, second: SeedScores) -> Difference:
    r"""
    First less second, paired by draw of dialogues and of seeds. Draws in which a score is undefined are left out; if
    these are more than half, interval and p-value are NaN.

    Let k be the smaller of the numbers of draws with a difference <= 0 and >= 0. Then p = min(1, 2 (1 + k) / (1 + R)):
    the one-sided achieved significance level of the percentile interval, doubled; the 1 counts the observed
    sample, so that p is never 0.

    Raises:
        InputError: if the two differ in the number of seeds or draws.
    """
    if first.drawn.shape != second.drawn.shape:
        raise InputError(
            f"Only scores of the same draws and seeds can be paired, got {first.drawn.shape} and {second.drawn.shape}"
        )
    drawn = _means(first) - _means(second)
    low, high = _interval(drawn)
    extreme = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = np.nan if np.isnan(low) else min(1.0, 2 * (1 + int(extreme)) / (1 + int((~np.isnan(drawn)).sum())))
    return Difference(float(first.observed.mean() - second.observed.mean()), low, high, p)


def of_seeds(scores: SeedScores, positions: list[int]) -> SeedScores:
    """The scores of a choice of seeds."""
    return SeedScores(scores.observed[positions], scores.drawn[:, positions])


def holm(p_values: list[float]) -> list[float]:
    r"""
    Adjusted p-values, in the order given: rejecting those <= alpha keeps the chance of any false rejection <= alpha
    (Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979).

    The i-th smallest of m is multiplied by m - i + 1; none may be less than the one before it, nor more than 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return adjusted.tolist()


def _means(scores: SeedScores) -> np.ndarray:
    """Mean over the drawn seeds, (R,)."""
    draws, seeds = scores.drawn.shape
    return (scores.drawn * _times_drawn(seeds, draws, "seeds")).sum(1) / seeds


def _interval(samples: np.ndarray) -> tuple[float, float]:
    """The ends of the percentile interval; NaN where a score is undefined in more than half of the draws."""
    defined = samples[~np.isnan(samples)]
    if 2 * len(defined) < len(samples):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _times_drawn(count: int, draws: int, of: str) -> np.ndarray:
    """
    How often each of `count` is drawn, (R, count). Dialogues and seeds have a stream each, which depends on nothing
    else.
    """
    generator = np.random.default_rng([_SEED, ("dialogues", "seeds").index(of)])
    drawn = generator.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)
    times.flags.writeable = False  # the cache shares it
    return times
