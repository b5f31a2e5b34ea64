import csv
import json
import os
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf.corpora.sources import AudioInTable, fingerprint, read_table, require_columns, stored_audio

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, name: str = "turns.csv", encoding: str = "utf-8") -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return read_table(path)

    return read


@pytest.fixture
def parquet(tmp_path):
    def parquet(table: pa.Table, **settings) -> Path:
        pq.write_table(table, tmp_path / "turns.parquet", **settings)
        return tmp_path / "turns.parquet"

    return parquet


# CSV and TSV


def test_csv_cells_are_strings(read):
    rows = read('id,text , score\n1,NA,-0.50\n2,None,nan\n3,"",null\n4, padded ,1e3\n')
    assert rows == [
        {"id": "1", "text": "NA", "score": "-0.50"},
        {"id": "2", "text": "None", "score": "nan"},
        {"id": "3", "text": None, "score": "null"},
        {"id": "4", "text": " padded ", "score": "1e3"},
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("turns.csv", ","), ("TURNS.CSV", ","), ("turns.tsv", "\t")])
@pytest.mark.parametrize(
    ("newline", "quoting"), [("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL), ("\r", csv.QUOTE_ALL)]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_round_trip(tmp_path, name, delimiter, newline, quoting, encoding):
    draw = random.Random(0)
    alphabet = ["a", "é", "日", "'", '"', '""', ",", "\t", ";", "\n", "\r\n", "\u2028", "\x1c", " ", "1"]
    cells = ["".join(draw.choices(alphabet, k=draw.randint(1, 8))) for _ in range(300)]
    rows = [dict(zip(("id", "text", "more, or less"), cells[at : at + 3], strict=True)) for at in range(0, 300, 3)]
    with (tmp_path / name).open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=newline, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    assert read_table(tmp_path / name) == rows


def test_empty_lines_are_no_rows(read):
    assert read("id,text\n\n1,a\n\n\n2,b\n\n") == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]
    assert read('id\n1\n\n""\n') == [{"id": "1"}, {"id": None}]


def test_csv_in_windows_1252(read):
    assert read("id,text\n1,“déjà” – vu\n", encoding="cp1252") == [{"id": "1", "text": "“déjà” – vu"}]


BROKEN_TABLES = {
    "too few cells": ('id,text\n1,"a\nb"\n2\n', r"line 4: 1 cells, but 2 columns \['id', 'text'\]"),
    "too many cells": ("id,text\n1,a,b\n", r"line 2: 3 cells, but 2 columns"),
    "one name twice": ("id,text, id\n1,a,2\n", "two columns of one name"),
    "open quote": ('id,text\n1,"a\n2,b\n', r"line 2: unexpected end of data"),
    "quote within": ('id,text\n1,"a"b\n', r"line 2: ',' expected after '\"'"),
    "a huge cell": (f"id,text\n1,{'a' * 200_000}\n", r"line 2: field larger than"),
    "header alone": ("id,text\n", "has no rows"),
    "nothing": ("", "has no rows"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_broken_csv_is_named_with_its_line(read, content, message):
    with pytest.raises(ValueError, match=rf"turns\.csv'.*{message}"):
        read(content)


def test_broken_tsv_is_named_with_its_line(read):
    with pytest.raises(ValueError, match=r"turns\.tsv', line 3: 3 cells, but 2 columns"):
        read("id\ttext\n1\ta, b\n2\tc\td\n", "turns.tsv")


# JSONL


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_round_trip(read, newline, encoding):
    rows = [
        {"id": "1", "n": 1, "text": "a\u2028b\u2029c\x1dd\x1ce\x0cf", "list": [1, "x"], "deep": {"a": None}},
        {"id": "2", "n": 2.5, "text": "two\nlines\r\n", "list": [], "deep": {}},
        {"id": "3", "n": None, "text": "None", "list": None, "deep": {"": ""}},
    ]
    for ascii_only in (True, False):
        content = newline.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        assert read(content, "turns.jsonl", encoding) == rows
        assert read(f"{newline}  {newline}{content}{newline}{newline}", "turns.jsonl", encoding) == rows


def test_json_rows_need_not_have_the_same_keys(read):
    rows = read('{"id": 1, "text": ""}\n{"speaker": "A", "id": 2}\n{}', "turns.jsonl")
    assert rows == [
        {"id": 1, "text": None, "speaker": None},
        {"id": 2, "text": None, "speaker": "A"},
        {"id": None, "text": None, "speaker": None},
    ]
    assert [list(row) for row in rows] == [["id", "text", "speaker"]] * 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "line 3 is not JSON"),
        ('{"id": 1} {"id": 2}', "line 3 is not JSON"),
        ('{"id": 1', "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is not JSON"),
        (f'{{"id": {"1" * 5000}}}', "line 3 is not JSON"),
        ('["id", 1]', "line 3: expected an object of columns, got list"),
        ("null", "line 3: expected an object of columns, got NoneType"),
    ],
    ids=["quotes", "two", "open", "deep", "long", "list", "null"],
)
def test_broken_json_is_named_with_its_line(read, line, message):
    with pytest.raises(ValueError, match=rf"turns\.jsonl', {message}"):
        read(f'{{"id": 0}}\n\n{line}\n{{"id": 2}}', "turns.jsonl")


# Parquet


def audio_table(count: int) -> pa.Table:
    """Every third row without audio: by a null, or by a struct of nulls."""
    content = [
        [{"bytes": f"sound {row}".encode(), "path": f"{row}.wav"}, {"bytes": b"", "path": None}, None][row % 3]
        if row % 6 < 5
        else {"bytes": None, "path": None}
        for row in range(count)
    ]
    return pa.table(
        {
            "id": [str(row) for row in range(count)],
            "audio": pa.array(content, SOUND),
            "text": ["" if row % 4 == 0 else None if row % 4 == 1 else f"text {row}" for row in range(count)],
            "plain": pa.array([None if row % 5 == 0 else bytes([row]) for row in range(count)]),
            "large": pa.array([bytes([row, row]) for row in range(count)], pa.large_binary()),
            "n": list(range(count)),
        }
    )


@pytest.mark.parametrize("group", [1, 7, 100])
def test_parquet_rows_refer_to_audio_in_the_table(parquet, group):
    path = parquet(audio_table(30), row_group_size=group)
    rows = read_table(path)
    assert [list(row) for row in rows] == [["id", "audio", "text", "plain", "large", "n"]] * 30
    for number, row in enumerate(rows):
        assert (row["id"], row["n"]) == (str(number), number)
        assert row["text"] == (f"text {number}" if number % 4 > 1 else None)
        place = {"table": str(path), "row_group": number // group, "row": number % group}
        assert row["audio"] == (None if number % 3 == 2 else AudioInTable(column="audio", **place))
        assert row["plain"] == (None if number % 5 == 0 else AudioInTable(column="plain", **place))
        assert stored_audio(row["large"]) == {"path": None, "bytes": bytes([number, number])}
        if number % 3 == 0:
            assert stored_audio(row["audio"]) == {"path": f"{number}.wav", "bytes": f"sound {number}".encode()}
        if number % 3 == 1:
            assert stored_audio(row["audio"]) == {"path": None, "bytes": b""}
        if number % 5:
            assert stored_audio(row["plain"]) == {"path": None, "bytes": bytes([number])}


def test_audio_in_any_order_of_row_groups(parquet):
    rows = read_table(parquet(audio_table(30), row_group_size=4))
    order = list(range(0, 30, 3))
    random.Random(0).shuffle(order)
    for number in order:
        assert stored_audio(rows[number]["audio"])["bytes"] == f"sound {number}".encode()


def test_parquet_of_audio_only(parquet):
    rows = read_table(parquet(pa.table({"audio": pa.array([b"a", None, b"c"])})))
    assert [row["audio"] and stored_audio(row["audio"])["bytes"] for row in rows] == [b"a", None, b"c"]


def test_audio_outside_of_the_table_is_a_path(parquet):
    given = [{"bytes": None, "path": "a.wav"}, {"bytes": b"b", "path": "b.wav"}, None, {"bytes": None, "path": ""}]
    rows = read_table(parquet(pa.table({"audio": pa.array(given, SOUND)})))
    assert rows[0]["audio"] == "a.wav"
    assert stored_audio(rows[1]["audio"]) == {"path": "b.wav", "bytes": b"b"}
    assert rows[2]["audio"] is None and rows[3]["audio"] is None
    nowhere = pa.array([{"bytes": None, "path": "a.wav"}])  # a column of bytes without one is of the type null
    assert read_table(parquet(pa.table({"audio": nowhere}))) == [{"audio": "a.wav"}]


def test_a_struct_of_bytes_alone(parquet):
    rows = read_table(parquet(pa.table({"audio": pa.array([{"bytes": b"a"}, {"bytes": None}])})))
    assert stored_audio(rows[0]["audio"]) == {"path": None, "bytes": b"a"}
    assert rows[1]["audio"] is None


def test_parquet_written_by_datasets(tmp_path):
    table = pa.table({"id": ["a", "b"], "audio": pa.array([{"bytes": b"1", "path": "1.wav"}, None], SOUND)})
    data = datasets.Dataset(table).cast_column("audio", datasets.Audio(decode=False))
    data.to_parquet(tmp_path / "turns.parquet")
    first, second = read_table(tmp_path / "turns.parquet")
    assert stored_audio(first["audio"]) == {"path": "1.wav", "bytes": b"1"}
    assert second == {"id": "b", "audio": None}


def test_audio_of_a_rewritten_table_is_read_again(parquet):
    for content in (b"old", b"new"):
        path = parquet(pa.table({"audio": [content]}))
        os.utime(path, ns=(0, 10**18 + len(content) + content[0]))
        (row,) = read_table(path)
        assert stored_audio(row["audio"])["bytes"] == content


@pytest.mark.parametrize("source", ["clips/a.wav", Path("clips/a.wav")])
def test_stored_audio_of_a_file_is_its_path(source):
    assert stored_audio(source) == {"path": "clips/a.wav", "bytes": None}


def test_parquet_of_one_name_twice(parquet):
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["id", "id"])
    with pytest.raises(ValueError, match=r"turns\.parquet' has two columns of one name"):
        read_table(parquet(table))


@pytest.mark.parametrize("columns", [{}, {"id": pa.array([], pa.string())}])
def test_parquet_without_rows(parquet, columns):
    with pytest.raises(ValueError, match=r"turns\.parquet' has no rows"):
        read_table(parquet(pa.table(columns)))


def test_corrupt_parquet_is_named(parquet):
    path = parquet(audio_table(20), row_group_size=6)
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for attempt in range(400):
        broken = bytearray(content if attempt % 4 else content[: draw.integers(len(content))])
        for place in draw.integers(len(broken) + 1, size=draw.integers(1, 8)):
            broken[place : place + 1] = bytes([draw.integers(256)])
        path.write_bytes(broken)
        try:
            rows = read_table(path)
        except ValueError as error:
            assert f"'{path}'" in str(error)
            refused += 1
        else:
            assert rows
    assert refused > 200


# Whatever its kind


@pytest.mark.parametrize("name", ["turns.csv", "turns.jsonl", "turns.parquet", "turns.xlsx"])
def test_a_missing_table_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"No table at '{tmp_path / name}'"):
        read_table(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=f"No table at '{tmp_path / name}'"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["turns.xlsx", "turns.json", "turns"])
