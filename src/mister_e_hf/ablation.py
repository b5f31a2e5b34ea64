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
import multiprocessing
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModel

from .evaluation import scoring_trainer
from .experiment import predict, prediction_table, probabilities, run_experiment, score, train_model
from .folds import development_folds
from .recipe import Recipe
from .robustness import robustness_table
from .run_folder import claim_run, git_commit, write_atomically, write_json, write_table
from .trainer import MisterETrainer
from .training import finished_checkpoints
from .variants import FULL, Variant, changed_recipe, variants_of
from .vectors import DialogueVectors

_ERROR, _ROBUSTNESS = "error.txt", "robustness.parquet"
ROBUST = (FULL, "without_modality_dropout")
_CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
# A fold that scores cannot choose the epoch, too: the last one counts, and nothing has to be kept on the way.
_LAST_EPOCH = {
    "training.save_strategy": "no",
    "training.load_best_model_at_end": False,
    "training.early_stopping_patience": None,
    "training.disable_tqdm": True,
}


@dataclass
class Run:
    """
    One training.

    Args:
        variant: its name.
        recipe: sections of its recipe.
        seed: of the run.
        folder: its own.
        fold: which of so many `folds` of the development data scores it; None for one that test scores.
    """

    variant: str
    recipe: dict[str, Any]
    seed: int
    folder: Path
    fold: int | None = None
    folds: int | None = None

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" + ("" if self.fold is None else f" fold {self.fold}")

    @property
    def is_finished(self) -> bool:
        wanted = ["results.json", *([_ROBUSTNESS] if self.variant in ROBUST else [])]
        return all((self.folder / name).is_file() for name in wanted)

    def __call__(self):
        recipe = Recipe(self.recipe, self.variant)
        run_on_test(recipe, self) if self.fold is None else run_on_fold(recipe, self)


def run_on_fold(recipe: Recipe, run: Run):
    """Train on the other folds to the last epoch, and score the one that was left out."""
    recipe = changed_recipe(recipe, _LAST_EPOCH, run.variant)
    corpus = recipe.read_corpus()
    fingerprints = {name: corpus[name].fingerprint() for name in ("train", "validation")}
    record = {"recipe": recipe.to_dict(), "seed": run.seed, "fold": [run.fold, run.folds]}
    if claim_run(run.folder, record | {"data_fingerprints": fingerprints}):
        return
    fold = development_folds(corpus, run.folds, recipe.corpus.group_pattern)[run.fold]
    trainer, facts = train_model(recipe, recipe.training_arguments(run.folder, run.seed), **fold)
    _, data = fold.values()
    id2label = trainer.model.config.id2label
    predictions = probabilities(predict(trainer, data))
    write_table(run.folder / "predictions.parquet", prediction_table(predictions, data, id2label))
    _write_robustness(run, trainer, data)
    results = {"seed": run.seed, "fold": run.fold, **facts, "data_fingerprints": fingerprints}
    results["held out"] = score(predictions, data, list(id2label.values()))
    write_json(run.folder / "results.json", results)


def run_on_test(recipe: Recipe, run: Run):
    """What `mister-e train` does."""
    corpus = recipe.read_corpus()
    run_experiment(recipe, run.folder, run.seed, corpus)
    use_cpu = recipe.sections["training"].get("use_cpu", False)
    trainer = scoring_trainer(AutoModel.from_pretrained(run.folder), run.folder, use_cpu=use_cpu)
    _write_robustness(run, trainer, corpus["test"])
    for checkpoint in finished_checkpoints(run.folder):
        shutil.rmtree(checkpoint)


