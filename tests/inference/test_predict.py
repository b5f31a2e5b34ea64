"""`mister-e predict`: what it takes, what it writes, and what it refuses before anything is loaded."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import cli
from mister_e_hf.inference.predict import predict_dialogues
from support.forks import fork
from support.small_checkpoint import write_checkpoint
from support.small_encoders import LABELS, RATE, tone

SRT = "1\n00:00:00,100 --> 00:00:00,900\nso you see\n\n2\n00:00:01,000 --> 00:00:01,800\nnever\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture
def predict(model, capsys):
    """Runs the command in this process: its exit status, and what it printed."""

    def run(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["predict", *map(str, words), *([] if "--model" in words else ["--model", str(model)])])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "turns.csv"
    path.write_text("dialogue_id,order,text\na,0,so you see\na,1,=1+1\nb,0,well\n", encoding="utf-8")
    return path


def write_call(folder: Path, *subtitles: str) -> Path:
    soundfile.write(folder / "call.wav", tone(2, 200), RATE)
    for name in subtitles:
        (folder / name).write_text(SRT)
    return folder / "call.wav"


def test_the_ending_says_the_format(predict, table, model):
    _, lines = predict_dialogues(table, str(model))
    expected = list(lines)
    for ending in ("jsonl", "csv", "tsv", "parquet"):
        out = table.with_suffix(f".out.{ending}")
        status, printed, error = predict(table, "--out", out)
        assert (status, printed) == (0, f"3 turns in {out}\n") and "no word: 1 (1 so far)" in error
        if ending == "jsonl":
            assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == expected
            continue
        if ending == "parquet":
            rows = pq.read_table(out).to_pylist()
        else:
            with out.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, delimiter="," if ending == "csv" else "\t"))
        for row, line in zip(rows, expected, strict=True):
            assert (row["dialogue"], int(row["turn"]), row["label"]) == (line["dialogue"], line["turn"], line["label"])
            assert {label: float(row[label]) for label in LABELS} == line["scores"]
        assert rows[1]["text"] == ("=1+1" if ending == "parquet" else "'=1+1")


def test_a_terminal_gets_a_table_and_a_pipe_lines(predict, table, monkeypatch):
    status, printed, _ = predict(table)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and [line["dialogue"] for line in lines] == ["a", "a", "b"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, printed, _ = predict(table)
    shown = printed.splitlines()
    assert shown[0] == "dialogue a" and shown[1].split() == ["turn", "emotion", "score", "text"]
    assert shown[2].split() == ["0", lines[0]["label"], f"{lines[0]['score']:.2f}", "so", "you", "see"]
    assert shown[4:6] == ["", "dialogue b"]
    assert [json.loads(line) for line in predict(table, "--json")[1].splitlines()] == lines
    (two, *_) = [json.loads(line) for line in predict(table, "--json", "--top_k", "2")[1].splitlines()]
    assert len(two["scores"]) == len(two["experts"]["text"]) == 2 and two["experts"]["speech"] is None


def test_a_table_without_order_or_dialogue_is_one_dialogue_in_the_order_of_its_rows(predict, tmp_path):
    (tmp_path / "call.csv").write_text("text\nso\nwell\nnever\n")
    _, printed, _ = predict(tmp_path / "call.csv")
    assert [json.loads(line)["text"] for line in printed.splitlines()] == ["so", "well", "never"]


def test_a_transcript_has_a_turn_in_each_line(predict, tmp_path, model, caplog):
    (tmp_path / "call.txt").write_text("so\u2028you see\r\n\r\nAnn: well\r\n", encoding="utf-8")
    _, printed, error = predict(tmp_path / "call.txt")
    assert [json.loads(line)["text"] for line in printed.split("\n")[:-1]] == [
        "so\u2028you see",
        "Ann: well",
    ] and not error
    (tmp_path / "call.txt").write_text("Ann: so you see: well\nBob: never\n")
    assert [line["text"] for line in predict_dialogues(tmp_path / "call.txt", str(model))[1]] == [
        "so you see: well",
        "never",
    ]
    assert "taken for the speaker: Ann, Bob" in caplog.text
    (tmp_path / "call.txt").write_text("\n \n")
    assert "has no turns; expected one in each line" in predict(tmp_path / "call.txt")[2]


@pytest.mark.parametrize("name", ["call.srt", "call.vtt", "call.en.srt"])
def test_a_recording_is_taken_with_the_subtitles_beside_it(predict, tmp_path, name):
    recording = write_call(tmp_path)
    text = SRT if name.endswith("srt") else "WEBVTT\n\n" + SRT.replace(",", ".")
    (tmp_path / name).write_text(text)
    (tmp_path / "other.srt").write_text(SRT)
    status, printed, _ = predict(recording)
    assert status == 0 and [json.loads(line)["text"] for line in printed.splitlines()] == ["so you see", "never"]
    assert predict(recording, "--segments", tmp_path / name)[1] == printed


def test_a_recording_without_its_turns_says_what_is_needed(predict, tmp_path):
    recording = write_call(tmp_path)
    status, printed, error = predict(recording)
    assert (status, printed) == (2, "") and "a recording, which needs its turns: pass --segments call.srt" in error
    write_call(tmp_path, "call.en.srt", "call.srt")
    assert (
        "several subtitle files beside it (call.en.srt, call.srt); choose one with --segments" in predict(recording)[2]
    )


def test_an_error_names_the_dialogue_as_the_table_does(predict, tmp_path):
    (tmp_path / "turns.csv").write_text("dialogue_id,order,audio\ncall-7,0,nowhere.wav\n")
    status, _, error = predict(tmp_path / "turns.csv")
    assert status == 2 and "dialogue 'call-7', turn 0: " in error and "nowhere.wav" in error


HEAVY = """
import contextlib, io, json, sys
from mister_e_hf import cli
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        status = cli.main(["predict", *words])
    known = {"torch", "transformers", "datasets", "pyarrow", "pandas", "sklearn", "matplotlib"}
    known |= {"evaluate", "peft", "av"}
    heavy = sorted(known & set(sys.modules))
    print(json.dumps([status, heavy, error.getvalue()]))