def test_another_kind_of_file_is_no_table(read, name):
    with pytest.raises(ValueError, match=rf"{name}' is not a table: expected one of \.csv, \.tsv, \.jsonl, \.parquet"):
        read("id,text\n1,a\n", name)


@pytest.mark.parametrize("name", ["turns.jsonl", "turns.tsv", "turns.parquet"])
def test_an_empty_file_is_named(read, name):
    with pytest.raises(ValueError, match=rf"{name}' (has no rows|is not a Parquet table)"):
        read("", name)


def test_missing_columns_raise(read, tmp_path):
    rows = read("id,text\n1,a\n")
    assert require_columns(tmp_path / "turns.csv", rows, ["Text", "ID"]) == [{"Text": "a", "ID": "1"}]
    with pytest.raises(ValueError, match=r"turns\.csv' has no column \['label', 'score'\]; it has \['id', 'text'\]"):
        require_columns(tmp_path / "turns.csv", rows, ["label", "id", "Text", "score"])


# Fingerprint


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    """Text, audio and a missing file, with fixed times."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    files = [folder / "turns.csv", folder / "deep" / "a.wav", folder / "b.PARQUET", folder / "missing.srt"]
    for path in files[:-1]:
        path.write_bytes(b"content of " + path.name.encode())
        os.utime(path, ns=(10**18, 10**18))
    return files


def test_fingerprint_does_not_depend_on_order_and_place_of_files(sources, tmp_path):
    folder = tmp_path / "corpus"
    first = fingerprint(sources, folder)
    assert len(first) == 32
    assert fingerprint(reversed(sources), folder) == first
    assert fingerprint(sources + sources[:2], folder) == first
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint([moved / path.relative_to(folder) for path in sources], moved) == first
    os.utime(moved / "turns.csv", ns=(5, 10**18))  # time of access
    assert fingerprint([moved / path.relative_to(folder) for path in sources], moved) == first


def test_fingerprint_changes_with_every_file(sources, tmp_path):
    folder = tmp_path / "corpus"
    text, sound, _, missing = sources
    seen = [fingerprint(sources, folder), fingerprint(sources, None), fingerprint(sources[:-1], folder)]
    seen += [fingerprint([], folder), fingerprint(sources[1:], folder)]
    os.utime(sound, ns=(10**18, 10**18 + 1))
    seen.append(fingerprint(sources, folder))
    sound.write_bytes(sound.read_bytes() + b".")
    os.utime(sound, ns=(10**18, 10**18 + 1))
    seen.append(fingerprint(sources, folder))
    renamed = sound.rename(sound.with_name("c.wav"))
    seen.append(fingerprint([text, renamed, *sources[2:]], folder))
    missing.touch()
    seen.append(fingerprint(sources, folder))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.jsonl", "a.txt", "a.srt", "a.vtt", "a.annotprocessed"])
def test_fingerprint_covers_the_content_of_text_files(tmp_path, name):
    path = tmp_path / name
    seen = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        seen.append(fingerprint([path], tmp_path))
    assert seen[0] != seen[1]


def test_fingerprint_distinguishes_file_boundaries(tmp_path):
    seen = []
    for contents in ((b"ab", b"c"), (b"a", b"bc")):
        for name, content in zip(("a.txt", "b.txt"), contents, strict=True):
            (tmp_path / name).write_bytes(content)
            os.utime(tmp_path / name, ns=(10**18, 10**18))
        seen.append(fingerprint([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path))
    assert seen[0] != seen[1]
