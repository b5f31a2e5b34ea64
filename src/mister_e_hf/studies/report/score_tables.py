"""The tables of a study's report: records of bare numbers, and how each is shown.

A table's records go to the CSV files and to `report.json` as they are; its cells go to the pages. Letters: S seeds, N turns, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from ...evaluation.metrics import CALIBRATION_BINS, IGNORE_INDEX, expected_calibration_error, scores_from_confusion
from ...evaluation.significance import (
    Difference,
    confusion_by_dialogue,
    difference,
    estimate,
    holm,
    of_seeds,
    resampled_scores,
)
from ...models.mister_e.configuration_mister_e import EXPERTS
from ..study import FULL, ROBUST, Stage, Study, System
from .cells import (
    NOTHING,
    Record,
    formatted,
    interval,
    mean_and_range,
    p_value,
    percent,
    plus_minus,
    seeds_cell,
    signed,
    system_cell,
    with_sd,
)

ALPHA = 0.05
CURVES = ("speech removed", "text removed", "both removed", "noise", "start cut")
_CURVE_DRAWS = 1000  # a curve has many points, and no test
_NO_FULL = "the full model has no finished seed"


@dataclass
class Table:
    r"""
    One table.

    Args:
        name: of its CSV file, and its anchor.
        title: its caption.
        note: what must be known to read it.
        records: a dictionary of bare numbers and words per row; None where there is no number.
        columns: by header, what turns a record into the cell.
        gap: why there is no row, where there is none.
        long: whether it only backs a picture.
    """

    name: str
    title: str
    note: str
    records: list[Record]
    columns: dict[str, Callable[[Record], str]]
    gap: str | None = None
    long: bool = False

    def cells(self) -> list[list[str]]:
        return [[show(record) for show in self.columns.values()] for record in self.records]


def stage_tables(study: Study, stage: Stage, everything: bool = True) -> Iterator[Table]:
    """The scores of a stage; with `everything` also what is behind them."""
    for suffix, labels in stage.views().items():
        scores = StageScores(study, stage, labels)
        yield main_table(scores, suffix)
        yield ablation_table(scores, suffix)
        if stage.name == "final" and scores.names("split"):
            yield split_table(scores, suffix)
        if everything and not suffix:
            yield class_table(scores)
    if everything:
        full = stage.systems.get(FULL)
        yield _confusion(study, stage, full)
        yield _gate_by_emotion(study, stage, full)
        yield _gate_by_right_expert(stage, full)
        yield from _calibration(stage, full)
        yield _robustness(study, stage)
        yield _learning(full)
        yield _cost(study, stage)
    yield _systems(study, stage)


# Scores


class StageScores:
    """Every system's F1 of one stage on the turns that these labels score, resampled once."""

    def __init__(self, study: Study, stage: Stage, labels: np.ndarray):
        self.study, self.stage = study, stage
        self.turns = int((labels != IGNORE_INDEX).sum())
        self.dialogues = len(np.unique(stage.dialogues[labels != IGNORE_INDEX]))
        self.confusion = {
            name: confusion_by_dialogue(labels, system.predictions, stage.dialogues, len(study.class_names))
            for name, system in stage.systems.items()
        }
        self.scores = {name: resampled_scores(confusion) for name, confusion in self.confusion.items()}

    def names(self, kind: str) -> list[str]:
        """Systems of a kind in the order of the study, those without a finished seed too."""
        if kind == "derived":
            return [name for name, system in self.stage.systems.items() if system.kind == kind]
        return [name for name, about in self.study.settings["variants"].items() if about["kind"] == kind]

    def record(self, name: str) -> Record:
        """Scores of one system, None where it has no finished seed."""
        system = self.stage.systems.get(name)
        record = {"system": name, "seeds": len(system.seeds) if system else 0}
        record |= {
            "planned_seeds": len(self.study.settings["seeds"]),
            "turns": self.turns,
            "dialogues": self.dialogues,
        }
        for metric in ("weighted_f1", "macro_f1"):
            found = estimate(self.scores[name][metric]) if system else (None,) * 4
            record |= dict(zip((metric, f"{metric}_sd", f"{metric}_low", f"{metric}_high"), found, strict=True))
        return record

    def difference(self, first: str, second: str) -> Difference | None:
        """Of weighted F1, over the seeds that both have; None where they share none."""
        if first not in self.scores or second not in self.scores:
            return None
        seeds = [self.stage.systems[name].seeds for name in (first, second)]
        shared = [seed for seed in seeds[0] if seed in seeds[1]]
        if not shared:
            return None
        return difference(
            *(
                of_seeds(self.scores[name]["weighted_f1"], [own.index(seed) for seed in shared])
                for name, own in zip((first, second), seeds, strict=True)
            )
        )


