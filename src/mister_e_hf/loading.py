"""Clear words for weights that cannot be loaded."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

ACCESS_OPTIONS = ("cache_dir", "local_files_only", "token")

_LOOK = {f"_raise_exceptions_for_{kind}": False for kind in ("gated_repo", "missing_entries", "connection_errors")}


@contextlib.contextmanager
def explained(name: str | os.PathLike, options: Mapping[str, Any], or_pickle: bool = False) -> Iterator[None]:
    r"""
    Around the loading of a model's weights: names the file that is damaged, which safetensors does not, and says why there must be one.

    Args:
        name: folder, or id on the Hub.
        options: of them what says where: subfolder, revision, token, cache_dir, local_files_only.
        or_pickle: whether there may be weights in another format.
    """
    if not or_pickle:
        _check_shards(_find(name, "model.safetensors.index.json", options))
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"{_damaged(name, options)} is damaged, or was cut off on its way here ({error}). Save or download it again."
        ) from error
    except OSError as error:
        there = _find(name, "config.json", options)
        weights = ("model.safetensors", "model.safetensors.index.json")
        if or_pickle or there is None or any(_find(name, file, options) for file in weights):
            raise
        where = "/".join(filter(None, [str(name), options.get("subfolder")]))
        raise OSError(
            f"'{where}' has no model.safetensors. Weights are read from safetensors alone: pytorch_model.bin is a pickle, and to open one can run "
            "any code. Have its maker save it by save_pretrained, or convert it where you trust it."
        ) from error


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """By which names and shapes two sets of weights differ; nothing where they fit."""
    other = {name for name in set(found) & set(expected) if found[name].shape != expected[name].shape}
    return listed_problems(set(expected) - set(found), set(found) - set(expected), other)


def listed_problems(missing: Iterable[str], unexpected: Iterable[str], of_another_shape: Iterable[str]) -> str:
    """What is wrong with which weights; nothing where none is."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": of_another_shape}
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)


def _check_shards(index: str | None):
    """Transformers reads what the index names, wherever and of whatever format it is."""
    for shard in set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()) if index else ():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise OSError(f"'{index}' names '{shard}', which is no safetensors file of its own folder")


def _find(name: str | os.PathLike, file: str, options: Mapping[str, Any]) -> str | None:
    where = {key: options[key] for key in (*ACCESS_OPTIONS, "revision", "subfolder") if options.get(key) is not None}
    return cached_file(name, file, **where, **_LOOK)


def _damaged(name: str | os.PathLike, options: Mapping[str, Any]) -> str:
    config = _find(name, "config.json", options)
    folder = Path(config).parent if config else None
    for path in [*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")] if folder else ():
        try:
            with safe_open(path, "pt"):
                continue
        except SafetensorError:
            return f"'{path}'"
    return f"A weights file of '{name}'"
