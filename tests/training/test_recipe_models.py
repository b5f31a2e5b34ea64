"""Other models than the default, and the recipes of baselines."""

import pytest
import torch
import yaml

from mister_e_hf import MisterEModel, Recipe
from mister_e_hf.models.registry import baselines, entry
from mister_e_hf.training.recipe_baselines import kept_values
from support.small_recipes import SECTIONS, changed_corpus, recipe, write

BASELINES = [each.name for each in baselines()]
BASELINE_SECTIONS = {
    "bc_lstm": {"model": {"num_layers": 2}, "training": {"learning_rate": 0.005}},
    "mult": {"training": {"num_train_epochs": 3}},
    "sdt": {"model": {"feature_clip": 9.0}},
    "logistic_regression": None,
}


def recipe_of_baselines(*words: str, **model) -> Recipe:
    training = {
        "use_cpu": True,
        "num_train_epochs": 50,
        "weight_decay": 0.25,
        "push_to_hub": True,
        "hub_model_id": "a/b",
    }
    made = Recipe(
        SECTIONS
        | {"model": SECTIONS["model"] | {"feature_clip": 5.0} | model, "training": training}
        | {"baselines": BASELINE_SECTIONS}
        | {"text_encoder": {"backbone": "org/text"}}
    )
    made.override(words)
    return made


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_a_recipe_on_the_same_corpus(name, tmp_path):
    """One that the section names with settings, names alone, or does not name."""
    whole = recipe_of_baselines()
    made = whole.baseline(name)
    assert set(made.to_dict()) == {"model", "corpus", "training"}
    assert made.corpus == whole.corpus
    config, settings = made.model_config(), (BASELINE_SECTIONS.get(name) or {})
    assert type(config) is entry(name).config_class()
    expected = {"speech_embedding_dim": 24, "text_embedding_dim": 32, "feature_clip": 5.0} | settings.get("model", {})
    default = entry(name).config_class()()
    for field in config.own_fields():
        assert getattr(config, field) == expected.get(field, getattr(default, field)), field
    training = dict(entry(name).training) | settings.get("training", {})
    without = {"contrastive_weight": 0.0, "consistency_weight": 0.0}
    assert made.sections["training"] == {"use_cpu": True, "weight_decay": 0.25} | training | without
    assert made.training_arguments(tmp_path, 0).consistency_weight == 0
    assert type(made.model()) is entry(name).model_class()
    again = Recipe.load(write(tmp_path, yaml.safe_dump(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    assert whole.to_dict() == recipe_of_baselines().to_dict()


def test_baselines_to_dict_and_back(tmp_path):
    made = recipe_of_baselines()
    told = made.to_dict()["baselines"]
    assert told["bc_lstm"] == BASELINE_SECTIONS["bc_lstm"] and set(told) == set(BASELINE_SECTIONS)
    again = Recipe.load(write(tmp_path, yaml.safe_dump(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    assert "baselines" not in recipe().to_dict()


def test_overrides_of_baselines_and_of_shared_fields():
    words = ["--baselines.mult.model.num_layers", "3", "--baselines.sdt.training.learning_rate=1e-2"]
    made = recipe_of_baselines(*words, "--text_embedding_dim", "7", "--num_train_epochs", "9")
    assert made.baseline("mult").model_config().num_layers == 3
    assert made.baseline("mult").sections["training"]["num_train_epochs"] == 3
    assert made.baseline("sdt").sections["training"]["learning_rate"] == 0.01
    assert made.baseline("sdt").model_config().text_embedding_dim == 7
    assert made.model_config().hidden_size == 16 and made.sections["training"]["num_train_epochs"] == 9


def test_fields_depend_on_the_model_type(tmp_path):
    text = "corpus: {labels: [a, b]}\nmodel: {dropout: 0.25, model_type: erc_bc_lstm, modalities: [text]}\n"
    made = Recipe.load(write(tmp_path, text), ["--hidden_size", "8"])
    config = made.model_config()
    assert (config.model_type, config.dropout, config.hidden_size) == ("erc_bc_lstm", 0.25, 8)
    assert config.modalities == ["text"]
    assert type(recipe().model()) is MisterEModel and "model_type" not in recipe().to_dict()["model"]
    assert type(recipe("--model_type", "mister_e").model()) is MisterEModel


def test_a_new_model_depends_on_the_seed_alone():
    torch.manual_seed(3)
    found = recipe().model().state_dict()
    torch.manual_seed(3)
    expected = MisterEModel(recipe().model_config()).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_modalities_of_a_baseline_raise(demo_folder, tmp_path):
    mute = changed_corpus(demo_folder, tmp_path, lambda table: table.drop_columns("text_features"))
    for name in BASELINES:
        with pytest.raises(ValueError, match="train: no turn has text.*leave it out of model.modalities"):
            recipe("--corpus", mute).baseline(name).read_corpus()
    made = recipe("--corpus", mute, "--baselines.bc_lstm.model.modalities", "speech")
    assert made.baseline("bc_lstm").read_corpus()


def test_mistakes_in_a_baseline_raise():
    with pytest.raises(
        ValueError,
        match="Unknown model 'lstm'; expected one of mister_e, emo_caps, egmf_fusion, egmf, logistic_regression",
    ):
        recipe().baseline("lstm")
    with pytest.raises(ValueError, match="(?s)recipe, baseline sdt: section 'model': .*dropout must lie in"):
        recipe("--baselines.sdt.model.dropout", "2").baseline("sdt").model_config()
    with pytest.raises(ValueError, match="'erc_mult' has no context_num_layers; write a recipe"):
        recipe("--context_num_layers", "2", "--model_type", "erc_mult")


def test_options_that_baselines_do_not_follow_are_named():
    words = ["--num_train_epochs", "3", "--training.weight_decay=0.5", "--model.hidden_size", "32"]
    made = recipe_of_baselines(*words)
    (sentence,) = kept_values(made, words, ["bc_lstm", "mult"])  # mult's own number of epochs is the same
    assert sentence == (
        "num_train_epochs 3 is for MiSTER-E alone; the baselines keep their own: bc_lstm 25 "
        "(--baselines.bc_lstm.training.num_train_epochs 3 changes one)"
    )
    words += ["--baselines.bc_lstm.training.num_train_epochs", "3"]
    assert not list(kept_values(recipe_of_baselines(*words), words, ["bc_lstm", "mult"]))
