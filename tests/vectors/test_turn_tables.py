"""Tables with the turns of a dialogue in `utterances`, as the package's corpora have them."""

import functools
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mister_e_hf import DialogueVectors, Recipe, read_corpus, write_vectors
from mister_e_hf.corpora import store
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.vectors.dialogue_vectors import SPLITS
from support.arrow_memory import counted_arrow_memory
from support.small_corpora import LABELS as CALL_LABELS
from support.small_corpora import read_calls, write_calls
from support.vector_tables import (
    LABEL2ID,
    LABELS,
    TURNS,
    WIDTHS,
    bare_table,
    cut,
    tensors,
    vector_table,
    write_corpus,
)

CLASSES = ["joy", "neutral", "anger"]  # in another order than the model's


def turn_table(prefix: str = "d", emotions=LABELS, audio: bytes | None = None, classes=CLASSES, **changes) -> pa.Table:
    numbers = [classes.index(emotion) if isinstance(emotion, str) else emotion for emotion in emotions]
    turns = [
        {
            "utterance_id": f"{prefix}_{turn}",
            "text": None if turn == 2 else "Hm.",
            "audio": None if audio is None else {"bytes": audio, "path": None},
            "emotion": number,
            "sentiment": None if turn == 5 else turn / 2,
        }
        for turn, number in enumerate(numbers)
    ]
    rows = [{"dialogue_id": f"{prefix}{row}", "utterances": part} for row, part in enumerate(cut(turns))]
    table = pa.Table.from_pylist(rows, schema=dialogue_features(classes).arrow_schema)
    for name, values in changes.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def turn_table_with_vectors(prefix: str, seed: int, dtype: str) -> pa.Table:
    plain = vector_table(prefix, seed, dtype)
    return turn_table(prefix, **{name: plain[name].combine_chunks() for name in map("{}_features".format, WIDTHS)})


def turns_and_columns(folder: Path, split: str, seed: int, dtype: str):
    pq.write_table(turn_table_with_vectors(split, seed, dtype), folder / f"{split}.parquet")


def turns_and_columns_in_shards(folder: Path, split: str, seed: int, dtype: str):
    table = turn_table_with_vectors(split, seed, dtype)
    pq.write_table(table[:2], folder / f"{split}-00000-of-00002.parquet", row_group_size=1)
    pq.write_table(table[2:], folder / f"{split}-00001-of-00002.parquet")


def turns_and_safetensors(folder: Path, split: str, seed: int, dtype: str):
    write_vectors(folder, split, turn_table(split), **tensors(seed, dtype))


def turns_and_safetensors_in_shards(folder: Path, split: str, seed: int, dtype: str):
    table = turn_table(split)
    pq.write_table(table[:1], folder / f"{split}-00000-of-00002.parquet")
    pq.write_table(table[1:], folder / f"{split}-00001-of-00002.parquet")
    save_file(tensors(seed, dtype), folder / f"{split}.safetensors")


def turns_of_a_dataset(folder: Path | None, dtype: str) -> datasets.DatasetDict:
    tables = {split: turn_table_with_vectors(split, seed, dtype) for seed, split in enumerate(SPLITS)}
    parts = {split: [datasets.Dataset(table[:1]), datasets.Dataset(table[1:])] for split, table in tables.items()}
    return datasets.DatasetDict({split: datasets.concatenate_datasets(part) for split, part in parts.items()})


TURN_FORMS = [turns_and_columns, turns_and_columns_in_shards, turns_and_safetensors, turns_and_safetensors_in_shards]


@pytest.mark.parametrize("form", [*TURN_FORMS, turns_of_a_dataset])
def test_utterances_read_as_the_columns_that_they_replace(tmp_path, form):
    is_dataset = form is turns_of_a_dataset
    source = form(None, "float16") if is_dataset else write_corpus(tmp_path, form, "float16")
    corpus = read_corpus(source, LABEL2ID, score_column="sentiment")
    for seed, split in enumerate(SPLITS):
        expected = DialogueVectors(vector_table(split, seed, "float16"), LABEL2ID)
        assert corpus[split].labels.tolist() == [LABEL2ID[label] for label in LABELS] == expected.labels.tolist()
        assert corpus[split].utterance_ids == expected.utterance_ids
        np.testing.assert_array_equal(corpus[split].scores, [0, 0.5, 1, 1.5, 2, np.nan, 3, 3.5])
        assert corpus[split].fingerprint() == expected.fingerprint()


def test_null_and_negative_emotions_are_not_labelled():
    emotions = ["anger", None, "joy", -1, "joy", "neutral", -100, "anger"]
    table = turn_table(emotions=emotions, text_features=vector_table()["text_features"].combine_chunks())
    assert DialogueVectors(table, LABEL2ID).labels.tolist() == [0, -100, 1, -100, 1, 2, -100, 0]


def test_emotions_as_names_and_as_class_indices():
    text = vector_table()["text_features"]
    for values in (LABELS, [LABEL2ID[label] for label in LABELS]):
        turns = [{"utterance_id": f"d_{turn}", "emotion": value} for turn, value in enumerate(values)]
        table = pa.table({"dialogue_id": ["d0", "d1", "d2"], "utterances": cut(turns), "text_features": text})
        assert DialogueVectors(table, LABEL2ID).labels.tolist() == [LABEL2ID[label] for label in LABELS]


