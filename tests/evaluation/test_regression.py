import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score

from mister_e_hf.evaluation.metrics import SCORES
from mister_e_hf.evaluation.regression import (
    REGRESSION_SCORES,
    more_is_better,
    regression_intervals,
    regression_scores,
    score_names,
    scores_from_sums,
    sums_by_dialogue,
)

NAN = float("nan")
VAD = ["valence", "activation", "dominance"]


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def sentiment(labels, predictions, bins: str | None = None) -> dict:
    return regression_scores(column(*labels), column(*predictions), ["sentiment"], bins)


def random_scores(turns: int, targets: int = 1, seed: int = 0, scale: float = 1.5, digits: int = 1):
    """Labels and predictions of one digit, so that many are on edges, halves or zero; dialogues of about 7 turns."""
    generator = np.random.default_rng(seed)
    labels = generator.normal(size=(turns, targets)) * scale
    predictions = 0.7 * labels + 0.6 * scale * generator.normal(size=labels.shape) + 0.1
    return labels.round(digits), predictions.round(digits), np.sort(generator.integers(turns // 7 + 1, size=turns))


# Error and correlations


@pytest.mark.parametrize("turns", [2, 3, 50, 2000])
def test_error_and_correlation_match_numpy(turns):
    labels, predictions, _ = random_scores(turns, seed=turns, digits=6)
    found = regression_scores(labels, predictions, ["sentiment"])
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, predictions), rel=1e-12)
    assert found["corr"] == pytest.approx(np.corrcoef(labels[:, 0], predictions[:, 0])[0, 1], rel=1e-9)
    assert found["num_utterances"] == turns


def test_concordance_by_hand():
    # y 1 2 3, p 2 3 4: both variances 2/3, covariance 2/3, means 1 apart: 2 * 2/3 / (4/3 + 1) = 4/7
    assert sentiment([1, 2, 3], [2, 3, 4])["ccc"] == pytest.approx(4 / 7)
    # p = 2 y: variances 2/3 and 8/3, covariance 4/3, means 2 and 4: 8/3 / (10/3 + 4) = 4/11
    assert sentiment([1, 2, 3], [2, 4, 6])["ccc"] == pytest.approx(4 / 11)
    assert sentiment([1, 2, 3], [1, 2, 3])["ccc"] == pytest.approx(1)
    assert sentiment([1, 2, 3], [3, 2, 1])["ccc"] == pytest.approx(-1)


def test_concordance_is_at_most_the_correlation():
    labels, predictions, _ = random_scores(300)
    found = regression_scores(labels, predictions, ["sentiment"])
    assert found["ccc"] < found["corr"]
    y, p = labels[:, 0], predictions[:, 0]
    deviations, means = (y.std(), p.std()), (y.mean(), p.mean())
    bias = 2 * np.prod(deviations) / (y.var() + p.var() + (means[0] - means[1]) ** 2)  # Lin's C_b
    assert found["ccc"] == pytest.approx(found["corr"] * bias)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_scores_far_from_zero_lose_no_digits(offset):
    labels, predictions, _ = random_scores(500, digits=6)
    near = regression_scores(labels, predictions, ["s"])
    far = regression_scores(labels + offset, predictions + offset, ["s"])
    for name in REGRESSION_SCORES:
        assert far[name] == pytest.approx(near[name], rel=1e-8), name


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e3])
def test_constant_predictions_have_no_correlation(value):
    found = sentiment([0.3, -1.2, 2.0], [value] * 3)
    assert found["corr"] is None
    assert found["by_target"]["sentiment"]["corr"] is None
    assert found["undefined"] == ["Corr of sentiment is undefined: its predictions are constant"]
    assert found["ccc"] == 0
    assert found["mae"] == pytest.approx(np.abs(np.array([0.3, -1.2, 2.0]) - value).mean())


def test_constant_labels_have_no_correlation():
    assert sentiment([0.1] * 3, [0.3, 0.2, 0.7])["undefined"] == [
        "Corr of sentiment is undefined: its labels are constant"
    ]
    found = sentiment([0.1] * 3, [0.1] * 3)
    assert (found["mae"], found["corr"], found["ccc"]) == (0, None, None)
    assert found["undefined"][1] == "CCC of sentiment is undefined: its labels and predictions are one constant"


