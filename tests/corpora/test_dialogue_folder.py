import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import DialogueFolder
from mister_e_hf.media.audio import AudioError, encode_flac
from support.corpus_contract import build_corpus

ROWS = [
    {
        "dialogue_id": "001",
        "order": 1,
        "text": "NA",
        "audio": "b.wav",
        "emotion": "joy",
        "speaker": "Zoë",
        "sentiment": 1.5,
    },
    {
        "dialogue_id": "001",
        "order": 0,
        "text": "Hello, you",
        "audio": "a b.wav",
        "emotion": "anger",
        "speaker": "Al",
        "sentiment": -2,
    },
    {"dialogue_id": "two", "order": 0, "text": "None", "audio": "", "emotion": "", "speaker": "Al", "sentiment": ""},
    {"dialogue_id": "two", "order": 1, "text": "", "audio": "b.wav", "emotion": "joy", "speaker": "", "sentiment": 0},
]


def write_sound(path: Path, seconds: float = 0.5, rate: int = 16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(rate * seconds)) / rate), rate)


def write_table(path: Path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        return
    rows = [{name: None if value == "" else value for name, value in row.items()} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def folder_of(tmp_path: Path, rows: list[dict] = ROWS, name: str = "metadata.csv") -> Path:
    folder = tmp_path / "calls"
    write_sound(folder / "a b.wav", 0.5)
    write_sound(folder / "b.wav", 0.75)
    write_table(folder / name, rows)
    return folder


def build(folder: Path, **settings) -> datasets.DatasetDict:
    cache = next(parent for parent in folder.parents if not parent.name.startswith("calls")) / "cache"
    return build_corpus(DialogueFolder, folder, cache, **settings)


def dialogues_of(corpus) -> dict[str, list[dict]]:
    return {row["dialogue_id"]: row["utterances"] for data in corpus.values() for row in data}


def many(count: int, **columns) -> list[dict]:
    return [
        {"dialogue_id": f"d{number}", "order": turn, "text": f"turn {turn}", "emotion": ["joy", "anger"][turn]}
        | columns
        for number in range(count)
        for turn in range(2)
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_corpus(tmp_path, suffix):
    folder = folder_of(tmp_path, name=f"metadata.{suffix}")
    corpus = build(folder)
    assert list(corpus) == ["train"]
    assert corpus["train"].features["utterances"].feature["emotion"].names == ["anger", "joy"]
    turns = dialogues_of(corpus)
    assert [turn["text"] for turn in turns["001"]] == ["Hello, you", "NA"]
    assert [turn["text"] for turn in turns["two"]] == ["None", None]
    assert [turn["emotion"] for turn in turns["001"] + turns["two"]] == [0, 1, None, 1]
    assert [turn["sentiment"] for turn in turns["001"] + turns["two"]] == [-2.0, 1.5, None, 0.0]
    assert [turn["speaker"] for turn in turns["001"] + turns["two"]] == ["Al", "Zoë", "Al", None]
    assert [turn["duration"] for turn in turns["001"] + turns["two"]] == [0.5, 0.75, None, 0.75]
    assert turns["001"][0]["audio"] == {"path": str(folder / "a b.wav"), "bytes": None}
    assert turns["two"][0]["audio"] is None
    assert [turn["utterance_id"] for turn in turns["two"]] == ["two_0", "two_1"]


def test_audio_folder_convention_and_own_names_of_columns(tmp_path):
    folder = tmp_path / "calls"
    write_sound(folder / "sub" / "x.wav")
    rows = [{"call": 7, "turn": 3, "file_name": "sub/x.wav", "mood": "calm", "utterance": "u7"}]
    write_table(folder / "metadata.csv", rows)
    write_table(folder / "notes.csv", [{"anything": 1}])  # metadata.csv counts before other tables
    (folder / "README.md").write_text("hello")
    turns = dialogues_of(build(folder, columns={"dialogue_id": "call", "emotion": "mood"}))
    assert turns["7"][0]["utterance_id"] == "u7" and turns["7"][0]["duration"] == 0.5
    with pytest.raises(ValueError, match="has no column 'kall' for dialogue_id"):
        build(folder, columns={"dialogue_id": "kall"})
    with pytest.raises(ValueError, match="columns has the unknown fields \\['mood'\\]"):
        build(folder, columns={"mood": "emotion"})


def test_stretches_of_one_recording(tmp_path):
    folder = tmp_path / "calls"
    write_sound(folder / "long.wav", 3)
    rows = [{"dialogue_id": "a", "start": start, "end": start + 1.25, "audio": "long.wav"} for start in (1.5, 0)]
    write_table(folder / "turns.csv", rows)
    turns = dialogues_of(build(folder))["a"]
    assert [(turn["start"], turn["end"], turn["duration"]) for turn in turns] == [(0.0, 1.25, 1.25), (1.5, 2.75, 1.25)]
    rows[0]["end"] = 9
    write_table(folder / "turns.csv", rows)
    with pytest.raises(AudioError, match="a_1: .*long.wav' ends at 3.00 s, but the requested part at 9 s"):
        build(folder)


@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
def test_recording_with_subtitles(tmp_path, alone):
    folder = tmp_path / "calls"
    write_sound(folder / "call.wav", 3)
    cues = "1\n00:00:00,000 --> 00:00:01,000\nHi\n\n2\n00:00:01,500 --> 00:00:02,500\n\n"
    (folder / "call.srt").write_text(cues)
    turns = dialogues_of(build(folder / "call.srt" if alone else folder))["call"]
    assert [(turn["text"], turn["start"], turn["duration"]) for turn in turns] == [("Hi", 0.0, 1.0), (None, 1.5, 1.0)]
    assert build(folder)["train"].features["utterances"].feature["emotion"].names == ["unlabelled"]


def test_subtitles_need_one_recording_at_most(tmp_path, caplog):
    folder = tmp_path / "calls"
    folder.mkdir()
    (folder / "call.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\n<v Eve>Hi</v>\n")
    turn = dialogues_of(build(folder))["call"][0]
    assert (turn["speaker"], turn["audio"]) == ("Eve", None) and "text only" in caplog.text
    write_sound(folder / "call.wav")
    write_sound(folder / "call.flac")
    with pytest.raises(ValueError, match="may belong to \\['call.flac', 'call.wav'\\]"):
        build(folder)


@pytest.mark.parametrize("form", ["struct", "binary"])
def test_audio_inside_a_parquet_table(tmp_path, form):
    sound = encode_flac(np.sin(np.arange(8000, dtype=np.float32)))
    cell = {"bytes": sound, "path": "x.flac"} if form == "struct" else sound
    rows = [{"dialogue_id": "a", "order": turn, "audio": cell if turn else None, "text": "x"} for turn in range(3)]
    (tmp_path / "calls").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls" / "turns.parquet", row_group_size=2)
    turns = dialogues_of(build(tmp_path / "calls"))["a"]
    assert [turn["duration"] for turn in turns] == [None, 0.5, 0.5]
    assert turns[2]["audio"]["bytes"] == sound


# Splits


def ids(corpus) -> dict[str, set[str]]:
    return {split: set(data["dialogue_id"]) for split, data in corpus.items()}


def test_splits_by_column_folder_and_name(tmp_path):
    rows = {split: many(2) for split in ("train", "dev", "test")}
    for split, turns in rows.items():
        for turn in turns:
            turn["dialogue_id"] += split
    expected = {
        "train": {"d0train", "d1train"},
        "validation": {"d0dev", "d1dev"},
        "test": {"d0test", "d1test"},
    }
    together = [turn | {"split": split.upper()} for split, turns in rows.items() for turn in turns]
    write_table(tmp_path / "calls1" / "all.csv", together)
    for split, turns in rows.items():
        write_table(tmp_path / "calls2" / split / "metadata.csv", turns)
        write_table(tmp_path / "calls3" / f"{split}-00000-of-00001.parquet", turns)
    for name in ("calls1", "calls2", "calls3"):
        assert ids(build(tmp_path / name)) == expected, name


def test_drawn_splits(tmp_path, caplog):
    write_table(tmp_path / "calls" / "turns.csv", many(40))
    first = ids(build(tmp_path / "calls"))
    assert {split: len(names) for split, names in first.items()} == {"train": 32, "validation": 4, "test": 4}
    assert set.union(*first.values()) == {f"d{number}" for number in range(40)}
    assert "32 dialogues drawn for train, 4 for validation, 4 for test by seed 0" in caplog.text
    assert ids(build(tmp_path / "calls")) == first
    assert ids(build(tmp_path / "calls", seed=1)) != first
    write_table(tmp_path / "calls" / "turns.csv", many(41))
    more = ids(build(tmp_path / "calls"))
    moved = sum(len(more[split] - first[split] - {"d40"}) for split in first)
    assert moved <= 2


@pytest.mark.parametrize(
    ("count", "shares", "sizes"),
    [
        (3, (0.8, 0.1, 0.1), {"train": 1, "validation": 1, "test": 1}),
        (3, (0, 0.5, 0.5), {"validation": 1, "test": 2}),
        (5, (1, 0, 0), {"train": 5}),
        (5, (0, 0, 1), {"test": 5}),
        (2, (0.8, 0.1, 0.1), {"train": 2}),
    ],
)
def test_shares(tmp_path, count, shares, sizes):
    write_table(tmp_path / "calls" / "turns.csv", many(count))
    assert {split: len(names) for split, names in ids(build(tmp_path / "calls", split_shares=shares)).items()} == sizes


def test_a_dialogue_is_never_in_two_splits(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / "calls" / split / "metadata.csv", many(1))
    with pytest.raises(
        ValueError, match="Dialogue 'd0' is in two splits: test by .*test/metadata.csv', row 2, train by .*train/"
    ):
        build(tmp_path / "calls")
    rows = many(2, split="train")
    rows[3]["split"] = "test"
    write_table(tmp_path / "calls2" / "turns.csv", rows)
    with pytest.raises(ValueError, match="Dialogue 'd1' is in two splits"):
        build(tmp_path / "calls2")
    rows[2]["split"] = rows[3]["split"] = ""
    write_table(tmp_path / "calls2" / "turns.csv", rows)
    with pytest.raises(ValueError, match="row 4: dialogue 'd1' has no split, but others have"):
        build(tmp_path / "calls2")


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "x"}, "row 2: order must be a number, got 'x'"),
        ({"order": "nan"}, "row 2: order must be a number"),
        ({"order": 1}, "row 3: order 1 of dialogue 'd0' also appears at .*row 2"),
        ({"order": ""}, "row 2: neither order nor start"),
        ({"dialogue_id": ""}, "row 2: no dialogue_id"),
        ({"sentiment": "good"}, "row 2: sentiment must be a number"),
        ({"sentiment": "1e39"}, "row 2: sentiment must be a number, got '1e39'"),
        ({"start": 2, "end": 1}, "row 2: expected 0 <= start < end in seconds, got start 2 and end 1"),
        ({"split": "tset"}, "row 2: unknown split 'tset'; expected one of"),
        ({"utterance_id": "same"}, "Dialogue 'd0' has two turns with the utterance_id 'same'"),
    ],
)
def test_wrong_cells_are_named(tmp_path, changes, message):
    rows = many(1)
    for row in rows:
        for column in changes:
            row.setdefault(column, "")
    rows[0] |= changes
    if "utterance_id" in changes:
        rows[1] |= changes
    write_table(tmp_path / "calls" / "turns.csv", rows)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "calls")


