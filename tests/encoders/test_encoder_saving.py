import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
)

from mister_e_hf import UtteranceEncoder, UtteranceEncoderConfig
from support.encoder_checks import (
    EVERY_PART,
    TUNINGS,
    assert_same,
    run,
    saved,
    small_windows,
)
from support.tiny_backbones import (
    KINDS,
    tiny_batch,
    tiny_encoder,
    write_backbone,
)

OWN_PARTS = {"layer_weights", "norm", "pooling", "projection", "head"}
kinds = pytest.mark.parametrize("kind", KINDS)
tunings = pytest.mark.parametrize("tuning", TUNINGS)


# Saving and loading


ONE_OF_EACH = ["wavlm", "whisper", "qwen2_audio", "bert"]


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [*((kind, "lora") for kind in KINDS), *((kind, tuning) for kind in ONE_OF_EACH for tuning in ("frozen", "full"))],
)
def test_save_and_load_give_equal_outputs(base, kind, tuning, tmp_path):
    encoder = tiny_encoder(base(kind), kind, **{**EVERY_PART, "tuning": tuning})
    folder, batch = saved(encoder, tmp_path / "encoder"), tiny_batch(base(kind), kind, **small_windows(kind))
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(folder)
        assert_same(loaded, encoder, batch)
    again = saved(loaded, tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for path in files:
        same = (folder / path).read_bytes() == (again / path).read_bytes()
        assert same, path


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [
        *((kind, "lora") for kind in ("wav2vec2-group", "wavlm", "whisper", "qwen2_audio", "bert", "llama")),
        ("whisper", "frozen"),
        ("wavlm", "full"),
        ("qwen2_audio", "full"),
        ("bert", "full"),
    ],
)
def test_a_half_precision_backbone_is_trained_saved_and_loaded(base, kind, tuning, tmp_path):
    options = {"dtype": torch.bfloat16}
    encoder = tiny_encoder(base(kind), kind, **{**EVERY_PART, "tuning": tuning}, backbone_options=options)
    batch = tiny_batch(base(kind), kind, **small_windows(kind))
    for name, parameter in encoder.named_parameters():
        half = name.startswith("backbone.") and "lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    output = run(encoder, batch)
    assert output.embeddings.dtype == torch.float32
    encoder.train()(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    encoder.eval()
    folder = saved(encoder, tmp_path / "encoder")
    assert_same(AutoModel.from_pretrained(folder), encoder, batch)
    exact = tiny_encoder(base(kind), kind, **{**EVERY_PART, "tuning": tuning})
    torch.testing.assert_close(output.embeddings, run(exact, batch).embeddings, rtol=0, atol=0.15)
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}
    half = AutoModel.from_pretrained(folder, dtype="bfloat16")
    assert {p.dtype for n, p in half.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    assert run(half, batch).logits.dtype == torch.bfloat16


def test_a_checkpoint_of_half_precision_is_trained_in_float32_by_default(tmp_path):
    folder = write_backbone(tmp_path, "bert", dtype=torch.float16)
    assert next(tiny_encoder(folder, "bert", tuning="full").backbone.parameters()).dtype == torch.float32


@kinds
def test_files_hold_only_what_was_trained(base, kind, tmp_path):
    # As the pretrained model's own file names its weights, whatever transformers calls them in memory.
    whole = {
        f"backbone.{name.removeprefix('encoder.') if kind == 'whisper' else name}"
        for name in load_file(base(kind) / "model.safetensors")
        if not name.startswith("decoder.")
    }
    for tuning in TUNINGS:
        for save_backbone in (False, True):
            settings = {**EVERY_PART, "tuning": tuning, "save_backbone": save_backbone}
            encoder = tiny_encoder(base(kind), kind, **settings)
            folder = saved(encoder, tmp_path / f"{tuning}-{save_backbone}")
            stored = load_file(folder / "model.safetensors")
            own = {name for name in stored if name.split(".")[0] in OWN_PARTS}
            assert {name.split(".")[0] for name in own} == OWN_PARTS
            assert set(stored) - own == (whole if tuning == "full" or save_backbone else set())
            size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
            assert (folder / "model.safetensors").stat().st_size < size + 150 * len(stored)
            assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".py", ".safetensors"}
            assert (folder / "adapter").is_dir() == (tuning == "lora")
            assert not (folder / "adapter_config.json").exists()  # transformers would take it for the whole model
            if tuning == "lora":
                adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
                wrapped = [name for name, module in encoder.backbone.named_modules() if hasattr(module, "lora_A")]
                prefix = "base_model.model." + ("encoder." if kind == "whisper" else "")
                assert set(adapter) == {f"{prefix}{name}.lora_{part}.weight" for name in wrapped for part in "AB"}


