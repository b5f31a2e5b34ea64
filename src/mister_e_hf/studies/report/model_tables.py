"""The tables of the full model's predicted classes: confusions and calibration.

Letters: S seeds, N turns, C classes.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import softmax

from ...evaluation.metrics import CALIBRATION_BINS, IGNORE_INDEX, expected_calibration_error
from ...evaluation.significance import confusion_by_dialogue
from ..study import Stage, Study, System
from .cells import Record, score, with_sd
from .table import NO_FULL, Table


def confusion_table(study: Study, stage: Stage, full: System | None) -> Table:
    """Confusion matrix of the full model, pooled over seeds."""
    records, names = [], study.measures.names
    if full:
        by_dialogue = confusion_by_dialogue(stage.labels, full.predictions, stage.dialogues, len(names))
        counts = by_dialogue.sum((0, 1))  # pooled over seeds, [C, C]
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        for row, label in enumerate(names):
            record: Record = {"true": label}
            for column, predicted in enumerate(names):
                record[predicted] = int(counts[row, column])
                record[f"{predicted}_share"] = float(shares[row, column])
            records.append(record)

    def show(label: str) -> Callable[[Record], str]:
        return lambda record: f"{100 * record[f'{label}_share']:.1f} % ({record[label]:,})"

    return Table(
        "confusion",
        "Confusion matrix of the full model",
        "True emotion by row, predicted emotion by column: share of the row, and turns pooled over seeds.",
        records,
        {"true": lambda record: record["true"]} | {label: show(label) for label in names},
        gap=None if full else NO_FULL,
        long=True,
    )


def calibration_tables(stage: Stage, full: System | None) -> Iterator[Table]:
    """Yield the calibration errors and the reliability bins of the full model."""
    errors: list[Record] = []
    bins: list[Record] = []
    if full:
        scored = stage.labels != IGNORE_INDEX
        labels = stage.labels[scored]
        for state, probabilities in _states(full).items():
            probabilities = probabilities[:, scored]
            by_seed = np.array([expected_calibration_error(labels, values) for values in probabilities])
            spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
            errors.append({"probabilities": state, "ece": float(by_seed.mean()), "ece_sd": spread})
            bins += [{"probabilities": state} | record for record in _reliability(labels, probabilities)]
    gap = None if full else NO_FULL
    yield Table(
        "calibration",
        "Expected calibration error of the full model",
        f"In per cent, {CALIBRATION_BINS} bins of equal mass: mean ± sample standard deviation over seeds."
        + (" The runs record no temperature that was fitted to them." if len(errors) == 1 else ""),
        errors,
        {"probabilities": lambda record: record["probabilities"], "ECE": with_sd("ece")},
        gap,
    )
    yield Table(
        "reliability",
        "Reliability of the full model",
        f"{CALIBRATION_BINS} bins of equal mass, turns pooled over seeds.",
        bins,
        {
            "probabilities": lambda record: record["probabilities"],
            "bin": lambda record: str(record["bin"]),
            "turns": lambda record: f"{record['turns']:,}",
            "mean confidence": score("confidence"),
            "accuracy": score("accuracy"),
        },
        gap,
        long=True,
    )


def _states(system: System) -> dict[str, np.ndarray]:
    """Probabilities as predicted and, if the temperature is known, as they were before it was applied."""
    assert system.probabilities is not None  # only a majority vote has none
    if system.temperatures is None or np.isnan(system.temperatures).any() or (system.temperatures == 1).all():
        return {"as predicted": system.probabilities}
    logits = np.log(np.maximum(system.probabilities, np.finfo(np.float32).tiny), dtype=np.float64)
    return {
        "before temperature": softmax(logits * system.temperatures[..., None], axis=-1),
        "after temperature": system.probabilities,
    }


def _reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[Record]:
    """Records of the bins of equal mass of all seeds' turns, from probabilities (S, N, C)."""
    confidence, correct = probabilities.max(-1).ravel(), (probabilities.argmax(-1) == labels).ravel()
    bins = np.array_split(np.argsort(confidence, kind="stable"), CALIBRATION_BINS)
    return [
        {
            "bin": number,
            "turns": len(part),
            "confidence": float(confidence[part].mean(dtype=np.float64)),
            "accuracy": float(correct[part].mean()),
        }
        for number, part in enumerate(bins, start=1)
        if len(part)
    ]
