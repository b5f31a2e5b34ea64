import csv
import http.server
import io
import logging
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mister_e_hf import Meld
from mister_e_hf.audio import AudioError
from mister_e_hf.corpora.builder import published
from mister_e_hf.corpora.schema import LABELS

FIELDS = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime".split(
    ","
)
CSV = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
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


def write_csv(path: Path, turns=TURNS, encoding: str = "utf-8", **cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    for number, (dialogue, utterance, speaker, emotion, sentiment, text) in enumerate(turns, start=1):
        row = dict.fromkeys(FIELDS, "1") | {
            "Sr No.": number,
            "Utterance": text,
            "Speaker": speaker,
            "Emotion": emotion,
        }
        row |= {"Sentiment": sentiment, "Dialogue_ID": dialogue, "Utterance_ID": utterance} | cells
        writer.writerow(row)
    path.write_bytes(file.getvalue().encode(encoding))


def write_mp4(path: Path, seconds: float = 0.6, pitch: float = 440.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(44_100 * seconds)) / 44_100)).astype(np.float32)
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


@pytest.fixture
def release(tmp_path) -> Path:
    """MELD.Raw unpacked, doubles and all."""
    folder = tmp_path / "MELD.Raw"
    for split, name in CSV.items():
        write_csv(folder / ("train" if split == "train" else ".") / name)
        for number, (dialogue, utterance, *_) in enumerate(TURNS):
            write_mp4(folder / CLIPS[split] / f"dia{dialogue}_utt{utterance}.mp4", 0.4 + 0.2 * number)
    (folder / CLIPS["train"] / "._dia0_utt0.mp4").write_bytes(b"\0\5\26\7")
    (folder / CLIPS["test"] / "final_videos_testdia0_utt0.mp4").write_bytes(b"")
    return folder


def build(folder: Path | None, tmp_path: Path, num_proc: int | None = None, **settings):
    builder = Meld(folder, cache_dir=str(tmp_path / "cache"), **settings)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset()


def turns_of(data) -> list[dict]:
    return [turn for utterances in data["utterances"] for turn in utterances]


def test_release(release, tmp_path):
    corpus = build(release, tmp_path)
    for split, prefix in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert corpus[split]["dialogue_id"][:] == [f"{prefix}_dia0", f"{prefix}_dia2"]
        turns = turns_of(corpus[split])
        assert [turn["utterance_id"] for turn in turns] == [
            f"{prefix}_{name}" for name in ("dia0_utt0", "dia0_utt1", "dia2_utt0", "dia2_utt1")
        ]
        assert [turn["text"] for turn in turns] == ["Hi, it’s me.", 'He said "no", twice.', "What?", "NA"]
        assert [turn["speaker"] for turn in turns] == ["Monica", "Ross", "Phoebe", "Joey"]
        assert [LABELS["meld"][turn["emotion"]] for turn in turns] == ["neutral", "anger", "surprise", "joy"]
        assert [turn["sentiment"] for turn in turns] == [0.0, -1.0, 1.0, 1.0]
        for turn, seconds in zip(turns, (0.4, 0.6, 1.0, 0.8), strict=True):
            assert turn["duration"] == pytest.approx(seconds, abs=0.05)
            assert Path(turn["audio"]["path"]).parent == release / CLIPS[split]


def test_tables_alone_are_text_alone(tmp_path, caplog):
    for name in CSV.values():
        write_csv(tmp_path / "tables" / name)
    corpus = build(tmp_path / "tables", tmp_path)
    assert all(turn["audio"] is None and turn["duration"] is None for turn in turns_of(corpus["test"]))
    assert "its turns have text alone" in caplog.text


def test_wav_is_taken_before_mp4(release, tmp_path):
    path = release / "wav" / "test_clips" / "dia0_utt0.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(8000)), 16_000)
    turn = turns_of(build(release, tmp_path)["test"])[0]
    assert turn["audio"]["path"] == str(path) and turn["duration"] == 0.5


