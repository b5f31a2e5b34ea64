"""Turns of a finished corpus, of vectors or of dialogues, as the pipeline takes them."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from ..base.errors import InputError, reading
from ..base.modalities import MODALITIES
from ..corpora.schema import SPLITS
from ..models.configuration_conversation import ConversationConfig
from ..vectors.dialogue_vectors import DialogueVectors
from ..vectors.store import holds_vectors, read_corpus
from .dialogue_turns import DialogueTurns

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"-\d+-of-\d+$")


class FinishedCorpus(NamedTuple):
    """A corpus folder or one of its tables, its splits, and whether they hold vectors or dialogues."""

    source: Path
    splits: list[str]
    of_vectors: bool


def finished_corpus(source: Path) -> FinishedCorpus | None:
    r"""
    The corpus that a folder or one Parquet table holds, as `mister-e corpus` and stage 1 write it; None if it is
    neither, such as a table with a row per turn.

    Raises:
        InputError: if a table is damaged, or the folder is a checkpoint.
    """
    if (source / "config.json").is_file():
        beside = f"; its own vectors are in '{source / 'vectors'}'" if (source / "vectors").is_dir() else ""
        raise InputError(
            f"'{source}' is a checkpoint, which --model takes; the input of predict is a recording, a table or a "
            f"corpus{beside}"
        )
    tables = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not tables or any(path.suffix.lower() != ".parquet" for path in tables):
        return None
    if source.is_dir():
        splits, of_vectors = {_SHARD.sub("", path.stem) for path in tables}, holds_vectors(source)
    else:
        splits, vectors = {source.stem}, {each.features for each in MODALITIES.values()}
        of_vectors = bool(vectors & _columns(source)) or source.with_suffix(".safetensors").is_file()
    if not of_vectors and not all("utterances" in _columns(path) for path in tables):
        return None
    in_order = sorted(splits, key=lambda split: ([*SPLITS, split].index(split), split))
    return FinishedCorpus(source, in_order, of_vectors)


def _columns(path: Path) -> set[str]:
    with reading(path, "a Parquet table"):
        return set(pq.read_schema(path).names)


def turns_of_vectors(corpus: FinishedCorpus, config: ConversationConfig) -> Iterator[DialogueTurns]:
    r"""
    The dialogues of a corpus of vectors, whose labels are not read, with the speech columns that the model states.

    Raises:
        FileNotFoundError, InputError: as in [`~mister_e_hf.vectors.store.read_corpus`]; if the model expects vectors
            of another width, or reads none of those that the corpus has.
    """
    folder = corpus.source if corpus.source.is_dir() else corpus.source.parent
    read = read_corpus(folder, {}, splits=tuple(corpus.splits), speech_columns=config.speech_columns)
    for data in read.values():
        data.check(config.read_widths)
        if not set(data.vectors) & set(config.modalities):
            raise InputError(
                f"'{corpus.source}': {data.name} holds vectors of {' and '.join(data.vectors)}, and the model reads "
                f"those of {' and '.join(config.modalities)}"
            )
    found = {name for data in read.values() for name in data.vectors}
    if unread := [name for name in MODALITIES if name in found and name not in config.modalities]:
        logger.warning("The model does not read the %s vectors of '%s'", " and ".join(unread), corpus.source)
    for split, data in read.items():
        for number, name in enumerate(data.dialogue_ids):
            yield DialogueTurns(name, *_turns(data, number, config), split if len(read) > 1 else None)


def _turns(
    data: DialogueVectors, number: int, config: ConversationConfig
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """The turns of a dialogue as vectors; and their transcripts, apart, so that no encoder reads them instead."""
    item = data[number]
    texts = item.get("transcripts") or [None] * int(data.lengths[number])
    turns = [{"text": text} if config.reads_transcripts else {} for text in texts]
    for name in set(data.vectors).intersection(config.modalities):
        field = MODALITIES[name]
        for turn, vector, there in zip(turns, item[field.embeddings], item[field.mask].tolist(), strict=True):
            turn |= {field.embedding: vector.float()} if there else {}
    return turns, texts


def turns_of_dialogues(corpus: FinishedCorpus) -> Iterator[DialogueTurns]:
    r"""
    The dialogues of a corpus of audio, transcripts and video.

    Raises:
        InputError: as in [`~mister_e_hf.corpora.dialogues.load_dialogues`].
    """
    import datasets  # not needed for vectors

    from ..corpora.dialogues import load_dialogues

    source: Path | datasets.DatasetDict = corpus.source
    if corpus.source.is_file():
        with reading(corpus.source, "a Parquet table"):
            data = datasets.Dataset.from_parquet(str(corpus.source))
        source = datasets.DatasetDict({corpus.splits[0]: data})
    chosen = load_dialogues(source)
    for split, data in chosen.items():
        for row in data:
            yield DialogueTurns(row["dialogue_id"], row["utterances"], split=split if len(chosen) > 1 else None)