def main_table(scores: StageScores, suffix: str = "") -> Table:
    """The full model, what its experts say within it, and the baselines."""
    records = []
    for name in [*scores.names("full"), *scores.names("derived"), *scores.names("baseline")]:
        found = scores.difference(FULL, name) if name != FULL else None
        records.append(scores.record(name) | _difference_record("full_minus_system", found))
    baselines = set(scores.names("baseline"))
    for record in records:
        record["p"] = record["p"] if record["system"] in baselines else None
    _add_holm(records)
    return Table(
        f"main{suffix.replace(' ', '_')}",
        f"The full model, its experts and the baselines{suffix}",
        "F1 in per cent: mean ± sample standard deviation over seeds. Holm's correction is over the baselines.",
        records,
        {
            "system": system_cell,
            "weighted F1": with_sd("weighted_f1"),
            "95 % interval": interval("weighted_f1"),
            "macro F1": with_sd("macro_f1"),
            "full − system": signed("full_minus_system"),
            "95 % interval of it": interval("full_minus_system", signed=True),
            "p, Holm": p_value("p_holm"),
            "seeds": seeds_cell,
            "N": lambda record: f"{record['turns']:,}",
        },
        gap=None if records else "the study has no full model and no baseline",
    )


def ablation_table(scores: StageScores, suffix: str = "") -> Table:
    """Every ablation against the full model."""
    records = []
    for name in scores.names("ablation"):
        found = scores.difference(name, FULL)
        records.append(scores.record(name) | _difference_record("system_minus_full", found))
    _add_holm(records)
    for record in records:
        record["verdict"] = _verdict(record)
    full = scores.stage.systems.get(FULL)
    return Table(
        f"ablations{suffix.replace(' ', '_')}",
        f"Ablations against the full model{suffix}",
        "Weighted F1 in per cent. Holm's correction is over the rows of this table; a verdict is given at an adjusted p below 0.05."
        + ("" if full else " The full model has no finished seed, so nothing can be compared."),
        records,
        {
            "ablation": system_cell,
            "weighted F1": with_sd("weighted_f1"),
            "ablation − full": signed("system_minus_full"),
            "95 % interval of it": interval("system_minus_full", signed=True),
            "p": p_value("p"),
            "p, Holm": p_value("p_holm"),
            "verdict": lambda record: record["verdict"],
            "seeds": seeds_cell,
        },
        gap=None if records else "the study has no ablation",
    )


def split_table(scores: StageScores, suffix: str = "") -> Table:
    """The full model trained and validated on other dialogues, apart from what is compared."""
    return Table(
        f"splits{suffix.replace(' ', '_')}",
        f"The full model on other splits{suffix}",
        "F1 on the same test turns in per cent: mean ± sample standard deviation over seeds.",
        [
            {"split": scores.study.settings["variants"][name]["description"], **scores.record(name)}
            for name in scores.names("split")
        ],
        {
            "split": lambda record: record["split"],
            "weighted F1": with_sd("weighted_f1"),
            "95 % interval": interval("weighted_f1"),
            "macro F1": with_sd("macro_f1"),
            "seeds": seeds_cell,
            "N": lambda record: f"{record['turns']:,}",
        },
    )


