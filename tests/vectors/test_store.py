import functools
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from mister_e_hf import DialogueCollator, DialogueVectors, Recipe, read_corpus, write_vectors
from mister_e_hf.corpora import store
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.vectors.store import SPLITS, VectorColumn
from support.arrow_memory import counted_arrow_memory
from support.small_corpora import LABELS as CALL_LABELS
from support.small_corpora import read_calls, write_calls

LABEL2ID = {"anger": 0, "joy": 1, "neutral": 2}
LENGTHS = (3, 1, 4)
TURNS = sum(LENGTHS)
WIDTHS = {"speech": 5, "text": 4}


def cut(values) -> list[list]:
    """One list per dialogue."""
    edges = np.cumsum((0, *LENGTHS))
    return [list(values[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def matrices(seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(TURNS, width)).astype(dtype) for name, width in WIDTHS.items()}


LABELS = ["anger", "joy", "neutral", "joy", "neutral", "neutral", "anger", "joy"]


def bare_table(prefix: str = "d", **changes) -> pa.Table:
    columns = {
        "dialogue_id": [f"{prefix}{number}" for number in range(len(LENGTHS))],
        "utterance_ids": cut([f"{prefix}_{turn}" for turn in range(TURNS)]),
        "labels": cut(LABELS),
    }
    return pa.table({name: value for name, value in {**columns, **changes}.items() if value is not None})


def vector_table(prefix: str = "d", seed: int = 0, dtype: str = "float32", **changes) -> pa.Table:
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(np.dtype(dtype))))
    vectors = {
        f"{name}_features": pa.array(cut(list(matrix)), type=kind) for name, matrix in matrices(seed, dtype).items()
    }
    return bare_table(prefix, **{**vectors, **changes})


def dialogues(name: str = "train", **changes) -> DialogueVectors:
    return DialogueVectors(vector_table(**changes), LABEL2ID, name=name)


def tensors(seed: int = 0, dtype: str = "float32") -> dict[str, torch.Tensor]:
    return {f"{name}_features": torch.from_numpy(matrix) for name, matrix in matrices(seed, dtype).items()}


def write_columns(folder: Path, split: str, seed: int, dtype: str):
    pq.write_table(vector_table(split, seed, dtype), folder / f"{split}.parquet")


def write_column_shards(folder: Path, split: str, seed: int, dtype: str):
    table = vector_table(split, seed, dtype)
    pq.write_table(table[:2], folder / f"{split}-00000-of-00002.parquet")
    pq.write_table(table[2:], folder / f"{split}-00001-of-00002.parquet")


def write_safetensors(folder: Path, split: str, seed: int, dtype: str):
    pq.write_table(bare_table(split), folder / f"{split}.parquet")
    save_file(tensors(seed, dtype), folder / f"{split}.safetensors")


def write_safetensors_shards(folder: Path, split: str, seed: int, dtype: str):
    """The table and the vectors cut at different places, the vectors within a dialogue."""
    table = bare_table(split)
    pq.write_table(table[:1], folder / f"{split}-00000-of-00002.parquet")
    pq.write_table(table[1:], folder / f"{split}-00001-of-00002.parquet")
    for number, part in enumerate((slice(0, 2), slice(2, 6), slice(6, None))):
        shard = {name: tensor[part].clone() for name, tensor in tensors(seed, dtype).items()}
        save_file(shard, folder / f"{split}-{number:05}-of-00003.safetensors")


def dataset_dict(folder: Path | None, dtype: str) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {split: datasets.Dataset(vector_table(split, seed, dtype)) for seed, split in enumerate(SPLITS)}
    )


FORMS = [write_columns, write_column_shards, write_safetensors, write_safetensors_shards]


def write_corpus(folder: Path, write=write_columns, dtype: str = "float32") -> Path:
    for seed, split in enumerate(SPLITS):
        write(folder, split, seed, dtype)
    return folder


