"""The trainer of pre-training: exact under accumulation and in processes, and the same when it resumes."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset
from transformers import TrainerCallback

from mister_e_hf import DialogueCollator, MisterETrainingArguments, PretrainingArguments, PretrainingTrainer
from mister_e_hf.base.errors import InputError
from mister_e_hf.vectors.masked_turns import MaskedDialogues
from support.dialogue_training import tiny_corpus, tiny_model
from support.distributed_pretraining import CASES
from support.forks import run_processes
from support.gradient_steps import assert_close
from support.pretraining_run import (
    pretraining_arguments,
    pretraining_gradient,
    tiny_pretraining_model,
    unlabelled,
)


def test_reconstruction_is_exact_under_accumulation(tmp_path):
    whole = pretraining_gradient(tmp_path, contrastive_weight=0.0)
    assert any(change.any() for change in whole.values())
    for size in (1, 2):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        assert_close(pretraining_gradient(tmp_path, contrastive_weight=0.0, **changes), whole)


def test_info_nce_under_accumulation_is_the_mean_of_the_parts_by_turns(tmp_path):
    data, options = unlabelled(), {"reconstruction_weight": 0.0, "contrastive_weight": 1.0}
    parts = [Subset(data, [0, 1]), Subset(data, [2, 3])]
    pairs = [sum(int((item["speech_mask"] & item["text_mask"]).sum()) for item in part) for part in parts]
    alone = [pretraining_gradient(tmp_path, part, per_device_train_batch_size=2, **options) for part in parts]
    weighted = {
        name: sum(change[name] * count for change, count in zip(alone, pairs, strict=True)) / sum(pairs)
        for name in alone[0]
    }
    steps = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert_close(pretraining_gradient(tmp_path, data, **steps, **options), weighted)


def test_two_processes_take_the_step_of_one(tmp_path):
    run_processes(2, "distributed_pretraining.py", tmp_path)
    for name, changes in CASES.items():
        assert_close(load_file(tmp_path / f"{name}.safetensors"), pretraining_gradient(tmp_path / "one", **changes))
    lonely = unlabelled((1, 1, 1, 1))
    for number, dialogue in enumerate(lonely):
        dialogue["speech_mask"][:] = number == 0
    assert_close(load_file(tmp_path / "lonely.safetensors"), pretraining_gradient(tmp_path / "one", lonely))
    arguments = pretraining_arguments(tmp_path / "one", contrastive_weight=0.0)
    data = unlabelled((5, 1, 7))
    expected = PretrainingTrainer(tiny_pretraining_model(), arguments, eval_dataset=data).evaluate()
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    for name in ("eval_reconstruction_loss", "eval_speech_reconstruction_loss", "eval_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


class StopAfter(TrainerCallback):
    """Ends a training in the middle of an epoch, as a kill does."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_step_end(self, args, state, control, **kwargs):
        if state.epoch is not None and state.epoch > self.epochs:
            raise KeyboardInterrupt


