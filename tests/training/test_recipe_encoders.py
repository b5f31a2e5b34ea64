"""The sections of encoders."""

import pytest
import torch
import yaml

from mister_e_hf import Recipe, UtteranceEncoderConfig
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.corpora.demo import LABELS
from support.small_encoders import write_backbone
from support.small_recipes import ENCODERS, OWN_LABELS, RECIPES, SECTIONS, recipe, recipe_of_encoders, write


def test_encoder_sections_hold_fields_and_training(tmp_path):
    made = Recipe.load(write(tmp_path, yaml.safe_dump(SECTIONS | ENCODERS)))
    text = made.encoder("text")
    assert (text.modality, text.fields["backbone"], text.fields["lora_r"]) == ("text", "org/text", 4)
    assert text.to_dict() == {"modality": "text", **ENCODERS["text_encoder"]}
    arguments = text.training_arguments(tmp_path, seed=5)
    assert (arguments.learning_rate, arguments.head_learning_rate, arguments.seed) == (1e-4, 1e-3, 5)
    assert arguments.output_dir == str(tmp_path)
    speech = made.encoder("speech")
    assert speech.fields == ENCODERS["speech_encoder"] and speech.training == {}
    # stage 2 is what it was
    assert made.model_config().to_dict() == Recipe(SECTIONS).model_config().to_dict()
    assert made.training_arguments(tmp_path, 0).learning_rate == 1e-5


def test_encoder_settings_are_a_copy():
    made = recipe_of_encoders()
    settings = made.encoder("text")
    settings.fields["lora_r"] = settings.training["learning_rate"] = 0
    made.to_dict()["text_encoder"]["training"]["learning_rate"] = 0
    assert made.encoder("text").to_dict() == {"modality": "text", **ENCODERS["text_encoder"]}


ENCODER_ROUND_TRIPS = {
    "both": ENCODERS,
    "training alone": {"text_encoder": {"training": {"num_train_epochs": 3}}},
    "no training": {"speech_encoder": {"backbone": "org/speech"}},
    "exponents": {"text_encoder": {"backbone": "a", "training": {"learning_rate": "1e-5"}, "dropout": "1e-1"}},
}


@pytest.mark.parametrize("sections", ENCODER_ROUND_TRIPS.values(), ids=ENCODER_ROUND_TRIPS)
def test_encoder_sections_to_dict_and_back(sections, tmp_path):
    made = Recipe(SECTIONS | sections)
    told = made.to_dict()
    assert set(told) == {*SECTIONS, *sections}
    again = Recipe.load(write(tmp_path, yaml.safe_dump(told)))
    assert again.to_dict() == told and again.sections == made.sections
    if sections is ENCODERS:
        assert {name: told[name] for name in sections} == sections
    if "dropout" in sections.get("text_encoder", {}):
        assert told["text_encoder"] == {"backbone": "a", "dropout": 0.1, "training": {"learning_rate": 1e-5}}


@pytest.mark.parametrize("sections", [{}, {"text_encoder": None}, {"text_encoder": {}, "speech_encoder": None}])
def test_a_recipe_without_encoders(sections):
    made = Recipe(SECTIONS | sections)
    assert made.to_dict() == SECTIONS | {"corpus": {"labels": LABELS}}
    for modality in ("speech", "text"):
        with pytest.raises(ValueError, match=f"no encoder of {modality} can be trained"):
            made.encoder(modality)


ENCODER_OVERRIDES = {
    "field": (["--text_encoder.tuning", "full"], "text_encoder", "tuning", "full"),
    "training": (
        ["--text_encoder.training.learning_rate", "1e-3"],
        "text_encoder.training",
        "learning_rate",
        1e-3,
    ),
    "equals sign": (["--speech_encoder.training.fp16=true"], "speech_encoder.training", "fp16", True),
    "flag": (["--text_encoder.save_backbone", "--causal"], "text_encoder", "save_backbone", True),
    "layer by number": (["--speech_encoder.layer", "-2"], "speech_encoder", "layer", -2),
    "layer by name": (["--speech_encoder.layer", "weighted_sum"], "speech_encoder", "layer", "weighted_sum"),
    "null": (["--speech_encoder.trailing_silence", "null"], "speech_encoder", "trailing_silence", None),
    "a name that is a number": (["--text_encoder.backbone", "2024"], "text_encoder", "backbone", "2024"),
    "a mapping": (
        ["--text_encoder.class_weights", "{anger: 2.0}"],
        "text_encoder",
        "class_weights",
        {"anger": 2.0},
    ),
    "braces of a prompt": (["--text_encoder.prompt", "Say: {text}"], "text_encoder", "prompt", "Say: {text}"),
    "dtype": (["--text_encoder.dtype", "bfloat16"], "text_encoder", "dtype", "bfloat16"),
}