def test_unknown_emotion_raises():
    table = turn_table_with_vectors("d", 0, "float32")
    with pytest.raises(ValueError, match="test: dialogue 'd0' has the label 'anger' in 'labels'.*'joy': 0"):
        DialogueVectors(table, {"joy": 0, "neutral": 1}, name="test")


def test_flags_beside_utterances_are_used():
    flags = [True, False, True, True, None, True, True, False]
    table = turn_table_with_vectors("d", 0, "float32").append_column("has_audio", pa.array(cut(flags)))
    data = DialogueVectors(table.append_column("has_text", pa.array(cut(flags[::-1]))), LABEL2ID)
    assert data.present["speech"].tolist() == [bool(flag) for flag in flags]
    assert data.present["text"].tolist() == [bool(flag) for flag in flags[::-1]]


def test_columns_take_precedence_over_the_fields_of_utterances():
    other = LABELS[::-1]
    text = vector_table()["text_features"].combine_chunks()
    table = turn_table(labels=cut(other), mood=cut([0] * TURNS), text_features=text)
    assert DialogueVectors(table, LABEL2ID).labels.tolist() == [LABEL2ID[label] for label in other]
    assert DialogueVectors(table, LABEL2ID, label_column="mood").labels.tolist() == [0] * TURNS


def test_invalid_utterances_raise():
    with pytest.raises(ValueError, match="train: 'utterances' must hold a list of turns.*string"):
        DialogueVectors(bare_table(utterances=["a", "b", "c"]), LABEL2ID)
    with pytest.raises(ValueError, match="train: 'utterances' must hold a list of turns.*string"):
        DialogueVectors(bare_table(utterances=cut(LABELS)), LABEL2ID)
    with pytest.raises(ValueError, match="no column 'utterance_ids'.*texts"):
        DialogueVectors(pa.table({"dialogue_id": ["d"], "utterances": [[{"text": "Hm."}]]}), LABEL2ID)
    for turns in ([], None):
        table = turn_table()
        rows = table.to_pylist()
        rows[1]["utterances"] = turns
        with pytest.raises(ValueError, match="dialogue 'd1' has no turns"):
            DialogueVectors(pa.Table.from_pylist(rows, schema=table.schema), LABEL2ID)


@pytest.mark.parametrize("form", [turns_and_columns_in_shards, turns_and_safetensors, turns_of_a_dataset])
def test_audio_in_utterances_is_not_read(tmp_path, monkeypatch, form):
    audio = bytes(2**21)
    monkeypatch.setattr(sys.modules[__name__], "turn_table", functools.partial(turn_table, audio=audio))
    source = form(None, "float32") if form is turns_of_a_dataset else write_corpus(tmp_path, form)
    with counted_arrow_memory() as pool:
        corpus = read_corpus(source, LABEL2ID)
    assert corpus["test"].labels.tolist() == [LABEL2ID[label] for label in LABELS]
    assert pool.max_memory() < len(audio)


@pytest.fixture
def calls(tmp_path) -> Path:
    """A corpus folder as the package writes it."""
    corpus = read_calls(write_calls(tmp_path / "source"), tmp_path / "cache")
    return store.write_corpus(corpus, tmp_path / "calls", embed_audio=True)


def test_corpus_without_vectors_raises(calls):
    with pytest.raises(ValueError, match=r"train: no vectors\. .*speech_features.*'train\.safetensors'.*Encoders"):
        read_corpus(calls, LABEL2ID)


def test_recipe_reads_a_written_corpus_with_vectors_beside_it(calls):
    torch.manual_seed(0)
    vectors = {}
    for split in SPLITS:
        table = pq.read_table(calls / f"{split}.parquet")
        turns = sum(map(len, table["utterances"].to_pylist()))
        vectors[split] = {"speech_features": torch.randn(turns, 5), "text_features": torch.randn(turns, 4)}
        write_vectors(calls, split, table, **vectors[split])
        assert pq.read_schema(calls / f"{split}.parquet").metadata == table.schema.metadata
    labels = sorted(CALL_LABELS)
    sections = {
        "model": {"speech_embedding_dim": 5, "text_embedding_dim": 4, "hidden_size": 8},
        "corpus": {"path": str(calls), "labels": labels, "score_column": "sentiment"},
    }
    corpus = Recipe(sections).read_corpus()
    assert corpus["train"].dialogue_ids == ["a", "b"]
    expected = ["joy", "anger", "joy", None, "joy"]
    assert corpus["train"].labels.tolist() == [-100 if label is None else labels.index(label) for label in expected]
    np.testing.assert_array_equal(corpus["train"].scores, [1.5, np.nan, np.nan, -2.0, 0.0])
    assert torch.equal(corpus["train"][1]["text_embeddings"], vectors["train"]["text_features"][3:])
    assert corpus["test"].labels.tolist() == [-100, labels.index("joy")]


def test_class_labels_of_a_dataset_are_read_by_name():
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    features = Features(
        {
            "dialogue_id": Value("string"),
            "utterance_ids": List(Value("string")),
            "labels": List(ClassLabel(names=["joy", "anger"])),
            "text_features": List(List(Value("float32"))),
        }
    )
    row = {
        "dialogue_id": ["a"],
        "utterance_ids": [["a0", "a1"]],
        "labels": [[0, 1]],
        "text_features": [[[1.0], [2.0]]],
    }
    source = DatasetDict({"test": Dataset.from_dict(row, features=features)})
    corpus = read_corpus(source, {"anger": 0, "joy": 1}, splits=("test",))
    assert corpus["test"].labels.tolist() == [1, 0]
