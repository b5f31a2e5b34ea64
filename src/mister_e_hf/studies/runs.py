"""Trainings of a study, each in a process and a folder of its own: on a fold of the development data, or on the whole for test."""

import contextlib
import datetime
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.chatter import hide_unnamed_bars
from ..base.errors import InputError
from ..base.files import write_json, write_table
from ..base.processes import own_folder
from ..base.progress import Bar, bar, line
from ..encoders.embedding import RECORD
from ..evaluation.predictions import predict, prediction_table, probabilities, score
from ..inference.stored_stages import load_model
from ..training.checkpoints import finished_checkpoints
from ..training.dialogue_trainer import MisterETrainer
from ..training.evaluate import scoring_trainer
from ..training.experiment import digests, run_experiment, train_model
from ..training.recipe import Recipe
from ..training.run_folder import claim_run
from ..vectors.dialogue_vectors import DialogueVectors
from ..vectors.folds import development_folds
from .robustness import robustness_table
from .study import LAST_EPOCH

_ERROR, _ROBUSTNESS = "error.txt", "robustness.parquet"
_CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()


@dataclass
class Run:
    """
    One training.

    Args:
        name: what to call it.
        recipe: sections of its recipe.
        seed: of the run.
        folder: its own.
        fold: which of so many `folds` of the development data scores it; None for one that test scores.
        robust: whether its answers to damaged input are wanted, too.
    """

    name: str
    recipe: dict[str, Any]
    seed: int
    folder: Path
    fold: int | None = None
    folds: int | None = None
    robust: bool = False

    @property
    def is_finished(self) -> bool:
        wanted = ["results.json", *([_ROBUSTNESS] if self.robust else [])]
        return all((self.folder / name).is_file() for name in wanted)

    def __call__(self):
        recipe = Recipe(self.recipe, self.name)
        run_on_test(recipe, self) if self.fold is None else run_on_fold(recipe, self)


def corpus_of_study(recipe: Recipe, folds: int) -> dict[str, DialogueVectors]:
    """The corpus; ValueError where its development data cannot be parted so, or where the recipe would push each of many runs."""
    if recipe.sections["training"].get("push_to_hub"):
        raise InputError("push_to_hub in a study would push one run over the other: push the folder of one")
    corpus = recipe.read_corpus()
    development_folds(corpus, folds, recipe.corpus.group_pattern)
    return corpus


def check_counts(**counts: int):
    """The numbers that a study is given: whole and at least 1, of folds at least 2."""
    for name, count in counts.items():
        least = 2 if name == "folds" else 1
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise InputError(f"{name} must be a whole number from {least}, got {count!r}")


def vectors_knew_labels(recipe: Recipe) -> bool:
    """Whether the corpus's vectors were made by this package's encoders, which are trained on the labels of train."""
    return (Path(recipe.corpus_path()).expanduser() / RECORD).is_file()


def run_on_fold(recipe: Recipe, run: Run):
    """Train on the other folds to the last epoch, and score the one that was left out."""
    recipe = recipe.changed(LAST_EPOCH)
    corpus = recipe.read_corpus()
    fingerprints = {name: corpus[name].fingerprint() for name in ("train", "validation")}
    record = {"recipe": recipe.to_dict(), "seed": run.seed, "fold": [run.fold, run.folds]}
    with own_folder(run.folder):
        if claim_run(run.folder, record | {"data_fingerprints": fingerprints}):
            return
        fold = development_folds(corpus, run.folds, recipe.corpus.group_pattern)[run.fold]
        _run_fold(recipe, run, fold, fingerprints)


def _run_fold(recipe: Recipe, run: Run, fold: dict[str, DialogueVectors], fingerprints: dict[str, str]):
    trainer, facts = train_model(recipe, recipe.training_arguments(run.folder, run.seed), **fold)
    _, data = fold.values()
    id2label = trainer.model.config.id2label
    predictions = probabilities(predict(trainer, data))
    write_table(run.folder / "predictions.parquet", prediction_table(predictions, data, id2label))
    _write_robustness(run, trainer, data)
    results = {"seed": run.seed, "fold": run.fold, **facts, "data_fingerprints": fingerprints}
    results["held out"] = score(predictions, data, list(id2label.values()))
    results["digests"] = digests(run.folder)
    write_json(run.folder / "results.json", results)