"""


def test_what_cannot_work_is_refused_before_anything_is_loaded(model, table, tmp_path):
    recording = write_call(tmp_path, "call.srt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "checkpoint").mkdir()
    given = {
        ("nowhere.csv",): "'nowhere.csv' not found; expected a recording, folder or table",
        (table, "--model", "nowhere"): "Checkpoint folder 'nowhere' not found",
        (table, "--model", tmp_path / "nowhere"): "Checkpoint folder '",
        (table, "--model", "folder/nowhere"): "Checkpoint folder 'folder/nowhere' not found",
        (table, "--model", tmp_path / "checkpoint"): "is not a checkpoint: it has no config.json",
        (table, "--model", table): "is a file; expected a checkpoint folder",
        (table, "--out", "x.xlsx"): "'x.xlsx' must end in one of .jsonl",
        (table, "--out", tmp_path / "nowhere" / "x.csv"): "does not exist; create it first",
        (table, "--out", tmp_path / "folder"): "is a folder",
        (table, "--out", table): "is an input of this command",
        (table, "--out", model / "x.csv"): "is an input of this command",
        (table, "--segments", tmp_path / "call.srt"): "--segments are the turns of a recording",
        (recording, "--segments", "nowhere.srt"): "No subtitles at 'nowhere.srt'",
        (recording, "--columns", "text=words"): "--columns are of a table",
        (table, "--columns", "text=a", "text=b"): "--columns names text twice",
        (tmp_path / "folder" / "call.wav",): "expected a recording",
    }
    (tmp_path / "talk.txt").write_text("so you see\n", encoding="utf-8")
    cases = [*given, (tmp_path / "talk.txt", "--out", tmp_path / "talk.jsonl")]
    words = [[*map(str, case), *([] if "--model" in case else ["--model", str(model)])] for case in cases]
    call = subprocess.run(
        [sys.executable, "-c", HEAVY, json.dumps(words)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert call.returncode == 0, call.stderr
    *lines, last = (line for line in call.stdout.splitlines() if line.startswith("["))
    # a transcript is predicted without what reads corpora
    assert json.loads(last)[:2] == [0, ["torch", "transformers"]]
    for line, (case, message) in zip(lines, given.items(), strict=True):
        status, heavy, error = json.loads(line)
        assert (status, heavy) == (2, []) and message in error and len(error.splitlines()) == 1, (case, error)
    assert table.read_text().startswith("dialogue_id")


@pytest.mark.parametrize("device", ["gpu", "bogus", "cuda:99", "cuda:-1", "meta"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(predict, table, device):
    status, _, error = predict(table, "--device", device)
    assert status == 2 and f"--device '{device}': this machine has cpu" in error and len(error.splitlines()) == 1
    assert predict(table, "--device", "cpu")[0] == 0


def test_a_command_that_is_ended_leaves_nothing(model, tmp_path):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "out").mkdir()
    rows = "".join(f"{dialogue},{turn},so you see\n" for dialogue in range(3000) for turn in range(5))
    (tmp_path / "turns.csv").write_text("dialogue_id,order,text\n" + rows)
    words = ["predict", "turns.csv", "--model", str(model), "--out", "out/lines.jsonl"]

    def predict():
        tempfile.tempdir = str(tmp_path / "temporary")
        os.chdir(tmp_path)
        sys.exit(cli.main(words))

    command, deadline = fork(predict, tmp_path / "log.txt"), time.monotonic() + 90
    while not any(path.stat().st_size for path in (tmp_path / "out").iterdir()):
        assert os.waitpid(command, os.WNOHANG)[0] == 0 and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(command, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) == 130
    assert (tmp_path / "log.txt").read_text() == "interrupted\n"
    assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "temporary").iterdir())


def test_a_terminal_in_another_encoding_gets_json_all_the_same(model, tmp_path, monkeypatch):
    (tmp_path / "turns.csv").write_text("text\n喜び é 🙂\n", encoding="utf-8")
    words = ["predict", "turns.csv", "--model", str(model)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert cli.main(words) == 0
    sys.stdout.flush()
    line = sys.stdout.buffer.getvalue().decode("ascii")
    assert json.loads(line)["text"] == "喜び é 🙂" and math.isfinite(json.loads(line)["score"])
