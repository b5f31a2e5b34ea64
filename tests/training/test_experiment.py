import json
import os
import signal
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

from mister_e_hf import DialogueCollator, DialogueVectors, Recipe, cli
from mister_e_hf.corpora.demo import LABELS, demo_corpus
from mister_e_hf.evaluation.calibration import fit_temperature
from mister_e_hf.evaluation.metrics import emotion_scores, expected_calibration_error, softmax
from mister_e_hf.evaluation.predictions import format_results, score, summarize
from mister_e_hf.training.experiment import run_experiment, run_seeds
from support.forks import fork

ROOT = Path(__file__).parents[2]
SHORT = ["--num_train_epochs", "2", "--hidden_size", "16", "--disable_tqdm"]


def recipe(corpus: Path, *overrides: str) -> Recipe:
    return Recipe.load(ROOT / "hub_configs" / "demo.yaml", ["--corpus", str(corpus), *SHORT, *overrides])


@pytest.fixture(scope="module")
def run(demo_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_experiment(recipe(demo_folder), folder, seed=3)
    return folder


def test_auto_model_loads_the_checkpoint_of_a_run(run, demo_folder):
    model = AutoModel.from_pretrained(run).eval()
    assert list(model.config.id2label.values()) == LABELS
    data = recipe(demo_folder).read_corpus()["test"]
    predictions = pq.read_table(run / "predictions.parquet").to_pylist()
    rows = [row for row in predictions if row["split"] == "test" and row["dialogue_id"] == data.dialogue_ids[4]]
    with torch.no_grad():
        output = model(**DialogueCollator()([data[4]]))
    probabilities = (output.logits / model.config.calibration_temperature).softmax(-1)[0].numpy()
    np.testing.assert_allclose([row["probabilities"] for row in rows], probabilities, atol=1e-5)
    np.testing.assert_allclose([row["gate_weights"] for row in rows], output.gate_weights[0].numpy(), atol=1e-5)
    fusion = output.expert_logits.softmax(-1)[0, :, 2].numpy()
    np.testing.assert_allclose([row["fusion_probabilities"] for row in rows], fusion, atol=1e-5)
    assert [row["utterance_id"] for row in rows] == data.utterance_ids[4]
    assert not list(run.rglob(".unfinished*"))


def test_results_match_the_stored_predictions(run):
    results = json.loads((run / "results.json").read_text())
    rows = [row for row in pq.read_table(run / "predictions.parquet").to_pylist() if row["split"] == "test"]
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    for name in ("mixture", "speech", "text", "fusion"):
        column = "probabilities" if name == "mixture" else f"{name}_probabilities"
        expected = emotion_scores(labels, np.array([row[column] for row in rows]), LABELS)
        assert results["test"][name]["weighted_f1"] == pytest.approx(expected["weighted_f1"])
    block = results["test"]["mixture"]
    low, high = block["intervals"]["weighted_f1"]
    assert low <= block["weighted_f1"] <= high
    assert results["seed"] == 3
    assert {"torch", "transformers"} <= set(results["versions"])
    assert set(results["data_fingerprints"]) == {"train", "validation", "test"}


def test_probabilities_are_calibrated_on_validation_but_not_logits(run, demo_folder):
    results = json.loads((run / "results.json").read_text())
    temperature = results["calibration"]["temperature"]
    assert AutoModel.from_pretrained(run).config.calibration_temperature == temperature != 1
    rows = [row for row in pq.read_table(run / "predictions.parquet").to_pylist() if row["split"] == "validation"]
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    calibrated = np.log(np.array([row["probabilities"] for row in rows]).clip(1e-300))
    assert fit_temperature(calibrated, labels) == pytest.approx(1.0, rel=0.05)
    before = softmax(calibrated * temperature)  # what the mixture's logits said themselves
    for split in ("validation", "test"):
        block = results["calibration"][f"{split} without it"]
        low, high = block["interval"]
        assert low <= block["expected_calibration_error"] <= high
    found = results["calibration"]["validation without it"]["expected_calibration_error"]
    assert found == pytest.approx(expected_calibration_error(labels, before), abs=1e-4)


def test_a_finished_run_is_skipped_and_another_recipe_raises(run, demo_folder):
    before = (run / "model.safetensors").stat().st_mtime_ns
    assert run_experiment(recipe(demo_folder), run, seed=3) == json.loads((run / "results.json").read_text())
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="recipe.training.learning_rate is 0.003 there and 0.0001 here"):
        run_experiment(recipe(demo_folder, "--learning_rate", "1e-4"), run, seed=3)
    with pytest.raises(ValueError, match="seed is 3 there and 4 here"):
        run_experiment(recipe(demo_folder), run, seed=4)


def test_a_killed_run_resumes_to_the_same_result(demo_folder, tmp_path):
    made = recipe(demo_folder, "--num_train_epochs", "4")
    killed = fork(lambda: run_experiment(made, tmp_path / "killed", seed=0), tmp_path / "log.txt")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoint-*")):
        assert os.waitpid(killed, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert not (tmp_path / "killed" / "results.json").exists()
    for name in ("killed", "whole"):
        process = fork(lambda name=name: run_experiment(made, tmp_path / name, seed=0), tmp_path / "log.txt")
        assert os.waitpid(process, 0)[1] == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    first, second = (
        {
            file: (tmp_path / name / file).read_bytes()
            for file in ("model.safetensors", "predictions.parquet", "README.md")
        }
        for name in ("killed", "whole")
    )
    assert first == second
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("killed", "whole")]
    for result in results:
        for name in ("training_seconds", "peak_memory_bytes"):
            result.pop(name)
        result.pop("git_commit")  # the tree may change while the test runs
    assert results[0] == results[1]


