import dataclasses

import pytest
import torch
import yaml

from mister_e_hf import MisterEConfig, Recipe
from mister_e_hf.base.errors import InputError
from mister_e_hf.models.registry import baselines, entry_of, registered
from mister_e_hf.training import recipe_sections as module
from mister_e_hf.training.dialogue_trainer import check_training
from support.small_recipes import (
    PUBLISHED,
    RECIPES,
    SECTIONS,
    SMALL,
    here,
    recipe,
    write,
)

SCORES = {
    "mister-e-mosi-score",
    "mister-e-mosei",
    "mister-e-sims",
    "egmf-mosi",
    "egmf-mosei",
    "egmf-sims",
}  # recipes that predict scores

# The recipes that come with the package


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_a_model_and_training_arguments(name, tmp_path):
    made = Recipe.load(RECIPES[name], ["--use_cpu", *here(name)])
    config = made.model_config()
    assert list(config.id2label.values()) == made.corpus.names
    assert (config.task == "regression") == (name.removesuffix("-small") in SCORES)
    assert made.model_type != "mister_e" or config.experts == ["speech", "text", "fusion"]
    with torch.device("meta"):
        own_class = entry_of(config).model_class()
        parameters = own_class._from_config(own_class.described(config)).num_parameters()
    assert parameters > 10e6 or name not in PUBLISHED
    if name in SMALL:
        assert 2e5 < parameters < 6e6
    arguments = made.training_arguments(tmp_path, seed=7)
    assert (arguments.output_dir, arguments.seed) == (str(tmp_path), 7)
    for field, value in made.sections["training"].items():
        assert getattr(arguments, field) == value, field
    assert arguments.metric_for_best_model == ("mae" if made.regression else "weighted_f1")
    check_training(config, arguments)
    assert arguments.load_best_model_at_end or name in SMALL  # where the last epoch counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_sizes_of_the_defaults(name):
    config, default = Recipe.load(RECIPES[name]).model_config(), MisterEConfig()
    if config.model_type != default.model_type:  # no sizes of EMO-Caps were published
        return
    for field in MisterEConfig.__annotations__:
        assert getattr(config, field) == getattr(default, field), field


def test_published_recipes_have_small_ones():
    others = {f"emo-caps-{corpus}-small" for corpus in ("iemocap6", "meld", "mosi")}
    others |= {"egmf-meld-small", "egmf-mosi-small"}
    assert len(PUBLISHED) == 9
    assert {*SMALL} == {*(f"{name}-small" for name in PUBLISHED), "own-small"} | others
    for name in PUBLISHED:
        published, small = Recipe.load(RECIPES[name]), Recipe.load(RECIPES[f"{name}-small"])
        assert published.corpus == dataclasses.replace(small.corpus, vectors=None)


