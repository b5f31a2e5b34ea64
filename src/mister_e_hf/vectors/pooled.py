"""Several corpora of vectors as one dataset, without their labels: what pre-training reads.

Letters: N turns, D vector width.
"""

import collections
import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..base.errors import InputError, short
from ..base.modalities import MODALITIES
from .dialogue_vectors import DialogueVectors, VectorColumn
from .named_columns import check_speech_columns, speech_names, unknown_column
from .store import (
    Table,
    dialogue_ids,
    modalities_in,
    read_tables,
    without_speech,
    without_unnamed_speech,
)


def read_pooled(
    sources: Sequence[str | Path], splits: Sequence[str] = ("train",), speech_columns: Sequence[str] | None = None
) -> DialogueVectors:
    r"""
    Read splits of several corpora of vectors as one dataset of dialogues without labels; no column of labels is read,
    so the corpora may have different ones or none.

    A modality that a corpus lacks is absent in its turns. The dialogues follow one another in the order of the corpora
    and splits; their ids must differ, in the splits that are not read, too, so that no recording is in two corpora.

    Args:
        sources: corpora as [`~mister_e_hf.vectors.store.read_corpus`] takes them.
        splits: the splits to read; each corpus must have them.
        speech_columns: the columns of the speech vectors to keep, by name and in this order. A corpus that does not
            name the columns of its speech vectors, or names none of these, counts as one without speech, with a
            warning.

    Raises:
        FileNotFoundError: if a corpus or a split is missing.
        InputError: naming the corpora, if the vectors of a modality differ in width, a dialogue is in two of them, or
            no corpus has a column of a wanted name; or naming corpus, dialogue and field, if a table does not have
            this form or a vector is not finite.
    """
    _check_different(sources, splits)
    given = {str(source): read_tables(source, splits, named=speech_columns is not None) for source in sources}
    for source, tables in given.items():
        if lacking := [split for split, table in tables.items() if not modalities_in(table)]:
            raise InputError(
                f"'{source}' holds no vectors in {lacking[0]}: encoders make them of audio, transcripts and video "
                "(mister-e embed). Or leave it out"
            )
    check_unique_in_all(sources)
    if speech_columns is not None:
        check_speech_columns(speech_columns)
        given = _with_speech_columns(given, speech_columns)
    corpora: dict[str, list[DialogueVectors]] = {}
    for source, tables in given.items():
        parts = {
            split: DialogueVectors(table, vectors=beside, name=f"'{source}', {split}", speech_columns=speech_columns)
            for split, (table, beside) in tables.items()
        }
        for data in parts.values():
            data.check({})
        corpora[source] = list(parts.values())
    _check_widths(corpora, given)
    return pool([data for parts in corpora.values() for data in parts], ", ".join(splits))


def _check_different(sources: Sequence[str | Path], splits: Sequence[str]):
    if isinstance(sources, str | Path) or not len(sources):
        raise InputError(f"Expected a list of one corpus or more, got {short(repr(sources))}")
    if isinstance(splits, str) or not len(splits) or len(set(splits)) < len(splits):
        raise InputError(f"Expected a list of splits, each once, got {short(repr(splits))}")
    places: dict[str, str] = {}
    for source in map(str, sources):
        folder = Path(source).expanduser()
        place = str(folder.resolve()) if folder.is_dir() else source
        if place in places:
            also = "" if places[place] == source else f", also as '{places[place]}'"
            raise InputError(f"The corpus '{source}' is given twice{also}; give each corpus once")
        places[place] = source


def _with_speech_columns(corpora: dict[str, dict[str, Table]], wanted: Sequence[str]) -> dict[str, dict[str, Table]]:
    """The tables of all corpora, without the speech vectors of a corpus that has none of the wanted columns."""
    given = {source: without_unnamed_speech(source, tables) for source, tables in corpora.items()}
    stated = {source: _speech_names(source, tables) for source, tables in given.items()}
    known = list(dict.fromkeys(itertools.chain(*stated.values())))
    if known and not set(known) & set(wanted):
        raise InputError(f"{', '.join(map(repr, given))}: {unknown_column(wanted[0], known)}")
    for source, names in stated.items():
        if names and not set(names) & set(wanted):
            reason = f"'{source}' has other speech columns ({short(', '.join(names), 80)})"
            given[source] = without_speech(given[source], reason)
    return given


def _speech_names(source: str, tables: dict[str, Table]) -> list[str]:
    """The names of the columns of a corpus's speech vectors; empty if it does not state them, or has none."""
    schemas = [each[0].schema for each in tables.values() if "speech" in modalities_in(each)]
    return (speech_names(schemas[0], f"'{source}'") if schemas else None) or []


