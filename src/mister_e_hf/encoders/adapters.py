"""LoRA (Hu et al. 2022) in a backbone, and in the files of an adapter, with peft's own functions.

transformers' methods for adapters refuse releases of peft that work, so they are not used. The files are in a folder
`adapter/`: beside config.json, transformers would take an adapter_config.json for that of the whole model.
"""

import copy
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex  # transformers requires it; unlike re, it can stop
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..base.errors import InputError, MissingLibraryError
from ..hub.loading import check_kinds, differences

ADAPTER = "adapter"

_NAME = "default"
_WEIGHTS = "adapter_model.safetensors"
_SECONDS = 5.0  # for matching all names of modules, which takes milliseconds


@dataclass(frozen=True)
class LoraSettings:
    r"""
    LoRA in a backbone.

    Args:
        r, alpha, dropout: rank, scale and dropout.
        targets: regular expression that the whole name of a module must match.
        backbone, revision: name and revision of the backbone, which the adapter's files state.
        prefix: what begins every name in a larger model, of which the backbone is a part.
        field: name of the configuration's field of `targets`, for messages.
        check: raises if LoRA must not be added to some of the modules found.
    """

    r: int
    alpha: int
    dropout: float
    targets: str
    backbone: str | None = None
    revision: str | None = None
    prefix: str = ""
    field: str = "lora_target_modules"
    check: Callable[[Sequence[str]], None] = lambda modules: None


def has_adapter(backbone: PreTrainedModel) -> bool:
    """Whether a backbone has LoRA's layers."""
    return hasattr(backbone, "peft_config")


def add_adapter(backbone: PreTrainedModel, lora: LoraSettings):
    r"""
    Add LoRA's layers in float32 to a backbone, whose other weights are then frozen.

    Raises:
        InputError: if `targets` matches no module, or one that LoRA cannot change, or takes too long to
            match.
        MissingLibraryError: without peft.
    """
    peft = _peft()
    reached = _reached(backbone, lora)
    if not reached:
        raise InputError(
            f"{lora.field} '{lora.targets}' matches no module of the {backbone.config.model_type} backbone"
        )
    lora.check(reached)
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # The names found, not the pattern, which peft would match without a time limit.
        target_modules="|".join(map(re.escape, reached)),
        revision=lora.revision,
    )
    try:
        peft.inject_adapter_in_model(settings, backbone, _NAME)
    except ValueError as error:
        raise InputError(f"{lora.field} '{lora.targets}' matches modules that LoRA cannot change: {error}") from error
    backbone._hf_peft_config_loaded = True  # transformers checks this, for gradient checkpointing among others
    for name, parameter in backbone.named_parameters():
        if "lora_" in name and parameter.device.type != "meta":
            parameter.data = parameter.data.float()


def adapter_state(
    backbone: PreTrainedModel, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """LoRA's weights, or those in a state dict of the backbone, under their names in a file without its prefix."""
    # Without embedding layers: to find out whether they were trained, peft would ask the Hub for the base model.
    return _peft().get_peft_model_state_dict(backbone, state_dict=state_dict, save_embedding_layers=False)


def set_adapter_state(backbone: PreTrainedModel, lora: LoraSettings, state: Mapping[str, torch.Tensor]):
    r"""
    Load the weights of an adapter's file.

    Raises:
        InputError: naming the weights that are missing, unexpected or of another shape.
    """
    state = {name.removeprefix(_prefix(lora)): tensor for name, tensor in state.items()}
    if listed := differences(state, adapter_state(backbone)):
        raise InputError(
            f"The adapter does not fit this configuration ({listed}). Load it with the config.json it was saved with."
        )
    _peft().set_peft_model_state_dict(backbone, state, adapter_name=_NAME)


def save_adapter(
    folder: str | os.PathLike,
    backbone: PreTrainedModel,
    lora: LoraSettings,
    state_dict: Mapping[str, torch.Tensor] | None = None,
):
    """Write LoRA's weights, or those in a state dict of the backbone, and its settings to `adapter/` in the folder."""
    folder = os.path.join(folder, ADAPTER)
    os.makedirs(folder, exist_ok=True)
    state = adapter_state(backbone, state_dict)
    save_file(
        {f"{_prefix(lora)}{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        os.path.join(folder, _WEIGHTS),
        metadata={"format": "pt"},
    )
    settings = copy.deepcopy(vars(backbone)["peft_config"][_NAME])
    settings.base_model_name_or_path = lora.backbone
    settings.inference_mode = True
    settings.target_modules = f"{re.escape(lora.prefix)}({lora.targets})" if lora.prefix else lora.targets
    settings.save_pretrained(folder)


def read_adapter(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The weights that `save_adapter` wrote."""
    return _load(os.path.join(folder, ADAPTER, _WEIGHTS))


def fetch_adapter(name: str | os.PathLike, hub: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    r"""
    The weights that `save_adapter` wrote, from a folder or the Hub.

    Raises:
        OSError: if they are missing.
    """
    subfolder = "/".join(part for part in (hub.get("subfolder") or "", ADAPTER) if part)
    options = {**hub, "subfolder": subfolder, "_raise_exceptions_for_missing_entries": False}
    path = cached_file(name, _WEIGHTS, **options)
    if path is None:
        raise OSError(
            f"'{name}' was trained with LoRA, but has no {subfolder}/{_WEIGHTS}; save or push the whole folder"
        )
    return _load(path)


def _load(path: str) -> dict[str, torch.Tensor]:
    try:
        check_kinds(path)
        return load_file(path)
    except SafetensorError as error:
        raise OSError(
            f"'{path}' is damaged, or was truncated in download ({error}). Save or download it again."
        ) from error


def _prefix(lora: LoraSettings) -> str:
    """
    The beginning of every name in an adapter's file, as peft writes it for the model that the backbone's name loads.
    """
    return f"base_model.model.{lora.prefix}"


def _reached(backbone: PreTrainedModel, lora: LoraSettings) -> list[str]:
    names = [name for name, _ in backbone.named_modules()]
    end = time.monotonic() + _SECONDS
    try:
        compiled = regex.compile(lora.targets)
        return [name for name in names if compiled.fullmatch(name, timeout=max(1e-3, end - time.monotonic()))]
    except TimeoutError as error:
        raise InputError(
            f"{lora.field} '{lora.targets}' takes more than {_SECONDS:.0f} seconds to match: avoid nested repetitions"
        ) from error
    except (regex.error, RecursionError) as error:
        raise InputError(f"{lora.field} '{lora.targets}' is not a regular expression: {error}") from error


def _peft():
    try:
        import peft
    except ImportError as error:
        if error.name != "peft":
            raise MissingLibraryError(
                f"LoRA needs peft, and the one installed cannot be imported: {error}. pip install -U peft"
            ) from error
        raise MissingLibraryError("LoRA needs peft: pip install peft") from None
    return peft