def run_on_test(recipe: Recipe, run: Run):
    """What `mister-e train` does."""
    corpus = recipe.read_corpus()
    run_experiment(recipe, run.folder, run.seed, corpus)
    use_cpu = recipe.sections["training"].get("use_cpu", False)
    trainer = scoring_trainer(load_model(run.folder), run.folder, use_cpu=use_cpu)
    _write_robustness(run, trainer, corpus["test"])
    for checkpoint in finished_checkpoints(run.folder):
        shutil.rmtree(checkpoint)


def _write_robustness(run: Run, trainer: MisterETrainer, data: DialogueVectors):
    if run.robust:
        write_table(run.folder / _ROBUSTNESS, robustness_table(trainer, data))


def run_all(runs: list[Run], jobs: int, say: Callable[[str], Any]) -> list[str]:
    """Run what is not finished, `jobs` at a time. One that fails is told and does not stop the others; returns the names of those."""
    todo = [run for run in runs if not run.is_finished]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    if todo:
        line(f"{len(todo)} runs, {min(jobs, len(todo))} at a time; each writes a log.txt in its folder")
    start, failed, running = time.monotonic(), [], _Running()
    with ThreadPoolExecutor(jobs) as pool, bar("study", len(todo), "runs") as shown:
        futures = {pool.submit(_in_a_process, run, jobs, running): run for run in todo}
        try:
            for number, future in enumerate(_as_completed(futures, shown), start=1):
                run, error = futures[future], future.result()
                left = (time.monotonic() - start) / number * (len(todo) - number)
                what = "done" if error is None else f"FAILED: {error} (see {run.folder / _ERROR})"
                say(f"[{number}/{len(todo)}] {run.name}: {what}; about {datetime.timedelta(seconds=round(left))} left")
                failed += [run.name] * (error is not None)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise
    return failed


def _as_completed(futures: Iterable[Future], shown: Bar) -> Iterator[Future]:
    """The futures as they are done; the time in the bar goes on meanwhile."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        shown.update(len(done))
        shown.refresh()
        yield from done


class _Running:
    """The processes at work, which end when the study does."""

    def __init__(self):
        self._processes, self._stopped, self._lock = set(), False, threading.Lock()

    def wait_for(self, process: multiprocessing.Process):
        """Start it and wait for its end."""
        with self._lock:
            if self._stopped:
                return
            process.start()
            self._processes.add(process)
        process.join()
        self._processes.discard(process)

    def stop(self):
        self._stopped = True
        _end_fork_server()  # first: a start that waits for it holds the lock
        with self._lock:
            for process in self._processes:
                process.terminate()


def _in_a_process(run: Run, jobs: int, running: _Running) -> str | None:
    """A process of its own frees all memory, reports how much that was, and takes no other run down with it. Returns what went wrong."""
    context = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")
    if _CAN_FORK:
        context.set_forkserver_preload([__name__])  # the imports of all runs, once
    process = context.Process(target=_work, args=(run, jobs))
    running.wait_for(process)
    if process.exitcode == 0:
        return None
    path = run.folder / _ERROR
    if process.exitcode != 1 or not path.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the process ended with exit code {process.exitcode}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip().splitlines()[-1]


def _end_fork_server():
    """
    What the trainings are forked from would end by itself, but only when it has imported everything; Python has no public way to end it.
    """
    server = sys.modules.get("multiprocessing.forkserver")  # not there where processes are spawned
    pid = getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _end_with_the_study():
    """A study that was killed cannot end its trainings any more: they see it and end themselves."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(run: Run, jobs: int):
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    hide_unnamed_bars()
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / _ERROR).unlink(missing_ok=True)
    torch.set_num_threads(max(torch.get_num_threads() // jobs, 1))
    with (
        open(run.folder / "log.txt", "a", buffering=1, encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            run()
        except Exception:
            (run.folder / _ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            sys.exit(1)
