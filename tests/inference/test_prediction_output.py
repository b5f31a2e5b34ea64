"""Predicted turns as CSV, TSV, JSON lines, Parquet and a table: each read back gives what was found."""

import csv
import json
import os
import threading

import pyarrow.parquet as pq
import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.inference.prediction_output import check_format, json_line, turn_table, write_predictions

LABELS = ["joy", "=1+1", "score"]
TEXTS = ['say "so", then\nleave', '=HYPERLINK("http://x")', "one\u2028line\u0085still\x1b[31m", None, "喜び 🙂"]


def lines() -> list[dict]:
    found = []
    for number, text in enumerate(TEXTS):
        scores = {"joy": 0.1 + 0.2, "score": 0.25} | ({"=1+1": 1e-300} if number % 2 else {})
        line = {"dialogue": "call\u2028 1", "turn": number, "label": "joy", "score": scores["joy"], "scores": scores}
        times = {"start": 0.1 * number, "end": 0.1 * number + 1 / 3} if number else {}
        found.append(
            line | times | ({} if text is None else {"text": text}) | {"experts": {"speech": None}, "gate": {}}
        )
    return found


def expected(line: dict, escaped: bool) -> list:
    fields = [line.get(name) for name in ("dialogue", "turn", "start", "end", "text", "label", "score")]
    cells = fields + [line["scores"].get(label) for label in LABELS]
    if escaped and (cells[4] or "").startswith("="):
        cells[4] = "'" + cells[4]
    return cells


@pytest.mark.parametrize(("name", "delimiter"), [("out.csv", ","), ("out.TSV", "\t")])
def test_a_delimited_table_reads_back_and_runs_nothing_in_a_spreadsheet(tmp_path, name, delimiter):
    assert write_predictions(iter(lines()), LABELS, tmp_path / name) == len(TEXTS)
    with (tmp_path / name).open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file, delimiter=delimiter)
    assert head == ["dialogue", "turn", "start", "end", "text", "label", "score", "joy", "'=1+1", "score (class)"]
    assert rows == [["" if cell is None else str(cell) for cell in expected(line, True)] for line in lines()]


def test_parquet_holds_the_same_columns_with_their_types(tmp_path):
    write_predictions(iter(lines()), LABELS, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert [list(row.values()) for row in table.to_pylist()] == [expected(line, False) for line in lines()]
    assert [str(kind) for kind in table.schema.types[:7]] == [
        "string",
        "int64",
        "double",
        "double",
        "string",
        "string",
        "double",
    ]
    assert write_predictions(iter([]), LABELS, tmp_path / "none.parquet") == 0
    assert pq.read_table(tmp_path / "none.parquet").column_names == table.column_names


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out"])
def test_json_lines_are_lines_for_every_reader(tmp_path, name):
    write_predictions(iter(lines()), LABELS, tmp_path / name)
    text = (tmp_path / name).read_bytes().decode("utf-8")
    assert [json.loads(line) for line in text.splitlines()] == lines()
    assert "喜び 🙂" in text and "\x1b" not in text


def test_json_is_never_what_json_does_not_know():
    assert json.loads(json_line({"text": "é", "name": "a\udcff"}, ascii_only=True)) == {"text": "é", "name": "a\udcff"}
    assert json_line({"text": "é"}, ascii_only=True).isascii()
    with pytest.raises(ValueError):
        json_line({"score": float("nan")})


@pytest.mark.parametrize("name", ["out.xlsx", "out.txt", "out.csv.gz", "out.wav"])
def test_another_ending_is_refused(name):
    with pytest.raises(InputError, match=f"'{name}' must end in one of .jsonl, .json, .ndjson, .csv, .tsv, .parquet"):
        check_format(name)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "out.csv").write_text("before")

    def broken():
        yield lines()[0]
        raise KeyboardInterrupt

    for name in ("out.csv", "new.parquet", "new.jsonl"):
        with pytest.raises(KeyboardInterrupt):
            write_predictions(broken(), LABELS, tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv", "before")]


def test_a_pipe_and_a_link_are_written_into(tmp_path):
    (tmp_path / "real.jsonl").write_text("before")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    write_predictions(iter(lines()), LABELS, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink() and len((tmp_path / "real.jsonl").read_text().splitlines()) == 5
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text(encoding="utf-8")))
    reader.start()
    write_predictions(iter(lines()), LABELS, tmp_path / "pipe")
    reader.join(10)
    assert [json.loads(line) for line in got[0].splitlines()] == lines() and (tmp_path / "pipe").is_fifo()


def test_the_table_for_a_terminal_fits_it_and_obeys_nothing():
    shown = turn_table(lines(), width=56).split("\n")
    assert shown[0] == "dialogue call\\u2028 1" and len(shown) == 2 + len(TEXTS)
    assert shown[1].split() == ["turn", "start", "end", "emotion", "score", "text"]
    assert shown[3].split()[:5] == ["1", "0.10", "0.43", "joy", "0.30"] and shown[2].split()[:3] == [
        "0",
        "joy",
        "0.30",
    ]
    assert max(map(len, shown)) <= 56 and "…" in shown[4] and "\x1b" not in "".join(shown)
    bare = turn_table([{"dialogue": "d", "turn": 0, "label": "joy", "score": 1.0}])
    assert bare == "dialogue d\nturn  emotion  score  text\n   0  joy       1.00"
