"""CH-SIMS v2 from its table and clips and from its features, with the quirks of each."""

from pathlib import Path

import numpy as np
import pytest

from mister_e_hf import ChSimsV2
from mister_e_hf.base.errors import InputError
from mister_e_hf.media.video import VideoError, load_frames
from support.corpus_contract import build_corpus, members, rows, turns, warnings
from support.small_corpora import noise
from support.small_releases import CUT, SIMS, features_of, write_pickle, write_rows, write_sims, write_sound
from support.small_videos import plain, write_clip

PICTURES = [plain((200, 20, 20))] * 12
PARTS = ("sentiment_text", "sentiment_speech", "sentiment_visual")


def read(folder: Path, tmp_path: Path, **settings):
    return build_corpus(ChSimsV2, folder, tmp_path / "cache", **settings)


@pytest.mark.parametrize("name", ["meta.csv", "meta(s).csv", "label.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_scores_of_each_modality_are_kept(tmp_path, name, encoding, caplog):
    folder = write_sims(tmp_path / "ch-simsv2s", name, encoding)
    write_sound(folder / "Raw" / "video_0001" / "0099.wav", 0.25)  # a clip without a row is normal
    found = turns(read(folder, tmp_path, bad_audio="error"))
    assert len(found) == len(SIMS)
    for video, clip, text, scores, _ in SIMS:
        turn = found[f"{video}_{clip}"]
        assert (turn["text"], turn["sentiment"], *(turn[part] for part in PARTS)) == (text, *scores)
        assert turn["audio"]["path"] == str(folder / "Raw" / video / f"{clip}.wav")
    assert warnings(caplog) == []


def test_clips_are_in_order_of_their_numbers(tmp_path):
    folder = write_sims(tmp_path / "ch-simsv2s")
    found = rows(read(folder, tmp_path))
    assert [turn["utterance_id"] for turn in found["aqgy3_0001"]] == ["aqgy3_0001_00002", "aqgy3_0001_00010"]


@pytest.mark.parametrize(
    ("score", "emotion"),
    [
        *[(-1.0, "negative"), (-0.2, "negative"), (-0.1, "negative"), (-0.0999, "neutral"), (0.0, "neutral")],
        *[(0.1, "neutral"), (0.1001, "positive"), (0.2, "positive"), (1.0, "positive"), ("", None)],
    ],
)
def test_classes_have_the_edges_of_three_class_accuracy(tmp_path, score, emotion):
    row = {"video_id": "v", "clip_id": "0001", "text": "好", "label": score, "mode": "train", "annotation": "Positive"}
    write_rows(tmp_path / "sims" / "meta.csv", list(row), [row])
    assert turns(read(tmp_path / "sims", tmp_path))["v_0001"]["emotion"] == emotion


def test_no_context_crosses_splits(tmp_path, caplog):
    clips = [*SIMS, CUT]
    corpora = [
        read(write_sims(tmp_path / "table", clips=clips), tmp_path),
        read(write_pickle(tmp_path / "features.pkl", features_of(clips)), tmp_path),
    ]
    splits = {f"{video}_{clip}": split for video, clip, *_, split in clips}
    for corpus in corpora:
        assert members(corpus)["train"] == {"aqgy3_0001 (train)", "video_0001"}
        assert members(corpus)["test"] == {"test1", "aqgy3_0001 (test)"}
        for split, data in corpus.items():
            for row in data:
                assert {splits[turn["utterance_id"]] for turn in row["utterances"]} == {split}
        found = [turn["utterance_id"] for dialogue in rows(corpus).values() for turn in dialogue]
        assert sorted(found) == sorted(splits)
    message = "CH-SIMS v2: 1 of 4 dialogues have turns in several splits and are cut into one for each: aqgy3_0001"
    assert warnings(caplog) == [message, message]


def test_the_unsupervised_part_is_read_alone(tmp_path):
    folder = tmp_path / "ch-simsv2u"
    table = [
        {"video_id": "aqgy1_0001", "clip_id": f"{number:05}", "text": "嗯", "mode": mode}
        for number, mode in enumerate(("train", "", "unsupervised"))
    ]
    write_rows(folder / "meta(u).csv", ["video_id", "clip_id", "text", "label", "label_T", "mode"], table)
    corpus = read(folder, tmp_path)
    assert list(corpus) == ["train"] and len(corpus["train"][0]["utterances"]) == 3
    assert all(turn["emotion"] is turn["sentiment"] is None for turn in turns(corpus).values())
    write_sims(tmp_path / "ch-simsv2s", "meta(s).csv")
    assert set(turns(read(tmp_path, tmp_path / "other"))) == {f"{video}_{clip}" for video, clip, *_ in SIMS}


@pytest.mark.parametrize("score", ["-1.6", "-0_1"])
def test_what_is_not_a_score_is_named(tmp_path, score):
    folder = write_sims(tmp_path / "sims")
    path = folder / "meta.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("-0.6", score), encoding="utf-8")
    with pytest.raises(InputError, match=f"row 2, label_A: score {score} is not a number from -1 to 1"):
        read(folder, tmp_path)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "gb2312"])
