"""Scores of written answers: over the readable ones alone, and how many could not be read."""

import numpy as np
import pytest

from mister_e_hf.evaluation.answer_scores import answer_scores, format_answers

NAMES = ["anger", "joy"]


def test_an_unreadable_answer_is_no_class():
    labels = np.array([0, 1, 1, -100, 0])
    found = answer_scores(labels, [[0], [None], [1], [None], [1]], NAMES)
    assert (found["answers"], found["unparsed"], found["coverage"]) == (4, 1, 0.75)
    assert found["num_utterances"] == 3 and found["accuracy"] == pytest.approx(2 / 3)
    assert found["weighted_f1"] == pytest.approx(2 / 3)  # F1 of both classes, each of one true positive and one error
    assert "expected_calibration_error" not in found
    assert format_answers(found) == (
        "1 of 4 written answers could not be read; of the others (coverage 75.0 %): weighted F1 66.67, macro F1 66.67"
    )


def test_an_unreadable_answer_is_no_score():
    labels = np.array([[1.0], [2.0], [np.nan], [3.0], [0.0]], dtype=np.float32)
    found = answer_scores(labels, [[1.5], [None], [0.0], [3.0], [-0.5]], ["valence"])
    assert (found["answers"], found["unparsed"]) == (4, 1)
    assert found["mae"] == pytest.approx(1 / 3) and found["num_utterances"] == 3
    assert "MAE 0.333" in format_answers(found)


def test_each_target_has_its_own():
    labels = np.array([[1.0, 5.0], [2.0, 4.0], [3.0, np.nan]], dtype=np.float32)
    found = answer_scores(labels, [[1.0, None], [2.0, 3.0], [None, None]], ["valence", "arousal"])
    assert (found["answers"], found["unparsed"]) == (5, 2)
    assert found["by_target"]["arousal"]["mae"] == pytest.approx(1.0)


def test_none_that_could_be_read_has_no_scores():
    found = answer_scores(np.array([0, 1]), [[None], [None]], NAMES)
    assert found == {"answers": 2, "unparsed": 2, "coverage": 0.0}
    assert format_answers(found) == "2 of 2 written answers could not be read"
