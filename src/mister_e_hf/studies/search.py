"""
Settings by search: for MiSTER-E and each baseline as many trials, drawn from a space of their own, scored in one way on folds of the development data.

Random search after Bergstra and Bengio (2012). The first trial is the recipe as it stands.
"""

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import f1_score

from ..base.errors import InputError, reading, short
from ..base.files import check_output_folder, write_json, write_yaml
from ..base.records import check_same
from ..models.baselines import BASELINES
from ..training.recipe import Recipe
from .runs import Run, check_counts, corpus_of_study, has_label_leakage, run_all
from .study import LABEL_LEAKAGE

logger = logging.getLogger(__name__)

_DROPOUTS = [0.3, 0.4, 0.5, 0.6, 0.7]
_COMMON = {
    "training.learning_rate": [3e-4, 5e-4, 1e-3, 2e-3],
    "training.weight_decay": [0.01, 0.1, 0.3],
    "training.num_train_epochs": [5, 10, 15, 25],
}
MISTER_E = "mister_e"
SPACES: dict[str, dict[str, list]] = {
    MISTER_E: _COMMON
    | {"model.hidden_size": [96, 192], "model.context_dropout": _DROPOUTS, "model.projection_dropout": _DROPOUTS},
    "logistic_regression": _COMMON,
    "bc_lstm": _COMMON | {"model.hidden_size": [64, 96, 128, 192], "model.dropout": _DROPOUTS},
    "dialogue_rnn": _COMMON | {"model.hidden_size": [64, 100, 150], "model.dropout": [0.1, 0.2, 0.4, 0.5]},
    "mult": _COMMON | {"model.hidden_size": [64, 128], "model.num_layers": [1, 2], "model.dropout": _DROPOUTS},
    "sdt": _COMMON | {"model.hidden_size": [64, 128, 256], "model.dropout": _DROPOUTS},
}


def search(
    recipe: Recipe,
    out: str | Path,
    trials: int,
    systems: Sequence[str] | None = None,
    folds: int = 4,
    jobs: int = 1,
    report: Callable[[str], Any] = print,
) -> dict[str, list[dict[str, Any]]]:
    r"""
    Search settings, or go on with a search; finished runs are not run again.

    Args:
        recipe: of MiSTER-E, with its baselines.
        out: the search's folder; `search.json` there holds every trial and its score.
        trials: of each system; 1 is the recipe as it stands.
        systems: of [`SPACES`]; by default all.
        folds: see [`~mister_e_hf.vectors.folds.development_folds`]; weighted F1 is that of all left-out turns together, one seed.
        jobs, report: as in [`~mister_e_hf.studies.ablation.ablate`].

    Returns:
        by system its trials, the best first: `settings`, `weighted_f1` (None where a run failed).

    Raises:
        ValueError: if a system is not known, or `out` holds a search of something else.
    """
    check_counts(trials=trials, folds=folds, jobs=jobs)
    out = check_output_folder(out, [recipe.corpus.path])
    for name in systems or ():
        if name not in SPACES:
            raise InputError(f"Unknown system '{name}'; expected one of {', '.join(SPACES)}")
    corpus = corpus_of_study(recipe, folds)
    fingerprints = {name: corpus[name].fingerprint() for name in ("train", "validation")}
    record = {"recipe": recipe.to_dict(), "folds": folds, "spaces": SPACES, "data_fingerprints": fingerprints}
    check_same(out / "search.yaml", record, "a search", "--out")
    earlier = _earlier_trials(out / "search.json")
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(out / "search.yaml", record)
    if has_label_leakage(recipe):
        logger.warning(LABEL_LEAKAGE)
    recipes = {MISTER_E: recipe} | {name: recipe.baseline(name) for name in BASELINES}
    drawn = {name: draw_settings(recipes[name], SPACES[name], trials) for name in systems or SPACES}
    runs = {
        (name, number): [
            Run(
                f"{name} trial {number} fold {fold}",
                recipes[name].changed(settings).to_dict(),
                0,
                out / name / f"trial-{number}" / f"fold-{fold}",
                fold,
                folds,
            )
            for fold in range(folds)
        ]
        for name, found in drawn.items()
        for number, settings in enumerate(found)
    }
    run_all([run for each in runs.values() for run in each], jobs, report)
    scored = {
        name: [
            {"trial": number, "settings": settings, "weighted_f1": _score(runs[name, number])}
            for number, settings in enumerate(found)
        ]
        for name, found in drawn.items()
    }
    for name, found in scored.items():  # trials that an earlier, longer search had stay
        found += [trial for trial in earlier.get(name, []) if trial["trial"] >= len(found)]
        found.sort(key=lambda trial: -(trial["weighted_f1"] or 0.0))
    write_json(out / "search.json", earlier | scored)
    return scored


def _earlier_trials(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What a search wrote into its folder before; nothing where it is the first."""
    if not path.is_file():
        return {}
    with reading(path, "the trials of a search"):
        found = json.loads(path.read_text(encoding="utf-8"))
        for trials in found.values():
            for trial in trials:
                if not isinstance(trial["trial"], int) or not isinstance(trial["weighted_f1"], float | int | None):
                    raise InputError(f"trial and weighted_f1 must be numbers, got {short(trial)}")
    return found


def draw_settings(recipe: Recipe, space: dict[str, list], trials: int) -> list[dict[str, Any]]:
    """No change, and then other settings of the space at random, always the same, none twice; fewer where the space has fewer."""
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    own = {field: recipe.value(field) for field in space}
    others = [points[number] for number in np.random.default_rng(0).permutation(len(points)) if points[number] != own]
    return [{}, *others[: trials - 1]]


def _score(runs: list[Run]) -> float | None:
    if not all(run.is_finished for run in runs):
        return None
    columns = ["label", "prediction"]
    tables = []
    for run in runs:
        with reading(path := run.folder / "predictions.parquet", "a table of predictions"):
            tables.append(pq.read_table(path, columns=columns))
    turns = [row for row in pa.concat_tables(tables).to_pylist() if row["label"] is not None]
    return float(f1_score(*([row[name] for row in turns] for name in columns), average="weighted"))


def format_trials(scored: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each trial, the best of each system first, weighted F1 in per cent."""
    lines = []
    for name, trials in scored.items():
        for trial in trials:
            settings = (
                ", ".join(f"{field} {value}" for field, value in trial["settings"].items()) or "the recipe's own"
            )
            score = "failed" if trial["weighted_f1"] is None else f"{100 * trial['weighted_f1']:.2f}"
            lines.append(f"{name:20} {score:>7}  {settings}")
    return "\n".join(lines)
