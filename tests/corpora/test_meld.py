import csv
import functools
import http.server
import io
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import av
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import Meld
from mister_e_hf.corpora.counts import published
from mister_e_hf.corpora.schema import LABELS
from mister_e_hf.media.audio import load_audio
from support.corpus_contract import build_corpus

FIELDS = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime".split(
    ","
)
CSV = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
PREFIX = {"train": "train", "validation": "dev", "test": "test"}
CLIPS = {
    "train": "train/train_splits",
    "validation": "dev/dev_splits_complete",
    "test": "test/output_repeated_splits_test",
}
TURNS = [  # dialogue, utterance, speaker, emotion, sentiment, text
    (0, 0, "Monica", "neutral", "neutral", "Hi, it’s me."),
    (0, 1, "Ross", "anger", "negative", 'He said "no", twice.'),
    (2, 1, "Joey", "joy", "positive", "NA"),
    (2, 0, "Phoebe", "surprise", "positive", "What?"),
]
NAMES = ["dia0_utt0", "dia0_utt1", "dia2_utt0", "dia2_utt1"]
# The length of a clip identifies its split and turn.
SECONDS = {
    split: {name: start + 0.1 * number for number, name in enumerate(NAMES)}
    for split, start in {"train": 0.3, "validation": 0.8, "test": 1.3}.items()
}


def write_csv(path: Path, turns=TURNS, encoding: str = "utf-8", **cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    for number, (dialogue, utterance, speaker, emotion, sentiment, text) in enumerate(turns, start=1):
        row = dict.fromkeys(FIELDS, "1") | {"Sr No.": number, "Utterance": text, "Speaker": speaker}
        row |= {"Emotion": emotion, "Sentiment": sentiment, "Dialogue_ID": dialogue, "Utterance_ID": utterance}
        writer.writerow(row | cells)
    path.write_bytes(file.getvalue().encode(encoding))


def write_tables(folder: Path, **settings) -> Path:
    for name in CSV.values():
        write_csv(folder / name, **settings)
    return folder


def write_mp4(path: Path, seconds: float):
    """A small video with stereo AAC audio."""
    samples = (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(44_100 * seconds)) / 44_100)).astype(np.float32)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44_100, 0
        for packet in (*sound.encode(frame), *sound.encode(None)):
            container.mux(packet)
        for _ in range(int(25 * seconds)):
            for packet in picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in picture.encode(None):
            container.mux(packet)


def write_wav(path: Path, seconds: float):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(round(8000 * seconds)) / 7), 8000)


def write_wavs(folder: Path, places: dict[str, str], suffix: str = ".wav"):
    for split, place in places.items():
        for name, seconds in SECONDS[split].items():
            path = folder / place / f"{name}.wav"
            write_wav(path, seconds)
            path.rename(path.with_suffix(suffix))


@pytest.fixture(scope="module")
def unpacked_release(tmp_path_factory) -> Path:
    """MELD.Raw unpacked, doubles and all."""
    folder = tmp_path_factory.mktemp("release") / "MELD.Raw"
    for split, place in CLIPS.items():
        (folder / place).mkdir(parents=True)
        for name, seconds in SECONDS[split].items():
            write_mp4(folder / place / f"{name}.mp4", seconds)
        write_csv(folder / ("train" if split == "train" else ".") / CSV[split])
    for split, name in (("train", "dia0_utt0"), ("test", "dia2_utt1")):
        (folder / CLIPS[split] / f"._{name}.mp4").write_bytes(b"\0\5\26\7")
        double = folder / CLIPS[split] / f"final_videos_test{name}.mp4"
        shutil.copy(folder / CLIPS["validation"] / "dia0_utt0.mp4", double)
    return folder


@pytest.fixture
def release(unpacked_release, tmp_path) -> Path:
    """One's own copy of it."""
    return Path(shutil.copytree(unpacked_release, tmp_path / "MELD.Raw"))


def build(folder: Path | None, tmp_path: Path, num_proc: int | None = None, **settings) -> datasets.DatasetDict:
    return build_corpus(Meld, folder, tmp_path / "cache", num_proc, **settings)


def turns_of(data) -> list[dict]:
    return [turn for utterances in data["utterances"] for turn in utterances]


def messages(caplog, words: str) -> list[str]:
    return [message for message in caplog.messages if words in message]


