"""CMU-MOSEI in MMSA's two layouts and in the raw release, with the quirks of each."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf import CmuMosei
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.mosei_release import EMOTIONS
from mister_e_hf.media.audio import AudioError
from mister_e_hf.media.video import VideoError, load_frames
from support.corpus_contract import build_corpus, members, rows, turns, warnings
from support.small_corpora import noise
from support.small_releases import (
    MOSEI,
    features_of,
    mosei_clips,
    segment_times,
    write_mosei_release,
    write_mosei_table,
    write_pickle,
    write_rows,
)
from support.small_videos import plain, write_clip

DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # of the hidden files that macOS leaves


def read(folder: Path, tmp_path: Path, **settings):
    return build_corpus(CmuMosei, folder, tmp_path / "cache", **settings)


def order(corpus) -> dict[str, list[str]]:
    return {name: [turn["utterance_id"] for turn in found] for name, found in rows(corpus).items()}


# The table of clips


def test_ids_and_clips_are_kept_as_they_stand(tmp_path):
    folder = write_mosei_table(tmp_path / "MOSEI")
    (folder / "Raw" / "100178" / "._3.wav").write_bytes(DOUBLE)
    corpus = read(folder, tmp_path)
    assert order(corpus) == {
        "-mJ2ud6oKI8": ["-mJ2ud6oKI8_0", "-mJ2ud6oKI8_2", "-mJ2ud6oKI8_10"],
        "100178": ["100178_3"],
        "x266rUJQC_8": ["x266rUJQC_8_0", "x266rUJQC_8_1"],
        "FcAgbLF6__s": ["FcAgbLF6__s_5"],
    }
    found = turns(corpus)
    for video, clip, text, score, _ in mosei_clips():
        turn = found[f"{video}_{clip}"]
        assert (turn["text"], turn["sentiment"], turn["speaker"]) == (text, score and float(score), video)
        assert turn["emotion"] == (None if score is None else "negative" if score < 0 else "non-negative")
        assert turn["audio"]["path"] == str(folder / "Raw" / video / f"{clip}.wav")
        assert all(turn[name] is None for name in EMOTIONS)


def test_a_padded_id_is_another_clip(tmp_path):
    folder = write_mosei_table(tmp_path / "MOSEI")
    sound = folder / "Raw" / "100178" / "3.wav"
    sound.rename(sound.with_name("03.wav"))
    with pytest.raises(AudioError, match="100178/3.wav' not found"):
        read(folder, tmp_path, bad_audio="error")
    assert turns(read(folder, tmp_path, bad_audio="missing"))["100178_3"]["audio"] is None


def test_table_without_the_labels_of_parts_and_with_other_words_for_the_split(tmp_path):
    columns = ["mode", "label", "text", "clip_id", "video_id"]
    rows_ = [
        {"mode": mode, "label": "-1.5", "text": "NO, IT IS NOT", "clip_id": str(number), "video_id": f"v{number}"}
        for number, mode in enumerate(("Train", "validation", "TEST"))
    ]
    write_rows(tmp_path / "MOSEI" / "label.csv", columns, rows_, encoding="utf-8-sig")
    corpus = read(tmp_path / "MOSEI", tmp_path)
    assert members(corpus) == {"train": {"v0"}, "validation": {"v1"}, "test": {"v2"}}
    assert turns(corpus)["v0_0"]["text"] == "NO, IT IS NOT"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "3.4"}, "label.csv', row 2, label: score 3.4 is not a number from -3 to 3"),
        ({"label": "good"}, "label: score good is not a number"),
        ({"label_T": "inf"}, "label_T: score inf is not a number"),
        ({"mode": "dev2"}, "row 2: unknown mode 'dev2'; expected train, valid or test"),
        ({"video_id": ""}, "row 2: video_id None, clip_id '1'"),
        ({"video_id": "v2", "clip_id": "2"}, "row 3: clip 2 of video v2 appears twice"),
    ],
)
def test_wrong_cells_are_named(tmp_path, change, message):
    row = {"video_id": "v", "clip_id": "1", "text": "Yes.", "label": "1", "mode": "train"}
    other = row | {"video_id": "v2", "clip_id": "2"}
    write_rows(tmp_path / "MOSEI" / "label.csv", [*row, "label_T"], [row | change, other])
    with pytest.raises(InputError, match=message):
        read(tmp_path / "MOSEI", tmp_path)


def test_a_missing_column_is_named(tmp_path):
    write_rows(tmp_path / "MOSEI" / "label.csv", ["video_id", "clip_id", "text", "mode"], [{"video_id": "v"}])
    with pytest.raises(InputError, match=r"label.csv' has no column \['label'\]"):
        read(tmp_path / "MOSEI", tmp_path)


def test_no_context_crosses_splits(tmp_path, caplog):
    columns = ["video_id", "clip_id", "text", "label", "mode"]
    modes = ["train", "train", "test", "valid", "train", "test"]
    clips = [(str(number), mode) for number, mode in enumerate(modes)]
    table = [{"video_id": "v", "clip_id": clip, "text": clip, "label": 1, "mode": mode} for clip, mode in clips]
    table.append(table[0] | {"video_id": "w"})
    write_rows(tmp_path / "MOSEI" / "label.csv", columns, table)
    corpus = read(tmp_path / "MOSEI", tmp_path)
    assert order(corpus) == {
        "v (train)": ["v_0", "v_1", "v_4"],
        "w": ["w_0"],
        "v (validation)": ["v_3"],
        "v (test)": ["v_2", "v_5"],
    }
    splits = {"validation": "valid"}
    for split, data in corpus.items():
        for row in data:
            for turn in row["utterances"]:
                assert table[int(turn["text"])]["mode"] == splits.get(split, split)
    (_, message) = warnings(caplog)
    assert message == "CMU-MOSEI: 1 of 2 dialogues have turns in several splits and are cut into one for each: v"


# The pickle of features


@pytest.mark.parametrize("aligned", [True, False])
def test_each_turn_has_the_statistics_of_its_own_frames(tmp_path, aligned, caplog):
    content = features_of(mosei_clips(), aligned)
    path = write_pickle(tmp_path / "MOSEI" / "Processed" / "some_50.pkl", content)
    for place in (path, tmp_path / "MOSEI"):
        corpus = read(place, tmp_path)
        for mode, split in {"train": "train", "valid": "validation", "test": "test"}.items():
            ids = [identity.replace("$_$", "_") for identity in content[mode]["id"]]
            for row in corpus[split]:
                for position, turn in enumerate(row["utterances"]):
                    index = ids.index(turn["utterance_id"])
                    for modality, name, length in (
                        ("speech", "audio", 5),
                        ("visual", "vision", 3),
                        ("text", "text", 6),
                    ):
                        real = content[mode][name][index][: 1 + index % length]
                        expected = np.concatenate([real.mean(axis=0), real.std(axis=0)])
                        found = row[f"{modality}_features"][position]
                        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert warnings(caplog) == []
    assert order(corpus)["-mJ2ud6oKI8"] == ["-mJ2ud6oKI8_0", "-mJ2ud6oKI8_2", "-mJ2ud6oKI8_10"]


def test_a_turn_without_frames_and_numbers_that_are_not_finite(tmp_path, caplog):
    content = features_of(mosei_clips())
    content["train"]["vision"][1], content["train"]["vision_lengths"][1] = 0, 0
    content["test"]["audio"][0, 0, 0] = -np.inf
    corpus = read(write_pickle(tmp_path / "f.pkl", content), tmp_path)
    (row,) = [row for row in corpus["train"] if row["dialogue_id"] == "-mJ2ud6oKI8"]
    assert row["has_video"] == [True, False, True] and row["visual_features"][1] is None
    assert np.isfinite(corpus["test"][0]["speech_features"]).all()
    speech, visual = warnings(caplog)
    assert speech.startswith("CMU-MOSEI: 1 numbers in the speech features of 1 turns are not finite")
    assert visual == "CMU-MOSEI: 1 turns of 7 have no visual features"


def test_folder_with_clips_and_pickles_is_read_from_its_clips(tmp_path):
    folder = write_mosei_table(tmp_path / "MOSEI")
    path = write_pickle(folder / "Processed" / "aligned_50.pkl", features_of(mosei_clips()))
    assert "speech_features" not in read(folder, tmp_path)["train"].features
    assert "speech_features" in read(path, tmp_path)["train"].features


def test_several_pickles_must_be_chosen_from(tmp_path):
    folder = write_mosei_table(tmp_path / "MOSEI", sounds=False)
    for name in ("aligned_50.pkl", "unaligned_50.pkl"):
        path = write_pickle(folder / "Processed" / name, features_of(mosei_clips()))
    with pytest.raises(InputError, match="several pickles: .*/aligned_50.pkl, .*/unaligned_50.pkl"):
        read(folder, tmp_path)
    path.unlink()
    assert "speech_features" in read(folder, tmp_path)["train"].features  # the table alone has no vectors


def without(name: str):
    return lambda content: content["valid"].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("id"), "f.pkl', valid: expected a dictionary with id and regression_labels, got .*'audio'"),
        (without("regression_labels"), "valid: expected a dictionary with id and regression_labels"),
        (lambda content: content.update(train=[1]), "train: expected a dictionary"),
        (lambda content: content["test"].update(audio=np.zeros((3, 2, 1))), "test: 3 of speech, but 1 ids"),
        (
            lambda content: content["test"].update(audio=np.zeros((1, 2))),
            r"audio must be .* \(n, L, D\), got \(1, 2\)",
        ),
        (lambda content: content["test"].update(vision=[[1.0]]), "vision must be an array of sequences .*, got list"),
        (lambda content: content["test"].update(vision_lengths=[1, 2]), "2 of lengths of visual, but 1 ids"),
        (
            lambda content: content["test"].update(vision_lengths=[np.nan]),
            "length of visual must be a number of frames",
        ),
        (lambda content: content["test"].update(vision_lengths=["1"]), "length of visual must be a number of frames"),
        (lambda content: content["test"].update(vision_lengths=1), "vision_lengths must be a list with an entry for"),
        (
            lambda content: content["test"].update(text_bert=np.full((1, 3, 6), np.nan)),
            "length of text must be a number",
        ),
        (lambda content: content["test"].update(raw_text=[]), "0 of raw_text, but 1 ids"),
        (
            lambda content: content["test"].update(raw_text=[b"x"]),
            "FcAgbLF6__s 5: the transcript must be text, got bytes",
        ),
        (lambda content: content["test"].update(raw_text=["\ud83d"]), "FcAgbLF6__s 5 has half a character"),
        (
            lambda content: content["test"].update(id=None),
            "test: id must be a list with an entry for each clip, got None",
        ),
        (lambda content: content["test"].update(id=[b"v$_$1"]), "the id of clip 0 must be text, got bytes"),
        (lambda content: content["test"].update(id=[["v", "1"]]), "the id of clip 0 must be text, got list"),
        (
            lambda content: content["test"].update(regression_labels=1.0),
            "regression_labels must be a list .* got float",
        ),
        (
            lambda content: content["test"].update(regression_labels=np.array(1.0)),
            "regression_labels must be a list with an entry for each clip, got ndarray",
        ),
        (
            lambda content: content["test"].update(regression_labels=np.array([3.5])),
            "test, FcAgbLF6__s 5, regression_labels: score 3.5 is not a number from -3 to 3",
        ),
        (lambda content: content.update({"test": content["test"], "train": Path("x")}), "it names 'pathlib"),
    ],
)
def test_wrong_pickles_are_named(tmp_path, change, message):
    content = features_of(mosei_clips())
    change(content)
    with pytest.raises(InputError, match=message):
        read(write_pickle(tmp_path / "f.pkl", content), tmp_path)


def test_a_modality_that_a_split_lacks_is_null_there(tmp_path):
    content = features_of(mosei_clips())
    content["test"].pop("vision")
    corpus = read(write_pickle(tmp_path / "f.pkl", content), tmp_path)
    assert corpus["test"][0]["visual_features"] == [None] and corpus["train"][0]["has_video"] == [True] * 3


def test_a_pickle_of_something_else_raises(tmp_path):
    for content, message in {"list": ([1], "holds list"), "keys": ({"a": 1}, "has the keys")}.values():
        with pytest.raises(InputError, match=message):
            read(write_pickle(tmp_path / "f.pkl", content), tmp_path)


def test_an_id_without_a_clip_is_a_video_of_its_own(tmp_path):
    content = features_of(mosei_clips())
    content["test"]["id"] = np.array(["alone"])
    assert order(read(write_pickle(tmp_path / "f.pkl", content), tmp_path))["alone"] == ["alone"]


# The raw release


def test_segments_of_the_release_by_time(tmp_path, caplog):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI", first=-0.12)
    corpus = read(folder, tmp_path, bad_audio="error")
    assert order(corpus)["-mJ2ud6oKI8"] == ["-mJ2ud6oKI8_10", "-mJ2ud6oKI8_2", "-mJ2ud6oKI8_0"]
    found = turns(corpus)
    for videos in MOSEI.values():
        for video, clips in videos.items():
            for index, (clip, text, score) in enumerate(clips):
                turn = found[f"{video}_{clip}"]
                start, end = segment_times(index)
                assert (turn["text"], turn["start"], turn["end"]) == (text, start, end)
                assert turn["duration"] == end - start
                assert Path(turn["audio"]["path"]).name == f"{video}.wav"
                if score is None:
                    assert turn["sentiment"] is turn["emotion"] is turn["happy"] is None
                else:  # the mean over three annotators, two of whom left the cell of fear empty
                    assert turn["sentiment"] == pytest.approx(score)
                    emotions = {"happy": 3, "sad": 0, "anger": 0, "surprise": 1, "disgust": 1, "fear": 3}
                    assert {name: turn[name] for name in EMOTIONS} == emotions
    assert warnings(caplog) == ["CMU-MOSEI: 4 negative starts, which are read as 0"]


def test_labels_of_s3prl_are_joined_by_times(tmp_path, caplog):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI", labels="s3prl", first=-0.12)
    found = turns(read(folder, tmp_path))
    for video, clip, _, score, _ in mosei_clips():
        whole = None if score is None else np.sign(score) * np.ceil(abs(score))
        assert found[f"{video}_{clip}"]["sentiment"] == whole
    assert warnings(caplog)[0] == "CMU-MOSEI: the scores are whole numbers, label7 of s3prl's CMU_MOSEI_Labels.csv"


def transcript(folder: Path, video: str) -> Path:
    return folder / "Raw/Transcript/Segmented/Combined" / f"{video}.txt"


def test_broken_transcripts_are_left_out_and_counted(tmp_path, caplog):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI")
    path = transcript(folder, "100178")
    path.write_text(
        path.read_text() + "\n100178___4___1.0___0.5___too___ late_____ and\n100178___7___1.2___1.2___short\n"
        "b'\\x00\\x01'\n0.123 4.5\n100178___x___1___2___no number\nFcAgbLF6__s___9___1___2___of another video\n"
        "100178___9___nan___2___no time\n",
        encoding="utf-8",
    )
    (folder / "Raw/Transcript/Segmented/Combined/not_in_a_fold.txt").write_text("not_in_a_fold___0___0.0___1.0___Hm\n")
    (path.parent / f"._{path.name}").write_bytes(DOUBLE)
    corpus = read(folder, tmp_path)
    assert order(corpus)["100178"] == ["100178_3", "100178_4", "100178_7"]
    turn = turns(corpus)["100178_4"]
    assert (turn["text"], turn["audio"], turn["start"]) == ("too___ late_____ and", None, None)
    assert warnings(caplog) == [
        "CMU-MOSEI: 5 lines of 1 transcripts are not VIDEO___CLIP___START___END___TEXT and are left out: 100178.txt",
        "CMU-MOSEI: 2 segments without a length, which have text only",
        "CMU-MOSEI: 1 videos are not in the folds and are left out: not_in_a_fold",
    ]


@pytest.mark.parametrize("labels", ["annotators", "s3prl"])
def test_labels_without_a_segment_are_counted(tmp_path, labels, caplog):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI", labels)
    path = transcript(folder, "-mJ2ud6oKI8")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "___2___" not in line))
    assert len(rows(read(folder, tmp_path))["-mJ2ud6oKI8"]) == 2
    message = "CMU-MOSEI: 1 labels of 1 videos have no segment in the transcripts and are left out: -mJ2ud6oKI8"
    assert warnings(caplog)[-1] == message


def test_a_clip_that_appears_twice_raises(tmp_path):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI")
    path = transcript(folder, "100178")
    path.write_text(2 * path.read_text())
    with pytest.raises(InputError, match="100178.txt' has two lines of clip 3"):
        read(folder, tmp_path)


def test_release_without_folds_labels_or_recordings(tmp_path, caplog):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI")
    for path in (folder / "Raw/Audio/Full/WAV_16000").iterdir():
        path.unlink()
    found = turns(read(folder, tmp_path))
    assert all(turn["audio"] is turn["start"] is None for turn in found.values())
    assert "no recordings in" in warnings(caplog)[0]
    folds = folder / "cmu_mosei_std_folds.py"
    content = folds.read_text()
    folds.unlink()
    with pytest.raises(FileNotFoundError, match="has no folds. Put cmu_mosei_std_folds.py"):
        read(folder, tmp_path)
    folds.write_text(content.replace("['FcAgbLF6__s']", "__import__('os').listdir()"))
    with pytest.raises(InputError, match="cmu_mosei_std_folds.py' is not the SDK's file of folds"):
        read(folder, tmp_path)
    folds.write_text("standard_train_fold = []\n")
    with pytest.raises(InputError, match="has the lists .*; expected"):
        read(folder, tmp_path)
    folds.write_text(content)
    for path in (folder / "Raw/Labels").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no labels: neither .* A .csd file is not read"):
        read(folder, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-3.0", "-3.5", "row 5, Answer.sentiment: score -3.5 is not a number from -3 to 3"),
        (",A1,", ",A1,", None),
        ("10,A0", "ten,A0", "row 2: Input.VIDEO_ID '-mJ2ud6oKI8', Input.CLIP 'ten'"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, old, new, message):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI")
    path = folder / "Raw/Labels/mturk_extra_v2.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    if message is None:
        return
    with pytest.raises(InputError, match=message):
        read(folder, tmp_path)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ("5", "standard_test_fold must be a list of video ids, got 5"),
        ("'FcAgbLF6__s'", "standard_test_fold must be a list of video ids"),
        ("['FcAgbLF6__s', '100178']", "video 100178 is in train and in test"),
    ],
)
def test_wrong_folds_are_named(tmp_path, videos, message):
    folder = write_mosei_release(tmp_path / "MOSEI")
    path = folder / "cmu_mosei_std_folds.py"
    text = path.read_text(encoding="utf-8").replace(
        "standard_test_fold = ['FcAgbLF6__s']", f"standard_test_fold = {videos}"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read(folder, tmp_path)


def test_no_folder_says_where_to_get_it():
    with pytest.raises(FileNotFoundError, match="CMU-MOSEI is not downloaded"):
        CmuMosei()


def test_whole_recordings_of_the_release_give_picture_and_sound_of_each_segment(tmp_path):
    folder = write_mosei_release(tmp_path / "CMU_MOSEI")
    place = folder / "Raw/Videos/Full/Combined"
    place.mkdir(parents=True)
    for video in (video for videos in MOSEI.values() for video in videos):
        # Blue until 0.5 s, then red.
        pictures = [plain((0, 0, 255))] * 12 + [plain((255, 0, 0))] * 38
        write_clip(place / f"{video}.mp4", pictures, sound=noise(2.0) / 65536)
    whole = turns(read(folder, tmp_path, bad_audio="error", bad_video="error"))
    shutil.rmtree(folder / "Raw/Audio")
    alone = turns(read(folder, tmp_path, bad_audio="error", bad_video="error"))
    for found, suffix in ((whole, "wav"), (alone, "mp4")):
        turn = found["-mJ2ud6oKI8_2"]
        assert (turn["start"], turn["end"]) == (0.5, 1.25)
        assert Path(turn["audio"]["path"]).name == f"-mJ2ud6oKI8.{suffix}"
        (picture,) = load_frames(turn["video"], turn["start"], turn["end"], 1)
        assert picture[..., 0].mean() > 200 and picture[..., 2].mean() < 50
    (place / "100178.mp4").unlink()
    with pytest.raises(VideoError, match="turn 100178_3: Video file '.*100178.mp4' not found"):
        read(folder, tmp_path)
    assert turns(read(folder, tmp_path, bad_video="missing"))["100178_3"]["video"] is None
