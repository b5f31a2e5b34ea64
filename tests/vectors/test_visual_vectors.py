"""Vectors of the picture beside those of speech and text."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mister_e_hf import DialogueCollator, DialogueVectors, read_corpus, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.models.baselines.configuration import LogisticRegressionConfig
from mister_e_hf.vectors.dialogue_datasets import check_dialogues, dataset_statistics
from mister_e_hf.vectors.dialogue_vectors import SPLITS, regroup
from mister_e_hf.vectors.store import vector_modalities
from support.new_process import run_python
from support.vector_tables import (
    LABEL2ID,
    LABELS,
    LENGTHS,
    TURNS,
    VECTORS,
    WIDTHS,
    bare_table,
    cut,
    dialogues,
    tensors,
    vector_table,
)

WIDTH = 3
SEEN = [True, True, False, True, True, True, True, False]  # turns with a picture


def visual(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed + 100).normal(size=(TURNS, WIDTH)).astype(np.float32))


def visual_column(seed: int = 0) -> pa.Array:
    return pa.array(cut(list(visual(seed).numpy())), type=VECTORS)


def table_of_three(prefix: str, seed: int) -> pa.Table:
    return vector_table(prefix, seed, visual_features=visual_column(seed), has_video=cut(SEEN))


def columns(folder, split, seed):
    pq.write_table(table_of_three(split, seed), folder / f"{split}.parquet")


def beside_the_table(folder, split, seed):
    write_vectors(folder, split, bare_table(split, has_video=cut(SEEN)), **tensors(seed), visual_features=visual(seed))


def in_shards(folder, split, seed):
    table = bare_table(split, has_video=cut(SEEN))
    pq.write_table(table[:1], folder / f"{split}-00000-of-00002.parquet")
    pq.write_table(table[1:], folder / f"{split}-00001-of-00002.parquet")
    for number, part in enumerate((slice(0, 5), slice(5, None))):
        shard = {
            name: tensor[part].clone() for name, tensor in (tensors(seed) | {"visual_features": visual(seed)}).items()
        }
        save_file(shard, folder / f"{split}-{number:05}-of-00002.safetensors")


def in_files_of_two_kinds(folder, split, seed):
    """Speech and text in safetensors, the picture in the table."""
    table = bare_table(split, has_video=cut(SEEN), visual_features=visual_column(seed))
    pq.write_table(table, folder / f"{split}.parquet")
    save_file(tensors(seed), folder / f"{split}.safetensors")


@pytest.mark.parametrize("form", [columns, beside_the_table, in_shards, in_files_of_two_kinds])
def test_every_form_is_read(tmp_path, form):
    for seed, split in enumerate(SPLITS):
        form(tmp_path, split, seed)
    assert vector_modalities(tmp_path) == ["speech", "text", "visual"]
    corpus = read_corpus(tmp_path, LABEL2ID)
    for seed, split in enumerate(SPLITS):
        data = corpus[split]
        assert {modality: column.width for modality, column in data.vectors.items()} == WIDTHS | {"visual": WIDTH}
        assert "visual: 6 vectors of width 3" in repr(data)
        assert data.fingerprint() == DialogueVectors(table_of_three(split, seed), LABEL2ID).fingerprint()
        for item, vectors, present in zip(data, cut(visual(seed)), cut(SEEN), strict=True):
            assert torch.equal(item["visual_embeddings"], torch.stack(vectors))
            assert item["visual_mask"].tolist() == present


def test_a_dataset_is_read():
    source = datasets.DatasetDict({split: datasets.Dataset(table_of_three(split, 0)) for split in SPLITS})
    assert vector_modalities(source) == ["speech", "text", "visual"]
    data = read_corpus(source, LABEL2ID)["test"]
    assert torch.equal(data[2]["visual_embeddings"], visual()[4:])


def test_null_vectors_are_absent():
    vectors = [None if not seen else list(row) for seen, row in zip(SEEN, visual().numpy(), strict=True)]
    data = dialogues(visual_features=pa.array(cut(vectors), type=VECTORS))
    assert data.present["visual"].tolist() == SEEN
    assert data.present["speech"].all()


def test_the_picture_alone():
    data = dialogues(speech_features=None, text_features=None, visual_features=visual_column())
    assert set(data[0]) == {"visual_embeddings", "visual_mask", "labels"}
    assert set(DialogueCollator()([data[0]])) == {"visual_embeddings", "visual_mask", "labels", "attention_mask"}


def test_turns_beside_vectors_of_a_release_of_features():
    """As the builders of corpora that are released as features write them."""
    turns = [
        {"utterance_id": f"d_{turn}", "text": "你好。", "emotion": LABEL2ID[label]}
        for turn, label in enumerate(LABELS)
    ]
    rows = [{"dialogue_id": f"d{row}", "utterances": part} for row, part in enumerate(cut(turns))]
    table = pa.Table.from_pylist(rows, schema=dialogue_features(list(LABEL2ID)).arrow_schema)
    table = table.append_column("visual_features", visual_column()).append_column("has_video", pa.array(cut(SEEN)))
    data = DialogueVectors(table, LABEL2ID)
    assert data.present["visual"].tolist() == SEEN
    assert data.labels.tolist() == [LABEL2ID[label] for label in LABELS]
    assert data[1]["transcripts"] == ["你好。"]


# Batches, statistics and choices of dialogues


def test_batches_are_padded():
    data = dialogues(visual_features=visual_column(), has_video=cut(SEEN))
    batch = DialogueCollator()([data[0], data[1], data[2]])
    assert batch["visual_embeddings"].shape == (3, 4, WIDTH)
    assert batch["visual_embeddings"].dtype == torch.float32
    for row, (length, present) in enumerate(zip(LENGTHS, cut(SEEN), strict=True)):
        assert torch.equal(batch["visual_embeddings"][row, :length], torch.stack(cut(visual())[row]))
        assert not batch["visual_embeddings"][row, length:].any()
        assert batch["visual_mask"][row].tolist() == present + [False] * (4 - length)


def test_statistics_are_of_the_turns_with_a_picture():
    broken = visual()
    broken[~torch.tensor(SEEN)] = float("nan")
    data = dialogues(visual_features=pa.array(cut(list(broken.numpy())), type=VECTORS), has_video=cut(SEEN))
    data.check({"visual": WIDTH})
    kept = visual()[torch.tensor(SEEN)].double()
    for mean, deviation in (data.statistics("visual"), dataset_statistics([data[0], data[1], data[2]], "visual")):
        assert torch.allclose(mean, kept.mean(0))
        assert torch.allclose(deviation, kept.std(0, correction=0))
    nowhere = dialogues(visual_features=visual_column(), has_video=cut([False] * TURNS))
    with pytest.raises(InputError, match="no turn has visual, so its vectors cannot be standardised"):
        nowhere.statistics("visual")


def test_regrouped_dialogues_keep_their_pictures():
    first = dialogues(visual_features=visual_column(), has_video=cut(SEEN))
    second = dialogues(visual_features=visual_column(1))
    new = regroup([first, second], [2, 3], "new")
    assert torch.equal(new[0]["visual_embeddings"], visual()[4:])
    assert torch.equal(new[1]["visual_embeddings"], visual(1)[:3])
    assert new.present["visual"].tolist() == SEEN[4:] + [True] * 3


@pytest.mark.parametrize("turned", [False, True])
def test_splits_of_different_modalities_are_not_mixed(turned):
    splits = [dialogues(visual_features=visual_column()), dialogues("validation")]
    message = "train has vectors of speech, text, visual, but validation of speech, text;"
    if turned:
        splits, message = splits[::-1], "validation has vectors of speech, text, but train of speech, text, visual;"
    with pytest.raises(InputError, match=message):
        regroup(splits, [0, 3], "fold 0")


def test_fingerprint_depends_on_the_picture():
    whole = dialogues(visual_features=visual_column()).fingerprint()
    assert whole != dialogues().fingerprint()
    assert whole != dialogues(visual_features=visual_column(1)).fingerprint()
    assert whole != dialogues(visual_features=visual_column(), has_video=cut(SEEN)).fingerprint()


def test_fingerprints_of_speech_and_text_are_those_of_version_0_1():
    """Runs and studies record them, and are resumed only for the same vectors."""
    assert dialogues().fingerprint() == "c3ea4e71de9b93e5253716d6c513f319"
    assert DialogueVectors(vector_table(labels=None)).fingerprint() == "1a2842ab1c605b77dc806bed2692f5b2"


# Mistakes


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("video_features", "visual_features"),
        ("visual_embeddings", "visual_features"),
        ("visual_vectors", "visual_features"),
        ("visual_feature", "visual_features"),
        ("has_visual", "has_video"),
        ("video_mask", "has_video"),
    ],
)
def test_misnamed_columns_raise(column, meant):
    with pytest.raises(InputError, match=f"column '{column}' is not read; rename it to '{meant}', or drop it"):
        dialogues(**{column: visual_column() if meant == "visual_features" else cut(SEEN)})


def test_wrong_vectors_raise(tmp_path):
    data = dialogues("test", visual_features=visual_column())
    with pytest.raises(InputError, match="test: visual_features .* width 3, .* visual_embedding_dim = 4"):
        data.check({"visual": 4})
    broken = visual()
    broken[5, 1] = float("inf")
    with pytest.raises(InputError, match="visual_features of utterance 'd_5' in dialogue 'd2' hold NaN, infinity"):
        dialogues(visual_features=pa.array(cut(list(broken.numpy())), type=VECTORS)).check({})
    with pytest.raises(InputError, match="visual_features holds 7 vectors, but the table 8 turns"):
        write_vectors(tmp_path, "train", bare_table(), visual_features=visual()[1:])
    with pytest.raises(InputError, match="visual_features are given twice"):
        write_vectors(tmp_path, "train", bare_table(visual_features=visual_column()), visual_features=visual())


def test_dialogues_of_ones_own_are_checked_for_the_picture():
    config = LogisticRegressionConfig(modalities=["visual"], visual_embedding_dim=WIDTH, id2label={0: "a", 1: "b"})
    check_dialogues([{"visual_embeddings": [[0.0] * WIDTH], "labels": [0]}], "train_dataset", config)
    with pytest.raises(InputError, match="'visual_embeddings' have width 2, but .* visual_embedding_dim = 3"):
        check_dialogues([{"visual_embeddings": [[0.0] * 2], "labels": [0]}], "train_dataset", config)
    with pytest.raises(InputError, match="'visual_features' of its items is not read; rename it to 'visual_embeddin"):
        check_dialogues([{"visual_features": [[0.0] * 3], "labels": [0]}], "train_dataset", config)


# Memory


MEASURE = """
import resource, sys
from mister_e_hf import read_corpus
read_corpus(sys.argv[1], {"a": 0}, splits=("train",))  # imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = read_corpus(sys.argv[2], {"a": 0}, splits=("train",))["train"]
assert data[0]["visual_embeddings"].shape == (4, 4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_vectors_of_three_modalities_are_mapped(tmp_path):
    """192 MiB of vectors take next to no memory."""
    for name, count in (("small", 1), ("large", 1000)):
        turns = cut_in_fours(count)
        table = pa.table(
            {
                "dialogue_id": [str(row) for row in range(count)],
                "utterance_ids": turns,
                "labels": [["a"] * 4] * count,
            }
        )
        features = {f"{each}_features": torch.zeros(4 * count, 4096) for each in ("speech", "text", "visual")}
        write_vectors(tmp_path / name, "train", table, **features)
    call = run_python("-c", MEASURE, tmp_path / "small", tmp_path / "large")
    assert call.returncode == 0, call.stderr
    assert int(call.stdout) < 20_000  # KiB


def cut_in_fours(count: int) -> list[list[str]]:
    return [[f"{row}_{turn}" for turn in range(4)] for row in range(count)]