def _write_robustness(run: Run, trainer: MisterETrainer, data: DialogueVectors):
    if run.variant in ROBUST:
        write_table(run.folder / _ROBUSTNESS, robustness_table(trainer, data))


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
        recipe: of MiSTER-E; what [`~mister_e_hf.variants.variants_of`] makes of it is run.
        out: the study's folder.
        seeds: each variant is run with each.
        folds: into how many the development data are parted; see [`~mister_e_hf.folds.development_folds`].
        variants: names of those to run; by default all.
        final: freeze the recipes and score test, in place of the folds.
        jobs: runs at the same time, each in a process of its own, which share the processor's cores.
        say: called with a line of progress for each run.

    Returns:
        names of the runs that failed.

    Raises:
        ValueError: if a variant is not known, or `out` holds a study of something else, or one that is frozen with other recipes.
    """
    out, known = Path(out), variants_of(recipe)
    for name in variants or ():
        if name not in known:
            raise ValueError(f"There is no variant '{name}'; there are {', '.join(known)}")
    chosen = [known[name] for name in known if not variants or name in variants]
    _note_study(out, recipe, seeds, folds, known)
    if final:
        _freeze(out, known)
        runs = [
            Run(each.name, each.recipe.to_dict(), seed, out / "final" / each.name / f"seed-{seed}")
            for seed in seeds
            for each in chosen
        ]
    else:
        runs = [
            Run(each.name, each.recipe.to_dict(), seed, folder / f"fold-{fold}", fold, folds)
            for seed in seeds
            for each in chosen
            if each.kind != "split"
            for folder in [out / "development" / each.name / f"seed-{seed}"]
            for fold in range(folds)
        ]
    return _run_all(runs, jobs, say)


def _note_study(out: Path, recipe: Recipe, seeds: Sequence[int], folds: int, variants: dict[str, Variant]):
    """What the folder is a study of: the same recipe and folds whenever it is gone on with."""
    path, corpus = out / "study.yaml", recipe.read_corpus()
    pattern = recipe.corpus.group_pattern
    development_folds(corpus, folds, pattern)  # raises where there can be none
    record = {
        "recipe_name": Path(recipe.source).stem,
        "recipe": recipe.to_dict(),
        "folds": folds,
        "fold_by": "dialogue" if pattern is None else f"what '{pattern}' finds in the dialogue's id",
        "data_fingerprints": {name: data.fingerprint() for name, data in corpus.items()},
        "variants": {
            each.name: {"description": each.description, "kind": each.kind, "recipe": each.recipe.to_dict()}
            for each in variants.values()
        },
    }
    earlier = yaml.safe_load(path.read_text()) if path.is_file() else {"seeds": [], **record}
    different = [name for name in record if earlier.get(name) != record[name]]
    if different:
        raise ValueError(
            f"'{out}' holds a study with another {' and '.join(different)}. Choose another --out, or remove it."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_yaml(path, record | {"seeds": sorted({*earlier["seeds"], *seeds})})


def _freeze(out: Path, variants: dict[str, Variant]):
    """From here on nothing changes: what is scored on test was decided without it."""
    path = out / "frozen.yaml"
    recipes = {name: each.recipe.to_dict() for name, each in variants.items()}
    if not path.is_file():
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write_yaml(path, {"date": date, "git_commit": git_commit(), "variants": recipes})
    frozen = yaml.safe_load(path.read_text())
    if frozen["variants"] != recipes:
        raise ValueError(f"'{out}' was frozen on {frozen['date']} with other recipes; its test scores stand")


def _write_yaml(path: Path, record: dict):
    write_atomically(path, lambda unfinished: unfinished.write_text(yaml.safe_dump(record, sort_keys=False)))


def _run_all(runs: list[Run], jobs: int, say: Callable[[str], Any]) -> list[str]:
    todo = [run for run in runs if not run.is_finished]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    start, failed = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_in_a_process, run, jobs): run for run in todo}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run, error = futures[future], future.result()
                left = (time.monotonic() - start) / number * (len(todo) - number)
                what = "done" if error is None else f"FAILED: {error} (see {run.folder / _ERROR})"
                say(f"[{number}/{len(todo)}] {run.name}: {what}; about {datetime.timedelta(seconds=round(left))} left")
                failed += [run.name] * (error is not None)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _in_a_process(run: Run, jobs: int) -> str | None:
    """A process of its own frees all memory, tells how much that was, and takes no other run down with it. Returns what went wrong."""
    context = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")
    if _CAN_FORK:
        context.set_forkserver_preload([__name__])  # the imports of all runs, once
    process = context.Process(target=_work, args=(run, jobs))
    process.start()
    process.join()
    if process.exitcode == 0:
        return None
    path = run.folder / _ERROR
    if process.exitcode != 1 or not path.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the process ended with exit code {process.exitcode}\n")
    return path.read_text().strip().splitlines()[-1]


def _work(run: Run, jobs: int):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / _ERROR).unlink(missing_ok=True)
    torch.set_num_threads(max(torch.get_num_threads() // jobs, 1))
    with open(run.folder / "log.txt", "a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            run()
        except Exception:
            (run.folder / _ERROR).write_text(traceback.format_exc())
            sys.exit(1)