@pytest.mark.parametrize("name", RECIPES)
def test_to_dict_and_back(name, tmp_path):
    words = ["--learning_rate", "1e-4", "--corpus", "a/b", *here(name)]
    made = Recipe.load(RECIPES[name], words)
    if made.model_type == "mister_e":
        made.override(["--model.causal", "--experts", "text"])
    again = Recipe.load(write(tmp_path, yaml.safe_dump(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    assert again.model_config().to_dict() == made.model_config().to_dict()
    made.to_dict()["model"]["hidden_size"] = 0
    assert made.to_dict() == again.to_dict()


@pytest.mark.parametrize("corpus", ["iemocap6", "meld", "mosi"])
def test_studies_of_emo_caps_compare_it_with_the_models_of_the_other_recipe(corpus):
    capsules, experts = (Recipe.load(RECIPES[f"{system}-{corpus}-small"]) for system in ("emo-caps", "mister-e"))
    expected = experts.to_dict()
    found = capsules.baseline("mister_e").to_dict()
    found["model"].pop("model_type")
    assert [found[section] for section in SECTIONS] == [expected[section] for section in SECTIONS]
    for name in (each.name for each in baselines()):
        assert capsules.baseline(name).to_dict() == experts.baseline(name).to_dict()
    encoders = ("speech_encoder", "text_encoder")
    assert [capsules.to_dict()[name] for name in encoders] == [expected[name] for name in encoders]
    assert capsules.sections["pretraining"]


@pytest.mark.parametrize("name, other", [("meld", "meld"), ("mosi", "mosi-score")])
def test_studies_of_egmf_compare_it_with_the_models_of_the_other_recipe(name, other):
    egmf, experts = Recipe.load(RECIPES[f"egmf-{name}-small"]), Recipe.load(RECIPES[f"mister-e-{other}-small"])
    expected, found = experts.to_dict(), egmf.baseline("mister_e").to_dict()
    found["model"].pop("model_type")
    assert found["model"] == expected["model"] and found["corpus"] == expected["corpus"]
    usual = experts.value
    assert all(usual(f"training.{field}") == value for field, value in found["training"].items())
    for each in baselines():
        assert egmf.baseline(each.name).to_dict() == experts.baseline(each.name).to_dict()
    capsules, own = egmf.baseline("emo_caps"), Recipe.load(RECIPES[f"emo-caps-{name}-small"])
    for section in ("model", "training"):
        for field, value in own.sections[section].items():
            assert capsules.value(f"{section}.{field}") == value, field
    alone = egmf.baseline("egmf_fusion")
    for field in ("hidden_size", "num_layers", "num_attention_heads", "dropout", "feature_clip", "class_weights"):
        assert getattr(alone.model_config(), field) == getattr(egmf.model_config(), field), field


# Overrides


OVERRIDES = {
    "exponent without a point": (["--learning_rate", "1e-4"], "training", "learning_rate", 1e-4),
    "exponent with a point": (["--learning_rate", "1.0e-4"], "training", "learning_rate", 1e-4),
    "whole number": (["--contrastive_weight", "2"], "training", "contrastive_weight", 2),
    "negative number": (["--max_steps", "-1"], "training", "max_steps", -1),
    "section": (["--model.causal", "true"], "model", "causal", True),
    "equals sign": (["--model.causal=false"], "model", "causal", False),
    "flag alone": (["--causal"], "model", "causal", True),
    "flag before another": (["--causal", "--hidden_size", "8"], "model", "causal", True),
    "corpus": (["--corpus", "some/folder"], "corpus", "path", "some/folder"),
    "corpus named by a number": (["--corpus", "2024"], "corpus", "path", "2024"),
    "corpus with an equals sign": (["--corpus=a=b"], "corpus", "path", "a=b"),
    "section of the corpus": (["--corpus.label_column", "emotion"], "corpus", "label_column", "emotion"),
    "several words": (["--experts", "speech", "text"], "model", "experts", ["speech", "text"]),
    "a list in YAML": (["--experts", "[speech, text]"], "model", "experts", ["speech", "text"]),
    "one word for a list": (["--experts", "speech"], "model", "experts", ["speech"]),
    "one number for a list": (["--context_kernel_sizes", "3"], "model", "context_kernel_sizes", [3]),
    "a word that YAML takes for false": (["--eval_strategy", "no"], "training", "eval_strategy", "no"),
    "null": (["--feature_clip", "null"], "model", "feature_clip", None),
    "a mapping": (["--class_weights", "{anger: 2.0}"], "model", "class_weights", {"anger": 2.0}),
    "the last one counts": (["--hidden_size", "8", "--hidden_size", "12"], "model", "hidden_size", 12),
    "a truth value in YAML 1.1's words": (["--use_cpu", "no"], "training", "use_cpu", False),
    "names that YAML 1.1 takes for others": (
        ["--labels", "yes", "no", "1", "null"],
        "corpus",
        "labels",
        "yes no 1 null".split(),
    ),
    "names with a comma and a colon": (["--labels", "a,b", "c: d", "#e"], "corpus", "labels", ["a,b", "c: d", "#e"]),
    "one name": (["--labels", "on"], "corpus", "labels", ["on"]),
    "a path with a sign of comments": (["--corpus", "runs/a #1"], "corpus", "path", "runs/a #1"),
    "a path that YAML takes for an alias": (["--corpus", "*"], "corpus", "path", "*"),
    "a name in quotes": (["--corpus.name", '"true"'], "corpus", "name", "true"),
    "a date": (["--corpus.name", "2024-01-01"], "corpus", "name", "2024-01-01"),
    "a number with zeros": (["--corpus.validation_group", "007"], "corpus", "validation_group", "007"),
    "an exponent in a mapping": (["--class_weights", "{anger: 1e-1}"], "model", "class_weights", {"anger": 0.1}),
}


@pytest.mark.parametrize(("words", "section", "field", "value"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides(words, section, field, value):
    found = recipe(*words).sections[section][field]
    assert found == value and type(found) is type(value)


def test_overrides_change_model_and_arguments(tmp_path):
    made = recipe("--learning_rate", "1e-4", "--causal", "--experts", "text", "--eval_strategy", "no")
    made.override(["--load_best_model_at_end", "false", "--warmup_steps", "1e-1"])
    arguments = made.training_arguments(tmp_path, 0)
    assert arguments.learning_rate == 1e-4 and arguments.eval_strategy == "no" and arguments.warmup_steps == 0.1
    assert made.model_config().causal and made.model_config().experts == ["text"]
    assert Recipe(SECTIONS).model_config().causal is False


def test_exponents_in_the_file(tmp_path):
    made = Recipe.load(write(tmp_path, "training:\n  learning_rate: 1e-5\nmodel:\n  layer_norm_eps: 1e-6\n"))
    assert made.sections["training"]["learning_rate"] == 1e-5
    assert made.sections["model"]["layer_norm_eps"] == 1e-6


def test_a_field_of_two_sections_needs_its_section(monkeypatch):
    for each in registered():
        fields = recipe().fields() | {"model": module.model_fields(each.model_type)}
        names = [name for section in SECTIONS for name in fields[section]]
        assert len(set(names)) == len(names)  # as it is, each name says enough
    fields = module.training_fields("mister_e") | {"label_column": str}
    monkeypatch.setattr("mister_e_hf.training.recipe.training_fields", lambda model_type: fields)
    with pytest.raises(ValueError, match="'label_column' may be corpus.label_column or training.label_column"):
        recipe("--label_column", "x")
    assert recipe("--corpus.label_column", "x").corpus.label_column == "x"


# Files


def test_a_missing_file_raises(tmp_path):
    for path, what in ((tmp_path / "recipe.yaml", "neither a file nor the name of a recipe"), (tmp_path, "a folder")):
        with pytest.raises(FileNotFoundError) as error:
            Recipe.load(path)
        assert f"'{path}'" in str(error.value) and what in str(error.value)


def test_an_empty_section_means_defaults(tmp_path):
    assert Recipe.load(write(tmp_path, "model:\ncorpus: {labels: [a, b]}\n")).model_config().hidden_size == 1024


def test_missing_labels_raise_with_both_remedies(tmp_path):
    made = Recipe.load(write(tmp_path, "corpus: {}\n"))
    for build in (made.model_config, made.read_corpus):
        with pytest.raises(InputError, match=r"no labels: .*\(--corpus\).*\(--corpus.labels\)"):
            build()
