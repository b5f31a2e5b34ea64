"""
Load a corpus of dialogues from a folder or the Hub; its turns per dialogue, its fingerprint, its cross-fitting folds.
"""

import glob
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np

from ..base import progress
from ..base.errors import InputError, reading
from .hub_datasets import load_from_hub
from .provenance import Provenance
from .publishing import table_files
from .schema import dialogue_features

_LARGE = 200e6  # bytes of tables that take long to read for the first time


def load_dialogues(source: str | Path | datasets.DatasetDict) -> datasets.DatasetDict:
    r"""
    Load a corpus of dialogues, memory-mapped, as a builder or `mister-e corpus` writes it. Splits without rows are
    left out.

    Args:
        source: a corpus folder, the id of a dataset on the Hub, or a `datasets.DatasetDict`.

    Raises:
        FileNotFoundError: if `source` is neither a corpus folder nor a dataset that loads.
        InputError: if it holds something other than dialogues.
    """
    if isinstance(source, Mapping):
        corpus = source
    else:
        folder = Path(source).expanduser()
        if folder.is_dir():
            corpus = _read_folder(folder)
        else:
            progress.line(f"reading '{source}' from the Hub")
            corpus = load_from_hub(str(source))
    where = "the corpus" if isinstance(source, Mapping) else f"'{source}'"
    for split, data in corpus.items():
        if "utterances" not in data.column_names or "dialogue_id" not in data.column_names:
            raise InputError(
                f"Split {split} of {where} has the columns {data.column_names}; expected dialogue_id and utterances"
            )
        expected = set(dialogue_features(["any"])["utterances"].feature) - {"video"}  # which older corpora lack
        given = getattr(data.features["utterances"], "feature", None)
        if not isinstance(given, dict) or expected - set(given) or not hasattr(given["emotion"], "names"):
            raise InputError(
                f"The utterances of split {split} of {where} are {given}; expected the fields {sorted(expected)}, "
                "emotion a ClassLabel"
            )
    # A split without rows has no tables to read from.
    return datasets.DatasetDict(
        {
            split: data if data._indices is None else data.flatten_indices()
            for split, data in corpus.items()
            if len(data)
        }
    )


def _read_folder(folder: Path) -> datasets.DatasetDict:
    tables = table_files(folder)
    if not tables:
        raise FileNotFoundError(f"'{folder}' holds no tables; create a corpus with `mister-e corpus`")
    # The tables say which corpus they hold, so that its licence goes wherever its vectors go.
    found = [Provenance.of_table(path) for path in tables]
    provenance = next((one for one in found if one.corpus), Provenance(folder.name, folder.name))
    files: dict[str, list[str]] = {}
    for path in tables:
        files.setdefault(re.split("[-.]", path.name)[0], []).append(glob.escape(str(path.absolute())))
    # The files rather than the folder: if its card names the tables, datasets confuses folders of the same name.
    size = sum(path.stat().st_size for path in tables)
    if size > _LARGE:
        progress.line(f"reading the corpus '{folder}', {size / 1e9:.1f} GB")
    with reading(folder, "a corpus folder"):
        corpus = datasets.load_dataset("parquet", data_files=files)
    for data in corpus.values():
        provenance.put(data.info)
    return corpus


def turns_of_dialogues(data: datasets.Dataset) -> np.ndarray:
    """Number of turns of each row, (rows,)."""
    return np.concatenate(
        [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in data.data.column("utterances").chunks]
    )


def cross_fitting_folds(count: int, folds: int) -> np.ndarray:
    r"""
    Assign dialogues to folds of (almost) equal size: random, but the same for the same arguments.

    Args:
        count: number of dialogues.
        folds: number of folds, from 2 to `count`.

    Returns:
        the fold of each dialogue, (count,).

    Raises:
        InputError: if there are fewer dialogues than folds.
    """
    if not 2 <= folds <= count:
        raise InputError(f"{count} dialogues cannot be split into {folds} folds")
    return np.random.default_rng(0).permutation(count) % folds


def corpus_fingerprint(data: datasets.Dataset) -> str:
    """
    Hash of a split's dialogues and label names; audio and video files that it refers to count by path, size and time
    of change.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(data.features["utterances"].feature["emotion"].names).encode())
    for table in data.with_format("arrow").iter(batch_size=8):  # few, since rows may hold audio
        for row in table.to_pylist():
            for turn in row["utterances"]:
                # Without video the fingerprint is that of a corpus written before there was any.
                media = [turn.pop("audio"), *filter(None, [turn.pop("video", None)])]
                digest.update(repr((row["dialogue_id"], sorted(turn.items()))).encode())
                for stored in filter(None, media):
                    if stored["bytes"] is not None:
                        digest.update(stored["bytes"])
                    else:
                        path = Path(stored["path"])
                        state = path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns)
                        digest.update(repr((str(path), state)).encode())
    return digest.hexdigest()
