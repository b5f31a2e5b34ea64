"""Tables and stores of vectors that say two things, none, or are damaged."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mister_e_hf import DialogueVectors, read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.vectors.corpus_labels import corpus_labels
from mister_e_hf.vectors.store import holds_vectors
from vectors.test_store import LABEL2ID, LABELS, bare_table, cut, dialogues, tensors, vector_table, write_corpus
from vectors.test_store import write_safetensors as safetensors

IDS = [f"d_{turn}" for turn in range(8)]
TABLES = {
    "a null dialogue": ({"dialogue_id": ["d0", None, "d2"]}, "'dialogue_id' is null in row 1"),
    "a dialogue of a truth value": ({"dialogue_id": [True, False, True]}, "'dialogue_id' must hold a name or number"),
    "a null turn": ({"utterance_ids": cut(["a", "b", None, *IDS[3:]])}, "dialogue 'd0': 'utterance_ids' is null at turn 2"),
    "a turn that is not a number": ({"utterance_ids": cut([0.0, 1.0, float("nan"), 3.0, 4.0, 5.0, 6.0, 7.0])}, "is null at turn 2"),
    "a turn twice": ({"utterance_ids": cut(["a", "b", "a", *IDS[3:]])}, "dialogue 'd0': 'utterance_ids' has 'a' twice"),
    "turns of lists": ({"utterance_ids": cut([[name] for name in IDS])}, "'utterance_ids' must hold a name or number"),
    "labels of truth values": ({"labels": cut([True, False] * 4)}, "'labels' must hold a name or a class index per turn, not bool"),
    "labels of bytes": ({"labels": cut([b"joy"] * 8)}, "'labels' must hold a name or a class index per turn, not binary"),
    "scores of words": ({"sentiment": cut(LABELS)}, "'sentiment' must hold a number per turn, not string; name another score_column"),
    "scores of truth values": ({"sentiment": cut([True] * 8)}, "'sentiment' must hold a number per turn, not bool"),
    "an infinite score": ({"sentiment": cut([0.0] * 7 + [float("inf")])}, "dialogue 'd2' has an infinite score"),
    "vectors of truth values": ({"text_features": cut([[True]] * 8)}, "'text_features' must hold a list of numbers"),
    "vectors of words": ({"text_features": cut([["1"]] * 8)}, "'text_features' must hold a list of numbers"),
    "another name": ({"speech_features": None, "speech_embeddings": cut([[1.0]] * 8)}, "'speech_embeddings' is not read; rename it to 'speech_features'"),
    "another case": ({"text_features": None, "Text_Features": cut([[1.0]] * 8)}, "'Text_Features' is not read; rename it to 'text_features'"),
    "one letter less": ({"text_features": None, "text_feature": cut([[1.0]] * 8)}, "'text_feature' is not read"),
    "a mask of another name": ({"has_speech": cut([True] * 8)}, "'has_speech' is not read; rename it to 'has_audio'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), TABLES.values(), ids=TABLES)
def test_what_a_table_cannot_mean_is_refused(changes, message):
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


def test_a_column_twice_is_refused():
    table = vector_table().append_column("labels", pa.array(cut(LABELS)))
    with pytest.raises(InputError, match="train: the table has two columns 'labels'"):
        DialogueVectors(table, LABEL2ID)


def test_vectors_in_the_table_and_beside_it_are_given_twice(tmp_path):
    write_corpus(tmp_path, safetensors)
    pq.write_table(vector_table("train"), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="train: speech_features are given twice"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("value", [1e300, -1e39, float("inf")])
def test_doubles_beyond_float32_are_refused(value):
    given = cut([[value, 1.0]] + [[0.5, 1.0]] * 7)
    data = dialogues(speech_features=pa.array(given, pa.list_(pa.list_(pa.float64()))))
    with pytest.raises(
        InputError, match="utterance 'd_0' in dialogue 'd0' hold NaN, infinity or numbers beyond float32"
    ):
        data.check({"speech": 2, "text": 4})


@pytest.mark.parametrize("dtype", ["complex64", "bool", "float8_e4m3fn", "float8_e5m2"])
def test_tensors_that_are_not_real_numbers_are_refused(tmp_path, dtype):
    write_corpus(tmp_path, safetensors)
    given = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors().items()}
    save_file(given, tmp_path / "test.safetensors")
    message = f"speech_features must be real numbers of 16, 32 or 64 bits, such as float32; got {dtype}"
    with pytest.raises(InputError, match=f"test.safetensors': {message}"):
        read_corpus(tmp_path, LABEL2ID)
    with pytest.raises(InputError, match=f"test: {message}"):
        write_vectors(tmp_path / "new", "test", bare_table(), **given)


def cut_off(path: Path):
    path.write_bytes(path.read_bytes()[:-50])


def with_metadata(value: bytes):
    def spoil(path: Path):
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"huggingface": value}), path)

    return spoil


FEATURES = {"info": {"features": {"utterances": {"feature": {"emotion": {"names": [1, 2]}}}}}}
DAMAGED = {
    "table of 0 bytes": ("train.parquet", lambda path: path.write_bytes(b"")),
    "table cut off": ("validation.parquet", cut_off),
    "text for a table": ("test.parquet", lambda path: path.write_text("dialogue_id,labels\n")),
    "metadata that is not JSON": ("validation.parquet", with_metadata(b"{not json")),
    "metadata of a list": ("train.parquet", with_metadata(b"[]")),
    "metadata with numbers for names": ("test.parquet", with_metadata(json.dumps(FEATURES).encode())),
    "tensors of 0 bytes": ("train.safetensors", lambda path: path.write_bytes(b"")),
    "tensors cut off": ("test.safetensors", cut_off),
    "a header of 2^62 bytes": ("validation.safetensors", lambda path: path.write_bytes((2**62).to_bytes(8, "little"))),
    "text for tensors": ("test.safetensors", lambda path: path.write_text("speech and text, " * 9)),
}


@pytest.mark.parametrize(("name", "spoil"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name, spoil):
    write_corpus(tmp_path, safetensors)
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=f"{tmp_path / name}'"):
        read_corpus(tmp_path, LABEL2ID)
    if name.endswith("parquet") and b"PAR1" not in (tmp_path / name).read_bytes()[-4:]:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
        with pytest.raises(InputError, match=name):
            holds_vectors(tmp_path)


def test_shards_of_other_columns_are_refused(tmp_path):
    write_corpus(tmp_path)
    table = vector_table("train")
    (tmp_path / "train.parquet").unlink()
    pq.write_table(table[:1], tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(table[1:].drop_columns(["labels"]), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(InputError, match=r"shards 'train-\*\.parquet' have the same columns"):
        read_corpus(tmp_path, LABEL2ID)


def test_a_class_index_without_a_name_is_refused(tmp_path):
    emotion = pa.array([0, 7], pa.int64())
    turns = pa.StructArray.from_arrays([pa.array(["a", "b"]), emotion], ["utterance_id", "emotion"])
    table = pa.table({"dialogue_id": ["d"], "utterances": pa.ListArray.from_arrays([0, 2], turns)})
    features = {"info": {"features": {"utterances": {"feature": {"emotion": {"names": ["joy", "anger"]}}}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    with pytest.raises(InputError, match="train: 'emotion' has the class index 7, but there are 2 names"):
        DialogueVectors(table, LABEL2ID)


def test_labels_are_those_that_the_tables_name(tmp_path):
    write_corpus(tmp_path)
    corpus = read_corpus(tmp_path)
    assert corpus["train"].label2id == {"anger": 0, "joy": 1, "neutral": 2}
    for split, data in read_corpus(tmp_path, LABEL2ID).items():
        assert np.array_equal(corpus[split].labels, data.labels)
    without = tmp_path / "without"
    without.mkdir()
    for split in corpus:
        pq.write_table(vector_table(split, labels=None), without / f"{split}.parquet")
    assert read_corpus(without)["train"].label2id is None and "labels" not in read_corpus(without)["train"][0]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("speach_features", "speech_features"), ("txt_features", "text_features"), ("Speech-Feature", "speech_features")],
)
def test_vectors_under_a_misspelt_name_are_refused(name, meant):
    with pytest.raises(InputError, match=f"column '{name}' is not read; rename it to '{meant}', or drop it"):
        dialogues(**{meant: None, name: cut([[1.0]] * 8)})


def test_vectors_that_are_not_read_are_named(caplog):
    dialogues(video_features=cut([[1.0]] * 8), speakers=cut(["a"] * 8))
    assert (
        "train: the vectors in the columns video_features are not read" in caplog.text
        and "speakers" not in caplog.text
    )


@pytest.mark.parametrize("label", ["", "nan", "<NA>", "null"])
def test_a_class_called_nothing_is_refused(tmp_path, label):
    for split in ("train", "validation", "test"):
        pq.write_table(vector_table(labels=cut([label, *LABELS[1:]])), tmp_path / f"{split}.parquet")
    with pytest.raises(
        InputError, match=f"the label '{label}' is what programs write where there is none; write null at such turns"
    ):
        corpus_labels(tmp_path)
