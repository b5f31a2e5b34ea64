"""Transformers over the turns of dialogues, pre-norm, and the positions that they need.

Letters: N real turns as flat rows, H hidden width. Several streams (N, M, H) are computed as M calls would.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .turns import TurnLayout, WithinTurns


def sinusoidal_positions(layout: TurnLayout, hidden_size: int, like: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of each turn's place in its dialogue (Vaswani et al. 2017, section 3.5): (N, H)."""
    frequencies = torch.exp(
        torch.arange(0, hidden_size, 2, device=like.device).to(like) * (-math.log(1e4) / hidden_size)
    )
    angles = layout.position[:, None].to(like) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class AttentionLayer(nn.Module):
    """Pre-norm attention of a stream of turns to another stream or to itself, and a feed-forward part."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, causal: bool = False):
        super().__init__()
        self.num_heads, self.attention_dropout, self.causal = num_heads, dropout, causal
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * hidden_size, hidden_size),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        stream: torch.Tensor,
        other: torch.Tensor | None,
        layout: TurnLayout | WithinTurns,
        keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """stream, other (N, H), keys (N,) as in [`TurnLayout.attend`] -> (N, H)"""
        asking = self.attention_norm(stream)
        if other is None:
            query, key, value = maps_of(asking, [self.query, self.key, self.value])
        else:
            (query,) = maps_of(asking, [self.query])
            key, value = maps_of(self.attention_norm(other), [self.key, self.value])
        attended = layout.attend(
            query,
            key,
            value,
            self.num_heads,
            self.causal,
            self.attention_dropout if self.training else 0.0,
            self,
            keys=keys,
        )
        stream = stream + self.dropout(self.output(attended))
        return stream + self.feed_forward(stream)


def maps_of(rows: torch.Tensor, maps: Sequence[nn.Linear]) -> Sequence[torch.Tensor]:
    """What each of several maps makes of the same rows, on an accelerator in one product."""
    if rows.device.type == "cpu" or len(maps) == 1:
        return [each(rows) for each in maps]
    return in_one_product(rows, maps)


def in_one_product(rows: torch.Tensor, maps: Sequence[nn.Linear]) -> Sequence[torch.Tensor]:
    """As `maps_of`: fewer calls and casts, but the weights are copied, for which a CPU takes as long as it saves."""
    weight, bias = torch.cat([each.weight for each in maps]), torch.cat([each.bias for each in maps])
    return F.linear(rows, weight, bias).split([each.out_features for each in maps], dim=-1)


class Transformer(nn.Module):
    """
    Attention layers, each to the same other stream or to the stream itself, and a LayerNorm: (N, H) -> (N, H). The
    width H is the configuration's `hidden_size` if none is given.
    """

    def __init__(self, config, width: int | None = None, causal: bool = False):
        super().__init__()
        width = config.hidden_size if width is None else width
        self.layers = nn.ModuleList(
            AttentionLayer(width, config.num_attention_heads, config.dropout, causal) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        stream: torch.Tensor,
        layout: TurnLayout,
        other: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for layer in self.layers:
            stream = layer(stream, other, layout, keys)
        return self.norm(stream)
