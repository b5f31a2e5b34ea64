"""A run that predicts scores: its results, its stored predictions, resuming, and scoring it again."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

from mister_e_hf import DialogueCollator, cli
from mister_e_hf.evaluation.regression import regression_scores
from mister_e_hf.models.registry import registered
from mister_e_hf.training.dry_run import dry_run
from mister_e_hf.training.epoch_trainer import EpochTrainer
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.experiment import run_experiment, run_seeds
from support.small_recipes import with_language_model
from support.small_scores import score_recipe, visual_recipe, write_score_corpus


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    return write_score_corpus(tmp_path_factory.mktemp("scores") / "corpus")


@pytest.fixture(scope="module")
def run(scores, tmp_path_factory) -> Path:
    """MiSTER-E, one target, in bins."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run_experiment(score_recipe(scores), folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def visual_run(scores, tmp_path_factory) -> Path:
    """MulT, three modalities, two targets."""
    folder = tmp_path_factory.mktemp("visual") / "run"
    run_experiment(visual_recipe(scores), folder, seed=0)
    return folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def rows_of(folder: Path, split: str = "test") -> list[dict]:
    return [row for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == split]


def values(rows: list[dict], column: str) -> np.ndarray:
    return np.array([row[column] for row in rows], dtype=float)  # null becomes NaN


def test_results_match_the_stored_predictions(run):
    results, rows = results_of(run), rows_of(run)
    assert (results["task"], results["targets"]) == ("regression", {"valence": "valence"})
    assert "calibration" not in results and not (run / "confusion.png").exists()
    assert tuple(results["test"]) == ("mixture", "speech", "text", "fusion")
    labels = values(rows, "label")
    assert np.isnan(labels).any()
    for head, block in results["test"].items():
        column = "prediction" if head == "mixture" else f"{head}_prediction"
        expected = regression_scores(labels, values(rows, column), ["valence"], "mosi")
        for name in ("mae", "corr", "ccc", "acc7", "acc2_has0", "f1_non0"):
            assert block[name] == pytest.approx(expected[name], abs=1e-6), (head, name)
    low, high = results["test"]["mixture"]["intervals"]["mae"]
    assert low <= results["test"]["mixture"]["mae"] <= high
    best = min(results["history"], key=lambda epoch: epoch["eval_mae"])
    assert results["best_epoch"] == best["epoch"]
    assert results["validation"]["mixture"]["mae"] == pytest.approx(best["eval_mae"], abs=1e-5)