def seconds_of(corpus) -> dict[str, dict[str, float | None]]:
    """Seconds of the audio of each turn, whatever its row says."""
    return {
        split: {
            turn["utterance_id"].partition("_")[2]: turn["audio"] and len(load_audio(turn["audio"])) / 16_000
            for turn in turns_of(data)
        }
        for split, data in corpus.items()
    }


def approximately(seconds: dict[str, dict[str, float | None]]):
    # An AAC frame is 0.023 s, and lengths differ by 0.1 s.
    return {split: pytest.approx(values, abs=0.048) for split, values in seconds.items()}


def without(*gone: tuple[str, str]) -> dict[str, dict[str, float | None]]:
    return {
        split: {name: None if (split, name) in gone else length for name, length in names.items()}
        for split, names in SECONDS.items()
    }


# Layouts


def test_release(release, tmp_path, caplog):
    corpus = build(release, tmp_path)
    assert list(corpus) == list(CSV)
    for split, prefix in PREFIX.items():
        assert corpus[split].features["utterances"].feature["emotion"].names == LABELS["meld"]
        assert corpus[split]["dialogue_id"][:] == [f"{prefix}_dia0", f"{prefix}_dia2"]
        turns = turns_of(corpus[split])
        assert [turn["utterance_id"] for turn in turns] == [f"{prefix}_{name}" for name in NAMES]
        assert [turn["text"] for turn in turns] == ["Hi, it’s me.", 'He said "no", twice.', "What?", "NA"]
        assert [turn["speaker"] for turn in turns] == ["Monica", "Ross", "Phoebe", "Joey"]
        assert [LABELS["meld"][turn["emotion"]] for turn in turns] == ["neutral", "anger", "surprise", "joy"]
        assert [turn["sentiment"] for turn in turns] == [0.0, -1.0, 1.0, 1.0]
        for turn, name in zip(turns, NAMES, strict=True):
            assert turn["audio"] == {"path": str(release / CLIPS[split] / f"{name}.mp4"), "bytes": None}
            assert turn["duration"] == len(load_audio(turn["audio"]["path"])) / 16_000
            assert (turn["start"], turn["end"]) == (None, None)
    assert seconds_of(corpus) == approximately(SECONDS)
    assert not messages(caplog, "sound") and not messages(caplog, "last more than")


@pytest.mark.parametrize(
    ("places", "tables"),
    [
        ({split: Path(place).name for split, place in CLIPS.items()}, "."),
        ({"train": "train", "validation": "val", "test": "test"}, "."),
        ({"train": "Audio/Train", "validation": "Audio/Validation", "test": "Audio/Test"}, "data/MELD"),
        ({split: f"MELD.Raw/{place}/wav" for split, place in CLIPS.items()}, "MELD.Raw"),
        # The folder nearest to a clip decides.
        ({"train": "test/train_wav", "validation": "train/dev", "test": "dev/output_repeated_splits_test"}, "train"),
    ],
    ids=["one level up", "short names", "capitals", "folders below", "nearest folder"],
)
def test_layouts(tmp_path, places, tables):
    folder = tmp_path / "dev_copy"  # above data_dir, names say nothing
    write_tables(folder / tables)
    write_wavs(folder, places)
    assert seconds_of(build(folder, tmp_path)) == approximately(SECONDS)


def test_a_table_in_the_folder_of_each_split_and_clips_behind_links(tmp_path):
    write_wavs(tmp_path / "elsewhere", PREFIX, suffix=".WAV")
    for split, name in CSV.items():
        write_csv(tmp_path / "MELD" / PREFIX[split] / name)
        (tmp_path / "MELD" / PREFIX[split] / "clips").symlink_to(tmp_path / "elsewhere" / PREFIX[split])
    assert seconds_of(build(tmp_path / "MELD", tmp_path)) == approximately(SECONDS)


def test_tables_without_clips_are_text_only(tmp_path, caplog):
    corpus = build(write_tables(tmp_path / "tables"), tmp_path)
    assert seconds_of(corpus) == {split: dict.fromkeys(NAMES) for split in CSV}
    assert [turn["text"] for turn in turns_of(corpus["test"])][:1] == ["Hi, it’s me."]
    told = messages(caplog, "its turns have text only")
    assert [message.partition(":")[0] for message in told] == [f"MELD {split}" for split in CSV]
    assert not messages(caplog, "no usable audio")


def test_split_without_clips_is_text_only(release, tmp_path, caplog):
    shutil.rmtree(release / CLIPS["validation"])
    assert seconds_of(build(release, tmp_path)) == approximately(without(*(("validation", name) for name in NAMES)))
    assert [message[:16] for message in messages(caplog, "text only")] == ["MELD validation:"]
    assert not messages(caplog, "no usable audio")


