"""Normalise emotion labels: one class per label, however it is written, and warnings about doubtful ones."""

import difflib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
# What data frames and spreadsheets write for an empty cell, and nobody calls an emotion.
_NOTHING = {"nan", "<na>", "nat", "null", "#n/a", "#na", "\\n"}
_LIST = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_SCORE = re.compile(r"[+-]?\d*[.,]\d+([eE][+-]?\d+)?")
_RARE = 0.1  # of the turns of another class, below which a class may be a misspelling of it
_LIKE = 0.85  # of difflib's ratio
_MOST_COMPARED = 200
# What may be an empty cell, or a class.
_DOUBTFUL = {
    "-1",
    "none",
    "na",
    "n/a",
    "?",
    "-",
    "unknown",
    "xxx",
    "oth",
    "other",
    "undefined",
    "unlabelled",
    "unlabeled",
    "true",
    "false",
}
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")


def written(label: str) -> str:
    """A label without invisible characters; whole numbers without decimals, so 0.0 becomes 0."""
    label = " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", label)).split())
    whole = _WHOLE.fullmatch(label)
    return whole[1] if whole else label


def unify_labels(rows: Sequence[dict[str, Any]], labels: Sequence[str] | None, source: str):
    r"""
    Let every row's `emotion` be the label's one spelling, in place. Labels that differ in case, blanks, hyphens or
    Unicode form alone are one class, under the most frequent spelling, or that of `labels`; what a data frame writes
    for an empty cell counts as no label. Warnings name both, and classes that may not be meant as such.

    Args:
        rows: with an `emotion`, or None.
        labels: the user's own names of the classes, if given; spellings that they distinguish stay separate.
        source: for messages.

    Raises:
        InputError: naming the row, if a label is a list or a number with decimals, and not one of `labels`.
    """
    counts = Counter(row["emotion"] for row in rows if row["emotion"] is not None)
    own = {written(label): label for label in labels or ()}
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(_key(label), []).append(label)
    spelling: dict[str, str | None] = {}
    for key, found in alike.items():
        if key in _NOTHING and not any(written(label) in own for label in found):
            spelling |= dict.fromkeys(found)
            continue
        wanted = [label for label in own if _key(label) == key]
        forms: Counter[str] = Counter()
        for label in found:
            forms[written(label)] += counts[label]
        best = wanted[0] if len(wanted) == 1 else min(forms, key=lambda form: (-forms[form], form.swapcase()))
        for label in found:
            form = written(label)
            chosen = form if len(wanted) > 1 else best
            spelling[label] = own.get(chosen, chosen)
        if len(wanted) < 2 and (len(forms) > 1 or (wanted and wanted[0] not in forms)):
            logger.warning(
                "%s: the emotions %s differ in writing alone and are one class, '%s'",
                source,
                ", ".join(f"'{short(form, 60)}' ({count})" for form, count in forms.most_common(10)),
                short(own.get(best, best), 60),
            )
    nothing = {label: counts[label] for label, chosen in spelling.items() if chosen is None}
    if nothing:
        logger.warning(
            "%s: %d turns with the emotion %s are read as turns without a label",
            source,
            sum(nothing.values()),
            ", ".join(f"'{label}'" for label in nothing),
        )
    if not own:
        _check_names(rows, spelling, source)
    doubtful = sorted(
        {chosen for chosen in spelling.values() if chosen is not None and chosen.casefold() in _DOUBTFUL}
    )
    if doubtful and not own:
        logger.warning(
            "%s: %s is a class, with %d turns. If it says that a turn has no label, leave those cells empty.",
            source,
            ", ".join(f"the emotion '{label}'" for label in doubtful),
            sum(count for label, count in counts.items() if spelling[label] in doubtful),
        )
    for row in rows:
        if row["emotion"] is not None:
            row["emotion"] = spelling[row["emotion"]]


def _check_names(rows: Sequence[dict[str, Any]], spelling: dict[str, str | None], source: str):
    counts = Counter(name for row in rows if (name := spelling.get(row["emotion"])) is not None)
    wrong = {
        name: "a list; a turn has one emotion"
        if _LIST.fullmatch(name)
        else "a number with decimals; scores go to sentiment, or to columns that --scores names"
        for name in counts
        if _LIST.fullmatch(name) or _SCORE.fullmatch(name)
    }
    for row in rows if wrong else ():
        name = spelling.get(row["emotion"])
        if name in wrong:
            raise InputError(
                f"{row['where']}: emotion {short(repr(name), 60)} is {wrong[name]}, or name the classes with labels"
            )
    if len(counts) >= 10 and len(counts) * 2 > counts.total():
        logger.warning(
            "%s: %d classes among %d turns with an emotion: does the column hold classes, or free text?",
            source,
            len(counts),
            counts.total(),
        )
        return
    alike = list(_alike(counts))
    if alike:
        logger.warning(
            "%s: the emotions %s are classes of their own. If one is another spelling of the other, write both alike.",
            source,
            ", ".join(
                f"'{short(one, 60)}' ({counts[one]}) and '{short(other, 60)}' ({counts[other]})"
                for one, other in alike[:10]
            ),
        )


def _alike(counts: Counter) -> Iterator[tuple[str, str]]:
    """
    Pairs of labels that differ in punctuation or leading zeros, and rare classes that may be misspellings of frequent
    ones.
    """
    names = [name for name, _ in counts.most_common(_MOST_COMPARED)]
    for place, name in enumerate(names):
        for other in names[:place]:
            rare = counts[name] < _RARE * counts[other] and min(len(name), len(other)) > 3
            if _bare(name) == _bare(other) or (
                rare and difflib.SequenceMatcher(None, _key(name), _key(other)).ratio() > _LIKE
            ):
                yield name, other


def _bare(label: str) -> str:
    """A label without punctuation and accents; a number without its plus sign and leading zeros."""
    plain = unicodedata.normalize("NFKD", _key(label)).replace("\u2212", "-")
    plain = "".join(one for one in plain if not unicodedata.combining(one))
    number = re.fullmatch(r"(-?)\+?0*(\d+)", plain)
    return number[1] + number[2] if number else re.sub(r"[^\w]|_", "", plain) or plain


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", written(label)).casefold()).strip() or label