@pytest.mark.parametrize("column", ["dialogue_id", "order", "text"])
def test_missing_columns(tmp_path, column):
    rows = [{name: value for name, value in row.items() if name != column} for row in many(1)]
    write_table(tmp_path / "calls" / "turns.csv", rows)
    with pytest.raises(ValueError, match="expected dialogue_id, order \\(or start\\), and text, audio or both"):
        build(tmp_path / "calls")


def test_labels_in_an_order_of_ones_own(tmp_path):
    write_table(tmp_path / "calls" / "turns.csv", many(1))
    turns = build(tmp_path / "calls", labels=["joy", "anger", "fear"])["train"]
    assert turns.features["utterances"].feature["emotion"].names == ["joy", "anger", "fear"]
    assert [turn["emotion"] for turn in turns[0]["utterances"]] == [0, 1]
    with pytest.raises(ValueError, match="row 3: unknown emotion 'anger'; expected one of \\['joy'\\]"):
        build(tmp_path / "calls", labels=["joy"])


def test_folder_without_turns(tmp_path):
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "README.md").write_text("nothing")
    with pytest.raises(FileNotFoundError, match="no table of turns .* and no subtitles"):
        build(tmp_path / "calls")
    with pytest.raises(FileNotFoundError, match="Dialogue folder: '.*nowhere' does not exist"):
        build(tmp_path / "calls" / "nowhere")
    write_table(tmp_path / "calls" / "train.jsonl", [{"dialogue_id": "a", "utterances": [{"text": "x"}]}])
    with pytest.raises(ValueError, match="it is a finished corpus, use its folder as it is"):
        build(tmp_path / "calls")


