"""
Checkpoints of a training: sealed with a manifest when they are complete, and checked before training resumes from one.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from ..base.errors import InputError, reading
from ..base.files import file_digest, write_json
from ..base.whole_files import UNFINISHED, sync

MANIFEST = "manifest.json"
_STATE = ("global_step", "epoch", "train_batch_size", "log_history", "best_global_step")
_NEEDED = (
    TRAINER_STATE_NAME,
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
)  # in a checkpoint without a manifest, beside the weights


def finished_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first; see [`damage`] for whether one is complete."""
    numbered = [path for path in Path(output_dir).glob("checkpoint-*") if _step(path) is not None and path.is_dir()]
    return sorted(numbered, key=lambda path: _step(path) or 0)


def _step(checkpoint: Path) -> int | None:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdecimal() else None


def seal(checkpoint: Path, precision: str):
    """
    Write all files of a checkpoint to disk, and a manifest with their sizes and SHA-256 and the precision of the
    training.
    """
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            files[path.relative_to(checkpoint).as_posix()] = [path.stat().st_size, file_digest(path)]
            sync(path)
    write_json(checkpoint / MANIFEST, {"precision": precision, "files": files})


def check_precision(checkpoint: Path, precision: str):
    r"""
    Check that a checkpoint is of a training in this precision, as far as its manifest says so.

    Raises:
        InputError: if it is of another.
    """
    if not (checkpoint / MANIFEST).is_file():
        return
    with reading(checkpoint / MANIFEST, "a manifest"):
        made_in = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")).get("precision", precision)
    if made_in != precision:
        raise InputError(
            f"'{checkpoint}' is of a training in {made_in}, but this one is in {precision}: its result would be "
            f"neither's. Resume in {made_in} (--bf16 or --fp16 true or false), or choose another --output_dir"
        )


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks or what changed in it since it was saved; None if it is complete."""
    try:
        if not (checkpoint / MANIFEST).is_file():
            return _damage_without_manifest(checkpoint)
        with reading(checkpoint / MANIFEST, "a manifest"):
            files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"].items()
            if not files:
                return f"{MANIFEST} names no file"
            for name, (size, digest) in files:
                path = checkpoint / name
                if not path.is_file():
                    return f"{name} is missing"
                if (found := path.stat().st_size) != size:
                    return f"{name} has {found:,} bytes, {size:,} were saved"
                if file_digest(path) != digest:
                    return f"{name} was changed since it was saved"
        return None
    except (InputError, OSError) as error:
        return str(error)


def _damage_without_manifest(checkpoint: Path) -> str | None:
    """The same for a checkpoint of version 0.1, which has no manifest, as far as its files show it."""
    found = {path.name: path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size}
    weights = [name for name in found if name.endswith((".safetensors", ".bin"))]
    states = [name for name in found if name.startswith("rng_state")]
    for name in _NEEDED:
        if name not in found:
            return f"{name} is missing or empty"
    for name, there in (("model.safetensors", weights), ("rng_state.pth", states)):
        if not there:
            return f"{name} is missing or empty"
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME, *states):
        if not zipfile.is_zipfile(found[name]):  # what torch.save writes, with its table of contents at the end
            return f"{name} is cut off or damaged"
    for name in filter(lambda name: name.endswith(".safetensors"), weights):
        try:
            with safe_open(found[name], "pt"):
                pass
        except SafetensorError as error:
            return f"{name} is cut off or damaged ({error})"
    with reading(checkpoint / TRAINER_STATE_NAME, "a trainer state"):
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or (missing := [name for name in _STATE if name not in state]):
            lacks = f"it lacks {', '.join(missing)}" if isinstance(state, dict) else "it is not a JSON object"
            return f"{TRAINER_STATE_NAME} is not a trainer state: {lacks}"
    return None


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint in the same folder that was best on validation until this one; None without one."""
    step = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_global_step")
    return checkpoint.with_name(f"checkpoint-{step}") if step else None


def newest_whole(output_dir: str | Path, with_best: bool = True) -> tuple[Path | None, list[str]]:
    r"""
    The checkpoint that training can resume from.

    Args:
        output_dir: the run's folder.
        with_best: whether its best checkpoint until then must be complete too.

    Returns:
        the newest complete checkpoint, or None; and what is wrong with each newer one.
    """
    problems: list[str] = []
    for checkpoint in reversed(finished_checkpoints(output_dir)):
        problem = damage(checkpoint)
        best = best_of(checkpoint) if with_best and problem is None else None
        if best is not None and best != checkpoint and (problem := damage(best) if best.is_dir() else "it is missing"):
            problem = f"its best checkpoint so far, {best.name}: {problem}"
        if problem is None:
            return checkpoint, problems
        problems.append(f"{checkpoint.name} is not whole ({problem})")
    return None, problems


def remove(checkpoint: Path):
    """Remove a checkpoint. It is renamed first, so that half a checkpoint never has its name."""
    aside = checkpoint.parent / UNFINISHED / f"removed-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)