@pytest.mark.parametrize(("words", "section", "field", "value"), ENCODER_OVERRIDES.values(), ids=ENCODER_OVERRIDES)
def test_overrides_of_encoders(words, section, field, value):
    made = recipe_of_encoders(*words)
    found = made.sections[section][field]
    assert found == value and type(found) is type(value)
    name, _, training = section.partition(".")
    told = made.to_dict()[name]
    assert (told["training"] if training else told)[field] == value


def test_both_overrides_of_the_readme(tmp_path):
    words = ["--text_encoder.tuning", "full", "--text_encoder.training.learning_rate", "1e-4"]
    text = recipe(*words, "--text_encoder.backbone", "a/b", "--text_encoder.training.use_cpu").encoder("text")
    assert text.fields == {"tuning": "full", "backbone": "a/b"}
    assert text.training_arguments(tmp_path, 0).learning_rate == 1e-4


def test_a_field_without_section_belongs_to_stage_2():
    before = recipe_of_encoders().to_dict()
    words = ["--learning_rate", "0.5", "--class_weights", "{joy: 2.0}", "--num_train_epochs", "7"]
    after = recipe_of_encoders(*words).to_dict()
    assert {name: after[name] for name in ENCODERS} == {name: before[name] for name in ENCODERS}
    assert after["training"] == before["training"] | {"learning_rate": 0.5, "num_train_epochs": 7}
    assert after["model"]["class_weights"] == {"joy": 2.0}


def test_invalid_training_arguments_of_an_encoder_name_the_section(tmp_path):
    with pytest.raises(ValueError, match="section 'text_encoder.training': .*cosin"):
        recipe_of_encoders("--text_encoder.training.lr_scheduler_type", "cosin")
    made = recipe_of_encoders("--text_encoder.training.eval_strategy", "no")
    with pytest.raises(ValueError, match="section 'text_encoder.training': load_best_model_at_end needs evaluation"):
        made.encoder("text").training_arguments(tmp_path, 0)


def test_encoder_and_processor_follow_the_section(tmp_path):
    backbone = write_backbone(tmp_path / "text", "text")
    fields = {"tuning": "full", "embedding_dim": 5, "dtype": "bfloat16", "class_weights": {LABELS[1]: 2.0}}
    fields |= {"prompt": "well {text}", "max_tokens": 9, "pooling": "last_token"}
    made = Recipe(SECTIONS | {"text_encoder": {"backbone": str(backbone), **fields}})
    label2id = {label: index for index, label in enumerate(LABELS)}
    model, processor = made.encoder("text").model(label2id), made.encoder("text").processor()
    assert model.config.label2id == label2id and model.config.label_weights() == [1.0, 2.0, *[1.0] * (len(LABELS) - 2)]
    for name in ("tuning", "embedding_dim", "pooling"):
        assert getattr(model.config, name) == fields[name]
    assert {weight.dtype for weight in model.backbone.parameters()} == {torch.bfloat16}
    assert (processor.prompt, processor.max_tokens) == ("well {text}", 9)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_s_encoders_can_be_configured(name, tmp_path):
    made = Recipe.load(RECIPES[name], OWN_LABELS.get(name, ()))
    named = [modality for modality in MODALITIES if f"{modality}_encoder" in made.to_dict()]
    assert named in ([], [*made.model_config().modalities])
    for modality in named:
        made.override([f"--{modality}_encoder.training.use_cpu"])
        if not made.sections[f"{modality}_encoder"].get("backbone"):
            made.override([f"--{modality}_encoder.backbone", "made/later"])
        settings = made.encoder(modality)
        own = {key: value for key, value in settings.fields.items() if key in UtteranceEncoderConfig.__annotations__}
        config = UtteranceEncoderConfig(modality=modality, id2label=dict(enumerate(made.corpus.names)), **own)
        assert config.backbone == settings.fields["backbone"]
        arguments = settings.training_arguments(tmp_path, seed=1)
        for field, value in settings.training.items():
            assert getattr(arguments, field) == value, field
        assert arguments.load_best_model_at_end and arguments.metric_for_best_model in ("weighted_f1", "mae")
