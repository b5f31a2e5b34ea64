"""Train the runs of a study, each in its own process and folder, to score development folds or test."""

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
from multiprocessing import connection
from multiprocessing.process import BaseProcess
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
from ..models.modeling_conversation import ConversationPreTrainedModel
from ..models.registry import RegisteredModel, register, registered
from ..training.checkpoints import finished_checkpoints
from ..training.dialogue_trainer import DialogueTrainer
from ..training.evaluate import scoring_trainer
from ..training.experiment import digests, run_experiment, train_model
from ..training.own_pretraining import OWN_FOLDER
from ..training.pretrained_start import weights_of
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
    One training run of a study.

    Args:
        name: name of the run in messages.
        recipe: sections of its recipe.
        seed: seed of its initial weights, dropout and the order of dialogues.
        folder: folder of this run alone.
        fold: number of the held-out fold, of `folds` development folds; None for a run that is scored on test.
        folds: number of development folds.
        robust: whether to predict damaged input, too.
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
        if self.fold is None:
            run_on_test(recipe, self)
        else:
            run_on_fold(recipe, self)


def corpus_of_study(recipe: Recipe, folds: int) -> dict[str, DialogueVectors]:
    """Read the corpus; InputError if it cannot be split into that many folds, or if the recipe pushes to the Hub."""
    if recipe.sections["training"].get("push_to_hub"):
        raise InputError("push_to_hub in a study would push one run over the other: push the folder of one run")
    corpus = recipe.read_corpus()
    development_folds(corpus, folds, recipe.corpus.group_pattern)
    return corpus


def check_counts(**counts: int):
    """Raise an InputError unless the counts are whole numbers from 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{name} must be a whole number from 1, got {count!r}")


def has_label_leakage(recipe: Recipe) -> bool:
    """Whether this package's encoders, which are trained on the labels of train, made the corpus's vectors."""
    return (Path(recipe.corpus_path()).expanduser() / RECORD).is_file()


def run_on_fold(recipe: Recipe, run: Run):
    """Train on the other folds to the last epoch, and score the held-out fold."""
    assert run.fold is not None and run.folds is not None
    recipe = recipe.changed(LAST_EPOCH)
    corpus = recipe.read_corpus()
    fingerprints = {name: corpus[name].fingerprint() for name in ("train", "validation")}
    record = {"recipe": recipe.to_dict(), "seed": run.seed, "fold": [run.fold, run.folds]}
    record |= weights_of(recipe.sections["training"].get("pretrained"))
    with own_folder(run.folder):
        if claim_run(run.folder, record | {"data_fingerprints": fingerprints}):
            return
        fold = development_folds(corpus, run.folds, recipe.corpus.group_pattern)[run.fold]
        _run_fold(recipe, run, fold, fingerprints)


def _run_fold(recipe: Recipe, run: Run, fold: dict[str, DialogueVectors], fingerprints: dict[str, str]):
    trainer, facts = train_model(recipe, recipe.training_arguments(run.folder, run.seed), **fold)
    _, data = fold.values()
    config = trainer.own_model.config
    id2label = config.id2label
    assert id2label is not None
    outputs = predict(trainer, data)
    predictions = outputs if recipe.regression else probabilities(outputs)
    write_table(run.folder / "predictions.parquet", prediction_table(predictions, data, config))
    _write_robustness(run, trainer, data)
    results = {"seed": run.seed, "fold": run.fold, **facts, "data_fingerprints": fingerprints}
    results["held out"] = score(predictions, data, list(id2label.values()), bins=recipe.corpus.score_bins)
    results["digests"] = digests(run.folder)
    shutil.rmtree(run.folder / OWN_FOLDER, ignore_errors=True)
    write_json(run.folder / "results.json", results)


def run_on_test(recipe: Recipe, run: Run):
    """Train as `mister-e train` does, and delete the checkpoints of the training."""
    corpus = recipe.read_corpus()
    run_experiment(recipe, run.folder, run.seed, corpus)
    use_cpu = recipe.sections["training"].get("use_cpu", False)
    model = load_model(run.folder)
    assert isinstance(model, ConversationPreTrainedModel)
    trainer = scoring_trainer(model, run.folder, use_cpu=use_cpu)
    _write_robustness(run, trainer, corpus["test"])
    for checkpoint in finished_checkpoints(run.folder):
        shutil.rmtree(checkpoint)


def _write_robustness(run: Run, trainer: DialogueTrainer, data: DialogueVectors):
    if run.robust:
        write_table(run.folder / _ROBUSTNESS, robustness_table(trainer, data))


def run_all(runs: list[Run], jobs: int, report: Callable[[str], Any]) -> list[str]:
    """
    Run what is not finished, `jobs` at a time. Failures are reported and do not stop the rest.

    Returns:
        names of the failed runs.
    """
    todo = [run for run in runs if not run.is_finished]
    if len(todo) < len(runs):
        report(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
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
                report(
                    f"[{number}/{len(todo)}] {run.name}: {what}; about {datetime.timedelta(seconds=round(left))} left"
                )
                failed += [run.name] * (error is not None)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise
    return failed


def _as_completed(futures: Iterable[Future], shown: Bar) -> Iterator[Future]:
    """Yield the futures as they finish; meanwhile the time in the bar is updated."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        shown.update(len(done))
        shown.refresh()
        yield from done


class _Running:
    """The running processes, which end when the study does."""

    def __init__(self):
        self._processes: set[BaseProcess] = set()
        self._stopped, self._lock = False, threading.Lock()

    def wait_for(self, process: BaseProcess):
        """Start a process and wait for its end."""
        with self._lock:
            if self._stopped:
                return
            process.start()
            self._processes.add(process)
        connection.wait([process.sentinel])
        # A start polls the other processes, too. Of two threads that poll at once, one takes the exit code and the
        # other takes the process for a lost one.
        with self._lock:
            process.join()
            self._processes.discard(process)

    def stop(self):
        self._stopped = True
        _end_fork_server()  # first, since a start that waits for it holds the lock
        with self._lock:
            for process in self._processes:
                process.terminate()


def _in_a_process(run: Run, jobs: int, running: _Running) -> str | None:
    """
    Run in a separate process, which frees all memory, reports its peak, and cannot crash another run.

    Returns:
        the error; None if the run finished.
    """
    process: BaseProcess
    if _CAN_FORK:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # so that all runs import once
        process = context.Process(target=_work, args=(run, jobs, registered()))
    else:
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(run, jobs, registered()))
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
    End the server from which the runs are forked. It would end by itself, but only after it has imported everything,
    and Python has no public way to end it.
    """
    server = sys.modules.get("multiprocessing.forkserver")  # absent where processes are spawned
    pid = getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _end_with_the_study():
    """End this run when the study does: a killed study cannot end its runs."""
    study = multiprocessing.parent_process()
    assert study is not None  # a run is always started by the study
    study.join()
    os._exit(1)


def _work(run: Run, jobs: int, models: Iterable[RegisteredModel]):
    """Run in this process; standard output and errors go to `log.txt`, a failure to `error.txt`."""
    for model in models:
        if model not in registered():  # registered by the user, in the process of the study
            register(model)
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
