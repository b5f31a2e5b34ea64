"""A small corpus of vectors whose turns have scores and three modalities, and recipes that predict the scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mister_e_hf import Recipe
from mister_e_hf.corpora.demo import LABELS, demo_corpus

SIZES = {"train": 24, "validation": 8, "test": 8}
VISUAL_DIM = 6
# Valence and activation of each class; what a class does not say of a turn is noise.
_SCORES = {label: (number - 2.5, (number % 3) - 1.0) for number, label in enumerate(LABELS)}
SECTIONS = {
    "model": {"speech_embedding_dim": 24, "text_embedding_dim": 32, "hidden_size": 16, "context_num_layers": 1},
    "corpus": {"targets": ["valence"], "score_bins": "mosi"},
    "training": {"use_cpu": True, "num_train_epochs": 2, "disable_tqdm": True, "learning_rate": 3e-3},
}


def score_corpus(sizes: dict[str, int] = SIZES) -> dict[str, pa.Table]:
    """The demo's corpus with the columns `valence` and `activation`, null at some turns, and vectors of video."""
    tables = demo_corpus(0, sizes=sizes, transcripts="en").items()
    return {split: _with_scores(table, np.random.default_rng(seed)) for seed, (split, table) in enumerate(tables)}


def _with_scores(table: pa.Table, generator: np.random.Generator) -> pa.Table:
    columns: dict[str, list] = {name: [] for name in ("valence", "activation", "visual_features", "has_video")}
    for labels in table["labels"].to_pylist():
        scores = np.array([_SCORES[label] for label in labels]) + 0.1 * generator.normal(size=(len(labels), 2))
        missing = generator.random(scores.shape) < 0.05
        for index, name in enumerate(("valence", "activation")):
            given = zip(scores[:, index].tolist(), missing[:, index], strict=True)
            columns[name].append([None if absent else score for score, absent in given])
        vectors = scores[:, 1:] + 0.2 * generator.normal(size=(len(labels), VISUAL_DIM))
        columns["visual_features"].append(vectors.astype(np.float32).tolist())
        columns["has_video"].append((generator.random(len(labels)) >= 0.05).tolist())
    kinds = {"visual_features": pa.list_(pa.list_(pa.float32())), "has_video": pa.list_(pa.bool_())}
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, kinds.get(name, pa.list_(pa.float64()))))
    return table


def write_score_corpus(folder: Path, sizes: dict[str, int] = SIZES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in score_corpus(sizes).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def score_recipe(corpus: Path, *words: str) -> Recipe:
    """A recipe of MiSTER-E that predicts `valence`."""
    made = Recipe(SECTIONS)
    made.override(["--corpus", str(corpus), *words])
    return made


def visual_recipe(corpus: Path, *words: str) -> Recipe:
    """A recipe of MulT that reads three modalities and predicts `valence` and `activation`."""
    model = {"model_type": "erc_mult", "modalities": ["speech", "text", "visual"], "hidden_size": 8}
    widths = {"speech_embedding_dim": 24, "text_embedding_dim": 32, "num_attention_heads": 2}
    corpus_section = {"targets": ["valence", "activation"]}
    made = Recipe({"model": model | widths, "corpus": corpus_section, "training": SECTIONS["training"]})
    made.override(["--corpus", str(corpus), *words])
    return made
