"""What every conversation model keeps when it predicts scores, as checks like those of `model_contract.py`."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.part_weights import WEIGHT_FIELDS
from mister_e_hf.models.registry import entry
from support.model_contract import (
    LABELS,
    Batch,
    assert_same,
    gradients_of,
    outputs_of,
    rows_of,
    small_batch,
    small_config,
    small_model,
    spread,
)

TARGETS = {0: "valence", 1: "arousal"}
REGRESSION = {"id2label": TARGETS, "problem_type": "regression"}
# Fields that configurations have had since models predict scores.
NEW_FIELDS = ("problem_type", "regression_loss", "huber_delta", "visual_embedding_dim")
PLACES = [[0, 2, 3, 4, 7, 8, 9]] * 4


def score_model(name: str, dtype: torch.dtype = torch.float64, **changes):
    return small_model(name, dtype, **REGRESSION, **changes)


def score_batch(config, dtype: torch.dtype = torch.float64) -> Batch:
    """A small batch whose labels are scores (B, T, S), a third of them missing, and all in padding."""
    batch = small_batch(config, dtype=dtype)
    generator = torch.Generator().manual_seed(8)
    shape = (*batch["attention_mask"].shape, config.num_labels)
    labels = 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    missing = (torch.rand(shape, generator=generator) < 0.3) | ~batch["attention_mask"][..., None]
    return {**batch, "labels": labels.masked_fill(missing, math.nan).to(dtype)}


def scores_have_the_declared_targets(name: str, folder: Path):
    model = score_model(name)
    config, batch = model.config, score_batch(model.config)
    assert config.task == "regression" and config.num_labels == 2
    view = model.view(model(**batch))
    assert view.logits.shape == (4, 7, 2)
    assert tuple(view.head_logits or ()) == tuple(config.heads)
    assert all(scores.shape == (4, 7, 2) for scores in (view.head_logits or {}).values())
    assert model(**{**batch, "labels": None}).loss is None
    assert not [key for key in small_model(name).state_dict() if "target_scale" in key]
    one = small_model(name, id2label={0: "sentiment"}, problem_type="regression")
    assert one(**score_batch(one.config)).logits.shape == (4, 7, 1)


def loss_of_scores_is_its_closed_form(name: str, folder: Path):
    for kind, delta in (("l1", 1.0), ("huber", 0.7)):
        model = score_model(name, regression_loss=kind, huber_delta=delta)
        batch = score_batch(model.config)
        output = model(**batch)
        view, parts = model.view(output), model.loss_parts(output)
        # SDT's students learn from the labels, too; other heads have parts of their own or no loss
        heads = [view.logits, *view.head_logits.values()] if name == "sdt" else [view.logits]
        expected, count = 0.0, 0
        for row, turn, target in (~batch["labels"].isnan()).nonzero().tolist():
            count += 1
            for scores in heads:
                error = abs(scores[row, turn, target] - batch["labels"][row, turn, target]).item()
                quadratic = kind == "huber" and error <= delta
                linear = error if kind == "l1" else delta * (error - delta / 2)
                expected += error**2 / 2 if quadratic else linear
        found = next(iter(parts.values())) if parts else output.loss
        assert found.item() == pytest.approx(expected / count, rel=1e-9)
        assert not parts or (kind in next(iter(parts)) and torch.allclose(sum(parts.values()), output.loss))


def scores_are_in_the_unit_of_the_labels(name: str, folder: Path):
    model = score_model(name)
    batch = score_batch(model.config)
    real = batch["attention_mask"]
    mean, std = model.target_scale.mean.clone(), model.target_scale.std.clone()
    scaled = outputs_of(model, batch)
    model.target_scale.set_statistics(torch.zeros(2), torch.ones(2))
    plain = outputs_of(model, batch)
    for key, values in plain.items():
        if key in WEIGHT_FIELDS:
            torch.testing.assert_close(scaled[key], values)
        elif key == "logits" and hasattr(model.config, "score_range"):  # answers are scores as they are
            torch.testing.assert_close(scaled[key], values, rtol=0, atol=0)
        else:
            torch.testing.assert_close(scaled[key][real], mean + std * values[real])
            assert (scaled[key][~real] == 0).all()


def padding_of_scores_changes_nothing(name: str, folder: Path):
    model = score_model(name)
    batch = score_batch(model.config)
    expected, loss, gradients = outputs_of(model, batch), model(**batch).loss, gradients_of(model, batch)
    for content in (1e30, -math.inf, math.nan):
        wide = spread(batch, PLACES, 10, content)
        wide["labels"][~wide["attention_mask"]] = content
        found = {key: values[:, PLACES[0]] for key, values in outputs_of(model, wide).items()}
        assert_same(found, expected)
        torch.testing.assert_close(model(**wide).loss, loss, rtol=0, atol=1e-10)
        assert_same(gradients_of(model, wide), gradients)


def micro_batches_of_scores_add_up(name: str, folder: Path):
    model = score_model(name)
    batch = score_batch(model.config)
    whole, count = gradients_of(model, batch), (~batch["labels"].isnan()).sum()
    assert all(gradient.any() or key.endswith("key.bias") for key, gradient in whole.items())
    parts = [rows_of(batch, [row]) for row in range(4)]
    for items in (count, int(count)):
        assert_same(gradients_of(model, *parts, num_items_in_batch=items), whole)


def scores_that_cannot_be_are_refused(name: str, folder: Path):
    model = score_model(name)
    batch = score_batch(model.config)
    infinite = batch["labels"].clone()
    infinite[0, 0, 0] = math.inf
    wrong = (batch["labels"].nan_to_num().long(), batch["labels"][..., :1], batch["labels"][:, :3], infinite)
    for labels in (*wrong, batch["labels"][..., 0]):
        with pytest.raises(InputError, match="labels"):
            model(**{**batch, "labels": labels})


def without_a_score_the_loss_is_zero_with_a_graph(name: str, folder: Path):
    model = score_model(name)
    batch = score_batch(model.config)
    batch["labels"][:] = math.nan
    assert model(**batch).loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(model, batch).values())


def autocast_gives_a_finite_loss_of_scores(name: str, folder: Path):
    model = score_model(name, torch.float32)
    batch = score_batch(model.config, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def model_of_scores_survives_its_checkpoint(name: str, folder: Path):
    model = score_model(name, torch.float32, regression_loss="huber", huber_delta=0.5)
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "regression"
    assert {"target_scale.mean", "target_scale.std"} <= set(load_file(folder / "model.safetensors"))
    again = AutoModel.from_pretrained(folder)
    assert again.config.task == "regression" and again.config.id2label == TARGETS
    assert (again.config.regression_loss, again.config.huber_delta) == ("huber", 0.5)
    batch = score_batch(model.config, torch.float32)
    assert_same(outputs_of(again, batch), outputs_of(model, batch), 0.0)
    assert torch.equal(again(**batch).loss, model(**batch).loss)


def old_configuration_loads(name: str, folder: Path):
    config = small_config(name)
    config.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    for field in NEW_FIELDS:
        written.pop(field, None)
    path.write_text(json.dumps(written))
    again = AutoConfig.from_pretrained(folder)
    assert again.task == "classification" and again.id2label == LABELS
    read = list(config.modalities)
    assert list(again.modalities) == (
        read if "modalities" in written else [each for each in read if each in again.widths]
    )


def another_task_starts_the_heads_again(name: str, folder: Path):
    model = small_model(name, torch.float32, class_weights={"joy": 2.0}, calibration_temperature=1.5)
    model.save_pretrained(folder / "classes")
    options = {"ignore_mismatched_sizes": True}
    scores = AutoModel.from_pretrained(folder / "classes", **REGRESSION, **options)
    assert scores.config.task == "regression" and scores.config.class_weights is None
    assert torch.equal(scores.target_scale.mean, torch.zeros(2)) and (scores.target_scale.std == 1).all()
    assert scores(**score_batch(scores.config, torch.float32)).loss.isfinite()
    scores.target_scale.set_statistics(torch.ones(2), 3 * torch.ones(2))
    scores.save_pretrained(folder / "scores")
    other = AutoModel.from_pretrained(folder / "scores", id2label={0: "a", 1: "b"}, **options)
    assert other.config.task == "regression" and not other.target_scale.mean.any()
    classes = AutoModel.from_pretrained(folder / "scores", problem_type=None, id2label=LABELS, **options)
    assert classes.config.task == "classification"
    before, after = model.state_dict(), classes.state_dict()
    assert before.keys() == after.keys()
    kept = [key for key in before if not (key.startswith("gate.") or ".head." in f".{key}")]
    assert_same({key: after[key] for key in kept}, {key: before[key] for key in kept}, 0.0)
    with pytest.raises(ValueError, match=r"missing: target_scale\.mean"):
        AutoModel.from_pretrained(folder / "classes", **REGRESSION)
    with pytest.raises(ValueError, match=r"unexpected: target_scale\.mean"):
        AutoModel.from_pretrained(folder / "scores", problem_type=None)


def what_only_classes_have_is_refused(name: str, folder: Path):
    for changes in ({"class_weights": {"valence": 2.0}}, {"calibration_temperature": 2.0}, {"huber_delta": 0.0}):
        with pytest.raises(StrictDataclassError, match=next(iter(changes))):
            small_config(name, **REGRESSION, **changes)
    with pytest.raises(StrictDataclassError, match="problem_type must be null for classes or 'regression' for scores"):
        small_config(name, problem_type="multi_label_classification")
    offered = [each for each in entry(name).ablations.values() if each.applies(small_config(name).heads, "regression")]
    for field in ("training.contrastive_weight", "training.consistency_weight"):
        assert not any(each.changes.get(field) for each in offered)
    for section, _, field in (each.partition(".") for each in entry(name).search_space):
        assert section != "model" or field not in ("focal_gamma", "class_weights")


SCORE_CHECKS: tuple[Callable[[str, Path], None], ...] = (
    scores_have_the_declared_targets,
    loss_of_scores_is_its_closed_form,
    scores_are_in_the_unit_of_the_labels,
    padding_of_scores_changes_nothing,
    micro_batches_of_scores_add_up,
    scores_that_cannot_be_are_refused,
    without_a_score_the_loss_is_zero_with_a_graph,
    autocast_gives_a_finite_loss_of_scores,
    model_of_scores_survives_its_checkpoint,
    old_configuration_loads,
    another_task_starts_the_heads_again,
    what_only_classes_have_is_refused,
)
