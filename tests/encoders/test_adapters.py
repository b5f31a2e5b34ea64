import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from mister_e_hf import UtteranceEncoder
from mister_e_hf.encoders.encoder_lora import lora_targets
from support.tiny_backbones import tiny_batch, tiny_encoder, write_backbone

ENDLESS = r"(?:(?:(?:.{1,1000}){1,1000}){1,1000}){1,1000}Y|(([a-z_.]+)+)+[0-9]X"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("base"), "bert")


def test_lora_asks_nothing_of_the_version_that_transformers_wants(base, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("The version of PEFT you are using is not compatible")

    for name in ("add_adapter", "load_adapter", "set_adapter"):
        monkeypatch.setattr(f"transformers.PreTrainedModel.{name}", refuse)
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse, raising=False)
    encoder = tiny_encoder(base, "bert", tuning="lora")
    encoder.train()(**tiny_batch(base, "bert"), labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = {name for name, parameter in encoder.backbone.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in encoder.backbone.named_parameters() if "lora_" in name} != set()


def test_names_of_parameters_stay_those_of_stored_checkpoints(base, tmp_path):
    encoder = tiny_encoder(base, "bert", tuning="lora")
    layer = "encoder.layer.0.attention.self.query"
    names = {name for name in encoder.state_dict() if layer in name}
    parts = ("base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
    assert names == {f"backbone.{layer}.{part}" for part in parts}
    encoder.save_pretrained(tmp_path)
    assert f"base_model.model.{layer}.lora_A.weight" in load_file(tmp_path / "adapter/adapter_model.safetensors")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["target_modules"] == lora_targets(encoder.config)


def test_an_adapter_that_was_trained_elsewhere_goes_in_bit_for_bit(base, tmp_path):
    encoder = tiny_encoder(base, "bert", tuning="lora")
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "adapter/adapter_model.safetensors"
    given = {name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}
    save_file(given, path)
    state = UtteranceEncoder.from_pretrained(tmp_path).backbone.state_dict()
    for name, tensor in given.items():
        name = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        assert torch.equal(state[name], tensor), name


@pytest.mark.timeout(60)
@pytest.mark.parametrize("where", ["argument", "checkpoint"])
def test_a_pattern_that_never_ends_is_stopped(base, tmp_path, monkeypatch, where):
    monkeypatch.setattr("mister_e_hf.encoders.adapters._SECONDS", 0.5)
    tiny_encoder(base, "bert", tuning="lora").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_target_modules": ENDLESS}))
    with pytest.raises(ValueError, match="lora_target_modules .* takes more than"):
        if where == "argument":
            tiny_encoder(base, "bert", tuning="lora", lora_target_modules=ENDLESS)
        else:
            UtteranceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("pattern", ["(", "(?:" * 5000 + "a" + ")" * 5000, "*a"])
def test_a_pattern_that_is_none_is_refused(base, pattern):
    with pytest.raises((ValueError, StrictDataclassError), match="(?s)lora_target_modules .*not a regular expression"):
        tiny_encoder(base, "bert", tuning="lora", lora_target_modules=pattern)


def test_modules_that_lora_cannot_change_are_named(base):
    with pytest.raises(ValueError, match=r"lora_target_modules '.\*LayerNorm' matches modules that LoRA cannot"):
        tiny_encoder(base, "bert", tuning="lora", lora_target_modules=r".*LayerNorm")
