import socket

import numpy as np
import pytest

from mister_e_hf import ScoreMetrics
from mister_e_hf.evaluation.regression import regression_scores

NAMES = ["valence", "activation"]


@pytest.fixture
def metric(tmp_path, monkeypatch) -> ScoreMetrics:
    def refuse(*args):
        raise AssertionError("no connection is needed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return ScoreMetrics(NAMES, cache_dir=str(tmp_path))


def random_case(turns: int, targets: int = 2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(turns, targets))
    predictions = labels + generator.normal(size=labels.shape)
    labels[::7, 0] = np.nan
    return labels, predictions


def test_metric_gives_the_same_scores(metric):
    labels, predictions = random_case(60)
    expected = regression_scores(labels, predictions, NAMES)
    assert metric.compute(predictions=predictions, references=labels) == expected
    assert metric.compute(predictions=predictions.tolist(), references=labels.tolist()) == expected


def test_metric_in_batches_and_one_by_one(metric):
    labels, predictions = random_case(30)
    expected = regression_scores(labels, predictions, NAMES)
    for start in range(0, 30, 8):
        metric.add_batch(predictions=predictions[start : start + 8], references=labels[start : start + 8])
    assert metric.compute() == expected
    for prediction, reference in zip(predictions, labels, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected


def test_metric_with_bins(tmp_path):
    labels, predictions = random_case(30, targets=1)
    found = ScoreMetrics(["sentiment"], bins="mosi", cache_dir=str(tmp_path)).compute(
        predictions=predictions, references=labels
    )
    assert found == regression_scores(labels, predictions, ["sentiment"], "mosi")
    assert "acc7" in found


def test_null_is_a_missing_score(metric):
    labels, predictions = random_case(14)
    references = [[None if np.isnan(value) else value for value in row] for row in labels.tolist()]
    assert metric.compute(predictions=predictions.tolist(), references=references) == regression_scores(
        labels, predictions, NAMES
    )


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.0, 0.0]], [[float("nan")] * 2], "No turn has a score of valence, activation"),
        ([[0.0], [1.0]], [[0.0], [1.0]], "predictions must hold 2 scores per turn, got 1"),
        ([[0.0, 1.0], [0.0]], [[0.0, 1.0], [0.0, 1.0]], "must hold 2 scores per turn"),
    ],
)
def test_wrong_scores_raise(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