def test_fingerprint(tmp_path):
    folder = folder_of(tmp_path, rows=[*ROWS[:3], ROWS[3] | {"audio": "../outside.wav"}])
    write_sound(tmp_path / "outside.wav", 0.5)

    def place() -> str:
        return DialogueFolder(folder, cache_dir=str(tmp_path / "cache")).cache_dir

    seen = [place()]
    (folder / "unrelated.txt").write_text("x")
    assert place() == seen[0]
    write_sound(tmp_path / "outside.wav", 0.75)
    seen.append(place())
    write_sound(folder / "b.wav", 1.0)
    seen.append(place())
    write_table(folder / "metadata.csv", ROWS)
    seen.append(place())
    assert len(set(seen)) == 4


def test_fingerprint_does_not_depend_on_earlier_reads(tmp_path):
    folder = folder_of(tmp_path)
    places = {DialogueFolder(folder, cache_dir=str(tmp_path / "cache")).cache_dir for _ in range(3)}
    write_sound(folder / "b.wav", 1.0)  # datasets has put a class of its own in place of Path by now
    assert len(places | {DialogueFolder(folder, cache_dir=str(tmp_path / "cache")).cache_dir}) == 2


def test_similar_dialogue_ids_are_reported(tmp_path, caplog):
    rows = [{"dialogue_id": name, "order": 0, "text": "x"} for name in ("Call 1", "call 1", "7", "7.0", "other")]
    write_table(tmp_path / "calls" / "turns.csv", rows)
    build(tmp_path / "calls")
    assert (
        "2 dialogue ids differ from another in spelling alone, such as ['Call 1', 'call 1']; they are kept as "
        "separate dialogues" in caplog.text
    )


