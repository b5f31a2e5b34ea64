"""Tables as spreadsheets, data frames and Spark write them."""

import datetime
import decimal
import io
import json
import logging
import re
import unicodedata
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import DialogueFolder
from mister_e_hf.corpora import parquet_tables, sources
from mister_e_hf.corpora.sources import read_table, walk
from mister_e_hf.corpora.turn_tables import read_turns


@pytest.fixture
def turns(tmp_path, caplog):
    """Turns of a table of this content, or of the folder."""

    def turns(content: str | bytes | pa.Table | None = None, name: str = "metadata.csv", **settings) -> list[dict]:
        if isinstance(content, pa.Table):
            pq.write_table(content, tmp_path / "metadata.parquet")
        elif content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return read_turns(tmp_path, **settings)

    return turns


def fields(rows: list[dict], *names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in rows]


def noise(path: Path, seconds: float = 1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16000)), 16000, format="WAV")


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv"])
@pytest.mark.parametrize("sep", [False, True])
def test_any_delimiter(turns, delimiter, name, sep):
    lines = [["dialogue_id", "order", "text"], ["d", "0", '"a,b;c|d\te"'], ["d", "1", "x"]]
    content = "\r\n".join([f"sep={delimiter}"] * sep + [delimiter.join(cells) for cells in lines])
    rows = turns(content, name)
    assert fields(rows, "dialogue_id", "order", "text") == [("d", 0.0, "a,b;c|d\te"), ("d", 1.0, "x")]
    assert [row["where"].rpartition("row ")[2] for row in rows] == (["3", "4"] if sep else ["2", "3"])


def test_empty_rows_and_columns_are_skipped_and_rows_keep_their_numbers(turns, caplog):
    content = "\n,,,,\ndialogue_id,order,text,,\n,,,,\nd,0,x,,\n\nd,1,y\n,,,,,,\nd,2,z,,,,\n".replace(
        "d,1,y", "d,1,y,,"
    )
    rows = turns(content)
    assert fields(rows, "order", "text") == [(0.0, "x"), (1.0, "y"), (2.0, "z")]
    assert [row["where"].rpartition(" ")[2] for row in rows] == ["5", "7", "9"]
    assert "not used" not in caplog.text


def test_a_column_without_a_name_but_with_cells_is_named(turns, caplog):
    assert len(turns(",dialogue_id,order,text,\n0,d,0,x,left\n1,d,1,y,right\n")) == 2
    assert "columns ['(column 5)'] are not used" in caplog.text  # the numbers of the rows are not


def test_columns_that_are_not_used_are_named_once_for_all_tables(turns, tmp_path, caplog):
    for number in range(3):
        (tmp_path / f"part-{number}.csv").write_text(
            f"dialogue_id,order,text,mood\nd{number},0,x,calm\n", encoding="utf-8"
        )
    assert len(turns()) == 3
    (record,) = [record for record in caplog.records if "not used" in record.getMessage()]
    assert re.search(r"part-0\.csv' and 2 more: the columns \['mood'\]", record.getMessage())


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("0:00:01.5,0:01:02,500", (1.5, 62.5)),
        ("00:00:01.5,00:01:02.5", (1.5, 62.5)),
        ("0:01,1:02.5", (1.0, 62.5)),
        ('"1,5","62,5"', (1.5, 62.5)),
        ("1.5,62.5", (1.5, 62.5)),
    ],
)
def test_times(turns, cells, expected):
    if cells.count(",") == 2 and '"' not in cells:
        start, _, end = cells.partition(",")
        cells = f'{start},"{end}"'
    assert fields(turns(f"dialogue_id,start,end,text\nd,{cells},x\n"), "start", "end") == [expected]


@pytest.mark.parametrize("cell", ["1,234", "1_000", "0:61x", "PT1S", "1h", "inf", "1e999"])
def test_a_time_of_another_form_is_named(turns, cell):
    with pytest.raises(ValueError, match=rf"metadata\.csv', row 2: start must be a number, got '{cell}'"):
        turns(f'dialogue_id,start,text\nd,"{cell}",x\n')


