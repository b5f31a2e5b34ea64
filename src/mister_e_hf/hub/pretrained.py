"""Checkpoints of pre-training models, which have no heads; other models begin from their weights."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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


def check_has_heads(name: str | os.PathLike, config: Any, use: str):
    r"""
    Args:
        name: folder, or id on the Hub.
        config: its configuration.
        use: what it is to be used for, such as `"predicts nothing"`.

    Raises:
        InputError: if it is a pre-training model, whose heads would be random.
    """
    if is_pretraining({"architectures": getattr(config, "architectures", None)}):
        raise InputError(
            f"'{name}' is a pre-training model, which {use}: it has no heads. Fine-tune it first: mister-e train "
            f"RECIPE --pretrained {name}"
        )


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Do without transformers' table of the weights that are new; [`take_pretrained`] lists them."""
    reporter = logging.get_logger("transformers.modeling_utils")
    level = reporter.level
    reporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        reporter.setLevel(level)


def take_pretrained(name: str | os.PathLike, info: dict[str, Any], is_shared: Callable[[str], bool]):
    r"""
    Take out of transformers' loading info what a pre-training model lacks and what it alone has, and list the former
    in one warning.

    Args:
        name: folder, or id on the Hub, of a pre-training model.
        info: the loading info of the model that begins from it.
        is_shared: whether both models have a weight of this name.
    """
    new = {key for key in info["missing_keys"] if not is_shared(key)}
    info["missing_keys"] = set(info["missing_keys"]) - new
    info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not key.startswith(OWN_WEIGHTS)}
    logger.warning(
        f"'{name}' is a pre-training model without heads. Train these weights before use, they are new: "
        f"{', '.join(sorted(new))}."
    )
