"""Load datasets from the Hub."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets


def load_from_hub(name: str) -> "datasets.DatasetDict":
    """
    Load all splits of a dataset on the Hub; raises FileNotFoundError if the name is neither a local folder nor a
    dataset that loads.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"No corpus folder at '{name}'")
    from datasets import load_dataset

    try:
        return load_dataset(name)
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor a dataset that could be loaded from the Hub: {error}"
        ) from error


def tables_on_hub(name: str) -> list[Path]:
    """The Parquet tables of a dataset on the Hub, in the cache; raises FileNotFoundError if they cannot be loaded."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, repo_type="dataset", allow_patterns="*.parquet")
        return list(Path(folder).rglob("*.parquet"))
    except Exception as error:
        raise FileNotFoundError(f"The tables of '{name}' could not be loaded from the Hub: {error}") from error