# Reading


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("form", [*FORMS, dataset_dict])
def test_every_form_gives_the_same_dialogues(tmp_path, form, dtype):
    source = dataset_dict(None, dtype) if form is dataset_dict else write_corpus(tmp_path, form, dtype)
    corpus = read_corpus(source, LABEL2ID)
    assert list(corpus) == list(SPLITS)
    for seed, split in enumerate(SPLITS):
        data = corpus[split]
        assert data.dialogue_ids == [f"{split}{number}" for number in range(len(LENGTHS))]
        assert len(data) == len(LENGTHS) and data.lengths.tolist() == list(LENGTHS) and data.num_turns == TURNS
        expected = [cut(values) for values in (*matrices(seed, dtype).values(), LABELS)]
        for item, speech, text, labels in zip(data, *expected, strict=True):
            assert torch.equal(item["speech_embeddings"], torch.from_numpy(np.stack(speech)))
            assert torch.equal(item["text_embeddings"], torch.from_numpy(np.stack(text)))
            assert item["speech_mask"].all() and item["text_mask"].all() and item["text_mask"].dtype == torch.bool
            assert item["labels"].tolist() == [LABEL2ID[label] for label in labels]


def test_index_from_the_end_and_past_it():
    data = dialogues()
    assert torch.equal(data[-1]["text_embeddings"], data[2]["text_embeddings"])
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]


def test_some_splits_alone(tmp_path):
    write_columns(tmp_path, "train", 0, "float32")
    assert list(read_corpus(tmp_path, LABEL2ID, splits=("train",))) == ["train"]
    with pytest.raises(FileNotFoundError, match=r"No 'validation\.parquet'.*train\.parquet"):
        read_corpus(tmp_path, LABEL2ID)


def test_a_dataset_of_fixed_width_lists(tmp_path):
    features = datasets.Features(
        {
            "dialogue_id": datasets.Value("string"),
            "utterance_ids": datasets.List(datasets.Value("string")),
            "labels": datasets.List(datasets.Value("string")),
            "text_features": datasets.List(datasets.List(datasets.Value("float32"), length=WIDTHS["text"])),
        }
    )
    rows = vector_table(speech_features=None).to_pylist()
    rows[2]["text_features"][1] = None
    dataset = datasets.Dataset.from_list(rows, features=features)
    data = read_corpus(datasets.DatasetDict(train=dataset), LABEL2ID, splits=("train",))["train"]
    text = cut(matrices()["text"])
    assert torch.equal(data[0]["text_embeddings"], torch.from_numpy(np.stack(text[0])))
    assert data[2]["text_mask"].tolist() == [True, False, True, True]
    assert torch.equal(data[2]["text_embeddings"][2:], torch.from_numpy(np.stack(text[2][2:])))
    assert "speech_embeddings" not in data[0]


def test_vector_column_over_chunks():
    torch.manual_seed(0)
    chunks = [torch.randn(size, 2) for size in (40_000, 1, 29_999)]
    column, whole = VectorColumn(chunks), torch.cat(chunks)
    assert len(column) == len(whole) and column.width == 2
    for start, stop in [(0, 5), (39_999, 40_002), (40_000, 40_001), (39_000, 70_000), (69_999, 70_000)]:
        assert torch.equal(column.rows(start, stop), whole[start:stop])
    blocks = list(column.blocks())
    assert len(blocks) > 1
    assert all(torch.equal(block, whole[start : start + len(block)]) for start, block in blocks)
    assert torch.equal(torch.cat([block for _, block in blocks]), whole)


# Missing modalities and labels


def test_null_vectors_and_flags_make_a_modality_missing():
    vectors = cut(list(matrices()["text"]))
    vectors[0][1] = None
    kind = pa.list_(pa.list_(pa.float32()))
    data = dialogues(
        text_features=pa.array(vectors, type=kind),
        has_text=cut([True, True, False, True, None, True, True, True]),
        has_audio=cut([False, True, True, True, True, True, None, True]),
    )
    present = {modality: values.tolist() for modality, values in data.present.items()}
    assert present["text"] == [True, False, False, True, False, True, True, True]
    assert present["speech"] == [False, True, True, True, True, True, False, True]
    assert [data[index]["text_mask"].tolist() for index in range(3)] == cut(present["text"])
    assert data[0]["text_embeddings"].shape == (3, WIDTHS["text"])
    assert torch.equal(data[0]["text_embeddings"][0], torch.from_numpy(matrices()["text"][0]))
    assert torch.equal(data[2]["text_embeddings"][1:], torch.from_numpy(matrices()["text"][5:]))


@pytest.mark.parametrize("modality", WIDTHS)
def test_one_modality_alone(modality):
    other = next(name for name in WIDTHS if name != modality)
    data = dialogues(**{f"{other}_features": None})
    assert set(data[0]) == {f"{modality}_embeddings", f"{modality}_mask", "labels"}