def test_a_table_in_an_old_chinese_encoding_is_read_and_said(tmp_path, encoding, caplog):
    folder = write_sims(tmp_path / "sims", encoding=encoding)
    found = turns(read(folder, tmp_path))
    assert [found[f"{video}_{clip}"]["text"] for video, clip, *_ in SIMS] == [text for _, _, text, *_ in SIMS]
    assert {message for message in warnings(caplog)} == {
        f"'{folder / 'meta.csv'}' is not valid UTF-8 and is read as GB18030. If this line is wrong, the file is in "
        "another encoding; save it as UTF-8: aqgy3_0001,00010,我不知道。,-0.8,-0.2,-0.6,-1.0,Neutral,train"
    }


def test_a_table_in_another_encoding_raises(tmp_path):
    folder = write_sims(tmp_path / "sims")
    path = folder / "meta.csv"
    path.write_bytes(path.read_bytes().replace("我不知道。".encode(), b"Priv\xe9t\xff, "))
    with pytest.raises(InputError, match=r"meta.csv', line 2.* is not valid UTF-8|neither in UTF-8 nor in GB18030"):
        read(folder, tmp_path)


def test_features_of_another_width_in_a_split_raise(tmp_path):
    content = features_of(SIMS)
    content["test"]["audio"] = content["test"]["audio"][..., :-1]
    with pytest.raises(InputError, match="'test1': a vector of 6 speech features, but those of dialogue .* have 8"):
        read(write_pickle(tmp_path / "ch-simsv2s.pkl", content), tmp_path)


def test_features_keep_the_scores_of_each_modality(tmp_path):
    corpus = read(write_pickle(tmp_path / "ch-simsv2s.pkl", features_of(SIMS) | {"train_mix": {}}), tmp_path)
    found = turns(corpus)
    for video, clip, text, scores, _ in SIMS:
        turn = found[f"{video}_{clip}"]
        assert (turn["text"], turn["sentiment"], *(turn[part] for part in PARTS)) == (text, *scores)
    for data in corpus.values():
        for row in data:
            assert [len(np.array(row[f"{name}_features"]).T) for name in ("speech", "text", "visual")] == [8, 16, 4]


def test_a_split_that_is_not_known_is_left_out_and_said(tmp_path, caplog):
    read(write_pickle(tmp_path / "ch-simsv2s.pkl", features_of(SIMS) | {"train_mix": {}}), tmp_path)
    assert [message for message in warnings(caplog) if "'train_mix' is not train, valid or test" in message]


def test_no_folder_says_where_to_get_it():
    with pytest.raises(FileNotFoundError, match="CH-SIMS v2 is not downloaded"):
        ChSimsV2()


def test_clips_give_picture_and_sound(tmp_path, caplog):
    folder = write_sims(tmp_path / "ch-simsv2s", sounds=False)
    for number, (video, clip, *_) in enumerate(SIMS):
        path = folder / "Raw" / video / f"{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, PICTURES, sound=None if number == 0 else noise(0.5) / 65536)
    write_sound(folder / "Raw" / "video_0001" / "0001.wav", 0.25)  # is the sound of its clip
    found = turns(read(folder, tmp_path, bad_audio="error", bad_video="error"))
    for number, (video, clip, *_) in enumerate(SIMS):
        turn = found[f"{video}_{clip}"]
        path = folder / "Raw" / video / f"{clip}.mp4"
        assert turn["video"] == {"bytes": None, "path": str(path)}
        own = path.with_suffix(".wav") if video == "video_0001" else path
        assert turn["audio"] == (None if number == 0 else {"bytes": None, "path": str(own)})
        assert load_frames(turn["video"], num_frames=2).shape == (2, 32, 32, 3)
    assert warnings(caplog) == []


def test_missing_and_damaged_clips_are_kept_without_if_asked(tmp_path, caplog):
    folder = write_sims(tmp_path / "ch-simsv2s", sounds=False)
    for video, clip, *_ in SIMS[:-2]:
        path = folder / "Raw" / video / f"{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, PICTURES, sound=noise(0.5) / 65536)
    with pytest.raises(VideoError, match="test1/00001.mp4' not found, nor 1 others: 00002.mp4"):
        read(folder, tmp_path)
    (folder / "Raw/video_0001/0001.mp4").write_bytes(b"not a video")
    corpus = read(folder, tmp_path, bad_audio="missing", bad_video="missing")
    without = [name for name, turn in turns(corpus).items() if turn["video"] is None]
    assert sorted(without) == ["test1_00001", "test1_00002", "video_0001_0001"]
    assert all(turn["video"] or turn["audio"] is None for turn in turns(corpus).values())
    assert "CH-SIMS v2: 2 turns have no usable video and are kept without it" in "\n".join(warnings(caplog))
