import socket

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from mister_e_hf import EmotionMetrics
from mister_e_hf.evaluation.metrics import (
    bootstrap_intervals,
    emotion_scores,
    expected_calibration_error,
    scores_from_confusion,
    softmax,
)

NAMES = ["anger", "joy", "neutral", "sadness", "fear"]
SCALARS = {"weighted_f1", "macro_f1", "accuracy", "unweighted_average_recall", "expected_calibration_error"}


def random_case(turns: int, classes=range(5), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels out of `classes`, and probabilities that are right more often than not."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(list(classes), size=turns)
    logits = generator.normal(size=(turns, len(NAMES)))
    logits[np.arange(turns), labels] += 1.0
    exponentials = np.exp(logits)
    return labels, exponentials / exponentials.sum(-1, keepdims=True)


def certain(predictions, classes: int = 5) -> np.ndarray:
    return np.eye(classes)[predictions]


CASES = {
    "all classes": random_case(300),
    "two classes without a turn": random_case(200, classes=[1, 3, 4], seed=1),
    "a class never predicted": (np.array([0, 1, 2, 3, 4, 0]), certain([0, 1, 2, 3, 3, 1])),
    "a class neither there nor predicted": (np.array([0, 1, 2, 0]), certain([0, 2, 2, 1])),
    "one class": (np.zeros(7, dtype=int), certain([0, 0, 1, 2, 0, 0, 4])),
    "one turn": (np.array([2]), certain([2])),
}


@pytest.mark.parametrize(("labels", "probabilities"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_scores_match_scikit_learn(labels, probabilities):
    predictions, classes = probabilities.argmax(-1), list(range(5))
    scores = emotion_scores(labels, probabilities, NAMES)
    options = {"labels": classes, "zero_division": 0}
    expected = {
        "weighted_f1": f1_score(labels, predictions, average="weighted", **options),
        "macro_f1": f1_score(labels, predictions, average="macro", zero_division=0),  # over the classes that occur
        "accuracy": accuracy_score(labels, predictions),
        "unweighted_average_recall": balanced_accuracy_score(labels, predictions),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
    # only classes that have a turn have a recall
    recalls = recall_score(labels, predictions, average="macro", labels=np.unique(labels))
    assert scores["unweighted_average_recall"] == pytest.approx(recalls, abs=1e-12)
    assert list(scores["f1_per_class"]) == NAMES
    for label, value in enumerate(f1_score(labels, predictions, average=None, **options)):
        there = label in labels
        assert scores["f1_per_class"][NAMES[label]] == (pytest.approx(value, abs=1e-12) if there else None)
    assert scores["num_utterances"] == len(labels)


def test_a_class_without_a_turn_does_not_lower_scores():
    labels = np.array([0, 0, 1, 1, 2])
    scores = emotion_scores(labels, np.eye(4)[labels], list("abcd"))
    assert scores["macro_f1"] == scores["weighted_f1"] == scores["unweighted_average_recall"] == 1.0
    assert scores["f1_per_class"] == {"a": 1.0, "b": 1.0, "c": 1.0, "d": None}
    wrong = np.array([0, 3, 1, 1, 2])  # but one that was predicted counts, as in scikit-learn
    assert emotion_scores(labels, np.eye(4)[wrong], list("abcd"))["macro_f1"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)


def test_scores_of_many_confusion_matrices():
    matrices = [confusion_matrix(labels, values.argmax(-1), labels=range(5)) for labels, values in CASES.values()]
    together = scores_from_confusion(np.stack(matrices))
    for index, matrix in enumerate(matrices):
        for name, value in scores_from_confusion(matrix).items():
            np.testing.assert_array_equal(together[name][index], value)


def test_an_empty_confusion_matrix_is_zero_everywhere():
    assert all((value == 0).all() for value in map(np.asarray, scores_from_confusion(np.zeros((3, 3))).values()))


def test_turns_without_a_label_are_left_out():
    labels, probabilities = random_case(100)
    with_gaps = labels.copy()
    with_gaps[::3] = -100
    kept = with_gaps != -100
    assert emotion_scores(with_gaps, probabilities, NAMES) == emotion_scores(labels[kept], probabilities[kept], NAMES)
    dialogues = np.arange(100) // 10
    assert bootstrap_intervals(with_gaps, probabilities, dialogues, draws=20) == bootstrap_intervals(
        labels[kept], probabilities[kept], dialogues[kept], draws=20
    )


@pytest.mark.parametrize("labels", [np.array([], dtype=int), np.array([-100, -100])])
def test_missing_labels_raise(labels):
    with pytest.raises(ValueError, match="No turn has a label"):
        emotion_scores(labels, np.full((len(labels), 5), 0.2), NAMES)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [([0, 5], 5, "labels from 0 to 5"), ([0, -1], 5, "labels from -1"), ([0, 1], 4, "4 probabilities")],
)
def test_labels_and_probabilities_must_be_of_the_named_classes(labels, classes, message):
    with pytest.raises(ValueError, match=f"5 label names.*{message}"):
        emotion_scores(np.array(labels), np.full((2, classes), 1 / classes), NAMES)


# Calibration


def binary(confidence: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 with this confidence each time, right or wrong so many times."""
    labels = np.array([1] * right + [0] * wrong)
    return labels, np.tile([1 - confidence, confidence], (len(labels), 1))


def joined(*cases) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.concatenate(parts) for parts in zip(*cases, strict=True))


def test_perfect_calibration_is_zero():
    assert expected_calibration_error(*binary(0.75, 75, 25), bins=1) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(*binary(1.0, 60, 0)) == 0
    case = joined(binary(0.6, 6, 4), binary(0.9, 9, 1))
    assert expected_calibration_error(*case, bins=2) == pytest.approx(0, abs=1e-12)


def test_over_and_under_confidence():
    assert expected_calibration_error(*binary(0.9, 50, 50), bins=1) == pytest.approx(0.4)
    assert expected_calibration_error(*binary(0.6, 100, 0)) == pytest.approx(0.4)
    assert expected_calibration_error(*binary(1.0, 0, 30)) == 1


def test_opposite_errors_cancel_within_a_bin_and_not_across_bins():
    case = joined(binary(0.6, 8, 2), binary(0.8, 6, 4))
    assert expected_calibration_error(*case, bins=1) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(*case, bins=2) == pytest.approx(0.2)


def test_bins_have_equal_mass():
    # With bins of equal width, 0.96 and 0.99 would share one, and their errors would cancel.
    case = joined(binary(0.96, 20, 0), binary(0.99, 19, 1))
    assert expected_calibration_error(*case, bins=2) == pytest.approx((0.04 + 0.04) / 2)
    # 10 turns in 3 bins: 4, 3 and 3, in the order of confidence
    labels, probabilities = joined(*[binary(0.5 + turn / 100, turn % 2, 1 - turn % 2) for turn in range(10)])
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    expected = sum(abs((confidence - correct)[part].sum()) for part in (slice(0, 4), slice(4, 7), slice(7, 10))) / 10
    assert expected_calibration_error(labels, probabilities, bins=3) == pytest.approx(expected)


def test_more_bins_than_turns_and_the_order_of_turns():
    labels, probabilities = random_case(9)
    errors = np.abs(probabilities.max(-1) - (probabilities.argmax(-1) == labels))
    assert expected_calibration_error(labels, probabilities, bins=50) == pytest.approx(errors.mean())
    labels, probabilities = random_case(200)
    shuffled = np.random.default_rng(0).permutation(200)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(
        expected_calibration_error(labels[shuffled], probabilities[shuffled])
    )


# Bootstrap


def test_interval_of_one_dialogue_has_no_width():
    labels, probabilities = random_case(40)
    scores = emotion_scores(labels, probabilities, NAMES)
    intervals = bootstrap_intervals(labels, probabilities, np.array(["d"] * 40), draws=50)
    assert set(intervals) == SCALARS
    for name, interval in intervals.items():
        assert interval == pytest.approx([scores[name]] * 2, abs=1e-12), name


def test_interval_of_equal_dialogues_has_no_width():
    labels, probabilities = random_case(30)
    dialogues = np.repeat(np.arange(6), 30)
    intervals = bootstrap_intervals(np.tile(labels, 6), np.tile(probabilities, (6, 1)), dialogues, draws=50)
    scores = emotion_scores(labels, probabilities, NAMES)
    for name in SCALARS - {"expected_calibration_error"}:
        assert intervals[name] == pytest.approx([scores[name]] * 2, abs=1e-12), name


@pytest.mark.parametrize("turns", [60, 600])
def test_interval_contains_the_score(turns):
    for seed in range(3):
        labels, probabilities = random_case(turns, seed=seed)
        scores = emotion_scores(labels, probabilities, NAMES)
        dialogues = np.arange(turns) // 6
        intervals = bootstrap_intervals(labels, probabilities, dialogues, draws=200)
        wider = bootstrap_intervals(labels, probabilities, dialogues, draws=200, level=0.99)
        for name, (low, high) in intervals.items():
            assert 0 <= low < scores[name] < high <= 1, name
            assert wider[name][0] <= low < high <= wider[name][1]


def test_interval_of_a_calibrated_forecast_contains_its_calibration_error():
    """Each draw has turns more than once, which alone raises the binned error."""
    _, probabilities = random_case(600)
    generator = np.random.default_rng(1)
    labels = np.array([generator.choice(5, p=row) for row in probabilities])
    error = expected_calibration_error(labels, probabilities)
    low, high = bootstrap_intervals(labels, probabilities, np.arange(600) // 10)["expected_calibration_error"]
    assert low < error < high


def test_whole_dialogues_are_drawn():
    """All turns of a dialogue right or all wrong: 20 dialogues know as little as 20 turns."""
    right = np.random.default_rng(0).random(20) < 0.6
    labels = np.zeros(400, dtype=int)
    probabilities = certain(np.where(np.repeat(right, 20), 0, 1), 2)
    by_dialogue = bootstrap_intervals(labels, probabilities, np.repeat(np.arange(20), 20), draws=500)["accuracy"]
    by_turn = bootstrap_intervals(labels, probabilities, np.arange(400), draws=500)["accuracy"]
    turns_of_20 = bootstrap_intervals(labels[::20], probabilities[::20], np.arange(20), draws=500)["accuracy"]
    assert by_dialogue == pytest.approx(turns_of_20)
    ratio = (by_dialogue[1] - by_dialogue[0]) / (by_turn[1] - by_turn[0])
    assert ratio == pytest.approx(20**0.5, rel=0.2)


def test_width_matches_the_binomial():
    labels = np.zeros(400, dtype=int)
    probabilities = certain((np.arange(400) % 4 == 0).astype(int), 2)
    low, high = bootstrap_intervals(labels, probabilities, np.arange(400), draws=4000)["accuracy"]
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert [low, high] == pytest.approx([0.75 - half, 0.75 + half], abs=0.006)


def test_interval_does_not_depend_on_dialogue_names():
    labels, probabilities = random_case(120)
    dialogues = np.arange(120) // 7
    first = bootstrap_intervals(labels, probabilities, dialogues, draws=50, seed=1)
    assert first == bootstrap_intervals(labels, probabilities, dialogues, draws=50, seed=1)
    names = np.array([f"dialogue_{number:02}" for number in dialogues])
    assert first == bootstrap_intervals(labels, probabilities, names, draws=50, seed=1)
    assert first != bootstrap_intervals(labels, probabilities, dialogues, draws=50, seed=2)


# The `evaluate` metric


@pytest.fixture
def metric(tmp_path, monkeypatch) -> EmotionMetrics:
    def refuse(*args):
        raise AssertionError("no connection is needed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return EmotionMetrics(NAMES, cache_dir=str(tmp_path))


def test_metric_gives_the_same_scores(metric):
    labels, probabilities = random_case(80)
    labels[::9] = -100
    expected = emotion_scores(labels, probabilities, NAMES)
    assert metric.compute(predictions=probabilities, references=labels) == expected
    assert metric.compute(predictions=probabilities.tolist(), references=labels.tolist()) == expected


def test_metric_in_batches_and_one_by_one(metric):
    labels, probabilities = random_case(30)
    labels[4] = -100
    expected = emotion_scores(labels, probabilities, NAMES)
    for start in range(0, 30, 8):
        metric.add_batch(predictions=probabilities[start : start + 8], references=labels[start : start + 8])
    assert metric.compute() == expected
    for prediction, reference in zip(probabilities, labels, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected


def test_metric_without_a_label_raises(metric):
    with pytest.raises(ValueError, match="No turn has a label"):
        metric.compute(predictions=np.full((2, 5), 0.2), references=[-100, -100])


def test_softmax_of_extreme_logits():
    logits = np.array([[0.0, np.log(3.0)], [1e4, -1e4], [-1e30, -1e30]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], rtol=1e-6)
