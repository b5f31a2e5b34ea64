"""Scores of predicted scores: errors, correlations, and the accuracies of sentiment analysis, with intervals.

All scores are computed from sums over the turns of each dialogue, so that one code gives those of a split, of every
draw of dialogues, and of every seed.

Letters: N turns, S targets, n dialogues, R bootstrap draws, K sums.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.errors import InputError, short
from ..base.score_names import score_title
from .binned_scores import BINS, SIMS_RANGE, binned_counts, binned_scores
from .metrics import SCORES

# The scalars that every regression has; BINS adds more for one target.
REGRESSION_SCORES = ("mae", "corr", "ccc")
_LESS_IS_BETTER = {"mae", "expected_calibration_error"}
_MOMENTS = 8  # sums per turn and target, see _moments
# A variance below this share of the mean square about the median is rounding: the values are constant.
_ROUNDING = 1e-12


def score_names(bins: str | None = None) -> tuple[str, ...]:
    r"""
    The scalars among the results of [`regression_scores`].

    Args:
        bins: `"mosi"`, `"sims"` or None.

    Raises:
        InputError: if the bins are unknown.
    """
    if bins is None:
        return REGRESSION_SCORES
    if bins not in BINS:
        raise InputError(f"Unknown bins {bins!r}; expected one of {', '.join(BINS)}, or None")
    return (*REGRESSION_SCORES, *BINS[bins])


def more_is_better(score: str) -> bool:
    r"""
    Whether a larger value of a score of classes or of a regression is the better one.

    Raises:
        InputError: if the score is unknown.
    """
    known = {*SCORES, *REGRESSION_SCORES, *(name for names in BINS.values() for name in names)}
    if score not in known:
        raise InputError(f"Unknown score {score!r}; expected one of {', '.join(sorted(known))}")
    return score not in _LESS_IS_BETTER


def sums_by_dialogue(
    labels: np.ndarray, predictions: np.ndarray, dialogues: np.ndarray, bins: str | None = None
) -> np.ndarray:
    r"""
    The sums from which [`scores_from_sums`] computes every score, of each dialogue that has a scored turn.

    Args:
        labels (`(N, S)`): scores, NaN where a turn has none.
        predictions (`(..., N, S)`): predicted scores, such as one set per seed; NaN is left out of that set.
        dialogues (`(N,)`): which dialogue each turn belongs to, as integers or names.
        bins: `"mosi"` or `"sims"`, for one target; the latter clips labels and predictions to ±1.

    Returns:
        (..., n, S, K).

    Raises:
        InputError: if no turn has a score, or bins are given for several targets.
    """
    labels, predictions = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if score_names(bins) != REGRESSION_SCORES and labels.shape[1] != 1:
        raise InputError(f"Bins are for one target such as sentiment, got bins '{bins}' for {labels.shape[1]} targets")
    scored = ~np.isnan(labels).all(1)
    if not scored.any():
        raise InputError("No turn has a score, so there is nothing to compare")
    labels, predictions = labels[scored], predictions[..., scored, :]
    if bins == "sims":
        labels, predictions = labels.clip(*SIMS_RANGE), predictions.clip(*SIMS_RANGE)
    given = ~np.isnan(labels) & ~np.isnan(predictions)  # (..., N, S)
    sums = _moments(labels, predictions, given)
    if bins is not None:
        counts = binned_counts(labels[:, 0], predictions[..., 0], bins)[..., None, :]  # (..., N, 1, K)
        sums = np.concatenate([sums, counts * given[..., None]], axis=-1)
    _, dialogue = np.unique(np.asarray(dialogues)[scored], return_inverse=True)
    order = np.argsort(dialogue, kind="stable")
    starts = np.flatnonzero(np.diff(dialogue[order], prepend=-1))
    return np.add.reduceat(sums[..., order, :, :], starts, axis=-3)


def _moments(labels: np.ndarray, predictions: np.ndarray, given: np.ndarray) -> np.ndarray:
    """
    What each turn adds to the sums of moments, (..., N, S, 8). Labels and predictions are taken about their own
    medians, since moments about a distant value lose digits: of nearly constant values all of them.
    """
    d = np.where(given, predictions - labels, 0.0)
    y, p = (np.where(given, values - _medians(values), 0.0) for values in (labels, predictions))
    return np.stack([given.astype(np.float64), y, p, y * y, p * p, y * p, np.abs(d), d], axis=-1)


def _medians(values: np.ndarray) -> np.ndarray:
    """The median of each target, (..., 1, S); NaN where none is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of targets without a value
        return np.nanmedian(values, axis=-2, keepdims=True)


