import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from mister_e_hf import cli, convert_reference_checkpoint
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.losses import consistency_loss
from mister_e_hf.models.mister_e.convert_reference import convert_reference_state_dict

REFERENCE = Path(__file__).parents[1] / "reference"
OUTPUTS = ("logits", "expert_logits", "gate_weights", "speech_states", "text_states")
LABELS = {0: "anger", 1: "joy", 2: "neutral", 3: "sadness"}


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "reference_checkpoint.safetensors")


@pytest.fixture
def weights(stored) -> dict[str, torch.Tensor]:
    prefix = "weights."
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def run(model, speech, text):
    with torch.no_grad():
        return model(speech_embeddings=speech.float(), text_embeddings=text.float())


def assert_gives_stored_outputs(model, stored):
    for turns in (1, 2, 6):
        dialogue = {name.removeprefix(f"T{turns}."): t for name, t in stored.items() if name.startswith(f"T{turns}.")}
        output = run(model, dialogue["speech_embeddings"], dialogue["text_embeddings"])
        for name in OUTPUTS:
            torch.testing.assert_close(output[name], dialogue[name], rtol=0, atol=1e-5)


def test_converted_checkpoint_gives_the_reference_outputs(weights, stored):
    model = convert_reference_state_dict(weights)
    assert not model.training
    assert_gives_stored_outputs(model, stored)


def test_sizes_and_labels_are_read_off_the_checkpoint(weights):
    config = convert_reference_state_dict(weights, LABELS).config
    assert (config.speech_embedding_dim, config.text_embedding_dim) == (12, 12)
    assert (config.hidden_size, config.attention_dim, config.gate_hidden_size) == (8, 6, 10)
    assert (config.context_num_layers, config.fusion_num_layers) == (3, 2)
    assert config.id2label == LABELS


def test_converted_model_survives_saving_and_loading(weights, stored, tmp_path):
    model = convert_reference_state_dict(weights, LABELS)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.id2label == LABELS
    assert_gives_stored_outputs(loaded, stored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_checkpoint_file_is_read(weights, stored, tmp_path):
    torch.save(weights, tmp_path / "moe_model.pth")
    assert_gives_stored_outputs(convert_reference_checkpoint(tmp_path / "moe_model.pth", LABELS), stored)


def test_names_of_a_data_parallel_checkpoint_are_understood(weights, stored):
    model = convert_reference_state_dict({f"module.{name}": tensor for name, tensor in weights.items()})
    assert_gives_stored_outputs(model, stored)


def test_every_missing_tensor_is_named(weights):
    for name in weights:
        if not name.startswith(("proj.", "classifier.")):
            with pytest.raises(ValueError, match=re.escape(name)):
                convert_reference_state_dict({key: tensor for key, tensor in weights.items() if key != name})


def test_tensors_that_the_published_code_never_uses_may_be_missing(weights, stored):
    used = {name: tensor for name, tensor in weights.items() if not name.startswith(("proj.", "classifier."))}
    assert len(used) == len(weights) - 4
    assert_gives_stored_outputs(convert_reference_state_dict(used), stored)


@pytest.mark.parametrize("name", ["fusion.extra.weight", "fusion.units.0.fc_audq_t.bias", "audio_self.conv7.weight"])
def test_tensor_without_a_place_is_named(weights, name):
    with pytest.raises(ValueError, match=f"that this model does not have: {name}"):
        convert_reference_state_dict({**weights, name: torch.zeros(2)})


@pytest.mark.parametrize("change", ["one more row", "one row alone", "one more dimension"])
def test_every_tensor_of_another_shape_is_refused(weights, change):
    for name, tensor in weights.items():
        if name.startswith(("proj.", "classifier.")):
            continue
        other = {
            "one more row": torch.cat([tensor, tensor[:1]]),
            "one row alone": tensor[:1],
            "one more dimension": tensor[None],
        }
        with pytest.raises(ValueError):
            convert_reference_state_dict({**weights, name: other[change]})


def test_tensor_of_another_shape_is_named(weights):
    for name in (
        "audio_self.rnn_1.weight_hh_l1_reverse",
        "text_self.conv3.weight",
        "fusion.units.1.fc_asrv_s.weight",
        "gate.2.bias",
    ):
        with pytest.raises(ValueError, match=f"'{name}' has shape"):
            convert_reference_state_dict({**weights, name: torch.zeros(3, 3)})


def test_labels_must_be_as_many_as_the_classes(weights):
    with pytest.raises(ValueError, match="names 2 classes, but the checkpoint has 4"):
        convert_reference_state_dict(weights, {0: "a", 1: "b"})


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_pickle_of_anything_but_tensors_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"fusion.fc.weight": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="objects that could run code, and is not read"):
        convert_reference_checkpoint(tmp_path / "bad.pth")
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3}, {"model": {"a": torch.zeros(1)}}])
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="state dict of tensors|Expected names and tensors"):
        convert_reference_checkpoint(tmp_path / "other.pth")


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        convert_reference_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError):
        convert_reference_checkpoint(tmp_path)


