"""The experts of EGMF's fusion: each gives one state of every turn and modality.

Letters: N real turns of the batch (as flat rows, see `turns.py`), M modalities, H hidden.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..turn_transformer import AttentionLayer, Transformer
from ..turns import TurnLayout, WithinTurns
from .configuration_egmf_fusion import EgmfFusionConfig


class TokenRows(NamedTuple):
    r"""
    What the experts read of the real turns.

    Args:
        modalities (`(N, M, H)`): a token of each modality, 0 where the turn lacks it.
        present (`(N, M)`, bool): where a turn has the modality.
        turn (`(N, H)`): the token of the turn itself, which knows its place in the dialogue.
        positions (`(N, H)`): that place.
    """

    modalities: torch.Tensor
    present: torch.Tensor
    turn: torch.Tensor
    positions: torch.Tensor


class LocalExpert(nn.Module):
    """
    Each modality in the turns around a turn: depthwise convolutions of several spans, a bottleneck, and a gate of each
    channel (squeeze and excite, Hu et al. 2018). An absent neighbour counts as 0.
    """

    def __init__(self, config: EgmfFusionConfig):
        super().__init__()
        hidden, longest = config.hidden_size, max(config.kernel_sizes)
        self.sizes = config.kernel_sizes
        first = 1 - longest if config.causal else -(longest // 2)
        self.offsets = range(first, first + longest)
        self.taps = nn.Parameter(torch.empty(sum(self.sizes), hidden))
        self.causal = config.causal
        narrow, narrower = max(hidden // 8, 1), max(hidden // 16, 1)
        self.bottleneck = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, narrow),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(narrow, hidden),
        )
        self.channel_gate = nn.Sequential(
            nn.Linear(hidden, narrower), nn.ReLU(), nn.Linear(narrower, hidden), nn.Sigmoid()
        )

    def kernel(self) -> torch.Tensor:
        """The convolutions, which are summed, as one: (longest, 1, H)."""
        total = self.taps.new_zeros(len(self.offsets), 1, self.taps.shape[-1])
        for taps in self.taps.split(self.sizes):
            beside = len(self.offsets) - len(taps)
            before = beside if self.causal else beside // 2
            total = total + F.pad(taps[:, None], (0, 0, 0, 0, before, beside - before))
        return total

    def forward(self, tokens: TokenRows, layout: TurnLayout) -> torch.Tensor:
        own = tokens.modalities
        total = torch.zeros_like(own)
        for taps, offset in zip(self.kernel(), self.offsets, strict=True):
            total = total + taps * layout.neighbours(own, offset, self)
        return own + self.channel_gate(total) * self.bottleneck(total)


class SemanticExpert(nn.Module):
    """
    The modalities of one turn: they attend to one another and to the token of the turn, and to their sum is added what
    is made of the products of each modality with the others.
    """

    def __init__(self, config: EgmfFusionConfig):
        super().__init__()
        hidden, count = config.hidden_size, len(config.modalities)
        self.attention = AttentionLayer(hidden, config.num_attention_heads, config.dropout)
        self.products = ModalityProducts(hidden, count) if count > 1 else None

    def forward(self, tokens: TokenRows, layout: TurnLayout) -> torch.Tensor:
        asked = torch.cat([tokens.modalities, tokens.turn[:, None]], dim=1)
        keys = F.pad(tokens.present, (0, 1), value=True)
        states = self.attention(tokens.modalities, asked, WithinTurns(), keys)
        return states if self.products is None else states + self.products(tokens)


class ModalityProducts(nn.Module):
    """
    What is made of the mean of the Hadamard products of each modality with the others of its turn, (N, M, H); 0
    without others.
    """

    def __init__(self, hidden_size: int, num_modalities: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_modalities, hidden_size, hidden_size))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: TokenRows) -> torch.Tensor:
        projected = torch.bmm(tokens.modalities.transpose(0, 1), self.weight).transpose(0, 1)  # 0 where absent
        present = tokens.present[..., None].to(projected)
        others = projected.sum(1, keepdim=True) - projected
        count = present.sum(1, keepdim=True) - present
        made = self.output(self.norm(projected * others / count.clamp(min=1)))
        return made.masked_fill(count == 0, 0.0)


class GlobalExpert(nn.Module):
    """Each modality in the whole dialogue: a transformer over its turns, which attend to those that have it."""

    def __init__(self, config: EgmfFusionConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config, causal=config.causal)

    def forward(self, tokens: TokenRows, layout: TurnLayout) -> torch.Tensor:
        states = self.dropout(tokens.modalities + tokens.positions[:, None])
        return self.transformer(states, layout, keys=tokens.present)


EXPERT_LAYERS: dict[str, type[nn.Module]] = {
    "local": LocalExpert,
    "semantic": SemanticExpert,
    "global": GlobalExpert,
}
