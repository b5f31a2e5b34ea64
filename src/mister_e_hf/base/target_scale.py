"""Location and scale of the targets of a regression.

Letters: S targets.
"""

import torch
from torch import nn


class TargetScale(nn.Module):
    """From what a head computes (..., S) to scores in the labels' unit: mean + std * head."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_targets: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_targets))
        self.register_buffer("std", torch.ones(num_targets))

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor):
        """mean, std (S,) of the training labels. A target that does not vary is only centred."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.mean + self.std * rows
