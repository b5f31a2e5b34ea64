"""The folder of a run: the record of its settings, whether it is finished, and facts about it."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer

from ..base.errors import InputError, reading
from ..base.files import write_yaml
from ..base.processes import own_folder, report
from ..base.records import check_same
from ..vectors.dialogue_vectors import DialogueVectors
from .checkpoints import finished_checkpoints

_VERSIONS = ("mister-e-hf", "torch", "transformers", "accelerate", "numpy")


def check_seeds(seeds: Sequence[int]):
    """
    Check the seeds of a run.

    Raises:
        InputError: if a seed is out of range or appears twice.
    """
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"seeds: expected whole numbers from 0 to {2**32 - 1:,}, got {seed}")
        if list(seeds).count(seed) > 1:
            raise InputError(f"seeds: {seed} appears twice; a seed gives the same run each time")


def claim_run(output_dir: Path, record: dict) -> bool:
    r"""
    Whether the run in this folder is finished. The record of a new run is written.

    Raises:
        InputError: if the folder holds a run with other settings, naming the fields that differ, or `run.yaml` or
            `results.json` is damaged.
    """
    run = output_dir / "run.yaml"
    with PartialState().main_process_first():
        finished = read_results(output_dir) is not None
        if run.is_file():
            check_same(run, record, "a run", "--output_dir")
        elif finished or finished_checkpoints(output_dir):
            raise InputError(
                f"'{output_dir}' holds a run without a run.yaml. Choose another --output_dir, or remove it."
            )
        else:
            output_dir.mkdir(parents=True, exist_ok=True)
            write_yaml(run, record)
    return finished


def run_once(
    title: str,
    output_dir: Path,
    record: dict,
    run: Callable[[], dict[str, Any]],
    validation: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> dict[str, Any]:
    r"""
    Run once: return the stored results if the run is finished, else run it. Both are reported in one line.

    Args:
        title: name of what is trained.
        output_dir: folder of the run; waits for another process that works in it.
        record: settings of the run.
        run: trains, and writes the results.
        validation: takes the scores on validation from the results; None without such dialogues.

    Raises:
        InputError: if the folder holds a run with other settings.
    """
    with own_folder(output_dir):
        finished = read_results(output_dir) if claim_run(output_dir, record) else None
        results = run() if finished is None else finished
        how = "trained" if finished is None else "trained earlier"
        scores = validation(results)
        kept = "last epoch kept" if scores is None else f"validation {headline(scores)}"
        report(f"{title}: {how}, {kept} ({output_dir})")
    return results


def headline(scores: dict[str, Any]) -> str:
    """
    The score that a line of progress shows: the mean absolute error of a regression, the loss of pre-training, else
    weighted F1.
    """
    if "reconstruction_loss" in scores:
        return f"loss {scores['loss']:.4f} ({pretraining_terms(scores)})"
    if "mae" in scores:
        return f"MAE {scores['mae']:.4f}"
    return f"weighted F1 {100 * scores['weighted_f1']:.2f}"


def pretraining_terms(metrics: Mapping[str, float]) -> str:
    """The terms of a loss of pre-training, unweighted, each with what a model has that learned nothing."""
    terms = []
    if "reconstruction_loss" in metrics:
        terms.append(f"reconstruction {metrics['reconstruction_loss']:.4f}, the mean 1")
    if "contrastive_loss" in metrics:
        chance = f", chance {metrics['contrastive_chance']:.4f}" if "contrastive_chance" in metrics else ""
        terms.append(f"InfoNCE {metrics['contrastive_loss']:.4f}{chance}")
    return "; ".join(terms)


def read_results(folder: Path) -> dict[str, Any] | None:
    r"""
    Results of the run in a folder; None if it is not finished.

    Raises:
        InputError: if `results.json` is damaged.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    with reading(path, "the results of a run"):
        results = json.loads(path.read_text(encoding="utf-8") or "null")
    if not isinstance(results, dict):
        raise InputError(
            f"'{path}' does not hold the results of a run: it is empty or damaged. Remove it, and the same command "
            "scores the run again."
        )
    return results


def best_epoch(trainer: Trainer) -> float | None:
    """The epoch that validation chose; None if the last epoch is kept."""
    if not trainer.args.load_best_model_at_end:
        return None
    best = trainer.state.best_global_step
    return next((entry["epoch"] for entry in trainer.state.log_history if entry["step"] == best), None)


def learning_history(trainer: Trainer) -> list[dict[str, float]]:
    """An entry per logged epoch: the loss, its terms, and `eval_...` for validation."""
    epochs: dict[float, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        if "loss" in entry or "eval_loss" in entry:
            epochs.setdefault(entry["epoch"], {}).update(entry)
    left_out = ("step", "learning_rate", "time", "per_second")
    return [{name: value for name, value in entry.items() if not name.endswith(left_out)} for entry in epochs.values()]


def peak_memory() -> int | None:
    """Peak memory of this process so far in bytes: of its GPU if it uses one, else main memory (None if unknown)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def provenance(device: Any) -> dict[str, Any]:
    """Commit and versions of a run."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS} | {"device": str(device)}
    return {"git_commit": git_commit(), "versions": versions}


def git_commit() -> str | None:
    """
    Commit of the source tree that this package runs from, with `+changes` if it was changed; None outside of one.
    """

    def git(*words: str) -> str | None:
        try:
            call = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, encoding="utf-8", timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return call.stdout.strip() if call.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", __file__) else None
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def check_unchanged(corpus: dict[str, DialogueVectors], fingerprints: dict[str, str]):
    """
    Check that the vectors are those of the start: they are mapped from files, which may have been written to
    meanwhile.
    """
    for name, data in corpus.items():
        if data.fingerprint() != fingerprints[name]:
            raise InputError(
                f"{name}: the vectors were changed during training, so nothing was scored. Train again, with another "
                "--output_dir"
            )
