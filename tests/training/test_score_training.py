"""Conversation models trained on scores: counting, scale, padding, the best epoch, several processes."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mister_e_hf import MisterETrainer, MisterETrainingArguments
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.losses import regression_loss
from mister_e_hf.models.registry import registered
from mister_e_hf.training.dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from mister_e_hf.vectors.collator import DialogueCollator
from support.forks import run_processes
from support.gradient_steps import assert_close
from support.model_contract import small_model
from support.score_training import WITHOUT_TERMS, new_model, score_dialogues, step_of_scores

NAMES = [each.name for each in registered()]


def train(model, data, folder, **changes) -> DialogueTrainer:
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "num_train_epochs": 4}
    arguments = DialogueTrainingArguments(str(folder), **{**settings, "learning_rate": 1e-2, **changes})
    trainer = DialogueTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["mister_e", "sdt"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name, tmp_path):
    whole, _ = step_of_scores(name, tmp_path / "1 x 4", per_device_train_batch_size=4)
    for size in (2, 1):
        steps = 4 // size
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        parts, _ = step_of_scores(name, tmp_path / f"{steps} x {size}", **sizes)
        assert_close(parts, whole)


def test_gradient_is_that_of_the_written_out_loss(tmp_path):
    found, trainer = step_of_scores("mult", tmp_path)
    model = new_model("mult")
    batch = DialogueCollator()(score_dialogues(model.config))
    for name in ("speech", "text"):
        module = getattr(trainer.model, f"{name}_input")
        getattr(model, f"{name}_input").set_statistics(module.mean, module.std)
    labels = batch["labels"]
    scale = [labels[..., target][~labels[..., target].isnan()].double() for target in range(2)]
    model.target_scale.set_statistics(
        torch.stack([each.mean() for each in scale]), torch.stack([each.std(correction=0) for each in scale])
    )
    batch = {key: values for key, values in batch.items() if not key.startswith("visual")}
    scores = model(**batch).logits
    errors = (scores - labels).abs()
    (errors[~labels.isnan()].sum() / (~labels.isnan()).sum()).backward()
    assert_close(found, {key: parameter.grad for key, parameter in model.named_parameters()})


def test_two_processes_give_the_gradient_and_the_scores_of_one(tmp_path):
    for name in NAMES:
        new_model(name)  # what it begins from is written once, not by two processes
    run_processes(2, "score_training.py", tmp_path, *NAMES)
    for name in NAMES:
        change, trainer = step_of_scores(name, tmp_path / "alone")
        found = load_file(tmp_path / f"{name}.safetensors")
        labels = found.pop("labels").numpy()
        assert_close(found, change)
        together = json.loads((tmp_path / f"{name}.json").read_text())
        alone = trainer.predict(trainer.eval_dataset)
        np.testing.assert_array_equal(labels, alone.label_ids)
        for score in ("test_mae", "test_corr", "test_ccc"):
            # EGMF's scores hardly vary after one step, so that the correlation magnifies their rounding
            rounding = 1e-3 if (name, score) == ("egmf", "test_corr") else 1e-5
            assert together[score] == pytest.approx(alone.metrics[score], abs=rounding)


def test_scale_of_targets_is_fitted_on_training_labels(tmp_path):
    _, trainer = step_of_scores("bc_lstm", tmp_path)
    data = score_dialogues(trainer.model.config)
    labels = torch.cat([item["labels"] for item in data]).double().numpy()
    np.testing.assert_allclose(trainer.model.target_scale.mean, np.nanmean(labels, 0), rtol=1e-5)
    np.testing.assert_allclose(trainer.model.target_scale.std, np.nanstd(labels, 0), rtol=1e-5)
    _, plain = step_of_scores("bc_lstm", tmp_path, standardize=False)
    assert not plain.model.target_scale.mean.any() and (plain.model.target_scale.std == 1).all()


def test_constant_targets_are_centred_and_absent_ones_refused(tmp_path):
    model = new_model("logistic_regression")
    data = score_dialogues(model.config)
    for item in data:
        item["labels"][:, 0] = 4.0
    train(model, data, tmp_path, num_train_epochs=1)
    assert model.target_scale.mean[0] == 4 and model.target_scale.std[0] == 1
    for item in data:
        item["labels"][:, 1] = math.nan
    with pytest.raises(InputError, match="no turn has a score of target"):
        train(new_model("logistic_regression"), data, tmp_path, num_train_epochs=1)


def test_best_epoch_is_that_of_the_least_error(tmp_path):
    model = new_model("bc_lstm")
    trainer = train(model, score_dialogues(model.config), tmp_path, learning_rate=0.3)
    assert trainer.args.metric_for_best_model == "mae" and trainer.args.greater_is_better is False
    errors = [each["eval_mae"] for each in trainer.state.log_history if "eval_mae" in each]
    assert len(errors) == 4 and trainer.state.best_metric == min(errors)
    assert trainer.evaluate()["eval_mae"] == pytest.approx(min(errors))
    evaluation = next(each for each in trainer.state.log_history if "eval_mae" in each)
    assert {"eval_corr", "eval_ccc", "eval_loss"} <= set(evaluation)


def test_error_is_that_of_the_scored_turns_in_whatever_batches(tmp_path):
    model = new_model("sdt")
    data = score_dialogues(model.config)
    trainer = train(model, data, tmp_path, num_train_epochs=1, per_device_eval_batch_size=3)
    found = trainer.predict(data)
    assert found.label_ids.shape == (4, 7, 2) and found.predictions.logits.shape == (4, 7, 2)
    for row, item in enumerate(data):
        length = len(item["labels"])
        np.testing.assert_array_equal(found.label_ids[row, :length], item["labels"].numpy())
        assert np.isnan(found.label_ids[row, length:]).all()
    labels = torch.tensor(found.label_ids)
    by_target = [
        regression_loss(torch.tensor(found.predictions.logits)[..., [target]], labels[..., [target]]).item()
        for target in range(2)
    ]
    assert found.metrics["test_mae"] == pytest.approx(sum(by_target) / 2, rel=1e-5)
    for head in ("speech", "text"):
        assert found.metrics[f"test_{head}_mae"] > 0


def test_a_metric_of_ones_own_gets_scores(tmp_path):
    model, seen = new_model("mult"), []
    data = score_dialogues(model.config)
    arguments = DialogueTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)

    def metric(prediction):
        seen.append(prediction.label_ids)
        return {"own": 1.0}

    trainer = DialogueTrainer(model=model, args=arguments, eval_dataset=data, compute_metrics=metric)
    assert trainer.evaluate()["eval_own"] == 1
    np.testing.assert_array_equal(seen[0][0, :5], data[0]["labels"].numpy())
    assert np.isnan(seen[0][1, 1:]).all()


@pytest.mark.parametrize("term", WITHOUT_TERMS)
def test_terms_that_compare_classes_are_refused(term, tmp_path):
    arguments = MisterETrainingArguments(str(tmp_path), **{**WITHOUT_TERMS, term: 0.5})
    with pytest.raises(InputError, match=f"{term} is 0.5, but that term compares classes"):
        MisterETrainer(model=new_model("mister_e"), args=arguments)


def test_a_metric_of_classes_is_refused(tmp_path):
    arguments = DialogueTrainingArguments(str(tmp_path), metric_for_best_model="macro_f1")
    with pytest.raises(InputError, match="metric_for_best_model must be one of mae, corr, ccc, loss, got 'macro_f1'"):
        DialogueTrainer(model=new_model("mult"), args=arguments)


def test_every_part_of_the_loss_is_logged(tmp_path):
    model = new_model("mister_e", regression_loss="huber")
    data = score_dialogues(model.config)
    trainer = train(model, data, tmp_path, num_train_epochs=1)
    entry = next(each for each in trainer.state.log_history if "loss" in each)
    parts = [entry[f"{name}_huber_loss"] for name in ("mixture", "speech", "text", "fusion")]
    assert entry["loss"] == pytest.approx(sum(parts), rel=1e-3)


# Only what the model reads


@pytest.mark.parametrize("name", ["mister_e", "sdt", "bc_lstm"])
def test_a_model_is_given_the_modalities_that_it_reads(name, tmp_path, capsys):
    model = small_model(name, torch.float32)
    data = score_dialogues(new_model("mult").config)  # with vectors of video
    for item in data:
        item["labels"] = torch.zeros(len(item["labels"]), dtype=torch.long)
        item["visual_embeddings"][:] = math.nan
    trainer = train(model, data, tmp_path, num_train_epochs=2)
    said = capsys.readouterr().err
    assert said.count("the model does not read the dialogues' visual vectors") == 1
    without = [{key: values for key, values in item.items() if "visual" not in key} for item in data]
    other = train(small_model(name, torch.float32), without, tmp_path, num_train_epochs=2)
    assert "does not read" not in capsys.readouterr().err
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[key], value), key
    assert trainer.predict(data).metrics["test_loss"] == other.predict(without).metrics["test_loss"]


def test_three_modalities_are_standardised_and_trained(tmp_path):
    model = new_model("mult", modalities=["speech", "text", "visual"])
    data = score_dialogues(model.config)
    train(model, data, tmp_path, num_train_epochs=1)
    rows = torch.cat([item["visual_embeddings"][item["visual_mask"]] for item in data])
    torch.testing.assert_close(model.visual_input.mean, rows.mean(0))
