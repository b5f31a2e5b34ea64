import csv
import shutil
from pathlib import Path

import av
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import CmuMosi
from mister_e_hf.corpora.counts import published
from mister_e_hf.corpora.schema import LABELS, SPLITS
from support.corpus_contract import build_corpus, change_text, rows, turns, warnings

RATE = 16_000
FACTS = published("cmu_mosi")
FOLDS = {split: FACTS[split] for split in SPLITS}
MODES = {"train": "train", "validation": "valid", "test": "test"}

# One or two videos of each fold, segments as (number, text, score).
VIDEOS = {
    "03bSnISJMiM": [(1, "ANYHOW IT WAS REALLY GOOD", "2.4"), (2, "THAY DID (UMM) DIDN'T", "-0.8"), (11, "OK", "0.0")],
    "0h-zjBukYpk": [(1, "I WAS BORED", "-3"), (10, "NO ONE SCORED THIS", None), (2, "THE END", "-0.2")],
    "_dI--eQ6qVU": [(3, "It stays as it is", "1.6")],
    "c7UH_rxdZv4": [(1, "OH MY GOSH BAD MOVIE", "-2.8"), (2, "BUT FUNNY", "3.0")],
}
SPLIT = {video: split for split, videos in FOLDS.items() for video in videos}
DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00\x00\x09\x00\x00\x00\x32\xff\xe9\x81"


def seconds(video: str, number: int) -> float:
    return 0.1 + 0.01 * number + 0.1 * list(VIDEOS).index(video)


def write_sound(path: Path, length: float):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, round(length * RATE)), RATE, format="WAV")


def write_video(path: Path, length: float):
    """A clip with a picture and stereo audio at 44.1 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 16
        track = container.add_stream("aac", rate=44_100)
        track.layout = "stereo"
        for index in range(round(10 * length)):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * index, dtype=np.uint8))
            frame.pts = index
            container.mux(picture.encode(frame))
        sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(length * 44_100)) / 44_100)
        samples = av.AudioFrame.from_ndarray(np.stack([sine, sine]).astype(np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44_100
        container.mux([*track.encode(samples), *track.encode(None), *picture.encode(None)])


def released_sound(folder: Path, video: str, number: int) -> Path:
    return folder / "Raw" / "Audio" / "WAV_16000" / "Segmented" / f"{video}_{number}.wav"


def transcript(folder: Path, video: str) -> Path:
    return folder / "Raw" / "Transcript" / "Segmented" / f"{video}.annotprocessed"


def write_release(folder: Path, videos: dict[str, list[tuple]]):
    """Write the segmented release without audio."""
    scores = folder / "Labels" / "OpinionLevelSentiment.csv"
    scores.parent.mkdir(parents=True)
    lines = [
        f"{4.5 * number},{4.5 * number + 3},{video},{number},{score}\n"
        for video, segments in reversed(videos.items())
        for number, _, score in segments
        if score is not None
    ]
    scores.write_text("".join(lines))
    for video, segments in videos.items():
        path = transcript(folder, video)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number}_DELIM_{text}\n" for number, text, _ in segments))


def write_table(folder: Path, videos: dict[str, list[tuple]], **changes) -> Path:
    """`label.csv`, with the further columns that copies of it have."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "label.csv").open("w", newline="") as file:
        names = "video_id clip_id text label label_T label_A label_V annotation mode".split()
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for video, segments in videos.items():
            for number, text, score in segments:
                row = {"video_id": video, "clip_id": number, "text": text, "label": score, "annotation": "Positive"}
                writer.writerow(row | {"mode": MODES[SPLIT.get(video, "train")]} | changes)
    return folder / "label.csv"


@pytest.fixture
def release(tmp_path) -> Path:
    """The segmented release, in a folder named like one of its own, with all other files of the real one."""
    folder = tmp_path / "Segmented" / "MOSI"
    write_release(folder, VIDEOS)
    for video, segments in VIDEOS.items():
        for number, *_ in segments:
            path = released_sound(folder, video, number)
            write_sound(path, seconds(video, number))
            path.with_name(f"._{path.name}").write_bytes(DOUBLE)
            write_sound(folder / "Raw" / "Separated" / path.name, 0.1)
        whole = path.parents[1] / "Full" / f"{video}.wav"
        write_sound(whole, 3.0)
        path = transcript(folder, video)
        path.with_name(f"._{path.name}").write_bytes(DOUBLE)
        full = path.parents[1] / "Full" / f"{video}.textonly"
        full.parent.mkdir(exist_ok=True)
        full.write_text("ALL OF IT\n")
    return folder


