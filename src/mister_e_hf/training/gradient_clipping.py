"""Gradients clipped by the optimizer's step, which reads and writes them anyway."""

from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, get_total_norm


def clip_in_step(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    r"""
    As [`~torch.nn.utils.clip_grad_norm_`] of all parameters of an optimizer. A fused optimizer scales the gradients in
    its next step, which saves reading and writing all of them; call this before each step.

    Returns:
        the norm of the gradients as they were, ().
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return clip_grad_norm_(parameters, max_norm)
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    scale = (norm + 1e-6) / max_norm
    # NaN counts as too large, so that it reaches every weight, as it does in `clip_grad_norm_`.
    fused: Any = optimizer
    fused.grad_scale = None if scale <= 1 else scale.float()  # gradients are divided by it
    return norm
