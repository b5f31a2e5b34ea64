"""The tables of a study's runs: learning curves, cost, and what is finished."""

from collections.abc import Callable

import numpy as np

from ...base.score_names import in_per_cent, score_title
from ..measures import ClassMeasures, Measures, ScoreMeasures
from ..study import Stage, Study, System
from .cells import NOTHING, Record, formatted, mean_and_range, plus_minus, seeds_cell, system_cell
from .table import NO_FULL, Table

_MAIN_SCORES = (ClassMeasures.main, ScoreMeasures.main)


def learning_table(full: System | None, measures: Measures) -> Table:
    """Losses and scores of the full model by epoch, over its runs."""
    values: dict[float, dict[str, list[float]]] = {}
    for run in [run for runs in full.results for run in runs] if full else []:
        for entry in run.get("history") or []:
            for name, value in entry.items():
                if name != "epoch" and isinstance(value, int | float):
                    values.setdefault(entry["epoch"], {}).setdefault(name, []).append(value)
    kinds = [name for name in ("loss", "eval_loss") if any(name in found for found in values.values())]
    kinds += sorted({name for found in values.values() for name in found if name.endswith(_MAIN_SCORES)})
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
    columns |= {score_title(kind): mean_and_range(kind) for kind in kinds}
    gap = None if records else NO_FULL if full is None else "the results.json of the full model have no history"
    unit = score_title(measures.main) + (
        " in per cent" if in_per_cent(measures.main) else " in the unit of the targets"
    )
    return Table(
        "learning",
        "Learning curves of the full model",
        f"Mean (minimum to maximum) over seeds and folds; {unit}; eval is on turns outside the training data.",
        records,
        columns,
        gap,
        long=True,
    )


def cost_table(study: Study, stage: Stage) -> Table:
    """Parameters, time and memory of one run of each system."""
    records = []
    for name in stage.asked:
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
        "A run is one seed, in development one fold of it. Time: mean ± sample standard deviation over runs, other "
        "load on the machine included. Memory: peak of the process, libraries and corpus included.",
        records,
        {
            "system": system_cell(study),
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


def systems_table(study: Study, stage: Stage) -> Table:
    """What each system is, and which of its seeds are finished."""
    records = []
    derived = [name for name, system in stage.systems.items() if system.kind == "derived"]
    variants = study.settings["variants"]
    about = {name: (variants[name]["kind"], variants[name]["description"]) for name in stage.asked}
    about |= {name: ("derived", stage.systems[name].description) for name in derived}
    for name, (kind, description) in about.items():
        seeds = stage.systems[name].seeds if name in stage.systems else []
        planned = stage.planned_seeds(name)
        lacking = [seed for seed in planned if seed not in seeds]
        records.append(
            {
                "system": name,
                "kind": kind,
                "description": description,
                "seeds": len(seeds),
                "planned_seeds": len(planned),
                "seeds_without_a_result": ", ".join(map(str, lacking)),
            }
        )
    return Table(
        "systems",
        "Systems and their finished seeds",
        "A seed is finished when all of its folds are.",
        records,
        {
            "system": system_cell(study),
            "folder": lambda record: NOTHING if record["kind"] == "derived" else record["system"],
            "kind": lambda record: record["kind"],
            "what it is": lambda record: record["description"],
            "seeds": seeds_cell,
            "seeds without a result": lambda record: record["seeds_without_a_result"] or NOTHING,
        },
    )
