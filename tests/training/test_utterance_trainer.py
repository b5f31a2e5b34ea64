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
import yaml
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from mister_e_hf import Recipe
from mister_e_hf.base.files import write_atomically
from mister_e_hf.corpora.dialogues import cross_fitting_folds
from mister_e_hf.encoders.utterances import UtteranceCollator, Utterances
from mister_e_hf.evaluation.metrics import emotion_scores, softmax
from mister_e_hf.training.checkpoints import finished_checkpoints
from mister_e_hf.training.encoder_experiment import fold_folders, load_encoder, train_encoder
from mister_e_hf.training.run_folder import claim_run
from mister_e_hf.training.utterance_trainer import UtteranceTrainer, UtteranceTrainingArguments, logits_of
from support.small_encoders import LABELS, read_lines, tiny_encoder, write_backbone, write_lines

pytestmark = pytest.mark.usefixtures("own_cache")

SIZES = {"train": 32, "validation": 8, "test": 8}
LABEL2ID = {label: index for index, label in enumerate(LABELS)}

LINES = ["so you see", "hooray", "grr this is what they said", "well well", "about it", "hooray when we came", "grr"]
CASES = {"all_labelled": [0, 1, 0, 2], "half_without_a_label": [0, 1, -100, -100], "some": [0, -100, 1, 1]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("lines")
    return read_lines(write_lines(folder / "source", SIZES), folder / "cache")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {modality: write_backbone(folder / modality, modality) for modality in ("speech", "text")}


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


def test_it_learns_which_word_tells_the_emotion(run, corpus):
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


def test_the_folder_gives_the_encoder_that_was_scored(run, corpus):
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


def test_a_finished_run_is_not_run_again(run, corpus, backbones):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = train_encoder(made(backbones), "text", run, seed=1, corpus=corpus)
    assert again == json.loads((run / "results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_finished_run_needs_its_backbone_no_more(run, corpus, backbones, tmp_path):
    shutil.move(backbones["text"], tmp_path / "away")
    try:
        assert train_encoder(made(backbones), "text", run, seed=1, corpus=corpus)["seed"] == 1
    finally:
        shutil.move(tmp_path / "away", backbones["text"])


def test_a_run_of_something_else_is_refused(run, corpus, backbones):
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
    "range": ({"dropout": 1.5}, "section 'text_encoder': .*dropout must lie in"),
    "layer": ({"layer": 7}, "section 'text_encoder': layer 7 is none of the backbone's 2 hidden states"),
    "targets": (
        {"lora_target_modules": "nothing"},
        "section 'text_encoder': lora_target_modules 'nothing' matches no",
    ),
    "prompt": ({"prompt": "no place"}, r"section 'text_encoder': prompt must hold \{text\} once"),
    "scheduler": ({"training": {"lr_scheduler_type": "cosin"}}, "section 'text_encoder.training': .*cosin"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_mistake_in_the_recipe_names_its_section_and_claims_no_folder(corpus, backbones, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_encoder(recipe(backbones, **changes), "text", tmp_path / "run", corpus=corpus)
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_is_not_there_is_named(corpus, backbones, tmp_path):
    wrong = recipe(backbones, backbone=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="'text_encoder': Folder '.*nothing' does not exist"):
        train_encoder(wrong, "text", tmp_path / "run", corpus=corpus)
    assert not (tmp_path / "run").exists()


def test_a_recipe_or_corpus_that_gives_no_encoder_is_named(corpus, backbones, tmp_path):
    with pytest.raises(ValueError, match="no speech_encoder.backbone, so there is no encoder of speech to train"):
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


def test_the_encoder_of_a_fold_has_not_seen_it(corpus, backbones, tmp_path):
    settings = recipe(backbones, tuning="full", folds=3)
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
    alone = train_encoder(recipe(backbones, tuning="full"), "text", tmp_path / "alone", corpus=corpus)
    assert contents(tmp_path / "alone")["model.safetensors"] == contents(tmp_path / "run")["model.safetensors"]
    assert not (tmp_path / "alone" / "folds").exists() and "held_out" not in alone


def test_folds_can_come_later_and_are_not_trained_again(corpus, backbones, tmp_path):
    settings = recipe(backbones, tuning="frozen")
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
def test_a_killed_run_goes_on_to_the_same_bytes(corpus, backbones, tmp_path, modality, changes):
    settings = recipe(backbones, modality, {"head_learning_rate": 1e-2}, **changes)

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


def test_a_run_killed_before_its_results_writes_them_without_training(corpus, backbones, tmp_path):
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


# The trainer


def arguments(folder: Path, **changes) -> UtteranceTrainingArguments:
    """One plain gradient step, so that the change of the parameters is the gradient."""
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return UtteranceTrainingArguments(**{**settings, **changes})


def items(labels: list[int]) -> list[dict]:
    return [
        {"turn": turn, "label": label, "index": index}
        for index, (turn, label) in enumerate(zip(LINES, labels, strict=False))
    ]


def trainer_of(
    backbone: Path, folder: Path, data=None, modality: str = "text", model: dict | None = None, **changes
) -> UtteranceTrainer:
    settings = {"tuning": "lora", "lora_dropout": 0.0, "dropout": 0.0, "pooling": "attentive_statistics"}
    encoder, processor = tiny_encoder(backbone, modality, **{**settings, **(model or {})})
    for module in encoder.modules():  # the backbone has dropout, too
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    callbacks = changes.pop("callbacks", None)
    evaluation = changes.pop("eval_dataset", None)
    return UtteranceTrainer(
        encoder,
        arguments(folder, **changes),
        processor,
        train_dataset=data,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )


def gradient(backbone: Path, folder: Path, data, *more, **changes) -> dict[str, torch.Tensor]:
    trainer = trainer_of(backbone, folder, data, *more, **changes)
    trained = [(name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    before = {name: weight.detach().clone() for name, weight in trained}
    trainer.train()
    return {name: before[name] - weight.detach() for name, weight in trained}


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


MODELS = {
    "lora": ("all_labelled", {}),
    "unlabelled turns": ("some", {}),
    "frozen": ("some", {"tuning": "frozen"}),
    "full with class weights": ("some", {"tuning": "full", "class_weights": {"joy": 3.0, "anger": 0.5}}),
}


@pytest.mark.parametrize(("case", "model"), MODELS.values(), ids=MODELS)
def test_gradient_is_that_of_the_focal_loss_per_labelled_turn(backbones, tmp_path, case, model):
    labels = CASES[case]
    data = items(labels)
    trainer = trainer_of(backbones["text"], tmp_path, data, model=model)
    logits = trainer.model(**trainer.processor([item["turn"] for item in data])).logits
    weights = model.get("class_weights", {})
    terms = []
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            p = row.softmax(-1)[label]
            terms.append(weights.get(LABELS[label], 1.0) * (1 - p) ** trainer.model.config.focal_gamma * -p.log())
    (sum(terms) / len(terms)).backward()
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    expected = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in trained.items()}
    assert any(part.abs().max() > 1e-3 for part in expected.values())
    assert_close(gradient(backbones["text"], tmp_path, data, model=model), expected)


@pytest.mark.parametrize("case", CASES)
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(backbones, tmp_path, case):
    data = items(CASES[case])
    whole = gradient(backbones["text"], tmp_path, data)
    parts = gradient(backbones["text"], tmp_path, data, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_close(parts, whole)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("modality", ["speech", "text"])
def test_states_that_are_computed_twice_give_the_same_gradient(corpus, backbones, tmp_path, modality, tuning):
    turns = Utterances(corpus["train"], modality, LABEL2ID)
    options = {"data": [turns[item] for item in range(4)], "modality": modality, "model": {"tuning": tuning}}
    kept = gradient(backbones[modality], tmp_path, **options)
    again = gradient(backbones[modality], tmp_path, **options, activation_checkpointing=True)
    assert any(step.abs().max() > 1e-4 for name, step in kept.items() if name.startswith("backbone."))
    assert_close(again, kept)


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_what_starts_from_nothing_has_a_rate_of_its_own(backbones, tmp_path, tuning):
    options = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-5}
    trainer = trainer_of(
        backbones["text"], tmp_path, items([0, 1]), model={"tuning": tuning}, head_learning_rate=1e-2, **options
    )
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    found = {}
    for group in optimizer.param_groups:
        assert group["params"]
        for weight in group["params"]:
            assert id(weight) in names and names[id(weight)] not in found
            found[names[id(weight)]] = group["lr"], group["weight_decay"]
    assert set(found) == set(names.values())
    assert {name.startswith("backbone.") for name in found} == ({False} if tuning == "frozen" else {False, True})
    for name, (rate, decay) in found.items():
        assert rate == (1e-5 if name.startswith("backbone.") else 1e-2), name
        plain = name.endswith("bias") or "norm" in name.lower()
        assert decay == (0.0 if plain else 0.1), name
    trainer = trainer_of(backbones["text"], tmp_path, items([0, 1]), model={"tuning": tuning}, **options)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-5}


def test_the_head_s_rate_is_that_of_its_steps(backbones, tmp_path):
    one = gradient(backbones["text"], tmp_path, items([0, 1, 2, 0]))
    other = gradient(backbones["text"], tmp_path, items([0, 1, 2, 0]), learning_rate=0.5, head_learning_rate=3.0)
    for name, step in other.items():
        torch.testing.assert_close(
            step, one[name] * (0.5 if name.startswith("backbone.") else 3.0), atol=5e-6, rtol=1e-3
        )


class SpoilLastEpoch(TrainerCallback):
    """Notes what is trained at each evaluation, and before the last epoch makes nonsense of it."""

    def __init__(self):
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def trained(self, model) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.weights[state.global_step] = self.trained(model)

    def on_epoch_begin(self, args, state, control, model, **kwargs):
        if state.epoch >= args.num_train_epochs - 1:
            for weight in model.parameters():
                if weight.requires_grad:
                    torch.nn.init.normal_(weight.data)
            model.head.bias.data[:] = torch.tensor([1e6, 0.0, 0.0])


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_the_best_epoch_is_what_remains(corpus, backbones, tmp_path, tuning):
    spoil = SpoilLastEpoch()
    data = {
        split: Utterances(corpus[split], "text", LABEL2ID, labelled_only=True) for split in ("train", "validation")
    }
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": -1, "num_train_epochs": 4}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = trainer_of(
        backbones["text"],
        tmp_path,
        data["train"],
        model={"tuning": tuning},
        eval_dataset=data["validation"],
        callbacks=[spoil],
        **settings,
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < trainer.state.global_step and len(spoil.weights) == 4
    remaining = spoil.trained(trainer.model)
    for name, weight in remaining.items():
        assert torch.equal(weight, spoil.weights[best][name]), name
    assert not torch.equal(remaining["head.weight"], spoil.weights[trainer.state.global_step]["head.weight"])
    scores = [entry["eval_weighted_f1"] for entry in trainer.state.log_history if "eval_weighted_f1" in entry]
    assert trainer.evaluate()["eval_weighted_f1"] == pytest.approx(max(scores))


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_predictions_come_back_in_the_order_of_the_turns(corpus, backbones, tmp_path, modality):
    data = Utterances(corpus["test"], modality, LABEL2ID)
    trainer = trainer_of(backbones[modality], tmp_path, modality=modality, per_device_eval_batch_size=3)
    prediction = trainer.predict(data)
    model = trainer.model.eval()
    with torch.no_grad():
        alone = [model(**trainer.processor([data[item]["turn"]])).logits[0].numpy() for item in range(len(data))]
    np.testing.assert_allclose(logits_of(prediction.predictions), alone, atol=1e-5)
    assert prediction.label_ids.tolist() == [data[item]["label"] for item in range(len(data))]
    scored = prediction.label_ids >= 0
    expected = emotion_scores(prediction.label_ids[scored], softmax(np.stack(alone)[scored]), LABELS)
    assert prediction.metrics["test_weighted_f1"] == pytest.approx(expected["weighted_f1"])
    assert 0 < scored.sum() < len(data)


def test_training_crops_long_sound_and_batches_like_lengths(corpus, backbones, tmp_path):
    data = Utterances(corpus["train"], "speech", LABEL2ID)
    trainer = trainer_of(
        backbones["speech"],
        tmp_path,
        data,
        modality="speech",
        train_sampling_strategy="group_by_length",
        eval_dataset=data,
    )
    trainer.processor.window_seconds = 0.3
    batches = list(trainer.get_train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == len(data)
    for batch in batches:
        assert batch["input_values"].shape[1] <= 0.3 * 16_000
        assert batch["utterance_index"].tolist() == list(range(len(batch["labels"])))
    lengths = [batch["attention_mask"].sum(-1) for batch in batches[:-1]]
    spread = torch.stack([(length.max() - length.min()).float() for length in lengths]).mean()
    everything = torch.cat(lengths)
    assert spread < 0.5 * (everything.max() - everything.min())
    evaluated = list(trainer.get_eval_dataloader())
    assert any(len(batch["utterance_index"]) > len(batch["labels"]) for batch in evaluated)
    assert isinstance(trainer.data_collator, UtteranceCollator) and not trainer.data_collator.random_crop


# What all runs share


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (9, 10, 100, 99):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".unfinished" / "checkpoint-200").mkdir(parents=True)
    assert [path.name for path in finished_checkpoints(tmp_path)] == [
        f"checkpoint-{step}" for step in (9, 10, 99, 100)
    ]
    assert finished_checkpoints(tmp_path / "nothing") == []


def test_softmax_holds_for_any_logits():
    logits = np.array([[0.0, np.log(3.0)], [1e4, -1e4], [-1e30, -1e30]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], rtol=1e-6)


def test_a_folder_belongs_to_one_run(tmp_path):
    PartialState()
    record = {"recipe": {"rate": 1e-5, "labels": ["no", "1"], "layer": None}, "seed": 3}
    assert claim_run(tmp_path / "run", record) is False
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text()) == record
    assert claim_run(tmp_path / "run", record) is False
    (tmp_path / "run" / "results.json").write_text("{}")
    assert claim_run(tmp_path / "run", record) is True
    with pytest.raises(ValueError, match="seed is 3 there and 4 here. Choose another"):
        claim_run(tmp_path / "run", {"recipe": {}, "seed": 4})
    (tmp_path / "run" / "run.yaml").unlink()
    with pytest.raises(ValueError, match="holds a run without a run.yaml"):
        claim_run(tmp_path / "run", record)
    (tmp_path / "other" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run without a run.yaml"):
        claim_run(tmp_path / "other", record)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, lambda partial: partial.write_text("old"))

    def half(partial: Path):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    write_atomically(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
