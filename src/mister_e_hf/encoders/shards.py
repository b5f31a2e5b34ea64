"""The files of embedded vectors: one shard per run of whole dialogues, and the record of what made them.

A shard is a file of vectors, such as `train-00002-of-00007.safetensors` with `speech_features` (N, Ds) and
`text_features` (N, Dt) for its N turns, and a table of the same name. Both are written whole or not at all, the table
last, so that an interrupted run resumes with the first missing shard.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save

from ..base.errors import InputError, short
from ..base.files import write_json
from ..base.modalities import MODALITIES
from ..base.records import check_same
from ..base.whole_files import UNFINISHED, write_atomically
from ..corpora.dialogues import turns_of_dialogues
from ..corpora.provenance import Provenance
from ..vectors.corpus_labels import LABELS_KEY
from ..vectors.turn_fields import turn_columns

logger = logging.getLogger(__name__)

RECORD = "embedding.json"


@dataclass(frozen=True)
class Shard:
    """
    Args:
        split: name of the split.
        number, count: which shard of the split it is, from 0, and how many there are.
        begin, end: the first of its dialogues, and the one after the last.
        num_turns: of these dialogues.
    """

    split: str
    number: int
    count: int
    begin: int
    end: int
    num_turns: int

    def table(self, folder: Path) -> Path:
        return folder / f"{self.split}-{self.number:05}-of-{self.count:05}.parquet"

    def vectors(self, folder: Path) -> Path:
        return self.table(folder).with_suffix(".safetensors")

    def dialogues(self, corpus: datasets.DatasetDict) -> datasets.Dataset:
        return corpus[self.split].select(range(self.begin, self.end))

    def is_whole(self, folder: Path) -> bool:
        """Whether both files exist and can be read; the size of the vectors must be that in their header."""
        if not self.table(folder).is_file():
            return False
        try:
            pq.read_metadata(self.table(folder))
            with safe_open(self.vectors(folder), framework="pt"):
                return True
        except Exception as error:  # libraries raise errors of every type for damaged content
            logger.warning(
                "'%s' or its vectors are damaged (%s); they are embedded again", self.table(folder), short(error)
            )
            return False

    def write(
        self,
        folder: Path,
        data: datasets.Dataset,
        features: Mapping[str, torch.Tensor],
        presence: Mapping[str, torch.Tensor],
    ):
        r"""
        Args:
            folder: of all shards.
            data: its dialogues.
            features: vectors (N, D) by modality.
            presence: by modality, whether each turn has it, (N,).
        """
        columns = _columns(data)
        for modality, present in presence.items():
            columns[MODALITIES[modality].has] = _by_dialogue(pa.array(present.numpy()), data)
        names = data.features["utterances"].feature["emotion"].names  # those that no turn has, too
        metadata = {LABELS_KEY: json.dumps(names).encode()}
        metadata |= Provenance.of(data.info).metadata()  # the corpus's licence applies to its vectors, too
        named_features = {MODALITIES[modality].features: vectors for modality, vectors in features.items()}
        # not save_file, which first writes to a file with a name of its own and leaves it behind if it is killed
        write_atomically(self.vectors(folder), lambda partial: partial.write_bytes(save(named_features)))
        write_atomically(
            self.table(folder), lambda partial: pq.write_table(pa.table(columns, metadata=metadata), partial)
        )


def shards_of(corpus: datasets.DatasetDict, turns: int) -> list[Shard]:
    """Every split in runs of whole dialogues of about so many turns."""
    shards = []
    for split, data in corpus.items():
        ends = np.cumsum(turns_of_dialogues(data), dtype=np.int64)
        cuts = {0, *(int(np.searchsorted(ends, goal)) + 1 for goal in range(turns, int(ends[-1]), turns)), len(ends)}
        runs = list(zip(sorted(cuts), sorted(cuts)[1:], strict=False))
        for number, (begin, end) in enumerate(runs):
            turns_before = int(ends[begin - 1]) if begin else 0
            shards.append(Shard(split, number, len(runs), begin, end, int(ends[end - 1]) - turns_before))
    return shards


def claim(folder: Path, record: dict, writes: bool):
    r"""
    Record in a folder what its vectors are made from, or check that it is the same as before.

    Args:
        folder: for the shards.
        record: what the vectors depend on, for `embedding.json`.
        writes: whether this process writes the record.

    Raises:
        InputError: if the folder holds vectors made from something else, or other files.
    """
    path = folder / RECORD
    if check_same(path, record, "vectors", "folder") or not writes:
        return
    if any(not path.name.startswith(UNFINISHED) for path in folder.iterdir()):
        raise InputError(f"'{folder}' is not empty and has no {RECORD}; choose another folder")
    write_json(path, record)


def _columns(data: datasets.Dataset) -> dict[str, pa.Array]:
    """The columns that stage 2 and its reader need: every field of a turn but its media and times."""
    flat = turn_columns(data.data.column("utterances"), data.features.arrow_schema, "the corpus")
    return {"dialogue_id": pa.array(data["dialogue_id"][:], pa.string())} | {
        name: _by_dialogue(values, data) for name, values in flat.items()
    }


def _by_dialogue(values: pa.Array, data: datasets.Dataset) -> pa.ListArray:
    lengths = turns_of_dialogues(data)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)
