"""The column of labels that a checkpoint is scored by, on its own corpus and on others."""

import pyarrow.parquet as pq

from mister_e_hf import Recipe
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.stages import train
from support.named_speech import write_named

LABELS = ["joy", "anger"]


def test_another_corpus_is_scored_by_the_column_of_training_if_it_has_it(tmp_path):
    plain = write_named(tmp_path / "plain", "d", ["pitch", "rate"], labels=LABELS)
    named = write_named(tmp_path / "named", "d", ["pitch", "rate"], labels=LABELS)
    for path in named.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([{"labels": "mood"}.get(name, name) for name in table.column_names]), path)
    recipe = Recipe(
        {
            "model": {"model_type": "erc_logistic_regression", "speech_embedding_dim": 2, "text_embedding_dim": 3},
            "corpus": {"path": str(named), "labels": LABELS, "label_column": "mood"},
            "training": {"use_cpu": True, "num_train_epochs": 1},
        }
    )
    train(recipe, tmp_path / "run")
    scores = evaluate_checkpoint(tmp_path / "run", use_cpu=True)["scores"]
    assert evaluate_checkpoint(tmp_path / "run", named, use_cpu=True)["scores"] == scores
    assert evaluate_checkpoint(tmp_path / "run", plain, use_cpu=True)["scores"] == scores