def test_a_table_without_dialogues_and_order_is_one_dialogue_if_asked(tmp_path):
    write_table(tmp_path / "calls" / "talk.csv", [{"text": "b"}, {"text": "a"}])
    turns = dialogues_of(build(tmp_path / "calls", in_row_order=True))["talk"]
    assert [turn["text"] for turn in turns] == ["b", "a"]
    (tmp_path / "calls" / "talk.csv").write_text("call,order,text\nd0,0,b\nd1,0,a\n")
    with pytest.raises(ValueError, match=r"'talk' also appears at .*row 2\. If .*columns=\{'dialogue_id': 'NAME'\}"):
        build(tmp_path / "calls", in_row_order=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'in_rows'"):
        DialogueFolder(tmp_path / "calls", in_rows=True)


@pytest.mark.shared
def test_real_recordings_inside_a_table(shared_dir, tmp_path):
    table = pq.read_table(shared_dir / "data" / "ravdess" / "test.parquet")
    rows = table.drop_columns(["intensity"]).to_pylist()
    for order, row in enumerate(rows):
        row |= {"dialogue_id": row["speaker"], "order": order, "emotion": row.pop("label")}
    (tmp_path / "calls").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls" / "test.parquet", row_group_size=32)
    turns = {
        turn["utterance_id"]: turn for turns in dialogues_of(build(tmp_path / "calls")).values() for turn in turns
    }
    assert len(turns) == len(rows) == 120
    for row in rows:
        assert turns[row["utterance_id"]]["duration"] == pytest.approx(row["duration"], abs=0.01)
