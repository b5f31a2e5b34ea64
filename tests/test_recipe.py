from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mister_e_hf import MisterEConfig, MisterEModel, Recipe
from mister_e_hf import recipe as module
from mister_e_hf.corpora.demo import LABELS, write_demo_corpus

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "hub_configs").glob("*.yaml"))}
SMALL = [name for name in RECIPES if name.endswith("-small")]
PUBLISHED = [name for name in RECIPES if f"{name}-small" in RECIPES]
SECTIONS = {
    "model": {"speech_embedding_dim": 24, "text_embedding_dim": 32, "hidden_size": 16},
    "corpus": {"labels": LABELS},
    "training": {"use_cpu": True},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def recipe(*words: str) -> Recipe:
    made = Recipe(SECTIONS)
    made.override(words)
    return made


# The recipes that come with the package


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_a_model_and_training_arguments(name, tmp_path):
    made = Recipe.load(RECIPES[name], ["--use_cpu"])
    config = made.model_config()
    assert list(config.id2label.values()) == made.corpus.labels
    assert config.experts == ["speech", "text", "fusion"]
    with torch.device("meta"):
        parameters = MisterEModel(config).num_parameters()
    assert parameters > 10e6 or name not in PUBLISHED
    if name in SMALL:
        assert 2e6 < parameters < 4e6
    arguments = made.training_arguments(tmp_path, seed=7)
    assert (arguments.output_dir, arguments.seed) == (str(tmp_path), 7)
    for field, value in made.sections["training"].items():
        assert getattr(arguments, field) == value, field
    assert arguments.load_best_model_at_end and arguments.metric_for_best_model == "weighted_f1"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_sizes_of_the_defaults(name):
    config, default = Recipe.load(RECIPES[name]).model_config(), MisterEConfig()
    for field in MisterEConfig.__annotations__:
        assert getattr(config, field) == getattr(default, field), field


def test_small_recipes_stand_beside_published_ones():
    assert len(PUBLISHED) == len(SMALL) == 4
    for name in PUBLISHED:
        published, small = Recipe.load(RECIPES[name]), Recipe.load(RECIPES[f"{name}-small"])
        assert published.corpus == small.corpus


@pytest.mark.parametrize("name", RECIPES)
def test_to_dict_and_back(name, tmp_path):
    made = Recipe.load(
        RECIPES[name], ["--learning_rate", "1e-4", "--model.causal", "--corpus", "a/b", "--experts", "text"]
    )
    again = Recipe.load(write(tmp_path, yaml.safe_dump(made.to_dict())))
    assert again.to_dict() == made.to_dict()
    assert again.model_config().to_dict() == made.model_config().to_dict()
    made.to_dict()["model"]["hidden_size"] = 0
    assert made.to_dict() == again.to_dict()


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
}


@pytest.mark.parametrize(("words", "section", "field", "value"), OVERRIDES.values(), ids=OVERRIDES)
def test_overrides(words, section, field, value):
    found = recipe(*words).sections[section][field]
    assert found == value and type(found) is type(value)


def test_overrides_reach_what_is_built(tmp_path):
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


WRONG_WORDS = {
    "unknown": (["--lerning_rate", "1"], "unknown field 'lerning_rate'. Did you mean 'learning_rate'?"),
    "unknown in a section": (
        ["--model.hiden_size", "1"],
        "section 'model' has no field 'hiden_size'. Did you mean 'hidden_size'?",
    ),
    "of another section": (["--model.learning_rate", "1"], "section 'model' has no field 'learning_rate'"),
    "unknown section": (["--modle.causal"], "unknown section 'modle'. Did you mean 'model'?"),
    "like nothing": (["--qqqqq", "1"], "unknown field 'qqqqq'. Known: "),
    "no field": (["learning_rate", "1"], "Expected --field value, got 'learning_rate'"),
    "bare dashes": (["--", "1"], "Expected --field value, got '--'"),
    "no YAML": (["--labels", "[a, b"], "--labels: '[a, b' is no valid YAML"),
    "text for a number": (
        ["--learning_rate", "fast"],
        "section 'training': 'learning_rate' must be float, got 'fast'",
    ),
    "fraction for a count": (["--num_attention_heads", "2.5"], "section 'model': 'num_attention_heads' must be int"),
    "number for a flag": (["--use_cpu", "3"], "section 'training': 'use_cpu' must be bool, got 3"),
    "flag for a number": (["--hidden_size"], "section 'model': 'hidden_size' must be int, got True"),
    "flag for a path": (["--corpus"], "section 'corpus': 'path' must be str | None, got True"),
    "none of the choices": (["--gate", "meen"], "section 'model': 'gate' must be Literal['learned', 'mean']"),
    "seed": (["--training.seed", "3"], "training.seed is no part of a recipe; pass --seeds"),
    "output folder": (["--output_dir", "x"], "training.output_dir is no part of a recipe; pass --output_dir"),
    "secret": (["--hub_token", "hf_x"], "training.hub_token is no part of a recipe; set HF_TOKEN"),
}


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_what_is_wrong_with_an_override_is_named(words, message):
    with pytest.raises(ValueError) as error:
        recipe(*words)
    assert message in str(error.value)