@pytest.mark.parametrize(
    "values",
    [
        ["anger", None, "joy", None, "joy", "neutral", "neutral", "anger"],
        [0, None, 1, -100, 1, 2, 2, 0],
        [0, -100, 1, None, 1, 2, 2, 0],
    ],
)
def test_labels_by_name_and_by_index(values):
    data = dialogues(labels=cut(values))
    assert data.labels.tolist() == [0, -100, 1, -100, 1, 2, 2, 0]
    assert data[2]["labels"].dtype == torch.long


def test_no_label_is_read_without_label_names():
    assert "labels" not in DialogueVectors(vector_table(labels=None))[0]


def test_scores_beside_the_labels():
    table = vector_table(scores=cut([0.5, None, -3.0, 0.0, 1.0, 1.0, 2.0, 3.0]))
    data = DialogueVectors(table, LABEL2ID, score_column="scores")
    np.testing.assert_array_equal(data.scores, [0.5, np.nan, -3.0, 0.0, 1.0, 1.0, 2.0, 3.0])


# Errors


@pytest.mark.parametrize("column", ["dialogue_id", "utterance_ids", "labels", "scores"])
def test_missing_column_is_named(column):
    with pytest.raises(ValueError, match=f"validation: the table has no column '{column}'"):
        DialogueVectors(vector_table(**{column: None}), LABEL2ID, score_column="scores", name="validation")


def changed(field: str, turn: int, value) -> list[list]:
    values = list(matrices()[field.removesuffix("_features")]) if field.endswith("features") else list(LABELS)
    values[turn] = value
    return cut(values)


VECTORS = pa.list_(pa.list_(pa.float32()))

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
def test_what_is_wrong_with_a_table_is_named(changes, words):
    with pytest.raises(ValueError) as error:
        dialogues(**changes)
    assert str(error.value).startswith("train: ")
    assert [word for word in words if word not in str(error.value)] == []


def test_a_table_without_dialogues_is_refused():
    with pytest.raises(ValueError, match="train: the table has no dialogues"):
        DialogueVectors(vector_table()[:0], LABEL2ID)


