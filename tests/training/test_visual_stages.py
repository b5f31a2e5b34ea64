"""All stages from clips and transcripts to scores: encoders of text and video, their vectors, a model of both."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModel

from mister_e_hf import Recipe, cli, read_corpus
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.training import stages
from mister_e_hf.training.dry_run import dry_run
from mister_e_hf.training.evaluate import evaluate_checkpoint
from support.small_videos import plain, write_clip
from support.tiny_backbones import write_backbone

pytestmark = pytest.mark.usefixtures("own_cache")

LABELS = ["negative", "non-negative"]
SIZES = {"train": 6, "validation": 3, "test": 3}
QUICK = {"use_cpu": True, "num_train_epochs": 1, "disable_tqdm": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Dialogues of four turns whose clip's colour is the sentiment; the second turn has no clip, the third no text."""
    folder, features = tmp_path_factory.mktemp("clips"), dialogue_features(LABELS)
    generator, empty = np.random.default_rng(0), dict.fromkeys(features["utterances"].feature)
    splits = {}
    for split, size in SIZES.items():
        rows = []
        for number in range(size):
            turns = []
            for turn in range(4):
                red = int(generator.integers(256))
                path = folder / f"{split}{number}{turn}.mp4"
                write_clip(path, [plain((red, 0, 255 - red))] * 3, fps=4)
                sentiment = None if turn == 3 and number == 0 else red / 128 - 1
                emotion = None if sentiment is None else int(sentiment >= 0)
                found = {"utterance_id": str(turn), "sentiment": sentiment, "emotion": emotion}
                found["text"] = None if turn == 2 else "hello there"
                turns.append(empty | found | {"video": None if turn == 1 else {"path": str(path), "bytes": None}})
            rows.append({"dialogue_id": f"{split}{number}", "utterances": turns})
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    return write_corpus(datasets.DatasetDict(splits), folder / "corpus")


@pytest.fixture(scope="module")
def recipe(corpus, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("backbones")
    encoder = {"tuning": "full", "embedding_dim": 6, "training": QUICK}
    text, visual = (str(write_backbone(folder / kind, kind)) for kind in ("bert", "resnet"))
    return Recipe(
        {
            "text_encoder": encoder | {"backbone": text},
            "visual_encoder": encoder | {"backbone": visual, "num_frames": 2},
            "model": {"model_type": "erc_bc_lstm", "modalities": ["text", "visual"], "hidden_size": 8},
            "corpus": {"path": str(corpus), "targets": ["sentiment"], "score_bins": "sims"},
            "training": QUICK,
        }
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "run"
    stages.train(Recipe(recipe.to_dict()), folder)
    return folder


def test_the_checkpoint_holds_the_encoder_of_video(run):
    model = AutoModel.from_pretrained(run)
    assert model.config.modalities == ["text", "visual"] and model.config.visual_embedding_dim == 6
    assert model.config.id2label == {0: "sentiment"} and model.config.task == "regression"
    encoder = AutoModel.from_pretrained(run, subfolder="visual_encoder")
    assert (encoder.config.modality, encoder.config.problem_type) == ("visual", "regression")
    results = json.loads((run / "encoders" / "visual" / "results.json").read_text())
    assert {"mae", "corr", "ccc", "intervals"} <= set(results["test"])
    vectors = read_corpus(run / "vectors", targets=["sentiment"])["train"]
    assert list(vectors.vectors) == ["text", "visual"] and np.isnan(vectors.labels).sum() == 1
    assert (~vectors.present["visual"]).sum() == (~vectors.present["text"]).sum() == SIZES["train"]


def test_stages_are_skipped_when_finished(recipe, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    stages.train(Recipe(recipe.to_dict()), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    printed = capsys.readouterr().err
    for title in ("text encoder", "visual encoder", "bc-LSTM (GRU), seed 0"):
        assert f"{title}: trained earlier, validation MAE" in printed


def test_a_run_without_its_last_stage_resumes_to_the_same_result(recipe, run, tmp_path):
    stages.train_encoder(recipe, "text", tmp_path / "run" / "encoders" / "text")
    stages.train(Recipe(recipe.to_dict()), tmp_path / "run")
    for name in ("model.safetensors", "predictions.parquet", "visual_encoder/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


def test_evaluate_embeds_the_clips_again(run, corpus):
    stored = json.loads((run / "results.json").read_text())["test"]
    found = evaluate_checkpoint(run, corpus, use_cpu=True)["scores"]
    assert found["mixture"]["mae"] == pytest.approx(stored["mixture"]["mae"], abs=1e-4)
    assert {"acc2", "f1", "acc3", "acc5", "acc2_weak", "r2"} <= set(found["mixture"])


def test_encoders_are_trained_alone_for_the_targets(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    command = ["train_encoder", str(path), "--modality", "visual", "--output_dir", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert "validation MAE" in capsys.readouterr().out
    record = yaml.safe_load((tmp_path / "run" / "encoders" / "visual" / "run.yaml").read_text())
    assert record["targets"] == {"sentiment": "sentiment"} and "labels" not in record


def test_an_unused_encoder_is_skipped(recipe, corpus, tmp_path, capsys):
    """MiSTER-E does not read video, and a corpus without clips trains the same recipe."""
    costs = dry_run(recipe, tmp_path / "run")
    assert [cost["stage"] for cost in costs] == ["text encoder", "visual encoder", "bc-LSTM (GRU)"]
    without = corpus.parent / "without"
    for split in SIZES:
        table = pq.read_table(corpus / f"{split}.parquet")
        rows = table.to_pylist()
        for row in rows:
            row["utterances"] = [turn | {"video": None} for turn in row["utterances"]]
        without.mkdir(exist_ok=True)
        pq.write_table(table.from_pylist(rows, schema=table.schema), without / f"{split}.parquet")
    costs = dry_run(recipe.changed({"corpus.path": str(without)}), tmp_path / "run")
    assert [cost["stage"] for cost in costs] == ["text encoder", "bc-LSTM (GRU)"]
    printed = capsys.readouterr().err
    assert "visual encoder: skipped, no labelled turn of train has visual" in printed
    assert "model.modalities is text" in printed


def test_init_writes_a_recipe_of_three_modalities(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", str(corpus), "--targets", "sentiment", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets"] == ["sentiment"] and "visual" in found and "speech" not in found
    made = Recipe.load("corpus.yaml")
    assert made.model_type == "erc_mult" and made.model_config().modalities == ["text", "visual"]
    assert "visual_encoder" in made.sections and "speech_encoder" not in made.sections and made.regression
    assert cli.main(["init", str(corpus), "--out", "classes.yaml"]) == 0
    assert Recipe.load("classes.yaml").corpus.labels == LABELS
    assert cli.main(["init", str(corpus), "--targets", "sentimnt", "--out", "wrong.yaml"]) == 2
    error = capsys.readouterr().err
    assert "has no column 'sentimnt' with a number per turn. Did you mean 'sentiment'?" in error
