"""Predicted scores of a split: their scores, the table that stores them, and tables of results."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import DialogueTrainer, DialogueTrainingArguments, DialogueVectors
from mister_e_hf.base.configuration_labelled import LabelledConfig
from mister_e_hf.base.errors import InputError
from mister_e_hf.evaluation.calibration import fit_temperature
from mister_e_hf.evaluation.predictions import (
    calibration,
    format_results,
    labels_of,
    predict,
    prediction_table,
    score,
    summarize,
)
from mister_e_hf.evaluation.regression import REGRESSION_SCORES, regression_intervals, regression_scores
from mister_e_hf.models.baselines.configuration import LogisticRegressionConfig
from mister_e_hf.models.baselines.logistic_regression import LogisticRegressionModel
from support.vector_tables import LENGTHS, TURNS, cut, vector_table

VALENCE = [0.5, None, -1.25, 0.1, 1.0, 2.0, 3.0, -3.0]
AROUSAL = [1, 2, 3, 4, 5, None, 1, 2]
NAMES = ["valence", "arousal"]


def split(targets=tuple(NAMES), **changes) -> DialogueVectors:
    table = vector_table(**{"valence": cut(VALENCE), "arousal": cut(AROUSAL), **changes})
    return DialogueVectors(table, name="test", targets=list(targets))


def predicted(targets: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    heads = {name: generator.normal(size=(TURNS, targets)).astype(np.float32) for name in ("mixture", "speech")}
    return heads | {"gate_weights": np.full((TURNS, 1), 1.0, dtype=np.float32)}


def test_every_head_is_scored_and_the_mixture_has_intervals():
    data, predictions = split(), predicted()
    scores = score(predictions, data, NAMES)
    assert set(scores) == {"mixture", "speech"}
    assert scores["speech"] == regression_scores(data.labels, predictions["speech"], NAMES)
    intervals = scores["mixture"].pop("intervals")
    assert scores["mixture"] == regression_scores(data.labels, predictions["mixture"], NAMES)
    dialogues = np.repeat(np.arange(3), LENGTHS)
    assert intervals == regression_intervals(data.labels, predictions["mixture"], dialogues, NAMES)
    assert set(intervals["by_target"]) == set(NAMES)
    assert "confusion" not in scores["mixture"]


def test_bins_add_the_accuracies_of_the_literature():
    scores = score(predicted(1), split(["valence"]), ["valence"], "mosi")
    assert {"acc7", "f1_non0"} <= set(scores["mixture"])
    assert {"acc7", "f1_non0"} <= set(scores["mixture"]["intervals"])
    with pytest.raises(InputError, match="Bins are for one target"):
        score(predicted(), split(), NAMES, "mosi")


def test_an_undefined_score_is_none_and_logged(caplog):
    constant = {"mixture": np.full((TURNS, 2), 0.3, dtype=np.float32)}
    with caplog.at_level(logging.WARNING):
        scores = score(constant, split(), NAMES)
    assert scores["mixture"]["corr"] is None
    assert scores["mixture"]["intervals"]["corr"] is None
    assert "test: Corr of valence is undefined: its predictions are constant" in caplog.text


def test_table_of_predictions(tmp_path):
    data, predictions = split(), predicted()
    table = prediction_table(predictions, data, LabelledConfig(id2label=dict(enumerate(NAMES))))
    pq.write_table(table, tmp_path / "predictions.parquet")
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert list(rows[0]) == [
        "split", "dialogue_id", "utterance_id", "label", "prediction", "speech_prediction", "gate_weights"
    ]  # fmt: skip
    assert [row["label"] for row in rows] == [
        [None if value is None else np.float32(value) for value in pair] for pair in zip(VALENCE, AROUSAL, strict=True)
    ]
    assert [row["dialogue_id"] for row in rows] == ["d0"] * 3 + ["d1"] + ["d2"] * 4
    assert [row["utterance_id"] for row in rows] == [f"d_{turn}" for turn in range(TURNS)]
    for name, head in (("prediction", "mixture"), ("speech_prediction", "speech")):
        np.testing.assert_array_equal([row[name] for row in rows], predictions[head])


def test_scores_can_be_computed_again_from_the_table():
    data, predictions = split(), predicted()
    rows = prediction_table(predictions, data, LabelledConfig(id2label=dict(enumerate(NAMES)))).to_pylist()
    labels = np.array([row["label"] for row in rows], dtype=np.float64)
    again = regression_scores(labels, np.array([row["prediction"] for row in rows]), NAMES)
    assert again == regression_scores(labels_of(data), predictions["mixture"], NAMES)


def test_scores_have_no_calibration():
    data = split()
    with pytest.raises(InputError, match="test: the predictions are scores, not probabilities"):
        calibration(predicted()["mixture"], data)
    with pytest.raises(InputError, match="scores, not probabilities, so no temperature"):
        fit_temperature(predicted()["mixture"], data.labels)


# Results over seeds


def runs(*seeds: int, bins: str | None = None) -> list[dict]:
    names = NAMES if bins is None else NAMES[:1]
    return [score(predicted(len(names), seed), split(names), names, bins) for seed in seeds]


def test_mean_and_spread_over_seeds_by_target():
    found = runs(0, 1, 2)
    summary = summarize(found)
    for name in REGRESSION_SCORES:
        values = [run["mixture"][name] for run in found]
        assert summary["mixture"][name] == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1)})
        values = [run["speech"]["by_target"]["arousal"][name] for run in found]
        assert summary["speech"]["by_target"]["arousal"][name]["mean"] == pytest.approx(np.mean(values))
    assert summary["mixture"]["num_utterances"] == TURNS
    assert summary["mixture"]["by_target"]["valence"]["num_utterances"] == TURNS - 1
    assert set(summary["mixture"]) == {*REGRESSION_SCORES, "num_utterances", "by_target"}


def test_a_score_that_one_run_lacks_has_no_mean():
    for position in (0, 1):
        found = runs(0, 1)
        found[position] = score({"mixture": np.full((TURNS, 2), 0.3), "speech": np.ones((TURNS, 2))}, split(), NAMES)
        summary = summarize(found)
        assert summary["mixture"]["corr"] == {"mean": None, "sd": None}
        assert summary["mixture"]["mae"]["mean"] is not None
        assert "undefined" in format_results({"test": summary}).splitlines()[1]


def test_results_as_a_table():
    lines = format_results({"test": summarize(runs(0, 1))}).splitlines()
    assert lines[0].split() == ["test", "MAE", "Corr", "CCC", "N"]
    assert [line[:26].strip() for line in lines[1:]] == [
        "model", "speech", "model, valence", "model, arousal", "speech, valence", "speech, arousal"
    ]  # fmt: skip
    mean, spread = summarize(runs(0, 1))["mixture"]["mae"].values()
    assert f"{mean:.3f} ± {spread:.3f}" in lines[1]
    assert len({len(line) for line in lines}) == 1


def test_a_model_with_one_head_has_no_mixture_in_the_table():
    summary = summarize([{"mixture": score(predicted(2, 0), split(), NAMES)["mixture"]}])
    lines = format_results({"test": summary}).splitlines()
    assert [line[:26].strip() for line in lines[1:]] == ["model", "model, valence", "model, arousal"]


@pytest.mark.parametrize(
    ("bins", "headings"),
    [
        ("mosi", "MAE Corr Acc-7 Acc-2 with zeros F1 with zeros Acc-2 without zeros F1 without zeros"),
        ("sims", "MAE Corr Acc-2 F1 Acc-3 Acc-5 Acc-2 weak R²"),
    ],
)
def test_results_with_bins_as_a_table(bins, headings):
    summary = summarize(runs(0, bins=bins))
    lines = format_results({"validation": summary}, "validation").splitlines()
    assert " ".join(lines[0].split()) == f"validation {headings} N"
    assert len(lines) == 3
    accuracy = summary["mixture"]["acc7" if bins == "mosi" else "acc2"]["mean"]
    assert f" {100 * accuracy:.2f}" in lines[1]
    assert len({len(line) for line in lines}) == 1


# A model


def test_predictions_of_a_trained_model(tmp_path):
    """Scores that are a linear function of the vectors are predicted, in the order and units of the labels."""
    generator = np.random.default_rng(0)
    lengths = [5, 2, 7, 3] * 4
    text = generator.normal(size=(sum(lengths), 2))
    scores = np.stack([100 + 3 * text[:, 0], -text[:, 1]], axis=1)

    def rows(values):
        edges = np.cumsum([0, *lengths])
        return [values[start:stop].tolist() for start, stop in zip(edges[:-1], edges[1:], strict=True)]

    table = pa.table(
        {
            "dialogue_id": [str(number) for number in range(len(lengths))],
            "utterance_ids": rows(np.arange(sum(lengths))),
            "text_features": rows(text),
            "valence": rows(scores[:, 0]),
            "arousal": rows(scores[:, 1]),
        }
    )
    data = DialogueVectors(table, name="test", targets=NAMES)
    config = LogisticRegressionConfig(
        modalities=["text"], text_embedding_dim=2, problem_type="regression", id2label=dict(enumerate(NAMES))
    )
    unseen = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    settings = DialogueTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=60, learning_rate=0.05, **unseen
    )
    trainer = DialogueTrainer(LogisticRegressionModel(config), settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    predictions = predict(trainer, data)
    assert set(predictions) == {"mixture"}
    found = score(predictions, data, NAMES)["mixture"]["by_target"]
    assert found["valence"]["mae"] < 0.3
    assert found["arousal"]["mae"] < 0.1
    assert min(found[name]["ccc"] for name in NAMES) > 0.98
