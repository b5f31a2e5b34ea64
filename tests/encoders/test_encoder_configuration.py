import math
import re

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    Wav2Vec2Config,
    WavLMConfig,
)

from mister_e_hf import UtteranceEncoder, UtteranceEncoderConfig
from mister_e_hf.encoders.encoder_lora import lora_targets
from support.tiny_backbones import (
    LABELS,
    SPEECH,
    TEXT,
    modality_of,
)

# Making one


def test_a_new_encoder_records_its_backbone(base):
    encoder = UtteranceEncoder.from_backbone(base("whisper"), "speech", id2label=LABELS)
    config = encoder.config
    assert not encoder.training and encoder.main_input_name
    assert (config.modality, config.backbone, config.backbone_revision) == ("speech", str(base("whisper")), None)
    assert config.backbone_config.model_type == "whisper" and config.num_labels == 3
    assert encoder.projection.weight.shape == (2048, 16)
    weights = AutoModel.from_pretrained(base("whisper")).get_encoder().state_dict()
    found = {
        name.replace(".base_layer.", "."): t
        for name, t in encoder.backbone.state_dict().items()
        if "lora_" not in name
    }
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_backbone_is_not_built_twice(base, monkeypatch):
    made, folder = [], base("bert")
    original = AutoModel.from_config
    monkeypatch.setattr(AutoModel, "from_config", lambda *a, **k: made.append(1) or original(*a, **k))
    UtteranceEncoder.from_backbone(folder, "text", tuning="full")
    assert not made


def test_new_weights_are_initialized_as_linear_layers(base):
    torch.manual_seed(0)
    for encoder in (
        UtteranceEncoder.from_backbone(base("bert"), "text", tuning="frozen", pooling="attentive_statistics"),
        UtteranceEncoder(
            UtteranceEncoderConfig(
                tuning="full",
                pooling="attentive_statistics",
                backbone_config=BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9),
            )
        ),
    ):
        for module in (encoder.projection, encoder.pooling.hidden, encoder.head):
            bound = module.in_features**-0.5
            assert bound / 2 < module.weight.abs().max() <= bound
        assert torch.equal(encoder.norm.weight, torch.ones(16)) and not encoder.norm.bias.any()
    assert encoder.backbone.embeddings.word_embeddings.weight.std().item() == pytest.approx(
        0.02, rel=0.2
    )  # Bert's own


def test_unknown_backbone_options_raise(base):
    for name in ("revision", "subfolder", "trust_remote_code", "output_hidden_states"):
        with pytest.raises(ValueError, match=rf"backbone_options has \['{name}'\]; known are \[[^]]*\]$") as error:
            UtteranceEncoder.from_backbone(base("bert"), "text", backbone_options={name: "main"})
        assert f"'{name}'" not in str(error.value).partition("known are")[2]
    UtteranceEncoder.from_backbone(base("bert"), "text", backbone_options={"dtype": None, "local_files_only": True})


# Configuration


REFUSALS = (StrictDataclassError, ValueError, TypeError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modality", "video"),
        ("tuning", "LoRA"),
        ("pooling", "max"),
        ("layer", "last"),
        ("layer", 1.5),
        ("layer", True),
        ("backbone_config", "bert"),
        ("backbone_config", {"hidden_size": 16}),
        ("save_backbone", "yes"),
        ("embedding_dim", 0),
        ("embedding_dim", 6.0),
        ("pooling_dim", 0),
        ("lora_r", 0),
        ("lora_alpha", 0),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_target_modules", "("),
        ("dropout", 1.0),
        ("dropout", math.nan),
        ("focal_gamma", -1.0),
        ("focal_gamma", math.inf),
        ("class_weights", {"LABEL_0": -1.0}),
        ("class_weights", {"joy": 1.0}),
        ("id2label", {1: "anger"}),
    ],
)
def test_wrong_settings_raise_by_name(name, value):
    with pytest.raises(REFUSALS, match="model_type" if value == {"hidden_size": 16} else name):
        UtteranceEncoderConfig(**{name: value})


def test_unknown_fields_raise_with_a_hint(base):
    with pytest.raises(ValueError, match="has no field 'embeding_dim'.*Did you mean 'embedding_dim'"):
        UtteranceEncoderConfig(embeding_dim=6)
    with pytest.raises(ValueError, match="has no field 'poolin'"):
        UtteranceEncoder.from_backbone(base("bert"), "text", poolin="mean")


def test_a_backbone_without_a_name_must_be_saved():
    backbone = {"model_type": "bert", "hidden_size": 16}
    for tuning in ("frozen", "lora"):
        with pytest.raises(REFUSALS, match="no backbone is named; name it, or set save_backbone=True"):
            UtteranceEncoderConfig(tuning=tuning, backbone_config=backbone)
        UtteranceEncoderConfig(tuning=tuning, backbone_config=backbone, save_backbone=True)
    UtteranceEncoderConfig(tuning="full", backbone_config=backbone)


def test_an_encoder_needs_the_configuration_of_its_backbone():
    with pytest.raises(ValueError, match="make the encoder with UtteranceEncoder.from_backbone"):
        UtteranceEncoder(UtteranceEncoderConfig())


def test_configuration_is_saved_and_loaded(tmp_path):
    config = UtteranceEncoderConfig(
        modality="speech",
        backbone="org/name",
        backbone_revision="0123456",
        backbone_config=WavLMConfig(hidden_size=24),
        layer="weighted_sum",
        class_weights={"joy": 2},
        id2label={0: "joy", 1: "anger"},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is UtteranceEncoderConfig and type(loaded.backbone_config) is WavLMConfig
    assert loaded.to_json_string() == config.to_json_string() and loaded.backbone_config.hidden_size == 24
    assert yaml.safe_load(config.to_json_string())["class_weights"] == {"joy": 2}


def test_default_lora_targets_match_the_backbone():
    def reached(config, *names):
        targets = lora_targets(UtteranceEncoderConfig(modality="speech", backbone="org/name", backbone_config=config))
        return [bool(re.fullmatch(targets, name)) for name in names]

    assert reached(
        WavLMConfig(), "encoder.layers.0.attention.q_proj", "encoder.layers.0.feed_forward.output_dense"
    ) == [
        False,
        True,
    ]
    assert reached(Wav2Vec2Config(), "encoder.layers.0.attention.q_proj", "encoder.layers.0.attention.v_proj") == [
        True,
        False,
    ]
    assert lora_targets(UtteranceEncoderConfig(lora_target_modules=".*x")) == ".*x"


def test_modality_names_are_those_of_the_kinds():
    assert {modality_of(kind) for kind in SPEECH} == {"speech"} and {modality_of(kind) for kind in TEXT} == {"text"}
