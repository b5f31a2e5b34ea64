"""Loading what somebody else saved: what is missing, damaged, of another kind or broken is named, by file and by weight."""

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import cached_file

from ..base.errors import InputError, reading, short

ACCESS_OPTIONS = ("cache_dir", "local_files_only", "token")

_LOOK = {f"_raise_exceptions_for_{kind}": False for kind in ("gated_repo", "missing_entries", "connection_errors")}
_FLOATS = ("F64", "F32", "F16", "BF16")
_COUNTS = ("num_batches_tracked", "position_ids")  # of backbones: whole numbers that were never trained
_LARGEST = torch.finfo(torch.float32).max ** 0.5  # where squares overflow, nothing computed from it is finite


@contextlib.contextmanager
def explained(name: str | os.PathLike, options: Mapping[str, Any], or_pickle: bool = False) -> Iterator[None]:
    r"""
    Around the loading of a model's weights: names the file that is damaged, which safetensors does not, and says why there must be one.

    Args:
        name: folder, or id on the Hub.
        options: of them what says where: subfolder, revision, token, cache_dir, local_files_only.
        or_pickle: whether there may be weights in another format.

    Raises:
        InputError: if there is nothing of that name, or a file of it is not what it should be.
        OSError: naming the file that is damaged, or if there are no weights in safetensors.
    """
    (require if or_pickle else require_config)(name, options)
    where = "/".join(filter(None, [str(name), options.get("subfolder")]))
    config = find_file(name, "config.json", options)
    try:
        if not or_pickle:
            for file in _weight_files(name, options):
                check_kinds(file)
        yield
    except SafetensorError as error:
        raise OSError(
            f"{_damaged(name, options)} is damaged, or was truncated in download ({error}). Save or download it again."
        ) from error
    except pickle.UnpicklingError as error:
        raise OSError(
            f"'{where}' keeps its weights in a pickle with more than tensors in it, which could run any code when it is opened; it is not read. "
            "Use a model whose weights are in safetensors."
        ) from error
    except InputError:
        raise
    except OSError as error:
        weights = ("model.safetensors", "model.safetensors.index.json")
        if or_pickle or config is None or any(find_file(name, file, options) for file in weights):
            raise
        raise OSError(
            f"'{where}' has no model.safetensors. Weights are read from safetensors alone: pytorch_model.bin is a pickle, and opening one can run "
            "any code. Ask its author to save it with save_pretrained, or convert it where you trust it."
        ) from error
    except (AttributeError, KeyError, IndexError, ValueError, EOFError, RecursionError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"'{where}' is of a type that only its own code can load, and code that comes with a model is not run. Use a model of a type that "
                "transformers knows."
            ) from error
        raise InputError(f"'{where}' could not be loaded ({type(error).__name__}): {short(error)}") from error


def require(name: str | os.PathLike, options: Mapping[str, Any]):
    r"""
    A model that is neither a folder nor on the Hub is named at once: transformers asks an unreachable Hub for minutes, and then speaks of the
    connection alone.

    Args:
        name: folder, or id on the Hub.
        options: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: if there is nothing of that name.
    """
    if Path(name).is_dir():
        return
    missing = f"There is no folder '{name}'"
    if Path(name).exists():
        raise InputError(f"'{name}' is a file; expected the folder of a checkpoint, or its id on the Hub")
    if is_local(name):
        raise InputError(f"{missing}, and it is not the id of a model on the Hub (NAME or ORGANISATION/NAME)")
    offline = is_offline_mode() or options.get("local_files_only")
    access = {key: options[key] for key in ("cache_dir", "revision") if options.get(key) is not None}
    if cached_file(str(name), "config.json", **access, **_LOOK, local_files_only=True):
        return
    if offline:
        raise InputError(f"{missing}, no copy of such a model in the cache, and the Hub is not asked (offline)")
    try:
        url = hf_hub_url(str(name), "config.json", revision=options.get("revision"))
        get_hf_file_metadata(url, token=options.get("token"), timeout=10)
    except RepositoryNotFoundError as error:
        raise InputError(f"{missing}, and no model of that name on the Hub (a private one needs a token)") from error
    except HfHubHTTPError:
        return  # it is there; what is wrong with it is said where it is loaded
    except Exception as error:  # of whatever library speaks HTTP
        raise InputError(f"{missing}, and the Hub was not reached ({type(error).__name__}: {short(error)})") from error


def is_local(name: str | os.PathLike) -> bool:
    """Whether a name is that of a folder of this machine, or cannot be an id on the Hub."""
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return True
    return Path(name).is_dir()