def clip(folder: Path, video: str, number: int) -> Path:
    return folder / "Raw" / video / f"{number}.wav"


@pytest.fixture
def table(tmp_path) -> Path:
    """The folder of the layout with one table."""
    folder = tmp_path / "corpora" / "MOSI"
    write_table(folder, VIDEOS)
    for video, segments in VIDEOS.items():
        for number, *_ in segments:
            write_sound(clip(folder, video, number), seconds(video, number))
            hidden = clip(folder, video, number)
            hidden.with_name(f"._{hidden.name}").write_bytes(DOUBLE)
    return folder


def prepare(tmp_path: Path, folder: Path, **settings) -> datasets.DatasetDict:
    return build_corpus(CmuMosi, folder, tmp_path / "cache", **settings)


def expected_turns(video: str, sound) -> list[dict]:
    return [
        {
            "utterance_id": f"{video}_{number}",
            "text": text if video == "_dI--eQ6qVU" else text.lower(),
            "audio": {"bytes": None, "path": str(sound(video, number))},
            "video": None,
            "start": None,
            "end": None,
            "duration": pytest.approx(seconds(video, number), abs=1 / RATE),
            "speaker": video,
            "emotion": None if score is None else "negative" if score.startswith("-") else "non-negative",
            "sentiment": None if score is None else float(score),
        }
        for number, text, score in sorted(VIDEOS[video])
    ]


# Reading


@pytest.mark.parametrize("place", [".", ".."])
def test_every_field_of_the_segmented_release(tmp_path, release, place, caplog):
    corpus = prepare(tmp_path, release / place)
    assert {split: data["dialogue_id"][:] for split, data in corpus.items()} == {
        "train": ["03bSnISJMiM", "0h-zjBukYpk"],
        "validation": ["_dI--eQ6qVU"],
        "test": ["c7UH_rxdZv4"],
    }
    for video, found in rows(corpus).items():
        assert found == expected_turns(video, lambda *segment: released_sound(release, *segment))
    assert not warnings(caplog)


@pytest.mark.parametrize("place", [".", ".."])
def test_every_field_of_the_layout_with_one_table(tmp_path, table, place, caplog):
    corpus = prepare(tmp_path, table / place)
    assert {split: set(data["dialogue_id"]) for split, data in corpus.items()} == {
        "train": {"03bSnISJMiM", "0h-zjBukYpk"},
        "validation": {"_dI--eQ6qVU"},
        "test": {"c7UH_rxdZv4"},
    }
    for video, found in rows(corpus).items():
        assert found == expected_turns(video, lambda *segment: clip(table, *segment))
    assert not warnings(caplog)


@pytest.mark.parametrize("mode", ["valid", "validation", "dev", " Dev "])
def test_names_of_the_validation_fold(tmp_path, mode):
    write_table(tmp_path / "corpus", {"_dI--eQ6qVU": VIDEOS["_dI--eQ6qVU"]}, mode=mode)
    assert list(prepare(tmp_path, tmp_path / "corpus")) == ["validation"]


def test_a_clip_as_video(tmp_path, table):
    clip(table, "c7UH_rxdZv4", 1).unlink()
    video = clip(table, "c7UH_rxdZv4", 1).with_suffix(".mp4")
    write_video(video, 0.8)
    turn = turns(prepare(tmp_path, table))["c7UH_rxdZv4_1"]
    assert turn["audio"]["path"] == str(video)
    assert turn["duration"] == pytest.approx(0.8, abs=0.05)  # AAC pads to whole frames of 1024 samples


