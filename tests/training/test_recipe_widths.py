"""Widths of vectors that a recipe takes from the corpus, in training and in studies."""

from pathlib import Path

import pytest
import yaml

from mister_e_hf import Recipe, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.inference.stored_stages import load_model
from mister_e_hf.training.recipe_widths import take_widths
from support.small_recipes import ENCODERS, SECTIONS
from support.small_scores import VISUAL_DIM, write_score_corpus

WIDTHS = {"speech": 24, "text": 32, "visual": VISUAL_DIM}
QUICK = ["--use_cpu", "--num_train_epochs", "1", "--disable_tqdm"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    return write_score_corpus(tmp_path_factory.mktemp("vectors"), {"train": 8, "validation": 3, "test": 3})


@pytest.mark.parametrize(("name", "modalities"), [("own-small", ["speech", "text"]), ("own-video", list(WIDTHS))])
def test_recipes_for_own_corpora_train_on_vectors_of_any_width(vectors, tmp_path, capfd, name, modalities):
    words = ["--corpus", str(vectors), "--output_dir", str(tmp_path / "run"), *QUICK]
    assert cli.main(["train", name, *words]) == 0
    printed = capfd.readouterr().err
    assert "text_embedding_dim is 32, the width of the vectors of the corpus (the recipe's is 384)" in printed
    assert load_model(tmp_path / "run").config.widths == {name: WIDTHS[name] for name in modalities}
    assert cli.main(["train", name, *words]) == 0  # the record of the run has the widths, too
    assert "trained earlier" in capfd.readouterr().err


@pytest.mark.slow
def test_baselines_of_a_study_have_the_widths_of_the_corpus(vectors, tmp_path):
    words = ["--folds", "2", "--seeds", "0", "--variants", "full", "baseline_bc_lstm", "--corpus", str(vectors)]
    assert cli.main(["ablate", "own-small", "--out", str(tmp_path / "study"), *words, *QUICK]) == 0
    variants = yaml.safe_load((tmp_path / "study" / "study.yaml").read_text())["variants"]
    for name in ("full", "baseline_bc_lstm"):
        assert variants[name]["recipe"]["model"]["speech_embedding_dim"] == 24


def test_a_recipe_for_certain_vectors_refuses_others(vectors):
    made = Recipe(SECTIONS | ENCODERS | {"model": SECTIONS["model"] | {"speech_embedding_dim": 7}})
    made.override(["--corpus", str(vectors)])
    made.set("corpus.vectors", {"speech": "of a published encoder"})
    assert not list(take_widths(made))
    with pytest.raises(InputError, match="width 24, but the model expects speech_embedding_dim = 7"):
        made.read_corpus()
    made.set("corpus.vectors", None)
    (sentence,) = take_widths(made)
    assert sentence.startswith("speech_embedding_dim is 24") and made.read_corpus()
    assert not list(take_widths(made))


def test_widths_of_a_recipe_without_encoders_are_kept(vectors):
    made = Recipe(SECTIONS | {"model": SECTIONS["model"] | {"speech_embedding_dim": 7}})
    made.override(["--corpus", str(vectors)])
    assert not list(take_widths(made))


def test_a_study_says_which_baselines_keep_their_number_of_epochs(vectors, tmp_path, caplog):
    words = ["--folds", "2", "--seeds", "0", "--variants", "baseline_mult", "--corpus", str(vectors), *QUICK]
    words += ["--baselines.mult.model.hidden_size", "8"]
    assert cli.main(["ablate", "own-small", "--out", str(tmp_path / "study"), *words]) == 0
    assert "num_train_epochs 1 is for MiSTER-E alone; the baselines keep their own: mult 25 (" in caplog.text
