"""Models that predict scores: pipeline, stream, files, tables, plot, page, doctor and card show them as they are."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from mister_e_hf import cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import TASK
from mister_e_hf.hub.checkpoint import card_claims, pushed_contents, save_checkpoint
from mister_e_hf.inference.doctor import examine
from mister_e_hf.inference.predicted_turns import check_turn, read_predictions
from mister_e_hf.inference.prediction_output import turn_table, write_predictions
from mister_e_hf.inference.serve import emotions
from mister_e_hf.models.registry import registered
from support.model_contract import small_model

NAMES = [entry.name for entry in registered()]
TARGETS = {0: "valence", 1: "activation", 2: "dominance"}
SCORES = {"problem_type": "regression", "id2label": TARGETS}
TURNS = [{"text": "so well"}, {}, {"text": "grr"}]


def write(name: str, folder: Path, encoder: Path, results: dict | None = None, **changes) -> Path:
    model = small_model(name, torch.float32, **{**SCORES, **changes})
    return save_checkpoint(folder, model, {}, results, encoders={"text": encoder})


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_gives_the_model_s_scores(name, tmp_path, text_encoder):
    erc = pipeline(TASK, model=write(name, tmp_path / "c", text_encoder))
    config = erc.model.config
    found = erc(TURNS)
    with torch.inference_mode():
        vectors, present = erc._encoders.embed(erc.preprocess(TURNS))
        inputs = {f"{key}_embeddings": rows[None] for key, rows in vectors.items()}
        inputs |= {f"{key}_mask": rows[None] for key, rows in present.items()}
        inputs |= {"transcripts": [[turn.get("text") for turn in TURNS]]} if config.reads_transcripts else {}
        view = erc.model.view(erc.model(**inputs))
    for number, turn in enumerate(found):
        assert list(turn["scores"]) == list(TARGETS.values()) and turn["task"] == "regression"
        assert (turn["label"], turn["score"]) == ("valence", turn["scores"]["valence"])
        np.testing.assert_allclose([*turn["scores"].values()], view.logits[0, number], rtol=1e-5, atol=1e-5)
        assert list(turn.get("experts", ())) == list(config.heads)
        for head, scores in turn.get("experts", {}).items():
            if scores is not None:
                np.testing.assert_allclose([*scores.values()], view.head_logits[head][0, number], rtol=1e-5, atol=1e-5)
    assert json.loads(json.dumps(found)) == found
    assert "scores=['valence', 'activation', 'dominance']" in repr(erc)
    with pytest.raises(InputError, match="top_k is a number of classes; this model predicts scores: valence, activ"):
        erc(TURNS, top_k=2)


def test_a_stream_gives_the_scores_of_the_whole_dialogue(tmp_path, text_encoder):
    erc = pipeline(TASK, model=write("mister_e", tmp_path / "c", text_encoder, causal=True))
    stream = erc.stream()
    for found, expected in zip(map(stream, TURNS), erc(TURNS), strict=True):
        assert found.keys() == expected.keys() and found["label"] == "valence"
        np.testing.assert_allclose([*found["scores"].values()], [*expected["scores"].values()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mister_e", "mult"])
def test_predict_plot_serve_and_doctor(name, tmp_path, text_encoder, capsys):
    folder = write(name, tmp_path / "c", text_encoder)
    (tmp_path / "call.txt").write_text("so well\ngrr\n")
    for ending in ("jsonl", "csv"):
        words = ["predict", tmp_path / "call.txt", "--model", folder, "--out", tmp_path / f"call.{ending}"]
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "call.jsonl").read_text().splitlines()]
    with (tmp_path / "call.csv").open() as file:
        for row, line in zip(csv.DictReader(file), lines, strict=True):
            assert {target: float(row[target]) for target in TARGETS.values()} == line["scores"]
    assert cli.main(["plot", str(tmp_path / "call.jsonl")]) == 0 and (tmp_path / "call.png").is_file()
    _, answer = emotions(pipeline(TASK, model=folder), [["so well", "", "", ""]], [])
    assert '<th scope="col">activation</th>' in answer and "probability" not in answer and "Lines of" in answer
    findings = list(examine(folder))
    assert all(good for good, _ in findings), findings
    assert (True, "scores of valence, activation, dominance") in findings


def turns(count: int, gate: bool = False) -> list[dict]:
    found = []
    for number in range(count):
        scores = {"valence": 5 * math.sin(number), "activation": 3 + number / count}
        one = {"label": "valence", "score": scores["valence"], "scores": scores, "task": "regression"}
        found.append(one | ({"gate": {"speech": 0.25, "text": 0.75}} if gate else {}))
    return found


def test_each_target_has_a_line_on_an_axis_of_its_own():
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    from mister_e_hf.inference.timeline import timeline_figure

    figure = timeline_figure([turn | {"start": n, "end": n + 0.5} for n, turn in enumerate(turns(9, gate=True))])
    valence, activation, gate = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["valence", "activation", "gate\nweight"]
    for axes, target in ((valence, "valence"), (activation, "activation")):
        line = next(line for line in axes.lines if line.get_gid() == "scores")
        np.testing.assert_allclose(line.get_ydata(), [turn["scores"][target] for turn in turns(9)])
        np.testing.assert_allclose(line.get_xdata(), np.arange(9) + 0.25)
    assert gate.get_xlabel() == "time, seconds" and not figure.legends
    single = [turn | {"scores": {"valence": turn["score"]}} for turn in turns(3)]
    assert [axes.get_ylabel() for axes in timeline_figure(single).axes] == ["valence"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "Turn 1: score must be a number from -1e\\+30 to 1e\\+30, got nan"),
        ({"scores": {"valence": "high"}}, "Turn 1: scores of 'valence' must be a number from -1e\\+30"),
        ({"task": "ranking"}, "Turn 1: task must be one of classification, regression, got 'ranking'"),
        ({"label": ""}, "Turn 1: label must be the name of a target"),
        ({"scores": dict.fromkeys(map(str, range(30)), 0.0)}, "Turn 1: scores names 30 targets; at most 20"),
    ],
)
def test_other_scores_are_named(change, message):
    with pytest.raises(InputError, match=message):
        check_turn(turns(1)[0] | change, "Turn 1")


def test_turns_of_other_targets_are_not_one_dialogue(tmp_path):
    lines = [{"dialogue": "d", "turn": number} | turn for number, turn in enumerate(turns(2))]
    lines[1]["scores"] = {"sentiment": 0.0}
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="line 2: scores names sentiment, but in the dialogue's first turn activ"):
        read_predictions(tmp_path / "lines.jsonl")


def test_a_table_has_a_column_for_each_target_and_wide_characters_take_two():
    lines = [
        {"dialogue": "对话", "turn": number, "text": text} | turn
        for number, (text, turn) in enumerate(zip(["你好吗", "so", "他们今天都来了" * 9], turns(3), strict=True))
    ]
    shown = turn_table(lines, width=50).split("\n")
    assert shown[0] == "dialogue 对话" and shown[1].split() == ["turn", "valence", "activation", "text"]
    assert shown[2].split() == ["0", "0.00", "3.00", "你好吗"]
    assert shown[4].endswith("…") and 2 * len(shown[4].rpartition("  ")[2]) <= 50 - shown[1].index("text") + 1
    emotions_of = [{"dialogue": "d", "turn": 0, "label": label, "score": 0.5} for label in ("高兴", "anger")]
    emotions_of = [turn | {"scores": {turn["label"]: 0.5}, "text": "x"} for turn in emotions_of]
    assert turn_table(emotions_of).split("\n")[1:] == [
        "turn  emotion  score  text",
        "   0  高兴      0.50  x",
        "   0  anger     0.50  x",
    ]


def test_parquet_holds_scores(tmp_path):
    import pyarrow.parquet as pq

    lines = [{"dialogue": "d", "turn": number} | turn for number, turn in enumerate(turns(2))]
    write_predictions(lines, ["valence", "activation"], tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["activation"] for row in rows] == [line["scores"]["activation"] for line in lines]


BLOCK = {"mae": 0.71234, "corr": 0.8, "ccc": None, "num_utterances": 686}
RESULTS = {
    "seed": 3,
    "test": {
        "mixture": BLOCK
        | {
            "acc7": 0.4567,
            "acc2_non0": 0.85,
            "intervals": {"mae": [0.6, 0.8], "by_target": {"valence": {"corr": [0.1, 0.2]}}},
            "by_target": {"valence": BLOCK, "dominance": BLOCK | {"ccc": 0.5}},
            "undefined": ["ccc of valence is undefined: its predictions are constant"],
        },
        "speech": BLOCK | {"acc7": 0.4, "acc2_non0": 0.8, "by_target": {}},
    },
}


def test_the_card_says_scores_with_their_units_and_intervals(tmp_path, text_encoder):
    folder = write("mister_e", tmp_path / "c", text_encoder, RESULTS)
    card = ModelCard.load(folder / "README.md")
    for text in (
        "Predicts scores of valence, activation and dominance for every turn of a dialogue from text",
        "scores = output.logits  # (B, T, 3)",
        "| test | Mean absolute error | Pearson correlation | Concordance correlation | utterances |",
        "| model | 0.712 (0.600 to 0.800) | 0.800 | – | 686 |",
        "| test | Acc-7 | Acc-2 without zeros | utterances |",
        "| model | 45.67 | 85.00 | 686 |",
        "| speech | 40.00 | 80.00 | 686 |",
        "| valence | 0.712 | 0.800 (0.100 to 0.200) | – | 686 |",
        "Ccc of valence is undefined: its predictions are constant.",
        "Scores are what annotators agreed on",
    ):
        assert text in card.text, text
    assert "argmax" not in card.text
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: each.metric_value for name, each in results.items()} == {
        "mae": 0.71234,
        "pearsonr": 0.8,
        "acc7": 0.4567,
        "acc2_non0": 0.85,
    }
    assert results["mae"].task_type == "audio-text-regression" and results["mae"].metric_name == "Mean absolute error"
    assert "mae 0.7123 on custom (test)" in card_claims(pushed_contents(folder))["scores"]
