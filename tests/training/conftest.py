from pathlib import Path

import datasets
import pytest

from mister_e_hf.corpora.demo import write_demo_corpus
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
    return write_demo_corpus(tmp_path_factory.mktemp("demo"))
