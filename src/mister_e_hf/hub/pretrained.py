"""Checkpoints of pre-training models, which have no heads; other models begin from their weights."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from logging import LogRecord, getLogger
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..base.errors import InputError
from .loading import require_config

logger = logging.get_logger(__name__)

_NAME = "ForPreTraining"  # how the names of these classes end
OWN_WEIGHTS = "pretraining."  # how the names of the weights begin that pre-training alone needs


def is_pretraining(config: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is a pre-training model's, as its `architectures` say."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(str(name).endswith(_NAME) for name in architectures)


def holds_pretraining(name: str | os.PathLike, options: Mapping[str, Any]) -> bool:
    """Whether a folder or Hub id holds a pre-training model."""
    return is_pretraining(require_config(name, options))


def check_has_heads(config: Mapping[str, Any]):
    """Raise an `InputError` if the content of a `config.json` is a pre-training model's, which cannot predict."""
    if is_pretraining(config):
        raise InputError(
            "it is a pre-training model, which predicts nothing: it has no heads. Fine-tune it with mister-e train "
            "RECIPE --pretrained FOLDER"
        )


def check_heads_are_trained(model: nn.Module):
    """Raise an `InputError` if the heads of a model are as they were made when it was loaded from pre-training."""
    new = getattr(model, "new_head", None)
    if new is not None and torch.equal(model.get_parameter(new[0]).detach().cpu(), new[1]):
        raise InputError(
            f"The heads of this {type(model).__name__} are new: it was loaded from a pre-training model and is not "
            "trained since. Fine-tune it first"
        )


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Do without transformers' table of the weights that are new; [`take_pretrained`] lists them."""
    reporter = getLogger("transformers.modeling_utils")

    def is_error(record: LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    reporter.addFilter(is_error)  # if it had a level of its own, transformers would list all layers as not sharded
    try:
        yield
    finally:
        reporter.removeFilter(is_error)


def take_pretrained(model: Any, name: str | os.PathLike, info: dict[str, Any]):
    r"""
    Take out of transformers' loading info what a pre-training model lacks, what it alone has and what this model
    leaves out, and list it in one warning.

    Args:
        model: a [`ConversationPreTrainedModel`] that begins from it.
        name: folder, or id on the Hub, of the pre-training model.
        info: the loading info of `model`.
    """
    new = sorted(key for key in info["missing_keys"] if not model.is_pretrained(key))
    unused = {key: part for part in model.left_out_parts() for key in info["unexpected_keys"] if _is_in(key, part)}
    unexpected = set(info["unexpected_keys"]) - {*unused}
    info["missing_keys"] = set(info["missing_keys"]) - {*new}
    info["unexpected_keys"] = {key for key in unexpected if not key.startswith(OWN_WEIGHTS)}
    layers = ", ".join(sorted({key.rpartition(".")[0] or key for key in new}))
    parts = ", ".join(sorted({*unused.values()}))
    logger.warning(
        f"'{name}' is a pre-training model without heads. Train these layers before use, they are new: {layers}."
        + (f" The model leaves out {parts}." if parts else "")
    )
    heads = [key for key, _ in model.named_parameters() if key in new and key.endswith("bias")]
    if heads:
        model.new_head = heads[-1], model.get_parameter(heads[-1]).detach().cpu().clone()


def _is_in(weight: str, part: str) -> bool:
    """Whether a weight belongs to a part of a model, by their names."""
    return weight.startswith(f"{part}.")
