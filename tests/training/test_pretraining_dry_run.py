"""mister-e pretrain --dry_run: memory and time of pre-training, also of a run that pre-trains itself."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mister_e_hf import cli
from mister_e_hf.corpora.demo import SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.training.dry_run import dry_run, dry_run_of_pretraining
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.training.recipe import Recipe

SHORT = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, table in demo_corpus(1, sizes={"train": 8, "validation": 4, "test": 4}).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def recipe(corpus: Path, **training) -> Recipe:
    widths = {"speech_embedding_dim": SPEECH_DIM, "text_embedding_dim": TEXT_DIM}
    model = {"model_type": "emo_caps", "hidden_size": 8, "num_attention_heads": 2, **widths}
    pretraining = {**SHORT, "num_train_epochs": 3, "per_device_train_batch_size": 3}
    return Recipe(
        {
            "model": model,
            "corpus": {"path": str(corpus)},
            "training": {**SHORT, "num_train_epochs": 2, **training},
            "pretraining": pretraining,
        }
    )


def test_it_counts_the_steps_of_the_run_and_writes_nothing(corpus, tmp_path):
    (cost,) = dry_run_of_pretraining(recipe(corpus), tmp_path / "run")
    assert cost["stage"] == "EMO-Caps, pre-training"
    assert cost["seconds_a_step"] > 0 and cost["hours"] > 0
    assert not (tmp_path / "run").exists()
    pretrain(recipe(corpus), tmp_path / "run")
    state = sorted((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))[-1]
    assert cost["steps"] == json.loads(state.read_text())["max_steps"] == 9


def test_the_command_prints_it_and_refuses_what_the_run_would_refuse(corpus, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(corpus).to_dict()), encoding="utf-8")
    command = ["pretrain", str(file), "--output_dir", str(tmp_path / "run"), "--dry_run"]
    assert cli.main([*command, "--splits", "train", "validation", "--json"]) == 0
    assert [cost["stage"] for cost in json.loads(capsys.readouterr().out)["stages"]] == ["EMO-Caps, pre-training"]
    assert cli.main(command) == 0 and "hours to the end" in capsys.readouterr().out
    assert cli.main([*command, "--mask_rate", "2"]) == 2 and "mask_rate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("modalities", [["speech", "text"], ["text"]])
def test_a_run_that_pretrains_itself_counts_it_for_each_seed(corpus, tmp_path, modalities):
    own = recipe(corpus, pretrained="self").changed({"model.modalities": modalities})
    costs = dry_run(own, tmp_path / "run", (0, 1))
    assert [(cost["stage"], cost["steps"]) for cost in costs] == [("EMO-Caps, pre-training", 18), ("EMO-Caps", 4)]