def test_stored_outputs_are_those_of_the_script_beside_them(weights, stored):
    compute = runpy.run_path(str(REFERENCE / "make_reference_checkpoint.py"))["compute"]
    speech, text = stored["T6.speech_embeddings"][0].double(), stored["T6.text_embeddings"][0].double()
    for name, value in compute(weights, speech, text).items():
        torch.testing.assert_close(value.float(), stored[f"T6.{name}"][0], rtol=0, atol=1e-6)


@pytest.mark.shared
def test_published_code_and_converted_model_agree_at_full_size(shared_dir):
    fill = runpy.run_path(str(shared_dir / "reference" / "fill.py"))
    model = convert_reference_state_dict(fill["state_dict"](seed=11))
    expected = load_file(shared_dir / "reference" / "outputs_seed11.safetensors")
    for turns in (1, 2, 7, 23):

        def stored(name: str, turns: int = turns) -> torch.Tensor:
            return expected[f"T{turns}.{name}"]

        output = run(model, stored("speech_embeddings"), stored("text_embeddings"))
        for name in ("logits", "expert_logits", "gate_weights"):
            torch.testing.assert_close(output[name], stored(name), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.speech_states[..., :64], stored("fused_speech"), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.text_states[..., :64], stored("fused_text"), rtol=0, atol=1e-4)
        # The mean over the pairs is ours too; the published divisor is the one dialogue, not its turns.
        everyone, labels = torch.ones(1, turns, 3, dtype=torch.bool), torch.zeros(1, turns, dtype=torch.long)
        divergence = consistency_loss(output.expert_logits, everyone, labels, num_items=1)
        torch.testing.assert_close(divergence[None], stored("symmetric_kl_batchmean"), rtol=0, atol=1e-4)


NO_WEIGHTS = {
    "whole numbers": (lambda tensor: tensor.to(torch.int8), "torch.int8"),
    "complex numbers": (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
    "sparse": (lambda tensor: tensor.to_sparse(), "dense"),
    "without values": (lambda tensor: tensor.to("meta"), "meta"),
    "NaN": (lambda tensor: tensor * torch.nan, "NaN, infinite"),
    "overflowing": (lambda tensor: tensor * 1e30, "so large"),
}


@pytest.mark.parametrize(("change", "message"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_tensors_that_are_not_weights_are_refused(weights, tmp_path, change, message):
    torch.save({name: change(tensor) for name, tensor in weights.items()}, tmp_path / "moe_model.pth")
    with pytest.raises(InputError, match=f"moe_model.pth'.*{message}"):
        convert_reference_checkpoint(tmp_path / "moe_model.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), b"\x80\x02."])
def test_a_file_of_something_else_is_refused_without_advice_to_run_it(tmp_path, content):
    (tmp_path / "moe_model.pth").write_bytes(content)
    with pytest.raises(InputError, match="moe_model.pth' is not a file of tensors alone") as caught:
        convert_reference_checkpoint(tmp_path / "moe_model.pth")
    assert "weights_only" not in str(caught.value)


def test_names_that_are_numbers_and_labels_without_names_are_refused(weights, tmp_path):
    torch.save({5: torch.zeros(1)}, tmp_path / "moe_model.pth")
    with pytest.raises(InputError, match="moe_model.pth'.*got 5: Tensor"):
        convert_reference_checkpoint(tmp_path / "moe_model.pth")
    with pytest.raises(InputError, match="every label a name"):
        convert_reference_state_dict(weights, {0: "a", 1: "b", 2: "c", 3: ""})


def test_convert_mixes_no_checkpoint_with_another(tmp_path, capsys):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.json").write_text("{}")
    words = ["convert", tmp_path / "moe_model.pth", tmp_path / "c", "--labels", "a", "b"]
    assert cli.main([str(word) for word in words]) == 2
    assert "is not empty" in capsys.readouterr().err