def _check_widths(corpora: dict[str, list[DialogueVectors]], given: dict[str, dict[str, Table]]):
    found: dict[str, tuple[str, int]] = {}
    for source, parts in corpora.items():
        for modality, column in (pair for data in parts for pair in data.vectors.items()):
            other, width = found.setdefault(modality, (source, column.width))
            if width != column.width:
                raise InputError(
                    f"The {modality} vectors of '{other}' have width {width}, those of '{source}' {column.width}; "
                    "corpora can be pooled if their vectors have the same width. "
                    + _remedy(modality, other, source, given)
                )


def _remedy(modality: str, one: str, other: str, given: dict[str, dict[str, Table]]) -> str:
    """What to do about two corpora whose vectors differ in width."""
    leave = f"Leave out one of them, or the {MODALITIES[modality].features} of one"
    if modality != "speech":
        return leave
    names = [_speech_names(source, given[source]) for source in (one, other)]
    if shared := [name for name in names[0] if name in names[1]]:
        return (
            f"Pick columns that both name with corpus.speech_columns ({short(', '.join(shared))}), or leave out one "
            "of them"
        )
    nameless = [source for source, stated in zip((one, other), names, strict=True) if not stated]
    why = f"'{nameless[0]}' names no columns" if nameless else "they have no names in common"
    return f"With corpus.speech_columns, the names of columns, only corpora with these have speech ({why}). {leave}"


def check_unique_in_all(sources: Sequence[str | Path]):
    """Raise an `InputError` if a dialogue is in two corpora, or twice in one, whichever splits are read."""
    seen: dict[str, tuple[str, str]] = {}
    for source in sources:
        own: dict[str, tuple[str, str]] = {}
        for split, names in dialogue_ids(source).items():
            for dialogue in names:
                if dialogue in seen:
                    other, there = seen[dialogue]
                    raise InputError(
                        f"Dialogue '{dialogue}' is in '{other}' ({there}) and in '{source}' ({split}); leave out one "
                        "of the corpora if both hold the same recordings, or rename the dialogues of one"
                    )
                if dialogue in own:
                    there = own[dialogue][1]
                    where = f"twice in {split}" if there == split else f"in {there} and in {split}"
                    raise InputError(f"'{source}': dialogue '{dialogue}' is {where}; each must be in one split, once")
                own[dialogue] = (str(source), split)
        seen |= own


def pool(parts: Sequence[DialogueVectors], name: str) -> DialogueVectors:
    r"""
    The dialogues of several datasets as one, without their labels; the vectors are not copied.

    Raises:
        InputError: if the vectors of a modality differ in width, or a dialogue is in two of them.
    """
    for modality in MODALITIES:
        widths = {data.vectors[modality].width: data.name for data in parts if modality in data.vectors}
        if len(widths) > 1:
            found = ", ".join(f"{width} in {where}" for width, where in widths.items())
            raise InputError(
                f"The {modality} vectors differ in width ({found}), so they cannot be pooled; pick columns that all "
                "have with corpus.speech_columns, or leave out a corpus"
            )
    names = [name for data in parts for name in data.dialogue_ids]
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise InputError(f"Dialogue '{twice}' is in two of the corpora that are pooled; leave one of them out")
    whole = copy.copy(parts[0])
    whole.name, whole.transcripts = name, None
    whole.labels = whole.scores = whole.label2id = whole.targets = None
    whole.dialogue_ids = [dialogue for data in parts for dialogue in data.dialogue_ids]
    whole.utterance_ids = [ids for data in parts for ids in data.utterance_ids]
    whole.lengths = np.concatenate([data.lengths for data in parts])
    whole.offsets = np.concatenate([[0], np.cumsum(whole.lengths)])
    whole.vectors, whole.present = {}, {}
    for modality in MODALITIES:
        having = [data.vectors[modality] for data in parts if modality in data.vectors]
        if not having:
            continue
        absent = torch.zeros(1, having[0].width, dtype=having[0].chunks[0].dtype)
        chunks, files, present = [], [], []
        for data in parts:
            # An expanded tensor takes no memory.
            column = data.vectors.get(modality, VectorColumn([absent.expand(data.num_turns, -1)]))
            # Joined with float16, integers would become float16.
            chunks += [chunk if chunk.is_floating_point() else chunk.float() for chunk in column.chunks]
            files += column.files
            present.append(data.present.get(modality, np.zeros(data.num_turns, dtype=bool)))
        whole.vectors[modality] = VectorColumn(chunks, files)
        whole.present[modality] = np.concatenate(present)
    return whole
