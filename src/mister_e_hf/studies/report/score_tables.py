"""The tables of scores: each system's F1 or errors, and differences with intervals and adjusted p-values.

Letters: S seeds, N turns, C classes.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ...base.score_names import in_per_cent, score_title
from ...evaluation.metrics import scores_from_confusion
from ...evaluation.significance import (
    Difference,
    Estimate,
    SeedScores,
    confusion_by_dialogue,
    difference,
    estimate,
    holm,
    of_seeds,
)
from ..measures import ScoreMeasures
from ..study import FULL, Stage, Study
from .cells import Record, defined, interval, p_value, score, seeds_cell, signed, system_cell, with_sd
from .table import NO_FULL, Table

ALPHA = 0.05


class StageScores:
    """Scores of every system of a stage on the turns that these labels score, with the draws of its bootstrap."""

    def __init__(self, study: Study, stage: Stage, labels: np.ndarray):
        self.study, self.stage, self.labels, self.measures = study, stage, labels, study.measures
        scored = self.measures.scored(labels)
        self.turns, self.dialogues = int(scored.sum()), len(np.unique(stage.dialogues[scored]))
        self.scores = {
            name: self.measures.resampled(labels, system.predictions, stage.dialogues)
            for name, system in stage.systems.items()
        }

    @property
    def per_cent(self) -> bool:
        """Whether the main score is shown in per cent."""
        return in_per_cent(self.measures.main)

    def names(self, kind: str) -> list[str]:
        """The systems of a kind that the stage was asked for, in the order of the study, finished or not."""
        if kind == "derived":
            return [name for name, system in self.stage.systems.items() if system.kind == kind]
        variants = self.study.settings["variants"]
        return [name for name in self.stage.asked if variants[name]["kind"] == kind]

    def record(self, name: str) -> Record:
        """Scores of one system; each is None if it has no finished seed."""
        system = self.stage.systems.get(name)
        record = {"system": name, "seeds": len(system.seeds) if system else 0}
        record |= {
            "planned_seeds": len(self.stage.planned_seeds(name)),
            "turns": self.turns,
            "dialogues": self.dialogues,
        }
        binned = self.measures.binned if isinstance(self.measures, ScoreMeasures) else ()
        for metric in (*self.measures.shown, *binned):
            record |= estimate_record(metric, self.scores[name][metric] if system else None)
        return record

    def difference(self, first: str, second: str) -> Difference | None:
        """Difference of the main score over the seeds that both systems have; None if they share none."""
        if first not in self.scores or second not in self.scores:
            return None
        seeds = [self.stage.systems[name].seeds for name in (first, second)]
        shared = [seed for seed in seeds[0] if seed in seeds[1]]
        if not shared:
            return None
        return difference(
            *(
                of_seeds(self.scores[name][self.measures.main], [own.index(seed) for seed in shared])
                for name, own in zip((first, second), seeds, strict=True)
            )
        )


def estimate_record(name: str, scores: SeedScores | None) -> Record:
    """Mean, deviation and interval of a score, each None if it is undefined or no seed has finished."""
    found: Estimate | tuple = (None,) * 4 if scores is None else estimate(scores)
    values = map(defined, found)
    return dict(zip((name, f"{name}_sd", f"{name}_low", f"{name}_high"), values, strict=True))


def main_table(scores: StageScores, suffix: str = "") -> Table:
    """The full model, its heads by themselves, and the baselines."""
    records, full = [], scores.stage.systems.get(FULL)
    for name in [*scores.names("full"), *scores.names("derived"), *scores.names("baseline")]:
        found = scores.difference(FULL, name) if name != FULL else None
        records.append(scores.record(name) | _difference_record("full_minus_system", found))
    baselines = set(scores.names("baseline"))
    first = ["the full model"] if FULL in scores.stage.asked or not baselines else []
    first += [f"its {full.head_noun}s"] if full and len(full.heads) > 1 else []
    *first, last = [*first, "the baselines"] if baselines else first
    title = f"{', '.join(first)} and {last}" if first else last
    for record in records:
        record["p"] = record["p"] if record["system"] in baselines else None
    _add_holm(records)
    return Table(
        f"main{suffix.replace(' ', '_')}",
        title[:1].upper() + title[1:] + suffix,
        f"{_unit(scores)}: mean ± sample standard deviation over seeds; N scored turns."
        + (" Holm's correction is over the baselines." if baselines else ""),
        records,
        {
            "system": system_cell(scores.study),
            **_score_columns(scores),
            f"full − system{_of_main(scores)}": signed("full_minus_system", scores.per_cent),
            "95 % interval of it": interval("full_minus_system", scores.per_cent, "+"),
            "p, Holm": p_value("p_holm"),
            "seeds": seeds_cell,
            "N": lambda record: f"{record['turns']:,}",
        },
        gap=None if records else "neither the full model nor a baseline was asked for",
    )


def further_tables(scores: StageScores, suffix: str = "") -> Iterator[Table]:
    """Yield the tables of the ablations and of other splits, as far as the stage was asked for these."""
    if scores.names("ablation"):
        yield ablation_table(scores, suffix)
    if scores.names("split"):
        yield split_table(scores, suffix)


def ablation_table(scores: StageScores, suffix: str = "") -> Table:
    """Every ablation against the full model."""
    records = []
    for name in scores.names("ablation"):
        found = scores.difference(name, FULL)
        records.append(scores.record(name) | _difference_record("system_minus_full", found))
    _add_holm(records)
    for record in records:
        record["verdict"] = _verdict(record, scores.measures.more_is_better)
    full = scores.stage.systems.get(FULL)
    return Table(
        f"ablations{suffix.replace(' ', '_')}",
        f"Ablations against the full model{suffix}",
        f"{_unit(scores, main_only=True)}. Holm's correction is over the rows of this table; the verdict is at an "
        "adjusted p below 0.05." + ("" if full else f" {NO_FULL.capitalize()}, so nothing can be compared."),
        records,
        {
            "ablation": system_cell(scores.study),
            score_title(scores.measures.main): with_sd(scores.measures.main, scores.per_cent),
            "ablation − full": signed("system_minus_full", scores.per_cent),
            "95 % interval of it": interval("system_minus_full", scores.per_cent, "+"),
            "p": p_value("p"),
            "p, Holm": p_value("p_holm"),
            "verdict": lambda record: record["verdict"],
            "seeds": seeds_cell,
        },
    )


def split_table(scores: StageScores, suffix: str = "") -> Table:
    """The full model trained and validated on other dialogues, which is not compared with the other systems."""
    return Table(
        f"splits{suffix.replace(' ', '_')}",
        f"The full model on other splits{suffix}",
        f"On the same test turns. {_unit(scores)}: mean ± sample standard deviation over seeds.",
        [
            {"split": scores.study.settings["variants"][name]["description"], **scores.record(name)}
            for name in scores.names("split")
        ],
        {
            "split": lambda record: record["split"],
            **_score_columns(scores),
            "seeds": seeds_cell,
            "N": lambda record: f"{record['turns']:,}",
        },
    )


def class_table(scores: StageScores) -> Table:
    """F1 of each class for every system."""
    classes = scores.measures.names
    records: list[Record] = []
    turns: np.ndarray | None = None
    for name in [name for kind in ("full", "derived", "ablation", "baseline") for name in scores.names(kind)]:
        record: Record = {"system": name}
        if name in scores.scores:
            system = scores.stage.systems[name]
            confusion = confusion_by_dialogue(
                scores.labels, system.predictions, scores.stage.dialogues, len(classes)
            ).sum(1)  # [S, C, C]
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


def seed_table(scores: StageScores) -> Table:
    """The scores of every seed of every system."""
    shown = scores.measures.shown
    records: list[Record] = []
    for name, found in scores.scores.items():
        for place, seed in enumerate(scores.stage.systems[name].seeds):
            values = {metric: defined(found[metric].observed[place]) for metric in shown}
            records.append({"system": name, "seed": seed} | values)
    return Table(
        "seeds",
        "Scores of each seed",
        f"{_unit(scores)}.",
        records,
        {"system": system_cell(scores.study), "seed": lambda record: str(record["seed"])}
        | {score_title(metric): score(metric, in_per_cent(metric)) for metric in shown},
        long=True,
    )


def _unit(scores: StageScores, main_only: bool = False) -> str:
    """What the numbers of a table are."""
    if not isinstance(scores.measures, ScoreMeasures):
        return "Weighted F1 in per cent" if main_only else "F1 in per cent"
    several = "" if len(scores.measures.names) == 1 else ", averaged over the targets"
    what = "MAE, of which less is better" if main_only else "MAE, of which less is better, and correlations"
    return f"{what}{several}"


def _score_columns(scores: StageScores) -> dict[str, Callable[[Record], str]]:
    """The main score with its interval, and the others."""
    main, *others = scores.measures.shown
    columns = {score_title(main): with_sd(main, scores.per_cent), "95 % interval": interval(main, scores.per_cent)}
    return columns | {score_title(metric): with_sd(metric, in_per_cent(metric)) for metric in others}


def _of_main(scores: StageScores) -> str:
    """Says which score a difference is of, where the table shows several scores of different units."""
    return ", MAE" if isinstance(scores.measures, ScoreMeasures) else ""


def _difference_record(name: str, found: Difference | None) -> Record:
    values = map(defined, found or (None,) * 4)
    return dict(zip((name, f"{name}_low", f"{name}_high", "p"), values, strict=True))


def _add_holm(records: list[Record]):
    compared = [record for record in records if record["p"] is not None]
    for record in records:
        record["p_holm"] = None
    for record, adjusted in zip(compared, holm([record["p"] for record in compared]), strict=True):
        record["p_holm"] = adjusted


def _verdict(record: Record, more_is_better: bool) -> str:
    if not record["seeds"]:
        return "no finished seed"
    if record["p_holm"] is None:
        return "nothing to compare with"
    if record["p_holm"] < ALPHA:
        return "worse than full" if (record["system_minus_full"] < 0) == more_is_better else "better than full"
    return "no difference shown"
