import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from mister_e_hf import read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.vectors.dialogue_vectors import SPLITS
from mister_e_hf.vectors.store import holds_vectors
from support.new_process import run_python
from support.vector_tables import (
    FORMS,
    LABEL2ID,
    LABELS,
    LENGTHS,
    TURNS,
    WIDTHS,
    bare_table,
    cut,
    dataset_dict,
    matrices,
    tensors,
    vector_table,
    write_columns,
    write_corpus,
    write_safetensors,
    write_safetensors_shards,
)


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


def test_reading_some_splits(tmp_path):
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


def test_repeated_dialogue_raises(tmp_path):
    write_corpus(tmp_path)
    twice = pa.concat_tables([vector_table("train"), vector_table("train")[1:2]])
    pq.write_table(twice, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="dialogue_id: dialogue 'train1' appears twice in train"):
        read_corpus(tmp_path, LABEL2ID)
    mixed = pa.concat_tables([vector_table("train"), vector_table("test")[2:]])
    pq.write_table(mixed, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="dialogue_id: dialogue 'test2' appears in train and in test"):
        read_corpus(tmp_path, LABEL2ID)


def test_wrong_number_of_vectors_raises(tmp_path):
    write_corpus(tmp_path, write_safetensors)
    save_file({"speech_features": torch.zeros(TURNS - 1, 5)}, tmp_path / "validation.safetensors")
    with pytest.raises(ValueError, match=f"validation: speech_features holds {TURNS - 1} vectors.*{TURNS} turns"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("name", ["speech", "speech_feature", "speach_features", "embeddings"])
def test_tensor_of_another_name_raises(tmp_path, name):
    write_corpus(tmp_path, write_safetensors)
    save_file({name: torch.zeros(TURNS, 5)}, tmp_path / "test.safetensors")
    with pytest.raises(ValueError, match=rf"test\.safetensors' holds a tensor '{name}'; expected speech_features"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("shapes", [[(TURNS,)], [(4, 5), (4, 6)], [(TURNS, 5, 1)]])
def test_tensor_of_another_shape_raises(tmp_path, shapes):
    pq.write_table(bare_table(), tmp_path / "train.parquet")
    for number, shape in enumerate(shapes):
        shard = tmp_path / f"train-{number:05}-of-{len(shapes):05}.safetensors"
        save_file({"speech_features": torch.zeros(shape)}, shard)
    with pytest.raises(ValueError, match="speech_features( of split train)? must be .N, D. of one width D"):
        read_corpus(tmp_path, LABEL2ID, splits=("train",))


@pytest.mark.parametrize("ending", ["parquet", "safetensors"])
def test_missing_shard_raises(tmp_path, ending):
    write_safetensors_shards(tmp_path, "train", 0, "float32")
    sorted(tmp_path.glob(f"*.{ending}"))[-1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"shards 'train-\*\.{ending}'"):
        read_corpus(tmp_path, LABEL2ID, splits=("train",))


@pytest.mark.parametrize("name", ["no/where/at/all", "./nowhere", "nowhere"])
def test_missing_folder_raises(name):
    with pytest.raises(FileNotFoundError, match=f"No corpus folder at '{name}'"):
        read_corpus(name)


def test_missing_split_of_a_dataset_raises():
    corpus = dataset_dict(None, "float32")
    del corpus["validation"]
    with pytest.raises(FileNotFoundError, match=r"no split 'validation'; it has \['train', 'test'\]"):
        read_corpus(corpus, LABEL2ID)


def test_unreachable_dataset_raises(tmp_path):
    code = "from mister_e_hf import read_corpus; read_corpus('someone/some-corpus')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    call = run_python("-c", code, env=environment)
    assert call.returncode == 1
    message = "FileNotFoundError: 'someone/some-corpus' is neither a folder here nor a dataset that could be loaded"
    assert message in call.stderr


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
    "dialogue twice": (bare_table(dialogue_id=["d0", "d1", "d0"]), tensors(), "'d0' appears twice"),
    "no ids": (bare_table(utterance_ids=None), tensors(), "utterance_ids"),
}


@pytest.mark.parametrize(("table", "features", "message"), REFUSED.values(), ids=REFUSED)
def test_unreadable_vectors_are_not_written(tmp_path, table, features, message):
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
def test_interrupted_write_leaves_no_partial_file(tmp_path):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    call = run_python("-c", WRITE_ON_A_FULL_DISK, tmp_path)
    assert call.returncode == 1 and "File too large" in call.stderr, call.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"train.safetensors"}
    assert torch.equal(load_file(tmp_path / "train.safetensors")["text_features"], tensors()["text_features"])


def test_writing_again_does_not_change_an_open_corpus(tmp_path):
    write_vectors(tmp_path, "train", bare_table(), **tensors())
    first = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    write_vectors(tmp_path, "train", bare_table(), **tensors(seed=1))
    second = read_corpus(tmp_path, LABEL2ID, splits=("train",))["train"]
    for seed, data in enumerate((first, second)):
        assert torch.equal(data.vectors["text"].rows(0, TURNS), tensors(seed)["text_features"])


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
def test_opening_vectors_does_not_read_them(tmp_path):
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
    call = run_python("-c", MEASURE, tmp_path / "small", tmp_path / "large")
    assert call.returncode == 0, call.stderr
    opened, read = map(int, call.stdout.split())
    assert opened < size / 8
    assert read < size / 8


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


def test_vectors_both_in_the_table_and_beside_it_raise(tmp_path):
    write_corpus(tmp_path, write_safetensors)
    pq.write_table(vector_table("train"), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="train: speech_features are given twice"):
        read_corpus(tmp_path, LABEL2ID)


@pytest.mark.parametrize("dtype", ["complex64", "bool", "float8_e4m3fn", "float8_e5m2"])
def test_tensors_that_are_not_real_numbers_raise(tmp_path, dtype):
    write_corpus(tmp_path, write_safetensors)
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
def test_damaged_file_raises(tmp_path, name, spoil):
    write_corpus(tmp_path, write_safetensors)
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=f"{tmp_path / name}'"):
        read_corpus(tmp_path, LABEL2ID)
    if name.endswith("parquet") and b"PAR1" not in (tmp_path / name).read_bytes()[-4:]:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
        with pytest.raises(InputError, match=name):
            holds_vectors(tmp_path)


def test_shards_with_different_columns_raise(tmp_path):
    write_corpus(tmp_path)
    table = vector_table("train")
    (tmp_path / "train.parquet").unlink()
    pq.write_table(table[:1], tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(table[1:].drop_columns(["labels"]), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(InputError, match=r"shards 'train-\*\.parquet' have the same columns"):
        read_corpus(tmp_path, LABEL2ID)


def test_default_labels_are_those_of_the_tables(tmp_path):
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