def test_fastest_format_is_preferred(tmp_path, table):
    """For clips that exist as video and audio, in folders or flat."""
    write_video(clip(table, "c7UH_rxdZv4", 1).with_suffix(".mp4"), 0.8)
    clip(table, "c7UH_rxdZv4", 2).unlink()
    write_video(clip(table, "c7UH_rxdZv4", 2).with_suffix(".mp4"), 0.8)
    flat = table / "flat" / "c7UH_rxdZv4_2.flac"
    flat.parent.mkdir()
    soundfile.write(flat, 0.1 * np.sin(np.arange(4000) / 9), RATE)
    found = turns(prepare(tmp_path, table))
    assert found["c7UH_rxdZv4_1"]["audio"]["path"] == str(clip(table, "c7UH_rxdZv4", 1))
    assert found["c7UH_rxdZv4_2"]["audio"]["path"] == str(flat) and found["c7UH_rxdZv4_2"]["duration"] == 0.25


def test_release_uses_videos_of_segments_without_audio(tmp_path, release):
    released_sound(release, "c7UH_rxdZv4", 2).unlink()
    video = release / "Raw" / "Video" / "Segmented" / "c7UH_rxdZv4_2.mp4"
    write_video(video, 0.5)
    assert turns(prepare(tmp_path, release))["c7UH_rxdZv4_2"]["audio"]["path"] == str(video)


@pytest.mark.parametrize("cell", [None, "nan", "NaN"])
def test_a_segment_without_a_score_has_no_label(tmp_path, cell):
    segments = [(1, "Good.", cell), (2, "Bad.", "-1"), (3, "Neither.", "-0.0")]
    write_table(tmp_path / "table", {"c7UH_rxdZv4": segments})
    write_release(tmp_path / "release", {"c7UH_rxdZv4": segments})
    for folder in ("table", "release"):
        found = turns(prepare(tmp_path, tmp_path / folder))
        assert [(turn["emotion"], turn["sentiment"]) for turn in found.values()] == [
            (None, None),
            ("negative", -1.0),
            ("non-negative", 0.0),
        ]


# The published counts


def full_corpus(write, folder: Path) -> Path:
    write(
        folder,
        {v: [(n, "GOOD", "1.0") for n in range(1, count + 1)] for f in FOLDS.values() for v, count in f.items()},
    )
    return folder


@pytest.fixture(scope="module", params=[write_release, write_table])
def full(request, tmp_path_factory) -> Path:
    return full_corpus(request.param, tmp_path_factory.mktemp("full") / "MOSI")


def messages_but_text_only(caplog) -> list[str]:
    """All messages of the package but that on missing audio, which must be among them."""
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("mister_e_hf")]
    assert sum("its turns have text only" in message for message in messages) == 1
    return [message for message in messages if "its turns have text only" not in message]


def test_a_whole_corpus_gives_the_published_counts(tmp_path, full, caplog):
    corpus = prepare(tmp_path, full)
    assert not messages_but_text_only(caplog)
    assert tuple(len(data) for data in corpus.values()) == (52, 10, 31)
    for (split, data), size in zip(corpus.items(), (1284, 229, 686), strict=True):
        assert {row["dialogue_id"]: len(row["utterances"]) for row in data} == FOLDS[split]
        assert sum(FOLDS[split].values()) == size


def test_missing_parts_are_reported(tmp_path, full, caplog):
    folder = shutil.copytree(full, tmp_path / "incomplete")
    scores = next(folder.rglob("*.csv"))
    lines = scores.read_text().splitlines(keepends=True)
    for video, count in (("X3j2zQgwYgE", 11), ("WKA5OygbEKI", 1)):
        if transcript(folder, video).exists():
            texts = transcript(folder, video).read_text().splitlines(keepends=True)
            transcript(folder, video).write_text("".join(texts[:-count]))
        gone = [line for line in lines if video in line][-count:]
        lines = [line for line in lines if line not in gone]
    scores.write_text("".join(lines))
    prepare(tmp_path, folder)
    assert messages_but_text_only(caplog) == [
        "CMU-MOSI validation: 9 dialogues with 217 labelled utterances; published are 10 with 229. "
        "missing: X3j2zQgwYgE (11 utterances). different: WKA5OygbEKI (21 of 22)"
    ]


# What is missing or wrong