def test_fastest_format_is_preferred(release, tmp_path):
    shorter = {
        split: {name: length - 0.25 for name, length in names.items() if name != "dia2_utt1"}
        for split, names in SECONDS.items()
    }
    for split, names in shorter.items():
        for name, length in names.items():
            write_wav(release / CLIPS[split] / f"{name}.wav", length)
    expected = {split: SECONDS[split] | names for split, names in shorter.items()}
    assert seconds_of(build(release, tmp_path)) == approximately(expected)


def test_hidden_copies_and_clips_without_a_row_are_ignored(release, tmp_path, caplog):
    (release / CLIPS["test"] / "dia2_utt1.mp4").unlink()
    shutil.copy(release / CLIPS["test"] / "dia0_utt0.mp4", release / CLIPS["test"] / "dia7_utt0.mp4")
    corpus = build(release, tmp_path)
    assert seconds_of(corpus) == approximately(without(("test", "dia2_utt1")))
    assert len(messages(caplog, "no usable audio")) == 1


# Clips that are missing, broken or cut wrongly


def test_missing_and_broken_clips_are_counted_and_named(release, tmp_path, caplog):
    (release / CLIPS["validation"] / "dia0_utt1.mp4").unlink()
    (release / CLIPS["train"] / "dia2_utt0.mp4").write_bytes(b"broken" * 100)
    clip = release / CLIPS["train"] / "dia0_utt0.mp4"
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    gone = ("train", "dia0_utt0"), ("train", "dia2_utt0"), ("validation", "dia0_utt1")
    corpus = build(release, tmp_path)
    assert seconds_of(corpus) == approximately(without(*gone))
    for split, data in corpus.items():
        for turn in turns_of(data):
            assert (turn["duration"] is None) == (turn["audio"] is None)
            assert turn["text"] and turn["emotion"] is not None, split
    train, validation = messages(caplog, "no usable audio")
    assert train.startswith("MELD: 2 turns have no usable audio") and str(clip) in train
    assert "train_splits/dia2_utt0.mp4" in train
    assert validation.startswith("MELD: 1 turns have no usable audio")
    assert f"Audio file '{release / CLIPS['validation'] / 'dia0_utt1.mp4'}'" in validation


def test_missing_clip_is_reported_with_the_suffix_of_the_others(tmp_path, caplog):
    write_tables(tmp_path / "MELD")
    write_wavs(tmp_path / "MELD", PREFIX)
    (tmp_path / "MELD" / "dev" / "dia2_utt1.wav").unlink()
    build(tmp_path / "MELD", tmp_path)
    (told,) = messages(caplog, "no usable audio")
    assert f"Audio file '{tmp_path / 'MELD' / 'dev' / 'dia2_utt1.wav'}'" in told


def test_a_clip_of_minutes_is_kept_whole_and_named(release, tmp_path, caplog):
    write_wav(release / CLIPS["test"] / "dia0_utt0.wav", 60)
    write_wav(release / CLIPS["test"] / "dia2_utt0.wav", 305)
    turns = turns_of(build(release, tmp_path)["test"])
    assert [turn["duration"] for turn in turns[::2]] == [60, 305]
    assert len(load_audio(turns[2]["audio"])) == 305 * 16_000
    assert messages(caplog, "last more than") == ["MELD: 1 turns last more than 60 s: test_dia2_utt0 (305 s)"]
    assert not messages(caplog, "no usable audio")


def test_a_clip_beyond_max_seconds_is_unusable(release, tmp_path, caplog):
    write_wav(release / CLIPS["test"] / "dia0_utt0.wav", 21)
    turns = turns_of(build(release, tmp_path, max_seconds=20)["test"])
    assert [turn["audio"] is None for turn in turns] == [True, False, False, False]
    assert "at most 20 s are taken" in messages(caplog, "no usable audio")[0]


# Tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path, encoding):
    corpus = build(write_tables(tmp_path / "tables", encoding=encoding), tmp_path)
    for split in CSV:
        assert [turn["text"] for turn in turns_of(corpus[split])] == [
            "Hi, it’s me.",
            'He said "no", twice.',
            "What?",
            "NA",
        ]