def test_missing_and_broken_clips_are_counted_and_named(release, tmp_path, caplog):
    (release / CLIPS["train"] / "dia0_utt1.mp4").unlink()
    (release / CLIPS["train"] / "dia2_utt0.mp4").write_bytes(b"broken" * 100)
    turns = turns_of(build(release, tmp_path)["train"])
    assert [turn["audio"] is None for turn in turns] == [False, True, True, False]
    told = next(record.getMessage() for record in caplog.records if "no usable sound" in record.getMessage())
    assert "2 turns" in told and "dia0_utt1.mp4" in told and "dia2_utt0.mp4" in told


@pytest.mark.parametrize("num_proc", [None, 2])
def test_unusable_sound_is_an_error_where_asked(release, tmp_path, num_proc):
    (release / CLIPS["train"] / "dia0_utt1.mp4").unlink()
    with pytest.raises(AudioError, match="train_dia0_utt1.*dia0_utt1.mp4.*bad_audio='missing'"):
        build(release, tmp_path, num_proc, bad_audio="error")


def test_a_clip_of_minutes_is_kept_whole_and_named(release, tmp_path, caplog):
    path = release / "wav" / "test" / "dia0_utt0.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(61 * 8000)), 8000)
    assert turns_of(build(release, tmp_path)["test"])[0]["duration"] == pytest.approx(61)
    assert "1 turns last more than 60 s: test_dia0_utt0 (61 s)" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path, encoding):
    for name in CSV.values():
        write_csv(tmp_path / "tables" / name, encoding=encoding)
    assert turns_of(build(tmp_path / "tables", tmp_path)["train"])[0]["text"] == "Hi, it’s me."


@pytest.mark.parametrize(
    ("turns", "cells", "message"),
    [
        (TURNS, {"Emotion": "bored"}, r"row 2 \(dev_dia0_utt0\): emotion 'bored'"),
        (TURNS, {"Sentiment": ""}, r"row 2 .*sentiment None"),
        (TURNS, {"Dialogue_ID": "x"}, r"row 2: Dialogue_ID and Utterance_ID must be whole numbers"),
        ([TURNS[0], TURNS[0]], {}, r"row 3: dev_dia0_utt0 stands there twice"),
    ],
)
def test_wrong_rows_are_named(tmp_path, turns, cells, message):
    for split, name in CSV.items():
        write_csv(
            tmp_path / "tables" / name,
            *((turns,) if split == "validation" else ()),
            **(cells if split == "validation" else {}),
        )
    with pytest.raises(ValueError, match=f"dev_sent_emo.csv.*{message}"):
        build(tmp_path / "tables", tmp_path)


def test_missing_table_and_missing_column(tmp_path):
    write_csv(tmp_path / "tables" / CSV["train"])
    with pytest.raises(FileNotFoundError, match="No 'dev_sent_emo.csv'"):
        build(tmp_path / "tables", tmp_path)
    for name in CSV.values():
        (tmp_path / "tables" / name).write_text("Utterance,Speaker\nHi,Ross\n")
    with pytest.raises(ValueError, match="no column .*'Emotion'"):
        build(tmp_path / "tables", tmp_path)


