"""mister-e pretrain --dry_run: memory and time of pre-training, also of a run that pre-trains itself."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import PretrainingTrainer, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.demo import SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.training.dry_run import dry_run, dry_run_of_pretraining
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.training.recipe import Recipe
from support.pretraining_run import pretraining_arguments, tiny_pretraining_model, unlabelled

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


def test_dialogues_of_one_vector_are_refused_and_no_loss_of_validation_is_made_up(corpus, tmp_path, capsys):
    single, last = tmp_path / "single", tmp_path / "last"
    for folder in (single, last):
        folder.mkdir()
    table = pq.read_table(corpus / "train.parquet")
    pq.write_table(table, last / "train.parquet")
    one = {
        name: [each[:1] if isinstance(each, list) else each for each in column]
        for name, column in table.to_pydict().items()
    }
    pq.write_table(pa.table(one, schema=table.schema), single / "train.parquet")
    text = recipe(corpus).changed({"model.modalities": ["text"], "pretraining.contrastive_weight": 0.0})
    with pytest.raises(InputError, match="one vector alone"):
        pretrain(text, tmp_path / "run", [str(single)])
    assert pretrain(recipe(corpus), tmp_path / "both", [str(last)])["validation"] is None
    line = capsys.readouterr().err.splitlines()[-1]
    assert "last epoch kept" in line and "validation" not in line


def test_validation_without_a_hidden_vector_is_said(tmp_path, caplog):
    trainer = PretrainingTrainer(
        tiny_pretraining_model(), pretraining_arguments(tmp_path, mask_rate=1e-6), train_dataset=unlabelled()
    )
    assert trainer.evaluate(unlabelled())["eval_reconstruction_loss"] == 0
    assert "None of the few vectors" in caplog.text
