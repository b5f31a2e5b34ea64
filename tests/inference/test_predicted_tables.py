"""`mister-e plot` reads the tables that `mister-e predict` and a run write."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.plain_text import for_csv, from_csv
from mister_e_hf.inference.predicted_turns import read_predictions
from mister_e_hf.inference.prediction_output import write_predictions
from mister_e_hf.inference.timeline import timeline_figure

SHARES = {"joy": 0.625, "=anger": 0.25, "text": 0.125}


def lines_of(task: str, targets: int = 2) -> list[dict]:
    lines = []
    for dialogue in ("a", "b"):
        for turn in range(3):
            line = {"dialogue": dialogue, "split": "test", "turn": turn, "start": 1.0 * turn, "end": turn + 0.5}
            line |= {"text": "+1 hello"}
            if task == "regression":
                scores = {f"target{number}": turn - 1.5 * number for number in range(targets)}
                line |= {"label": "target0", "score": scores["target0"], "scores": scores, "task": task}
            else:
                line |= {"label": "joy", "score": SHARES["joy"], "scores": SHARES}
                line |= {"gate": {"speech": 0.25, "text": 0.75}, "capsules": {"speech+text": 1.0}}
            lines.append(line)
    return lines


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    "lines", [lines_of("classification"), lines_of("regression"), lines_of("regression", 1)], ids=["c", "s2", "s1"]
)
def test_a_table_holds_what_the_lines_hold(ending, lines, tmp_path):
    write_predictions(lines, list(lines[0]["scores"]), tmp_path / f"out.{ending}")
    found = read_predictions(tmp_path / f"out.{ending}")
    assert found == {name: [line for line in lines if line["dialogue"] == name] for name in ("a", "b")}


def test_probabilities_that_top_k_left_out_are_not_scores(tmp_path):
    lines = [{**line, "scores": {"joy": 0.625}} for line in lines_of("classification")]
    write_predictions(lines, list(SHARES), tmp_path / "out.csv")
    assert [turn["scores"] for turn in read_predictions(tmp_path / "out.csv")["a"]] == [{"joy": 0.625}] * 3
    assert "task" not in read_predictions(tmp_path / "out.csv")["a"][0]


@pytest.mark.parametrize("text", ["=1+1", "'=1+1", "-5", "it's", "'", "", "@x", "-x", "'tis"])
def test_cells_of_csv_are_read_as_written(text):
    assert from_csv(str(for_csv(text))) == text or text == "'=1+1"  # a quoted formula is read without its quote


def write_run(folder: Path, named: bool) -> Path:
    columns = {
        "split": ["test"] * 3,
        "dialogue_id": ["a", "a", "b"],
        "utterance_id": ["a0", "a1", "b0"],
        "label": ["joy", None, "joy"],
        "prediction": ["joy", "anger", "joy"],
        "probabilities": pa.array([[0.25, 0.75, 0], [1, 0, 0], [0, 0.5, 0.5]], pa.list_(pa.float32())),
        "speech_probabilities": [[0.5, 0.5, 0]] * 3,
        "text_probabilities": [[0.5, 0.5, 0]] * 3,
        "gate_weights": [[0.25, 0.75]] * 3,
        "capsule_weights": [{"speech": 0.5, "text": 0.5}] * 3,
    }
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    if named:
        names = {"0": "anger", "1": "joy", "2": "calm"}
        (folder / "config.json").write_text(json.dumps({"id2label": names}))
    return folder / "predictions.parquet"


@pytest.mark.parametrize("named", [True, False])
def test_predictions_of_a_run(named, tmp_path):
    found = read_predictions(write_run(tmp_path, named))
    third = "calm" if named else "class 2"
    first, second = found["a"]
    assert (first["turn"], second["turn"], found["b"][0]["turn"]) == (0, 1, 0)
    assert (first["label"], first["score"]) == ("joy", 0.75)
    assert first["scores"] == {"anger": 0.25, "joy": 0.75, third: 0}
    assert second["label"] == "anger" and second["gate"] == {"speech": 0.25, "text": 0.75}
    assert second["capsules"] == {"speech": 0.5, "text": 0.5}


def test_weights_of_experts_inside_a_model_are_its_gate(tmp_path):
    path = write_run(tmp_path, True)
    table = pq.read_table(path).drop_columns(["gate_weights", "capsule_weights"])
    experts, modalities = {"local": 0.25, "global": 0.75}, {"speech": 1.0, "text": 0.0}
    for name, weights in (("expert_weights", experts), ("modality_weights", modalities)):
        table = table.append_column(name, pa.array([weights] * 3))
    pq.write_table(table, path)
    turns = read_predictions(path)["a"]
    assert [(turn["gate"], turn["modality_gate"]) for turn in turns] == [(experts, modalities)] * 2
    lines = [turn | {"start": None, "end": None, "text": None} for turn in turns]
    write_predictions(lines, ["anger", "joy", "calm"], tmp_path / "again.csv")
    again = read_predictions(tmp_path / "again.csv")["a"]
    assert [(turn["gate"], turn["modality_gate"]) for turn in again] == [(experts, modalities)] * 2
    axes = timeline_figure(turns).axes
    assert [each.get_ylabel() for each in axes] == ["probability", "gate\nweight", "modality\nweight"]


@pytest.mark.parametrize("named", [True, False])
def test_scores_of_a_run(named, tmp_path):
    columns = {"dialogue_id": ["a", "a"], "prediction": [[-0.5, 2.0], [1.0, 0.0]]}
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    if named:
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "valence", "1": "activation"}}))
    first = read_predictions(tmp_path / "predictions.parquet")["a"][0]
    names = ["valence", "activation"] if named else ["score 0", "score 1"]
    assert first["task"] == "regression" and (first["label"], first["score"]) == (names[0], -0.5)
    np.testing.assert_array_equal([first["scores"][name] for name in names], [-0.5, 2.0])


def test_the_command_plots_tables(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    write_predictions(lines_of("regression"), ["target0", "target1"], tmp_path / "out.csv")
    for path in (tmp_path / "out.csv", write_run(tmp_path, True)):
        assert cli.main(["plot", str(path)]) == 0, capsys.readouterr().err
        assert path.with_suffix(".png").is_file()


HEADER = "dialogue,turn,label,score,joy,anger\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("emotion,text\njoy,hello\n", "has the columns emotion, text; expected a table of mister-e predict"),
        (f"{HEADER}a,0,joy,high,0.5,0.5\n", "row 1: score must be a number, got 'high'"),
        (f"{HEADER}a,x,joy,0.5,0.5,0.5\n", "row 1: turn must be a number, got 'x'"),
        (f"{HEADER}a,0,joy,0.5,0.5,0.5\na,0,joy,0.5,0.5,0.5\n", "row 2: turn 0 of dialogue 'a' also appears in row 1"),
        (f"{HEADER}a,0,joy,0.5,0.5\n", "row 1 has 5 cells, but the table 6 columns"),
        (f"{HEADER}a,0,,0.5,0.5,0.5\n", "row 1: label must be the name of a class, got None"),
        ("turn,turn\n0,0\n", "has several columns 'turn'"),
        (HEADER, "is empty"),
        ("", "is empty"),
    ],
)
def test_other_tables_raise(content, message, tmp_path):
    (tmp_path / "out.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"dialogue_id": ["a"], "prediction": ["joy"]}, "prediction must hold as many numbers in every row"),
        (
            {"dialogue_id": ["a"] * 2, "prediction": ["joy"] * 2, "probabilities": [[1.0], [0.5, 0.5]]},
            "probabilities must hold as many numbers in every row",
        ),
        (
            {"dialogue_id": ["a"], "prediction": ["joy"], "probabilities": [[2.0]]},
            "score must be a number from 0 to 1",
        ),
        ({"dialogue_id": ["a"], "prediction": [["x"]]}, "prediction must hold as many numbers"),
        ({"dialogue_id": [None], "prediction": [[1.0]]}, "dialogue must be a name"),
        ({"dialogue_id": [["a"]], "prediction": [[1.0]]}, "row 1: dialogue must be a name, got \\['a'\\]"),
        (
            {"dialogue_id": ["a"], "prediction": [[1.0]], "text_prediction": [[1.0]], "gate_weights": [0.5]},
            "row 1: gate_weights must hold a number for each of text, got 0.5",
        ),
        (
            {"dialogue_id": ["a"], "prediction": [[1.0]], "text_prediction": [[1.0]], "gate_weights": [[0.5, 0.5]]},
            "gate_weights must hold a number for each of text",
        ),
        (
            {"dialogue": ["a"], "turn": [float("inf")], "label": ["joy"], "score": [1.0], "joy": [1.0]},
            "row 1: turn must be a number, got inf",
        ),
    ],
)
def test_other_predictions_raise(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "predictions.parquet")