def test_a_name_of_two_sections_must_say_which(monkeypatch):
    names = [name for fields in module._SECTIONS.values() for name in fields]
    assert len(set(names)) == len(names)  # as it is, each name says enough
    monkeypatch.setitem(module._MODEL_FIELDS, "label_column", str)
    with pytest.raises(ValueError, match="'label_column' may be model.label_column or corpus.label_column"):
        recipe("--label_column", "x")
    assert recipe("--corpus.label_column", "x").corpus.label_column == "x"


# Files


WRONG_FILES = {
    "no YAML": ("model: [1, 2", "is no valid YAML"),
    "a list": ("- model\n- corpus\n", "expected the sections ['model', 'corpus', 'training']"),
    "nothing": ("", "expected the sections"),
    "a word": ("model", "expected the sections"),
    "unknown section": ("modle: {}\n", "unknown section 'modle'. Did you mean 'model'?"),
    "a section that YAML takes for true": ("on: {}\n", "unknown section 'True'"),
    "a list for a section": ("model: [hidden_size]\n", "section 'model' must hold fields and values"),
    "unknown field": (
        "training: {learning_rat: 1}\n",
        "section 'training' has no field 'learning_rat'. Did you mean 'learning_rate'?",
    ),
    "field that YAML takes for false": ("model: {no: 1}\n", "section 'model' has no field 'False'"),
    "text for a count": ("model: {hidden_size: big}\n", "section 'model': 'hidden_size' must be int, got 'big'"),
    "one name for labels": ("corpus: {labels: joy}\n", "section 'corpus': 'labels' must be list[str], got 'joy'"),
    "null for labels": ("corpus: {labels: }\n", "section 'corpus': 'labels' must be list[str], got None"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        Recipe.load(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "recipe.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"No recipe at '{path}'"):
            Recipe.load(path)


def test_an_empty_section_is_none_given(tmp_path):
    assert Recipe.load(write(tmp_path, "model:\ncorpus: {labels: [a, b]}\n")).model_config().hidden_size == 1024


WRONG_LABELS = {
    "missing": ("{}", "two classes or more, each once; got []"),
    "one": ("{labels: [joy]}", "two classes or more"),
    "twice": ("{labels: [joy, anger, joy]}", "each once; got ['joy', 'anger', 'joy']"),
    "yes and no": ("{labels: [yes, no]}", "quote yes, no, on, off); got [True, False]"),
    "no and off": ("{labels: [no, off]}", "quote yes, no, on, off); got [False, False]"),
    "one of them no": ("{labels: [maybe, no]}", "must be names"),
    "numbers": ("{labels: [0, 1]}", "must be names"),
    "nested": ("{labels: [[joy], [anger]]}", "must be names"),
}


@pytest.mark.parametrize(("section", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_what_is_wrong_with_the_labels_is_named(tmp_path, section, message):
    made = Recipe.load(write(tmp_path, f"corpus: {section}\n"))
    for build in (made.model_config, made.read_corpus):
        with pytest.raises(ValueError) as error:
            build()
        assert "corpus.labels must" in str(error.value) and message in str(error.value)


WRONG_MODELS = {
    "heads": ({"num_attention_heads": 7}, "num_attention_heads"),
    "kernel": ({"context_kernel_sizes": [2]}, "context_kernel_sizes"),
    "kernel of text": ({"context_kernel_sizes": ["wide"]}, "context_kernel_sizes"),
    "expert": ({"experts": ["speech", "video"]}, "experts"),
    "class weight": ({"class_weights": {"boredom": 1.0}}, "boredom"),
    "range": ({"context_dropout": 1.5}, "context_dropout"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_what_the_model_refuses_names_the_section(changes, message):
    made = Recipe({**SECTIONS, "model": changes})
    with pytest.raises(ValueError) as error:
        made.model_config()
    assert "section 'model'" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"contrastive_weight": -1.0}, "contrastive_weight"),
        ({"eval_strategy": "no"}, "load_best_model_at_end"),
    ],
)
def test_what_the_training_arguments_refuse_names_the_section(tmp_path, changes, message):
    made = Recipe({**SECTIONS, "training": {"use_cpu": True, **changes}})
    with pytest.raises(ValueError) as error:
        made.training_arguments(tmp_path, 0)
    assert "section 'training'" in str(error.value) and message in str(error.value)


# The corpus against the model


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    return write_demo_corpus(tmp_path_factory.mktemp("demo"))


def changed_corpus(demo_folder: Path, folder: Path, change, splits=("train", "validation", "test")) -> str:
    for path in demo_folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(change(table) if path.stem in splits else table, folder / path.name)
    return str(folder)


def with_column(table: pa.Table, name: str, value) -> pa.Table:
    """The same value at every turn."""
    column = [[value] * len(ids) for ids in table["utterance_ids"].to_pylist()]
    return table.set_column(table.column_names.index(name), name, [column])


def test_corpus_that_fits(demo_folder):
    corpus = recipe("--corpus", str(demo_folder)).read_corpus()
    assert {split: len(data) for split, data in corpus.items()} == {"train": 240, "validation": 60, "test": 100}


def test_no_corpus_given():
    with pytest.raises(ValueError, match="no corpus given; set corpus.path or pass --corpus"):
        recipe().read_corpus()


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_corpus_of_another_width(demo_folder, modality):
    made = recipe("--corpus", str(demo_folder), f"--{modality}_embedding_dim", "20")
    with pytest.raises(ValueError, match=f"train: {modality}_features of dialogue 'train_000' have width .*= 20"):
        made.read_corpus()


def test_expert_without_its_modality(demo_folder, tmp_path):
    silent = changed_corpus(demo_folder, tmp_path, lambda table: with_column(table, "has_audio", False), ["train"])
    with pytest.raises(ValueError, match="train: no turn has speech.*leave it out of model.experts"):
        recipe("--corpus", silent).read_corpus()
    assert recipe("--corpus", silent, "--experts", "text", "fusion").read_corpus()
    mute = changed_corpus(demo_folder, tmp_path, lambda table: table.drop_columns("text_features"))
    with pytest.raises(ValueError, match="train: no turn has text.*leave it out of model.experts"):
        recipe("--corpus", mute).read_corpus()
    assert recipe("--corpus", mute, "--experts", "speech").read_corpus()


def test_corpus_without_a_label(demo_folder, tmp_path):
    folder = changed_corpus(demo_folder, tmp_path, lambda table: with_column(table, "labels", None), ["validation"])
    with pytest.raises(ValueError, match="validation: no turn has a label in 'labels'"):
        recipe("--corpus", folder).read_corpus()


def test_corpus_with_other_labels(demo_folder):
    made = recipe("--corpus", str(demo_folder), "--labels", "neutral", "joy")
    with pytest.raises(ValueError, match="train: dialogue 'train_000' has the label .* in 'labels'"):
        made.read_corpus()


def test_label_and_score_columns(demo_folder, tmp_path):
    def rename(table: pa.Table) -> pa.Table:
        numbers = [[0.5] * len(ids) for ids in table["utterance_ids"].to_pylist()]
        return table.rename_columns({"labels": "emotions"}).append_column("sentiment", [numbers])

    folder = changed_corpus(demo_folder, tmp_path, rename)
    with pytest.raises(ValueError, match="no column 'labels'"):
        recipe("--corpus", folder).read_corpus()
    corpus = recipe("--corpus", folder, "--label_column", "emotions", "--score_column", "sentiment").read_corpus()
    assert all((data.scores == 0.5).all() and (data.labels >= 0).all() for data in corpus.values())
    with pytest.raises(ValueError, match="'sentiment' holds real numbers"):
        recipe("--corpus", folder, "--label_column", "sentiment").read_corpus()
