"""The tables of the full model's predictions: confusions, gate, calibration and robustness.

Letters: S seeds, N turns, C classes.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import softmax

from ...evaluation.metrics import CALIBRATION_BINS, IGNORE_INDEX, expected_calibration_error
from ...evaluation.significance import confusion_by_dialogue, estimate, resampled_scores
from ..study import ROBUST, Stage, Study, System
from .cells import Record, interval, percent, system_cell, with_sd
from .table import NO_FULL, Table

_LAST_CURVES = ("both removed", "all removed", "noise", "start cut")
GATE_FIELDS = ("group", "turns", "mixture_right")  # fields of a record of gate weights that are not weights
_CURVE_DRAWS = 1000  # fewer than for tests, since a curve has many points


def confusion_table(study: Study, stage: Stage, full: System | None) -> Table:
    """Confusion matrix of the full model, pooled over seeds."""
    records, names = [], study.class_names
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


def gate_by_emotion_table(study: Study, stage: Stage, full: System | None) -> Table:
    """Mean gate weights of the turns of each true emotion."""
    records = []
    if full and full.gate_weights is not None:
        for number, label in enumerate(study.class_names):
            turns = stage.labels == number
            if turns.any():
                weights = full.gate_weights[:, turns].mean((0, 1), dtype=np.float64)
                records.append({"group": label, "turns": float(turns.sum())} | _by_head(full, weights))
    return _gate_table("gate_by_emotion", "Gate weights by true emotion", "emotion", records, full)


def gate_by_right_expert_table(stage: Stage, full: System | None) -> Table:
    """Mean gate weights of the turns at which the same experts are right."""
    records = []
    if full and full.gate_weights is not None:
        heads = list(full.head_probabilities)
        scored = stage.labels != IGNORE_INDEX
        right = np.stack([values.argmax(-1) == stage.labels for values in full.head_probabilities.values()], -1)
        mixture = full.predictions == stage.labels
        for pattern in sorted(
            np.ndindex(*[2] * len(heads)), key=lambda pattern: (sum(pattern), [-part for part in pattern])
        ):
            group = (right == pattern).all(-1) & scored  # [S, N]
            if group.any():
                names = [name for name, part in zip(heads, pattern, strict=True) if part]
                weights = full.gate_weights[group].mean(0, dtype=np.float64)
                record: Record = {"group": _right(names, len(heads)), "turns": group.sum() / len(full.seeds)}
                records.append(record | _by_head(full, weights) | {"mixture_right": float(mixture[group].mean())})
    return _gate_table("gate_by_right_expert", "Gate weights by which expert is right", "right", records, full)


def _right(names: list[str], heads: int) -> str:
    """The experts that are right, in words."""
    if heads > 2 and len(names) == heads:
        return "all three" if heads == 3 else "all"
    return " and ".join(names) or "none"


def _by_head(full: System, weights: np.ndarray) -> Record:
    return dict(zip(full.head_probabilities, weights.tolist(), strict=True))


def _gate_table(name: str, title: str, group: str, records: list[Record], full: System | None) -> Table:
    columns: dict[str, Callable[[Record], str]] = {
        group: lambda record: record["group"],
        "turns a seed": lambda record: f"{record['turns']:,.0f}",
    }
    heads = full.head_probabilities if full else ()
    columns |= {head: _weight(head) for head in heads}
    if records and "mixture_right" in records[0]:
        columns["mixture right"] = lambda record: f"{100 * record['mixture_right']:.1f} %"
    gap = None if records else NO_FULL if full is None else "no turn has a label"
    return Table(name, title, "Mean over turns and seeds of the full model.", records, columns, gap)


def _weight(head: str) -> Callable[[Record], str]:
    return lambda record: f"{record[head]:.3f}"


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
        + (" The temperature of these runs is unknown." if len(errors) == 1 else ""),
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
            "mean confidence": percent("confidence"),
            "accuracy": percent("accuracy"),
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


def robustness_table(study: Study, stage: Stage) -> Table:
    """Weighted F1 on damaged input, by curve, level and system."""
    records: list[Record] = []
    for name in ROBUST:
        system = stage.systems.get(name)
        if system and system.robustness:
            records += _curves(study, stage, system)
    names = [name for name in ROBUST if name in study.settings["variants"]]
    gap = f"no finished seed of {' or '.join(names)} has a robustness.parquet"
    return Table(
        "robustness",
        "Weighted F1 on damaged input",
        "In per cent, mean over seeds and draws, with 95 % intervals over dialogues and seeds. Level: share of the "
        "turns that lose the modality; standard deviations of the noise; share of a dialogue's first turns that are "
        "cut off. Where turns are cut off, the remaining ones are scored, and the last column gives the same turns' "
        "score with nothing cut off.",
        records,
        {
            "curve": lambda record: record["curve"],
            "level": lambda record: f"{record['level']:g}",
            "system": system_cell(study),
            "weighted F1": percent("weighted_f1"),
            "95 % interval": interval("weighted_f1"),
            "nothing cut off": percent("uncut"),
        },
        gap=None if records else gap,
        long=True,
    )


def _place(curve: str) -> tuple[int, int, str]:
    """Sorts curves: few modalities removed, all of them, noise, context cut off."""
    if curve in _LAST_CURVES:
        return 1, _LAST_CURVES.index(curve), curve
    return 0, curve.count(" and "), curve


def _curves(study: Study, stage: Stage, system: System) -> Iterator[Record]:
    """Yield the records of one system's robustness curves; level 0 is the unchanged input."""
    classes = len(study.class_names)
    curves = sorted({curve for curve, _ in system.robustness}, key=_place)
    unchanged = system.predictions[system.robustness_seeds, None]
    found = {(curve, 0.0): unchanged for curve in curves} | system.robustness
    for curve, level in sorted(found, key=lambda point: (curves.index(point[0]), point[1])):
        predictions = found[curve, level]

        def f1(predictions: np.ndarray):
            confusion = confusion_by_dialogue(stage.labels, predictions, stage.dialogues, classes)
            return estimate(resampled_scores(confusion, draws=_CURVE_DRAWS)["weighted_f1"])

        scored = (predictions >= 0) & (stage.labels != IGNORE_INDEX)
        if not scored.any(-1).all():
            continue  # every scored turn is cut off
        score, uncut = f1(predictions), None
        if (predictions < 0).any():
            uncut = f1(np.where(predictions < 0, -1, unchanged)).mean
        yield {
            "curve": curve,
            "level": level,
            "system": system.name,
            "weighted_f1": score.mean,
            "weighted_f1_low": score.low,
            "weighted_f1_high": score.high,
            "uncut": uncut,
        }
