import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from mister_e_hf import Recipe
from mister_e_hf.corpora.dialogues import cross_fitting_folds
from mister_e_hf.encoders.utterances import Utterances
from mister_e_hf.evaluation.metrics import emotion_scores, softmax
from mister_e_hf.training.checkpoints import finished_checkpoints
from mister_e_hf.training.encoder_experiment import fold_folders, load_encoder, train_encoder
from support.small_encoders import LABELS

pytestmark = pytest.mark.usefixtures("own_cache")

LABEL2ID = {label: index for index, label in enumerate(LABELS)}


def recipe(backbones: dict[str, Path], modality: str = "text", training: dict | None = None, **changes) -> Recipe:
    settings = {
        "learning_rate": 3e-3,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    encoder = {"backbone": str(backbones[modality]), "embedding_dim": 6, "dropout": 0.2, **changes}
    section = encoder | {"training": settings | (training or {})}
    return Recipe({"corpus": {"labels": LABELS}, f"{modality}_encoder": section})


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves, its checkpoints aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "checkpoint-" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def history(folder: Path) -> list[dict]:
    return json.loads((finished_checkpoints(folder)[-1] / "trainer_state.json").read_text())["log_history"]


def labelled(data: datasets.Dataset, field: str) -> int:
    turns = [turn for row in data.to_list() for turn in row["utterances"]]
    return sum(turn[field] is not None and turn["emotion"] is not None for turn in turns)


# A whole run


@pytest.fixture(scope="module")
def run(corpus, backbones, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_encoder(made(backbones), "text", folder, seed=1, corpus=corpus)
    return folder


def made(backbones: dict[str, Path], **changes) -> Recipe:
    """Of a run that learns."""
    training = {"num_train_epochs": 16, "learning_rate": 1e-2, **changes}
    return recipe(backbones, tuning="full", training=training, class_weights={"joy": 1.5})


def test_encoder_learns_the_word_of_each_emotion(run, corpus):
    results = json.loads((run / "results.json").read_text())
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    for split in ("validation", "test"):
        block = results[split]
        assert block["accuracy"] > 0.75  # 0.33 by chance
        assert block["num_utterances"] == labelled(corpus[split], "text")
        for name, (low, high) in block["intervals"].items():
            assert low <= block[name] <= high, name
        assert set(block["f1_per_class"]) == set(LABELS)
    assert results["modality"] == "text" and results["seed"] == 1 and {"torch", "device"} <= set(results["versions"])
    assert not list(run.rglob(".unfinished*"))


def test_the_scored_encoder_is_saved(run, corpus):
    encoder, processor = load_encoder(run)
    assert encoder.config.id2label == dict(enumerate(LABELS)) and encoder.config.class_weights == {"joy": 1.5}
    results = json.loads((run / "results.json").read_text())
    data = Utterances(corpus["test"], "text", LABEL2ID, labelled_only=True)
    items = [data[item] for item in range(len(data))]
    with torch.no_grad():
        logits = torch.cat([encoder(**processor([item["turn"]])).logits for item in items]).numpy()
    scores = emotion_scores(np.array([item["label"] for item in items]), softmax(logits), LABELS)
    assert scores["weighted_f1"] == pytest.approx(results["test"]["weighted_f1"])
    assert scores["expected_calibration_error"] == pytest.approx(
        results["test"]["expected_calibration_error"], abs=1e-4
    )
    assert results["parameters"] == encoder.num_parameters()
    assert results["trained_parameters"] == sum(
        parameter.numel() for name, parameter in encoder.named_parameters() if ".pooler." not in name
    )
    best = max((entry for entry in history(run) if "eval_loss" in entry), key=lambda entry: entry["eval_weighted_f1"])
    assert results["validation"]["weighted_f1"] == pytest.approx(best["eval_weighted_f1"])
    assert results["best_epoch"] == best["epoch"]
    assert type(AutoModel.from_pretrained(run)) is type(encoder)


def test_a_finished_run_is_skipped(run, corpus, backbones):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = train_encoder(made(backbones), "text", run, seed=1, corpus=corpus)
    assert again == json.loads((run / "results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_finished_run_does_not_need_its_backbone(run, corpus, backbones, tmp_path):
    shutil.move(backbones["text"], tmp_path / "away")
    try:
        assert train_encoder(made(backbones), "text", run, seed=1, corpus=corpus)["seed"] == 1
    finally:
        shutil.move(tmp_path / "away", backbones["text"])


def test_a_run_with_other_settings_raises(run, corpus, backbones):
    def other_word(row: dict) -> dict:
        for turn in row["utterances"]:
            turn["text"] = turn["text"] and turn["text"].replace("grr", "grrr")
        return row

    changed = datasets.DatasetDict(corpus | {"train": corpus["train"].map(other_word)})
    others = {
        "encoder": {"recipe": made(backbones, learning_rate=1e-4)},
        "seed": {"seed": 2},
        "corpus": {"corpus": changed},
        "labels": {"recipe": Recipe(made(backbones).to_dict() | {"corpus": {"labels": [*LABELS, "fear"]}})},
    }
    before = contents(run)
    for name, changes in others.items():
        same = {"recipe": made(backbones), "seed": 1, "corpus": corpus}
        with pytest.raises(ValueError, match=f"holds a run with other settings: {name}"):
            train_encoder(modality="text", output_dir=run, **same | changes)
    assert contents(run) == before


def test_a_corpus_without_test_is_scored_on_validation(corpus, backbones, tmp_path):
    made = recipe(backbones, tuning="frozen", training={"num_train_epochs": 1})
    splits = datasets.DatasetDict({split: corpus[split] for split in ("train", "validation")})
    results = train_encoder(made, "text", tmp_path, corpus=splits)
    assert "test" not in results and results["validation"]["num_utterances"]


# Mistakes


WRONG = {
    "class weight": ({"class_weights": {"boredom": 1.0}}, "section 'text_encoder': .*'boredom'"),
    "range": ({"dropout": 1.5}, "section 'text_encoder': .*dropout must be in"),
    "layer": ({"layer": 7}, "section 'text_encoder': layer 7 is not one of the backbone's 2 hidden states"),
    "targets": (
        {"lora_target_modules": "nothing"},
        "section 'text_encoder': lora_target_modules 'nothing' matches no",
    ),
    "prompt": ({"prompt": "no place"}, r"section 'text_encoder': prompt must hold \{text\} once"),
    "scheduler": ({"training": {"lr_scheduler_type": "cosin"}}, "section 'text_encoder.training': .*cosin"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_in_the_recipe_raise_before_the_folder_is_claimed(corpus, backbones, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_encoder(recipe(backbones, **changes), "text", tmp_path / "run", corpus=corpus)
    assert not (tmp_path / "run").exists()


def test_a_missing_backbone_raises(corpus, backbones, tmp_path):
    wrong = recipe(backbones, backbone=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="'text_encoder': Folder '.*nothing' does not exist"):
        train_encoder(wrong, "text", tmp_path / "run", corpus=corpus)
    assert not (tmp_path / "run").exists()


def test_a_recipe_or_corpus_without_an_encoder_raises(corpus, backbones, tmp_path):
    with pytest.raises(ValueError, match="no speech_encoder.backbone, so no encoder of speech can be trained"):
        train_encoder(recipe(backbones), "speech", tmp_path / "run", corpus=corpus)
    few = Recipe(recipe(backbones).to_dict() | {"corpus": {"labels": LABELS[:2]}})
    with pytest.raises(ValueError, match="the label 'neutral', which is none of the model's labels"):
        train_encoder(few, "text", tmp_path / "run", corpus=corpus)
    # the second turn of the fifth dialogue has words and a label, but no sound
    silent = corpus["train"].map(lambda row: {"utterances": [turn | {"audio": None} for turn in row["utterances"]]})
    for split, data in {"train": silent, "validation": None}.items():
        splits = {name: part for name, part in (corpus | {split: data}).items() if part is not None}
        with pytest.raises(ValueError, match=f"{split}: no labelled turn has speech; its encoder cannot be trained"):
            train_encoder(recipe(backbones, "speech"), "speech", tmp_path / "run", corpus=datasets.DatasetDict(splits))
    with pytest.raises(ValueError, match="no corpus given"):
        train_encoder(recipe(backbones), "text", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Cross-fitting


def relabelled(corpus: datasets.DatasetDict, chosen: np.ndarray) -> datasets.DatasetDict:
    """With other labels and other words in the chosen training dialogues."""
    rows = corpus["train"].to_list()
    for row, change in zip(rows, chosen, strict=True):
        for turn in row["utterances"] if change else []:
            turn["emotion"] = None if turn["emotion"] is None else (turn["emotion"] + 1) % len(LABELS)
            turn["text"] = turn["text"] and "well well"
    return datasets.DatasetDict(corpus | {"train": datasets.Dataset.from_list(rows, corpus["train"].features)})


def test_the_encoder_of_a_fold_does_not_see_the_fold(corpus, backbones, tmp_path):
    epoch = {"num_train_epochs": 1}
    settings = recipe(backbones, tuning="full", folds=3, training=epoch)
    train_encoder(settings, "text", tmp_path / "run", corpus=corpus)
    fold = cross_fitting_folds(len(corpus["train"]), 3)
    other = relabelled(corpus, fold == 1)
    train_encoder(settings, "text", tmp_path / "other", corpus=other)
    for number, (one, two) in enumerate(
        zip(fold_folders(tmp_path / "run", 3), fold_folders(tmp_path / "other", 3), strict=True)
    ):
        same = (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
        assert same == (number == 1)
        results = json.loads((one / "results.json").read_text())
        assert results["held_out"]["num_utterances"] == labelled(
            corpus["train"].select(np.flatnonzero(fold == number)), "text"
        )
        assert "test" not in results
    # With the folds or without them, the encoder of all is the same one.
    settings = recipe(backbones, tuning="full", training=epoch)
    alone = train_encoder(settings, "text", tmp_path / "alone", corpus=corpus)
    assert contents(tmp_path / "alone")["model.safetensors"] == contents(tmp_path / "run")["model.safetensors"]
    assert not (tmp_path / "alone" / "folds").exists() and "held_out" not in alone


def test_folds_can_be_added_later_and_are_trained_once(corpus, backbones, tmp_path):
    settings = recipe(backbones, tuning="frozen", training={"num_train_epochs": 1})
    train_encoder(settings, "text", tmp_path, corpus=corpus)
    before = contents(tmp_path)
    settings.set("text_encoder.folds", 2)
    train_encoder(settings, "text", tmp_path, corpus=corpus)
    after = contents(tmp_path)
    assert {name: content for name, content in after.items() if not name.startswith("folds/")} == before
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    train_encoder(settings, "text", tmp_path, corpus=corpus)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times


# A run that was killed

KILLED = {
    "frozen": ("text", {"tuning": "frozen"}),
    "lora": ("text", {"tuning": "lora", "lora_r": 2, "pooling": "attentive_statistics"}),
    "full": ("text", {"tuning": "full"}),
    "crops of speech": ("speech", {"tuning": "lora", "lora_r": 2, "layer": "weighted_sum", "window_seconds": 0.2}),
}


@pytest.mark.parametrize(("modality", "changes"), KILLED.values(), ids=KILLED)
def test_a_killed_run_resumes_to_the_same_bytes(corpus, backbones, tmp_path, modality, changes):
    settings = recipe(backbones, modality, {"head_learning_rate": 1e-2, "num_train_epochs": 2}, **changes)

    def die(event: str, words: tuple):
        # before the second checkpoint has its name
        if event == "os.rename" and Path(words[1]).parent == tmp_path / "killed":
            if Path(words[1]).name.startswith("checkpoint-") and finished_checkpoints(tmp_path / "killed"):
                os.kill(os.getpid(), signal.SIGKILL)

    def work():
        sys.addaudithook(die)
        train_encoder(settings, modality, tmp_path / "killed", seed=2, corpus=corpus)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert len(finished_checkpoints(tmp_path / "killed")) == 1
    assert not (tmp_path / "killed" / "results.json").exists()
    torch.manual_seed(123)
    results = [
        train_encoder(settings, modality, tmp_path / name, seed=2, corpus=corpus) for name in ("killed", "whole")
    ]
    killed, whole = (contents(tmp_path / name) for name in ("killed", "whole"))
    for files in (killed, whole):
        files.pop("results.json")
    assert {"model.safetensors", "run.yaml", "processor_config.json"} <= set(killed)
    assert ("adapter/adapter_model.safetensors" in killed) == (changes["tuning"] == "lora")
    assert killed == whole
    for result in results:
        result.pop("git_commit")  # the tree may change while the test runs
    assert results[0] == results[1]
    for name in ("killed", "whole"):
        for checkpoint in finished_checkpoints(tmp_path / name):
            check_checkpoint(checkpoint, changes["tuning"])


def check_checkpoint(folder: Path, tuning: str):
    """What was trained, and no backbone that was not."""
    held = any(name.startswith("backbone.") for name in load_file(folder / "model.safetensors"))
    assert held == (tuning == "full")
    adapter = folder / "adapter" / "adapter_model.safetensors"
    assert adapter.is_file() == (tuning == "lora")
    if tuning == "lora":
        assert all("lora_" in name for name in load_file(adapter))


def test_results_are_written_without_training_again(corpus, backbones, tmp_path):
    settings = recipe(backbones, tuning="full")
    results = train_encoder(settings, "text", tmp_path, corpus=corpus)
    before = contents(tmp_path)
    for name in ("results.json", "model.safetensors"):
        (tmp_path / name).unlink()
    checkpoints = {path: path.stat().st_mtime_ns for path in finished_checkpoints(tmp_path)}
    again = train_encoder(settings, "text", tmp_path, corpus=corpus)
    assert again | {"git_commit": ""} == results | {"git_commit": ""}
    assert contents(tmp_path)["model.safetensors"] == before["model.safetensors"]
    assert {path: path.stat().st_mtime_ns for path in finished_checkpoints(tmp_path)} == checkpoints
