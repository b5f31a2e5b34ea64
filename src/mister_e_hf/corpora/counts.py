"""Count labelled turns, and compare them with the published numbers of `published/CORPUS.json`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ..base.plain_text import some_of

# By split; a dialogue holds dialogue_id, utterances and, in a release of features, under the modality's name what
# `CorpusBuilder.vectors` makes a vector of, for each turn.
Dialogues = dict[str, list[dict[str, Any]]]


def name_by_counts(
    title: str,
    counts: dict[str, dict[str, int]],
    published: dict[str, dict[str, int]],
    published_turns: dict[str, int],
) -> str:
    r"""
    Name of what was read.

    Args:
        title: of the whole corpus.
        counts: its labelled utterances by split and dialogue.
        published: the published ones.
        published_turns: the published ones by split, or under "all" their sum, where nothing else is published.
    """
    if published_turns:
        found = {split: sum(dialogues.values()) for split, dialogues in counts.items()}
        if "all" in published_turns:
            found = {"all": sum(found.values())}
        whole = found == {split: published_turns[split] for split in found}
        fewer = all(count <= published_turns[split] for split, count in found.items())
    else:
        expected = {split: published.get(split, {}) for split in counts}
        whole = counts == expected
        fewer = all(
            count <= expected[split].get(dialogue, 0)
            for split, found in counts.items()
            for dialogue, count in found.items()
        )
    return title if whole else f"{'part of' if fewer else 'changed'} {title}"


def labelled(data: datasets.Dataset) -> dict[str, int]:
    """Number of labelled utterances of each dialogue that has any."""
    counts: dict[str, int] = {}
    for table in data.with_format("arrow").select_columns(["dialogue_id", "utterances"]).iter(batch_size=1000):
        for name, turns in zip(table["dialogue_id"].to_pylist(), table["utterances"], strict=True):
            values = turns.values.field("emotion") if turns.is_valid else pa.nulls(0)
            if count := len(values) - values.null_count:
                counts[name] = count
    return counts


def differences(
    title: str, dialogues: Dialogues, published: dict[str, dict[str, int]], turns: dict[str, int]
) -> Iterator[str]:
    """Yield a message for each split that differs from the published counts, listing the differences if known."""
    for split, expected in turns.items():
        counted = [one for name, found in dialogues.items() if split in (name, "all") for one in found]
        labels = [turn.get("emotion") for dialogue in counted for turn in dialogue["utterances"]]
        if (labelled := len(labels) - labels.count(None)) != expected:
            note = ", the only number that is published" if split == "all" else ""
            yield f"{title} {split}: {labelled:,} labelled utterances; published are {expected:,}{note}"
    for split, counts in published.items():
        found = {
            dialogue["dialogue_id"]: sum(utterance.get("emotion") is not None for utterance in dialogue["utterances"])
            for dialogue in dialogues.get(split, [])
        }
        found = {name: count for name, count in found.items() if count}
        if found == counts:
            continue
        parts = {
            "missing": [f"{name} ({count} utterances)" for name, count in counts.items() if name not in found],
            "different": [
                f"{name} ({found[name]} of {count})"
                for name, count in counts.items()
                if found.get(name, count) != count
            ],
            "not published": [name for name in found if name not in counts],
        }
        yield (
            f"{title} {split}: {len(found):,} dialogues with {sum(found.values()):,} labelled utterances; published "
            f"are {len(counts):,} with {sum(counts.values()):,}. "
            + ". ".join(f"{kind}: {some_of(names)}" for kind, names in parts.items() if names)
        )


def published(corpus: str) -> dict[str, Any]:
    """Facts about a published corpus, from `published/CORPUS.json`."""
    return json.loads((Path(__file__).parent / "published" / f"{corpus}.json").read_text(encoding="utf-8"))