@pytest.mark.parametrize("offset", [1e6, -3e7, 1e9])
def test_only_constant_values_have_no_correlation_however_far_apart_both_are(offset):
    """Labels far from zero and predictions near zero, or the other way round: sums about one value lose all digits."""
    labels, predictions, _ = random_scores(200, digits=6)
    near = regression_scores(labels, predictions, ["s"])["corr"]
    for one, other in ((labels + offset, predictions), (labels, predictions + offset)):
        found = regression_scores(one, other, ["s"])
        assert "undefined" not in found
        assert found["corr"] == pytest.approx(near, rel=1e-5)
        assert found["mae"] == pytest.approx(abs(offset), rel=1e-3)
        assert abs(found["ccc"]) < 1e-9
    assert regression_scores(labels, np.full_like(labels, offset + 0.1), ["s"])["corr"] is None


def test_nearly_constant_predictions_have_a_correlation():
    labels, predictions, _ = random_scores(100, digits=6)
    tiny = predictions * 1e-4 + 0.5
    found = regression_scores(labels, tiny, ["s"])
    assert found["corr"] == pytest.approx(regression_scores(labels, predictions, ["s"])["corr"], rel=1e-6)
    assert "undefined" not in found


# CMU-MOSI and CMU-MOSEI


def test_hand_case_of_zeros():
    found = sentiment([-1, 0, 0, 1, 2], [0, 0, -0.1, 0, 1], "mosi")
    assert found["acc2_has0"] == pytest.approx(3 / 5)  # labels - + + + +, predictions + + - + +
    assert found["f1_has0"] == pytest.approx(4 / 5 * 3 / 4 + 1 / 5 * 0)
    assert found["acc2_non0"] == pytest.approx(2 / 3)  # labels - + +, predictions - - +
    assert found["f1_non0"] == pytest.approx(1 / 3 * 2 / 3 + 2 / 3 * 2 / 3)
    assert found["acc7"] == pytest.approx(2 / 5)
    assert found["acc5"] == pytest.approx(2 / 5)
    assert found["acc3"] == pytest.approx(3 / 5)  # 2 and 1 are both 1 there


def test_an_exact_zero_is_positive_with_zeros_and_negative_without():
    found = sentiment([1.0, 1.0], [0.0, 0.0], "mosi")
    assert (found["acc2_has0"], found["acc2_non0"]) == (1, 0)
    assert sentiment([1.0, 0.5], [0.0, 0.0], "sims")["acc2"] == 0


@pytest.mark.parametrize(
    ("label", "prediction", "same"),
    [(0, 0.5, 1), (1, 0.5, 0), (2, 1.5, 1), (1, 1.5, 0), (-2, -2.5, 1), (-3, -2.5, 0), (2, 2.5, 1), (0, -0.5, 1)],
)
def test_halves_are_rounded_to_even(label, prediction, same):
    assert sentiment([label], [prediction], "mosi")["acc7"] == same


def test_values_beyond_the_range_are_clipped():
    found = sentiment([3, -3, 2, 1], [7, -9, 3, 3], "mosi")
    assert (found["acc7"], found["acc5"], found["acc3"]) == (2 / 4, 3 / 4, 1)
    assert found["mae"] == pytest.approx((4 + 6 + 1 + 2) / 4)  # not clipped


def test_without_a_score_other_than_zero_there_is_nothing_non_zero():
    found = sentiment([0, 0], [0.5, -0.5], "mosi")
    assert found["acc2_non0"] is None
    assert found["f1_non0"] is None
    assert found["acc2_has0"] == 0.5
    assert found["undefined"][1] == "Acc-2 without zeros of sentiment is undefined: its labels are all 0"


@pytest.mark.parametrize("seed", range(5))
def test_mosi_matches_scikit_learn(seed):
    labels, predictions, _ = random_scores(200, seed=seed)
    found = regression_scores(labels, predictions, ["sentiment"], "mosi")
    y, p = labels[:, 0], predictions[:, 0]
    for name, limit in (("acc7", 3), ("acc5", 2), ("acc3", 1)):
        expected = accuracy_score(*(np.round(np.clip(values, -limit, limit)).astype(int) for values in (y, p)))
        assert found[name] == pytest.approx(expected), name
    has0, non0 = (y >= 0, p >= 0), (y[y != 0] > 0, p[y != 0] > 0)
    assert found["acc2_has0"] == pytest.approx(accuracy_score(*has0))
    assert found["f1_has0"] == pytest.approx(f1_score(*has0, average="weighted"))
    assert found["acc2_non0"] == pytest.approx(accuracy_score(*non0))
    assert found["f1_non0"] == pytest.approx(f1_score(*non0, average="weighted"))
    assert found["acc2_has0"] != found["acc2_non0"]


