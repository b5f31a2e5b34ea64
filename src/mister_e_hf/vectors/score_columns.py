"""The columns of a corpus that hold a number per turn, as its tables state them."""

from collections.abc import Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..base.errors import reading
from ..corpora.hub_datasets import load_from_hub
from ..corpora.schema import SPLITS
from .turn_fields import class_names, is_list, is_number, with_turn_columns


def score_columns(source: str | Path | Mapping[str, datasets.Dataset]) -> list[str]:
    r"""
    The columns that a regression can predict: those with one number per turn, of a corpus of dialogues or of vectors.

    Args:
        source: a corpus folder, the id of a Hub dataset, or a `datasets.DatasetDict`.

    Returns:
        the names of the columns that every split has, in the order of the first split's table.

    Raises:
        FileNotFoundError: if the corpus does not exist.
    """
    if not isinstance(source, Mapping) and (folder := Path(source).expanduser()).is_dir():
        schemas = []
        for path in sorted(folder.glob("*.parquet")):
            if path.name.startswith(SPLITS):
                with reading(path, "a Parquet file"):
                    schemas.append(pq.read_schema(path))
    else:
        corpus = source if isinstance(source, Mapping) else load_from_hub(str(source))
        schemas = [data.features.arrow_schema for data in corpus.values()]
    found = [_score_columns(schema) for schema in schemas]
    return [name for name in found[0] if all(name in names for names in found)] if found else []


def _score_columns(schema: pa.Schema) -> list[str]:
    if "utterances" in schema.names:
        schema = with_turn_columns(schema.empty_table(), "the corpus").schema
    return [
        field.name
        for field in schema
        if is_list(field.type) and is_number(field.type.value_type) and not class_names(schema, field.name)
    ]
