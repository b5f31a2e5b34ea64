"""Checkpoints of MiSTER-E: loaded strictly, bit-equal, and with new heads for other classes."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mister_e_hf import MisterEModel
from support.mister_e_settings import LENGTHS, run, settings


@settings
@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
def test_loaded_model_is_bit_equal_to_the_saved(tiny_model, make_batch, tmp_path, changes, load):
    model = tiny_model(dtype=torch.float32, **changes)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is MisterEModel and not loaded.training
    assert_bit_equal(loaded.state_dict(), model.state_dict())
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    before, after = run(model, batch), run(loaded, batch)
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in before)


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


def test_standardisation_is_saved_with_the_weights(tiny_model, tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("speech_input.mean", "speech_input.std", "text_input.mean", "text_input.std"):
        assert torch.equal(stored[name], model.state_dict()[name])
        assert stored[name].abs().sum() > 0


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("text_expert.gru.weight_hh_l0"), "missing: text_expert.gru.weight_hh_l0"),
        (lambda weights: weights.pop("speech_input.std"), "missing: speech_input.std"),
        (lambda weights: weights.pop("gate.dense.bias"), "missing: gate.dense.bias"),
        (lambda weights: weights.update({"gate.third.bias": torch.zeros(2)}), "unexpected: gate.third.bias"),
        (
            lambda weights: weights.update({"speech_expert.skip.weight": torch.zeros(8, 6)}),
            "of another shape: speech_expert.skip.weight",
        ),
        (
            lambda weights: (weights.pop("fusion_expert.norm.bias"), weights.update({"extra": torch.zeros(1)})),
            "missing: fusion_expert.norm.bias; unexpected: extra",
        ),
    ],
    ids=["no weight", "no buffer", "no gate bias", "one too many", "another shape", "another name"],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, edit, message, load, ignore):
    edit_weights(saved, edit)
    with pytest.raises(ValueError, match=message):
        load(saved, ignore_mismatched_sizes=ignore)


def test_heads_of_another_size_are_refused_by_name(saved):
    edit_weights(saved, lambda weights: weights.update({"text_expert.head.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match="of another shape: text_expert.head.bias"):
        MisterEModel.from_pretrained(saved)


HEADS = {f"{name}_expert.head.{part}" for name in ("speech", "text", "fusion") for part in ("weight", "bias")}
GATE = {f"gate.{layer}.{part}" for layer in ("dense", "output") for part in ("weight", "bias")}


@pytest.mark.parametrize("load", [MisterEModel.from_pretrained, AutoModel.from_pretrained], ids=["own", "auto"])
@pytest.mark.parametrize("labels", [["calm", "tense"], ["a", "b", "c"], ["a", "b", "c", "d"]], ids=len)
def test_new_classes_start_heads_and_gate_anew_with_one_warning(saved, make_batch, tmp_path, caplog, load, labels):
    before = load_file(saved / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        model = load(saved, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True)
    warnings = [record for record in caplog.records if record.name.endswith("stored_models")]
    assert len(warnings) == 1
    after = model.state_dict()
    assert all(name in warnings[0].getMessage() for name in HEADS | GATE)
    assert after.keys() == before.keys()
    for name in after:
        if name in HEADS | GATE:
            assert after[name].shape != before[name].shape or not torch.equal(after[name], before[name]), name
            bound = model.get_submodule(name.rpartition(".")[0]).in_features ** -0.5
            assert after[name].abs().max() <= bound and after[name].std() > 0, name
        else:
            assert torch.equal(after[name], before[name]), name
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: index for index, label in enumerate(labels)}
    assert run(model, make_batch([3], model.config, dtype=torch.float32)).logits.shape == (1, 3, len(labels))
    # and what was fine-tuned can be saved and loaded
    model.save_pretrained(tmp_path / "tuned")
    assert_bit_equal(AutoModel.from_pretrained(tmp_path / "tuned").state_dict(), after)


def test_same_classes_keep_heads_and_gate(saved, caplog):
    with caplog.at_level(logging.WARNING):
        model = MisterEModel.from_pretrained(saved, ignore_mismatched_sizes=True)
    assert_bit_equal(model.state_dict(), load_file(saved / "model.safetensors"))
    assert not [record for record in caplog.records if record.name.endswith("modeling_conversation")]


def test_loading_info_is_returned_when_asked_for(saved):
    model, info = MisterEModel.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, MisterEModel)
    assert not info["missing_keys"] and not info["unexpected_keys"]
