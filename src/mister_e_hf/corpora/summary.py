"""Summarise a corpus: counts of each split, and a table of them."""

from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa

from ..base.modalities import MODALITIES


def summarize(corpus: datasets.DatasetDict) -> dict[str, dict[str, int | float]]:
    """
    Counts of each split: dialogues, utterances, turns of each label and without one, turns per dialogue, seconds of
    audio, turns without audio or text.
    """
    summary = {}
    for split, data in corpus.items():
        fields = data.features["utterances"].feature
        names = fields["emotion"].names
        contents = [modality.content for modality in MODALITIES.values() if modality.content in fields]
        lengths, labels, duration = [], np.zeros(len(names), dtype=np.int64), 0.0
        missing = dict.fromkeys([*contents, "emotion"], 0)
        for chunk in _chunks(data):
            lengths.append(chunk.value_lengths().to_numpy(zero_copy_only=False))
            turns = chunk.flatten()
            for field in missing:
                missing[field] += turns.field(field).null_count
            duration += float(np.nansum(turns.field("duration").fill_null(0.0).to_numpy(zero_copy_only=False)))
            labels += np.bincount(
                turns.field("emotion").drop_null().to_numpy(zero_copy_only=False), minlength=len(names)
            )
        turns_per_dialogue = np.concatenate(lengths or [[0]])
        summary[split] = {
            "dialogues": len(data),
            "utterances": int(turns_per_dialogue.sum()),
            **{name: int(count) for name, count in zip(names, labels, strict=True)},
            "without label": missing["emotion"],
            "turns per dialogue, mean": float(turns_per_dialogue.mean()),
            "turns per dialogue, most": int(turns_per_dialogue.max()),
            "seconds of audio": duration,
            **{f"turns without {content}": missing[content] for content in contents},
        }
    return summary


def _chunks(data: datasets.Dataset) -> Iterator[pa.ListArray]:
    for table in data.with_format("arrow").select_columns("utterances").iter(batch_size=1000):
        yield from table["utterances"].chunks  # not joined, which would copy the audio in them


def format_summary(summary: dict[str, dict[str, int | float]]) -> str:
    """Format the summary as a table with a column per split."""
    rows = [["", *summary]]
    for name in next(iter(summary.values())):
        values = [block[name] for block in summary.values()]
        rows.append([name, *(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
