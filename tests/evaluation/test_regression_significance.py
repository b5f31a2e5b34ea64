import numpy as np
import pytest

from mister_e_hf.evaluation.regression import more_is_better, regression_scores, score_names, sums_by_dialogue
from mister_e_hf.evaluation.significance import (
    DRAWS,
    difference,
    estimate,
    holm,
    of_seeds,
    resampled_regression_scores,
)


def random_system(seeds=3, dialogues=40, turns=8, targets=1, noise=0.5, seed=0):
    """Labels (N, T), predictions (S, N, T) with errors of this size, and dialogues (N,)."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).normal(size=(dialogues * turns, targets))
    predictions = labels + noise * generator.normal(size=(seeds, *labels.shape))
    return labels, predictions, np.repeat(np.arange(dialogues), turns)


def resampled(*case, bins=None, **options):
    return resampled_regression_scores(sums_by_dialogue(*case, bins), bins, **options)


@pytest.mark.parametrize(("bins", "targets"), [(None, 3), ("mosi", 1), ("sims", 1)])
def test_observed_scores_match_the_metrics(bins, targets):
    labels, predictions, dialogues = random_system(targets=targets)
    found = resampled(labels, predictions, dialogues, bins=bins, draws=10)
    assert list(found) == list(score_names(bins))
    for seed, row in enumerate(predictions):
        expected = regression_scores(labels, row, list("abc")[:targets], bins)
        for name, scores in found.items():
            assert scores.observed[seed] == pytest.approx(expected[name]), name


def test_a_choice_of_targets_gives_their_scores():
    labels, predictions, dialogues = random_system(targets=3)
    sums = sums_by_dialogue(labels, predictions, dialogues)
    chosen = resampled_regression_scores(sums[..., [1], :], draws=10)
    alone = resampled(labels[:, [1]], predictions[..., [1]], dialogues, draws=10)
    for name in chosen:
        np.testing.assert_allclose(chosen[name].drawn, alone[name].drawn, rtol=1e-9)


def test_interval_over_dialogues_has_the_width_of_the_normal_distribution():
    labels, predictions, _ = random_system(seeds=1, dialogues=400, turns=1)
    found = estimate(resampled(labels, predictions, np.arange(400))["mae"])
    errors = np.abs(predictions[0] - labels)
    half = 1.96 * errors.std() / 20
    assert found.mean == pytest.approx(errors.mean())
    assert (found.low, found.high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.006)


def test_equal_systems_have_difference_0_and_p_1():
    scores = resampled(*random_system())
    for name in scores:
        assert difference(scores[name], scores[name]) == (0, 0, 0, 1)


def test_the_better_system_has_less_error_and_more_correlation():
    good, bad = resampled(*random_system(noise=0.1)), resampled(*random_system(noise=1.0, seed=1))
    for name in good:
        found, turned = difference(good[name], bad[name]), difference(bad[name], good[name])
        assert (found.low > 0) if more_is_better(name) else (found.high < 0), name
        assert found.p == turned.p == 2 / (1 + DRAWS)
        assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))
    assert holm([2 / (1 + DRAWS)] * 3) == pytest.approx([6 / (1 + DRAWS)] * 3)


def test_pairing_narrows_the_interval_of_similar_systems():
    labels, predictions, dialogues = random_system(seeds=1, dialogues=100)
    changed = predictions.copy()
    changed[0, :20] = labels[:20]
    found = difference(resampled(labels, changed, dialogues)["mae"], resampled(labels, predictions, dialogues)["mae"])
    alone = estimate(resampled(labels, predictions, dialogues)["mae"])
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_p_values_of_equal_systems_are_not_too_small():
    small = 0
    for trial in range(60):
        pair = [resampled(*random_system(seed=1000 + 2 * trial + number), draws=200)["mae"] for number in range(2)]
        small += difference(*pair).p <= 0.05
    assert small <= 8  # 3 are expected; three seeds tell little of their own spread


def test_repetitions_of_a_seed_are_averaged():
    labels, predictions, dialogues = random_system(seeds=6)
    together = resampled(labels, predictions.reshape(3, 2, *labels.shape), dialogues)["corr"]
    apart = resampled(labels, predictions, dialogues)["corr"]
    np.testing.assert_allclose(together.observed, apart.observed.reshape(3, 2).mean(1))
    np.testing.assert_allclose(together.drawn, apart.drawn.reshape(-1, 3, 2).mean(2))


def test_a_score_that_is_undefined_for_a_seed_is_nan():
    labels, predictions, dialogues = random_system()
    predictions[1] = 0.3
    scores = resampled(labels, predictions, dialogues)
    found = estimate(scores["corr"])
    assert np.isnan([*found]).all()
    assert np.isnan([*difference(scores["corr"], scores["corr"])]).all()
    assert np.isfinite([*estimate(scores["mae"]), *estimate(scores["ccc"])]).all()
    assert np.isfinite([*estimate(of_seeds(scores["corr"], [0, 2]))]).all()


def test_draws_in_which_a_score_is_undefined_are_left_out():
    """Predictions that are constant within each of three dialogues: a draw of one of them has no correlation."""
    labels, predictions, dialogues = random_system(dialogues=3, seeds=2)
    predictions = np.broadcast_to(np.array([0.1, 0.2, 0.4])[dialogues][:, None], predictions.shape)
    scores = resampled(labels, predictions, dialogues)["corr"]
    undefined = np.isnan(scores.drawn).mean()
    assert undefined == pytest.approx(1 / 9, abs=0.03)
    found = estimate(scores)
    assert found.low < found.mean < found.high
    assert difference(scores, scores) == (0, 0, 0, 1)
    assert of_seeds(scores, [0]).drawn.shape == (DRAWS, 1)


@pytest.mark.timeout(60)
def test_a_study_is_compared_in_seconds():
    """25 systems, 5 seeds, 1,152 dialogues, three targets."""
    sums = np.random.default_rng(0).random(size=(5, 1152, 3, 8))
    full = resampled_regression_scores(sums)["mae"]
    for _ in range(24):
        difference(resampled_regression_scores(sums)["mae"], full)