def class_table(scores: StageScores) -> Table:
    """F1 of each class by every system."""
    classes, records, turns = scores.study.class_names, [], None
    for name in [name for kind in ("full", "derived", "ablation", "baseline") for name in scores.names(kind)]:
        record: Record = {"system": name}
        if name in scores.confusion:
            confusion = scores.confusion[name].sum(1)  # [S, C, C]
            f1, turns = scores_from_confusion(confusion)["f1_per_class"], confusion[0].sum(-1)  # [S, C], [C]
        for number, label in enumerate(classes):
            there = name in scores.confusion and turns[number] > 0  # without a turn there is no score
            record[label] = float(f1[:, number].mean()) if there else None
            record[f"{label}_sd"] = float(f1[:, number].std(ddof=1)) if there and len(f1) > 1 else None
        records.append(record)
    return Table(
        "classes",
        "F1 per emotion",
        "In per cent: mean ± sample standard deviation over seeds."
        + (
            ""
            if turns is None
            else f" Turns: {', '.join(f'{name} {int(n):,}' for name, n in zip(classes, turns, strict=True))}."
        ),
        records,
        {"system": system_cell} | {label: with_sd(label) for label in classes},
    )


def _difference_record(name: str, found: Difference | None) -> Record:
    mean, low, high, p = found or (None,) * 4
    return {name: mean, f"{name}_low": low, f"{name}_high": high, "p": p}


def _add_holm(records: list[Record]):
    compared = [record for record in records if record["p"] is not None]
    for record in records:
        record["p_holm"] = None
    for record, adjusted in zip(compared, holm([record["p"] for record in compared]), strict=True):
        record["p_holm"] = adjusted


def _verdict(record: Record) -> str:
    if not record["seeds"]:
        return "no finished seed"
    if record["p_holm"] is None:
        return "nothing to compare with"
    if record["p_holm"] < ALPHA:
        return "worse than full" if record["system_minus_full"] < 0 else "better than full"
    return "no difference shown"


# Of the full model


def confusion_counts(study: Study, stage: Stage, system: System) -> np.ndarray:
    """Pooled over seeds, (C, C)."""
    return confusion_by_dialogue(stage.labels, system.predictions, stage.dialogues, len(study.class_names)).sum((0, 1))


def _confusion(study: Study, stage: Stage, full: System | None) -> Table:
    records, names = [], study.class_names
    if full:
        counts = confusion_counts(study, stage, full)
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
        gap=None if full else _NO_FULL,
        long=True,
    )


def _gate_by_emotion(study: Study, stage: Stage, full: System | None) -> Table:
    records = []
    if full and full.gate_weights is not None:
        for number, label in enumerate(study.class_names):
            turns = stage.labels == number
            if turns.any():
                weights = full.gate_weights[:, turns].mean((0, 1), dtype=np.float64)
                records.append({"group": label, "turns": float(turns.sum())} | _by_expert(weights))
    return _gate_table("gate_by_emotion", "Gate weights by true emotion", "emotion", records, full)


def _gate_by_right_expert(stage: Stage, full: System | None) -> Table:
    records = []
    if full and full.gate_weights is not None and set(full.expert_probabilities) == set(EXPERTS):
        scored = stage.labels != IGNORE_INDEX
        right = np.stack([full.expert_probabilities[name].argmax(-1) == stage.labels for name in EXPERTS], -1)
        mixture = full.predictions == stage.labels
        for pattern in sorted(np.ndindex(2, 2, 2), key=lambda pattern: (sum(pattern), [-part for part in pattern])):
            group = (right == pattern).all(-1) & scored  # [S, N]
            if group.any():
                names = " and ".join(name for name, part in zip(EXPERTS, pattern, strict=True) if part)
                weights = full.gate_weights[group].mean(0, dtype=np.float64)
                record = {"group": names if sum(pattern) < 3 else "all three", "turns": group.sum() / len(full.seeds)}
                record["group"] = record["group"] or "none"
                records.append(record | _by_expert(weights) | {"mixture_right": float(mixture[group].mean())})
    return _gate_table("gate_by_right_expert", "Gate weights by which expert is right", "right", records, full)


