"""The columns of speech vectors by name.

A table of vectors states the names in the metadata of its schema: under `erc` a JSON object with
`speech_feature_names`, one name per column of `speech_features`, in order.
"""

import difflib
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

METADATA_KEY, NAMES = b"erc", "speech_feature_names"


def check_speech_columns(given: Any, where: str = "speech_columns"):
    """Raise an `InputError` unless these are names of columns, at least one and each once."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InputError(f"{where} must be a list of one name or more, got {short(repr(given))}")
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where} must be names, none of them empty, got {short(repr(name))}")
    if twice := [name for name in given if list(given).count(name) > 1]:
        raise InputError(f"{where} must name each column once, got '{twice[0]}' twice")


def speech_names(schema: pa.Schema, where: str) -> list[str] | None:
    r"""
    The names of the columns of a table's speech vectors; None if it states none.

    Args:
        schema: schema of the table.
        where: what to call the table in messages.

    Raises:
        InputError: if the metadata is damaged, or names a column twice.
    """
    stored = (schema.metadata or {}).get(METADATA_KEY)
    if stored is None:
        return None
    try:
        names = json.loads(stored).get(NAMES, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"'{NAMES}' must be a list of strings, got {short(names)}")
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: the table's metadata 'erc' is damaged ({short(error)})") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{where}: the table's metadata names the speech column '{twice[0]}' twice")
    return names or None


def stating(names: Sequence[str] | None) -> dict[bytes, bytes]:
    """The metadata of a table that states these names; empty for None."""
    return {} if names is None else {METADATA_KEY: json.dumps({NAMES: list(names)}).encode()}


def places_of(wanted: Sequence[str], names: Sequence[str] | None, width: int, where: str) -> list[int]:
    r"""
    The place of each wanted column in the speech vectors of a table.

    Args:
        wanted: names of columns.
        names: what [`speech_names`] found.
        width: width of the vectors.
        where: what to call the table in messages.

    Raises:
        InputError: if the table states no names, not one for each column, or lacks a wanted one; the nearest are
            listed.
    """
    if names is None:
        raise InputError(f"{where}: the table does not name the columns of its speech vectors ('erc', '{NAMES}')")
    if len(names) != width:
        raise InputError(f"{where}: the table names {len(names)} speech columns, but its vectors have width {width}")
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{where}: {unknown_column(missing[0], names)}")
    return [names.index(name) for name in wanted]


def unknown_column(name: str, names: Sequence[str]) -> str:
    """The end of a message about a wanted column that a table does not name."""
    near = difflib.get_close_matches(name, names, 3)
    there = f"did you mean {' or '.join(map(repr, near))}?" if near else f"its columns are {short(', '.join(names))}"
    return f"the speech vectors have no column '{name}', which speech_columns name; {there}"


def stated_in_all(schemas: Mapping[str, pa.Schema], where: str) -> bool:
    r"""
    Whether the tables of a corpus name the columns of their speech vectors.

    Args:
        schemas: schema of the table of each split.
        where: what to call the corpus in messages.

    Raises:
        InputError: if some of them do and others do not.
    """
    stated = {split: speech_names(schema, f"{where}, {split}") is not None for split, schema in schemas.items()}
    if len(set(stated.values())) > 1:
        having, lacking = ([split for split, names in stated.items() if names == kind] for kind in (True, False))
        raise InputError(
            f"{where}: {', '.join(having)} names the columns of its speech vectors, {', '.join(lacking)} does not; "
            f"write '{NAMES}' into the metadata 'erc' of every table"
        )
    return all(stated.values())


@functools.cache
def warn_without_speech(reason: str):
    """Warn, once for each reason, that a corpus counts as one without speech."""
    logger.warning("%s, by which speech_columns pick, so it counts as a corpus without speech", reason)
