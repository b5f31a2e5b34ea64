"""The tables of predictions on damaged input: missing modalities, noise, truncated context.

Letters: S seeds, D draws, N turns.
"""

from collections.abc import Iterator

import numpy as np

from ...evaluation.significance import estimate
from ..measures import TITLES, in_per_cent
from ..study import ROBUST, Stage, Study, System
from .cells import Record, defined, interval, score, system_cell
from .table import Table

_LAST_CURVES = ("both removed", "all removed", "noise", "start cut")
_CURVE_DRAWS = 1000  # fewer than for tests, since a curve has many points


def robustness_tables(study: Study, stage: Stage) -> Iterator[Table]:
    """Yield the score of each set of removed modalities, a row each, and that of every curve, level and system."""
    records: list[Record] = []
    for name in ROBUST:
        system = stage.systems.get(name)
        if system and system.robustness:
            records += _curves(study, stage, system)
    names = [name for name in ROBUST if name in stage.asked]
    if not names:
        return
    gap = None if records else f"no finished seed of {' or '.join(names)} has a robustness.parquet"
    yield _removal_table(study, records, gap)
    main = study.measures.main
    yield Table(
        "robustness",
        f"{_title(main)} on damaged input",
        f"{_unit(main)}, mean over seeds and draws, with 95 % intervals over dialogues and seeds. Level: share of the "
        "turns that lose the modality; standard deviations of the noise; share of a dialogue's first turns that are "
        "cut off. Where turns are cut off, the remaining ones are scored, and the last column gives the same turns' "
        "score with nothing cut off.",
        records,
        {
            "curve": lambda record: record["curve"],
            "level": lambda record: f"{record['level']:g}",
            "system": system_cell(study),
            TITLES[main]: score(main, in_per_cent(main)),
            "95 % interval": interval(main, in_per_cent(main)),
            "nothing cut off": score("uncut", in_per_cent(main)),
        },
        gap=gap,
        long=True,
    )


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
        f"{_title(main)} without modalities",
        f"{_unit(main)}, by the share of the turns that lose these modalities, mean over seeds and draws.",
        list(rows.values()),
        columns,
        gap=gap or (None if rows else "the runs have no curve of removed modalities"),
    )


def _title(main: str) -> str:
    return TITLES[main][0].upper() + TITLES[main][1:]


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
    curves = sorted({curve for curve, _ in system.robustness}, key=_place)
    unchanged = system.predictions[system.robustness_seeds, None]
    found = {(curve, 0.0): unchanged for curve in curves} | system.robustness
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
