"""Mean and standard deviation that are fitted on training data and stored with a model's weights."""

import torch
from torch import nn


class FittedStatistics(nn.Module):
    """Base class of layers that standardise vectors, or undo it: `mean` and `std` of each dimension (D,)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_dimensions: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_dimensions))
        self.register_buffer("std", torch.ones(num_dimensions))

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor):
        """mean, std (D,) of the training data. A dimension that does not vary is only centred."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0))