@pytest.mark.parametrize(("kind", "tuning"), [("wavlm", "full"), ("whisper", "frozen"), ("llama", "lora")])
def test_a_checkpoint_that_holds_the_backbone_needs_no_other(tmp_path, kind, tuning):
    folder = write_backbone(tmp_path / "base", kind)
    encoder = tiny_encoder(folder, kind, **{**EVERY_PART, "tuning": tuning}, save_backbone=True)
    batch = tiny_batch(folder, kind)
    saved(encoder, tmp_path / "encoder")
    shutil.rmtree(folder)
    assert_same(AutoModel.from_pretrained(tmp_path / "encoder"), encoder, batch)


def test_an_encoder_is_loaded_from_a_subfolder(base, tmp_path):
    for tuning in TUNINGS:
        encoder = tiny_encoder(base("whisper"), "whisper", tuning=tuning)
        saved(encoder, tmp_path / tuning / "speech_encoder")
        for loader in (UtteranceEncoder, AutoModel):
            loaded = loader.from_pretrained(tmp_path / tuning, subfolder="speech_encoder")
            assert_same(loaded, encoder, tiny_batch(base("whisper"), "whisper"))


@pytest.mark.parametrize("kind", ["wavlm", "whisper", "qwen2_audio", "bert", "gpt2"])
def test_peft_loads_the_adapter(base, kind, tmp_path):
    encoder = tiny_encoder(base(kind), kind, tuning="lora", layer="weighted_sum")
    saved(encoder, tmp_path / "speech_encoder")
    config = json.loads((tmp_path / "speech_encoder" / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["peft_type"]) == (str(base(kind)), "LORA")
    assert config["inference_mode"] is True
    model = AutoModel.from_pretrained(base(kind), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, tmp_path / "speech_encoder", subfolder="adapter").eval()
    backbone = adapted.base_model.model.get_encoder() if kind == "whisper" else adapted.base_model.model
    expected = encoder.backbone.state_dict()
    assert {name for name in adapted.state_dict() if "lora_" in name} == {
        f"base_model.model.{'encoder.' if kind == 'whisper' else ''}{name}" for name in expected if "lora_" in name
    }
    other = copy.deepcopy(encoder)
    other.backbone = backbone
    batch = tiny_batch(base(kind), kind)
    assert torch.equal(run(other, batch).embeddings, run(encoder, batch).embeddings)


@pytest.fixture
def lora(base, tmp_path) -> Path:
    """A folder of an encoder with LoRA."""
    return saved(tiny_encoder(base("bert"), "bert", tuning="lora"), tmp_path / "lora")


def change_weights(folder: Path, change, name: str = "model.safetensors"):
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("loader", [UtteranceEncoder, AutoModel])
def test_weights_that_do_not_fit_raise(lora, loader):
    change_weights(lora, lambda state: state.pop("head.bias"))
    with pytest.raises(ValueError, match="missing: head.bias.*Load them with the config.json they were saved with"):
        loader.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({"head.bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match="of another shape: head.bias.*Load them with the config.json"):
        loader.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({"head.bias": torch.zeros(3), "tail.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="unexpected: tail.bias"):
        loader.from_pretrained(lora)


def test_a_missing_weight_of_the_backbone_raises(base, tmp_path):
    folder = saved(tiny_encoder(base("bert"), "bert", tuning="full"), tmp_path / "full")
    name = "backbone.encoder.layer.1.attention.self.query.weight"
    change_weights(folder, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=f"missing: {name}"):
        AutoModel.from_pretrained(folder)


def test_an_adapter_that_does_not_fit_raises(lora):
    path = "adapter/adapter_model.safetensors"
    first = sorted(load_file(lora / path))[0]
    with pytest.raises(ValueError, match="of another shape: .*lora_A.*Load it with the config.json"):
        UtteranceEncoder.from_pretrained(lora, lora_r=4)
    tensor = load_file(lora / path)[first]
    change_weights(lora, lambda state: state.pop(first), path)
    with pytest.raises(ValueError, match=f"missing: {first.removeprefix('base_model.model.')}"):
        AutoModel.from_pretrained(lora)
    change_weights(lora, lambda state: state.update({first: tensor, "more": tensor.clone()}), path)
    with pytest.raises(ValueError, match="unexpected: more"):
        AutoModel.from_pretrained(lora)
    shutil.rmtree(lora / "adapter")
    with pytest.raises(OSError, match="has no adapter/adapter_model.safetensors; save or push the whole folder"):
        AutoModel.from_pretrained(lora)


def test_a_missing_backbone_raises_and_can_be_supplied(tmp_path):
    folder = write_backbone(tmp_path / "base", "bert")
    encoder = tiny_encoder(folder, "bert", tuning="lora")
    batch = tiny_batch(folder, "bert")
    saved(encoder, tmp_path / "encoder")
    folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="could not be loaded.*backbone=.*save_backbone=True"):
        AutoModel.from_pretrained(tmp_path / "encoder")
    for loader in (UtteranceEncoder, AutoModel):
        moved = loader.from_pretrained(tmp_path / "encoder", backbone=str(tmp_path / "moved"))
        assert torch.equal(run(moved, batch).logits, run(encoder, batch).logits)
    write_backbone(folder, "bert", hidden_size=32)
    with pytest.raises(ValueError, match="has become another model"):
        AutoModel.from_pretrained(tmp_path / "encoder")


def test_a_pickle_is_never_read(lora):
    torch.save(load_file(lora / "model.safetensors"), lora / "pytorch_model.bin")
    (lora / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(lora)


def test_lora_without_peft_says_what_to_install(lora, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    for make in (
        lambda: tiny_encoder(base("bert"), "bert", tuning="lora"),
        lambda: UtteranceEncoder.from_pretrained(lora),
    ):
        with pytest.raises(ImportError, match="LoRA needs peft: pip install peft"):
            make()
    tiny_encoder(base("bert"), "bert", tuning="full")


def test_loading_overrides_fields(lora):
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(lora, dropout=0.25, focal_gamma=1.0)
        assert (loaded.config.dropout, loaded.dropout.p, loaded.config.focal_gamma) == (0.25, 0.25, 1.0)


def test_other_classes_get_a_new_head_on_request(lora, base):
    labels = {0: "yes", 1: "no", 2: "perhaps", 3: "never"}
    with pytest.raises(ValueError, match="of another shape: head.bias, head.weight.*ignore_mismatched_sizes=True"):
        AutoModel.from_pretrained(lora, id2label=labels)
    before = UtteranceEncoder.from_pretrained(lora)
    for loader in (UtteranceEncoder, AutoModel):
        loaded = loader.from_pretrained(lora, id2label=labels, ignore_mismatched_sizes=True)
        assert loaded.head.weight.shape == (4, 6) and 0 < loaded.head.weight.abs().max() <= 6**-0.5
        batch = tiny_batch(base("bert"), "bert")
        assert torch.equal(run(loaded, batch).embeddings, run(before, batch).embeddings)


def test_loading_info_is_returned(lora):
    model, info = AutoModel.from_pretrained(lora, output_loading_info=True)
    assert type(model) is UtteranceEncoder and not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("kind", "tuning", "save_backbone"),
    [
        *((kind, "lora", False) for kind in KINDS),
        *((kind, tuning, False) for kind in ONE_OF_EACH for tuning in ("frozen", "full")),
        *((kind, "lora", True) for kind in ONE_OF_EACH),
    ],
)
def test_trained_weights_are_loaded_into_an_encoder(base, kind, tuning, save_backbone, tmp_path):
    settings = {**EVERY_PART, "tuning": tuning, "save_backbone": save_backbone}
    encoder = tiny_encoder(base(kind), kind, **settings)
    folder, batch = saved(encoder, tmp_path / "encoder"), tiny_batch(base(kind), kind, **small_windows(kind))
    other = tiny_encoder(base(kind), kind, seed=1, **settings)
    assert not torch.equal(run(other, batch).logits, run(encoder, batch).logits)
    other.load_trained_weights(folder)
    assert_same(other, encoder, batch)


@tunings
def test_weights_of_another_encoder_raise(base, tuning, tmp_path):
    encoder = tiny_encoder(base("bert"), "bert", tuning=tuning)
    other = saved(
        tiny_encoder(base("bert"), "bert", tuning=tuning, pooling="attentive_statistics"), tmp_path / "other"
    )
    kept = copy.deepcopy(encoder.state_dict())
    with pytest.raises(ValueError, match="is not a checkpoint of this encoder .*unexpected: pooling.hidden"):
        encoder.load_trained_weights(other)
    wider = saved(tiny_encoder(base("bert"), "bert", tuning=tuning, embedding_dim=7), tmp_path / "wider")
    with pytest.raises(ValueError, match="of another shape: head.weight, projection"):
        encoder.load_trained_weights(wider)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in encoder.state_dict().items())


def test_a_given_state_dict_is_saved(base, tmp_path):
    for tuning in TUNINGS:
        encoder, other = (tiny_encoder(base("bert"), "bert", seed=seed, tuning=tuning) for seed in (0, 1))
        encoder.save_pretrained(tmp_path / tuning, state_dict=other.state_dict())
        assert_same(AutoModel.from_pretrained(tmp_path / tuning), other, tiny_batch(base("bert"), "bert"))


def test_fingerprint_depends_on_what_was_trained(base):
    for tuning in TUNINGS:
        encoder = tiny_encoder(base("bert"), "bert", tuning=tuning)
        first = encoder.fingerprint()
        assert copy.deepcopy(encoder).fingerprint() == first
        for name, parameter in encoder.named_parameters():
            kept = parameter.data.clone()
            parameter.data.view(-1)[-1] += 1
            assert (encoder.fingerprint() != first) == (tuning == "full" or parameter.requires_grad), name
            parameter.data.copy_(kept)
        assert tiny_encoder(base("bert"), "bert", tuning=tuning, layer=1).fingerprint() != first


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
"""


def test_code_of_a_backbone_is_never_run(tmp_path):
    folder = write_backbone(tmp_path / "base", "bert")
    encoder = saved(tiny_encoder(folder, "bert"), tmp_path / "encoder")
    whole = saved(tiny_encoder(folder, "bert", tuning="full"), tmp_path / "whole")
    own = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "trust_remote_code": True}
    for where in (folder, encoder, whole):
        (where / "evil.py").write_text(CODE.format(marker=str(tmp_path / "was run")))
        config = json.loads((where / "config.json").read_text())
        config.get("backbone_config", config).update(own)
        (where / "config.json").write_text(json.dumps(config))
    for model in (
        AutoModel.from_pretrained(encoder),
        AutoModel.from_pretrained(whole),
        UtteranceEncoder.from_pretrained(whole, trust_remote_code=True),
        tiny_encoder(folder, "bert"),
    ):
        assert type(model.backbone).__module__ == "transformers.models.bert.modeling_bert"
    config = UtteranceEncoderConfig.from_pretrained(encoder)
    assert not hasattr(config.backbone_config, "auto_map") and not hasattr(config.backbone_config, "trust_remote_code")
    for where in (folder, encoder):
        config = json.loads((where / "config.json").read_text())
        config.get("backbone_config", config)["model_type"] = "evil"
        (where / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="evil|trust_remote_code|only be loaded with its own code"):
            (UtteranceEncoder if where == encoder else AutoModel).from_pretrained(where)
        with pytest.raises(ValueError, match="evil|trust_remote_code|only be loaded with its own code"):
            UtteranceEncoder.from_backbone(folder, "text") if where == folder else AutoModel.from_pretrained(encoder)
    assert not (tmp_path / "was run").exists()
