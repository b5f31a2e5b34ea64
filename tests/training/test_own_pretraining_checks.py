"""What a run that pre-trains first would stumble over later is refused before its first step."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.studies.ablation import ablate
from mister_e_hf.training.own_pretraining import check_own_pretraining
from mister_e_hf.training.preflight import check_run
from mister_e_hf.training.recipe import Recipe
from support.named_speech import write_named

NAMES = ["pitch", "rate"]


@pytest.fixture
def own(tmp_path) -> Path:
    return write_named(tmp_path / "own", "own", NAMES, labels=["joy", "anger"])


def recipe(own: Path, *further: Path, pretrained: str | None = "self", **pretraining) -> Recipe:
    model = {"model_type": "emo_caps", "hidden_size": 4, "num_attention_heads": 2}
    model |= {"speech_embedding_dim": 2, "text_embedding_dim": 3}
    return Recipe(
        {
            "model": model,
            "corpus": {"path": str(own), "labels": ["joy", "anger"]},
            "training": {"use_cpu": True, "pretrained": pretrained, "num_train_epochs": 1},
            "pretraining": {"use_cpu": True, "corpora": list(map(str, further)), **pretraining},
        }
    )


def test_corpora_that_fit_are_accepted(own, tmp_path):
    other = write_named(tmp_path / "other", "other", NAMES, text=None)
    check_run(recipe(own, other), tmp_path / "run")
    nothing_to_check = recipe(own, tmp_path / "missing", pretrained=None)
    check_own_pretraining(nothing_to_check, tmp_path / "run")


def test_corpora_that_do_not_fit_are_refused_before_a_run_and_before_a_study(own, tmp_path):
    missing = recipe(own, tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="missing"):
        check_run(missing, tmp_path / "run")
    wide = recipe(own, write_named(tmp_path / "wide", "wide", [*NAMES, "loudness"]))
    message = "pretraining.corpora: the speech vectors of .*wide have width 3, those that the model reads 2"
    with pytest.raises(InputError, match=message):
        check_run(wide, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        ablate(wide, tmp_path / "study", [0], 2, variants=["full"], report=lambda line: None)
    assert not (tmp_path / "study").exists() and not (tmp_path / "run").exists()


def test_a_corpus_with_the_dialogues_that_score_a_run_is_refused(own, tmp_path):
    other = write_named(tmp_path / "other", "other", NAMES)
    table = pq.read_table(other / "train.parquet")
    pq.write_table(table.set_column(0, "dialogue_id", pa.array(["own-test-0", "new"])), other / "train.parquet")
    with pytest.raises(InputError, match=r"'own-test-0' is in '.*own' \(test\) and in '.*other' \(train\)"):
        check_run(recipe(own, other), tmp_path / "run")


def test_settings_out_of_range_are_refused(own, tmp_path):
    with pytest.raises(InputError, match="section 'pretraining': mask_rate must be"):
        check_run(recipe(own, mask_rate=2.0), tmp_path / "run")
