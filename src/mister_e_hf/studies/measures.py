"""What a study measures of its systems' predictions: F1 of classes, or errors and correlations of scores.

Letters: S seeds, D repetitions, N turns, C classes, K targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.metrics import IGNORE_INDEX, scores_from_confusion
from ..evaluation.regression import REGRESSION_SCORES, score_names, scores_from_sums, sums_by_dialogue
from ..evaluation.significance import (
    DRAWS,
    SeedScores,
    confusion_by_dialogue,
    resampled_regression_scores,
    resampled_scores,
)


@dataclass(frozen=True)
class ClassMeasures:
    r"""
    Scores of predicted classes, (..., N) class indices.

    Args:
        names: C names of the classes.
    """

    names: list[str]
    task = "classification"
    main = "weighted_f1"
    shown = ("weighted_f1", "macro_f1")
    more_is_better = True

    def scored(self, labels: np.ndarray) -> np.ndarray:
        """Which turns have a label, (N,)."""
        return labels != IGNORE_INDEX

    def is_kept(self, predictions: np.ndarray) -> np.ndarray:
        """Which turns were not cut off, (..., N)."""
        return predictions >= 0

    def cut(self, predictions: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The predictions with the turns cut off that are not kept (..., N)."""
        return np.where(kept, predictions, -1)

    def observed(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """The score `main` of predictions (N,)."""
        one_dialogue = np.zeros(len(labels), dtype=np.int64)
        confusion = confusion_by_dialogue(labels, predictions, one_dialogue, len(self.names)).sum(0)
        return float(scores_from_confusion(confusion)[self.main])

    def resampled(
        self, labels: np.ndarray, predictions: np.ndarray, dialogues: np.ndarray, draws: int = DRAWS
    ) -> dict[str, SeedScores]:
        """The scores `shown` of every seed, from predictions (S, N) or (S, D, N)."""
        return resampled_scores(confusion_by_dialogue(labels, predictions, dialogues, len(self.names)), draws)


@dataclass(frozen=True)
class ScoreMeasures:
    r"""
    Scores of predicted targets, (..., N, K) numbers.

    Args:
        names: K names of the targets.
        bins: bins of the score whose accuracies are measured, too; see
            [`~mister_e_hf.evaluation.regression.score_names`].
    """

    names: list[str]
    bins: str | None = None
    task = "regression"
    main = "mae"
    shown = REGRESSION_SCORES
    more_is_better = False

    @property
    def binned(self) -> tuple[str, ...]:
        """Further scores, of one target."""
        return score_names(self.bins)[len(self.shown) :]

    def scored(self, labels: np.ndarray) -> np.ndarray:
        """Which turns have the score of a target, (N,)."""
        return ~np.isnan(labels).all(-1)

    def is_kept(self, predictions: np.ndarray) -> np.ndarray:
        """Which turns were not cut off, (..., N)."""
        return ~np.isnan(predictions).all(-1)

    def cut(self, predictions: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The predictions with the turns cut off that are not kept (..., N)."""
        return np.where(kept[..., None], predictions, np.nan)

    def observed(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """The score `main` of predictions (N, K), averaged over the targets."""
        sums = sums_by_dialogue(labels, predictions, np.zeros(len(labels)), self.bins)[0]
        return float(scores_from_sums(sums, self.bins)[self.main].mean())

    def resampled(
        self, labels: np.ndarray, predictions: np.ndarray, dialogues: np.ndarray, draws: int = DRAWS
    ) -> dict[str, SeedScores]:
        """
        The scores `shown` and `binned` of every seed, averaged over the targets, from predictions (S, N, K) or (S, D,
        N, K).
        """
        sums = sums_by_dialogue(labels, predictions, dialogues, self.bins)
        return resampled_regression_scores(sums, self.bins, draws)

    def by_target(
        self, labels: np.ndarray, predictions: np.ndarray, dialogues: np.ndarray
    ) -> dict[str, dict[str, SeedScores]]:
        """The scores `shown` of every seed for each target by itself, from predictions (S, N, K)."""
        return {
            name: ScoreMeasures([name]).resampled(labels[:, [place]], predictions[..., [place]], dialogues)
            for place, name in enumerate(self.names)
        }


Measures = ClassMeasures | ScoreMeasures


def measures_of(corpus: Mapping[str, Any]) -> Measures:
    """The measures of a recipe's section `corpus`: of its targets, or of its labels."""
    targets = corpus.get("targets")
    return (
        ClassMeasures(corpus["labels"]) if targets is None else ScoreMeasures(list(targets), corpus.get("score_bins"))
    )