def test_duration_gives_the_end_if_nothing_else_does(turns, caplog):
    assert fields(turns("dialogue_id,begin,duration,text\nd,1.5,2,x\n"), "start", "end") == [(1.5, 3.5)]
    assert "not used" not in caplog.text
    assert fields(turns("dialogue_id,start,end,duration,text\nd,1,2,9,x\n"), "start", "end") == [(1.0, 2.0)]
    assert "['duration'] are not used" in caplog.text
    assert fields(turns("dialogue_id,order,duration,text\nd,0,9,x\n"), "start", "end") == [(None, None)]
    assert "['duration'] are not used" in caplog.text  # that of the whole file


def test_an_utterance_may_be_text_or_an_id(turns):
    with pytest.raises(ValueError, match="does the column 'Utterance' hold text or ids"):
        turns("dialogue_id,order,Utterance,audio\nd,0,How are you?,a.wav\n")
    rows = turns("dialogue_id,order,Utterance,Text\nd,0,u 1,How are you?\n")
    assert fields(rows, "utterance_id", "text") == [("u 1", "How are you?")]


def test_a_file_that_is_not_audio_is_no_audio_unless_it_is_said(turns, caplog, tmp_path):
    content = "dialogue_id,order,text,file\nd,0,x,notes.pdf\n"
    assert fields(turns(content), "audio") == [(None,)] and "['file'] are not used" in caplog.text
    assert turns(content, columns={"audio": "file"})[0]["audio"] == tmp_path / "notes.pdf"
    assert turns("dialogue_id,order,text,file\nd,0,x,a.WAV\n")[0]["audio"] == tmp_path / "a.WAV"


def test_rows_in_order(turns):
    rows = turns("text\nb\na\n", in_row_order=True)
    assert fields(rows, "dialogue_id", "order", "text") == [("metadata", 0.0, "b"), ("metadata", 1.0, "a")]
    rows = turns("dialogue_id,text\nx,b\ny,c\nx,a\n", in_row_order=True)
    assert fields(rows, "dialogue_id", "order") == [("x", 0.0), ("y", 1.0), ("x", 2.0)]
    rows = turns("dialogue_id,order,text\nx,2,b\nx,1,a\n", in_row_order=True)
    assert fields(rows, "order") == [(2.0,), (1.0,)]
    with pytest.raises(
        ValueError, match=r"It lacks dialogue_id, order \(or start\): .*columns=\{'dialogue_id': 'text'\}"
    ):
        turns("text\nb\n")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"emotion": False}, "emotion must be text or null, got False"),
        ({"text": {"a": 1}}, "text must be text or null"),
        ({"dialogue_id": "nan"}, "dialogue_id 'nan' is what data frames write for an empty cell"),
        ({"text": "\ud83d"}, r"text holds half of a character .*ud83d"),
        ({"audio": "a\0.wav"}, "audio .*has characters that no file name has"),
        ({"audio": "\ud83d.wav"}, "audio .*has characters that no file name has"),
        ({"audio": "https://example.org/a.wav"}, "audio 'https:.*is an address, not a file"),
        ({"audio": 5}, "audio must be the path of a file, got 5"),
        ({"audio": {"bytes": "UklGRg=="}}, "audio must be the path of a file, got"),
        ({"audio": "a" * 5000}, "audio 'a+ .*': File name too long"),
        (
            {"audio": {"array": [0.0], "sampling_rate": "fast"}},
            "audio with samples must be .*, got a sampling_rate of fast",
        ),
        ({"split": 0}, "unknown split 0; expected one of"),
        ({"order": 10**400}, "order must be a number, got 1000"),
    ],
)
def test_cells_that_cannot_be_meant_name_file_and_row(turns, cells, message):
    row = {"dialogue_id": "d", "order": 1, "text": "x"} | cells
    good = {"dialogue_id": "d", "order": 0, "text": "x"}
    with pytest.raises(ValueError, match=rf"metadata\.jsonl', row 3: {message}") as error:
        turns("\n".join(map(json.dumps, (good,))) + "\n\n" + json.dumps(row) + "\n", "metadata.jsonl")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("line", ['{"text": "x", "text": "y"}', '{"audio": {"path": "a", "path": "b"}}'])