def test_videos_outside_the_folds_are_reported(tmp_path, caplog):
    videos = {**VIDEOS, "AAAA_unknown": [(1, "Who is this?", "1.0")]}
    write_release(tmp_path / "release", videos)
    assert "AAAA_unknown" not in rows(prepare(tmp_path, tmp_path / "release"))
    assert "CMU-MOSI: 1 videos are not in the standard folds and are left out: AAAA_unknown" in warnings(caplog)
    caplog.clear()
    write_table(tmp_path / "table", videos)
    assert "AAAA_unknown" in rows(prepare(tmp_path, tmp_path / "table"))  # its mode says where it belongs
    (difference,) = [message for message in caplog.messages if message.startswith("CMU-MOSI train")]
    assert difference.endswith("not published: AAAA_unknown")


def test_segments_without_text_are_reported(tmp_path, release, caplog):
    transcript(release, "c7UH_rxdZv4").unlink()
    path = transcript(release, "03bSnISJMiM")
    path.write_text(path.read_text().replace("_DELIM_OK", "_DELIM_ "))
    found = turns(prepare(tmp_path, release))
    without = ["03bSnISJMiM_11", "c7UH_rxdZv4_1", "c7UH_rxdZv4_2"]
    assert [name for name, turn in found.items() if turn["text"] is None] == without
    assert all(found[name]["emotion"] and found[name]["audio"] for name in without)
    assert warnings(caplog) == [f"CMU-MOSI: 3 turns have no transcript: {', '.join(without)}"]


def test_empty_texts_are_reported(tmp_path, caplog):
    write_table(tmp_path / "corpus", {"c7UH_rxdZv4": [(1, "", "1"), (2, " Good. ", "1")]})
    found = turns(prepare(tmp_path, tmp_path / "corpus"))
    assert [turn["text"] for turn in found.values()] == [None, "Good."]
    assert "CMU-MOSI: 1 turns have no transcript: c7UH_rxdZv4_1" in warnings(caplog)


def test_a_release_without_any_text(tmp_path, release):
    shutil.rmtree(release / "Raw" / "Transcript")
    with pytest.raises(FileNotFoundError, match=r"MOSI' has no Transcript/Segmented/\*\.annotprocessed"):
        prepare(tmp_path, release)


@pytest.mark.parametrize("layout", ["release", "table"])
def test_corpus_without_audio_is_text_only(tmp_path, layout, caplog, request):
    folder = request.getfixturevalue(layout)
    for path in folder.rglob("*.wav"):
        path.unlink()
    found = turns(prepare(tmp_path, folder))
    assert {(turn["audio"], turn["duration"]) for turn in found.values()} == {(None, None)}
    assert all(turn["text"] for turn in found.values())
    assert warnings(caplog) == [f"CMU-MOSI: no audio of segments in '{folder}'; its turns have text only"]


