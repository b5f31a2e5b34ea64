"""CHERMA from its lists with features and from the repacked pickles, with the quirks of each."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf import Cherma
from mister_e_hf.base.errors import InputError
from support.corpus_contract import build_corpus, members, rows, turns, warnings
from support.small_releases import EMOTIONS, WORDS, frames, write_cherma, write_cherma_pickles, write_pickle

FIELDS = {
    "emotion": "video_label",
    "emotion_text": "txt_label",
    "emotion_speech": "audio_label",
    "emotion_visual": "visual_label",
}
PATTERN = r"(?P<dialogue>film\d+)_(?P<order>\d+)"


def read(folder: Path, tmp_path: Path, **settings):
    return build_corpus(Cherma, folder, tmp_path / "cache", **settings)


def items(folder: Path, stage: str) -> list[dict]:
    return json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))


def put(folder: Path, stage: str, content: object):
    (folder / f"{stage}.json").write_text(json.dumps(content), encoding="utf-8")


def test_four_labels_and_the_statistics_of_each_turn(tmp_path, caplog):
    folder = write_cherma(tmp_path / "CHERMA20230723_v2" / "CHERMA0723")
    for place in (folder, folder.parent):
        corpus = read(place, tmp_path)
        names = corpus["train"].features["utterances"].feature
        assert all(names[field].names == EMOTIONS for field in FIELDS)
        for stage, split in {"train": "train", "dev": "validation", "test": "test"}.items():
            for number, (item, row) in enumerate(zip(items(folder, stage), corpus[split], strict=True)):
                (turn,) = row["utterances"]
                assert item["audio_file"] == f"{turn['utterance_id']}.wav" == f"{row['dialogue_id']}.wav"
                assert {field: EMOTIONS[turn[field]] for field in FIELDS} == {
                    field: EMOTIONS[WORDS.index(item[key])] for field, key in FIELDS.items()
                }
                seed = ["train", "dev", "test"].index(stage) * 10 + number
                for modality, width in (("text", 8), ("speech", 6), ("visual", 4)):
                    real = frames(1, 4, width, seed)[0, :1]
                    expected = np.concatenate([real.mean(axis=0), real.std(axis=0)])
                    np.testing.assert_allclose(row[f"{modality}_features"][0], expected, rtol=1e-5)
    assert warnings(caplog) == []


def test_sentences_are_read_where_the_lists_have_them(tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    put(folder, "test", [item | {"text": " 你好 "} for item in items(folder, "test")])
    found = turns(read(folder, tmp_path))
    assert found["film3_1"]["text"] == "你好" and found["film1_2"]["text"] is None


def test_a_pattern_groups_utterances_and_no_context_crosses_splits(tmp_path, caplog):
    folder = write_cherma(tmp_path / "CHERMA0723")
    corpus = read(folder, tmp_path, group_pattern=PATTERN)
    found = {name: [turn["utterance_id"] for turn in dialogue] for name, dialogue in rows(corpus).items()}
    assert found == {
        "film1": ["film1_2", "film1_10"],
        "film2 (train)": ["film2_1"],
        "film2 (validation)": ["film2_2"],
        "film3": ["film3_1"],
    }
    assert members(corpus)["validation"] == {"film2 (validation)"}
    (message,) = warnings(caplog)
    assert message.startswith("CHERMA: 1 of 3 dialogues have turns in several splits")
    for pattern in (
        r"(?P<dialogue>nothing)(?P<order>x)",
        r"(?P<dialogue>film\d+)_(?P<order>x)?\d+",
        r"(?P<dialogue>x)?film(?P<order>.*)",
    ):
        whole = read(folder, tmp_path, group_pattern=pattern)
        assert all(len(dialogue) == 1 for dialogue in rows(whole).values())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is not a regular expression"), ("(.+)_(.+)", r"has the groups \[\]; expected dialogue and order")],
)
def test_wrong_patterns_raise(tmp_path, pattern, message):
    with pytest.raises(InputError, match=message):
        read(write_cherma(tmp_path / "CHERMA0723"), tmp_path, group_pattern=pattern)


class Runs:
    def __reduce__(self):
        return print, ("ran",)


DAMAGES = {
    "missing": (Path.unlink, "film2_1.npy' not found"),
    "empty": (lambda path: path.write_bytes(b""), "not an array of numbers"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "not an array of numbers"),
    "text": (lambda path: path.write_text("hello"), "not an array of numbers"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Runs())), "not an array of numbers"),
    "objects": (lambda path: np.save(path, np.array([Runs()]), allow_pickle=True), "not an array of numbers"),
    "words": (lambda path: np.save(path, np.array([["a"]])), "must hold an array of numbers, got <U1"),
    "many axes": (lambda path: np.save(path, np.zeros((2, 3, 4))), r"has the shape \(2, 3, 4\)"),
    "huge": (
        lambda path: path.write_bytes(
            path.read_bytes().replace(b"(4, 6), }" + 20 * b" ", b"(400000000, 6000000000), }   ")
        ),
        "not an array of numbers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_raise_or_are_kept_without(tmp_path, damage, caplog, capsys):
    folder = write_cherma(tmp_path / "CHERMA0723")
    change, message = DAMAGES[damage]
    change(folder / "audio/train/film2_1.npy")
    with pytest.raises((InputError, FileNotFoundError), match=message) as caught:
        read(folder, tmp_path)
    assert "film2_1.npy" in str(caught.value) and "bad_audio='missing'" in str(caught.value)
    corpus = read(folder, tmp_path, bad_audio="missing")
    assert corpus["train"]["has_audio"][:] == [[True], [True], [False]]
    assert corpus["train"]["speech_features"][2] == [None] and corpus["train"]["has_text"][2] == [True]
    assert warnings(caplog)[-1].startswith("CHERMA: 1 files of features are not usable; their turns are kept without")
    assert "ran" not in capsys.readouterr().out


def test_frames_with_an_axis_of_one_and_numbers_that_are_not_finite(tmp_path, caplog):
    folder = write_cherma(tmp_path / "CHERMA0723")
    values = np.array([[[1.0, 2.0, 0, 0, 0, np.nan], [3.0, -np.inf, 0, 0, 0, 1.0]]], dtype=np.float32)
    np.save(folder / "audio/test/film3_1.npy", values)
    corpus = read(folder, tmp_path)
    assert corpus["test"][0]["speech_features"][0] == [2, 2, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert warnings(caplog)[-1].startswith("CHERMA: 2 numbers in the speech features of 1 turns are not finite")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "test.json' must hold a list of utterances, got dict"),
        ([], "must hold a list of utterances"),
        ([{"video_file": "x.mp4"}], "test.json', item 0: expected an object with audio_file"),
        ([{"audio_file": "x.wav", "video_label": "高兴"}], r"item 0 \(x\) has no \['txt_label', 'audio_label'"),
        (
            [dict.fromkeys(FIELDS.values(), "开心") | {"audio_file": "x.wav"}],
            "unknown label '开心'; expected one of 愤怒",
        ),
        ([dict.fromkeys(FIELDS.values(), "高兴") | {"audio_file": "x.wav", "text": 3}], "text of x must be a string"),
    ],
)
def test_wrong_lists_are_named(tmp_path, content, message):
    folder = write_cherma(tmp_path / "CHERMA0723")
    put(folder, "test", content)
    with pytest.raises(InputError, match=message):
        read(folder, tmp_path)


def test_a_list_that_is_not_json_is_named(tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    (folder / "dev.json").write_text("[{")
    with pytest.raises(InputError, match="dev.json' is not JSON"):
        read(folder, tmp_path)


@pytest.mark.parametrize("other", ["valid.json", "dev-1.json"])
def test_two_lists_of_a_split_raise(tmp_path, other):
    folder = write_cherma(tmp_path / "CHERMA0723")
    shutil.copy(folder / "dev.json", folder / other)
    with pytest.raises(InputError, match=r"dev.*.json' and '.*.json' are both for the split validation; keep one"):
        read(folder, tmp_path)


def test_pickles_beside_the_lists_are_reported(tmp_path, caplog):
    folder = write_cherma_pickles(write_cherma(tmp_path / "CHERMA0723"))
    assert "text_features" in read(folder, tmp_path)["train"].features
    (message,) = {*warnings(caplog)}
    assert message.endswith("beside them are not: cherma_train.pkl, cherma_valid.pkl, cherma_test.pkl")


@pytest.mark.parametrize("name", ["x" * 5000, "", ".wav", "a\0b.wav", "half \ud83d.wav"])
def test_names_that_no_file_has_raise(tmp_path, name):
    folder = write_cherma(tmp_path / "CHERMA0723")
    put(folder, "test", [item | {"audio_file": name} for item in items(folder, "test")])
    with pytest.raises(InputError, match="test.json', item 0: audio_file '.*cannot be the name of a file"):
        read(folder, tmp_path)


@pytest.mark.parametrize(("stage", "name"), [("train", "film1_2"), ("test", "film3_1")])
def test_features_of_another_width_raise(tmp_path, stage, name):
    folder = write_cherma(tmp_path / "CHERMA0723")
    np.save(folder / f"audio/{stage}/{name}.npy", np.ones((3, 5), dtype=np.float32))
    with pytest.raises(InputError, match=r"vector of 1[02] speech features.* have 1[02]; all turns") as caught:
        read(folder, tmp_path)
    assert f"'{name}'" in str(caught.value)


def test_an_utterance_that_appears_twice_raises(tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    put(folder, "test", 2 * items(folder, "test"))
    with pytest.raises(InputError, match="'film3_1' has two turns"):
        read(folder, tmp_path)


def test_an_empty_label_is_null_and_an_english_one_is_known(tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    (item,) = items(folder, "test")
    put(folder, "test", [item | {"video_label": "", "txt_label": "surprise"}])
    turn = read(folder, tmp_path)["test"][0]["utterances"][0]
    assert turn["emotion"] is None and EMOTIONS[turn["emotion_text"]] == "surprise"


# Repacked


def test_repacked_pickles_have_sentences_and_the_label_of_all(tmp_path, caplog):
    folder = write_cherma_pickles(tmp_path / "CHERMA0723")
    for place in (folder, folder.parent):
        corpus = read(place, tmp_path)
        assert "text_features" not in corpus["train"].features
        for number, data in enumerate(corpus.values()):
            for index, row in enumerate(data):
                (turn,) = row["utterances"]
                assert turn["text"] == f"第{index}句" and turn["emotion"] == (number + index) % 7
                assert turn["emotion_text"] is None
                real = frames(1, 5, 6, number)[0, :1]
                np.testing.assert_allclose(row["speech_features"][0], [*real[0], *[0] * 6], rtol=1e-6)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "cherma_test.pkl' must hold a list of utterances"),
        ([1], "item 0: expected a dictionary with features and label"),
        ([{"features": {}, "label": "高兴"}], "item 0: audio must hold an array of numbers, got None"),
        *(
            (
                [{"features": {"audio": np.zeros((1, 2)), "audio_len": length}, "label": "高兴"}],
                "audio_len must be a number",
            )
            for length in ("x", float("nan"), float("inf"), np.array([]), np.array(["x"]), np.array([1, 2]))
        ),
        (
            [{"features": {"audio": np.ones((1, 2)), "video": np.ones((1, 2)), "text": "好\ud83d"}, "label": "高兴"}],
            "CHERMA, test_00000 has half a character",
        ),
        ([{"features": {"audio": np.ones((1, 2)), "video": np.ones((1, 2))}, "label": "x"}], "unknown label 'x'"),
        ([Runs()], "it names '.*print'"),
    ],
)
def test_wrong_pickles_are_named(tmp_path, content, message):
    folder = write_cherma_pickles(tmp_path / "CHERMA0723")
    write_pickle(folder / "cherma_test.pkl", content)
    with pytest.raises(InputError, match=message):
        read(folder, tmp_path)


def test_no_folder_says_where_to_get_it():
    with pytest.raises(FileNotFoundError, match="CHERMA is not downloaded"):
        Cherma()