def test_a_key_given_twice_is_named(turns, line):
    with pytest.raises(ValueError, match=r"metadata\.jsonl', line 2: the key '(text|path)' appears twice"):
        turns('{"dialogue_id": "d", "order": 0, "text": "x"}\n' + line, "metadata.jsonl")


def test_audio_of_datasets_in_json(turns, tmp_path):
    noise(tmp_path / "a.wav")
    given = [{"path": "a.wav", "bytes": None}, {"array": [0.0, 0.5, -0.25], "sampling_rate": 8000}]
    lines = [json.dumps({"dialogue_id": "d", "order": turn, "audio": audio}) for turn, audio in enumerate(given)]
    first, second = turns("\n".join(lines), "metadata.jsonl")
    assert first["audio"] == tmp_path / "a.wav"
    samples, rate = soundfile.read(io.BytesIO(second["audio"]["bytes"]), dtype="float32")
    assert samples.tolist() == [0.0, 0.5, -0.25] and rate == 8000


def test_sizes_that_no_table_of_turns_has(turns, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has 20,000 columns; a table of turns may have 10,000") as error:
        turns(",".join(f"column {number}" for number in range(20_000)) + "\n")
    assert len(str(error.value)) < 500
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="column 'text': 200,000 characters; a cell may have 131,072"):
        turns(json.dumps({"text": "x" * 200_000}), "metadata.jsonl")
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="column 'text': 200,000 characters"):
        turns(pa.table({"dialogue_id": ["d"], "order": [0], "text": ["x" * 200_000]}))
    # A column of one value takes hardly any space.
    many = pa.table({"text": pa.repeat("x", 100_000).dictionary_encode()})
    monkeypatch.setattr(parquet_tables, "_MOST_CELLS", 50_000)
    with pytest.raises(ValueError, match=r"has 100,000 rows of 1 columns; a table of turns may have 50,000 cells"):
        turns(many)
    monkeypatch.setattr(parquet_tables, "_MOST_CELLS", 10**6)
    monkeypatch.setattr(parquet_tables, "_MOST_TEXT", 90_000)
    with pytest.raises(ValueError, match="has more than 90,000 characters of text"):
        turns(many)


def test_rows_without_common_columns_raise(turns):
    lines = [json.dumps({"dialogue_id": "d", "order": number, f"k{number}": 1}) for number in range(5000)]
    with pytest.raises(ValueError, match="its 5,000 rows have hardly any of their 5,002 columns in common"):
        turns("\n".join(lines), "metadata.jsonl")


# Parquet


def storages() -> dict[str, pa.Table]:
    """One corpus of two turns, in the types that writers give its columns."""
    ids, orders, texts, labels = ["1", "1"], [0, 1], ["Hé", "x"], ["joy", None]

    def table(**columns) -> pa.Table:
        plain = {"dialogue_id": pa.array(ids), "order": pa.array(orders), "text": pa.array(texts)}
        return pa.table(plain | {"emotion": pa.array(labels)} | columns)

    strings = {"dialogue_id": ids, "text": texts, "emotion": labels}
    found = {
        str(kind): table(**{name: pa.array(cells, kind) for name, cells in strings.items()})
        for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
    }
    encoded = {name: [cell and cell.encode() for cell in cells] for name, cells in strings.items()}
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())):
        found[f"unmarked {kind}"] = table(**{name: pa.array(cells, kind) for name, cells in encoded.items()})
    found["numbers with an empty cell"] = table(
        dialogue_id=pa.array([1.0, 1.0]), order=pa.array([0.0, 1.0], pa.float32())
    )
    found["decimals"] = table(
        dialogue_id=pa.array([decimal.Decimal("1.00")] * 2),
        order=pa.array([decimal.Decimal("0.0"), decimal.Decimal("1.0")]),
    )
    found["large order"] = table(order=pa.array(orders, pa.uint64()))
    found["index of a data frame"] = table(__index_level_0__=pa.array([7, 8]))
    return found


