"""Small corpora of vectors whose tables name the columns of their speech vectors."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mister_e_hf import write_vectors
from mister_e_hf.vectors.dialogue_vectors import SPLITS

TURNS = (3, 1)


def with_names(table: pa.Table, names: list[str] | None) -> pa.Table:
    """The table with the names of its speech columns in its metadata."""
    if names is None:
        return table
    return table.replace_schema_metadata({"erc": json.dumps({"speech_feature_names": names})})


def write_named(
    folder: Path,
    prefix: str,
    names: list[str] | None,
    speech: int | None = None,
    text: int | None = 3,
    splits=SPLITS,
    dtype: torch.dtype = torch.float32,
    labels: list | None = None,
    beside: bool = True,
) -> Path:
    """
    A corpus of two dialogues per split; column d of turn t has the value 100 (number of the split) + 10 t + d in
    speech, and its negative in text.
    """
    widths = {"speech": speech if names is None else len(names), "text": text}
    for number, split in enumerate(splits):
        columns = {
            "dialogue_id": [f"{prefix}-{split}-{row}" for row in range(len(TURNS))],
            "utterance_ids": [[f"{row}_{turn}" for turn in range(count)] for row, count in enumerate(TURNS)],
        }
        if labels is not None:
            columns["labels"] = [[labels[turn % len(labels)] for turn in range(count)] for count in TURNS]
        features = {
            f"{modality}_features": (sign * vectors_of(number, width)).to(dtype)
            for (modality, width), sign in zip(widths.items(), (1, -1), strict=True)
            if width is not None
        }
        if beside:
            write_vectors(folder, split, with_names(pa.table(columns), names), **features)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            cut = {name: [rows.tolist() for rows in tensor.split(TURNS)] for name, tensor in features.items()}
            pq.write_table(with_names(pa.table(columns | cut), names), folder / f"{split}.parquet")
    return folder


def vectors_of(number: int, width: int) -> torch.Tensor:
    """The speech vectors (N, D) of split `number`."""
    return 100.0 * number + 10.0 * torch.arange(sum(TURNS))[:, None] + torch.arange(width)