def test_turns_are_in_the_order_of_their_numbers(tmp_path):
    numbers = [10, 9, 2, 11, 0]
    turns = [(7, number, "A", "fear", "negative", f"{number}") for number in numbers]
    turns[2:2] = [(3, 0, "B", "disgust", "negative", "between")]
    data = build(write_tables(tmp_path / "tables", turns=turns), tmp_path)["validation"]
    assert data["dialogue_id"][:] == ["dev_dia7", "dev_dia3"]
    assert [turn["utterance_id"] for turn in data[0]["utterances"]] == [
        f"dev_dia7_utt{number}" for number in sorted(numbers)
    ]
    assert [turn["text"] for turn in data[0]["utterances"]] == ["0", "2", "9", "10", "11"]


def test_classes_and_sentiments(tmp_path):
    sentiments = ["neutral", "positive", "negative", "negative", "positive", "negative", "negative"]
    turns = [
        (0, number, "A", emotion.upper() if number % 2 else f" {emotion} ", sentiment.title(), "x")
        for number, (emotion, sentiment) in enumerate(zip(LABELS["meld"], sentiments, strict=True))
    ]
    found = turns_of(build(write_tables(tmp_path / "tables", turns=turns), tmp_path)["train"])
    assert [turn["emotion"] for turn in found] == list(range(7))
    assert [turn["sentiment"] for turn in found] == [0.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("turns", "cells", "message"),
    [
        (TURNS, {"Emotion": "bored"}, r"row 2 \(dev_dia0_utt0\): emotion 'bored'.*'neutral', 'surprise'"),
        (TURNS, {"Emotion": ""}, r"row 2 \(dev_dia0_utt0\): emotion None"),
        (TURNS, {"Sentiment": "mixed"}, r"row 2 \(dev_dia0_utt0\): .*sentiment 'mixed'.*'negative'"),
        (TURNS, {"Sentiment": ""}, r"row 2 .*sentiment None"),
        (
            TURNS,
            {"Dialogue_ID": "x"},
            r"row 2: Dialogue_ID and Utterance_ID must be whole numbers from 0, got 'x' and '0'",
        ),
        (TURNS, {"Utterance_ID": "1.5"}, r"row 2: .* must be whole numbers from 0, got '0' and '1\.5'"),
        (TURNS, {"Utterance_ID": ""}, r"row 2: .* must be whole numbers from 0, got '0' and None"),
        ([*TURNS, TURNS[1]], {}, r"row 6: dev_dia0_utt1 appears twice"),
    ],
)
def test_wrong_rows_are_named(tmp_path, turns, cells, message):
    write_tables(tmp_path / "tables")
    write_csv(tmp_path / "tables" / CSV["validation"], turns, **cells)
    with pytest.raises(ValueError, match=rf"tables/dev_sent_emo\.csv', {message}"):
        build(tmp_path / "tables", tmp_path)


