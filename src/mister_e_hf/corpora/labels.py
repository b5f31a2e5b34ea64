"""Emotion labels as tables write them: one class for one label, however it is written, and a word on what may not be a label."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import short

logger = logging.getLogger(__name__)

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
# What data frames and spreadsheets write for an empty cell, and nobody calls an emotion.
_NOTHING = {"nan", "<na>", "nat", "null", "#n/a", "#na"}
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
    """A label without what cannot be seen, and a whole number without its decimals: 0.0 is 0."""
    label = " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", label)).split())
    whole = _WHOLE.fullmatch(label)
    return whole[1] if whole else label


def unify_labels(rows: Sequence[dict[str, Any]], labels: Sequence[str] | None, source: str):
    r"""
    Let every row's `emotion` be the label's one spelling, in place. Labels that differ in case, blanks, hyphens or Unicode form alone are one class,
    under the most frequent spelling, or that of `labels`; what a data frame writes for an empty cell is no label. Warnings name both, and classes
    that may not be meant as such.

    Args:
        rows: with an `emotion`, or None.
        labels: the user's own names of the classes, if given; spellings that they tell apart stay apart.
        source: for messages.
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
        forms = Counter()
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


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", written(label)).casefold()).strip() or label