def scores_from_sums(sums: np.ndarray, bins: str | None = None) -> dict[str, np.ndarray]:
    r"""
    The scores of each target.

    - `mae`: mean absolute error.
    - `corr`: Pearson's correlation.
    - `ccc`: concordance correlation, 2 cov(y, p) / (var(y) + var(p) + (mean(y) - mean(p))²), with moments divided by N
      (Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45, 1989).
    - those of [`~mister_e_hf.evaluation.binned_scores.binned_scores`], and `r2` = 1 - sum (p - y)² / sum (y - mean)².

    Args:
        sums (`(..., S, K)`): those of [`sums_by_dialogue`], added over dialogues.
        bins: those that the sums were made with.

    Returns:
        scores (..., S); NaN where one is undefined: without a turn, or of values that are constant.
    """
    count, y, p, yy, pp, yp, distance, d = np.moveaxis(sums[..., :_MOMENTS], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_y, mean_p = y / count, p / count
        variance_y, variance_p = _variance(yy / count, mean_y), _variance(pp / count, mean_p)
        bias = d / count
        constant = (variance_y == 0) | (variance_p == 0)
        covariance = np.where(constant, 0.0, yp / count - mean_y * mean_p)
        deviations = np.sqrt(variance_y) * np.sqrt(variance_p)
        scores = {
            "mae": distance / count,
            "corr": np.where(constant, np.nan, covariance / deviations).clip(-1, 1),
            "ccc": 2 * covariance / (variance_y + variance_p + bias**2),
        }
        if bins is not None:
            scores |= binned_scores(sums[..., _MOMENTS:], count, bins)
        if bins == "sims":
            squares = variance_y + variance_p - 2 * covariance + bias**2
            scores["r2"] = np.where(variance_y == 0, np.nan, 1 - squares / variance_y)
    return {name: scores[name] for name in score_names(bins)}


def _variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Variance from the mean square and the mean; exactly 0 of constant values, whatever the rounding."""
    variance = square - mean**2
    return np.where(variance <= _ROUNDING * square, 0.0, variance)


def regression_scores(
    labels: np.ndarray, predictions: np.ndarray, target_names: Sequence[str], bins: str | None = None
) -> dict[str, Any]:
    r"""
    All scores of one set of predicted scores.

    Args:
        labels (`(N, S)`): scores, NaN where a turn has none.
        predictions (`(N, S)`): predicted scores, in the units of the labels.
        target_names: S names.
        bins: `"mosi"` or `"sims"` adds the accuracies of the literature on these corpora, for one target.

    Returns:
        the scores of [`score_names`], means over the targets; `num_utterances`, the turns with at least one score; and
        `by_target`, all of these by the name of each target. A score that is undefined is None, and `undefined` says
        why in a sentence each.

    Raises:
        InputError: if shapes or names do not fit, a target has no score at any turn, or a prediction is not finite.
    """
    labels, predictions = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    check_scores(labels, predictions, target_names)
    sums = sums_by_dialogue(labels, predictions, np.zeros(len(labels)), bins)[0]
    found = scores_from_sums(sums, bins)
    given = ~np.isnan(labels)
    result: dict[str, Any] = {name: _defined(values.mean()) for name, values in found.items()}
    result["num_utterances"] = int(given.any(1).sum())
    result["by_target"] = {
        target: {name: _defined(values[place]) for name, values in found.items()}
        | {"num_utterances": int(given[:, place].sum())}
        for place, target in enumerate(target_names)
    }
    undefined = [
        f"{score_title(score)} of {target} is undefined: {reason}"
        for place, target in enumerate(target_names)
        for score, reason in _reasons(labels[given[:, place], place], predictions[given[:, place], place], bins)
        if result["by_target"][target][score] is None
    ]
    return result | ({"undefined": undefined} if undefined else {})


def check_scores(labels: np.ndarray, predictions: np.ndarray, target_names: Sequence[str]):
    """
    Check the arguments of [`regression_scores`].

    Raises:
        InputError: if shapes or names do not fit, a target has no score at any turn, or a number is not finite.
    """
    if labels.ndim != 2 or predictions.shape != labels.shape or labels.shape[1] != len(target_names):
        raise InputError(
            f"Labels and predictions must be (turns, {len(target_names)}), a score for each of "
            f"{short(', '.join(target_names))}; got {labels.shape} and {predictions.shape}"
        )
    if missing := [name for name, none in zip(target_names, np.isnan(labels).all(0), strict=True) if none]:
        raise InputError(f"No turn has a score of {', '.join(missing)}, so there is nothing to score")
    if np.isinf(labels).any():
        raise InputError("The labels hold infinity; a turn without a score has NaN")
    if not np.isfinite(predictions).all():
        raise InputError(
            "The predicted scores are not finite (NaN or infinity): the model's weights are damaged, or its input is "
            "too large"
        )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _reasons(labels: np.ndarray, predictions: np.ndarray, bins: str | None) -> list[tuple[str, str]]:
    """Why a score of one target may be undefined, by the name of the score."""
    if bins == "sims":
        labels, predictions = labels.clip(*SIMS_RANGE), predictions.clip(*SIMS_RANGE)
    which = "labels" if np.ptp(labels) == 0 else "predictions"
    constant = f"its {which} are constant" + (", once they are within ±1" if bins == "sims" else "")
    reasons = [("corr", constant), ("ccc", "its labels and predictions are one constant")]
    if bins == "mosi":
        reasons += [(name, "its labels are all 0") for name in ("acc2_non0", "f1_non0")]
    if bins == "sims":
        reasons += [("acc2_weak", "no label is within ±0.4"), ("r2", "its labels are constant")]
    return reasons


def regression_intervals(
    labels: np.ndarray,
    predictions: np.ndarray,
    dialogues: np.ndarray,
    target_names: Sequence[str],
    bins: str | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    r"""
    Percentile intervals of the scores by drawing whole dialogues with replacement, as
    [`~mister_e_hf.evaluation.metrics.bootstrap_intervals`] does.

    Args:
        labels (`(N, S)`), predictions (`(N, S)`), target_names, bins: see [`regression_scores`].
        dialogues (`(N,)`): which dialogue each turn belongs to, as integers or names.

    Returns:
        `[low, high]` by the name of each score, and `by_target` the same by the name of each target. Draws in which a
        score is undefined are left out; None where it is undefined in more than half of them.
    """
    check_scores(np.asarray(labels, dtype=np.float64), np.asarray(predictions), target_names)
    sums = sums_by_dialogue(labels, predictions, dialogues, bins)  # (n, S, K)
    count = len(sums)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)  # [R, n]
    samples = scores_from_sums(np.einsum("rn,nsk->rsk", drawn, sums, optimize=True), bins)
    edges = [(1 - level) / 2, (1 + level) / 2]
    intervals: dict[str, Any] = {name: _interval(values.mean(-1), edges) for name, values in samples.items()}
    intervals["by_target"] = {
        target: {name: _interval(values[:, place], edges) for name, values in samples.items()}
        for place, target in enumerate(target_names)
    }
    return intervals


def _interval(samples: np.ndarray, edges: list[float]) -> list[float] | None:
    defined = samples[~np.isnan(samples)]
    if 2 * len(defined) < len(samples):
        return None
    return [float(edge) for edge in np.quantile(defined, edges)]
