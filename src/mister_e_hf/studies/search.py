"""Random search of hyper-parameters (Bergstra and Bengio 2012), with the same budget for a model and the baselines.

Each model has its own search space, which the registry declares; all are scored on the same development folds. The
first trial is the recipe without changes.
"""

import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, reading, short
from ..base.files import check_output_folder, write_json, write_yaml
from ..base.records import check_same
from ..base.score_names import capitalized, in_per_cent, score_title
from ..training.recipe import Recipe
from ..training.recipe_widths import take_widths
from .absent_modalities import systems_on_corpus
from .measures import Measures, measures_of
from .prediction_files import read_predictions
from .runs import Run, check_counts, corpus_of_study, has_label_leakage, run_all
from .study import LABEL_LEAKAGE
from .variants import compared_systems

logger = logging.getLogger(__name__)


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
    Search hyper-parameters; finished runs are skipped.

    Args:
        recipe: recipe of any registered model; the baselines are trained on the same corpus.
        out: folder of the search; `search.json` there holds every trial and its score.
        trials: number of trials per system; 1 is the recipe without changes.
        systems: names of the models to search; by default the recipe's own and every baseline that can be trained on
            the corpus ([`~mister_e_hf.studies.absent_modalities.systems_on_corpus`]).
        folds: number of development folds, or 1 to train on train and score validation; see
            [`~mister_e_hf.vectors.folds.development_folds`]. The score of a trial is that of all held-out turns
            together, with one seed.
        jobs, report: as in [`~mister_e_hf.studies.ablation.ablate`].

    Returns:
        trials by system, the best first: `trial`, `settings`, and `weighted_f1` or, if the recipe predicts scores,
        `mae`, of which less is better (None if a run failed).

    Raises:
        InputError: if a system is unknown or needs a modality that the corpus lacks, or if `out` holds a search with
            other settings.
    """
    check_counts(trials=trials, folds=folds, jobs=jobs)
    out = check_output_folder(out, [recipe.corpus.path])
    for sentence in take_widths(recipe):
        report(sentence)
    known = compared_systems(recipe)
    for name in systems or ():
        if name not in known:
            raise InputError(f"Unknown system '{name}'; expected one of {', '.join(known)}")
    compared = systems_on_corpus(recipe)
    compared.check_asked(systems or ())
    for sentence in compared.sentences(systems or ()):
        report(sentence)
    recipes = compared.kept
    recipe = next(iter(recipes.values()))
    corpus = corpus_of_study(recipe, folds)
    measures = measures_of(recipe.to_dict()["corpus"])
    spaces = {name: dict(model.search_space) for name, (model, _) in known.items()}
    fingerprints = {name: corpus[name].fingerprint() for name in ("train", "validation")}
    record = {"recipe": recipe.to_dict(), "folds": folds, "spaces": spaces, "data_fingerprints": fingerprints}
    check_same(out / "search.yaml", record, "a search", "--out")
    earlier = _earlier_trials(out / "search.json", measures.main)
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(out / "search.yaml", record)
    if has_label_leakage(recipe):
        logger.warning(LABEL_LEAKAGE)
    drawn = {name: draw_settings(recipes[name], spaces[name], trials) for name in systems or recipes}
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
    scored: dict[str, list[dict[str, Any]]] = {
        name: [
            {"trial": number, "settings": settings, measures.main: _score(runs[name, number], measures)}
            for number, settings in enumerate(found)
        ]
        for name, found in drawn.items()
    }
    for name, found in scored.items():  # a shorter search keeps the trials of an earlier, longer one
        found += [trial for trial in earlier.get(name, []) if trial["trial"] >= len(found)]
        found.sort(key=lambda trial: _order(trial, measures))
    write_json(out / "search.json", earlier | scored)
    return scored


def _order(trial: dict[str, Any], measures: Measures) -> float:
    """Sorts trials: the best first, those that failed last."""
    score = trial[measures.main]
    if score is None:
        return math.inf
    return -score if measures.more_is_better else score


def failed_trials(scored: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The trials that have failed runs."""
    return [trial for trials in scored.values() for trial in trials if None in trial.values()]


def _earlier_trials(path: Path, main: str) -> dict[str, list[dict[str, Any]]]:
    """Read the trials of an earlier search in this folder, by system; empty if there was none."""
    if not path.is_file():
        return {}
    with reading(path, "the trials of a search"):
        found = json.loads(path.read_text(encoding="utf-8"))
        for trials in found.values():
            for trial in trials:
                if not isinstance(trial["trial"], int) or not isinstance(trial[main], float | int | None):
                    raise InputError(f"trial and {main} must be numbers, got {short(trial)}")
    return found


def draw_settings(recipe: Recipe, space: dict[str, list], trials: int) -> list[dict[str, Any]]:
    """
    Draw the settings of each trial: first no change, then different points of the space in an order that is always the
    same. There are fewer trials if the space has fewer points.
    """
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    own = {field: recipe.value(field) for field in space}
    others = [points[number] for number in np.random.default_rng(0).permutation(len(points)) if points[number] != own]
    return [{}, *others[: trials - 1]]


def _score(runs: list[Run], measures: Measures) -> float | None:
    """The main score of the held-out turns of all folds together; None if a run failed."""
    if not all(run.is_finished for run in runs):
        return None
    tables = [read_predictions(run.folder / "predictions.parquet", measures, None) for run in runs]
    labels, predictions = (np.concatenate([table[name] for table in tables]) for name in ("label", "prediction"))
    return measures.observed(labels, predictions)


def format_trials(scored: dict[str, list[dict[str, Any]]]) -> str:
    """Format a line per trial, the best of each system first, below the name of the score."""
    main = next(name for trials in scored.values() for trial in trials for name in set(trial) - {"trial", "settings"})
    unit = " in per cent" if in_per_cent(main) else ", less is better"
    lines = [f"{capitalized(score_title(main))} of all held-out turns{unit}; the best of each system first"]
    for name, trials in scored.items():
        for trial in trials:
            settings = (
                ", ".join(f"{field} {value}" for field, value in trial["settings"].items()) or "the recipe's own"
            )
            if trial[main] is None:
                score = "failed"
            else:
                score = f"{100 * trial[main]:.2f}" if in_per_cent(main) else f"{trial[main]:.4f}"
            lines.append(f"{name:20} {score:>7}  {settings}")
    return "\n".join(lines)
