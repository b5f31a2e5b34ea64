"""Pooling: one vector per turn from the states of its positions.

Letters: N turns, R positions of all of them together, H the backbone's width.
"""

import torch
from torch import nn

from .configuration_utterance_encoder import UtteranceEncoderConfig


class UtterancePooling(nn.Module):
    """One vector per turn from the states of its own positions, whichever rows of the batch they are in."""

    def __init__(self, config: UtteranceEncoderConfig, width: int):
        super().__init__()
        self.kind = config.pooling
        if self.kind == "attentive_statistics":
            self.hidden = nn.Linear(width, config.pooling_dim)
            self.score = nn.Linear(config.pooling_dim, 1)
        self.output_width = width * (2 if self.kind == "attentive_statistics" else 1)

    def forward(self, states: torch.Tensor, utterance: torch.Tensor, count: int) -> torch.Tensor:
        """states (R, H) in order, and the index (R,) of the turn that each belongs to, of N = count -> (N, H or 2H)"""
        wide = states.to(torch.promote_types(states.dtype, torch.float32))  # half precision cannot count to 1500

        def total(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(count, *values.shape[1:]).index_add(0, utterance, values)

        if self.kind == "mean":
            return (total(wide) / total(wide.new_ones(len(wide), 1))).to(states.dtype)
        if self.kind == "last_token":
            last = torch.ones(len(utterance), dtype=torch.bool, device=utterance.device)
            last[:-1] = utterance[1:] != utterance[:-1]
            return states[last]
        # Attentive statistics pooling (Okabe, Koshinaka and Shinoda 2018, eq. 3 to 7).
        scores = self.score(torch.tanh(self.hidden(states))).to(wide.dtype)
        highest = scores.new_full((count, 1), -torch.inf).scatter_reduce(
            0, utterance[:, None], scores.detach(), "amax"
        )
        weights = (scores - highest[utterance]).exp()
        weights = weights / total(weights)[utterance]
        mean = total(weights * wide)
        variance = total(weights * (wide - mean[utterance]) ** 2)
        return torch.cat([mean, variance.clamp(min=1e-6).sqrt()], dim=-1).to(states.dtype)
