import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mister_e_hf import MisterEConfig, MisterEModel, Recipe, UtteranceEncoderConfig
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.demo import LABELS, write_demo_corpus
from mister_e_hf.models import baselines
from mister_e_hf.training import recipe_sections as module
from support.small_encoders import write_backbone

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "hub_configs").glob("*.yaml"))}
SMALL = [name for name in RECIPES if name.endswith("-small")]
OWN_LABELS = {"own-small": ["--corpus.labels", "calm", "upset"]}  # else those of the corpus it is used on
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
    made = Recipe.load(RECIPES[name], ["--use_cpu", *OWN_LABELS.get(name, ())])
    config = made.model_config()
    assert list(config.id2label.values()) == made.corpus.labels
    assert config.experts == ["speech", "text", "fusion"]
    with torch.device("meta"):
        parameters = MisterEModel(config).num_parameters()
    assert parameters > 10e6 or name not in PUBLISHED
    if name in SMALL:
        assert 1e6 < parameters < 4e6
    arguments = made.training_arguments(tmp_path, seed=7)
    assert (arguments.output_dir, arguments.seed) == (str(tmp_path), 7)
    for field, value in made.sections["training"].items():
        assert getattr(arguments, field) == value, field
    assert arguments.metric_for_best_model == "weighted_f1"
    assert arguments.load_best_model_at_end or name in SMALL  # where the last epoch counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_sizes_of_the_defaults(name):
    config, default = Recipe.load(RECIPES[name]).model_config(), MisterEConfig()
    for field in MisterEConfig.__annotations__:
        assert getattr(config, field) == getattr(default, field), field


def test_small_recipes_stand_beside_published_ones():
    assert len(PUBLISHED) == 4 and {*SMALL} == {*(f"{name}-small" for name in PUBLISHED), *OWN_LABELS}
    for name in PUBLISHED:
        published, small = Recipe.load(RECIPES[name]), Recipe.load(RECIPES[f"{name}-small"])
        assert published.corpus == dataclasses.replace(small.corpus, vectors=None)


@pytest.mark.parametrize("name", RECIPES)
def test_to_dict_and_back(name, tmp_path):
    words = ["--learning_rate", "1e-4", "--model.causal", "--corpus", "a/b", "--experts", "text"]
    made = Recipe.load(RECIPES[name], [*words, *OWN_LABELS.get(name, ())])
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
    "no YAML": (["--labels", "[a, b"], "--labels: '[a, b' is not valid YAML"),
    "text for a number": (
        ["--learning_rate", "fast"],
        "section 'training': 'learning_rate' must be float, got 'fast'",
    ),
    "fraction for a count": (["--num_attention_heads", "2.5"], "section 'model': 'num_attention_heads' must be int"),
    "number for a flag": (["--use_cpu", "3"], "section 'training': 'use_cpu' must be bool, got 3"),
    "flag for a number": (["--hidden_size"], "section 'model': 'hidden_size' must be int, got True"),
    "flag for a path": (["--corpus"], "section 'corpus': 'path' must be str | None, got True"),
    "none of the choices": (["--gate", "meen"], "section 'model': 'gate' must be Literal['learned', 'mean']"),
    "seed": (["--training.seed", "3"], "training.seed does not belong in a recipe: pass --seeds"),
    "output folder": (["--output_dir", "x"], "training.output_dir does not belong in a recipe: pass --output_dir"),
    "a key of a mapping twice": (["--class_weights", "{a: 1, a: 2}"], "'a' appears twice"),
    "a pattern": (["--group_pattern", "("], "corpus.group_pattern '(' is not a regular expression"),
    "an empty label": (["--labels", "a", '""'], "corpus.labels must be names, none of them empty; got ['a', '']"),
    "an encoder's section": (["--text_encoder", "some/model"], "--text_encoder takes none alone"),
    "secret": (["--hub_token", "hf_x"], "training.hub_token does not belong in a recipe: set HF_TOKEN"),
}


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_what_is_wrong_with_an_override_is_named(words, message):
    with pytest.raises(ValueError) as error:
        recipe(*words).corpus  # noqa: B018
    assert message in str(error.value)