def require_config(
    name: str | os.PathLike, options: Mapping[str, Any], check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The `config.json` of a checkpoint, checked by a function, as [`require`] finds it; empty where there is none."""
    require(name, options)
    path = find_file(name, "config.json", options)
    found = {} if path is None else read_json(path)
    if check is not None and path is not None:
        with reading(path, "a configuration"):
            check(found)
    return found


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A file that holds one JSON object, no key of it given twice."""
    with reading(path, "a JSON file"):
        try:
            found = json.loads(Path(path).read_bytes().decode("utf-8-sig"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise InputError(f"'{path}' is not text in UTF-8 (byte {error.start})") from error
        except json.JSONDecodeError as error:
            raise InputError(
                f"'{path}' is not valid JSON: it breaks off, or has something else than JSON, in line {error.lineno}, column {error.colno}"
            ) from error
        if not isinstance(found, dict):
            raise InputError(f"'{path}' must hold a JSON object, got {short(repr(found), 80)}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return found


def find_file(name: str | os.PathLike, file: str, options: Mapping[str, Any]) -> str | None:
    """The path of a file of a checkpoint, fetched where it is on the Hub; None where there is none."""
    where = {key: options[key] for key in (*ACCESS_OPTIONS, "revision", "subfolder") if options.get(key) is not None}
    return cached_file(name, file, **where, **_LOOK)


def _weight_files(name: str | os.PathLike, options: Mapping[str, Any]) -> Iterator[str]:
    """The files that hold a checkpoint's weights. Transformers reads what the index names, wherever and of whatever format it is."""
    if whole := find_file(name, "model.safetensors", options):
        yield whole
    elif index := find_file(name, "model.safetensors.index.json", options):
        index_of = read_json(index)
        shards = index_of.get("weight_map")
        for part in ("metadata", "weight_map"):
            if not isinstance(index_of.get(part), dict):
                raise InputError(f"'{index}': {part} must be an object, got {short(repr(index_of.get(part)), 80)}")
        for shard in sorted({repr(shard): shard for shard in shards.values()}.values(), key=repr):
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise InputError(f"'{index}' names {shard!r}, which is not a safetensors file of its own folder")
            if path := find_file(name, shard, options):
                yield path


def check_weight_files(folder: str | os.PathLike, subfolder: str | None = None):
    """Whether the weights of a checkpoint folder, or of an encoder in it, are there, whole and floating-point numbers; see [`explained`]."""
    options = {} if subfolder is None else {"subfolder": subfolder}
    with explained(folder, options):
        if next(_weight_files(folder, options), None) is None:
            raise FileNotFoundError
        adapter = Path(folder, subfolder or "", "adapter", "adapter_model.safetensors")
        if adapter.is_file():
            check_kinds(adapter)


def check_kinds(path: str | os.PathLike):
    """Refuse a file of weights that holds other numbers: whole, complex or 8-bit ones would be rounded or cut as torch sees fit."""
    with safe_open(path, "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    other = [
        f"'{name}' ({kind})"
        for name, kind in kinds.items()
        if kind not in _FLOATS and not (kind.startswith("I") and name.endswith(_COUNTS))
    ]
    if other:
        raise InputError(f"'{path}': weights must be floating-point numbers ({', '.join(_FLOATS)}); got {some(other)}")


def refuse_misfits(name: str | os.PathLike, info: Mapping[str, Any], anew: Collection[str] = ()):
    r"""
    Args:
        name: of the checkpoint.
        info: transformers' report on what was loaded.
        anew: weights that may be of another shape, because they start anew.

    Raises:
        InputError: naming the weights that are missing, unexpected or of another shape.
    """
    mismatched = {key[0] if isinstance(key, tuple | list) else key for key in info["mismatched_keys"]}
    if listed := listed_problems(info["missing_keys"], info["unexpected_keys"], mismatched - set(anew)):
        raise InputError(
            f"The weights in '{name}' do not fit this configuration ({listed}). Load them with the config.json they were saved with, or for other "
            "classes give id2label and ignore_mismatched_sizes=True."
        )


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """By which names and shapes two sets of weights differ; nothing where they fit."""
    other = {name for name in set(found) & set(expected) if found[name].shape != expected[name].shape}
    return listed_problems(set(expected) - set(found), set(found) - set(expected), other)


def listed_problems(missing: Iterable[str], unexpected: Iterable[str], of_another_shape: Iterable[str]) -> str:
    """What is wrong with which weights; nothing where none is."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": of_another_shape}
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)


def settle(model: nn.Module, name: str | os.PathLike):
    """Check a loaded model's weights, and take them out of the mapped file: unaligned memory changes the rounding of matrix products."""
    buffers = ((key, tensor) for key, tensor in model.named_buffers() if not key.startswith("backbone."))
    check_weights([*model.named_parameters(), *buffers], f"The weights in '{name}'")
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def check_weights(tensors: Iterable[tuple[str, torch.Tensor]], what: str):
    r"""
    Args:
        tensors: names and weights.
        what: whose they are, for the message.

    Raises:
        InputError: if one is NaN or infinite, or so large that its square is: any score made with it would be NaN.
    """
    norms = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
            dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
            norms[name] = torch.linalg.vector_norm(tensor.detach(), dtype=dtype)  # one pass, and NaN where one is
    if broken := [f"'{name}'" for name, norm in norms.items() if not norm <= _LARGEST]:
        raise InputError(
            f"{what} are broken: NaN, infinite, or so large that results cannot be finite, in {some(broken)} of {len(norms)} tensors. "
            "Save or download them again, or train again with a lower learning rate."
        )


def some(names: list[str], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _damaged(name: str | os.PathLike, options: Mapping[str, Any]) -> str:
    config = find_file(name, "config.json", options)
    folder = Path(config).parent if config else None
    for path in [*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")] if folder else ():
        try:
            with safe_open(path, "pt"):
                continue
        except SafetensorError:
            return f"'{path}'"
    return f"A weights file of '{name}'"
