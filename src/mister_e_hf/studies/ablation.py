"""An ablation study: the variants of a recipe, each with several seeds, scored on folds of the development data and, once all is decided, on test.

A study's folder:

    study.yaml                                        what it is a study of
    development/VARIANT/seed-N/fold-K/                results.json, predictions.parquet of the fold that was left out
    frozen.yaml                                       what was decided before test was touched, dated
    final/VARIANT/seed-N/                             a checkpoint folder, as `mister-e train` writes it
    .../robustness.parquet                            for the variants in ROBUST
    .../error.txt                                     in place of results, where a run failed
"""

import datetime
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.files import check_output_folder, write_yaml
from ..base.records import check_same
from ..training.preflight import check_conversation_model, check_seeds
from ..training.recipe import Recipe
from ..training.run_folder import git_commit
from .runs import Run, check_counts, corpus_of_study, run_all, vectors_knew_labels
from .study import KNEW_LABELS, ROBUST
from .study_files import check_seed_list, read_freeze
from .variants import Variant, variants_of

logger = logging.getLogger(__name__)


def ablate(
    recipe: Recipe,
    out: str | Path,
    seeds: Sequence[int],
    folds: int = 4,
    variants: Sequence[str] | None = None,
    final: bool = False,
    jobs: int = 1,
    say: Callable[[str], Any] = print,
) -> list[str]:
    r"""
    Run a study, or what is missing of it. A run that fails is told and does not stop the others; it is tried again the next time.

    Args:
        recipe: of MiSTER-E; what [`~mister_e_hf.studies.variants.variants_of`] makes of it is run.
        out: the study's folder.
        seeds: each variant is run with each.
        folds: into how many the development data are parted; see [`~mister_e_hf.vectors.folds.development_folds`].
        variants: names of those to run; by default all.
        final: freeze the recipes and score test, in place of the folds.
        jobs: runs at the same time, each in a process of its own, which share the processor's cores.
        say: called with a line of progress for each run.

    Returns:
        names of the runs that failed.

    Raises:
        ValueError: if a variant is not known, or `out` holds a study of something else, or one that is frozen with other recipes.
    """
    check_counts(folds=folds, jobs=jobs)
    check_seeds(seeds)
    out, known = check_output_folder(out, [recipe.corpus.path]), variants_of(recipe)
    for name in variants or ():
        if name not in known:
            raise InputError(f"Unknown variant '{name}'; expected one of {', '.join(known)}")
    chosen = [known[name] for name in known if not variants or name in variants]
    if not final and all(each.kind == "split" for each in chosen):
        raise InputError(f"Another validation split has no score on folds; run {', '.join(variants)} with --final")
    for each in chosen:
        check_conversation_model(each.recipe, out)
    _note_study(out, recipe, seeds, folds, known)
    if final:
        _freeze(out, known, seeds)
    elif vectors_knew_labels(recipe):
        logger.warning(KNEW_LABELS)
    runs = []
    for seed in seeds:
        for each in chosen:
            name, sections, robust = f"{each.name} seed {seed}", each.recipe.to_dict(), each.name in ROBUST
            if final:
                runs.append(Run(name, sections, seed, out / "final" / each.name / f"seed-{seed}", robust=robust))
            elif each.kind != "split":
                folder = out / "development" / each.name / f"seed-{seed}"
                runs += [
                    Run(f"{name} fold {fold}", sections, seed, folder / f"fold-{fold}", fold, folds, robust)
                    for fold in range(folds)
                ]
    return run_all(runs, jobs, say)


def _note_study(out: Path, recipe: Recipe, seeds: Sequence[int], folds: int, variants: dict[str, Variant]):
    """What the folder is a study of: the same recipe and folds whenever it is gone on with."""
    path, corpus, pattern = out / "study.yaml", corpus_of_study(recipe, folds), recipe.corpus.group_pattern
    record = {
        "recipe_name": Path(recipe.source).stem,
        "recipe": recipe.to_dict(),
        "vectors": recipe.corpus.vectors or {},
        "vectors_knew_labels": vectors_knew_labels(recipe),
        "folds": folds,
        "fold_by": "dialogue" if pattern is None else f"what '{pattern}' finds in the dialogue's id",
        "data_fingerprints": {name: data.fingerprint() for name, data in corpus.items()},
        "variants": {
            each.name: {"description": each.description, "kind": each.kind, "recipe": each.recipe.to_dict()}
            for each in variants.values()
        },
    }
    earlier = check_same(path, record, "a study", "--out").get("seeds", list(seeds))
    check_seed_list(earlier, path)
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(path, record | {"seeds": sorted({*earlier, *seeds})})


def _freeze(out: Path, variants: dict[str, Variant], seeds: Sequence[int]):
    """From here on nothing changes: what is scored on test was decided without it."""
    path = out / "frozen.yaml"
    recipes = {name: each.recipe.to_dict() for name, each in variants.items()}
    if not path.is_file():
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_yaml(path, {"date": date, "git_commit": git_commit(), "seeds": list(seeds), "variants": recipes})
    frozen = read_freeze(path)
    if frozen["variants"] != recipes:
        raise InputError(f"'{out}' was frozen on {frozen['date']} with other recipes; its test scores stand")
    if set(seeds) - set(frozen["seeds"]):
        raise InputError(f"'{out}' was frozen on {frozen['date']} with the seeds {frozen['seeds']}; got {list(seeds)}")