def test_a_wrong_folder(tmp_path):
    write_sound(tmp_path / "calls" / "a_1.wav", 0.1)
    for folder, message in {
        "calls": "calls' is not CMU-MOSI: it has neither a label.csv nor a Labels/OpinionLevelSentiment.csv",
        "nowhere": "CMU-MOSI: '.*nowhere' does not exist",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            prepare(tmp_path, tmp_path / folder)


@pytest.mark.parametrize("given", [(), (None,)])
def test_missing_folder_argument_says_where_to_get_the_corpus(given):
    with pytest.raises(FileNotFoundError, match=r"http://multicomp\.cs\.cmu\.edu/.* data_dir"):
        CmuMosi(*given)


WRONG_CELLS = {
    "score above 3": ({"label": "3.1"}, "row 2: score 3.1 is not a number from -3 to 3"),
    "score below -3": ({"label": "-4"}, "row 2: score -4 is not a number from -3 to 3"),
    "score no number": ({"label": "Positive"}, "row 2: score Positive is not a number from -3 to 3"),
    "score with an underscore": ({"label": "0_1"}, "row 2: score 0_1 is not a number from -3 to 3"),
    "infinite score": ({"label": "inf"}, "row 2: score inf is not a number from -3 to 3"),
    "mode": ({"mode": "training set"}, "row 2: unknown mode 'training set'; expected one of"),
    "no mode": ({"mode": ""}, "row 2: unknown mode None; expected one of"),
    "no video": ({"video_id": ""}, "row 2: video_id None, clip_id '1'"),
    "clip no number": ({"clip_id": "1a"}, "row 2: video_id 'c7UH_rxdZv4', clip_id '1a'"),
    "no clip": ({"clip_id": ""}, "row 2: video_id 'c7UH_rxdZv4', clip_id None"),
}


@pytest.mark.parametrize(("cells", "message"), WRONG_CELLS.values(), ids=WRONG_CELLS)
def test_wrong_cells_of_the_table_are_named(tmp_path, cells, message):
    path = write_table(tmp_path / "corpus", {"c7UH_rxdZv4": [(1, "Good.", "1")]}, **cells)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(tmp_path, tmp_path / "corpus")
    assert f"'{path}'" in str(caught.value)


def test_a_table_without_a_column(tmp_path):
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label\nc7UH_rxdZv4,1,Good.,1\n")
    with pytest.raises(ValueError, match=r"label\.csv' has no column \['mode'\]"):
        prepare(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.5,3.5,c7UH_rxdZv4,3,3.5", "row 3: score 3.5 is not a number from -3 to 3"),
        ("0.5,3.5,c7UH_rxdZv4,3", "row 3: expected start, end, video, segment and score, got"),
        ("start,end,video,segment,score", "row 3: expected start, end, video, segment and score, got"),
        ("0.5,3.5,c7UH_rxdZv4,2,1.0", "row 3: segment c7UH_rxdZv4_2 appears twice"),
    ],
)
def test_wrong_lines_of_the_scores_are_named(tmp_path, line, message):
    write_release(tmp_path / "corpus", {"c7UH_rxdZv4": VIDEOS["c7UH_rxdZv4"]})
    with (tmp_path / "corpus" / "Labels" / "OpinionLevelSentiment.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, tmp_path / "corpus")


def test_duplicate_segments_and_videos_raise(tmp_path, table):
    path = table / "label.csv"
    text = path.read_text()
    path.write_text(text + "03bSnISJMiM,2,Again.,1.0,,,,Positive,train\n")
    with pytest.raises(ValueError, match="row 11: segment 03bSnISJMiM_2 appears twice"):
        prepare(tmp_path, table)
    path.write_text(text + "03bSnISJMiM,3,Elsewhere.,1.0,,,,Positive,test\n")
    with pytest.raises(ValueError, match="'03bSnISJMiM' appears twice: in train and in test"):
        prepare(tmp_path, table)


# The cache


def test_a_changed_release_is_read(tmp_path, release):
    prepare(tmp_path, release)
    change_text(transcript(release, "c7UH_rxdZv4"), "FUNNY", "JOLLY")
    assert turns(prepare(tmp_path, release))["c7UH_rxdZv4_2"]["text"] == "but jolly"
    change_text(release / "Labels" / "OpinionLevelSentiment.csv", "-2.8", "-2.7")
    assert turns(prepare(tmp_path, release))["c7UH_rxdZv4_1"]["sentiment"] == -2.7


# The real corpus


@pytest.mark.shared
def test_published_counts_are_those_of_the_real_corpus(tmp_path, shared_dir, caplog):
    videos, labels = {}, {}
    for split in SPLITS:
        path = shared_dir / "data" / "mosi" / f"{split}.parquet"
        columns = ["dialogue_id", "utterance_ids", "texts", "labels", "labels_binary"]
        data = pq.read_table(path, columns=columns).to_pylist()
        assert {row["dialogue_id"]: len(row["utterance_ids"]) for row in data} == FOLDS[split]
        for row in data:
            numbers = [int(identity.removeprefix(f"{row['dialogue_id']}_")) for identity in row["utterance_ids"]]
            videos[row["dialogue_id"]] = list(zip(numbers, row["texts"], row["labels"], strict=True))
            labels |= zip(row["utterance_ids"], row["labels_binary"], strict=True)
    write_table(tmp_path / "corpus", videos)
    found = turns(prepare(tmp_path, tmp_path / "corpus"))
    assert list(found) == list(labels)
    scored = {name: turn for name, turn in found.items() if turn["sentiment"] is not None}
    assert len(scored) == len(found) - 4
    assert all(LABELS["cmu_mosi"][labels[name]] == turn["emotion"] for name, turn in scored.items())
    assert [message.split(".")[0] for message in messages_but_text_only(caplog)] == [
        "CMU-MOSI train: 52 dialogues with 1,281 labelled utterances; published are 52 with 1,284",
        "CMU-MOSI test: 31 dialogues with 685 labelled utterances; published are 31 with 686",
    ]