@pytest.mark.parametrize("kind", storages())
def test_arrow_types(turns, caplog, kind):
    rows = turns(storages()[kind])
    assert fields(rows, "dialogue_id", "order", "text", "emotion") == [("1", 0.0, "Hé", "joy"), ("1", 1.0, "x", None)]
    assert "not used" not in caplog.text


def test_types_of_time(turns):
    table = {"dialogue_id": ["d"] * 2, "text": ["x"] * 2}
    for unit in ("s", "ms", "us", "ns"):
        kind = pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
        starts = pa.array([datetime.time(0, 0, 1), datetime.time(0, 1, 2)], kind)
        ends = pa.array([datetime.timedelta(seconds=2), datetime.timedelta(seconds=63)], pa.duration(unit))
        rows = turns(pa.table(table | {"start": starts, "end": ends}))
        assert fields(rows, "start", "end") == [(1.0, 2.0), (62.0, 63.0)], unit
    stamps = pa.array([datetime.datetime(2024, 1, 1, 10, 0, second) for second in range(2)], pa.timestamp("ns"))
    with pytest.raises(ValueError, match="row 1: start must be a number, got '2024-01-01 10:00:00"):
        turns(pa.table(table | {"start": stamps}))


def test_extension_types(turns):
    class Words(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.string(), "words")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            return cls()

    words = pa.ExtensionArray.from_storage(Words(), pa.array(["x"]))
    pa.register_extension_type(Words())
    try:
        rows = turns(pa.table({"dialogue_id": words, "order": [0], "text": words}))
    finally:
        pa.unregister_extension_type("words")
    assert fields(rows, "dialogue_id", "text") == [("x", "x")]
    identity = uuid.UUID(int=5)
    ids = pa.array([identity.bytes], pa.uuid())
    assert turns(pa.table({"dialogue_id": ids, "order": [0], "text": ["x"]}))[0]["dialogue_id"] == str(identity)
    raw = pa.array([identity.bytes], pa.binary(16))
    with pytest.raises(ValueError, match=r"row 1: dialogue_id must be text or null, got b'"):
        turns(pa.table({"dialogue_id": raw, "order": [0], "text": ["x"]}))


def test_lists_are_not_read_and_no_field(turns, caplog):
    vectors = pa.array([[0.0] * 10, None], pa.list_(pa.float32()))
    table = {"dialogue_id": ["d"] * 2, "order": [0, 1]}
    rows = turns(pa.table(table | {"text": ["x", "y"], "vector": vectors}))
    assert fields(rows, "text") == [("x",), ("y",)] and "['vector'] are not used" in caplog.text
    with pytest.raises(ValueError, match="row 1: text must be text or null, got Nested"):
        turns(pa.table(table | {"text": vectors}))
    with pytest.raises(ValueError, match="audio must be the path of a file, got Nested"):
        turns(pa.table(table | {"audio": vectors}))


def test_bytes_that_are_no_text_name_the_column(turns):
    with pytest.raises(ValueError, match=r"metadata\.parquet'.*UTF-8 text in the column 'text'"):
        turns(pa.table({"dialogue_id": ["d"], "order": [0], "text": [b"\xff\xfe"]}))


def test_audio_in_any_storage(turns):
    for column in (
        pa.array([b"one", None], pa.binary_view()),
        pa.array([b"one", None]).dictionary_encode(),
        pa.array([{"bytes": b"one", "path": None}, None]),
    ):
        rows = turns(pa.table({"dialogue_id": ["d"] * 2, "order": [0, 1], "audio": column}))
        assert sources.stored_audio(rows[0]["audio"]) == {"path": None, "bytes": b"one"} and rows[1]["audio"] is None
    samples = pa.array([{"array": [0.0, 0.5], "sampling_rate": 16000, "path": None}, None])
    rows = turns(pa.table({"dialogue_id": ["d"] * 2, "order": [0, 1], "audio": samples}))
    stored = sources.stored_audio(rows[0]["audio"])["bytes"]
    assert soundfile.read(io.BytesIO(stored))[0].tolist() == [0.0, 0.5] and rows[1]["audio"] is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_damaged_table_is_named(turns, content):
    with pytest.raises(ValueError, match=r"metadata\.parquet' is not a Parquet table that can be read"):
        turns(content, "metadata.parquet")


