"""Errors are found before the first step; what a corpus lacks is left out; a dry run reports memory and time."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest
import torch

from mister_e_hf import MisterEConfig, MisterEModel, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.threads import few_threads, use_threads
from mister_e_hf.corpora.dialogues import load_dialogues
from mister_e_hf.training import preflight, stages
from mister_e_hf.training.dry_run import _order, dry_run, format_costs
from mister_e_hf.training.recipe import Recipe
from support.small_demo import RECIPE, SHORT, small_demo


@pytest.fixture(scope="module")
def demo() -> Path:
    """Corpus and untrained backbones of the demo."""
    return small_demo() / "demo"


def words(demo: Path, corpus: Path | None = None) -> list[str]:
    backbones = [f"--{name}_encoder.backbone={demo / 'backbones' / name}" for name in ("speech", "text")]
    return ["--corpus", str(corpus or demo / "corpus"), *SHORT, *backbones]


def recipe_of(demo: Path, *more: str, corpus: Path | None = None) -> Recipe:
    return Recipe.load(RECIPE, [*words(demo, corpus), *more])


def without(modality: str):
    """A corpus whose turns lack it, in some splits."""

    def lack(row):
        for turn in row["utterances"]:
            turn["audio" if modality == "speech" else "text"] = None if modality == "speech" else ""
        return row

    return lack


@pytest.fixture(scope="module")
def lacking(demo, tmp_path_factory) -> dict[str, datasets.DatasetDict]:
    corpus = load_dialogues(demo / "corpus")
    return {name: corpus.map(without(name), features=corpus["train"].features) for name in ("speech", "text")}


WRONG = {
    "class weight of no label": (["--model.class_weights", "{happy: 2.0}"], "class_weights.*happy"),
    "heads": (["--model.num_attention_heads", "7"], "num_attention_heads"),
    "rate": (["--learning_rate", "-1"], "learning_rate must be a finite number above 0, got -1"),
    "temperature": (["--contrastive_temperature", "-1"], "contrastive_temperature must be"),
    "batch": (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be"),
    "terms without their experts": (["--experts", "speech"], "contrastive_weight needs the fusion expert's states"),
    "metric": (["--metric_for_best_model", "f1"], "metric_for_best_model must be one of"),
    "metric of an encoder": (["--text_encoder.training.metric_for_best_model", "f1"], "text_encoder.training.*one of"),
    "arguments of an encoder": (["--text_encoder.training.eval_strategy", "no"], "text_encoder.training.*needs evalu"),
    "a model of sound for text": (["--text_encoder.backbone", "@speech"], "text_encoder"),
    "an encoder's configuration": (["--text_encoder.embedding_dim", "0"], "text_encoder.*embedding_dim"),
    "folds": (["--text_encoder.folds", "1000"], "text_encoder.*folds must be from 2 to"),
    "pre-training first": (["--pretrained", "self", "--pretraining.mask_rate", "2"], "mask_rate must be"),
    "its corpora": (["--pretrained", "self", "--pretraining.corpora", "nowhere"], "No corpus folder at 'nowhere'"),
    "no encoder": (["--speech_encoder", "none", "--text_encoder", "none"], "nothing makes vectors"),
}


@pytest.mark.parametrize(("more", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_of_any_stage_raise_before_the_first(demo, tmp_path, more, message):
    more = [str(demo / "backbones" / word[1:]) if word[0] == "@" else word for word in more]
    with pytest.raises((InputError, OSError), match=f"(?s){message}"):
        stages.train(recipe_of(demo, *more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_split_raises_before_the_first_step(demo, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(demo / "corpus", corpus)
    for path in corpus.glob("test*"):
        path.unlink()
    with pytest.raises(InputError, match="no dialogues in test; it has train, validation"):
        stages.train(recipe_of(demo, corpus=corpus), tmp_path / "run")


@pytest.mark.parametrize("absent", ["speech", "text"])
def test_a_corpus_of_one_modality_trains_with_any_recipe(demo, lacking, tmp_path, monkeypatch, capsys, absent):
    present = {"speech": "text", "text": "speech"}[absent]
    monkeypatch.setattr(preflight, "load_dialogues", lambda source: lacking[absent])
    more = ["--experts", present] if present == "text" else []  # what a user may have named, too
    summary = stages.train(recipe_of(demo, *more), tmp_path / "run")
    assert set(summary["test"]) == {"mixture", present}
    said = capsys.readouterr().err
    assert f"{absent} encoder: skipped, no labelled turn of train has {absent}" in said
    experts = "" if more else f"model.experts is {present}, "
    assert f"nothing makes vectors of {absent}: {experts}training.contrastive_weight is 0" in said
    assert MisterEModel.from_pretrained(tmp_path / "run").config.experts == [present]
    assert not (tmp_path / "run" / f"{absent}_encoder").exists()
    # and its vectors alone
    vectors = Recipe.load(RECIPE, ["--corpus", str(tmp_path / "run" / "vectors"), *SHORT])
    for modality in ("speech", "text"):
        vectors.set(f"model.{modality}_embedding_dim", 32)
    assert set(stages.train(vectors, tmp_path / "again")["test"]) == {"mixture", present}


def test_unused_encoders_are_skipped(demo, tmp_path, capsys):
    plan = preflight.check_run(recipe_of(demo, "--speech_encoder", "none"), tmp_path)
    assert plan.modalities == ["text"] and plan.recipe.value("model.experts") == ["text"]
    terms = ["--contrastive_weight", "0", "--consistency_weight", "0"]
    plan = preflight.check_run(recipe_of(demo, "--experts", "speech", *terms), tmp_path)
    assert plan.modalities == ["speech"] and "text_encoder" not in plan.recipe.sections
    assert "text encoder: skipped, the model does not use it" in capsys.readouterr().err


SEEDS = {
    "twice": ([0, 1, 0], "seeds: 0 appears twice"),
    "negative": ([-1], "got -1"),
    "large": ([2**32], "got 4294967296"),
}


@pytest.mark.parametrize(("seeds", "message"), SEEDS.values(), ids=SEEDS)
def test_invalid_seeds_raise(demo, tmp_path, seeds, message):
    with pytest.raises(InputError, match=message):
        stages.train(recipe_of(demo), tmp_path, seeds)


def test_a_model_larger_than_memory_raises(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_memory", lambda: 4 * 1000)
    with pytest.raises(InputError, match="section 'model': its weights alone take .* GiB"):
        preflight.check_run(recipe_of(demo), tmp_path)


@pytest.mark.parametrize("place", ["file/run", "corpus"])
def test_dry_run_checks_that_the_folder_is_writable(demo, tmp_path, place):
    (tmp_path / "file").write_text("")
    recipe = recipe_of(demo)
    output = Path(recipe.corpus_path()) / "run" if place == "corpus" else tmp_path / place
    with pytest.raises(ValueError, match="run'.* (is a file|is an input|is in)"):
        preflight.check_run(recipe, output)
    with pytest.raises(ValueError, match="section 'model': num_attention_heads"):
        preflight.check_run(recipe_of(demo, "--model.num_attention_heads", "7"), tmp_path / "run")


def test_dry_run_tries_each_stage_and_writes_nothing(demo, tmp_path, capsys):
    command = ["train", str(RECIPE), *words(demo), "--output_dir", str(tmp_path / "run"), "--dry_run"]
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cost["stage"] for cost in told["stages"]] == ["speech encoder", "text encoder", "MiSTER-E"]
    assert all(cost["seconds_a_step"] > 0 and cost["steps"] >= 1 and cost["hours"] > 0 for cost in told["stages"])
    assert told["hours"] == pytest.approx(sum(cost["hours"] for cost in told["stages"]))
    assert not (tmp_path / "run").exists()
    text = format_costs(told["stages"])
    assert "seconds a step" in text and "GiB" in text and text.endswith("hours to the end")
    assert cli.main([*command, "--learning_rate", "-1"]) == 2


def test_dry_run_counts_the_steps_of_the_run(demo, tmp_path):
    one, two = (
        [cost["steps"] for cost in dry_run(recipe_of(demo, *more), tmp_path)]
        for more in ((), ("--num_train_epochs", "4"))
    )
    summary = stages.train(recipe_of(demo), tmp_path / "run")
    state = sorted((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))[-1]
    assert one[-1] == json.loads(state.read_text())["max_steps"] and summary
    assert one[:-1] == two[:-1] and two[-1] > one[-1]
    finished = dry_run(recipe_of(demo), tmp_path / "run")
    assert [cost["stage"] for cost in finished] == ["MiSTER-E"]


def test_dry_run_takes_the_longest_items_and_those_of_median_length():
    assert _order([5, 1, 9, 3, 7], 2) == [2, 4, 4, 0]
    assert len(_order([3], 4)) == 8


# Threads


def test_a_small_model_on_a_cpu_uses_one_thread(monkeypatch):
    sizes = {"speech_embedding_dim": 4, "text_embedding_dim": 4, "attention_dim": 12, "context_num_layers": 1}
    models = {size: MisterEModel(MisterEConfig(hidden_size=size, **sizes)) for size in (16, 512)}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for device, size, expected in (("cpu", 16, 1), ("cpu", 512, 2), ("cuda", 16, 2)):
            with few_threads(models[size], torch.device(device)):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
        use_threads(2)
        assert os.environ["OMP_NUM_THREADS"] == "2"
        with few_threads(models[16], torch.device("cpu")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", ["0", "-1", "9999"])
def test_invalid_thread_counts_raise(demo, count, capsys):
    assert cli.main(["train", str(RECIPE), *words(demo), "--threads", count]) == 2
    assert "--threads must be a whole number" in capsys.readouterr().err
