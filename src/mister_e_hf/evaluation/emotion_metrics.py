"""The scores of `metrics.py` as a metric of the `evaluate` library."""

import datasets
import evaluate
import numpy as np

from .metrics import emotion_scores

_DESCRIPTION = "Weighted, macro and per-class F1, accuracy, unweighted average recall and expected calibration error."


class EmotionMetrics(evaluate.Metric):
    r"""
    Scores of emotion recognition in conversations for users of `evaluate`. Works offline.

    `compute(predictions=probabilities, references=labels)` takes a list of C class probabilities and a class index per
    turn (-100: not scored), and returns what [`~mister_e_hf.evaluation.metrics.emotion_scores`] does.

    Args:
        label_names: C class names, in the order of the class indices.
    """

    def __init__(self, label_names: list[str], **kwargs):
        self.label_names = list(label_names)
        super().__init__(config_name="default", **kwargs)

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: class probabilities per turn; references: class index per turn, or -100.",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return emotion_scores(np.asarray(references), np.asarray(predictions, dtype=np.float64), self.label_names)