# CH-SIMS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "three", "five", "positive"),
    [
        (-1.0, 0, 0, 0),
        (-0.7, 0, 0, 0),
        (-0.6, 0, 1, 0),
        (-0.1, 0, 1, 0),
        (0.0, 1, 2, 0),
        (0.1, 1, 2, 1),
        (0.2, 2, 3, 1),
        (0.7, 2, 3, 1),
        (0.8, 2, 4, 1),
        (1.0, 2, 4, 1),
        (5.0, 2, 4, 1),
    ],
)
def test_an_edge_belongs_to_the_lower_bin(value, three, five, positive, dtype):
    inside = {"acc3": [-0.5, 0.05, 0.5], "acc5": [-0.9, -0.5, 0.05, 0.5, 0.9], "acc2": [-0.5, 0.5]}
    for name, place in (("acc3", three), ("acc5", five), ("acc2", positive)):
        for bin, label in enumerate(inside[name]):
            found = regression_scores(
                np.array([[label]], dtype=dtype), np.array([[value]], dtype=dtype), ["sentiment"], "sims"
            )
            assert found[name] == (bin == place), (name, label)


def test_weak_scores_by_hand():
    # within ±0.4: -0.4 (predicted -), 0.0 (predicted +), 0.4 (predicted +); 0.5 is not weak
    found = sentiment([-0.4, 0.0, 0.4, 0.5], [-0.1, 0.1, 0.2, -0.3], "sims")
    assert found["acc2_weak"] == pytest.approx(2 / 3)
    assert found["acc2"] == pytest.approx(2 / 4)
    strong = sentiment([-0.5, 0.6], [-0.1, 0.1], "sims")
    assert strong["acc2_weak"] is None
    assert strong["undefined"] == ["Acc-2 weak of sentiment is undefined: no label is within ±0.4"]


def test_labels_and_predictions_are_clipped_to_one():
    found = sentiment([1.0, -1.0, 0.5], [3.0, -2.0, 0.5], "sims")
    assert (found["mae"], found["r2"]) == (0, 1)
    assert found["corr"] == pytest.approx(1)
    constant = sentiment([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], "sims")
    assert constant["r2"] is None
    assert constant["undefined"][0].endswith("its labels are constant, once they are within ±1")


@pytest.mark.parametrize("seed", range(5))
def test_sims_matches_scikit_learn(seed):
    labels, predictions, _ = random_scores(200, seed=seed, scale=0.6)
    found = regression_scores(labels, predictions, ["sentiment"], "sims")
    y, p = (values[:, 0].astype(np.float32).clip(-1, 1) for values in (labels, predictions))
    edges = {"acc2": [-1.01, 0, 1.01], "acc3": [-1.01, -0.1, 0.1, 1.01], "acc5": [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]}
    binned = {
        name: [np.digitize(values, np.float32(bins), right=True) for values in (y, p)] for name, bins in edges.items()
    }
    for name, values in binned.items():
        assert found[name] == pytest.approx(accuracy_score(*values)), name
    assert found["f1"] == pytest.approx(f1_score(*binned["acc2"], average="weighted"))
    weak = np.abs(y) <= np.float32(0.4)
    assert found["acc2_weak"] == pytest.approx(accuracy_score(*(values[weak] for values in binned["acc2"])))
    clipped = labels.clip(-1, 1), predictions.clip(-1, 1)
    assert found["r2"] == pytest.approx(r2_score(*clipped))
    assert found["mae"] == pytest.approx(mean_absolute_error(*clipped))
    assert found["corr"] == pytest.approx(np.corrcoef(clipped[0][:, 0], clipped[1][:, 0])[0, 1])


# Several targets and missing scores


def test_scores_are_means_over_targets():
    labels, predictions, _ = random_scores(150, targets=3)
    found = regression_scores(labels, predictions, VAD)
    assert list(found["by_target"]) == VAD
    for place, target in enumerate(VAD):
        alone = regression_scores(labels[:, [place]], predictions[:, [place]], [target])
        assert found["by_target"][target] == pytest.approx(alone["by_target"][target])
    for name in REGRESSION_SCORES:
        assert found[name] == pytest.approx(np.mean([block[name] for block in found["by_target"].values()]))


