"""The tables of predictions on damaged input or without capsules: missing modalities, noise, truncated context.

Letters: S seeds, D draws, N turns.
"""

from collections.abc import Iterator

import numpy as np

from ...base.part_weights import CAPSULES
from ...base.score_names import capitalized, in_per_cent, score_title
from ...evaluation.metrics import scores_from_confusion
from ...evaluation.significance import SeedScores, confusion_by_dialogue, difference, estimate
from ..measures import ClassMeasures
from ..robustness import WITHOUT_CAPSULES, capsule_groups
from ..study import ROBUST, Stage, Study, System, is_robust
from .cells import Record, defined, interval, score, signed, system_cell
from .score_tables import estimate_record
from .table import Table

_LAST_CURVES = ("both removed", "all removed", "noise", "start cut")
_CURVE_DRAWS = 1000  # fewer than for tests, since a curve has many points


def robustness_tables(study: Study, stage: Stage) -> Iterator[Table]:
    """
    Yield the score of each set of removed modalities, a row each, that of every curve, level and system, and that
    without capsules.
    """
    records: list[Record] = []
    without: list[Record] = []
    for name in ROBUST:
        system = stage.systems.get(name)
        if system and system.robustness:
            records += _curves(study, stage, system)
            without += _without_capsules(study, stage, system)
    recipes = {name: about["recipe"] for name, about in study.settings["variants"].items()}
    names = [name for name in ROBUST if name in stage.asked and is_robust(name, recipes[name])]
    if not names:
        return
    gap = None if records else f"no finished seed of {' or '.join(names)} has a robustness.parquet"
    yield _removal_table(study, records, gap)
    main = study.measures.main
    yield Table(
        "robustness",
        f"{capitalized(score_title(main))} on damaged input",
        f"{_unit(main)}, mean over seeds and draws, with 95 % intervals over dialogues and seeds "
        f"({_CURVE_DRAWS:,} bootstrap draws). Level: share of the "
        "turns that lose the modality; standard deviations of the noise; share of a dialogue's first turns that are "
        "cut off. Where turns are cut off, the remaining ones are scored, and the last column gives the same turns' "
        "score with nothing cut off.",
        records,
        {
            "curve": lambda record: record["curve"],
            "level": lambda record: f"{record['level']:g}",
            "system": system_cell(study),
            score_title(main): score(main, in_per_cent(main)),
            "95 % interval": interval(main, in_per_cent(main)),
            "nothing cut off": score("uncut", in_per_cent(main)),
        },
        gap=gap,
        long=True,
    )
    if without:
        yield _capsule_table(study, without)
        if isinstance(study.measures, ClassMeasures):
            yield _emotion_table(study, stage, study.measures)


def _emotion_table(study: Study, stage: Stage, measures: ClassMeasures) -> Table:
    """F1 of each class, one row for each group of removed capsules and system."""
    records: list[Record] = []
    for system in (stage.systems[name] for name in ROBUST if name in stage.systems):
        groups = _predictions_without_capsules(system)
        whole = {"nothing": system.predictions[system.robustness_seeds, None]} if groups else {}
        for group, predictions in (whole | groups).items():
            confusion = confusion_by_dialogue(stage.labels, predictions, stage.dialogues, len(measures.names)).sum(-3)
            f1, turns = scores_from_confusion(confusion)["f1_per_class"], confusion.sum(-1)
            shown = [
                float(f1[..., number].mean()) if turns[..., number].any() else None
                for number in range(len(measures.names))
            ]
            about = {"without": group, "system": system.name}
            records.append(about | dict(zip(measures.names, shown, strict=True)))
    return Table(
        "emotions_without_capsules",
        "F1 per emotion without capsules",
        "In per cent, mean over seeds, as in the table before: it shows which capsules carry which emotion.",
        records,
        {"without": lambda record: record["without"], "system": system_cell(study)}
        | {label: score(label) for label in measures.names},
    )


def _predictions_without_capsules(system: System) -> dict[str, np.ndarray]:
    """Predictions (S, D, N) without each group of capsules; none of a model without any."""
    found = {
        curve.removeprefix(WITHOUT_CAPSULES): predictions
        for (curve, _), predictions in system.robustness.items()
        if curve.startswith(WITHOUT_CAPSULES)
    }
    capsules = list(system.part_weights.get(CAPSULES.field, ()))
    return {group: found[group] for group in capsule_groups(capsules) if group in found}


