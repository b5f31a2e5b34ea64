"""Video of turns: read and checked by builders, named by own tables, stored in a corpus folder, pushed."""

import csv
import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from mister_e_hf import CmuMosi, DialogueFolder, Meld, load_audio
from mister_e_hf.corpora.dialogues import corpus_fingerprint, load_dialogues
from mister_e_hf.corpora.publishing import _check_media_are_inside
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.corpora.turn_media import TurnMedia
from mister_e_hf.media.video import VideoError, encode_clip, has_sound, load_frames
from support.corpus_contract import build_corpus, turns, warnings
from support.small_corpora import LABELS, noise, write_calls, write_meld, write_mosi
from support.small_videos import RATE, clip, number_of, numbered, write_clip

pytest.importorskip("av")


def write_video(path: Path, seconds: float = 2.0, sound: bool = True, seed: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (noise(seconds, seed) / 70_000).astype(np.float32) if sound else None
    write_clip(path, [numbered(number) for number in range(round(25 * seconds))], sound=samples)


def write_table(folder: Path, rows: list[dict], name: str = "metadata.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """One video with sound that holds two turns, a clip without sound, and a turn of text."""
    write_video(tmp_path / "own" / "long.mp4")
    write_video(tmp_path / "own" / "mute.mp4", 0.4, sound=False)
    rows = [
        {"video": "long.mp4", "start": 0.4, "end": 1.2, "text": "One."},
        {"video": "long.mp4", "start": 1.2, "end": 2.0, "text": "Two."},
        {"video": "mute.mp4", "start": "", "end": "", "text": "Three."},
        {"video": "", "start": "", "end": "", "text": "Four."},
    ]
    shared = {"dialogue_id": "d", "emotion": "joy", "split": "train"}
    return write_table(tmp_path / "own", [row | {"order": order} | shared for order, row in enumerate(rows)])


def read(folder: Path, tmp_path: Path, builder=DialogueFolder, **settings) -> datasets.DatasetDict:
    return build_corpus(builder, folder, tmp_path / "cache", **settings)


# Own folders


def test_a_table_names_video_and_its_sound_comes_along(folder, tmp_path, caplog):
    one, two, mute, text = turns(read(folder, tmp_path)).values()
    for turn, first in ((one, 10), (two, 30)):
        assert turn["video"] == turn["audio"] == {"bytes": None, "path": str(folder / "long.mp4")}
        assert turn["duration"] == pytest.approx(0.8)
        assert len(load_audio(turn["audio"], start=turn["start"], end=turn["end"])) == round(0.8 * RATE)
        frames = load_frames(turn["video"], turn["start"], turn["end"], 4)
        assert [number_of(frame) for frame in frames] == [first + part for part in (2, 7, 12, 17)]
    assert mute["audio"] is None and mute["video"]["path"].endswith("mute.mp4")
    assert mute["duration"] == pytest.approx(0.4)  # of the picture
    assert text["audio"] is text["video"] is text["duration"] is None
    assert warnings(caplog) == []


def test_audio_and_video_may_be_two_files(folder, tmp_path):
    shutil.copy(write_calls(tmp_path / "calls") / "a.wav", folder / "a.wav")
    row = {"dialogue_id": "d", "order": 0, "video": "mute.mp4", "audio": "a.wav", "emotion": "joy"}
    write_table(folder, [row])
    (turn,) = turns(read(folder, tmp_path)).values()
    assert turn["audio"]["path"].endswith("a.wav") and turn["video"]["path"].endswith("mute.mp4")
    assert turn["duration"] == 1.0


def test_a_file_name_with_a_picture_is_both(folder, tmp_path):
    rows = [
        {"dialogue_id": "d", "order": order, "file_name": name} for order, name in enumerate(("long.mp4", "a.wav"))
    ]
    shutil.copy(write_calls(tmp_path / "calls") / "a.wav", folder / "a.wav")
    write_table(folder, rows)
    film, sound = turns(read(folder, tmp_path)).values()
    assert film["audio"] == film["video"] == {"bytes": None, "path": str(folder / "long.mp4")}
    assert sound["video"] is None and sound["audio"]["path"].endswith("a.wav")
    found = turns(read(folder, tmp_path, columns={"video": ""}))
    assert all(turn["video"] is None and turn["audio"] is not None for turn in found.values())


def test_a_film_with_subtitles_gives_its_picture(tmp_path):
    write_video(tmp_path / "films" / "call.mp4")
    cues = "1\n00:00:00,200 --> 00:00:01,000\nHello.\n\n2\n00:00:01,000 --> 00:00:01,800\nYes?\n"
    (tmp_path / "films" / "call.srt").write_text(cues)
    found = turns(read(tmp_path / "films", tmp_path))
    assert [turn["video"] == turn["audio"] and turn["video"] is not None for turn in found.values()] == [True, True]


def test_other_columns_of_that_name_are_left_alone(tmp_path, caplog):
    rows = [{"dialogue_id": "d", "order": order, "text": "Hm.", "video": order, "video_id": "x"} for order in range(2)]
    found = turns(read(write_table(tmp_path / "own", rows), tmp_path))
    assert all(turn["video"] is None for turn in found.values())
    assert any("['video', 'video_id'] are not used" in message for message in warnings(caplog))


def test_parquet_tables_may_hold_video(tmp_path):
    content = {"bytes": clip(20), "path": "x.mp4"}
    data = {"dialogue_id": ["d"], "order": [0], "text": ["Hm."], "video": [content]}
    (tmp_path / "own").mkdir()
    features = datasets.Features(
        dict.fromkeys(("dialogue_id", "text"), datasets.Value("string"))
        | {"order": datasets.Value("int64")}
        | {"video": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / "own" / "train.parquet")
    (turn,) = turns(read(tmp_path / "own", tmp_path)).values()
    assert turn["video"] == content and turn["audio"] is None


def test_a_turn_opens_its_clip_once_for_the_picture_and_once_for_the_sound(folder, monkeypatch):
    import av

    opened, real = [], av.open
    monkeypatch.setattr(
        av, "open", lambda file, *args, **settings: opened.append(file) or real(file, *args, **settings)
    )
    media = TurnMedia("own", "error", "error", 600.0)
    for name, openings, duration in (("long.mp4", 2, 2.0), ("mute.mp4", 1, 0.4)):
        opened.clear()
        turn = media.fields({"utterance_id": "u", "start": None, "end": None}, {"video": folder / name})
        assert (len(opened), turn["duration"]) == (openings, pytest.approx(duration, abs=0.1))


# Video that cannot be used


def sound_only(path: Path):
    samples = (noise(2.0) / 70_000).astype(np.float32)
    path.unlink()
    import av

    with av.open(str(path), "w") as file:
        track = file.add_stream("aac", rate=RATE)
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        for part in av.AudioResampler("fltp", "mono", RATE, frame_size=1024).resample(frame):
            file.mux(track.encode(part))
        file.mux(track.encode(None))


DAMAGES = {
    "gone": (Path.unlink, "not found"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is damaged"),
    "without picture": (sound_only, "has no picture"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_video_raises_or_is_left_out(folder, tmp_path, caplog, damage):
    change, message = DAMAGES[damage]
    change(folder / "long.mp4")
    texts = []
    for processes in (None, 2):
        with pytest.raises(VideoError, match=message) as caught:
            read(folder, tmp_path, num_proc=processes)
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and texts[0].startswith("Dialogue folder, turn d_0: ")
    assert "bad_video='missing'" in texts[0] and "long.mp4" in texts[0]
    one, two, mute, _ = turns(read(folder, tmp_path, bad_video="missing")).values()
    assert one["video"] is two["video"] is None and mute["video"] is not None
    assert (one["audio"] is not None) == (damage == "without picture")  # its sound is kept
    assert any("2 turns have no usable video and are kept without it" in text for text in warnings(caplog))


def test_a_turn_beyond_the_end_of_the_video_raises(folder, tmp_path):
    write_table(folder, [{"dialogue_id": "d", "order": 0, "video": "mute.mp4", "start": 0, "end": 3}])
    with pytest.raises(VideoError, match=r"turn d_0: '.*mute.mp4' lasts 0.40 s, but the requested part ends at 3 s"):
        read(folder, tmp_path)


def test_wrong_settings_raise(folder, tmp_path):
    with pytest.raises(ValueError, match="bad_video must be 'error' or 'missing', got 'skip'"):
        read(folder, tmp_path, bad_video="skip")


def test_a_changed_video_is_read_again(folder, tmp_path):
    read(folder, tmp_path)
    (folder / "mute.mp4").unlink()
    with pytest.raises(VideoError, match="not found"):
        read(folder, tmp_path)


# Published corpora


def test_meld_gives_the_picture_of_its_clips(tmp_path, caplog):
    folder = write_meld(tmp_path / "MELD")
    for place in ("train_splits", "dev_splits_complete", "output_repeated_splits_test"):
        write_video(folder / place / "dia0_utt0.mp4", 0.4)
        write_video(folder / place / "dia0_utt1.mp4", 0.4)
    (folder / "dev_splits_complete" / "dia0_utt1.mp4").unlink()
    found = turns(read(folder, tmp_path, Meld))
    assert found["train_dia0_utt0"]["audio"]["path"].endswith("dia0_utt0.wav")  # the fastest to decode
    assert found["train_dia0_utt0"]["video"]["path"].endswith("train_splits/dia0_utt0.mp4")
    assert found["dev_dia0_utt1"]["video"] is None
    assert any("1 turns have no usable video" in message for message in warnings(caplog))
    for path in folder.rglob("*.wav"):
        path.unlink()
    found = turns(read(folder, tmp_path, Meld))
    assert found["test_dia0_utt1"]["audio"] == found["test_dia0_utt1"]["video"] != None  # noqa: E711


def test_mosi_gives_the_picture_of_its_clips(tmp_path):
    folder = write_mosi(tmp_path / "MOSI")
    write_video(folder / "v1" / "2.mp4", 0.4)
    found = turns(read(folder, tmp_path, CmuMosi))
    assert found["v1_2"]["video"]["path"] == str(folder / "v1" / "2.mp4") and found["v1_1"]["video"] is None
    assert found["v1_2"]["audio"]["path"].endswith("2.wav")


# Corpus folders


def test_embedded_video_is_cut_and_without_sound(folder, tmp_path):
    corpus = read(folder, tmp_path)
    with pytest.raises(ValueError, match=r"refers to (audio|video) files of this machine.*embed_audio=True"):
        _check_media_are_inside(write_corpus(corpus, tmp_path / "paths") / "train.parquet")
    kept = load_dialogues(write_corpus(corpus, tmp_path / "kept", embed_audio=True))
    _check_media_are_inside(tmp_path / "kept" / "train.parquet")
    assert "its picture alone, cut to the turn" in (tmp_path / "kept" / "README.md").read_text()
    shutil.rmtree(folder)
    one, two, mute, text = turns(kept).values()
    for turn, first in ((one, 10), (two, 30)):
        assert turn["start"] is turn["end"] is None and turn["video"]["path"].endswith(".mp4")
        assert not has_sound(turn["video"]) and len(load_audio(turn["audio"])) == round(0.8 * RATE)
        frames = load_frames(turn["video"], num_frames=4)
        assert [number_of(frame) for frame in frames] == [first + part for part in (2, 7, 12, 17)]
    assert mute["audio"] is None and number_of(load_frames(mute["video"], num_frames=1)[0]) == 5
    assert text["audio"] is text["video"] is None


def test_a_cut_clip_keeps_times_and_directions():
    video = io.BytesIO()
    picture = np.zeros((32, 64, 3), dtype=np.uint8)
    picture[:16, :32] = 255
    write_clip(video, [picture] * 30, codec="libx264", rotation=90)
    (frame,) = load_frames(encode_clip(video.getvalue(), 0.3, 0.9), num_frames=1)
    assert frame.shape == (64, 32, 3) and frame[40:60, 4:12].min() > 200 and frame[:28].max() < 50
    for container in ("avi", "matroska", "webm"):
        part = encode_clip(clip(75, container=container), 1.11, 2.3)
        assert [number_of(frame) for frame in load_frames(part, 0.0, 1.1, 5)] == [30, 36, 41, 47, 52], container


def test_corpora_without_the_column_are_read_as_before(tmp_path):
    folder = write_calls(tmp_path / "calls")
    corpus = read(folder, tmp_path, labels=LABELS)
    written = write_corpus(corpus, tmp_path / "new")
    for path in written.glob("*.parquet"):
        data = datasets.Dataset.from_parquet(str(path))
        old = {name: feature for name, feature in data.features["utterances"].feature.items() if name != "video"}
        rows = [
            row | {"utterances": [{name: turn[name] for name in old} for turn in row["utterances"]]} for row in data
        ]
        features = datasets.Features(data.features | {"utterances": datasets.List(old)})
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    before, now = load_dialogues(written), load_dialogues(write_corpus(corpus, tmp_path / "again"))
    for split, data in before.items():
        assert "video" not in data.features["utterances"].feature
        assert corpus_fingerprint(data) == corpus_fingerprint(now[split])
    again = load_dialogues(write_corpus(before, tmp_path / "old again", embed_audio=True))
    assert [len(data) for data in again.values()] == [len(data) for data in before.values()]
