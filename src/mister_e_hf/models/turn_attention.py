"""Attention among turns, in blocks where its memory would grow with the square of a dialogue's turns.

Letters: T turns, Tq of them ask, Tk are asked, D width of a head, M streams, A attention width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

# Up to as many turns, all dialogues of a batch are attended to together, and each whole.
LONG = 256
# Pairs of turns of a longer dialogue, times heads, whose scores are computed at once.
_PAIRS = 2**22


def split_heads(rows: torch.Tensor, num_heads: int, dim: int) -> torch.Tensor:
    """(..., A) with streams or none from `dim` on -> (..., heads, A / heads), the heads of all streams in one row."""
    return rows.unflatten(-1, (num_heads, -1)).flatten(dim, -2)


def by_head(keys: torch.Tensor, num_heads: int, streams: int) -> torch.Tensor:
    """Which turns are seen, (..., T) -> (..., 1, T), or with streams (..., T, M) -> (..., M heads, T)."""
    return keys.transpose(-1, -2).repeat_interleave(num_heads, -2) if streams else keys[..., None, :]


def attend_to(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    if query.device.type != "cuda":
        return F.scaled_dot_product_attention(query, key, value, **options)
    # Not with cuDNN, which some versions of torch prefer in half precision: it plans each shape that it has not met,
    # and the batches of dialogues have ever new shapes.
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(query, key, value, **options)


class Attention:
    """
    Attention of the last Tq of Tk turns to all of them, or, if causal, to those up to themselves.

    Args:
        seen (`(..., heads or 1, 1, Tk)`, bool): which turns are attended to; None for all.
        causal: whether no turn sees a later one.
        slopes (`(heads,)`): by which a score is lowered with the distance; None for 0.
        dropout: of the weights.
        with_sink: whether a key and a value of zeros are beside the others.
    """

    def __init__(
        self,
        seen: torch.Tensor | None,
        causal: bool,
        slopes: torch.Tensor | None = None,
        dropout: float = 0.0,
        with_sink: bool = False,
    ):
        self.seen, self.causal, self.slopes = seen, causal, slopes
        self.dropout, self.with_sink = dropout, with_sink

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query (..., heads, Tq, D), key, value (..., heads, Tk, D) -> (..., heads, Tq, D)"""
        count, past = query.shape[-2], key.shape[-2] - query.shape[-2]
        if self.causal and self.seen is None and self.slopes is None and not past and not self.dropout:
            return attend_to(query, key, value, is_causal=True)
        # A mask of all pairs, and the weights that dropout needs, grow with the square of a dialogue's turns.
        has_pairs = self.causal or self.slopes is not None or self.dropout > 0
        size = max(1, _PAIRS // key.shape[:-1].numel())
        if not has_pairs or count <= max(LONG, size):
            return self._block(query, key, value, past)
        found = []
        for start in range(0, count, size):
            some, before = query[..., start : start + size, :], past + start
            if torch.is_grad_enabled():  # computed again for its gradient, rather than kept
                found.append(checkpoint(self._block, some, key, value, before, use_reentrant=False))
            else:
                found.append(self._block(some, key, value, before))
        return torch.cat(found, -2)

    def _block(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, before: int) -> torch.Tensor:
        """Queries with so many turns before them."""
        seen, end = self.seen, before + query.shape[-2]
        if self.causal and end < key.shape[-2]:
            key, value = key[..., :end, :], value[..., :end, :]
            seen = None if seen is None else seen[..., :end]
        key_place = torch.arange(key.shape[-2], device=key.device)
        place = key_place[before:end]
        if self.causal:
            earlier = key_place <= place[:, None]
            seen = earlier if seen is None else seen & earlier
        mask = seen if self.slopes is None else _distance_bias(self.slopes, place, key_place, seen)
        if self.with_sink:
            assert mask is not None
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
            mask = F.pad(mask, (0, 1), value=mask.dtype == torch.bool)
        return attend_to(query, key, value, attn_mask=mask, dropout_p=self.dropout)


def _distance_bias(
    slopes: torch.Tensor, query_place: torch.Tensor, key_place: torch.Tensor, seen: torch.Tensor | None
) -> torch.Tensor:
    """Added to attention scores (..., heads, Tq, Tk): lower with the distance, minus infinity where not `seen`."""
    distance = (query_place[:, None] - key_place).abs()
    bias = -slopes[:, None, None] * distance
    return bias if seen is None else bias.masked_fill(~seen, -torch.inf)