def test_metadata_of_another_library_does_not_matter(turns):
    table = pa.table({"dialogue_id": ["d"], "order": [0], "text": ["x"]})
    assert len(turns(table.replace_schema_metadata({"huggingface": b"{not json", "pandas": b"x"}))) == 1


# Folders


def test_spark_folder(turns, tmp_path, caplog):
    for split in ("train", "test"):
        for form, content in (("csv", f"dialogue_id,order,text\n{split},0,x\n"), ("jsonl", "")):
            folder = tmp_path / f"{split}.parquet"
            folder.mkdir(exist_ok=True)
            (folder / f"part-00000-0a1b.c000.{form}").write_text(content, encoding="utf-8")
        (folder / "_SUCCESS").touch()
        (folder / ".part-00000.crc").touch()
    rows = turns()
    assert sorted(fields(rows, "dialogue_id", "split")) == [("test", "test"), ("train", "train")]
    assert "has no rows; skipped, with 1 more" in caplog.text and "_SUCCESS" not in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Train", "Devel", "Test"], ["train", "validation", "test"]),
        (["training", "development", "testing"], ["train", "validation", "test"]),
        (["split=train", "split=val", "split=test"], ["train", "validation", "test"]),
        (["train_data", "valid_data", "test_data"], ["train", "validation", "test"]),
        (["my-train", "my-dev", "my-test"], ["train", "validation", "test"]),
        (["train", "TEST"], ["train", "test"]),
    ],
)
@pytest.mark.parametrize("folders", [True, False])
def test_names_of_splits(turns, tmp_path, caplog, names, expected, folders):
    for name in names:
        path = tmp_path / name / "turns.csv" if folders else tmp_path / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"dialogue_id,order,text\n{name},0,x\n", encoding="utf-8")
    assert {row["dialogue_id"]: row["split"] for row in turns()} == dict(zip(names, expected, strict=True))
    assert not caplog.records