def test_missing_scores_are_left_out_of_their_target_alone():
    labels, predictions, _ = random_scores(60, targets=2)
    labels[::3, 0] = NAN
    labels[::2] = NAN
    found = regression_scores(labels, predictions, ["a", "b"])
    assert found["num_utterances"] == 30
    assert [block["num_utterances"] for block in found["by_target"].values()] == [20, 30]
    for place, target in enumerate("ab"):
        kept = ~np.isnan(labels[:, place])
        alone = regression_scores(labels[kept][:, [place]], predictions[kept][:, [place]], [target])
        assert found["by_target"][target] == pytest.approx(alone["by_target"][target])


def test_one_undefined_target_leaves_the_mean_undefined():
    labels, predictions, _ = random_scores(20, targets=2)
    predictions[:, 1] = 0.2
    found = regression_scores(labels, predictions, ["a", "b"])
    assert found["corr"] is None
    assert found["by_target"]["a"]["corr"] is not None
    assert found["mae"] is not None
    assert found["undefined"] == ["Corr of b is undefined: its predictions are constant"]


@pytest.mark.parametrize(
    ("labels", "predictions", "names", "bins", "message"),
    [
        ([[NAN], [NAN]], [[0.0], [0.0]], ["s"], None, "No turn has a score of s"),
        ([[0.0, NAN]], [[0.0, 0.0]], ["a", "b"], None, "No turn has a score of b"),
        ([[0.0]], [[NAN]], ["s"], None, "predicted scores are not finite"),
        ([[0.0]], [[float("inf")]], ["s"], None, "predicted scores are not finite"),
        ([[float("inf")]], [[0.0]], ["s"], None, "labels hold infinity"),
        ([0.0], [0.0], ["s"], None, r"must be \(turns, 1\).*got \(1,\)"),
        ([[0.0]], [[0.0, 1.0]], ["s"], None, r"must be \(turns, 1\).*got \(1, 1\) and \(1, 2\)"),
        ([[0.0]], [[0.0]], ["a", "b"], None, r"must be \(turns, 2\)"),
        ([[0.0, 0.0]], [[0.0, 1.0]], ["a", "b"], "mosi", "Bins are for one target"),
        ([[0.0]], [[0.0]], ["s"], "mosei", "Unknown bins 'mosei'; expected one of mosi, sims"),
    ],
)
def test_wrong_arguments_raise(labels, predictions, names, bins, message):
    for function, more in ((regression_scores, ()), (regression_intervals, (np.zeros(len(labels)),))):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels), np.array(predictions), *more, names, bins)


def test_more_is_better_of_every_score_but_errors():
    every = {*SCORES, *score_names("mosi"), *score_names("sims")}
    assert {score for score in every if not more_is_better(score)} == {"mae", "expected_calibration_error"}
    with pytest.raises(ValueError, match="Unknown score 'rmse'; expected one of acc2, "):
        more_is_better("rmse")


@pytest.mark.parametrize("bins", [None, "mosi", "sims"])
def test_results_hold_every_score_that_is_listed(bins):
    labels, predictions, _ = random_scores(40)
    found = regression_scores(labels, predictions, ["s"], bins)
    assert [name for name, value in found.items() if isinstance(value, float)] == list(score_names(bins))


# Intervals


def intervals_by_hand(labels, predictions, dialogues, names, bins, draws):
    """The scores of dialogues that are drawn and joined one by one."""
    count = len(np.unique(dialogues))
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws)
    samples = []
    for times in drawn:
        rows = np.repeat(np.arange(len(labels)), times[np.unique(dialogues, return_inverse=True)[1]])
        samples.append(regression_scores(labels[rows], predictions[rows], names, bins))
    return samples


@pytest.mark.parametrize(("bins", "targets"), [(None, 3), ("mosi", 1), ("sims", 1)])
def test_intervals_are_those_of_drawn_dialogues(bins, targets):
    labels, predictions, dialogues = random_scores(140, targets, scale=0.6)
    labels[::9, 0] = NAN
    shuffled = np.random.default_rng(1).permutation(140)  # turns of a dialogue need not follow one another
    labels, predictions, dialogues = labels[shuffled], predictions[shuffled], dialogues[shuffled]
    names = VAD[:targets]
    found = regression_intervals(labels, predictions, dialogues, names, bins, draws=40)
    samples = intervals_by_hand(labels, predictions, dialogues, names, bins, 40)
    for score in score_names(bins):
        expected = np.quantile([sample[score] for sample in samples], [0.025, 0.975])
        assert found[score] == pytest.approx(expected, rel=1e-9, abs=1e-12), score
        for target in names:
            expected = np.quantile([sample["by_target"][target][score] for sample in samples], [0.025, 0.975])
            assert found["by_target"][target][score] == pytest.approx(expected, rel=1e-9, abs=1e-12), score


