"""Strict loading of checkpoints: errors name the file and the weights that are missing, damaged or unexpected."""

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import cached_file

from ..base.errors import InputError, reading, short

Model = TypeVar("Model", bound=nn.Module)

ACCESS_OPTIONS = ("cache_dir", "local_files_only", "token")

_LOOK = {f"_raise_exceptions_for_{kind}": False for kind in ("gated_repo", "missing_entries", "connection_errors")}
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGER_BUFFERS = ("num_batches_tracked", "position_ids")  # of backbones; never trained
_LARGEST = torch.finfo(torch.float32).max ** 0.5  # the square of a larger weight overflows
_ADVICE = (
    "Load them with the config.json they were saved with, or for other classes pass id2label and "
    "ignore_mismatched_sizes=True."
)


def load_strictly(
    load: Callable[..., tuple[Model, dict[str, Any]]],
    name: str | os.PathLike,
    *args: Any,
    reinitialized: Callable[[str], bool] | None = None,
    advice: str = _ADVICE,
    **kwargs: Any,
) -> tuple[Model, dict[str, Any]]:
    r"""
    Load a model from safetensors only, and raise if a weight does not fit.

    Args:
        load: `super().from_pretrained` of a [`~transformers.PreTrainedModel`].
        name: folder, or id on the Hub.
        reinitialized: whether a weight, by its name, may have another shape because it is initialized again.
        advice: what to do if the weights do not fit, as the end of the message.
        args, kwargs: for `load`.

    Returns:
        the model and transformers' loading info. Call [`finish_loading`] on the model once it is complete.

    Raises:
        InputError: naming the weights that are missing, unexpected or of another shape.
        OSError: naming the file that is damaged, or if no weights are stored in safetensors.
    """
    with explained(name, kwargs):
        # transformers lets weights of another shape pass here, so that the error below can name all of them
        model, info = load(
            name,
            *args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **{"use_safetensors": True, **kwargs},
        )
    check_fit(name, info, reinitialized, advice)
    return model, info


def check_fit(
    name: str | os.PathLike,
    info: Mapping[str, Any],
    reinitialized: Callable[[str], bool] | None = None,
    advice: str = _ADVICE,
):
    r"""
    Args:
        name: folder, or id on the Hub.
        info: transformers' loading info.
        reinitialized, advice: see [`load_strictly`].

    Raises:
        InputError: naming the weights that are missing, unexpected or of another shape.
    """
    mismatched = {key[0] if isinstance(key, tuple | list) else key for key in info["mismatched_keys"]}
    if reinitialized is not None:
        mismatched = {key for key in mismatched if not reinitialized(key)}
    if listed := listed_problems(info["missing_keys"], info["unexpected_keys"], mismatched):
        raise InputError(f"The weights in '{name}' do not fit this configuration ({listed}). {advice}")


def finish_loading(model: nn.Module, name: str | os.PathLike):
    """Check that a loaded model's weights are finite, and copy them out of the memory-mapped file."""
    buffers = ((key, tensor) for key, tensor in model.named_buffers() if not key.startswith("backbone."))
    check_weights([*model.named_parameters(), *buffers], f"The weights in '{name}'")
    # Memory-mapped tensors may be unaligned, which changes the rounding of matmuls.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