def test_folders_of_other_names_are_named(turns, tmp_path, caplog):
    for name in ("train", "test", "eval", "heldout", "my_test_drive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "turns.csv").write_text(f"dialogue_id,order,text\n{name},0,x\n", encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    (tmp_path / "turns.xlsx").touch()
    (tmp_path / "README.txt").touch()
    rows = turns()
    assert {row["dialogue_id"] for row in rows} == {"train", "test", "my_test_drive"}
    assert "these files and folders are not read: ['eval/', 'heldout/', 'turns.xlsx']" in caplog.text


def test_a_lone_table_is_not_a_split_by_a_word_in_its_name(turns, tmp_path):
    (tmp_path / "test_calls.csv").write_text("dialogue_id,order,text\nd,0,x\n", encoding="utf-8")
    assert fields(turns(), "split") == [(None,)]


def test_drawn_splits_report_their_tables(tmp_path, caplog):
    for name in ("calls", "eval"):
        lines = [f"{name}{number},0,x" for number in range(3)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["dialogue_id,order,text", *lines]), encoding="utf-8")
    builder = DialogueFolder(tmp_path, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert re.search(r"No splits are given: .* by seed 0, from calls\.csv, eval\.csv", caplog.text)


def test_metadata_comes_before_other_tables_which_are_reported(turns, tmp_path, caplog):
    for name in ("a.wav", "b.wav", "sub/c.wav", "sub/d.wav"):
        noise(tmp_path / name)
    (tmp_path / "other.csv").write_text("x", encoding="utf-8")
    assert len(turns("dialogue_id,order,audio\nd,0,a.wav\nd,1,sub/c.wav\n")) == 2
    assert "these files and folders are not read: ['b.wav', 'other.csv']" in caplog.text


# Recordings

CUE = "1\n00:00:00,000 --> 00:00:01,000\nHi\n"


@pytest.mark.parametrize(
    ("subtitles", "recording", "dialogue"),
    [
        ("call.srt", "call.wav", "call"),
        ("call.en.srt", "call.wav", "call"),
        ("call.pt-BR.vtt", "call.mp3", "call"),
        ("call.zh-Hans.srt", "call.m4a", "call"),
        ("call.en.srt", "call.en.wav", "call.en"),
        ("Call.srt", "call.WAV", "call"),
        (unicodedata.normalize("NFD", "café.srt"), unicodedata.normalize("NFC", "café.wav"), "café"),
        (unicodedata.normalize("NFC", "café.en.srt"), unicodedata.normalize("NFD", "café.wav"), "cafe\u0301"),
        *(("call.srt", f"call{suffix}", "call") for suffix in (".aif", ".oga", ".caf", ".amr", ".avi", ".wma", ".au")),
    ],
)
def test_the_recording_of_subtitles_is_found(turns, tmp_path, caplog, subtitles, recording, dialogue):
    noise(tmp_path / recording)
    (row,) = turns(("WEBVTT\n\n" if subtitles.endswith("vtt") else "") + CUE.replace(",000", ".000"), subtitles)
    assert (row["audio"], row["dialogue_id"]) == (tmp_path / recording, dialogue)
    assert not caplog.records


def test_a_recording_without_subtitles_and_subtitles_without_a_recording_are_named(turns, tmp_path, caplog):
    noise(tmp_path / "other.wav")
    (tmp_path / "second.srt").write_text(CUE, encoding="utf-8")
    assert len(turns(CUE, "call.srt")) == 2
    assert "call.srt': no recording of that name beside it, nor beside 1 more; the turns have text only" in caplog.text
    assert "these files and folders are not read: ['other.wav']" in caplog.text


def test_subtitles_in_two_languages_are_one_dialogue_too_many(tmp_path):
    noise(tmp_path / "call.wav")
    for language in ("en", "de"):
        (tmp_path / f"call.{language}.srt").write_text(CUE, encoding="utf-8")
    builder = DialogueFolder(tmp_path, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"call\.en\.srt', cue 1: order 0 of dialogue 'call' .*call\.de\.srt', cue 1"):
        builder.download_and_prepare()


def test_folder_of_recordings_only_raises_and_lists_its_content(turns, tmp_path):
    for name in ("1.wav", "2.wav"):
        noise(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"holds no table of turns .*It holds \['1\.wav', '2\.wav'\]"):
        turns()


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_a_table_may_name_audio_in_another_form(turns, tmp_path, stored):
    path = tmp_path / unicodedata.normalize(stored, "cafés") / unicodedata.normalize(stored, "é.wav")
    noise(path)
    other = {"NFC": "NFD", "NFD": "NFC"}[stored]
    for name in ("cafés/é.wav", "cafés\\é.wav"):
        (row,) = turns(f"dialogue_id,order,audio\nd,0,{unicodedata.normalize(other, name)}\n")
        assert row["audio"] == path


def test_a_walk_enters_a_folder_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    for name in ("x", "y"):
        (tmp_path / name).symlink_to(".")
        (tmp_path / "a" / "b" / name).symlink_to("../..")
    assert list(walk(tmp_path)) == [tmp_path / "a" / "b" / "file"]


def test_a_device_is_no_folder():
    with pytest.raises(ValueError, match="'/dev/null' is neither a folder nor a file"):
        read_turns(Path("/dev/null"))


def test_c1_controls_are_mended_in_every_kind_of_table(tmp_path):
    (tmp_path / "a.csv").write_text("text\nI\x92m\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "I\\u0092m"}\n', encoding="utf-8")
    pq.write_table(pa.table({"text": ["I\x92m"]}), tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert read_table(tmp_path / f"a.{suffix}") == [{"text": "I’m"}]