def test_interval_of_one_dialogue_has_no_width():
    labels, predictions, _ = random_scores(40, scale=0.6)
    for bins in (None, "mosi", "sims"):
        scores = regression_scores(labels, predictions, ["s"], bins)
        intervals = regression_intervals(labels, predictions, np.array(["d"] * 40), ["s"], bins, draws=20)
        for name in score_names(bins):
            assert intervals[name] == pytest.approx([scores[name]] * 2, abs=1e-12), name


def test_width_matches_the_normal_distribution():
    labels, predictions, _ = random_scores(400, digits=6)
    errors = np.abs(labels - predictions)
    low, high = regression_intervals(labels, predictions, np.arange(400), ["s"], draws=4000)["mae"]
    half = 1.96 * errors.std() / 400**0.5
    assert [low, high] == pytest.approx([errors.mean() - half, errors.mean() + half], abs=0.01)


def test_undefined_draws_are_left_out():
    """Three dialogues with predictions that are constant in each: one draw in nine has a single dialogue."""
    labels = column(*np.arange(6) / 10)
    predictions, dialogues = column(0.1, 0.1, 0.2, 0.2, 0.4, 0.4), np.repeat(np.arange(3), 2)
    found = regression_intervals(labels, predictions, dialogues, ["s"])
    assert 0.5 < found["corr"][0] < found["corr"][1] <= 1
    varies_once = column(0.1, 0.2, 0.3, 0.3, 0.3, 0.3)  # in a dialogue that a third of the draws lack, (4/5)^5
    found = regression_intervals(labels, varies_once, np.array([0, 0, 1, 2, 3, 4]), ["s"])
    assert found["corr"][0] <= found["corr"][1]


def test_undefined_scores_have_no_interval():
    labels, _, dialogues = random_scores(70)
    found = regression_intervals(labels, np.full_like(labels, 0.1), dialogues, ["s"], "mosi")
    assert found["corr"] is None
    assert found["by_target"]["s"]["corr"] is None
    assert found["acc7"] is not None


def test_a_target_that_few_dialogues_have_is_left_out_of_draws_without_it():
    labels, predictions, dialogues = random_scores(200, targets=2)
    labels[dialogues > 2, 1] = NAN  # e^-3 = 5 % of the draws have none of three dialogues
    found = regression_intervals(labels, predictions, dialogues, ["a", "b"])
    assert np.isfinite([*found["mae"], *found["by_target"]["b"]["corr"]]).all()


@pytest.mark.timeout(60)
def test_intervals_of_a_large_split_take_seconds():
    labels, predictions, dialogues = random_scores(20_000, targets=3)
    start = time.perf_counter()
    regression_intervals(labels, predictions, dialogues, VAD)
    regression_intervals(labels[:, :1], predictions[:, :1], dialogues, ["s"], "mosi")
    assert time.perf_counter() - start < 20  # half a second on an idle core


# Sums


def test_sums_add_up_over_dialogues_and_seeds():
    labels, predictions, dialogues = random_scores(70)
    seeds = np.stack([predictions, predictions[::-1]])
    sums = sums_by_dialogue(labels, seeds, dialogues, "mosi")
    assert sums.shape[:3] == (2, len(np.unique(dialogues)), 1)
    np.testing.assert_allclose(sums[1], sums_by_dialogue(labels, predictions[::-1], dialogues, "mosi"))
    np.testing.assert_allclose(sums.sum(1), sums_by_dialogue(labels, seeds, np.zeros(70), "mosi")[:, 0], atol=1e-9)


def test_predictions_that_are_missing_in_one_set_are_left_out_there():
    labels, predictions, dialogues = random_scores(70)
    cut = predictions.copy()
    cut[::5] = NAN
    sums = sums_by_dialogue(labels, np.stack([predictions, cut]), dialogues, "sims").sum(1)
    kept = np.arange(70) % 5 > 0
    assert sums[:, 0, 0].tolist() == [70, 56]
    expected = regression_scores(labels[kept], predictions[kept], ["s"], "sims")
    for name, values in scores_from_sums(sums, "sims").items():
        assert values[1, 0] == pytest.approx(expected[name]), name