def test_wrong_width_is_named():
    with pytest.raises(ValueError, match="test: text_features of dialogue 'd0' have width 4.*text_embedding_dim = 7"):
        dialogues("test").check({"speech": WIDTHS["speech"], "text": 7})
    dialogues().check(WIDTHS)
    dialogues().check({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", [write_columns, write_safetensors])
def test_a_broken_vector_is_named_unless_it_is_absent(tmp_path, form, value):
    broken = matrices()["speech"].copy()
    broken[5, 2] = value
    flags = [True] * TURNS
    for present in (True, False):
        flags[5] = present
        changes = {"has_audio": cut(flags)}
        if form is write_columns:
            vectors = pa.array(cut(list(broken)), type=VECTORS)
            pq.write_table(vector_table(speech_features=vectors, **changes), tmp_path / "train.parquet")
        else:
            pq.write_table(bare_table(**changes), tmp_path / "train.parquet")
            save_file(tensors() | {"speech_features": torch.from_numpy(broken)}, tmp_path / "train.safetensors")
        data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
        if present:
            with pytest.raises(ValueError, match="train: speech_features of utterance 'd_5' in dialogue 'd2'.*NaN"):
                data.check(WIDTHS)
        else:
            data.check(WIDTHS)
            assert torch.isfinite(torch.stack(data.statistics("speech"))).all()


def test_a_dialogue_must_stand_once(tmp_path):
    write_corpus(tmp_path)
    twice = pa.concat_tables([vector_table("train"), vector_table("train")[1:2]])
    pq.write_table(twice, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="dialogue_id: dialogue 'train1' stands twice in train"):
        read_corpus(tmp_path, LABEL2ID)
    mixed = pa.concat_tables([vector_table("train"), vector_table("test")[2:]])
    pq.write_table(mixed, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="dialogue_id: dialogue 'test2' stands in train and in test"):
        read_corpus(tmp_path, LABEL2ID)


def test_safetensors_with_another_number_of_vectors(tmp_path):
    write_corpus(tmp_path, write_safetensors)
    save_file({"speech_features": torch.zeros(TURNS - 1, 5)}, tmp_path / "validation.safetensors")
    with pytest.raises(ValueError, match=f"validation: speech_features holds {TURNS - 1} vectors.*{TURNS} turns"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("name", ["speech", "speech_feature", "speach_features", "embeddings"])
def test_safetensors_with_another_name(tmp_path, name):
    write_corpus(tmp_path, write_safetensors)
    save_file({name: torch.zeros(TURNS, 5)}, tmp_path / "test.safetensors")
    with pytest.raises(ValueError, match=rf"test\.safetensors' holds a tensor '{name}'; expected speech_features"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("shapes", [[(TURNS,)], [(4, 5), (4, 6)], [(TURNS, 5, 1)]])
def test_safetensors_of_another_shape(tmp_path, shapes):
    pq.write_table(bare_table(), tmp_path / "train.parquet")
    for number, shape in enumerate(shapes):
        shard = tmp_path / f"train-{number:05}-of-{len(shapes):05}.safetensors"
        save_file({"speech_features": torch.zeros(shape)}, shard)
    with pytest.raises(ValueError, match="speech_features( of split train)? must be .N, D. of one width D"):
        read_corpus(tmp_path, LABEL2ID, splits=("train",))


@pytest.mark.parametrize("ending", ["parquet", "safetensors"])
def test_a_missing_shard_is_named(tmp_path, ending):
    write_safetensors_shards(tmp_path, "train", 0, "float32")
    sorted(tmp_path.glob(f"*.{ending}"))[-1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"shards 'train-\*\.{ending}'"):
        read_corpus(tmp_path, LABEL2ID, splits=("train",))


@pytest.mark.parametrize("name", ["no/where/at/all", "./nowhere", "nowhere"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"No corpus folder at '{name}'"):
        read_corpus(name)


def test_a_missing_split_of_a_dataset_is_named():
    corpus = dataset_dict(None, "float32")
    del corpus["validation"]
    with pytest.raises(FileNotFoundError, match=r"no split 'validation'; it has \['train', 'test'\]"):
        read_corpus(corpus, LABEL2ID)


def test_a_dataset_that_cannot_be_reached(tmp_path):
    code = "from mister_e_hf import read_corpus; read_corpus('someone/some-corpus')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert call.returncode == 1
    message = "FileNotFoundError: 'someone/some-corpus' is neither a folder here nor a dataset that could be loaded"
    assert message in call.stderr


# Statistics and fingerprint


@pytest.mark.parametrize("form", [write_columns, write_safetensors_shards])
def test_statistics_are_of_the_present_turns(tmp_path, form):
    present = np.array([True, False, True, True, False, True, True, True])
    form(tmp_path, "train", 0, "float32")
    for path in sorted(tmp_path.glob("*.parquet")):
        table = pq.read_table(path)
        turns = [int(name.rpartition("_")[2]) for ids in table["utterance_ids"].to_pylist() for name in ids]
        lengths = [len(ids) for ids in table["utterance_ids"].to_pylist()]
        parts = np.split(present[turns], np.cumsum(lengths)[:-1])
        pq.write_table(table.append_column("has_text", [[part.tolist() for part in parts]]), path)
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    for modality, kept in (("text", present), ("speech", np.ones(TURNS, dtype=bool))):
        rows = matrices()[modality][kept].astype(np.float64)
        mean, deviation = data.statistics(modality)
        assert mean.dtype == torch.float64
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(deviation, rows.std(0), rtol=1e-12)


def test_statistics_over_several_blocks():
    rows = 1000 + np.random.default_rng(0).normal(size=(70_000, 2)).astype(np.float32)
    table = pa.table({"dialogue_id": ["d"], "utterance_ids": [[str(turn) for turn in range(len(rows))]]})
    data = DialogueVectors(table, vectors={"text": VectorColumn([torch.from_numpy(rows)])})
    mean, deviation = data.statistics("text")
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, rows.astype(np.float64).std(0), rtol=1e-9)


def test_no_statistics_without_a_present_turn():
    with pytest.raises(ValueError, match="train: no turn has speech"):
        dialogues(has_audio=cut([False] * TURNS)).statistics("speech")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_fingerprint_is_that_of_the_content_whatever_the_form(tmp_path, dtype):
    seen = set()
    for form in FORMS:
        folder = tmp_path / form.__name__
        folder.mkdir()
        form(folder, "train", 0, dtype)
        seen.add(read_corpus(folder, LABEL2ID, splits=("train",))["train"].fingerprint())
    seen.add(dialogues(dtype=dtype).fingerprint())
    assert len(seen) == 2  # the dialogues' names differ between the files and the last one
    assert DialogueVectors(vector_table("train", dtype=dtype), LABEL2ID).fingerprint() in seen


def test_fingerprint_changes_with_every_part():
    other = matrices()["text"].copy()
    other[6, 1] = np.nextafter(other[6, 1], np.float32(9))
    utterances = cut([f"d_{turn}" for turn in range(TURNS)])
    renamed = [list(ids) for ids in utterances]
    renamed[2][0] = "x"
    variants = [
        {},
        {"text_features": pa.array(cut(list(other)), type=VECTORS)},
        {"labels": changed("labels", 7, "anger")},
        {"labels": changed("labels", 7, None)},
        {"dialogue_id": ["d0", "d1", "x"]},
        {"utterance_ids": renamed},
        {"has_text": cut([True] * (TURNS - 1) + [False])},
        {"has_audio": cut([True] * (TURNS - 1) + [False])},
        {"speech_features": None},
    ]
    assert len({dialogues(**changes).fingerprint() for changes in variants}) == len(variants)
    assert dialogues().fingerprint() == dialogues(has_text=cut([True] * TURNS)).fingerprint()


# Writing


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_written_vectors_come_back_bit_equal(tmp_path, dtype):
    folder = tmp_path / "deep" / "corpus"
    for seed, split in enumerate(SPLITS):
        write_vectors(folder, split, bare_table(split), **tensors(seed, dtype))
    assert {path.name for path in folder.iterdir()} == {
        f"{split}.{ending}" for split in SPLITS for ending in ("parquet", "safetensors")
    }
    corpus = read_corpus(folder, LABEL2ID)
    for seed, split in enumerate(SPLITS):
        for modality, matrix in matrices(seed, dtype).items():
            rows = torch.cat([corpus[split][index][f"{modality}_embeddings"] for index in range(len(LENGTHS))])
            assert rows.dtype == getattr(torch, dtype)
            assert rows.numpy().tobytes() == matrix.tobytes()
        assert pq.read_table(folder / f"{split}.parquet").equals(bare_table(split))


def test_views_and_one_modality_are_written(tmp_path):
    both = torch.randn(TURNS, 9)
    write_vectors(tmp_path, "train", bare_table(), speech_features=both[:, :5], text_features=both[:, 5:])
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    assert torch.equal(torch.cat([data[index]["text_embeddings"] for index in range(3)]), both[:, 5:])
    write_vectors(tmp_path, "train", bare_table(), text_features=both[:, 5:])
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    assert set(data[0]) == {"text_embeddings", "text_mask", "labels"}


REFUSED = {
    "other length": (bare_table(), {"text_features": torch.zeros(TURNS + 1, 4)}, "vectors, but the table"),
    "other name": (bare_table(), tensors() | {"text": torch.zeros(TURNS, 4)}, "'text'"),
    "flat": (bare_table(), {"text_features": torch.zeros(TURNS)}, "shape"),
    "nothing": (bare_table(), {}, "no vectors"),
    "dialogue twice": (bare_table(dialogue_id=["d0", "d1", "d0"]), tensors(), "'d0' stands twice"),
    "no ids": (bare_table(utterance_ids=None), tensors(), "utterance_ids"),
}


@pytest.mark.parametrize(("table", "features", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_read_is_not_written(tmp_path, table, features, message):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        write_vectors(tmp_path, "train", table, **features)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_write_leaves_no_readable_split_and_no_partial_file(tmp_path):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    # Parquet has no such type, which shows when the table's turn has come.
    table = bare_table(spans=pa.array([pa.MonthDayNano([1, 2, 3])] * len(LENGTHS)))
    with pytest.raises(pa.ArrowException):
        write_vectors(tmp_path, "train", table, **tensors(seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"train.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"train\.parquet"):
        read_corpus(tmp_path, LABEL2ID, splits=("train",))
    write_vectors(tmp_path, "train", bare_table(), **tensors(seed=1))
    assert torch.equal(load_file(tmp_path / "train.safetensors")["text_features"], tensors(1)["text_features"])
    assert read_corpus(tmp_path, LABEL2ID, splits=("train",))


WRITE_ON_A_FULL_DISK = """
import resource, sys
import pyarrow as pa, torch
from mister_e_hf import write_vectors

table = pa.table({"dialogue_id": ["d"], "utterance_ids": [["a", "b"]]})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
write_vectors(sys.argv[1], "train", table, text_features=torch.zeros(2, 2**16))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_a_write_broken_off_in_the_vectors_leaves_no_partial_file(tmp_path):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    command = [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(tmp_path)]
    call = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert call.returncode == 1 and "File too large" in call.stderr, call.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.safetensors"}
    assert torch.equal(load_file(tmp_path / "train.safetensors")["text_features"], tensors()["text_features"])


def test_writing_anew_leaves_an_open_corpus_as_it_was(tmp_path):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    first = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    write_vectors(tmp_path, "train", bare_table(), **tensors(seed=1))
    second = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    for seed, data in enumerate((first, second)):
        assert torch.equal(data.vectors["text"].rows(0, TURNS), tensors(seed)["text_features"])


# Rows with utterances, as the package's corpora have them

CLASSES = ["joy", "neutral", "anger"]  # in another order than the model's


def turn_table(prefix: str = "d", emotions=LABELS, sound: bytes | None = None, classes=CLASSES, **changes) -> pa.Table:
    numbers = [classes.index(emotion) if isinstance(emotion, str) else emotion for emotion in emotions]
    turns = [
        {
            "utterance_id": f"{prefix}_{turn}",
            "text": None if turn == 2 else "Hm.",
            "audio": None if sound is None else {"bytes": sound, "path": None},
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
def test_utterances_read_as_the_columns_in_whose_place_they_stand(tmp_path, form):
    is_dataset = form is turns_of_a_dataset
    source = form(None, "float16") if is_dataset else write_corpus(tmp_path, form, "float16")
    corpus = read_corpus(source, LABEL2ID, score_column="sentiment")
    for seed, split in enumerate(SPLITS):
        expected = DialogueVectors(vector_table(split, seed, "float16"), LABEL2ID)
        assert corpus[split].labels.tolist() == [LABEL2ID[label] for label in LABELS] == expected.labels.tolist()
        assert corpus[split].utterance_ids == expected.utterance_ids
        np.testing.assert_array_equal(corpus[split].scores, [0, 0.5, 1, 1.5, 2, np.nan, 3, 3.5])
        assert corpus[split].fingerprint() == expected.fingerprint()


def test_emotions_that_are_null_or_minus_one_are_not_labelled():
    emotions = ["anger", None, "joy", -1, "joy", "neutral", -100, "anger"]
    table = turn_table(emotions=emotions, text_features=vector_table()["text_features"].combine_chunks())
    assert DialogueVectors(table, LABEL2ID).labels.tolist() == [0, -100, 1, -100, 1, 2, -100, 0]


def test_emotions_as_names_and_as_numbers_of_the_model():
    text = vector_table()["text_features"]
    for values in (LABELS, [LABEL2ID[label] for label in LABELS]):
        turns = [{"utterance_id": f"d_{turn}", "emotion": value} for turn, value in enumerate(values)]
        table = pa.table({"dialogue_id": ["d0", "d1", "d2"], "utterances": cut(turns), "text_features": text})
        assert DialogueVectors(table, LABEL2ID).labels.tolist() == [LABEL2ID[label] for label in LABELS]


def test_an_emotion_that_the_model_does_not_know_is_named():
    table = turn_table_with_vectors("d", 0, "float32")
    with pytest.raises(ValueError, match="test: dialogue 'd0' has the label 'anger' in 'labels'.*'joy': 0"):
        DialogueVectors(table, {"joy": 0, "neutral": 1}, name="test")


def test_flags_beside_utterances_are_honoured():
    flags = [True, False, True, True, None, True, True, False]
    table = turn_table_with_vectors("d", 0, "float32").append_column("has_audio", pa.array(cut(flags)))
    data = DialogueVectors(table.append_column("has_text", pa.array(cut(flags[::-1]))), LABEL2ID)
    assert data.present["speech"].tolist() == [bool(flag) for flag in flags]
    assert data.present["text"].tolist() == [bool(flag) for flag in flags[::-1]]


def test_columns_of_one_s_own_go_before_the_fields_of_utterances():
    other = LABELS[::-1]
    text = vector_table()["text_features"].combine_chunks()
    table = turn_table(labels=cut(other), mood=cut([0] * TURNS), text_features=text)
    assert DialogueVectors(table, LABEL2ID).labels.tolist() == [LABEL2ID[label] for label in other]
    assert DialogueVectors(table, LABEL2ID, label_column="mood").labels.tolist() == [0] * TURNS


def test_what_is_wrong_with_utterances_is_named():
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
def test_sound_in_utterances_is_not_read(tmp_path, monkeypatch, form):
    sound = bytes(2**21)
    monkeypatch.setattr(sys.modules[__name__], "turn_table", functools.partial(turn_table, sound=sound))
    source = form(None, "float32") if form is turns_of_a_dataset else write_corpus(tmp_path, form)
    with counted_arrow_memory() as pool:
        corpus = read_corpus(source, LABEL2ID)
    assert corpus["test"].labels.tolist() == [LABEL2ID[label] for label in LABELS]
    assert pool.max_memory() < len(sound)


@pytest.fixture
def calls(tmp_path) -> Path:
    """A corpus folder as the package writes it."""
    corpus = read_calls(write_calls(tmp_path / "source"), tmp_path / "cache")
    return store.write_corpus(corpus, tmp_path / "calls", embed_audio=True)


def test_a_corpus_without_vectors_says_what_it_lacks(calls):
    with pytest.raises(ValueError, match=r"train: no vectors\. .*speech_features.*'train\.safetensors'.*encoders"):
        read_corpus(calls, LABEL2ID)


def test_a_recipe_reads_a_written_corpus_with_vectors_beside_it(calls):
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


# Memory and workers


MEASURE = """
import sys
from mister_e_hf import read_corpus

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

read_corpus(sys.argv[1], splits=("train",))
before = resident()
data = read_corpus(sys.argv[2], splits=("train",))["train"]
opened = resident()
assert data[3]["text_embeddings"].sum() == data[3]["text_embeddings"].numel()
print(opened - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_vectors_reads_none_of_them(tmp_path):
    turns, width = 2048, 8192
    table = pa.table(
        {
            "dialogue_id": [str(number) for number in range(turns // 8)],
            "utterance_ids": [[f"{number}_{turn}" for turn in range(8)] for number in range(turns // 8)],
        }
    )
    write_vectors(tmp_path / "small", "train", table[:1], text_features=torch.ones(8, 16))
    write_vectors(tmp_path / "large", "train", table, text_features=torch.ones(turns, width))
    size = (tmp_path / "large" / "train.safetensors").stat().st_size
    assert size > 64 * 2**20
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    call = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert call.returncode == 0, call.stderr
    opened, read = map(int, call.stdout.split())
    assert opened < size / 8
    assert read < size / 8


@pytest.mark.parametrize("form", [write_columns, write_safetensors_shards])
def test_workers_give_the_same_batches(tmp_path, form):
    form(tmp_path, "train", 0, "float16")
    data = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    options = {"batch_size": 2, "collate_fn": DialogueCollator()}
    expected = list(DataLoader(data, **options))
    found = list(DataLoader(data, num_workers=2, **options))
    assert len(found) == len(expected) == 2
    for first, second in zip(expected, found, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


# Real corpora


REAL = {
    "iemocap": (["happy", "sad", "neutral", "angry", "excited", "frustrated"], (108, 12, 31), (5163, 647, 1623)),
    "meld": (
        ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"],
        (1038, 114, 280),
        (9989, 1109, 2610),
    ),
    "mosi": (["negative", "non-negative"], (52, 10, 31), (1284, 229, 686)),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_corpora(shared_dir, name):
    names, counts, turns = REAL[name]
    columns = {"label_column": "labels_binary", "score_column": "labels"} if name == "mosi" else {}
    corpus = read_corpus(shared_dir / "data" / name, {label: index for index, label in enumerate(names)}, **columns)
    assert [len(corpus[split]) for split in SPLITS] == list(counts)
    assert [corpus[split].num_turns for split in SPLITS] == list(turns)
    for data in corpus.values():
        data.check({"speech": {"iemocap": 57, "meld": 10, "mosi": 73}[name], "text": 768})
        assert set(data.labels.tolist()) == set(range(len(names)))
        assert data.present["text"].all()
    if name == "mosi":
        scores = np.concatenate([corpus[split].scores for split in SPLITS])
        labels = np.concatenate([corpus[split].labels for split in SPLITS])
        scored = ~np.isnan(scores)
        assert np.abs(scores[scored]).max() <= 3 and (~scored).sum() == 4
        np.testing.assert_array_equal(labels[scored] == 1, scores[scored] >= 0)
    if name == "meld":
        assert not all(data.present["speech"].all() for data in corpus.values())


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