def _capsule_table(study: Study, records: list[Record]) -> Table:
    """One row for each group of removed capsules and system."""
    main = study.measures.main
    per_cent = in_per_cent(main)
    return Table(
        "removed_capsules",
        f"{capitalized(score_title(main))} without capsules",
        f"{_unit(main)}, mean over seeds, with 95 % intervals over dialogues and seeds. The activations of these "
        "capsules of the trained model are 0; the others are as they were. The difference is to the whole model.",
        records,
        {
            "without": lambda record: record["without"],
            "system": system_cell(study),
            score_title(main): score(main, per_cent),
            "95 % interval": interval(main, per_cent),
            "difference": signed("difference", per_cent),
            "95 % interval of it": interval("difference", per_cent, "+"),
        },
    )


def _without_capsules(study: Study, stage: Stage, system: System) -> Iterator[Record]:
    """Yield the records of one system without each group of capsules."""
    measures, main = study.measures, study.measures.main

    def of(predictions: np.ndarray) -> SeedScores:
        return measures.resampled(stage.labels, predictions, stage.dialogues, draws=_CURVE_DRAWS)[main]

    whole = of(system.predictions[system.robustness_seeds, None])
    for group, predictions in _predictions_without_capsules(system).items():
        own = of(predictions)
        change = difference(own, whole)
        yield {
            "without": group,
            "system": system.name,
            **estimate_record(main, own),
            "difference": defined(change.mean),
            "difference_low": defined(change.low),
            "difference_high": defined(change.high),
        }


def _removal_table(study: Study, curves: list[Record], gap: str | None) -> Table:
    """One row for each set of removed modalities and system, a column for each share of the turns."""
    main = study.measures.main
    removed = [record for record in curves if record["curve"].endswith(" removed")]
    shares = sorted({record["level"] for record in removed})
    rows: dict[tuple[str, str], Record] = {}
    for record in removed:
        row = rows.setdefault(
            (record["system"], record["curve"]),
            {"removed": record["curve"].removesuffix(" removed"), "system": record["system"]}
            | {f"{share:g}": None for share in shares},
        )
        row[f"{record['level']:g}"] = record[main]
    columns = {"removed": lambda record: record["removed"], "system": system_cell(study)}
    columns |= {f"{100 * share:g} %": score(f"{share:g}", in_per_cent(main)) for share in shares}
    return Table(
        "removed_modalities",
        f"{capitalized(score_title(main))} without modalities",
        f"{_unit(main)}, by the share of the turns that lose these modalities, mean over seeds and draws.",
        list(rows.values()),
        columns,
        gap=gap or (None if rows else "the runs have no curve of removed modalities"),
    )


def _unit(main: str) -> str:
    return "In per cent" if in_per_cent(main) else "In the unit of the targets, less is better"


def _place(curve: str) -> tuple[int, int, str]:
    """Sorts curves: few modalities removed, all of them, noise, context cut off."""
    if curve in _LAST_CURVES:
        return 1, 2 * _LAST_CURVES.index(curve), curve
    if curve.startswith("noise in "):
        return 1, 2 * _LAST_CURVES.index("noise") + 1, curve
    return 0, curve.count(" and "), curve


def _curves(study: Study, stage: Stage, system: System) -> Iterator[Record]:
    """Yield the records of one system's robustness curves; level 0 is the unchanged input."""
    measures, main = study.measures, study.measures.main
    damaged = {
        point: predictions
        for point, predictions in system.robustness.items()
        if not point[0].startswith(WITHOUT_CAPSULES)
    }
    curves = sorted({curve for curve, _ in damaged}, key=_place)
    unchanged = system.predictions[system.robustness_seeds, None]
    found = {(curve, 0.0): unchanged for curve in curves} | damaged
    for curve, level in sorted(found, key=lambda point: (curves.index(point[0]), point[1])):
        predictions = found[curve, level]

        def of(predictions: np.ndarray):
            return estimate(measures.resampled(stage.labels, predictions, stage.dialogues, draws=_CURVE_DRAWS)[main])

        # A point is left out if every scored turn is cut off, or all turns that have a score of one of the targets.
        kept = measures.is_kept(predictions)
        if not (kept & measures.scored(stage.labels)).any(-1).all():
            continue
        found_score, uncut = of(predictions), None
        if np.isnan(found_score.mean):
            continue
        if not kept.all():
            uncut = of(measures.cut(unchanged, kept)).mean
        yield {
            "curve": curve,
            "level": level,
            "system": system.name,
            main: found_score.mean,
            f"{main}_low": defined(found_score.low),
            f"{main}_high": defined(found_score.high),
            "uncut": uncut,
        }
