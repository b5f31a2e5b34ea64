"""Calibrate probabilities with one temperature, fitted on validation (Guo, Pleiss, Sun and Weinberger 2017).

Letters: N scored turns, C classes.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ..base.errors import InputError
from ..corpora.shortcomings import FEWEST_TURNS
from .metrics import IGNORE_INDEX

_RANGE = 0.05, 20.0  # if all predictions are right, or all wrong, the best temperature is 0 or infinity


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    r"""
    The temperature with the least cross-entropy of softmax(logits / temperature). It does not change any prediction.
    It is 1 if fewer than `FEWEST_TURNS` turns have a label.

    Args:
        logits (`(N, C)`).
        labels (`(N,)`): class indices; turns with -100 are left out.

    Raises:
        InputError: if no turn has a label, or the labels are scores of a regression.
    """
    if labels.ndim != 1:
        raise InputError("A regression predicts scores, not probabilities, so no temperature can be fitted")
    scored = labels != IGNORE_INDEX
    if not scored.any():
        raise InputError("No turn has a label, so no temperature can be fitted")
    if scored.sum() < FEWEST_TURNS:
        return 1.0
    logits, labels = logits[scored].astype(np.float64), labels[scored]

    def cross_entropy(log_temperature: float) -> float:
        chosen = np.take_along_axis(log_softmax(logits / np.exp(log_temperature), axis=-1), labels[:, None], axis=-1)
        return -float(chosen.mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(_RANGE), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
