"""Try a backbone when an encoder is created: two samples must have equal states alone and in a batch."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..base.errors import InputError, short
from .backbone_kind import BackboneKind
from .backbones import kind_of, refusal

logger = logging.get_logger(__name__)

# How far a state may differ in a batch, relative to its length: the effect of rounding, with room for deep models.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_TOLERANCE_OF_HALF = 0.1
_LONGEST_TRIED = 1024  # tokens; a model that takes more has no table of positions, or a long one


@torch.no_grad()
def try_backbone(backbone: PreTrainedModel, modality: str):
    r"""
    Run two samples of unequal length together and alone and, for a model type that is not tested, its longest input.
    Kinds without `trial_lengths` are not tried.

    Args:
        backbone: with LoRA's layers where there are any; left in the mode that it was in.
        modality: which modality it is to encode.

    Raises:
        InputError: if it cannot be run, if states have another shape than the configuration says or are not finite, if
            batching changes them (with the numbers), or if no state depends on a module with LoRA.
    """
    config = backbone.config
    kind = kind_of(modality, config.model_type)
    lengths = kind.trial_lengths(config)
    if lengths is None or any(parameter.is_meta for parameter in backbone.parameters()):
        return
    training = backbone.training
    backbone.eval()
    tested = config.model_type in kind.tested
    try:
        difference = _largest_difference(backbone, kind, lengths)
        if not tested:
            _try_longest(backbone, kind)
        silent = _silent_adapters(backbone, kind, min(lengths))
    except InputError:
        raise
    except Exception as error:  # a model may raise anything for input that it was not made for
        raise refusal(
            config, modality, f"running it on two samples fails ({type(error).__name__}: {short(error)})"
        ) from error
    finally:
        backbone.train(training)
    tolerance = _TOLERANCE.get(backbone.dtype, _TOLERANCE_OF_HALF)
    if not difference <= tolerance:
        raise refusal(
            config,
            modality,
            f"what a sample is batched with changes its states by {difference:.1e} of their length (rounding changes "
            f"them by {tolerance:.0e} at most)",
        )
    if silent:
        raise InputError(
            f"LoRA on {len(silent)} modules of the {config.model_type} backbone, such as '{silent[0]}', would do "
            "nothing: no state depends on them. Set lora_target_modules to others"
        )
    if not tested:
        logger.warning(
            f"{config.model_type} is not among the backbones that are tested for {modality}; two samples gave the "
            f"same states together as alone (to {difference:.1e} of their length)"
        )


def _largest_difference(backbone: PreTrainedModel, kind: BackboneKind, lengths: Sequence[int]) -> float:
    """The largest difference of a state in the batch from the same state alone, relative to its length."""
    together = _states(backbone, kind, *lengths)
    largest = 0.0
    for row, size in enumerate(lengths):
        alone = _states(backbone, kind, size)
        for batched, single in zip(together[row], alone[0], strict=True):
            if batched.shape != single.shape:
                shapes = f"{tuple(batched.shape)} in a batch, {tuple(single.shape)} alone"
                raise refusal(backbone.config, kind.modality, f"the states of one sample have the shapes {shapes}")
            largest = max(
                largest, ((batched - single).norm(dim=-1) / single.norm(dim=-1).clamp(min=1e-6)).max().item()
            )
    return largest


def _silent_adapters(backbone: PreTrainedModel, kind: BackboneKind, length: int) -> list[str]:
    """Modules with LoRA that no state depends on, as where a model reads their weights without calling them."""
    trained = {name: parameter for name, parameter in backbone.named_parameters() if ".lora_B." in name}
    if not trained:
        return []
    with torch.enable_grad():
        states = _states(backbone, kind, length)
        total = torch.stack([state.sum() for state in states[0]]).sum()
        if not total.requires_grad:
            return [name.partition(".lora_B.")[0] for name in trained]
        found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
    return [name.partition(".lora_B.")[0] for name, slope in zip(trained, found, strict=True) if slope is None]


def _states(backbone: PreTrainedModel, kind: BackboneKind, *lengths: int) -> list[list[torch.Tensor]]:
    """Of samples of these lengths, the states (P, H) at their own positions, a list per sample, one for each layer."""
    width, layers = kind.sizes(backbone.config)
    states, own = kind.run(backbone, kind.samples(backbone, lengths))
    found = [tuple(state.shape) for state in states]
    expected = (*own.shape, width)
    if len(states) != layers + 1 or set(found) != {expected}:
        raise refusal(
            backbone.config,
            kind.modality,
            f"expected {layers + 1} hidden states of the shape {expected}, got {len(found)} of {sorted(set(found))}",
        )
    if not all(state[own].isfinite().all() for state in states):
        raise refusal(backbone.config, kind.modality, "its states are not finite; its weights may be damaged")
    return [[state[row, own[row]].float() for state in states] for row in range(len(lengths))]


def _try_longest(backbone: PreTrainedModel, kind: BackboneKind):
    longest = kind.longest(backbone.config)
    if longest is None or longest > _LONGEST_TRIED:
        return
    try:
        kind.run(backbone, kind.samples(backbone, [longest]))
    except (IndexError, RuntimeError) as error:
        reason = f"its configuration says that it takes {longest} tokens, but running so many fails ({short(error)})"
        raise refusal(backbone.config, kind.modality, reason) from error
