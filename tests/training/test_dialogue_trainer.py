import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from mister_e_hf import DialogueCollator, MisterETrainer
from mister_e_hf.base.losses import consistency_loss, contrastive_loss
from mister_e_hf.models.mister_e.modeling_mister_e import expert_availability
from mister_e_hf.training.checkpoints import finished_checkpoints
from support.dialogue_training import arguments, dialogues_of, gradient, tiny_corpus, tiny_model, unlabel
from support.forks import run_processes
from support.gradient_steps import assert_close


def test_gradient_is_that_of_the_written_out_loss(tmp_path):
    model = tiny_model()
    batch = DialogueCollator()(dialogues_of(tiny_corpus()["train"]))
    output = model(**batch)
    labels, real = batch["labels"], batch["labels"] >= 0
    states = torch.cat([output.speech_states[real & output.speech_mask], output.text_states[real & output.text_mask]])
    state_labels = torch.cat([labels[real & output.speech_mask], labels[real & output.text_mask]])
    turns = int(real.sum())
    available = expert_availability(model.config.experts, output.speech_mask, output.text_mask)
    loss = output.loss + 0.7 * contrastive_loss(states, state_labels, num_items=turns)
    loss = loss + 0.3 * consistency_loss(output.expert_logits, available, labels)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_close(gradient(tmp_path), expected)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    whole = gradient(tmp_path, contrastive_weight=0.0)
    parts = gradient(tmp_path, contrastive_weight=0.0, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_close(parts, whole)


def test_accumulated_contrastive_term_is_the_turn_weighted_mean_of_the_micro_batches(tmp_path):
    changes = {"contrastive_weight": 1.0, "consistency_weight": 0.0}
    data = dialogues_of(tiny_corpus()["train"])
    turns = [len(dialogue["labels"]) for dialogue in data]
    together = gradient(tmp_path, data, per_device_train_batch_size=1, gradient_accumulation_steps=4, **changes)
    alone = [gradient(tmp_path, [dialogue], per_device_train_batch_size=1, **changes) for dialogue in data]
    weighted = {
        name: sum(count * part[name] for count, part in zip(turns, alone, strict=True)) / sum(turns)
        for name in together
    }
    assert_close(together, weighted)


@pytest.mark.parametrize("unlabelled", [(), (2, 3)], ids=["all_labelled", "one_process_without_a_valid_turn"])
def test_two_processes_give_the_gradient_of_one(tmp_path, unlabelled):
    run_processes(2, "distributed_gradient.py", tmp_path, *unlabelled)
    expected = gradient(tmp_path, unlabel(dialogues_of(tiny_corpus()["train"]), unlabelled))
    assert_close(load_file(tmp_path / "gradient.safetensors"), expected)


def train_epochs(folder, epochs: int = 3, callbacks=None, resume=None, **changes) -> MisterETrainer:
    settings = {
        "max_steps": -1,
        "num_train_epochs": epochs,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "standardize": True,
    }
    corpus = tiny_corpus()
    trainer = MisterETrainer(
        model=tiny_model(projection_dropout=0.3, context_dropout=0.3, modality_dropout=0.2),
        args=arguments(folder, **{**settings, **changes}),
        train_dataset=corpus["train"],
        eval_dataset=corpus["validation"],
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_every_term_is_logged_by_name(tmp_path):
    trainer = train_epochs(tmp_path, epochs=1, report_to="tensorboard")
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    names = {f"{name}_focal_loss" for name in ("mixture", "speech", "text", "fusion")}
    assert {*names, "contrastive_loss", "consistency_loss"} <= set(entry)
    total = sum(entry[name] for name in names) + 0.7 * entry["contrastive_loss"] + 0.3 * entry["consistency_loss"]
    assert entry["loss"] == pytest.approx(total, rel=1e-3)
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert {"eval_weighted_f1", "eval_macro_f1", "eval_speech_weighted_f1", "eval_fusion_weighted_f1"} <= set(
        evaluation
    )


def test_standardisation_is_fitted_on_the_training_turns(tmp_path):
    trainer = train_epochs(tmp_path, epochs=1)
    data = tiny_corpus()["train"]
    rows = torch.cat([data[index]["speech_embeddings"][data[index]["speech_mask"]] for index in range(len(data))])
    torch.testing.assert_close(trainer.model.speech_input.mean, rows.mean(0))
    torch.testing.assert_close(trainer.model.speech_input.std, rows.std(0, unbiased=False))


def test_best_epoch_by_validation_is_what_remains(tmp_path):
    trainer = train_epochs(tmp_path, epochs=4)
    scores = [entry["eval_weighted_f1"] for entry in trainer.state.log_history if "eval_weighted_f1" in entry]
    assert trainer.evaluate()["eval_weighted_f1"] == pytest.approx(max(scores))


def test_early_stopping(tmp_path):
    trainer = train_epochs(tmp_path, epochs=30, early_stopping_patience=1, learning_rate=1e-30)
    assert trainer.state.epoch == 2


class Stop(TrainerCallback):
    """Breaks training off as a kill would, with an exception, while it saves a later checkpoint."""

    def on_evaluate(self, args, state, control, **kwargs):
        if state.epoch == 3:
            raise KeyboardInterrupt


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole = train_epochs(tmp_path / "whole", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train_epochs(tmp_path / "broken", epochs=4, callbacks=[Stop()])
    checkpoint = finished_checkpoints(tmp_path / "broken")[-1]
    torch.manual_seed(123)
    resumed = train_epochs(tmp_path / "broken", epochs=4, resume=str(checkpoint))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert scores_of(whole) == scores_of(resumed)


def scores_of(trainer: MisterETrainer) -> list[float]:
    return [entry["eval_weighted_f1"] for entry in trainer.state.log_history if "eval_weighted_f1" in entry]


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(MisterETrainer, "_save_rng_state", broken)
    with pytest.raises(OSError, match="disk full"):
        train_epochs(tmp_path, epochs=2)
    assert finished_checkpoints(tmp_path) == []


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    trainer = train_epochs(tmp_path, epochs=5, save_total_limit=1)
    kept = finished_checkpoints(tmp_path)
    assert [str(path) for path in kept] == [trainer.state.best_model_checkpoint]
    state = json.loads((kept[0] / "trainer_state.json").read_text())
    assert f"checkpoint-{state['best_global_step']}" == kept[0].name and state["best_model_checkpoint"] is None
    assert load_file(kept[0] / "model.safetensors").keys() == trainer.model.state_dict().keys()


@pytest.mark.parametrize(
    ("experts", "changes", "message"),
    [
        (["speech", "text"], {}, "fusion"),
        (["fusion"], {"contrastive_weight": 0.0}, "two experts"),
    ],
)
def test_a_term_without_its_experts_is_refused(tmp_path, experts, changes, message):
    with pytest.raises(ValueError, match=message):
        MisterETrainer(model=tiny_model(experts=experts), args=arguments(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"contrastive_weight": -1.0}, {"contrastive_temperature": 0.0}, {"average_tokens_across_devices": False}],
)
def test_arguments_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        arguments(tmp_path, **changes)


def test_a_batch_without_a_label_changes_nothing(tmp_path):
    change = gradient(tmp_path, unlabel(dialogues_of(tiny_corpus()["train"]), (0, 1, 2, 3)))
    assert all(torch.count_nonzero(value) == 0 and not math.isnan(value.sum()) for value in change.values())


def test_predictions_come_back_in_the_order_of_the_dialogues(tmp_path):
    trainer, data = train_epochs(tmp_path, epochs=1), tiny_corpus()["test"]
    logits = trainer.predict(data).predictions[0]
    model = trainer.model.eval()
    for index in range(len(data)):
        with torch.no_grad():
            alone = model(**DialogueCollator()([data[index]])).logits[0]
        np.testing.assert_allclose(logits[index, : len(alone)], alone.numpy(), atol=1e-5)
