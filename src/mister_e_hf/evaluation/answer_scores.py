"""Scores of the answers that a language model wrote by itself, over those that could be read.

Letters: N turns, C classes, S targets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.score_names import in_per_cent, score_title
from .metrics import IGNORE_INDEX, emotion_scores
from .regression import regression_scores


def answer_scores(
    labels: np.ndarray, answers: Sequence[Sequence[int | float | None]], names: Sequence[str], bins: str | None = None
) -> dict[str, Any]:
    r"""
    Score written answers. Answers that could not be read are counted in `unparsed` and excluded from the scores.

    Args:
        labels: class indices (N,), -100 where a turn has none; or scores (N, S), NaN where one is missing.
        answers: of each turn (N) the class index, or a score for each target (S); None where it could not be read.
        names: of the classes (C) or targets.
        bins: of a regression, see [`~mister_e_hf.evaluation.regression.regression_scores`].

    Returns:
        `answers`, to turns (or targets of turns) with a label; `unparsed`, how many of them could not be read;
        `coverage`, the share of the others; and, if there are any, the scores over these alone.
    """
    read = np.array([[np.nan if each is None else each for each in turn] for turn in answers], dtype=np.float64)
    is_regression = labels.ndim == 2
    scored = ~np.isnan(labels) if is_regression else (labels != IGNORE_INDEX)[:, None]
    readable = scored & ~np.isnan(read)
    asked, unparsed = int(scored.sum()), int((scored & np.isnan(read)).sum())
    found: dict[str, Any] = {"answers": asked, "unparsed": unparsed, "coverage": 1 - unparsed / max(asked, 1)}
    if not readable.any():
        return found
    if is_regression:
        kept = np.where(readable, labels, np.nan)
        return found | regression_scores(kept, np.nan_to_num(read), list(names), bins)
    kept, chosen = np.where(readable[:, 0], labels, IGNORE_INDEX), np.nan_to_num(read[:, 0]).astype(np.int64)
    scores = emotion_scores(kept, np.eye(len(names))[chosen], names)
    scores.pop("expected_calibration_error")  # needs probabilities
    return found | scores


def format_answers(scores: dict[str, Any]) -> str:
    """One line for a terminal."""
    shown = f"{scores['unparsed']:,} of {scores['answers']:,} written answers could not be read"
    if "num_utterances" not in scores:
        return shown
    names = ("weighted_f1", "macro_f1") if "weighted_f1" in scores else ("mae", "corr")
    values = []
    for name in names:
        factor, digits = (100, 2) if in_per_cent(name) else (1, 3)
        value = "undefined" if scores[name] is None else f"{factor * scores[name]:.{digits}f}"
        values.append(f"{score_title(name)} {value}")
    return f"{shown}; of the others (coverage {100 * scores['coverage']:.1f} %): {', '.join(values)}"
