"""A run's own folder: what it is a run of, whether it is finished, and what it says of itself."""

import importlib.metadata
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import Trainer

from .training import finished_checkpoints

_VERSIONS = ("mister-e-hf", "torch", "transformers", "accelerate", "numpy")


def claim_run(output_dir: Path, record: dict) -> bool:
    """Whether the run in this folder is finished; a run of something else is refused, a new one is noted down."""
    run, finished = output_dir / "run.yaml", (output_dir / "results.json").is_file()
    with PartialState().main_process_first():
        if run.is_file():
            earlier = yaml.safe_load(run.read_text())
            different = [name for name in record if earlier.get(name) != record[name]]
            if different:
                raise ValueError(
                    f"'{output_dir}' holds a run with another {' and '.join(different)}. Choose another --output_dir, or remove it."
                )
        elif finished or finished_checkpoints(output_dir):
            raise ValueError(
                f"'{output_dir}' holds a run without a run.yaml. Choose another --output_dir, or remove it."
            )
        else:
            output_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(run, lambda path: path.write_text(yaml.safe_dump(record, sort_keys=False)))
    return finished


def read_results(folder: Path) -> dict[str, Any] | None:
    """What a finished run says of itself; None where none is finished."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def best_epoch(trainer: Trainer) -> float | None:
    best = trainer.state.best_global_step
    return next((entry["epoch"] for entry in trainer.state.log_history if entry["step"] == best), None)


def provenance(device: Any) -> dict[str, Any]:
    """Commit and versions that a run was made with."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS} | {"device": str(device)}
    return {"git_commit": _git_commit(), "versions": versions}


def _git_commit() -> str | None:
    """Commit of the source tree that this package runs from, with a mark when it was changed; None outside of one."""

    def git(*words: str) -> str | None:
        try:
            call = subprocess.run(
                ["git", "-C", Path(__file__).parent, *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return call.stdout.strip() if call.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", __file__) else None
    return commit and commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def write_atomically(path: Path, write: Callable[[Path], Any]):
    """The file appears whole or not at all."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    write(unfinished)
    os.replace(unfinished, path)


def write_json(path: Path, value: dict):
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(value, indent=2) + "\n"))
