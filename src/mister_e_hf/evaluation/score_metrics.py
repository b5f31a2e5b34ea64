"""The scores of `regression.py` as a metric of the `evaluate` library."""

import datasets
import evaluate
import numpy as np

from ..base.errors import InputError
from .regression import regression_scores

_DESCRIPTION = "Mean absolute error, Pearson's correlation, concordance correlation, and accuracies of binned scores."


class ScoreMetrics(evaluate.Metric):
    r"""
    Scores of predicted sentiment, valence and so on for users of `evaluate`. Works offline.

    `compute(predictions=predictions, references=labels)` takes a list of S scores each per turn (NaN in `references`
    where a turn has none), and returns what [`~mister_e_hf.evaluation.regression.regression_scores`] does.

    Args:
        target_names: names of the S targets.
        bins: `"mosi"` or `"sims"` adds the accuracies of these corpora, for one target.
    """

    def __init__(self, target_names: list[str], bins: str | None = None, **kwargs):
        self.target_names, self.bins = list(target_names), bins
        super().__init__(config_name="default", **kwargs)

    def _info(self):
        scores = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: S scores per turn; references: S scores per turn, NaN where it has none.",
            features=datasets.Features({"predictions": scores, "references": scores}),
        )

    def _compute(self, predictions, references):
        for name, rows in (("predictions", predictions), ("references", references)):
            if wrong := [len(row) for row in rows if len(row) != len(self.target_names)]:
                raise InputError(f"{name} must hold {len(self.target_names)} scores per turn, got {wrong[0]}")
        return regression_scores(np.asarray(references), np.asarray(predictions), self.target_names, self.bins)
