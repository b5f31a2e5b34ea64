"""The tables of scores: each system's F1, and differences with intervals and adjusted p-values.

Letters: S seeds, N turns, C classes.
"""

import numpy as np

from ...evaluation.metrics import IGNORE_INDEX, scores_from_confusion
from ...evaluation.significance import (
    Difference,
    confusion_by_dialogue,
    difference,
    estimate,
    holm,
    of_seeds,
    resampled_scores,
)
from ..study import FULL, Stage, Study
from .cells import Record, interval, p_value, seeds_cell, signed, system_cell, with_sd
from .table import Table

ALPHA = 0.05


class StageScores:
    """F1 of every system of a stage on the turns that these labels score, with the draws of its bootstrap."""

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
        """Systems of a kind in the order of the study, including those without a finished seed."""
        if kind == "derived":
            return [name for name, system in self.stage.systems.items() if system.kind == kind]
        return [name for name, about in self.study.settings["variants"].items() if about["kind"] == kind]

    def record(self, name: str) -> Record:
        """Scores of one system; each is None if it has no finished seed."""
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
        """Difference of weighted F1 over the seeds that both systems have; None if they share none."""
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
    """The full model, its heads by themselves, and the baselines."""
    records, full = [], scores.stage.systems.get(FULL)
    heads = f", its {full.head_noun}s" if full and len(full.head_probabilities) > 1 else ""
    for name in [*scores.names("full"), *scores.names("derived"), *scores.names("baseline")]:
        found = scores.difference(FULL, name) if name != FULL else None
        records.append(scores.record(name) | _difference_record("full_minus_system", found))
    baselines = set(scores.names("baseline"))
    for record in records:
        record["p"] = record["p"] if record["system"] in baselines else None
    _add_holm(records)
    return Table(
        f"main{suffix.replace(' ', '_')}",
        f"The full model{heads} and the baselines{suffix}",
        "F1 in per cent: mean ± sample standard deviation over seeds. Holm's correction is over the baselines.",
        records,
        {
            "system": system_cell(scores.study),
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
        "Weighted F1 in per cent. Holm's correction is over the rows of this table; the verdict is at an adjusted p "
        "below 0.05." + ("" if full else " The full model has no finished seed, so nothing can be compared."),
        records,
        {
            "ablation": system_cell(scores.study),
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
    """The full model trained and validated on other dialogues, which is not compared with the other systems."""
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
    """F1 of each class for every system."""
    classes = scores.study.class_names
    records: list[Record] = []
    turns: np.ndarray | None = None
    for name in [name for kind in ("full", "derived", "ablation", "baseline") for name in scores.names(kind)]:
        record: Record = {"system": name}
        if name in scores.confusion:
            confusion = scores.confusion[name].sum(1)  # [S, C, C]
            f1, turns = scores_from_confusion(confusion)["f1_per_class"], confusion[0].sum(-1)  # [S, C], [C]
            scored = turns > 0
        else:
            f1, scored = np.empty((0, len(classes))), np.zeros(len(classes), dtype=bool)
        for number, label in enumerate(classes):
            record[label] = float(f1[:, number].mean()) if scored[number] else None
            record[f"{label}_sd"] = float(f1[:, number].std(ddof=1)) if scored[number] and len(f1) > 1 else None
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
        {"system": system_cell(scores.study)} | {label: with_sd(label) for label in classes},
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