@pytest.mark.parametrize("name", CSV.values())
def test_a_missing_table_is_named(release, tmp_path, name):
    next(release.rglob(name)).unlink()
    with pytest.raises(FileNotFoundError, match=f"No '{name}' in '.*MELD.Raw'; MELD needs .*train_sent_emo.csv"):
        Meld(release, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("column", ["Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"])
def test_a_missing_column_is_named(tmp_path, column):
    path = write_tables(tmp_path / "tables") / CSV["test"]
    header, rows = path.read_text(encoding="utf-8").split("\n", 1)
    path.write_text("\n".join([header.replace(f",{column},", ",other,"), rows]), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"test_sent_emo\.csv' has no column \['{column}'\]; it has \['Sr No\.'"):
        build(tmp_path / "tables", tmp_path)


def test_no_folder_and_an_archive_in_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="MELD: '.*nowhere' does not exist"):
        Meld(tmp_path / "nowhere", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "MELD.Raw.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(FileNotFoundError, match="No 'train_sent_emo.csv' in '.*MELD.Raw.tar.gz'"):
        Meld(tmp_path / "MELD.Raw.tar.gz", cache_dir=str(tmp_path / "cache"))


# Published counts


def write_published(folder: Path, skip=()) -> Path:
    counts = published("meld")
    for split in CSV:
        turns = [
            (dialogue, utterance, "A", "joy", "positive", "x")
            for dialogue, count in enumerate(counts[split])
            for utterance in range(count)
            if not {(split, dialogue), (split, dialogue, utterance)} & set(skip)
        ]
        write_csv(folder / CSV[split], turns)
    return folder


def test_differences_from_the_published_counts_are_reported(tmp_path, caplog):
    counts = published("meld")["test"]
    folder = write_published(tmp_path / "tables", skip={("test", 7), ("test", 9, 0)})
    build(folder, tmp_path)
    assert messages(caplog, "published are") == [
        f"MELD test: 279 dialogues with {2610 - counts[7] - 1:,} labelled utterances; published are 280 with 2,610. "
        f"missing: test_dia7 ({counts[7]} utterances). different: test_dia9 ({counts[9] - 1} of {counts[9]})"
    ]


def test_unpublished_dialogues_are_reported_and_long_lists_truncated(tmp_path, caplog):
    folder = write_published(tmp_path / "tables", skip={("validation", dialogue) for dialogue in range(12)})
    write_csv(folder / CSV["train"], [(5000, 0, "A", "joy", "positive", "x")])
    build(folder, tmp_path)
    train, validation = messages(caplog, "published are")
    assert train.startswith("MELD train: 1 dialogues with 1 labelled") and "and 1028 more" in train
    assert train.endswith("not published: train_dia5000")
    assert "dev_dia9 (" in validation and "dev_dia10 (" not in validation and validation.endswith(", and 2 more")


# The cache


def test_added_removed_and_changed_clips_are_read_again(release, tmp_path):
    assert seconds_of(build(release, tmp_path)) == approximately(SECONDS)
    (release / CLIPS["test"] / "dia0_utt0.mp4").rename(tmp_path / "kept.mp4")
    assert seconds_of(build(release, tmp_path)) == approximately(without(("test", "dia0_utt0")))
    write_mp4(release / CLIPS["test"] / "dia0_utt0.mp4", 2.0)
    assert turns_of(build(release, tmp_path)["test"])[0]["duration"] == pytest.approx(2, abs=0.048)
    (tmp_path / "kept.mp4").replace(release / CLIPS["test"] / "dia0_utt0.mp4")
    assert turns_of(build(release, tmp_path)["test"])[0]["duration"] == pytest.approx(1.3, abs=0.048)


# The download


def pack(folder: Path, place: Path, cut: str | None = None) -> Path:
    """The release as it is published, archives of the splits in an archive; one of them may be cut in the middle."""
    inner = place / "MELD.Raw"
    inner.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        archive = inner / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder / name, name)
        if name == cut:
            archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    for name in ("dev_sent_emo.csv", "test_sent_emo.csv"):
        shutil.copy(folder / name, inner)
        (inner / f"._{name}").write_bytes(b"\0\5\26\7")
    (inner / "._train.tar.gz").write_bytes(b"\0\5\26\7")
    with tarfile.open(place / "MELD.Raw.tar.gz", "w:gz") as file:
        file.add(inner, "MELD.Raw")
    return place / "MELD.Raw.tar.gz"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served on 127.0.0.1, where the release is then expected, and what was asked of it."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(Meld, "archive_url", f"http://127.0.0.1:{server.server_port}/MELD.Raw.tar.gz")
    yield folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(unpacked_release, server, tmp_path, caplog):
    folder, asked = server
    pack(unpacked_release, tmp_path / "packed").rename(folder / "MELD.Raw.tar.gz")
    corpus = build(None, tmp_path)
    assert not messages(caplog, "sound") and not messages(caplog, "text only")
    assert seconds_of(corpus) == approximately(SECONDS)
    unpacked = build(unpacked_release, tmp_path)
    for split in CSV:
        for turn, expected in zip(turns_of(corpus[split]), turns_of(unpacked[split]), strict=True):
            assert Path(turn["audio"]["path"]).read_bytes() == Path(expected["audio"]["path"]).read_bytes()
            assert Path(turn["video"]["path"]).name == Path(expected["video"]["path"]).name
            unplaced = {"audio": None, "video": None}
            assert turn | unplaced == expected | unplaced
    count = len(asked)
    assert count > 0
    build(None, tmp_path)
    # Read again from the unpacked download.
    clip = Path(turns_of(corpus["train"])[0]["audio"]["path"])
    unpacked_at = clip.stat().st_ctime_ns
    assert seconds_of(build(None, tmp_path, max_seconds=1.45)) == approximately(
        without(("test", "dia2_utt0"), ("test", "dia2_utt1"))
    )
    assert len(asked) == count and clip.stat().st_ctime_ns == unpacked_at


def test_an_address_that_cannot_be_reached(tmp_path, monkeypatch, server):
    with pytest.raises(OSError, match=r"MELD could not be downloaded from http://127.*404.*pass data_dir"):
        build(None, tmp_path)
    monkeypatch.setattr(Meld, "archive_url", "http://127.0.0.1:9/MELD.Raw.tar.gz")
    with pytest.raises(OSError, match=r"MELD could not be downloaded from http://127\.0\.0\.1:9/.*pass data_dir"):
        build(None, tmp_path, num_proc=2)


