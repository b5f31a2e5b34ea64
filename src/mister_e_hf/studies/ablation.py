"""Ablation study: train variants of a recipe with several seeds, score them on development folds and, once, on test.

The folder of a study:

    study.yaml                            recipe, variants, seeds and folds of the study
    development/VARIANT/seed-N/fold-K/    results.json and predictions.parquet of the held-out fold
    frozen.yaml                           recipes and date, written before test is scored
    final/VARIANT/seed-N/                 a checkpoint folder, as `mister-e train` writes it
    .../robustness.parquet                predictions of damaged input, for the variants in ROBUST
    .../error.txt                         in place of the results of a failed run
"""

import datetime
import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError, reading
from ..base.files import check_output_folder, write_yaml
from ..base.records import check_same
from ..base.yaml_files import read_yaml
from ..training.preflight import check_conversation_model
from ..training.recipe import Recipe
from ..training.recipe_widths import take_widths
from ..training.run_folder import check_seeds, git_commit
from .absent_modalities import variants_on_corpus
from .runs import Run, check_counts, corpus_of_study, has_label_leakage, run_all
from .study import FULL, LABEL_LEAKAGE, is_robust
from .study_files import check_asked, check_seed_list, read_freeze
from .variants import Variant

logger = logging.getLogger(__name__)


def ablate(
    recipe: Recipe,
    out: str | Path,
    seeds: Sequence[int],
    folds: int = 4,
    variants: Sequence[str] | None = None,
    final: bool = False,
    jobs: int = 1,
    report: Callable[[str], Any] = print,
) -> list[str]:
    r"""
    Run an ablation study; finished runs are skipped. Failures are reported and do not stop the rest; the next call
    tries failed runs again.

    Args:
        recipe: recipe of any registered model; see [`~mister_e_hf.studies.variants.variants_of`] for what is run, as
            far as the corpus has the modalities that it needs.
        out: folder of the study.
        seeds: seeds with which each variant is trained.
        folds: number of development folds, or 1 to train on train and score validation; see
            [`~mister_e_hf.vectors.folds.development_folds`].
        variants: names of the variants to run; by default all.
        final: freeze the recipes and score test, in place of the folds.
        jobs: number of runs at a time; each has its own process, and they share the CPU cores.
        report: called with a line of progress for each run.

    Returns:
        names of the failed runs.

    Raises:
        InputError: if a variant is unknown or needs a modality that the corpus lacks, or if `out` holds a study with
            other settings, or one that was frozen with other recipes.
    """
    check_counts(folds=folds, jobs=jobs)
    check_seeds(seeds)
    out = check_output_folder(out, [recipe.corpus.path])
    for sentence in take_widths(recipe):
        report(sentence)
    begun = _variants_begun(out)
    compared = variants_on_corpus(recipe, begun or {})
    recipe = compared.kept[FULL].recipe
    known = {name: each for name, each in compared.kept.items() if begun is None or name in begun}
    compared.check_asked(variants or ())
    for name in variants or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise InputError(f"Unknown variant '{name}'.{guess} Expected one of {', '.join(known)}")
    chosen = [known[name] for name in known if not variants or name in variants]
    if not final and not (on_folds := [each for each in chosen if each.kind != "split"]):
        names = [each.name for each in chosen]
        raise InputError(f"Another validation split has no score on folds; run {', '.join(names)} with --final")
    chosen = chosen if final else on_folds
    for each in chosen:
        check_conversation_model(each.recipe, out)
    for sentence in compared.sentences(variants or ()):
        report(sentence)
    stage = "final" if final else "development"
    _note_study(out, recipe, seeds, folds, known, stage, [each.name for each in chosen])
    if final:
        _freeze(out, known, seeds)
    elif has_label_leakage(recipe):
        logger.warning(LABEL_LEAKAGE)
    runs = []
    for seed in seeds:
        for each in chosen:
            name, sections = f"{each.name} seed {seed}", each.recipe.to_dict()
            robust = is_robust(each.name, sections)
            if final:
                runs.append(Run(name, sections, seed, out / "final" / each.name / f"seed-{seed}", robust=robust))
            else:
                folder = out / "development" / each.name / f"seed-{seed}"
                runs += [
                    Run(f"{name} fold {fold}", sections, seed, folder / f"fold-{fold}", fold, folds, robust)
                    for fold in range(folds)
                ]
    return run_all(runs, jobs, report)


def _variants_begun(out: Path) -> dict[str, Any] | None:
    """The variants that a study has recorded, since it may be frozen; None for a new study."""
    path = out / "study.yaml"
    if path.is_file():
        with reading(path, "the record of a study"):
            earlier = read_yaml(path)
        if isinstance(earlier, dict) and isinstance(earlier.get("variants"), dict):
            return earlier["variants"]
    return None


def _note_study(
    out: Path,
    recipe: Recipe,
    seeds: Sequence[int],
    folds: int,
    variants: dict[str, Variant],
    stage: str,
    asked: list[str],
):
    """
    Write `study.yaml`, with the variants that this and earlier calls ask for; InputError if the folder holds a study
    with another recipe or other folds.
    """
    path, corpus, pattern = out / "study.yaml", corpus_of_study(recipe, folds), recipe.corpus.group_pattern
    record = {
        "recipe_name": Path(recipe.source).stem,
        "recipe": recipe.to_dict(),
        "vectors": recipe.corpus.vectors or {},
        "vectors_knew_labels": has_label_leakage(recipe),
        "folds": folds,
        "fold_by": "dialogue" if pattern is None else f"what '{pattern}' finds in the dialogue's id",
        "data_fingerprints": {name: data.fingerprint() for name, data in corpus.items()},
        "variants": {
            each.name: {"description": each.description, "kind": each.kind, "recipe": each.recipe.to_dict()}
            for each in variants.values()
        },
    }
    earlier = check_same(path, record, "a study", "--out")
    earlier_seeds = earlier.get("seeds", list(seeds))
    check_seed_list(earlier_seeds, path)
    record |= {"seeds": sorted({*earlier_seeds, *seeds}), "modalities": list(corpus["train"].vectors)}
    if not earlier or "asked" in earlier:  # a study of an older version counts as asked for everything
        check_asked(earlier, path)
        earlier_asked = earlier.get("asked", {})
        own = earlier_asked.get(stage, {})
        own |= {name: sorted({*own.get(name, []), *seeds}) for name in asked}
        record["asked"] = earlier_asked | {stage: own}
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(path, record)


def _freeze(out: Path, variants: dict[str, Variant], seeds: Sequence[int]):
    """Write `frozen.yaml`: the recipes that are scored on test, decided before; InputError if it lists others."""
    path = out / "frozen.yaml"
    recipes = {name: each.recipe.to_dict() for name, each in variants.items()}
    if not path.is_file():
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_yaml(path, {"date": date, "git_commit": git_commit(), "seeds": list(seeds), "variants": recipes})
    frozen = read_freeze(path)
    if frozen["variants"] != recipes:
        raise InputError(f"'{out}' was frozen on {frozen['date']} with other recipes, which cannot change any more")
    if set(seeds) - set(frozen["seeds"]):
        raise InputError(f"'{out}' was frozen on {frozen['date']} with the seeds {frozen['seeds']}; got {list(seeds)}")
