"""Hash of an utterance encoder, for the record of what made some vectors."""

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel

from .backbones import computation

_OF_SCORES = ("regression_loss", "huber_delta")


def encoder_fingerprint(encoder: PreTrainedModel) -> str:
    r"""
    Hash of the settings and of every trained weight, and of the name, revision and dtype of a backbone that the
    checkpoint does not hold. It does not depend on the version of any library.
    """
    config: Any = encoder.config
    digest = hashlib.blake2b(digest_size=16)
    described = {name: getattr(config, name) for name in type(config).own_fields()}
    if config.task == "regression":
        described["problem_type"] = config.problem_type
    else:  # as before there were scores
        described = {name: value for name, value in described.items() if name not in _OF_SCORES}
    described["id2label"] = config.id2label
    described["backbone_config"] = computation(config.require_backbone_config())
    if config.holds_backbone:
        del described["backbone"], described["backbone_revision"]  # where it once came from
    else:
        described["dtype"] = str(encoder.get_submodule("backbone").dtype)
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if config.holds_backbone or not name.startswith("backbone.") or "lora_" in name:
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