def test_mean_and_standard_deviation_of_several_seeds(demo_folder, tmp_path):
    summary = run_seeds(recipe(demo_folder, "--num_train_epochs", "1"), tmp_path, [0, 1])
    runs = [json.loads((tmp_path / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    values = [result["test"]["mixture"]["weighted_f1"] for result in runs]
    assert values[0] != values[1]
    block = summary["test"]["mixture"]["weighted_f1"]
    assert block["mean"] == pytest.approx(statistics.fmean(values))
    assert block["sd"] == pytest.approx(statistics.stdev(values))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert all(AutoModel.from_pretrained(tmp_path / f"seed-{seed}") for seed in (0, 1))
    assert f"{100 * block['mean']:.2f} ± {100 * block['sd']:.2f}" in format_results(summary)


def test_one_seed_has_no_standard_deviation():
    assert summarize([{"mixture": {"weighted_f1": 0.5, "num_utterances": 3}}])["mixture"]["weighted_f1"]["sd"] is None


def test_second_scoring_leaves_zeros_out():
    table = pa.table(
        {
            "dialogue_id": ["a"],
            "utterance_ids": [["a_0", "a_1", "a_2", "a_3"]],
            "scores": [[-1.0, 0.0, 2.0, None]],
            "classes": [[0, 1, 1, 1]],
            "text_features": [[[0.0], [0.0], [0.0], [0.0]]],
        }
    )
    data = DialogueVectors(table, {"negative": 0, "non-negative": 1}, "classes", "scores", name="test")
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    scores = score({"mixture": probabilities}, data, ["negative", "non-negative"])
    assert scores["mixture"]["num_utterances"] == 4
    assert scores["mixture"]["accuracy"] == 0.5
    assert scores["mixture without zeros"]["num_utterances"] == 2
    assert scores["mixture without zeros"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corpus", "no/../where"], "No corpus folder"),
        (["--lerning_rate", "1"], "learning_rate"),
        (["--text_embedding_dim", "31"], "width 32"),
        (["--labels", "[a, b]"], "not one of the model's labels"),
    ],
)
def test_mistakes_are_one_line_before_training(words, message, demo_folder, tmp_path, capsys):
    corpus = [] if "--corpus" in words else ["--corpus", str(demo_folder)]
    command = [
        "train",
        str(ROOT / "hub_configs" / "demo.yaml"),
        *corpus,
        *words,
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def single_turns(table: pa.Table) -> pa.Table:
    """Each turn a dialogue of its own: the same corpus without context."""
    rows = []
    for row in table.to_pylist():
        lists = {name: value for name, value in row.items() if isinstance(value, list)}
        for turn, utterance in enumerate(row["utterance_ids"]):
            rows.append({"dialogue_id": utterance, **{name: [value[turn]] for name, value in lists.items()}})
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.slow
def test_full_model_beats_each_expert_and_a_model_without_context(tmp_path):
    """The method's claim on a corpus where the right answer is known: mixture over experts, context over none."""
    settings = ["--num_train_epochs", "6", "--disable_tqdm"]
    scores = {}
    for name, change in (("full", lambda table: table), ("context-free", single_turns)):
        folder = tmp_path / f"{name}-corpus"
        folder.mkdir()
        for split, table in demo_corpus(sizes={"train": 160, "validation": 30, "test": 60}).items():
            pq.write_table(change(table), folder / f"{split}.parquet")
        # Without context there are 12 times as many dialogues; 4 epochs suffice (weighted F1 0.80, 0.78 after 3).
        batch = ["--per_device_train_batch_size", "64", "--num_train_epochs", "4"] if name == "context-free" else []
        words = ["--corpus", str(folder), *settings, *batch]
        results = run_experiment(Recipe.load(ROOT / "hub_configs" / "demo.yaml", words), tmp_path / name, seed=0)
        scores[name] = results["test"]
    full = scores["full"]["mixture"]
    assert full["weighted_f1"] > 0.95
    for name in ("speech", "text", "fusion"):
        assert full["weighted_f1"] > scores["full"][name]["weighted_f1"] + 0.05, name
    assert full["weighted_f1"] > scores["context-free"]["mixture"]["weighted_f1"] + 0.05
    # each class is known to the expert that can know it, and to no other
    per_class = {name: block["f1_per_class"] for name, block in scores["full"].items()}
    assert per_class["speech"]["anger"] > 0.9 > 0.6 > per_class["text"]["anger"]
    assert per_class["text"]["joy"] > 0.9 > 0.6 > per_class["speech"]["joy"]
    assert (
        per_class["fusion"]["surprise"] > 0.9 > 0.75 > max(per_class[name]["surprise"] for name in ("speech", "text"))
    )
    assert per_class["mixture"]["sadness"] > scores["context-free"]["mixture"]["f1_per_class"]["sadness"] + 0.2


def test_last_epoch_can_be_kept_instead_of_the_best(demo_folder, tmp_path):
    words = ["--load_best_model_at_end", "false", "--num_train_epochs", "3", "--learning_rate", "0.3"]
    results = run_experiment(recipe(demo_folder, *words), tmp_path, seed=0)
    assert results["best_epoch"] is None
    scores = [epoch["eval_weighted_f1"] for epoch in results["history"]]
    assert results["validation"]["mixture"]["weighted_f1"] == pytest.approx(scores[-1])
    assert len(set(scores)) > 1