def test_auto_model_gives_the_stored_scores(run, scores):
    model = AutoModel.from_pretrained(run).eval()
    assert model.config.problem_type == "regression" and model.config.calibration_temperature == 1
    assert model.config.id2label == {0: "valence"}
    data = score_recipe(scores).read_corpus()["test"]
    rows = [row for row in rows_of(run) if row["dialogue_id"] == data.dialogue_ids[2]]
    batch = DialogueCollator()([data[2]])
    with torch.no_grad():  # the corpus has vectors of video too, which MiSTER-E does not take
        output = model(**{name: value for name, value in batch.items() if not name.startswith("visual")})
    np.testing.assert_allclose(values(rows, "prediction"), output.logits[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(values(rows, "gate_weights"), output.gate_weights[0].numpy(), atol=1e-5)


def test_it_learns_more_than_the_mean(scores, tmp_path):
    recipe = score_recipe(scores, "--num_train_epochs", "12", "--hidden_size", "32")
    block = run_experiment(recipe, tmp_path / "run", seed=0)["test"]["mixture"]
    labels = values(rows_of(tmp_path / "run"), "label")
    assert block["mae"] < 0.7 * np.nanmean(np.abs(labels - np.nanmedian(labels))) and block["corr"] > 0.5


def test_three_modalities_and_two_targets(visual_run):
    results, rows = results_of(visual_run), rows_of(visual_run)
    assert list(results["test"]["mixture"]["by_target"]) == ["valence", "activation"]
    assert values(rows, "prediction").shape == (len(rows), 2)
    model = AutoModel.from_pretrained(visual_run)
    assert model.config.modalities == ["speech", "text", "visual"] and model.config.visual_embedding_dim == 6
    assert evaluate_checkpoint(visual_run, use_cpu=True)["as_stored"]


@pytest.mark.parametrize("kind", ["run", "visual_run"])
def test_evaluate_reproduces_the_scores(kind, request, capsys):
    folder = request.getfixturevalue(kind)
    assert cli.main(["evaluate", str(folder), "--use_cpu"]) == 0
    printed = capsys.readouterr().out
    assert "MAE" in printed and "equal to what results.json holds" in printed and "NOT" not in printed


def renamed(corpus: Path, folder: Path, names: dict[str, str]) -> str:
    folder.mkdir()
    for path in corpus.iterdir():
        table = pq.read_table(path)
        columns = [names.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(columns), folder / path.name)
    return str(folder)


def test_evaluate_on_another_corpus_finds_targets_by_name(scores, tmp_path):
    trained = renamed(scores, tmp_path / "trained", {"valence": "score"})
    recipe = score_recipe(Path(trained), "--targets", "{valence: score}")
    run_experiment(recipe, tmp_path / "run", seed=0)
    expected = evaluate_checkpoint(tmp_path / "run", use_cpu=True)
    assert expected["as_stored"]
    for corpus in (trained, str(scores)):  # the column of the training corpus, or that of the target's name
        assert evaluate_checkpoint(tmp_path / "run", corpus, use_cpu=True)["scores"] == expected["scores"]
    other = renamed(scores, tmp_path / "other", {"valence": "mood"})
    with pytest.raises(ValueError) as error:
        evaluate_checkpoint(tmp_path / "run", other, use_cpu=True)
    for part in ("predicts 'valence'", "no column 'score'", "mood, activation"):
        assert part in str(error.value)


def test_a_damaged_record_of_the_targets_raises(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    path = folder / "training.yaml"
    path.write_text(path.read_text().replace("targets:\n  - valence", "targets: 3").replace("- valence", "- 3"))
    with pytest.raises(ValueError, match="corpus.targets must be"):
        evaluate_checkpoint(folder, use_cpu=True)


def test_a_killed_run_resumes_to_the_same_result(scores, run, tmp_path):
    child = os.fork()
    if not child:
        EpochTrainer._finalize_training = lambda *arguments, **kwargs: os._exit(137)
        run_experiment(score_recipe(scores), tmp_path / "run", seed=0)
        os._exit(0)
    os.waitpid(child, 0)
    assert list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "results.json").exists()
    run_experiment(score_recipe(scores), tmp_path / "run", seed=0)
    for name in ("model.safetensors", "predictions.parquet", "README.md"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.name for each in registered()])
def test_every_model_is_trained_for_scores(scores, tmp_path, name):
    made = with_language_model(score_recipe(scores).baseline(name).changed({"training.num_train_epochs": 1}))
    results = run_experiment(made, tmp_path / "run", seed=0)
    assert tuple(results["test"]) == ("mixture", *made.model_config().heads)
    assert evaluate_checkpoint(tmp_path / "run", use_cpu=True)["as_stored"]


def test_lines_of_progress_name_the_error(scores, tmp_path, capsys):
    summary = run_seeds(score_recipe(scores, "--num_train_epochs", "1"), tmp_path / "seeds", [0, 1])
    printed = capsys.readouterr().err
    assert re.search(r"epoch 1 of 1: loss .*, validation MAE \d\.\d{4}\n", printed) and "F1" not in printed
    assert "no temperature is fitted, since scores are not probabilities" in printed
    assert set(summary["test"]["mixture"]["mae"]) == {"mean", "sd"}


def test_a_dry_run_writes_nothing(scores, tmp_path):
    for recipe in (score_recipe(scores), visual_recipe(scores)):
        (cost,) = dry_run(recipe, tmp_path / "run")
        assert cost["steps"] > 0 and not (tmp_path / "run").exists()


def test_whole_numbers_are_scores_too(scores, tmp_path):
    for path in scores.iterdir():
        table = pq.read_table(path)
        stars = [[None if value is None else round(value) for value in row] for row in table["valence"].to_pylist()]
        (tmp_path / "corpus").mkdir(exist_ok=True)
        pq.write_table(table.append_column("stars", pa.array(stars)), tmp_path / "corpus" / path.name)
    recipe = score_recipe(tmp_path / "corpus", "--targets", "stars", "--num_train_epochs", "1")
    assert run_experiment(recipe, tmp_path / "run", seed=0)["task"] == "regression"