@pytest.mark.parametrize("cut", ["whole", "train", "page"])
def test_an_archive_that_is_not_whole_never_becomes_a_corpus(unpacked_release, server, tmp_path, cut):
    folder, _ = server
    archive = folder / "MELD.Raw.tar.gz"
    if cut == "page":
        archive.write_text("<html>Sign in</html>")
    else:
        content = pack(unpacked_release, tmp_path / "packed", cut).read_bytes()
        archive.write_bytes(content[: len(content) // 2] if cut == "whole" else content)
    # The second time half of it is unpacked already, as after an interruption.
    for _ in range(2):
        with pytest.raises(ValueError, match=r"downloads/.* is not the whole release: .*Delete it") as error:
            build(None, tmp_path)
    Path(str(error.value).split("'")[1]).unlink()
    pack(unpacked_release, tmp_path / "mended").replace(archive)
    assert seconds_of(build(None, tmp_path)) == approximately(SECONDS)


# The real corpus


@pytest.mark.shared
def test_official_tables(shared_dir, tmp_path, caplog):
    corpus = build(shared_dir / "data" / "meld_raw", tmp_path)
    assert not messages(caplog, "published are")
    sizes = {split: (len(data), len(turns_of(data))) for split, data in corpus.items()}
    assert sizes == {"train": (1038, 9989), "validation": (114, 1109), "test": (280, 2610)}
    counts = {}
    for split, name in CSV.items():
        with (shared_dir / "data" / "meld_raw" / name).open(encoding="utf-8", newline="") as file:
            rows = {
                f"{PREFIX[split]}_dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}": row
                for row in csv.DictReader(file)
            }
        turns = turns_of(corpus[split])
        assert {turn["utterance_id"] for turn in turns} == set(rows)
        for turn in turns:
            row = rows[turn["utterance_id"]]
            assert (turn["text"], turn["speaker"]) == (row["Utterance"], row["Speaker"])
            assert LABELS["meld"][turn["emotion"]] == row["Emotion"]
            assert turn["sentiment"] == ["negative", "neutral", "positive"].index(row["Sentiment"]) - 1
        counts[split] = Counter(LABELS["meld"][turn["emotion"]] for turn in turns)
        assert counts[split] == Counter(row["Emotion"] for row in rows.values())
    assert counts["train"] == {
        "neutral": 4710,
        "joy": 1743,
        "surprise": 1205,
        "anger": 1109,
        "sadness": 683,
        "disgust": 271,
        "fear": 268,
    }


@pytest.mark.shared
def test_texts_are_those_of_the_table_with_vectors(shared_dir, tmp_path):
    corpus = build(shared_dir / "data" / "meld_raw", tmp_path)
    for split, data in corpus.items():
        table = pq.read_table(shared_dir / "data" / "meld" / f"{split}.parquet", columns=["dialogue_id", "texts"])
        assert data["dialogue_id"][:] == table["dialogue_id"].to_pylist()
        texts = [[turn["text"] for turn in utterances] for utterances in data["utterances"]]
        assert texts == table["texts"].to_pylist()


@pytest.mark.shared
def test_real_clips_become_the_audio_of_their_turns(shared_dir, tmp_path, caplog):
    folder = tmp_path / "MELD.Raw"
    clips = folder / "output_repeated_splits_test"
    clips.mkdir(parents=True)
    for path in (shared_dir / "data" / "meld_raw").glob("*.csv"):
        shutil.copy(path, folder)
    seconds = {}
    for path in (shared_dir / "data" / "meld_clips").glob("*.wav"):
        shutil.copy(path, clips)
        seconds[f"test_{path.stem}"] = soundfile.info(path).duration
    corpus = build(folder, tmp_path)
    turns = {turn["utterance_id"]: turn for turn in turns_of(corpus["test"]) if turn["audio"]}
    assert set(turns) == set(seconds) and len(seconds) == 4
    for name, turn in turns.items():
        assert turn["duration"] == pytest.approx(seconds[name], abs=1e-3)
        assert Path(turn["audio"]["path"]) == clips / f"{name.removeprefix('test_')}.wav"
    (told,) = messages(caplog, "no usable audio")
    assert told.startswith("MELD: 2606 turns have no usable audio") and told.endswith("and 2596 more")
