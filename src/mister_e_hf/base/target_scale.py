"""Location and scale of the targets of a regression.

Letters: S targets.
"""

import torch

from .fitted_statistics import FittedStatistics


class TargetScale(FittedStatistics):
    """From what a head computes (..., S) to scores in the labels' unit: mean + std * head."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.mean + self.std * rows
