"""Cells of tables that hold something other than what they seem to."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import cli
from mister_e_hf.corpora.turn_tables import read_turns


@pytest.fixture
def turns(tmp_path, caplog):
    """Turns of a table of this content."""

    def turns(content: str | pa.Table, name: str = "calls.csv") -> list[dict]:
        if isinstance(content, pa.Table):
            pq.write_table(content, tmp_path / "calls.parquet")
        else:
            (tmp_path / name).write_text(content, encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return read_turns(tmp_path)

    return turns


def classes(numbers: list, names: list[str], kind=None) -> pa.Table:
    """A table as `datasets` writes it, with a ClassLabel."""
    count = len(numbers)
    table = pa.table(
        {"dialogue_id": ["d"] * count, "order": range(count), "text": ["x"] * count, "label": pa.array(numbers, kind)}
    )
    features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_classes_of_datasets_have_their_names(turns):
    assert [row["emotion"] for row in turns(classes([1, 0, None, -1], ["joy", "anger"]))] == [
        "anger",
        "joy",
        None,
        None,
    ]
    with pytest.raises(ValueError, match=r"calls\.parquet', column 'label': class 2, but the table names 2 classes"):
        turns(classes([0, 2], ["joy", "anger"]))
    assert turns(classes(["sad"], ["joy"]))[0]["emotion"] == "sad"


@pytest.mark.parametrize("cell", ["nan", "NaN", "<NA>", "\\N", "NULL", "#N/A"])
@pytest.mark.parametrize("field", ["text", "speaker"])
def test_placeholders_for_nothing_become_none(turns, caplog, cell, field):
    first, second = turns(f"dialogue_id,order,audio,{field}\nd,0,a.wav,{cell}\nd,1,b.wav,Nan\n")
    assert first[field] is None and second[field] == "Nan"
    assert f"row 2 and 0 more: {field} '{cell}' is what programs write for an empty cell" in caplog.text


@pytest.mark.parametrize("field", ["text", "emotion", "start", "audio", "split"])
def test_errors_of_spreadsheets_are_named(turns, field):
    columns = {"dialogue_id": "d", "order": "0", "text": "x"} | {field: "#NAME?"}
    with pytest.raises(ValueError, match=rf"row 2: {field} is #NAME\?, which a spreadsheet shows"):
        turns(",".join(columns) + "\n" + ",".join(columns.values()) + "\n")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1.23457E+11", "is a long number that a spreadsheet or data frame rounded"),
        ("x\0y", "holds a NUL character"),
    ],
)
def test_ids_changed_by_spreadsheets_raise(turns, cell, message):
    with pytest.raises(ValueError, match=f"row 2: dialogue_id .*{message}"):
        turns(f"dialogue_id,order,text\n{cell},0,x\n")


def test_a_float_that_is_no_longer_the_id(turns):
    with pytest.raises(ValueError, match="rounded"):
        turns(pa.table({"dialogue_id": [1.2345678901234567e17], "order": [0], "text": ["x"]}))


@pytest.mark.parametrize(
    ("times", "unit"),
    [([(0, 4500), (4500, 9000)], "ms"), ([(0, 4.5), (4.5, 900)], "s"), ([(0, 4), (4, 700), (700, 702)], "s")],
)
def test_times_in_milliseconds(turns, times, unit):
    table = "dialogue_id\tstart\tend\ttext\n" + "".join(f"d\t{start}\t{end}\tx\n" for start, end in times)
    if unit == "s":
        assert [(row["start"], row["end"]) for row in turns(table, "calls.tsv")] == times
        return
    with pytest.raises(
        ValueError,
        match=r"row 2: start 0 and end 4500 would be seconds, .* If they are milliseconds, divide them by 1000",
    ):
        turns(table, "calls.tsv")


def test_names_of_speakers_in_texts_are_named(turns, caplog):
    def table(*texts: str) -> str:
        return "dialogue_id,order,text\n" + "".join(f"d,{order},{text}\n" for order, text in enumerate(texts))

    assert turns(table("Jane Doe: Hi.", "Bob: Hello", "Jane Doe: So", "Bob: well"))[0]["text"] == "Jane Doe: Hi."
    assert "row 2 and 3 more of 4 texts begin with a name, such as 'Jane Doe:'" in caplog.text
    turns(table("[SPEAKER_00]: Hi.", "[SPEAKER_00]: Hello"))
    assert "such as '[SPEAKER_00]:'" in caplog.text
    for texts in (("Listen: no.", "I said: go", "Well", "So"), ("at 10:30", "at 11:30"), ("Look: a", "Wait: b")):
        turns(table(*texts))
        assert "begin with a name" not in caplog.text


def test_rows_swallowed_by_an_open_quote_are_reported(turns, caplog):
    rows = turns('dialogue_id,order,text\nd,1,"Hi\nd,2,yes\nd,3,no"\nd,4,x\n')
    assert len(rows) == 2 and "line 2: a cell in quotes holds what looks like other rows" in caplog.text
    turns('dialogue_id,order,text\nd,1,"two\nlines, of text"\n')
    assert "other rows" not in caplog.text


def test_orders_that_contradict_times_are_named(tmp_path, caplog):
    (tmp_path / "calls.csv").write_text("dialogue_id,order,text,start,end\nd,1,x,5,6\nd,2,y,1,2\n", encoding="utf-8")
    command = ["corpus", "folder", "--data_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert cli.main(command) == 0
    assert "1 dialogues have start times that contradict order, such as 'd'; order is used" in caplog.text


def test_an_utterance_is_text_where_ids_have_a_column(turns):
    (row,) = turns("Dialogue_ID,Utterance_ID,Turn,Utterance\n0,7,1,hi\n")
    assert (row["utterance_id"], row["text"]) == ("7", "hi")


@pytest.mark.parametrize(("cell", "expected"), [("0,250", 0.25), ("1,250", None)])
def test_a_comma_before_three_digits(turns, cell, expected):
    table = f"dialogue_id;start;text\nd;{cell};x\n"
    if expected is not None:
        assert turns(table)[0]["start"] == expected
        return
    with pytest.raises(
        ValueError, match=r"row 2: start must be a number, got '1,250'; its comma may part decimals or thousands"
    ):
        turns(table)


@pytest.mark.parametrize("processes", ["0", "-2", "100000"])
def test_a_number_of_processes_that_cannot_be_meant(tmp_path, capfd, processes):
    (tmp_path / "calls.csv").write_text("dialogue_id,order,text\nd,1,x\n", encoding="utf-8")
    command = ["corpus", "folder", "--data_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert cli.main([*command, "--num_proc", processes]) == 2
    assert f"num_proc must be a whole number from 1 to 1,024, got {processes}" in capfd.readouterr().err
