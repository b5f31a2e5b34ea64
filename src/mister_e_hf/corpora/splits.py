"""Find the split that a table, folder or cell names, and draw splits if nothing names one."""

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..base.plain_text import count_of
from .schema import SPLITS

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
}
_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def split_named(name: str) -> str | None:
    """
    The split that a cell, or the stem of a file or folder, names: `train`, `Devel`, `train-00000-of-00002`,
    `split=test`.
    """
    name = name.strip().casefold().removeprefix("split=")
    return _SPLITS.get(re.sub(r"[-_.]\d+(-of-\d+)?$", "", name)) or _SPLITS.get(name.partition("-")[0])


def splits_of_names(names: Sequence[str]) -> dict[str, str]:
    r"""
    Splits of tables or folders side by side, from their stems: names of splits, and names that contain one
    (`train_data`, `my-test`) if they distinguish at least two splits.
    """
    found = {name: split for name in names if (split := split_named(name))}
    within = {}
    for name in names:
        splits = {_SPLITS[word] for word in re.findall(r"[a-z]+", name.casefold()) if word in _SPLITS}
        if name not in found and len(splits) == 1:
            within[name] = splits.pop()
    return found | within if len({*found.values(), *within.values()}) > 1 else found


def draw_splits(
    dialogues: list[str], shares: tuple[float, float, float], seed: int, tables: Iterable[Path] = ()
) -> dict[str, str]:
    """Draw a split for each dialogue by a hash of its name, so that adding a dialogue hardly moves others."""
    if len(dialogues) < 3:
        if shares[0] < 1:
            logger.warning(
                "Three splits need three dialogues or more; all turns of the %s are train",
                count_of(len(dialogues), "dialogue"),
            )
        return dict.fromkeys(dialogues, "train")
    ranked = sorted(dialogues, key=lambda name: hashlib.blake2b(f"{seed}\0{name}".encode()).digest())
    sizes = [max(1, round(share * len(ranked))) if share else 0 for share in shares]
    sizes[sizes.index(max(sizes))] += len(ranked) - sum(sizes)  # rounding errors go to the largest split
    train, validation, test = sizes
    splits = ["validation"] * validation + ["test"] * test + ["train"] * train
    if max(shares) < 1:
        names = sorted({path.name for path in tables})
        logger.warning(
            "No splits are given: %d dialogues drawn for train, %d for validation, %d for test by seed %d%s",
            *map(splits.count, SPLITS),
            seed,
            f", from {', '.join(names[:10])}{' and others' if len(names) > 10 else ''}" if len(names) > 1 else "",
        )
    return dict(zip(ranked, splits, strict=True))
