from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from mister_e_hf.corpora.demo import demo_corpus
from support.small_encoders import read_lines, write_backbone, write_lines

SIZES = {"train": 32, "validation": 8, "test": 8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("lines")
    return read_lines(write_lines(folder / "source", SIZES), folder / "cache")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {modality: write_backbone(folder / modality, modality) for modality in ("speech", "text")}


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """A small corpus of vectors, with as many turns of validation as a temperature needs."""
    folder = tmp_path_factory.mktemp("demo")
    for split, table in demo_corpus(sizes={"train": 48, "validation": 20, "test": 20}).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder
