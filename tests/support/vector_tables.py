"""Small tables and folders of vectors, in every form that is read."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from mister_e_hf import DialogueVectors
from mister_e_hf.vectors.dialogue_vectors import SPLITS

LABEL2ID = {"anger": 0, "joy": 1, "neutral": 2}


LENGTHS = (3, 1, 4)


TURNS = sum(LENGTHS)


WIDTHS = {"speech": 5, "text": 4}


LABELS = ["anger", "joy", "neutral", "joy", "neutral", "neutral", "anger", "joy"]


VECTORS = pa.list_(pa.list_(pa.float32()))


def cut(values) -> list[list]:
    """One list per dialogue."""
    edges = np.cumsum((0, *LENGTHS))
    return [list(values[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def matrices(seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(TURNS, width)).astype(dtype) for name, width in WIDTHS.items()}


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


def changed(field: str, turn: int, value) -> list[list]:
    values = list(matrices()[field.removesuffix("_features")]) if field.endswith("features") else list(LABELS)
    values[turn] = value
    return cut(values)


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
