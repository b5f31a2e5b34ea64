"""Write a corpus folder: one Parquet table per split with a row per dialogue, and a card."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..base.errors import InputError
from ..base.progress import bar
from ..media import audio
from ..media.video import encode_clip
from .provenance import METADATA_KEY, Provenance
from .publishing import corpus_card, table_files
from .schema import SPLITS

_SHARD_BYTES = 500 * 1024 * 1024


def write_corpus(
    corpus: datasets.DatasetDict,
    folder: str | Path,
    embed_audio: bool = False,
    name: str | None = None,
    license: str | None = None,
) -> Path:
    r"""
    Write `train.parquet`, `validation.parquet` and `test.parquet` (in shards where one is over 500 MB) and a card. The
    folder appears whole or not at all; one that holds a corpus is replaced, any other is left alone.

    Args:
        corpus: what a builder's `as_dataset()` gives.
        folder: where to.
        embed_audio: store the audio of each turn in the tables, as mono 16 kHz FLAC, and its video, as H.264 in MP4
            without sound, so that the folder can be moved; else they keep the paths of the source files.
        name: what to call the corpus, stored in each table ([`Provenance`]); by default what its reader calls it.
        license: under which it may be shared, as the Hub abbreviates licences; by default what its reader knows.

    Raises:
        FileExistsError: if the folder holds anything but a corpus.
        ValueError: if the corpus has no dialogue, or a split of another name.
        AudioError, VideoError: if audio or video files changed since they were checked.
    """
    if not set(corpus) <= set(SPLITS):
        raise InputError(f"A corpus has the splits {SPLITS}, or some of them; got {tuple(corpus)}")
    # datasets does not load splits without rows.
    corpus = datasets.DatasetDict({split: corpus[split] for split in SPLITS if len(corpus.get(split, ()))})
    if not corpus:
        raise InputError("The corpus has no dialogue")
    provenance = Provenance.of(next(iter(corpus.values())).info)
    provenance = dataclasses.replace(provenance, name=name or provenance.name, license=license or provenance.license)
    folder = Path(folder).expanduser().resolve()
    check_replaceable(folder)
    unfinished, replaced = (folder.with_name(f".{word}-{folder.name}") for word in ("unfinished", "replaced"))
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)  # an interrupt may come before the next line
        for split, data in corpus.items():
            _write_split(data, unfinished, split, embed_audio, provenance)
        (unfinished / "README.md").write_text(corpus_card(corpus, provenance), encoding="utf-8")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def described(folder: str | Path) -> str | None:
    """Name and size of the corpus in a folder, or None."""
    folder = Path(folder).expanduser()
    tables = table_files(folder)
    if not tables:
        return None
    dialogues = sum(pq.read_metadata(table).num_rows for table in tables)
    return f"'{Provenance.of_folder(folder).name or folder.name}' with {dialogues:,} dialogues"


def check_replaceable(folder: str | Path):
    """Raise FileExistsError if the folder holds anything but a corpus without vectors."""
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and (_is_corpus(folder) or not any(folder.iterdir()))):
        raise FileExistsError(
            f"'{folder}' exists and holds something other than a corpus; choose another place, or remove it"
        )


def _is_corpus(folder: Path) -> bool:
    """Whether the folder contains only what `write_corpus` writes, without vectors."""
    tables = table_files(folder)
    if not tables or {*folder.iterdir()} - {*tables, folder / "README.md"}:
        return False
    try:
        schemas = [pq.read_schema(table) for table in tables]
    except (pa.ArrowInvalid, OSError):
        return False
    return all(
        METADATA_KEY in (schema.metadata or {}) and not any(name.endswith("_features") for name in schema.names)
        for schema in schemas
    )


def _write_split(data: datasets.Dataset, folder: Path, split: str, embed_audio: bool, provenance: Provenance):
    schema = data.features.arrow_schema
    schema = schema.with_metadata(schema.metadata | provenance.metadata())
    shards: list[Path] = []
    writer = None
    for table in _tables(data, split, schema, embed_audio):
        if writer is None:
            shards.append(folder / f"{split}-{len(shards):05}.partial")
            writer = pq.ParquetWriter(shards[-1], schema)
        writer.write_table(table)
        if shards[-1].stat().st_size >= _SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for number, path in enumerate(shards):
        path.rename(
            folder / (f"{split}.parquet" if len(shards) == 1 else f"{split}-{number:05}-of-{len(shards):05}.parquet")
        )


def _tables(data: datasets.Dataset, split: str, schema: pa.Schema, embed_audio: bool) -> Iterator[pa.Table]:
    """Yield a few dialogues at a time, so that memory does not grow with the corpus, which may contain audio."""
    with bar(f"writing {split}", len(data), "dialogues") as progress:
        for table in data.with_format("arrow").iter(batch_size=8 if embed_audio else 100):
            if embed_audio:
                rows = table.to_pylist()
                for row in rows:
                    row["utterances"] = [_embedded(turn) for turn in row["utterances"]]
                table = pa.Table.from_pylist(rows, schema=schema)
            yield table.cast(schema)
            progress.update(len(table))


def _embedded(turn: dict) -> dict:
    """
    The turn with its audio as FLAC and its video as MP4 without sound, both cut, so that nothing is stored twice.
    """
    stretch = turn["start"], turn["end"]
    name = turn["utterance_id"].replace("/", "_")
    if turn["audio"] is not None:
        samples = audio.load_audio(turn["audio"], None, *stretch, math.inf)
        turn = turn | {"audio": {"bytes": audio.encode_flac(samples), "path": f"{name}.flac"}}
    if turn.get("video") is not None:
        turn = turn | {"video": {"bytes": encode_clip(turn["video"], *stretch), "path": f"{name}.mp4"}}
    elif turn["audio"] is None:
        return turn
    return turn | {"start": None, "end": None}
