"""Find cells that probably hold something else: placeholders for nothing, names in texts, times in other units."""

import logging
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

# What data frames, databases and spreadsheets write for an empty cell, in their spelling: "Nan" may be a word.
_NOTHING = {"nan", "NaN", "<NA>", "NaT", "#N/A", "\\N", "NULL"}
_ERRORS = {"#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!", "#ERROR!"}
_NAMED = re.compile(r"(\[[^\]:]{1,40}\]|[^\W\d_][^:]{0,40}?)\s*:\s+\S")
_MOST_SECONDS = 100.0  # median length of a turn


def check_cell(value: Any, field: str, where: str):
    """Raise InputError if a cell holds the error that a spreadsheet shows in place of its content."""
    if isinstance(value, str) and value.strip() in _ERRORS:
        raise InputError(
            f"{where}: {field} is {value.strip()}, which a spreadsheet shows in place of what it took for a formula. "
            "Type the cell again in a column with the format text"
        )


def check_turns(rows: Sequence[dict[str, Any]]):
    r"""
    Replace placeholders for nothing in texts and speakers by None, with a warning; warn about texts that begin with
    the speaker's name, which a model would be given; raise InputError for times in milliseconds.


    Args:
        rows: turns with all fields, changed in place.

    Raises:
        InputError: if times seem to be milliseconds.
    """
    _empty_what_says_nothing(rows)
    _warn_of_names(rows)
    tables = defaultdict(list)
    for row in rows:
        if row["start"] is not None and row["end"] is not None:
            tables[row["source"]].append(row)
    for turns in tables.values():
        _check_unit(turns)


def _empty_what_says_nothing(rows: Sequence[dict[str, Any]]):
    for field in ("text", "speaker"):
        found = [row for row in rows if row[field] in _NOTHING]
        if found:
            logger.warning(
                "%s and %d more: %s '%s' is what programs write for an empty cell; these turns have no %s",
                found[0]["where"],
                len(found) - 1,
                field,
                found[0][field],
                field,
            )
        for row in found:
            row[field] = None


def _warn_of_names(rows: Sequence[dict[str, Any]]):
    texts = [(row, _NAMED.match(row["text"])) for row in rows if row["text"]]
    named = [(row, found[1]) for row, found in texts if found]
    names = Counter(name for _, name in named)
    # A few speakers say all turns; other words before a colon rarely recur.
    if len(named) > 1 and len(named) * 2 > len(texts) and len(names) * 2 <= len(named):
        logger.warning(
            "%s and %d more of %d texts begin with a name, such as '%s:'. A model is given it as a word that was "
            "said; move it to the column speaker, or to <v NAME> in WebVTT",
            named[0][0]["where"],
            len(named) - 1,
            len(texts),
            short(named[0][1], 60),
        )


def _check_unit(turns: Sequence[dict[str, Any]]):
    whole = all(row[field] == int(row[field]) for row in turns for field in ("start", "end"))
    usual = statistics.median(row["end"] - row["start"] for row in turns)
    if whole and usual > _MOST_SECONDS:
        raise InputError(
            f"{turns[0]['where']}: start {turns[0]['start']:g} and end {turns[0]['end']:g} would be seconds, and half "
            "of the turns last more "
            f"than {usual:g} s. If they are milliseconds, divide them by 1000; leave the columns out if they are "
            "neither"
        )
