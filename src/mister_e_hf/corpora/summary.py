"""Summarise a corpus: counts of each split, and a table of them."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ..base.modalities import MODALITIES
from .schema import UNLABELLED


def summarize(corpus: datasets.DatasetDict) -> dict[str, dict[str, Any]]:
    """
    Counts of each split: dialogues, utterances, turns of each label and without one, turns per dialogue, seconds of
    audio, turns without audio, text and so on; and of each score that any turn has, and of the released vectors of a
    modality, the number of turns with one; and the score's mean and standard deviation.
    """
    scored = _scores(corpus)
    vectors = {
        modality.features: modality.name
        for modality in MODALITIES.values()
        if any(modality.features in data.column_names for data in corpus.values())
    }
    summary: dict[str, dict[str, Any]] = {}
    names: list[str] = []
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
            **{f"turns with {name} vectors": _given(data, column) for column, name in vectors.items()},
        }
        for name, values in scored[split].items():
            summary[split] |= {
                f"turns with {name}": len(values),
                f"mean {name}": float(values.mean()) if len(values) else None,
                f"deviation of {name}": float(values.std()) if len(values) else None,
            }
    if names == UNLABELLED and not any(block[name] for block in summary.values() for name in names):
        for block in summary.values():
            del block[UNLABELLED[0]]  # `without label` says it
    return summary


def vector_widths(corpus: datasets.DatasetDict) -> dict[str, int]:
    """The width of the vectors of each modality that a release of features has."""
    found: dict[str, int] = {}
    for modality in MODALITIES.values():
        for data in corpus.values():
            if modality.features in data.column_names and modality.name not in found:
                for table in data.with_format("arrow").select_columns(modality.features).iter(batch_size=100):
                    turns = pa.chunked_array([chunk.flatten() for chunk in table[modality.features].chunks])
                    if turns.null_count < len(turns):
                        found[modality.name] = len(turns.drop_null()[0])
                        break
    return found


def _scores(corpus: datasets.DatasetDict) -> dict[str, dict[str, np.ndarray]]:
    """The values of each score in each split, for the scores that any turn has."""
    names = [
        name
        for name, feature in next(iter(corpus.values())).features["utterances"].feature.items()
        if name not in ("start", "end", "duration") and getattr(feature, "dtype", None) == "float64"
    ]
    found = {
        split: {
            name: np.concatenate([[0.0][:0], *(chunk.flatten().field(name).drop_null() for chunk in _chunks(data))])
            for name in names
        }
        for split, data in corpus.items()
    }
    used = [name for name in names if any(len(values[name]) for values in found.values())]
    return {split: {name: values[name] for name in used} for split, values in found.items()}


def _given(data: datasets.Dataset, column: str) -> int:
    """Number of turns with a vector."""
    count = 0
    for table in data.with_format("arrow").select_columns(column).iter(batch_size=1000):
        for chunk in table[column].chunks:
            turns = chunk.flatten()
            count += len(turns) - turns.null_count
    return count


def _chunks(data: datasets.Dataset) -> Iterator[pa.ListArray]:
    for table in data.with_format("arrow").select_columns("utterances").iter(batch_size=1000):
        yield from table["utterances"].chunks  # not joined, which would copy the audio in them


def format_summary(summary: dict[str, dict[str, Any]]) -> str:
    """Format the summary as a table with a column per split."""
    rows = [["", *summary]]
    for name in next(iter(summary.values())):
        values = [block[name] for block in summary.values()]
        digits = 2 if name.startswith(("mean ", "deviation of ")) else 1
        cells = ["-" if x is None else f"{x:,.{digits}f}" if isinstance(x, float) else f"{x:,}" for x in values]
        rows.append([name, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