@contextlib.contextmanager
def explained(name: str | os.PathLike, options: Mapping[str, Any], or_pickle: bool = False) -> Iterator[None]:
    r"""
    Context manager around loading that turns the libraries' errors into readable ones, which name the file.

    Args:
        name: folder, or id on the Hub.
        options: subfolder, revision, token, cache_dir and local_files_only are read.
        or_pickle: whether weights in another format are accepted.

    Raises:
        InputError: if the model does not exist, or one of its files has the wrong content.
        OSError: naming the file that is damaged, or if no weights are stored in safetensors.
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
            f"The weights of '{where}' are a pickle that holds more than tensors, so opening it could execute any "
            "code; it is not read. Use a model whose weights are in safetensors."
        ) from error
    except InputError:
        raise
    except OSError as error:
        weights = ("model.safetensors", "model.safetensors.index.json")
        if or_pickle or config is None or any(find_file(name, file, options) for file in weights):
            raise
        raise OSError(
            f"'{where}' has no model.safetensors. Weights are read from safetensors only: pytorch_model.bin is a "
            "pickle, and opening one can execute any code. Ask its author to save it with save_pretrained, or convert "
            "it if you trust it."
        ) from error
    except (AttributeError, KeyError, IndexError, ValueError, EOFError, RecursionError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"'{where}' can only be loaded with its own code, and code that comes with a model is not run. Use a "
                "model of a type that transformers knows."
            ) from error
        raise InputError(f"'{where}' could not be loaded ({type(error).__name__}): {short(error)}") from error


def require(name: str | os.PathLike, options: Mapping[str, Any]):
    r"""
    Check at once that a model is a folder or on the Hub. transformers retries an unreachable Hub for minutes, and its
    error then mentions only the connection.

    Args:
        name: folder, or id on the Hub.
        options: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: if the model does not exist.
    """
    if Path(name).is_dir():
        return
    missing = f"Folder '{name}' does not exist"
    if Path(name).exists():
        raise InputError(f"'{name}' is a file; expected a checkpoint folder, or a model id on the Hub")
    if is_local(name):
        raise InputError(f"{missing}, and it is not a model id on the Hub (NAME or ORGANISATION/NAME)")
    offline = is_offline_mode() or options.get("local_files_only")
    access = {key: options[key] for key in ("cache_dir", "revision") if options.get(key) is not None}
    if cached_file(str(name), "config.json", **access, **_LOOK, local_files_only=True):
        return
    if offline:
        raise InputError(f"{missing}, the cache has no copy of such a model, and the Hub is not used (offline mode)")
    try:
        url = hf_hub_url(str(name), "config.json", revision=options.get("revision"))
        get_hf_file_metadata(url, token=options.get("token"), timeout=10)
    except RepositoryNotFoundError as error:
        raise InputError(f"{missing}, nor a model of this name on the Hub (a private one needs a token)") from error
    except HfHubHTTPError:
        return  # it exists; loading it reports what is wrong
    except Exception as error:  # which HTTP library raises depends on the version of huggingface_hub
        raise InputError(
            f"{missing}, and the Hub could not be reached ({type(error).__name__}: {short(error)})"
        ) from error


def is_local(name: str | os.PathLike) -> bool:
    """Whether a name is a folder on this machine, or cannot be a model id on the Hub."""
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return True
    return Path(name).is_dir()


def require_config(
    name: str | os.PathLike, options: Mapping[str, Any], check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint and check it with a function; empty if the file does not exist."""
    require(name, options)
    path = find_file(name, "config.json", options)
    found = {} if path is None else read_json(path)
    if check is not None and path is not None:
        with reading(path, "a configuration"):
            check(found)
    return found


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file that holds one JSON object; a key that appears twice raises."""
    with reading(path, "a JSON file"):
        try:
            found = json.loads(Path(path).read_bytes().decode("utf-8-sig"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise InputError(f"'{path}' is not text in UTF-8 (byte {error.start})") from error
        except json.JSONDecodeError as error:
            raise InputError(
                f"'{path}' is not valid JSON: it is truncated or malformed in line {error.lineno}, column "
                f"{error.colno}"
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
    """The path of a checkpoint's file, downloaded if it is on the Hub; None if it does not exist."""
    where = {key: options[key] for key in (*ACCESS_OPTIONS, "revision", "subfolder") if options.get(key) is not None}
    return cached_file(name, file, **where, **_LOOK)


def _weight_files(name: str | os.PathLike, options: Mapping[str, Any]) -> Iterator[str]:
    """The files of a checkpoint's weights. transformers would read whatever an index names, so it is checked."""
    if whole := find_file(name, "model.safetensors", options):
        yield whole
    elif index := find_file(name, "model.safetensors.index.json", options):
        index_of = read_json(index)
        for part in ("metadata", "weight_map"):
            if not isinstance(index_of.get(part), dict):
                raise InputError(f"'{index}': {part} must be an object, got {short(repr(index_of.get(part)), 80)}")
        shards = index_of["weight_map"].values()
        for shard in sorted({repr(shard): shard for shard in shards}.values(), key=repr):
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise InputError(f"'{index}' names {shard!r}, which is not a safetensors file of its own folder")
            if path := find_file(name, shard, options):
                yield path


def check_weight_files(folder: str | os.PathLike, subfolder: str | None = None):
    """Check that the weights of a checkpoint folder, or of an encoder in it, exist and are intact."""
    options = {} if subfolder is None else {"subfolder": subfolder}
    with explained(folder, options):
        if next(_weight_files(folder, options), None) is None:
            raise FileNotFoundError
        adapter = Path(folder, subfolder or "", "adapter", "adapter_model.safetensors")
        if adapter.is_file():
            check_kinds(adapter)


def check_kinds(path: str | os.PathLike):
    """Refuse weights that are not floating-point: torch would silently round integer, complex or 8-bit numbers."""
    with safe_open(path, "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    other = [
        f"'{name}' ({kind})"
        for name, kind in kinds.items()
        if kind not in _FLOATS and not (kind.startswith("I") and name.endswith(_INTEGER_BUFFERS))
    ]
    if other:
        raise InputError(
            f"'{path}': weights must be floating-point numbers ({', '.join(_FLOATS)}); got {first_few(other)}"
        )


def differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """The names and shapes in which two sets of weights differ; empty if they fit."""
    other = {name for name in set(found) & set(expected) if found[name].shape != expected[name].shape}
    return listed_problems(set(expected) - set(found), set(found) - set(expected), other)


def listed_problems(missing: Iterable[str], unexpected: Iterable[str], of_another_shape: Iterable[str]) -> str:
    """The weights with problems, by problem; empty if there are none."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": of_another_shape}
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)


def check_weights(tensors: Iterable[tuple[str, torch.Tensor]], what: str):
    r"""
    Args:
        tensors: names and weights.
        what: the subject of the message.

    Raises:
        InputError: if one is NaN, infinite, or so large that its square is: every score would be NaN.
    """
    norms = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
            dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
            norms[name] = torch.linalg.vector_norm(tensor.detach(), dtype=dtype)  # one pass; NaN if any is NaN
    if broken := [f"'{name}'" for name, norm in norms.items() if not norm <= _LARGEST]:
        raise InputError(
            f"{what} are broken: NaN, infinite, or so large that results cannot be finite, in {first_few(broken)} of "
            f"{len(norms)} tensors. Save or download them again, or train again with a lower learning rate."
        )


def first_few(names: list[str], limit: int = 3) -> str:
    """The first of many names, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


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