def of_several_epochs(folder, **changes) -> PretrainingTrainer:
    options = {"max_steps": -1, "num_train_epochs": 4, "optim": "adamw_torch", "learning_rate": 0.01, "seed": 3}
    options |= {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    options |= {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "standardize": True}
    model = tiny_pretraining_model(projection_dropout=0.3)
    arguments = pretraining_arguments(folder, **options | changes)
    data = tiny_data()
    return PretrainingTrainer(model, arguments, train_dataset=data, eval_dataset=unlabelled((4, 6), seed=9))


def tiny_data() -> list[dict]:
    return unlabelled((5, 1, 7, 3, 6, 2), seed=1)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_run_that_resumes_equals_the_uninterrupted_one(tmp_path, strategy):
    whole = of_several_epochs(tmp_path / "whole", train_sampling_strategy=strategy, save_total_limit=None)
    whole.train()
    killed = of_several_epochs(tmp_path / "killed", train_sampling_strategy=strategy, save_total_limit=None)
    killed.add_callback(StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = of_several_epochs(tmp_path / "killed", train_sampling_strategy=strategy, save_total_limit=None)
    assert resumed.resume() is not None
    expected = whole.own_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.own_model.state_dict().items())
    losses = [
        [
            {name: value for name, value in entry.items() if name.endswith("loss")}
            for entry in each.state.log_history[:-1]
        ]
        for each in (whole, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("strategy", ["group_by_length", "random", "sequential"])
def test_masks_change_with_the_epoch_and_not_with_the_workers(tmp_path, strategy):
    class Noting(PretrainingTrainer):
        def __init__(self, *args, **kwargs):
            self.seen = []
            super().__init__(*args, **kwargs)

        def compute_loss(self, model, inputs, *args, **kwargs):
            if model.training:
                self.seen.append({name: each.clone() for name, each in inputs.items() if name.endswith("masked")})
            return super().compute_loss(model, inputs, *args, **kwargs)

    found = []
    for workers in (0, 1):
        options = {"max_steps": 6, "dataloader_num_workers": workers, "train_sampling_strategy": strategy}
        arguments = pretraining_arguments(tmp_path, per_device_train_batch_size=2, **options)
        trainer = Noting(tiny_pretraining_model(), arguments, train_dataset=unlabelled((6, 6, 6, 6)))
        trainer.train()
        found.append(trainer.seen)
    assert len(found[0]) == 6  # three epochs
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    if strategy == "sequential":
        assert not torch.equal(found[0][0]["text_masked"], found[0][2]["text_masked"])


def test_metrics_are_means_over_all_hidden_vectors(tmp_path):
    model, data = tiny_pretraining_model(), unlabelled((5, 1, 7, 3, 6))
    arguments = pretraining_arguments(tmp_path, per_device_eval_batch_size=2, contrastive_weight=0.5)
    scores = PretrainingTrainer(model, arguments, eval_dataset=data).evaluate()
    masked = MaskedDialogues(data, ("speech", "text"), arguments.seed, 0.4, 3)
    with torch.no_grad():
        output = model.eval()(**DialogueCollator()([masked[number] for number in range(5)]))
    assert scores["eval_reconstruction_loss"] == pytest.approx(float(output.loss), rel=1e-5)
    trainer = PretrainingTrainer(model, pretraining_arguments(tmp_path, per_device_eval_batch_size=2))
    labelled = [{**dialogue, "labels": torch.zeros(len(dialogue["text_mask"]))} for dialogue in data]
    again = {**trainer.evaluate(labelled), **trainer.predict(labelled).metrics}
    assert again["eval_loss"] == again["test_loss"] == scores["eval_loss"]
    hidden = sum(int(masked[number]["text_masked"].sum()) for number in range(5))
    assert scores["eval_text_reconstruction_loss"] == pytest.approx(float(output.errors["text"].sum()) / hidden)
    expected = scores["eval_reconstruction_loss"] + 0.5 * scores["eval_contrastive_loss"]
    assert scores["eval_loss"] == pytest.approx(expected)
    sizes = [sum(int(item["speech_mask"].sum()) for item in data[start : start + 2]) for start in (0, 2, 4)]
    chance = sum(size * math.log(size) for size in sizes) / sum(sizes)
    assert scores["eval_contrastive_chance"] == pytest.approx(chance, rel=1e-5)


def test_both_terms_are_logged_and_fall(tmp_path):
    options = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": -1, "num_train_epochs": 30}
    arguments = pretraining_arguments(tmp_path, logging_strategy="epoch", **options)
    trainer = PretrainingTrainer(tiny_pretraining_model(), arguments, train_dataset=unlabelled())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["contrastive_loss"] < logs[0]["contrastive_loss"]
    for entry in logs:
        expected = entry["reconstruction_loss"] + 0.5 * entry["contrastive_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-3)


def test_labels_and_transcripts_are_not_needed_and_statistics_are_fitted(tmp_path):
    data = tiny_corpus()["train"]
    widths = {f"{name}_embedding_dim": column.width for name, column in data.vectors.items()}
    model = tiny_pretraining_model(**widths)
    PretrainingTrainer(model, pretraining_arguments(tmp_path, standardize=True), train_dataset=data).train()
    mean, deviation = data.statistics("speech")
    torch.testing.assert_close(model.speech_input.mean, mean.float())
    torch.testing.assert_close(model.speech_input.std, deviation.float())


@pytest.mark.parametrize(("value", "shown"), [(0.0, "zero"), (2.0, "the same")])
def test_vectors_that_say_nothing_are_warned_of(tmp_path, caplog, value, shown):
    data = [each | {"speech_embeddings": torch.full_like(each["speech_embeddings"], value)} for each in tiny_data()]
    trainer = PretrainingTrainer(tiny_pretraining_model(), pretraining_arguments(tmp_path), train_dataset=data)
    with caplog.at_level("WARNING"):
        trainer.standardize_inputs(data)
    assert [record.message for record in caplog.records] == [
        f"train: the speech vectors of all turns are {shown}, so nothing can be learned from them; check how they "
        "were made, or leave them out"
    ]


def test_what_cannot_be_pretrained_is_refused(tmp_path):
    arguments = pretraining_arguments(tmp_path)
    with pytest.raises(InputError, match="PretrainingTrainer trains pre-training models .* got MisterEModel"):
        PretrainingTrainer(tiny_model(), arguments, train_dataset=unlabelled())
    with pytest.raises(InputError, match="needs PretrainingArguments, got MisterETrainingArguments"):
        PretrainingTrainer(tiny_pretraining_model(), MisterETrainingArguments(str(tmp_path)))
    with pytest.raises(InputError, match="contrastive_weight is 0.5, but this MiSTER-E compares no two modalities"):
        PretrainingTrainer(tiny_pretraining_model(experts=["text"]), arguments, train_dataset=unlabelled())
    with pytest.raises(InputError, match="train_dataset: 'speech_embeddings' have width 5, but the model expects"):
        PretrainingTrainer(tiny_pretraining_model(speech_embedding_dim=6), arguments, train_dataset=unlabelled())
    with pytest.raises(InputError, match="no eval_dataset"):
        PretrainingTrainer(tiny_pretraining_model(), PretrainingArguments(str(tmp_path)), train_dataset=unlabelled())
    with pytest.raises(InputError, match="metric_for_best_model must be one of reconstruction_loss"):
        other = pretraining_arguments(tmp_path, metric_for_best_model="weighted_f1")
        PretrainingTrainer(tiny_pretraining_model(), other, train_dataset=unlabelled())
    silent = [
        {**item, "speech_mask": torch.zeros(len(item["speech_mask"]), dtype=torch.bool)} for item in unlabelled()
    ]
    with pytest.raises(InputError, match="no turn has speech, so its vectors cannot be standardised"):
        trainer = PretrainingTrainer(
            tiny_pretraining_model(), pretraining_arguments(tmp_path, standardize=True), train_dataset=silent
        )
        trainer.train()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask_rate", 0.0, "mask_rate must be a finite number above 0"),
        ("mask_rate", 0.95, "mask_rate must be a finite number above 0 and at most 0.9"),
        ("mask_span", 0, "mask_span must be a whole number of at least 1"),
        ("negatives", "turns", "negatives must be one of batch, dialogue, got 'turns'"),
        ("reconstruction_weight", -1.0, "reconstruction_weight must be a finite number of at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, field, value, message):
    with pytest.raises(InputError, match=message):
        PretrainingArguments(str(tmp_path), **{field: value})


def test_one_turn_dialogues_and_one_modality_are_trained_on(tmp_path):
    assert all(change.isfinite().all() for change in pretraining_gradient(tmp_path, unlabelled((1, 1, 1))).values())
    model = tiny_pretraining_model(experts=["text"])
    trainer = PretrainingTrainer(
        model, pretraining_arguments(tmp_path, contrastive_weight=0.0), train_dataset=unlabelled()
    )
    trainer.train()
    assert set(trainer.evaluate(trainer.train_dataset)) >= {"eval_loss", "eval_text_reconstruction_loss"}
