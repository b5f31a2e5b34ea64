"""A short hash by which a checkpoint notices that the language model it was trained on was replaced."""

import hashlib

import torch
from transformers import PreTrainedModel

_VALUES = 64  # of each tensor


def is_meta(language_model: PreTrainedModel) -> bool:
    """Whether the model has no values yet."""
    return next(language_model.parameters()).is_meta


@torch.no_grad()
def language_model_fingerprint(language_model: PreTrainedModel) -> str | None:
    r"""
    A hash of the shape of every weight and of 64 of its values, spread over it; None for a model without values.

    Their names are left out, because versions of transformers may name them differently.

    Args:
        language_model: without the layers of LoRA.
    """
    if is_meta(language_model):
        return None
    digests = []
    for weight in language_model.parameters():
        values = weight.detach().reshape(-1)
        places = torch.linspace(0, len(values) - 1, min(_VALUES, len(values)), dtype=torch.float64).long()
        some = values[places.to(values.device)].float().cpu().numpy()
        digests.append(hashlib.sha256(f"{tuple(weight.shape)}".encode() + some.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:32]


def same_language_model(expected: str | None, dtype: str, language_model: PreTrainedModel) -> bool:
    r"""
    Whether a language model has this fingerprint, as far as it can be seen: weights of another dtype are rounded, and
    not compared.

    Args:
        expected: the fingerprint; None where it was not recorded.
        dtype: of the weights that it is of.
        language_model: without the layers of LoRA.
    """
    if expected is None or str(language_model.dtype) != f"torch.{dtype}":
        return True
    return language_model_fingerprint(language_model) in (expected, None)