def test_what_differs_from_the_published_counts_is_named(tmp_path, caplog):
    counts = published("meld")
    for split, name in CSV.items():
        turns = [
            (dialogue, utterance, "A", "joy", "positive", "x")
            for dialogue, count in enumerate(counts[split])
            for utterance in range(count)
            if (split, dialogue) != ("test", 7) and (split, dialogue, utterance) != ("test", 9, 0)
        ]
        write_csv(tmp_path / "tables" / name, turns)
    build(tmp_path / "tables", tmp_path)
    told = [record.getMessage() for record in caplog.records if "published" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("MELD test: 279 dialogues")
    assert "published are 280 with 2,610" in told[0]
    assert f"missing: test_dia7 ({counts['test'][7]} utterances)" in told[0]
    assert f"different: test_dia9 ({counts['test'][9] - 1} of {counts['test'][9]})" in told[0]


def test_a_changed_folder_is_not_served_stale(release, tmp_path):
    before = Meld(release, cache_dir=str(tmp_path / "cache")).cache_dir
    assert Meld(release, cache_dir=str(tmp_path / "cache")).cache_dir == before
    (release / CLIPS["test"] / "dia0_utt0.mp4").unlink()
    without = Meld(release, cache_dir=str(tmp_path / "cache")).cache_dir
    write_csv(release / CSV["test"], TURNS[:2])
    changed = Meld(release, cache_dir=str(tmp_path / "cache")).cache_dir
    assert len({before, without, changed}) == 3


@pytest.fixture
def archive(release, tmp_path):
    """The release as it is published: archives of the splits in an archive; served on 127.0.0.1."""
    inner = tmp_path / "packed" / "MELD.Raw"
    inner.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        with tarfile.open(inner / f"{name}.tar.gz", "w:gz") as file:
            file.add(release / name, name)
    for name in ("dev_sent_emo.csv", "test_sent_emo.csv"):
        (inner / name).write_bytes((release / name).read_bytes())
    with tarfile.open(tmp_path / "packed" / "MELD.Raw.tar.gz", "w:gz") as file:
        file.add(inner, "MELD.Raw")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "packed")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/MELD.Raw.tar.gz", asked
    server.shutdown()


def test_download(release, archive, tmp_path, monkeypatch):
    address, asked = archive
    monkeypatch.setattr(Meld, "archive_url", address)
    corpus, unpacked = build(None, tmp_path), build(release, tmp_path)
    for split in CSV:
        turns, expected = turns_of(corpus[split]), turns_of(unpacked[split])
        assert [turn | {"audio": None} for turn in turns] == [turn | {"audio": None} for turn in expected]
        assert all(turn["audio"] is not None for turn in turns)
    count = len(asked)
    build(None, tmp_path)
    assert len(asked) == count


@pytest.mark.shared
def test_official_tables(shared_dir, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        corpus = build(shared_dir / "data" / "meld_raw", tmp_path)
    assert not [record for record in caplog.records if "published" in record.getMessage()]
    sizes = {split: (len(data), len(turns_of(data))) for split, data in corpus.items()}
    assert sizes == {"train": (1038, 9989), "validation": (114, 1109), "test": (280, 2610)}
    for split, name in CSV.items():
        with (shared_dir / "data" / "meld_raw" / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        turns = turns_of(corpus[split])
        found = Counter(LABELS["meld"][turn["emotion"]] for turn in turns)
        assert found == Counter(row["Emotion"] for row in rows)
        assert Counter(turn["text"] for turn in turns) == Counter(row["Utterance"] for row in rows)
    train = Counter(LABELS["meld"][turn["emotion"]] for turn in turns_of(corpus["train"]))
    assert (train["neutral"], train["joy"], train["fear"]) == (4710, 1743, 268)


@pytest.mark.shared
def test_real_clips_are_the_sound_of_their_turns(shared_dir, tmp_path):
    folder = tmp_path / "MELD.Raw"
    clips = folder / CLIPS["test"]
    clips.mkdir(parents=True)
    for path in (shared_dir / "data" / "meld_raw").glob("*.csv"):
        (folder / path.name).symlink_to(path)
    seconds = {}
    for path in (shared_dir / "data" / "meld_clips").glob("*.wav"):
        (clips / path.name).symlink_to(path)
        seconds[f"test_{path.stem}"] = soundfile.info(path).duration
    turns = {turn["utterance_id"]: turn for turn in turns_of(build(folder, tmp_path)["test"]) if turn["audio"]}
    assert set(turns) == set(seconds) and len(seconds) == 4
    for name, turn in turns.items():
        assert turn["duration"] == pytest.approx(seconds[name], abs=1e-3)
