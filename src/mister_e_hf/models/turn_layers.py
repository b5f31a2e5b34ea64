"""Layers over the real turns of a batch: vectors standardised, and a learned vector where a modality is absent.

Letters: N real turns of the batch (as flat rows, see `turns.py`), D embedding width, H hidden, A attention width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..base.devices import moved
from ..base.fitted_statistics import FittedStatistics
from .turns import TurnLayout


class ModalityTurns(NamedTuple):
    """
    One modality's vectors at the real turns, standardised (N, D), zero where `absent` (N, 1), which `null` (D,)
    replaces. `absent` is None where no turn lacks the modality, `null` in a model that never reads an absent vector.
    `unread` is 0 () with a gradient to `null` that is 0 too, where no turn lacks the modality in training: a parameter
    without a gradient would block the other processes.
    """

    vectors: torch.Tensor
    absent: torch.Tensor | None
    null: torch.Tensor | None
    unread: torch.Tensor | None = None


class ModalityInput(FittedStatistics):
    """Standardise one modality's vectors, and learn the vector that replaces an absent one if `replaces_absent`."""

    def __init__(self, embedding_dim: int, feature_clip: float | None, replaces_absent: bool = True):
        super().__init__(embedding_dim)
        self.feature_clip = feature_clip
        self.null_embedding = nn.Parameter(torch.zeros(embedding_dim)) if replaces_absent else None

    def forward(self, embeddings: torch.Tensor, present: torch.Tensor) -> ModalityTurns:
        """embeddings (N, D), present (N,), which may be on the host"""
        vectors = (embeddings.to(self.mean) - self.mean) / self.std
        if self.feature_clip is not None:
            vectors = vectors.clamp(-self.feature_clip, self.feature_clip)
        if present.all():
            null = self.null_embedding
            unread = None if null is None or not torch.is_grad_enabled() else 0.0 * null.sum()
            return ModalityTurns(vectors, None, null, unread)
        absent = moved(~present[:, None], vectors.device)
        return ModalityTurns(vectors.masked_fill(absent, 0.0), absent.to(vectors), self.null_embedding)


def project(turns: ModalityTurns, weight: torch.Tensor) -> torch.Tensor:
    # Equal to a linear map of the vectors with the null vector put in, but no gradient of the (N, D) input is needed.
    rows = F.linear(turns.vectors, weight)
    if turns.absent is None or turns.null is None:
        return rows
    return rows + turns.absent * F.linear(turns.null, weight)


class TurnLinear(nn.Linear):
    """Linear map of one modality's vectors, absent ones included: [`ModalityTurns`] -> (N, H)."""

    def forward(self, turns: ModalityTurns) -> torch.Tensor:  # type: ignore[override]  # a layer of other input
        bias = self.bias if turns.unread is None else self.bias + turns.unread
        return project(turns, self.weight) + bias


class TurnConvolution(nn.Module):
    """1-D convolution over a dialogue's turns: one matrix product for all taps, then sums over neighbouring rows."""

    def __init__(self, embedding_dim: int, hidden_size: int, kernel_size: int, causal: bool):
        super().__init__()
        first = 1 - kernel_size if causal else -(kernel_size // 2)
        self.offsets = range(first, first + kernel_size)
        self.weight = nn.Parameter(torch.empty(kernel_size, hidden_size, embedding_dim))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, turns: ModalityTurns, layout: TurnLayout) -> torch.Tensor:
        taps = project(turns, self.weight.flatten(0, 1)).unflatten(1, (len(self.offsets), -1))  # [N, k, H]
        total: torch.Tensor = self.bias
        for rows, offset in zip(taps.unbind(1), self.offsets, strict=True):
            total = total + layout.neighbours(rows, offset, self)
        return total


class TurnAttention(nn.Module):
    """Multi-head attention from the turns of one stream to those of another within each dialogue: (N, H) -> (N, H)."""

    def __init__(
        self, hidden_size: int, attention_dim: int, num_heads: int, dropout: float, causal: bool, decay: bool = False
    ):
        super().__init__()
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.query = nn.Linear(hidden_size, attention_dim)
        self.key = nn.Linear(hidden_size, attention_dim)
        self.value = nn.Linear(hidden_size, attention_dim)
        self.output = nn.Linear(attention_dim, hidden_size)
        self.log_slopes = nn.Parameter(torch.empty(num_heads)) if decay else None

    def forward(self, stream: torch.Tensor, other: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
        attended = layout.attend(
            self.query(stream),
            self.key(other),
            self.value(other),
            self.num_heads,
            self.causal,
            self.dropout if self.training else 0.0,
            self,
            None if self.log_slopes is None else self.log_slopes.exp(),
        )
        return self.output(attended)
