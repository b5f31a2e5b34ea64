import pytest

from mister_e_hf.base.score_names import SCORE_NAMES, in_per_cent, score_title
from mister_e_hf.evaluation.metrics import SCORES
from mister_e_hf.evaluation.regression import score_names


def test_every_score_has_a_name():
    scores = {*SCORES, *score_names(), *score_names("mosi"), *score_names("sims")}
    assert scores == set(SCORE_NAMES)
    assert len({each.title for each in SCORE_NAMES.values()}) == len(SCORE_NAMES)


def test_errors_and_correlations_are_not_in_per_cent():
    assert {name for name in SCORE_NAMES if not in_per_cent(name)} == {"mae", "corr", "ccc", "r2"}


@pytest.mark.parametrize(
    ("name", "title", "per_cent"),
    [
        ("weighted_f1", "weighted F1", True),
        ("eval_weighted_f1", "eval weighted F1", True),
        ("eval_speech_head_mae", "eval speech head MAE", False),
        ("eval_f1_non0", "eval F1 without zeros", True),
        ("eval_loss", "eval loss", False),
        ("loss", "loss", False),
    ],
)
def test_names_with_what_precedes_them(name, title, per_cent):
    assert (score_title(name), in_per_cent(name)) == (title, per_cent)