def _by_expert(weights: np.ndarray) -> Record:
    return dict(zip(EXPERTS, weights.tolist(), strict=True))


def _gate_table(name: str, title: str, group: str, records: list[Record], full: System | None) -> Table:
    columns: dict[str, Callable[[Record], str]] = {
        group: lambda record: record["group"],
        "turns a seed": lambda record: f"{record['turns']:,.0f}",
    }
    columns |= {expert: (lambda record, expert=expert: f"{record[expert]:.3f}") for expert in EXPERTS}
    if records and "mixture_right" in records[0]:
        columns["mixture right"] = lambda record: f"{100 * record['mixture_right']:.1f} %"
    gap = (
        None
        if records
        else _NO_FULL
        if full is None
        else "the full model's predictions have no weights of three experts"
    )
    return Table(name, title, "Mean over turns and seeds of the full model.", records, columns, gap)


def _calibration(stage: Stage, full: System | None) -> Iterator[Table]:
    errors, bins = [], []
    if full:
        scored = stage.labels != IGNORE_INDEX
        labels = stage.labels[scored]
        for state, probabilities in _states(full).items():
            probabilities = probabilities[:, scored]
            by_seed = np.array([expected_calibration_error(labels, values) for values in probabilities])
            spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
            errors.append({"probabilities": state, "ece": float(by_seed.mean()), "ece_sd": spread})
            bins += [{"probabilities": state} | record for record in _reliability(labels, probabilities)]
    gap = None if full else _NO_FULL
    yield Table(
        "calibration",
        "Expected calibration error of the full model",
        f"In per cent, {CALIBRATION_BINS} bins of equal mass: mean ± sample standard deviation over seeds."
        + (" The temperature of these runs is not known." if len(errors) == 1 else ""),
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
    """Probabilities as predicted, and where the temperature is known as they were before it."""
    if system.temperatures is None or np.isnan(system.temperatures).any() or (system.temperatures == 1).all():
        return {"as predicted": system.probabilities}
    logits = np.log(np.maximum(system.probabilities, np.finfo(np.float32).tiny), dtype=np.float64)
    return {
        "before temperature": softmax(logits * system.temperatures[..., None], axis=-1),
        "after temperature": system.probabilities,
    }


def _reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[Record]:
    """Bins of equal mass of all seeds' turns; probabilities (S, N, C)."""
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


# Robustness


def _robustness(study: Study, stage: Stage) -> Table:
    records = []
    for name in ROBUST:
        system = stage.systems.get(name)
        if system and system.robustness:
            records += _curves(study, stage, system)
    gap = f"no finished seed of {' or '.join(ROBUST)} has a robustness.parquet"
    return Table(
        "robustness",
        "Weighted F1 when the input gets worse",
        "In per cent, mean over seeds and draws, with 95 % intervals over dialogues and seeds. Level: share of the turns that lose the modality; "
        "standard deviations of the noise; share of a dialogue's first turns that are cut off. Where turns are cut off, those that are left are "
        "scored, and the last column gives the same turns' score with nothing cut off.",
        records,
        {
            "curve": lambda record: record["curve"],
            "level": lambda record: f"{record['level']:g}",
            "system": system_cell,
            "weighted F1": percent("weighted_f1"),
            "95 % interval": interval("weighted_f1"),
            "nothing cut off": percent("uncut"),
        },
        gap=None if records else gap,
        long=True,
    )


def _curves(study: Study, stage: Stage, system: System) -> Iterator[Record]:
    classes = len(study.class_names)
    curves = sorted({curve for curve, _ in system.robustness}, key=lambda curve: (*CURVES, curve).index(curve))
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


# Training


def _learning(full: System | None) -> Table:
    values: dict[float, dict[str, list[float]]] = {}
    for run in [run for runs in full.results for run in runs] if full else []:
        for entry in run.get("history") or []:
            for name, value in entry.items():
                if name != "epoch" and isinstance(value, int | float):
                    values.setdefault(entry["epoch"], {}).setdefault(name, []).append(value)
    kinds = [name for name in ("loss", "eval_loss") if any(name in found for found in values.values())]
    kinds += sorted({name for found in values.values() for name in found if name.endswith("weighted_f1")})
    records = []
    for epoch, found in sorted(values.items()):
        record: Record = {"epoch": epoch, "runs": max(map(len, found.values()))}
        for kind in kinds:
            drawn = found.get(kind)
            record[kind] = float(np.mean(drawn)) if drawn else None
            record[f"{kind}_low"], record[f"{kind}_high"] = (min(drawn), max(drawn)) if drawn else (None, None)
        records.append(record)
    columns: dict[str, Callable[[Record], str]] = {
        "epoch": lambda record: f"{record['epoch']:g}",
        "runs": lambda record: str(record["runs"]),
    }
    columns |= {kind.replace("_", " ").replace("f1", "F1"): mean_and_range(kind) for kind in kinds}
    gap = None if records else _NO_FULL if full is None else "the full model's results.json have no history"
    return Table(
        "learning",
        "Learning curves of the full model",
        "Mean (least to greatest) over seeds and folds; weighted F1 in per cent, eval on the turns that the run did not train on.",
        records,
        columns,
        gap,
        long=True,
    )


def _cost(study: Study, stage: Stage) -> Table:
    records = []
    for name in study.settings["variants"]:
        runs = [run for runs in stage.systems[name].results for run in runs] if name in stage.systems else []
        record: Record = {"system": name, "runs": len(runs)}
        for field, summary in (
            ("parameters", max),
            ("epochs", max),
            ("training_seconds", np.mean),
            ("peak_memory_bytes", max),
            ("threads", max),
        ):
            known = [run[field] for run in runs if run.get(field) is not None]
            record[field] = float(summary(known)) if known else None
        known = [run["training_seconds"] for run in runs if run.get("training_seconds") is not None]
        record["training_seconds_sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
        records.append(record)
    return Table(
        "cost",
        "Cost of one run",
        "One seed, in development one fold of it. Time: mean ± sample standard deviation over runs, whatever else the machine did; memory: the most that the "
        "process held, libraries and corpus included.",
        records,
        {
            "system": system_cell,
            "runs": lambda record: str(record["runs"]),
            "parameters": lambda record: formatted(record["parameters"], "{:,.0f}"),
            "epochs": lambda record: formatted(record["epochs"], "{:g}"),
            "threads": lambda record: formatted(record["threads"], "{:.0f}"),
            "training, seconds": lambda record: plus_minus(
                record["training_seconds"], record["training_seconds_sd"], "{:,.1f}"
            ),
            "peak memory, MiB": lambda record: formatted(
                record["peak_memory_bytes"] and record["peak_memory_bytes"] / 2**20, "{:,.0f}"
            ),
        },
    )


def _systems(study: Study, stage: Stage) -> Table:
    records = []
    derived = [name for name, system in stage.systems.items() if system.kind == "derived"]
    about = {name: (about["kind"], about["description"]) for name, about in study.settings["variants"].items()}
    about |= {name: ("derived", stage.systems[name].description) for name in derived}
    for name, (kind, description) in about.items():
        seeds = stage.systems[name].seeds if name in stage.systems else []
        lacking = [seed for seed in study.settings["seeds"] if seed not in seeds]
        records.append(
            {
                "system": name,
                "kind": kind,
                "description": description,
                "seeds": len(seeds),
                "planned_seeds": len(study.settings["seeds"]),
                "seeds_without_a_result": ", ".join(map(str, lacking)),
            }
        )
    return Table(
        "systems",
        "What each system is, and which seeds are finished",
        "A seed counts where all of its folds are finished.",
        records,
        {
            "system": system_cell,
            "folder": lambda record: NOTHING if record["kind"] == "derived" else record["system"],
            "kind": lambda record: record["kind"],
            "what it is": lambda record: record["description"],
            "seeds": seeds_cell,
            "seeds without a result": lambda record: record["seeds_without_a_result"] or NOTHING,
        },
    )
