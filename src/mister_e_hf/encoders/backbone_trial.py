"""Two samples through a backbone, when an encoder is made from it: whether each gives alone what it gives in a batch."""

import torch
from torch import nn
from transformers.utils import logging

from ..base.errors import InputError, short
from .backbone_kinds import OF_MELS, SUPPORTED, longest_text, refusal, sizes
from .backbones import text_states, waveform_states

logger = logging.get_logger(__name__)

# How far a state may differ in a batch, relative to its length: what rounding does, with room for deep models.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_TOLERANCE_OF_HALF = 0.1
_TOKENS, _SAMPLES = (24, 5), (9600, 4000)
_LONGEST_TRIED = 1024  # tokens; a model of more has no table of positions, or a long one


@torch.no_grad()
def try_backbone(backbone: nn.Module, modality: str):
    r"""
    Run two samples of unequal length together and alone and, for a kind that is not among those tested, its longest input. Models of mel
    frames have their own code here and are not tried.

    Args:
        backbone: with LoRA's layers where there are any; left in the mode that it was in.
        modality: `"speech"` or `"text"`.

    Raises:
        InputError: if it cannot be run, if states have another shape than the configuration says or are not finite, if the
            batch changes them (with the numbers), or if no state depends on a module with LoRA.
    """
    config = backbone.config
    if config.model_type in OF_MELS or any(parameter.is_meta for parameter in backbone.parameters()):
        return
    training = backbone.training
    backbone.eval()
    try:
        difference = _largest_difference(backbone, modality)
        tested = config.model_type in SUPPORTED[modality]
        if not tested and modality == "text":
            _try_longest(backbone)
        silent = _silent_adapters(backbone, modality)
    except InputError:
        raise
    except Exception as error:  # whatever a model of any kind makes of input that is not its own
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
            f"what a sample is batched with changes its states by {difference:.1e} of their length (at most {tolerance:.0e} is rounding)",
        )
    if silent:
        raise InputError(
            f"LoRA on {len(silent)} modules of the {config.model_type} backbone, such as '{silent[0]}', would do nothing: no state depends on them. "
            "Set lora_target_modules to others"
        )
    if not tested:
        logger.warning(
            f"{config.model_type} is not among the backbones that are tested for {modality}; two samples gave the same states together as alone "
            f"(to {difference:.1e} of their length)"
        )


def _lengths(backbone: nn.Module, modality: str) -> tuple[int, int]:
    longest = longest_text(backbone.config) or max(_TOKENS)
    return tuple(min(count, longest) for count in _TOKENS) if modality == "text" else _SAMPLES


def _largest_difference(backbone: nn.Module, modality: str) -> float:
    """Of any state of either sample, relative to its length."""
    lengths = _lengths(backbone, modality)
    together = _states(backbone, modality, *lengths)
    largest = 0.0
    for row, size in enumerate(lengths):
        alone = _states(backbone, modality, size)
        for batched, single in zip(together[row], alone[0], strict=True):
            if batched.shape != single.shape:
                shapes = f"{tuple(batched.shape)} in a batch, {tuple(single.shape)} alone"
                raise refusal(backbone.config, modality, f"the states of one sample have the shapes {shapes}")
            largest = max(
                largest, ((batched - single).norm(dim=-1) / single.norm(dim=-1).clamp(min=1e-6)).max().item()
            )
    return largest


def _silent_adapters(backbone: nn.Module, modality: str) -> list[str]:
    """Modules with LoRA that no state depends on, as where a model reads their weights without calling them."""
    trained = {name: parameter for name, parameter in backbone.named_parameters() if ".lora_B." in name}
    if not trained:
        return []
    with torch.enable_grad():
        states = _states(backbone, modality, min(_lengths(backbone, modality)))
        total = sum(state.sum() for state in states[0])
        if not total.requires_grad:
            return [name.partition(".lora_B.")[0] for name in trained]
        found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
    return [name.partition(".lora_B.")[0] for name, slope in zip(trained, found, strict=True) if slope is None]


def _states(backbone: nn.Module, modality: str, *lengths: int) -> list[list[torch.Tensor]]:
    """Of each of these samples, its states (P, H) at its own positions, one for each layer."""
    width, layers = sizes(backbone.config)
    device = backbone.device
    counted = torch.arange(max(lengths), device=device)
    mask = counted < torch.tensor(lengths, device=device)[:, None]
    if modality == "text":
        states, own = text_states(backbone, _tokens(backbone, len(lengths), counted).masked_fill(~mask, 0), mask)
    else:
        sound = (0.1 * torch.sin(counted * counted * 1e-4)).expand(len(lengths), -1)
        states, own = waveform_states(backbone, sound.masked_fill(~mask, 0), mask)
    found = [tuple(state.shape) for state in states]
    expected = (*own.shape, width)
    if len(states) != layers + 1 or set(found) != {expected}:
        raise refusal(
            backbone.config,
            modality,
            f"expected {layers + 1} hidden states of the shape {expected}, got {len(found)} of {sorted(set(found))}",
        )
    if not all(state[own].isfinite().all() for state in states):
        raise refusal(backbone.config, modality, "its states are not finite; its weights may be damaged")
    return [[state[row, own[row]].float() for state in states] for row in range(len(lengths))]


def _try_longest(backbone: nn.Module):
    longest = longest_text(backbone.config)
    if longest is None or longest > _LONGEST_TRIED:
        return
    counted = torch.arange(longest, device=backbone.device)
    try:
        text_states(backbone, _tokens(backbone, 1, counted), torch.ones_like(counted, dtype=torch.bool)[None])
    except (IndexError, RuntimeError) as error:
        reason = f"its configuration says that it takes {longest} tokens, but running so many fails ({short(error)})"
        raise refusal(backbone.config, "text", reason) from error


def _tokens(backbone: nn.Module, rows: int, counted: torch.Tensor) -> torch.Tensor:
    """Ordinary tokens: special ones are at the beginning of a vocabulary, or behind it."""
    vocabulary = backbone.config.get_text_config().vocab_size
    first = min(vocabulary // 4, 1000)
    return (first + counted * 7 % max(1, vocabulary // 2 - 1)).expand(rows, -1)
