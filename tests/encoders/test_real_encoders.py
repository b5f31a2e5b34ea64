"""Pretrained encoders fine-tuned on real lines and real speech: minutes each."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import DialogueFolder, Meld, Recipe
from mister_e_hf.training.encoder_experiment import train_encoder

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(2400)]

TRAINING = {"per_device_eval_batch_size": 64, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}


def read(builder) -> datasets.DatasetDict:
    builder.download_and_prepare()
    return builder.as_dataset()


def test_fine_tuned_minilm_knows_more_of_meld_than_the_frozen_one(shared_dir, tmp_path):
    corpus = read(Meld(shared_dir / "data" / "meld_raw", cache_dir=str(tmp_path / "cache")))
    corpus["train"] = corpus["train"].select(range(400))
    scores = {}
    for tuning in ("frozen", "full"):
        training = {"learning_rate": 5e-5, "head_learning_rate": 1e-3, "num_train_epochs": 2, "warmup_steps": 0.1}
        section = {"backbone": str(shared_dir / "models" / "all-MiniLM-L6-v2"), "tuning": tuning, "embedding_dim": 384}
        labels = corpus["train"].features["utterances"].feature["emotion"].names
        recipe = Recipe(
            {
                "corpus": {"labels": labels},
                "text_encoder": section | {"training": training | TRAINING | {"per_device_train_batch_size": 32}},
            }
        )
        scores[tuning] = train_encoder(recipe, "text", tmp_path / tuning, corpus=corpus)["test"]
    assert scores["full"]["num_utterances"] == 2610
    assert scores["full"]["weighted_f1"] > scores["frozen"]["weighted_f1"] > 0.31  # all neutral: 31.3


def test_fine_tuned_whisper_hears_the_emotion_of_speakers_it_never_heard(shared_dir, tmp_path):
    folder = tmp_path / "ravdess"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = (
            pq.read_table(shared_dir / "data" / "ravdess" / f"{split}.parquet").drop_columns(["intensity"]).to_pylist()
        )
        for order, row in enumerate(rows):
            row |= {"dialogue_id": f"{split} {row['speaker']}", "order": order, "emotion": row.pop("label")}
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet", row_group_size=64)
    corpus = read(DialogueFolder(folder, cache_dir=str(tmp_path / "cache"), bad_audio="missing"))
    speakers = [{name for name in corpus[split]["dialogue_id"]} for split in ("train", "test")]
    assert not {name.split()[1] for name in speakers[0]} & {name.split()[1] for name in speakers[1]}
    section = {
        "backbone": str(shared_dir / "models" / "whisper-tiny.en"),
        "tuning": "full",
        "layer": 2,
        "trailing_silence": 1.0,
        "embedding_dim": 384,
        "focal_gamma": 0.0,
        "training": {"learning_rate": 2e-4, "head_learning_rate": 2e-3, "num_train_epochs": 6, "warmup_steps": 0.1}
        | TRAINING
        | {"per_device_train_batch_size": 16},
    }
    labels = corpus["train"].features["utterances"].feature["emotion"].names
    results = train_encoder(
        Recipe({"corpus": {"labels": labels}, "speech_encoder": section}), "speech", tmp_path / "run", corpus=corpus
    )
    low, _ = results["test"]["intervals"]["accuracy"]
    assert results["test"]["num_utterances"] == 120
    assert low > 0.3  # 0.13 by chance
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["test"]["accuracy"] == results["test"]["accuracy"]
    assert np.isfinite(list(results["validation"]["f1_per_class"].values())).all()
