"""Recipes for the tests of recipes: small sections, and the recipes of the package."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mister_e_hf import Recipe
from mister_e_hf.corpora.demo import LABELS
from support.tiny_language_models import language_model_fields, tiny_language_model

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "hub_configs").glob("*.yaml"))}
SMALL = [name for name in RECIPES if name.endswith("-small")]
# Recipes without labels, which are else those of the corpus they are used on.
OWN_LABELS = {name: ["--corpus.labels", "calm", "upset"] for name in ("own-small", "own-video", "own-egmf")}
PUBLISHED = [name for name in RECIPES if f"{name}-small" in RECIPES and not name.startswith("egmf-")]
SECTIONS = {
    "model": {"speech_embedding_dim": 24, "text_embedding_dim": 32, "hidden_size": 16},
    "corpus": {"labels": LABELS},
    "training": {"use_cpu": True},
}
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


def here(name: str) -> list[str]:
    """Words that complete a recipe of the package on this machine: labels of no corpus, a language model at hand."""
    language_model = ["--model.language_model", tiny_language_model("qwen2")] if "egmf" in name else []
    return [*language_model, *OWN_LABELS.get(name, [])]


def with_language_model(made: Recipe) -> Recipe:
    """The recipe with a language model at hand if its model begins from one, such as a baseline that names none."""
    if "language_model" in made.fields()["model"]:
        for field, value in language_model_fields("qwen2").items():
            if field != "language_model_config":
                made.set(f"model.{field}", value)
    return made


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def recipe(*words: str) -> Recipe:
    made = Recipe(SECTIONS)
    made.override(words)
    return made


def recipe_of_encoders(*words: str) -> Recipe:
    made = Recipe(SECTIONS | ENCODERS)
    made.override(words)
    return made


def changed_corpus(demo_folder: Path, folder: Path, change, splits=("train", "validation", "test")) -> str:
    for path in demo_folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(change(table) if path.stem in splits else table, folder / path.name)
    return str(folder)


def with_column(table: pa.Table, name: str, value) -> pa.Table:
    """The same value at every turn."""
    column = [[value] * len(ids) for ids in table["utterance_ids"].to_pylist()]
    return table.set_column(table.column_names.index(name), name, [column])
