import numpy as np
import pytest

from mister_e_hf.evaluation.metrics import emotion_scores
from mister_e_hf.evaluation.significance import (
    DRAWS,
    SeedScores,
    confusion_by_dialogue,
    difference,
    estimate,
    holm,
    of_seeds,
    resampled_scores,
)


def random_system(seeds=3, dialogues=40, turns=8, classes=4, right=0.6, seed=0):
    """Labels (N,), predictions (S, N) that are right that often, and dialogues (N,)."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(classes, size=dialogues * turns)
    guesses = generator.integers(classes, size=(seeds, dialogues * turns))
    hit = generator.random(guesses.shape) < right
    return labels, np.where(hit, labels, guesses), np.repeat(np.arange(dialogues), turns)


def weighted_f1(*case, classes=4, **options) -> SeedScores:
    return resampled_scores(confusion_by_dialogue(*case, classes), **options)["weighted_f1"]


def test_confusion_counts_every_scored_turn_once():
    labels = np.array([0, 1, -100, 1, 0])
    predictions = np.array([[0, 0, 1, 1, -1], [1, 1, 1, 1, 1]])
    confusion = confusion_by_dialogue(labels, predictions, np.array(["a", "a", "b", "c", "c"]), 2)
    first = [[[1, 0], [1, 0]], [[0, 0], [0, 1]]]  # dialogue b has no scored turn; the last turn of c was not there
    second = [[[0, 1], [0, 1]], [[0, 1], [0, 1]]]
    np.testing.assert_array_equal(confusion, [first, second])


def test_nothing_to_score_raises():
    with pytest.raises(ValueError, match="No turn has a label"):
        confusion_by_dialogue(np.array([-100]), np.array([[0]]), np.array(["a"]), 2)


def test_observed_scores_match_the_metrics():
    labels, predictions, dialogues = random_system()
    found = resampled_scores(confusion_by_dialogue(labels, predictions, dialogues, 4), draws=10)
    for seed, row in enumerate(predictions):
        expected = emotion_scores(labels, np.eye(4)[row], list("abcd"))
        assert found["weighted_f1"].observed[seed] == pytest.approx(expected["weighted_f1"])
        assert found["macro_f1"].observed[seed] == pytest.approx(expected["macro_f1"])


def test_one_dialogue_and_one_seed_have_no_spread():
    found = estimate(weighted_f1(*random_system(seeds=1, dialogues=1, turns=30)))
    assert found.sd is None
    assert found.low == pytest.approx(found.mean) == pytest.approx(found.high)


def test_mean_and_sample_standard_deviation_over_seeds():
    found = estimate(SeedScores(np.array([0.5, 0.6, 0.7]), np.tile([0.5, 0.6, 0.7], (DRAWS, 1))))
    assert (found.mean, found.sd) == pytest.approx((0.6, 0.1))


def test_interval_over_seeds_alone():
    """Two seeds, identical dialogues: the mean of two draws is low, middle or high with chances 1/4, 1/2, 1/4."""
    found = estimate(SeedScores(np.array([0.4, 0.6]), np.tile([0.4, 0.6], (DRAWS, 1))))
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))


def test_interval_over_dialogues_has_the_width_of_the_binomial():
    """One turn per dialogue; the weighted F1 of two balanced classes with symmetric errors is about the accuracy."""
    labels = np.tile([0, 1], 200)
    wrong = np.arange(400) % 8 < 2  # a quarter, of either class as many
    found = estimate(weighted_f1(labels, np.where(wrong, 1 - labels, labels)[None], np.arange(400), classes=2))
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found.mean == pytest.approx(0.75)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.008)


def test_equal_systems_have_difference_0_and_p_1():
    scores = weighted_f1(*random_system())
    assert difference(scores, scores) == (0, 0, 0, 1)


def test_difference_is_antisymmetric():
    good, bad = weighted_f1(*random_system()), weighted_f1(*random_system(right=0.5, seed=1))
    found, turned = difference(good, bad), difference(bad, good)
    assert found.mean == pytest.approx(estimate(good).mean - estimate(bad).mean)
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low))
    assert found.p == turned.p


def test_p_value_of_an_always_better_system_is_the_smallest():
    labels, predictions, dialogues = random_system(dialogues=100)
    found = difference(
        weighted_f1(labels, labels[None].repeat(3, 0), dialogues), weighted_f1(*random_system(dialogues=100))
    )
    assert found.p == 2 / (1 + DRAWS)
    assert found.low > 0


def test_p_value_matches_its_definition():
    """Of four draws one is above 0: k = 1, p = 2 (1 + 1) / (1 + 4)."""
    first = SeedScores(np.array([0.4]), np.array([[0.4], [0.4], [0.4], [0.6]]))
    second = SeedScores(np.array([0.5]), np.full((4, 1), 0.5))
    assert difference(first, second).p == pytest.approx(0.8)


def test_pairing_narrows_the_interval_of_similar_systems():
    labels, predictions, dialogues = random_system(seeds=1, dialogues=100)
    changed = predictions.copy()
    changed[0, :20] = labels[:20]
    found, alone = (
        difference(weighted_f1(labels, changed, dialogues), weighted_f1(labels, predictions, dialogues)),
        estimate(weighted_f1(labels, predictions, dialogues)),
    )
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_p_values_of_equal_systems_are_not_too_small():
    small = 0
    for trial in range(60):
        pair = [weighted_f1(*random_system(seeds=3, seed=1000 + 2 * trial + number), draws=200) for number in range(2)]
        small += difference(*pair).p <= 0.05
    assert small <= 8  # 3 are expected; three seeds tell little of their own spread


def test_pairing_scores_of_other_draws_raises():
    with pytest.raises(ValueError, match=r"\(2000, 3\) and \(2000, 2\)"):
        difference(weighted_f1(*random_system()), weighted_f1(*random_system(seeds=2)))
    three, two = weighted_f1(*random_system()), weighted_f1(*random_system(seeds=2))
    assert difference(of_seeds(three, [0, 2]), two).mean == pytest.approx(
        three.observed[[0, 2]].mean() - two.observed.mean()
    )


def test_repetitions_of_a_seed_are_averaged():
    labels, predictions, dialogues = random_system(seeds=6)
    together = weighted_f1(labels, predictions.reshape(3, 2, -1), dialogues)
    apart = weighted_f1(labels, predictions, dialogues)
    np.testing.assert_allclose(together.observed, apart.observed.reshape(3, 2).mean(1))
    np.testing.assert_allclose(together.drawn, apart.drawn.reshape(-1, 3, 2).mean(2))


def test_results_are_deterministic():
    assert estimate(weighted_f1(*random_system())) == estimate(weighted_f1(*random_system()))


# Holm


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_caps_at_one_and_keeps_a_single_value():
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_does_not_depend_on_the_order():
    values = np.random.default_rng(0).random(20) ** 3
    values[5] = values[7]
    shuffled = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(np.array(holm(values))[shuffled], holm(values[shuffled]))
    assert (np.array(holm(values)) >= values).all()


@pytest.mark.timeout(100)
def test_a_study_is_compared_in_seconds():
    """25 systems, 5 seeds, 1,152 dialogues of 7 classes."""
    confusion = np.random.default_rng(0).integers(0, 3, size=(5, 1152, 7, 7))
    full = resampled_scores(confusion)["weighted_f1"]
    for _ in range(24):
        difference(resampled_scores(confusion)["weighted_f1"], full)
