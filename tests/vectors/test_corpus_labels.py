"""Labels that a recipe does not name are the corpus's own."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import Recipe, read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.schema import SPLITS, dialogue_features
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.vectors.corpus_labels import LABELS_KEY, corpus_labels
from support.small_corpora import LABELS, read_calls, write_calls
from support.vector_tables import LABELS as TURN_LABELS
from support.vector_tables import cut, vector_table


@pytest.fixture
def dialogues(tmp_path, own_cache):
    corpus = read_calls(write_calls(tmp_path / "calls"), tmp_path / "cache", labels=LABELS)
    return write_corpus(corpus, tmp_path / "corpus")


def vectors(folder, labels, kind=None):
    for split, dialogue in zip(("train", "validation", "test"), labels, strict=True):
        table = pa.table(
            {
                "dialogue_id": [split],
                "utterance_ids": [[str(number) for number in range(len(dialogue))]],
                "labels": pa.array([dialogue], kind),
            }
        )
        write_vectors(folder, split, table, text_features=torch.randn(len(dialogue), 3))
    return folder


def test_corpus_of_dialogues_keeps_the_order_of_its_classes(dialogues):
    assert corpus_labels(dialogues) == LABELS  # `sad` among them, which no turn has
    assert corpus_labels(datasets.load_dataset(str(dialogues))) == LABELS
    recipe = Recipe({"corpus": {"path": str(dialogues)}})
    assert list(recipe.model_config().id2label.values()) == LABELS
    assert recipe.to_dict()["corpus"]["labels"] == LABELS  # stored with the run
    assert Recipe.load("demo", ["--corpus", str(dialogues)]).corpus.labels != LABELS  # what a recipe names counts


@pytest.mark.parametrize("kind", [None, pa.list_(pa.dictionary(pa.int8(), pa.string()))])
def test_vectors_have_the_names_that_occur_in_any_split(tmp_path, kind):
    folder = vectors(tmp_path / "v", [["joy", None, "anger"], ["calm"], ["joy", "sad"]], kind)
    assert corpus_labels(folder) == ["anger", "calm", "joy", "sad"]
    assert Recipe.load("own-small", ["--corpus", str(folder)]).corpus.labels == ["anger", "calm", "joy", "sad"]


def test_dataset_of_vectors_has_the_names_of_its_classes():
    features = datasets.Features({"labels": datasets.List(datasets.ClassLabel(names=["b", "a"]))})
    data = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"labels": [[0, 1]]}, features)})
    assert corpus_labels(data) == ["b", "a"]
    named = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"labels": [["b", None], ["a"]]})})
    assert corpus_labels(named) == ["a", "b"]


REFUSED = {
    "indices": ([[0, 1], [0], [1]], "holds int64, not names"),
    "none": ([[None, None], [None], [None]], "no turn with a label"),
    "case": ([["joy", "Joy"], ["joy"], ["joy"]], "'Joy' and 'joy' differ only in case or whitespace"),
    "blanks": ([["very calm", "joy"], ["very  calm"], ["joy "]], "differ only in case or whitespace"),
}


@pytest.mark.parametrize(("labels", "message"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_labels_raise(tmp_path, labels, message):
    kind = pa.list_(pa.string()) if labels[0][0] is None else None
    folder = vectors(tmp_path / "v", labels, kind)
    with pytest.raises(InputError) as error:
        corpus_labels(folder)
    assert message in str(error.value) and str(folder) in str(error.value)


def test_splits_with_different_labels_raise(tmp_path, dialogues):
    table = pq.read_table(dialogues / "test.parquet")
    metadata = {key: value.replace(b'"sad"', b'"bored"') for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), dialogues / "test.parquet")
    with pytest.raises(InputError, match="different label names: joy, bored, anger; joy, sad, anger"):
        corpus_labels(dialogues)


def test_missing_corpus_raises(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no tables of train, validation, test"):
        corpus_labels(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="No corpus folder at"):
        corpus_labels(tmp_path / "nowhere")


@pytest.mark.parametrize("label", ["", "nan", "<NA>", "null"])
def test_placeholder_of_a_missing_label_raises(tmp_path, label):
    for split in ("train", "validation", "test"):
        pq.write_table(vector_table(labels=cut([label, *TURN_LABELS[1:]])), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=f"programs write '{label}' for a missing label; write null at such turns"):
        corpus_labels(tmp_path)


# Further classes of a turn


def turns_with_two_labels(prefix: str) -> pa.Table:
    """Turns whose field `emotion_text` has other classes than their emotion."""
    names = sorted(set(TURN_LABELS))
    features = dialogue_features(names, other_labels=["emotion_text"])
    features["utterances"].feature["emotion_text"] = datasets.ClassLabel(names=["up", "down", "level"])
    turns = [
        {"utterance_id": str(turn), "emotion": names.index(label), "emotion_text": turn % 2}
        for turn, label in enumerate(TURN_LABELS)
    ]
    rows = [{"dialogue_id": f"{prefix}{row}", "utterances": part} for row, part in enumerate(cut(turns))]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    return table.append_column("text_features", vector_table()["text_features"].combine_chunks())


def test_further_classes_of_turns_have_names_of_their_own(tmp_path):
    for split in SPLITS:
        pq.write_table(turns_with_two_labels(split), tmp_path / f"{split}.parquet")
    dataset = datasets.DatasetDict({split: datasets.Dataset(turns_with_two_labels(split)) for split in SPLITS})
    for source in (tmp_path, dataset):
        assert corpus_labels(source) == sorted(set(TURN_LABELS))
        assert corpus_labels(source, "emotion_text") == ["up", "down", "level"]
        data = read_corpus(source, label_column="emotion_text", splits=("train",))["train"]
        assert data.label2id == {"up": 0, "down": 1, "level": 2}
        assert data.labels.tolist() == [turn % 2 for turn in range(len(TURN_LABELS))]


@pytest.mark.parametrize(
    ("other", "expected"),
    [(["joy", "anger"] * 4, ["neutral", "joy", "anger"]), (["up", "down"] * 4, ["down", "up"])],
)
def test_names_stored_for_the_emotions_order_other_columns_of_the_same_names(tmp_path, other, expected):
    """`embed` stores those of the emotions, and writes further classes by name."""
    metadata = {LABELS_KEY: json.dumps(["neutral", "joy", "anger"]).encode()}
    for split in SPLITS:
        table = vector_table(split, emotion_text=cut(other)).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert corpus_labels(tmp_path) == ["neutral", "joy", "anger"]
    assert corpus_labels(tmp_path, "emotion_text") == expected