def test_a_name_of_two_sections_must_say_which(monkeypatch):
    for model_type in module.MODEL_FIELDS:
        fields = recipe().fields() | {"model": module.MODEL_FIELDS[model_type]}
        names = [name for section in SECTIONS for name in fields[section]]
        assert len(set(names)) == len(names)  # as it is, each name says enough
    monkeypatch.setitem(module.MODEL_FIELDS["mister_e"], "label_column", str)
    with pytest.raises(ValueError, match="'label_column' may be model.label_column or corpus.label_column"):
        recipe("--label_column", "x")
    assert recipe("--corpus.label_column", "x").corpus.label_column == "x"


# Files


WRONG_FILES = {
    "no YAML": ("model: [1, 2", "is not valid YAML"),
    "a list": ("- model\n- corpus\n", "expected the sections ['model', 'corpus', 'training']"),
    "nothing": ("", "expected the sections"),
    "a word": ("model", "expected the sections"),
    "unknown section": ("modle: {}\n", "unknown section 'modle'. Did you mean 'model'?"),
    "a section that YAML takes for true": ("true: {}\n", "unknown section 'True'"),
    "a section twice": (
        "training: {}\nmodel: {}\ntraining: {use_cpu: true}\n",
        "'training' appears twice, in lines 1",
    ),
    "a mapping that holds itself": ("corpus: {vectors: &v {speech: x, more: *v}}\n", "holds itself"),
    "a list in a mapping of words": ("corpus: {vectors: {speech: [x]}}\n", "'vectors' must be dict[str, str] | None"),
    "a long value": ("model: {hidden_size: " + "x" * 9000 + "}\n", "(9,002 characters)"),
    "a truth value for a name": ("corpus: {name: true}\n", "got True; quote it if it is a name"),
    "a list for a section": ("model: [hidden_size]\n", "section 'model' must hold fields and values"),
    "unknown field": (
        "training: {learning_rat: 1}\n",
        "section 'training' has no field 'learning_rat'. Did you mean 'learning_rate'?",
    ),
    "field that YAML takes for false": ("model: {no: 1}\n", "section 'model' has no field 'no'"),
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
    for path, what in ((tmp_path / "recipe.yaml", "neither a file nor the name of a recipe"), (tmp_path, "a folder")):
        with pytest.raises(FileNotFoundError) as error:
            Recipe.load(path)
        assert f"'{path}'" in str(error.value) and what in str(error.value)


def test_an_empty_section_is_none_given(tmp_path):
    assert Recipe.load(write(tmp_path, "model:\ncorpus: {labels: [a, b]}\n")).model_config().hidden_size == 1024


def test_without_labels_and_a_corpus_both_ways_out_are_named(tmp_path):
    made = Recipe.load(write(tmp_path, "corpus: {}\n"))
    for build in (made.model_config, made.read_corpus):
        with pytest.raises(InputError, match=r"no labels: .*\(--corpus\).*\(--corpus.labels\)"):
            build()


WRONG_LABELS = {
    "one": ("{labels: [joy]}", "two classes or more"),
    "twice": ("{labels: [joy, anger, joy]}", "each once; got ['joy', 'anger', 'joy']"),
    "true and false": ("{labels: [true, false]}", "'labels' must be list[str], got [True, False]"),
    "one of them null": ("{labels: [maybe, null]}", "'labels' must be list[str], got ['maybe', None]"),
    "numbers": ("{labels: [0, 1]}", "'labels' must be list[str], got [0, 1]"),
    "nested": ("{labels: [[joy], [anger]]}", "'labels' must be list[str]"),
    "empty": ("{labels: [joy, '']}", "none of them empty"),
    "blank": ("{labels: [joy, ' ']}", "none of them empty"),
}


@pytest.mark.parametrize(("section", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_what_is_wrong_with_the_labels_is_named(tmp_path, section, message):
    path = write(tmp_path, f"corpus: {section}\n")
    for build in (Recipe.model_config, Recipe.read_corpus):
        with pytest.raises(InputError) as error:
            build(Recipe.load(path))
        assert str(path) in str(error.value) and message in str(error.value)


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
    with pytest.raises(ValueError) as error:
        Recipe({**SECTIONS, "model": changes}).model_config()
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
    with pytest.raises(ValueError) as error:
        Recipe({**SECTIONS, "training": {"use_cpu": True, **changes}}).training_arguments(tmp_path, 0)
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


# The encoders of stage 1


ENCODERS = {
    "speech_encoder": {"backbone": "org/speech", "tuning": "frozen", "trailing_silence": 1.0},
    "text_encoder": {
        "backbone": "org/text",
        "backbone_revision": "v1",
        "lora_r": 4,
        "prompt": "Feel: {text}",
        "training": {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "use_cpu": True},
    },
}


def recipe_of_encoders(*words: str) -> Recipe:
    made = Recipe(SECTIONS | ENCODERS)
    made.override(words)
    return made


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


def test_an_encoder_takes_nothing_back_to_its_recipe():
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
def test_without_encoders_a_recipe_is_what_it_was(sections):
    made = Recipe(SECTIONS | sections)
    assert made.to_dict() == SECTIONS | {"corpus": {"labels": LABELS}}
    for modality in ("speech", "text"):
        with pytest.raises(ValueError, match=f"no {modality}_encoder.backbone, so there is no encoder of {modality}"):
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


def test_a_name_alone_is_of_stage_2():
    before = recipe_of_encoders().to_dict()
    words = ["--learning_rate", "0.5", "--class_weights", "{joy: 2.0}", "--num_train_epochs", "7"]
    after = recipe_of_encoders(*words).to_dict()
    assert {name: after[name] for name in ENCODERS} == {name: before[name] for name in ENCODERS}
    assert after["training"] == before["training"] | {"learning_rate": 0.5, "num_train_epochs": 7}
    assert after["model"]["class_weights"] == {"joy": 2.0}


WRONG_ENCODER_WORDS = {
    "unknown": (
        ["--text_encoder.tunning", "full"],
        "section 'text_encoder' has no field 'tunning'. Did you mean 'tuning'?",
    ),
    "unknown in training": (
        ["--text_encoder.training.lerning_rate", "1"],
        "section 'text_encoder.training' has no field 'lerning_rate'. Did you mean 'learning_rate'?",
    ),
    "of stage 2": (["--text_encoder.training.contrastive_weight", "1"], "has no field 'contrastive_weight'"),
    "unknown section": (
        ["--txt_encoder.tuning", "full"],
        "unknown section 'txt_encoder'. Did you mean 'text_encoder'?",
    ),
    "unknown nested section": (
        ["--text_encoder.trainin.fp16", "true"],
        "unknown section 'text_encoder.trainin'. Did you mean 'text_encoder.training'?",
    ),
    "name alone": (["--tuning", "full"], "unknown field 'tuning'"),
    "modality": (["--text_encoder.modality", "speech"], "section 'text_encoder' has no field 'modality'"),
    "none of the choices": (
        ["--text_encoder.tuning", "some"],
        "section 'text_encoder': 'tuning' must be Literal['frozen', 'lora', 'full'], got 'some'",
    ),
    "fraction for a count": (
        ["--text_encoder.lora_r", "2.5"],
        "section 'text_encoder': 'lora_r' must be int, got 2.5",
    ),
    "another layer": (["--text_encoder.layer", "first"], "section 'text_encoder': 'layer' must be"),
    "another dtype": (["--text_encoder.dtype", "int8"], "section 'text_encoder': 'dtype' must be"),
    "text for a rate": (
        ["--speech_encoder.training.learning_rate", "fast"],
        "section 'speech_encoder.training': 'learning_rate' must be float, got 'fast'",
    ),
    "seed": (["--text_encoder.training.seed", "3"], "training.seed does not belong in a recipe: pass --seed"),
    "output folder": (["--text_encoder.training.output_dir", "x"], "training.output_dir does not belong in a recipe"),
}


@pytest.mark.parametrize(("words", "message"), WRONG_ENCODER_WORDS.values(), ids=WRONG_ENCODER_WORDS)
def test_what_is_wrong_with_an_override_of_encoders_is_named(words, message):
    with pytest.raises(ValueError) as error:
        recipe_of_encoders(*words)
    assert message in str(error.value)


WRONG_ENCODER_FILES = {
    "a list": ("text_encoder: [a]\n", "section 'text_encoder' must hold fields and values"),
    "a list for training": ("text_encoder: {training: [a]}\n", "section 'text_encoder.training' must hold fields and"),
    "a word for training": (
        "text_encoder: {training: fast}\n",
        "section 'text_encoder.training' must hold fields and",
    ),
    "unknown section": ("speech_encodr: {}\n", "unknown section 'speech_encodr'. Did you mean 'speech_encoder'?"),
    "unknown in training": (
        "speech_encoder: {training: {epochs: 3}}\n",
        "section 'speech_encoder.training' has no field 'epochs'",
    ),
    "seed": ("speech_encoder: {training: {seed: 3}}\n", "training.seed does not belong in a recipe"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_ENCODER_FILES.values(), ids=WRONG_ENCODER_FILES)
def test_what_is_wrong_with_encoders_in_a_file_is_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        Recipe.load(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_what_the_encoder_s_training_arguments_refuse_names_the_section(tmp_path):
    with pytest.raises(ValueError, match="section 'text_encoder.training': .*cosin"):
        recipe_of_encoders("--text_encoder.training.lr_scheduler_type", "cosin")
    made = recipe_of_encoders("--text_encoder.training.eval_strategy", "no")
    with pytest.raises(ValueError, match="section 'text_encoder.training': load_best_model_at_end needs evaluation"):
        made.encoder("text").training_arguments(tmp_path, 0)


def test_an_encoder_and_its_processor_are_what_the_section_says(tmp_path):
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
    named = [modality for modality in ("speech", "text") if f"{modality}_encoder" in made.to_dict()]
    assert named in ([], ["speech", "text"])
    for modality in named:
        made.override([f"--{modality}_encoder.training.use_cpu"])
        if not made.sections[f"{modality}_encoder"].get("backbone"):
            made.override([f"--{modality}_encoder.backbone", "made/later"])
        settings = made.encoder(modality)
        own = {key: value for key, value in settings.fields.items() if key in UtteranceEncoderConfig.__annotations__}
        config = UtteranceEncoderConfig(modality=modality, id2label=dict(enumerate(made.corpus.labels)), **own)
        assert config.backbone == settings.fields["backbone"]
        arguments = settings.training_arguments(tmp_path, seed=1)
        for field, value in settings.training.items():
            assert getattr(arguments, field) == value, field
        assert arguments.load_best_model_at_end and arguments.metric_for_best_model == "weighted_f1"


# Baselines


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


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_baseline_has_a_recipe_on_the_same_corpus(name, tmp_path):
    """One that the section names with settings, names alone, or does not name."""
    whole = recipe_of_baselines()
    made = whole.baseline(name)
    assert set(made.to_dict()) == {"model", "corpus", "training"}
    assert made.corpus == whole.corpus
    config, settings = made.model_config(), (BASELINE_SECTIONS.get(name) or {})
    assert type(config) is baselines.baseline_config(name)
    expected = {"speech_embedding_dim": 24, "text_embedding_dim": 32, "feature_clip": 5.0} | settings.get("model", {})
    default = baselines.baseline_config(name)()
    for field in config.own_fields():
        assert getattr(config, field) == expected.get(field, getattr(default, field)), field
    training = baselines.TRAINING[name] | settings.get("training", {})
    without = {"contrastive_weight": 0.0, "consistency_weight": 0.0}
    assert made.sections["training"] == {"use_cpu": True, "weight_decay": 0.25} | training | without
    assert made.training_arguments(tmp_path, 0).consistency_weight == 0
    assert type(made.model()) is baselines.baseline_model(name)
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


def test_overrides_of_baselines_and_of_what_they_share():
    words = ["--baselines.mult.model.num_layers", "3", "--baselines.sdt.training.learning_rate=1e-2"]
    made = recipe_of_baselines(*words, "--text_embedding_dim", "7", "--num_train_epochs", "9")
    assert made.baseline("mult").model_config().num_layers == 3
    assert made.baseline("mult").sections["training"]["num_train_epochs"] == 3
    assert made.baseline("sdt").sections["training"]["learning_rate"] == 0.01
    assert made.baseline("sdt").model_config().text_embedding_dim == 7
    assert made.model_config().hidden_size == 16 and made.sections["training"]["num_train_epochs"] == 9


def test_a_model_s_type_says_which_fields_it_has(tmp_path):
    text = "corpus: {labels: [a, b]}\nmodel: {dropout: 0.25, model_type: erc_bc_lstm, modalities: [text]}\n"
    made = Recipe.load(write(tmp_path, text), ["--hidden_size", "8"])
    config = made.model_config()
    assert (config.model_type, config.dropout, config.hidden_size) == ("erc_bc_lstm", 0.25, 8)
    assert config.modalities == ["text"]
    assert type(recipe().model()) is MisterEModel and "model_type" not in recipe().to_dict()["model"]
    assert type(recipe("--model_type", "mister_e").model()) is MisterEModel


def test_a_new_model_is_what_its_class_makes_of_the_seed():
    torch.manual_seed(3)
    found = recipe().model().state_dict()
    torch.manual_seed(3)
    expected = MisterEModel(recipe().model_config()).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_baseline_needs_the_modalities_it_reads(demo_folder, tmp_path):
    mute = changed_corpus(demo_folder, tmp_path, lambda table: table.drop_columns("text_features"))
    for name in baselines.BASELINES:
        with pytest.raises(ValueError, match="train: no turn has text.*leave it out of model.modalities"):
            recipe("--corpus", mute).baseline(name).read_corpus()
    made = recipe("--corpus", mute, "--baselines.bc_lstm.model.modalities", "speech")
    assert made.baseline("bc_lstm").read_corpus()


WRONG_BASELINES = {
    "unknown baseline": ("baselines: {bc_lsmt: {}}\n", "unknown baseline 'bc_lsmt'. Did you mean 'bc_lstm'?"),
    "a list": ("baselines: [mult]\n", "section 'baselines' must hold names of baselines"),
    "a number for a baseline": ("baselines: {mult: 3}\n", "section 'baselines.mult' must hold the sections model and"),
    "unknown section": (
        "baselines: {mult: {modle: {}}}\n",
        "unknown section 'baselines.mult.modle'. Did you mean 'baselines.mult.model'?",
    ),
    "a word for a section": ("baselines: {mult: {model: big}}\n", "section 'baselines.mult.model' must hold fields"),
    "unknown field": (
        "baselines: {mult: {model: {num_layer: 2}}}\n",
        "section 'baselines.mult.model' has no field 'num_layer'. Did you mean 'num_layers'?",
    ),
    "field of another": ("baselines: {bc_lstm: {model: {num_attention_heads: 2}}}\n", "has no field 'num_attention"),
    "text for a rate": ("baselines: {sdt: {training: {learning_rate: fast}}}\n", "'learning_rate' must be float"),
    "seed": ("baselines: {sdt: {training: {seed: 1}}}\n", "training.seed does not belong in a recipe"),
    "unknown type": (
        "model: {model_type: bert}\n",
        "'model_type' must be Literal['mister_e', 'erc_logistic_regression",
    ),
    "field of another type": (
        "model: {model_type: erc_bc_lstm, gate: mean}\n",
        "section 'model' has no field 'gate'",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG_BASELINES.values(), ids=WRONG_BASELINES)
def test_what_is_wrong_with_baselines_in_a_file_is_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        Recipe.load(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_what_is_wrong_with_a_baseline_is_named():
    with pytest.raises(ValueError, match="There is no baseline 'lstm'; there are logistic_regression, bc_lstm"):
        recipe().baseline("lstm")
    with pytest.raises(ValueError, match="(?s)recipe, baseline sdt: section 'model': .*dropout must lie in"):
        recipe("--baselines.sdt.model.dropout", "2").baseline("sdt").model_config()
    with pytest.raises(ValueError, match="'erc_mult' has no context_num_layers; give model_type before its fields"):
        recipe("--context_num_layers", "2", "--model_type", "erc_mult")
