"""Tables that cannot be read, or only in one way."""

import json

import pyarrow as pa
import pytest

from mister_e_hf import DialogueVectors
from mister_e_hf.base.errors import InputError
from support.vector_tables import LABEL2ID, LABELS, LENGTHS, TURNS, VECTORS, changed, cut, dialogues, vector_table


@pytest.mark.parametrize("column", ["dialogue_id", "utterance_ids", "labels", "scores"])
def test_missing_column_raises(column):
    with pytest.raises(ValueError, match=f"validation: the table has no column '{column}'"):
        DialogueVectors(vector_table(**{column: None}), LABEL2ID, score_column="scores", name="validation")


def test_a_missing_column_of_labels_or_scores_names_its_setting():
    for column, setting in {"labels": "label_column", "scores": "score_column"}.items():
        with pytest.raises(InputError, match=rf"Name another with {setting} \(corpus\.{setting} of a recipe\)"):
            DialogueVectors(vector_table(**{column: None}), LABEL2ID, score_column="scores")


WRONG_TABLES = {
    "unknown label": ({"labels": changed("labels", 5, "boredom")}, ["'d2'", "'labels'", "'boredom'", "anger"]),
    "unknown index": ({"labels": cut([0, 1, 2, 3, 0, 0, 0, 0])}, ["'d1'", "'labels'", "3"]),
    "negative index": ({"labels": cut([0, 1, -1, 1, 0, 0, 0, 0])}, ["'d0'", "'labels'", "-1"]),
    "real-valued labels": ({"labels": cut([0.5] * TURNS)}, ["'labels'", "real numbers"]),
    "nested labels": ({"labels": cut([[0]] * TURNS)}, ["'labels'", "per turn"]),
    "ragged widths": (
        {"text_features": pa.array(changed("text_features", 3, [1.0, 2.0]), type=VECTORS)},
        ["'d1'", "'text_features'", "[2, 4]"],
    ),
    "null entry": (
        {"speech_features": pa.array(changed("speech_features", 3, [1.0, 2.0, None, 4.0, 5.0]), type=VECTORS)},
        ["'d1'", "'speech_features'", "null"],
    ),
    "width 0": ({"text_features": pa.array(cut([[]] * TURNS), type=VECTORS)}, ["'d0'", "'text_features'", "width 0"]),
    "always null": (
        {"text_features": pa.array(cut([None] * TURNS), type=VECTORS)},
        ["'d0'", "'text_features'", "null at every turn"],
    ),
    "empty dialogue": (
        {"utterance_ids": [["a", "b", "c"], [], ["d"]]},
        ["'d1'", "utterance_ids", "no turns"],
    ),
    "null dialogue": ({"utterance_ids": [["a", "b", "c"], None, ["d"]]}, ["'d1'", "utterance_ids", "no turns"]),
    "no vectors": (
        {"speech_features": None, "text_features": None},
        ["no vectors", "speech_features", "text_features", "train.safetensors"],
    ),
    "labels too short": (
        {"labels": [["joy"] * 3, ["joy"], ["joy"] * 3]},
        ["'d2'", "'labels'", "4 turns", "3 entries"],
    ),
    "labels null": ({"labels": [["joy"] * 3, None, ["joy"] * 4]}, ["'d1'", "'labels'", "1 turns", "0 entries"]),
    "flags too long": ({"has_audio": [[True] * 3, [True] * 2, [True] * 4]}, ["'d1'", "'has_audio'", "2 entries"]),
    "vectors too short": (
        {"text_features": pa.array([[[1.0]] * 2, [[1.0]], [[1.0]] * 4], type=VECTORS)},
        ["'d0'", "'text_features'", "3 turns", "2 entries"],
    ),
    "one label per dialogue": ({"labels": ["joy"] * 3}, ["'labels'", "one list per dialogue", "string"]),
    "one id per dialogue": ({"utterance_ids": ["abc", "d", "efgh"]}, ["'utterance_ids'", "one list per dialogue"]),
    "one vector per dialogue": (
        {"text_features": [[1.0] * length for length in LENGTHS]},
        ["'text_features'", "a list of numbers per turn"],
    ),
    "vectors of strings": ({"text_features": cut([["a"]] * TURNS)}, ["'text_features'", "a list of numbers per turn"]),
    "flags as numbers": ({"has_text": cut([1] * TURNS)}, ["'has_text'", "true or false"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_invalid_table_raises(changes, words):
    with pytest.raises(ValueError) as error:
        dialogues(**changes)
    assert str(error.value).startswith("train: ")
    assert [word for word in words if word not in str(error.value)] == []


def test_empty_table_raises():
    with pytest.raises(ValueError, match="train: the table has no dialogues"):
        DialogueVectors(vector_table()[:0], LABEL2ID)


IDS = [f"d_{turn}" for turn in range(8)]


TABLES = {
    "a null dialogue": ({"dialogue_id": ["d0", None, "d2"]}, "'dialogue_id' is null in row 1"),
    "a dialogue of a truth value": ({"dialogue_id": [True, False, True]}, "'dialogue_id' must hold a name or number"),
    "a null turn": (
        {"utterance_ids": cut(["a", "b", None, *IDS[3:]])},
        "dialogue 'd0': 'utterance_ids' is null at turn 2",
    ),
    "a turn that is not a number": (
        {"utterance_ids": cut([0.0, 1.0, float("nan"), 3.0, 4.0, 5.0, 6.0, 7.0])},
        "is null at turn 2",
    ),
    "a turn twice": (
        {"utterance_ids": cut(["a", "b", "a", *IDS[3:]])},
        "dialogue 'd0': 'utterance_ids' has 'a' twice",
    ),
    "turns of lists": ({"utterance_ids": cut([[name] for name in IDS])}, "'utterance_ids' must hold a name or number"),
    "labels of truth values": (
        {"labels": cut([True, False] * 4)},
        "'labels' must hold a name or a class index per turn, not bool",
    ),
    "labels of bytes": (
        {"labels": cut([b"joy"] * 8)},
        "'labels' must hold a name or a class index per turn, not binary",
    ),
    "scores of words": (
        {"sentiment": cut(LABELS)},
        "'sentiment' must hold a number per turn, not string; name another score_column",
    ),
    "scores of truth values": ({"sentiment": cut([True] * 8)}, "'sentiment' must hold a number per turn, not bool"),
    "an infinite score": ({"sentiment": cut([0.0] * 7 + [float("inf")])}, "dialogue 'd2' has an infinite score"),
    "vectors of truth values": ({"text_features": cut([[True]] * 8)}, "'text_features' must hold a list of numbers"),
    "vectors of words": ({"text_features": cut([["1"]] * 8)}, "'text_features' must hold a list of numbers"),
    "another name": (
        {"speech_features": None, "speech_embeddings": cut([[1.0]] * 8)},
        "'speech_embeddings' is not read; rename it to 'speech_features'",
    ),
    "another case": (
        {"text_features": None, "Text_Features": cut([[1.0]] * 8)},
        "'Text_Features' is not read; rename it to 'text_features'",
    ),
    "one letter less": ({"text_features": None, "text_feature": cut([[1.0]] * 8)}, "'text_feature' is not read"),
    "a mask of another name": ({"has_speech": cut([True] * 8)}, "'has_speech' is not read; rename it to 'has_audio'"),
}


@pytest.mark.parametrize(("changes", "message"), TABLES.values(), ids=TABLES)
def test_invalid_column_raises(changes, message):
    table = vector_table(**changes)
    with pytest.raises(InputError, match="^train: ") as error:
        DialogueVectors(table, LABEL2ID, score_column="sentiment" if "sentiment" in changes else None)
    assert message in str(error.value)


def test_labels_by_category_and_by_index():
    category = pa.DictionaryArray.from_arrays(
        [LABEL2ID[label] for label in LABELS], pa.array(list(LABEL2ID), pa.string())
    )
    offsets = pa.array([0, 3, 4, 8], pa.int32())
    for labels in (pa.ListArray.from_arrays(offsets, category), cut([LABEL2ID[label] for label in LABELS])):
        assert dialogues(labels=labels).labels.tolist() == [LABEL2ID[label] for label in LABELS]


def test_repeated_column_raises():
    table = vector_table().append_column("labels", pa.array(cut(LABELS)))
    with pytest.raises(InputError, match="train: the table has two columns 'labels'"):
        DialogueVectors(table, LABEL2ID)


def test_class_index_without_a_name_raises(tmp_path):
    emotion = pa.array([0, 7], pa.int64())
    turns = pa.StructArray.from_arrays([pa.array(["a", "b"]), emotion], ["utterance_id", "emotion"])
    table = pa.table({"dialogue_id": ["d"], "utterances": pa.ListArray.from_arrays([0, 2], turns)})
    features = {"info": {"features": {"utterances": {"feature": {"emotion": {"names": ["joy", "anger"]}}}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    with pytest.raises(InputError, match="train: 'emotion' has the class index 7, but there are 2 names"):
        DialogueVectors(table, LABEL2ID)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("speach_features", "speech_features"), ("txt_features", "text_features"), ("Speech-Feature", "speech_features")],
)
def test_misspelt_column_of_vectors_raises(name, meant):
    with pytest.raises(InputError, match=f"column '{name}' is not read; rename it to '{meant}', or drop it"):
        dialogues(**{meant: None, name: cut([[1.0]] * 8)})


def test_ignored_vectors_are_warned_about(caplog):
    dialogues(gaze_features=cut([[1.0]] * 8), speakers=cut(["a"] * 8))
    assert (
        "train: the vectors in the columns gaze_features are not read" in caplog.text and "speakers" not in caplog.text
    )
