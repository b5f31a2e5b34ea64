import numpy as np
import pytest
from scipy.special import softmax

from mister_e_hf.evaluation.calibration import fit_temperature
from mister_e_hf.evaluation.metrics import expected_calibration_error


def drawn(turns: int, temperature: float, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3.0, size=(turns, classes))
    chances = softmax(logits / temperature, axis=-1).cumsum(-1)
    return logits, (generator.random((turns, 1)) > chances).sum(-1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fitted_temperature_is_the_true_one(temperature):
    logits, labels = drawn(40_000, temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.03)
    assert fit_temperature(3.0 * logits, labels) == pytest.approx(3.0 * fitted, rel=1e-3)
    assert fit_temperature(logits + 100.0, labels) == pytest.approx(fitted, rel=1e-3)


def test_overconfident_probabilities_are_calibrated():
    logits, labels = drawn(20_000, 1.0)
    fitted = fit_temperature(4.0 * logits[:10_000], labels[:10_000])
    held_out, labels = 4.0 * logits[10_000:], labels[10_000:]
    before, after = softmax(held_out, axis=-1), softmax(held_out / fitted, axis=-1)
    assert np.array_equal(before.argmax(-1), after.argmax(-1))
    assert expected_calibration_error(labels, before) > 0.1 > 0.02 > expected_calibration_error(labels, after)


def test_unlabelled_turns_do_not_change_the_temperature():
    logits, labels = drawn(2_000, 1.5)
    fitted = fit_temperature(logits, labels)
    more = np.concatenate([logits, 50.0 * np.ones((300, 5)), -50.0 * np.eye(5)])
    padded = np.concatenate([labels, np.full(305, -100)])
    assert fit_temperature(more, padded) == pytest.approx(fitted, rel=1e-6)
    with pytest.raises(ValueError, match="No turn has a label"):
        fit_temperature(logits, np.full(2_000, -100))


def test_too_few_turns_keep_temperature_one():
    logits, labels = drawn(99, 0.2)
    assert fit_temperature(logits, labels) == 1.0
    logits, labels = drawn(100, 0.2)
    assert fit_temperature(logits, labels) < 0.5
    assert fit_temperature(logits, np.where(np.arange(100) < 1, -100, labels)) == 1.0  # only labelled turns count


@pytest.mark.parametrize("right", [True, False])
def test_temperature_is_finite_if_all_predictions_are_right_or_wrong(right):
    logits = 5.0 * np.eye(4)[np.arange(100) % 4]
    labels = (np.arange(100) + (0 if right else 1)) % 4
    fitted = fit_temperature(logits, labels)
    assert 0.05 <= fitted < 0.5 if right else fitted == pytest.approx(20.0, rel=0.01)
