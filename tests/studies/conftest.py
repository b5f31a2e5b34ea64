from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mister_e_hf.corpora.demo import demo_corpus


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """A small demo corpus of vectors."""
    folder = tmp_path_factory.mktemp("demo")
    for split, table in demo_corpus(sizes={"train": 16, "validation": 6, "test": 8}).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder
