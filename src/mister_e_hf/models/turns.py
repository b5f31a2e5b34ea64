"""The real turns of a padded batch as flat rows, so that padding cannot influence any result; a stream's past.

Letters: B dialogues, T turns, N real turns of the batch, B' dialogues with at least one real turn, A attention width,
P past turns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from ..base.errors import InputError
from .turn_recurrence import in_one_product, packed_gru

# Up to as many turns, all dialogues of a batch are attended to together, and each whole.
_LONG = 256
# Pairs of turns of a longer dialogue, times heads, whose scores are computed at once.
_PAIRS = 2**22


class TurnLayout:
    r"""
    The places of the real turns of a batch. A dialogue's real turns are neighbours of one another in their order,
    whatever padding is before, between or behind them.

    Args:
        attention_mask (`torch.BoolTensor` of shape `(B, T)`): true where the turn is real; at least one must be.
    """

    def __init__(self, attention_mask: torch.Tensor):
        self.shape = attention_mask.shape
        device = attention_mask.device
        self.index = attention_mask.flatten().nonzero().squeeze(1)  # [N] into the B * T positions
        lengths = attention_mask.sum(1)
        lengths = lengths[lengths > 0]
        self.count = len(self.index)
        self.num_dialogues = len(lengths)
        self.dialogue = torch.repeat_interleave(torch.arange(self.num_dialogues, device=device), lengths)  # [N]
        starts = lengths.cumsum(0) - lengths
        self.position = torch.arange(self.count, device=device) - starts[self.dialogue]  # [N] within the dialogue
        self.lengths = lengths  # [B']
        self.longest = int(lengths.max())

    def flatten(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (N, ...)"""
        return values.flatten(0, 1)[self.index]

    def unflatten(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B, T, ...), zero at padding."""
        flat = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:])
        return flat.index_copy(0, self.index, rows).unflatten(0, self.shape)

    def neighbours(self, rows: torch.Tensor, offset: int, module: nn.Module) -> torch.Tensor:
        """The rows (N, ...) of the turns `offset` turns later in the same dialogue, zero beyond its ends: (N, ...)."""
        if not offset:
            return rows
        target = self.position + offset
        inside = (target >= 0) & (target < self.lengths[self.dialogue])
        own = torch.arange(self.count, device=self.index.device)
        # the row behind the last is zero
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, 1))[torch.where(inside, own + offset, self.count)]

    @property
    def is_rectangular(self) -> bool:
        """Whether all dialogues have the same number of real turns, so that `pad` pads nothing."""
        return self.count == self.num_dialogues * self.longest

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B', longest, ...), padded at the end with zeros."""
        if self.is_rectangular:
            return rows.unflatten(0, (self.num_dialogues, self.longest))
        padded = rows.new_zeros(self.num_dialogues * self.longest, *rows.shape[1:])
        padded = padded.index_copy(0, self.dialogue * self.longest + self.position, rows)
        return padded.unflatten(0, (self.num_dialogues, self.longest))

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """(B', longest, ...) -> (N, ...), the inverse of `pad`."""
        rows = padded.flatten(0, 1)
        return rows if self.is_rectangular else rows[self.dialogue * self.longest + self.position]

    def packing(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The order in which a recurrence reads the rows: all first turns, then all second turns, ..., longer dialogues
        first. Returns the order (N,), its inverse (N,) and how many dialogues each step reads (on the CPU, as
        [`~torch.nn.utils.rnn.PackedSequence`] wants it).
        """
        rank = torch.empty_like(self.lengths)
        rank[self.lengths.argsort(descending=True, stable=True)] = torch.arange(self.num_dialogues, device=rank.device)
        order = (self.position * self.num_dialogues + rank[self.dialogue]).argsort()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(self.count, device=order.device)
        return order, inverse, torch.bincount(self.position, minlength=self.longest).cpu()

    def recur(self, recurrence: nn.RNNBase, rows: torch.Tensor) -> torch.Tensor:
        """Run a recurrence over each dialogue's own turns: (N, D) -> (N, H)."""
        order, inverse, batch_sizes = self._packing
        if in_one_product(recurrence, rows):
            return packed_gru(recurrence, rows[order], batch_sizes)[inverse]
        packed, _ = recurrence(PackedSequence(rows[order], batch_sizes))
        return packed.data[inverse]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        num_heads: int,
        causal: bool,
        dropout: float,
        module: nn.Module,
        slopes: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Scaled dot-product attention within each dialogue, to all its turns or, if causal, to earlier ones and itself:
        (N, A) each -> (N, A). With `slopes` (num_heads,), a score is lowered by the head's slope times the distance.
        With `keys` (N,), only the turns where it is true are attended to, and a key and value of zeros beside them, so
        that a turn without any gets 0.

        Several streams (N, M, A), with keys (N, M), attend each to its own turns, as M calls would.
        """
        if len(self._groups) == 1:
            return self._attend(query, key, value, num_heads, causal, dropout, slopes, keys)
        found = []
        for rows, group in self._groups:
            own = None if keys is None else keys[rows]
            found.append(group._attend(query[rows], key[rows], value[rows], num_heads, causal, dropout, slopes, own))
        order = torch.cat([rows for rows, _ in self._groups])
        return torch.cat(found)[order.argsort()]

    def _attend(self, query, key, value, num_heads, causal, dropout, slopes, keys) -> torch.Tensor:
        def heads(rows: torch.Tensor) -> torch.Tensor:  # [N, A] -> [B', heads, T, A / heads], M heads of M streams
            return _split(self.pad(rows), num_heads, 2).transpose(1, 2)

        seen = None
        if keys is not None:
            seen = _by_head(self.pad(keys), num_heads, query.dim() - 2)[..., None, :]
        # Padding is at the end, which causal attention never sees; only real turns are kept.
        elif not causal and not self.is_rectangular:
            place = torch.arange(self.longest, device=self.index.device)
            seen = (place < self.lengths[:, None])[:, None, None, :]
        attention = _Attention(seen, causal, slopes, dropout, keys is not None)
        attended = attention(heads(query), heads(key), heads(value))
        return self.unpad(attended.transpose(1, 2).flatten(2)).view_as(query)

    @property
    def _groups(self) -> list[tuple[torch.Tensor, "TurnLayout"]]:
        """
        The rows and the layout of dialogues of like length, since attention computes every dialogue as long as the
        longest beside it. Dialogues of up to `_LONG` turns are one group, the others one for each doubling.
        """
        if not hasattr(self, "_groups_cache"):
            own = torch.arange(self.count, device=self.index.device)
            self._groups_cache = [(own, self)] if self.longest <= _LONG else self._split_by_length(own)
        return self._groups_cache

    def _split_by_length(self, own: torch.Tensor) -> list[tuple[torch.Tensor, "TurnLayout"]]:
        doublings = (self.lengths.clamp(min=_LONG) / _LONG).log2().ceil()
        groups: list[tuple[torch.Tensor, TurnLayout]] = []
        for doubling in doublings.unique():
            lengths = self.lengths[doublings == doubling]
            place = torch.arange(int(lengths.max()), device=own.device)
            groups.append((own[(doublings == doubling)[self.dialogue]], TurnLayout(place < lengths[:, None])))
        return groups

    @property
    def _packing(self):
        if not hasattr(self, "_packing_cache"):
            self._packing_cache = self.packing()
        return self._packing_cache


def _split(rows: torch.Tensor, num_heads: int, dim: int) -> torch.Tensor:
    """(..., A) with streams or none from `dim` on -> (..., heads, A / heads), the heads of all streams in one row."""
    return rows.unflatten(-1, (num_heads, -1)).flatten(dim, -2)


def _by_head(keys: torch.Tensor, num_heads: int, streams: int) -> torch.Tensor:
    """Which turns are seen, (..., T) -> (..., 1, T), or with streams (..., T, M) -> (..., M heads, T)."""
    return keys.transpose(-1, -2).repeat_interleave(num_heads, -2) if streams else keys[..., None, :]


class _Attention:
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
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # A mask of all pairs, and the weights that dropout needs, grow with the square of a dialogue's turns.
        has_pairs = self.causal or self.slopes is not None or self.dropout > 0
        size = max(1, _PAIRS // key.shape[:-1].numel())
        if not has_pairs or count <= max(_LONG, size):
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
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=self.dropout)


def _distance_bias(
    slopes: torch.Tensor, query_place: torch.Tensor, key_place: torch.Tensor, seen: torch.Tensor | None
) -> torch.Tensor:
    """Added to attention scores (..., heads, Tq, Tk): lower with the distance, minus infinity where not `seen`."""
    distance = (query_place[:, None] - key_place).abs()
    bias = -slopes[:, None, None] * distance
    return bias if seen is None else bias.masked_fill(~seen, -torch.inf)


class RealTurns(NamedTuple):
    r"""
    The real turns of a batch.

    Args:
        mask (`(B, T)`, bool): where they are.
        weight (`()`, bool):
            whether there is one. A batch of padding alone must still take part in a distributed step: its turns are
            computed with weight 0.
        layout: their places.
        present (`(N,)`, bool): by modality, which of them have it.
    """

    mask: torch.Tensor
    weight: torch.Tensor
    layout: TurnLayout
    present: Mapping[str, torch.Tensor]

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B, T, ...), zero at padding."""
        return self.layout.unflatten(rows * self.weight.to(rows.dtype))


class DialogueCache:
    r"""
    What a causal model keeps of the past turns of one dialogue: the inputs that each convolution's last taps still
    need, each recurrence's state, each attention's keys and values. Keys and values grow with the number of past turns
    P, 8 A fusion_num_layers numbers per turn; the others do not.
    """

    def __init__(self):
        self.num_turns = 0
        self._kept: dict[Any, Any] = {}

    def copy(self) -> "DialogueCache":
        """An independent copy; nothing that is kept is ever changed in place."""
        other = DialogueCache()
        other.num_turns, other._kept = self.num_turns, self._kept
        return other

    def layout(self, attention_mask: torch.Tensor) -> "NextTurns":
        """The layout of the next turns (1, T), all of them real."""
        if attention_mask.shape[0] != 1 or not attention_mask.all():
            raise InputError(
                "A cache holds one dialogue, whose next turns must all be real; "
                f"got attention_mask {attention_mask.tolist()}"
            )
        return NextTurns(attention_mask, self._kept, self.num_turns)

    def add(self, turns: "NextTurns"):
        """Make these turns part of the past."""
        self._kept = self._kept | turns.found
        self.num_turns += turns.count


class NextTurns(TurnLayout):
    """
    Turns of one dialogue after the `num_past` in a [`DialogueCache`]: they see the past, and `found` is kept of them.
    """

    def __init__(self, attention_mask: torch.Tensor, past: dict[Any, Any], num_past: int):
        super().__init__(attention_mask)
        self.position = self.position + num_past
        self.past = past
        self.found: dict[Any, Any] = {}

    def neighbours(self, rows: torch.Tensor, offset: int, module: nn.Module) -> torch.Tensor:
        if not offset:
            return rows
        before = self.past.get((module, offset))
        both = torch.cat([rows.new_zeros(-offset, *rows.shape[1:]) if before is None else before, rows])
        self.found[module, offset] = both[len(rows) :]
        return both[: len(rows)]

    def recur(self, recurrence: nn.RNNBase, rows: torch.Tensor) -> torch.Tensor:
        output, self.found[recurrence] = recurrence(rows, self.past.get(recurrence))
        return output

    def attend(self, query, key, value, num_heads, causal, dropout, module, slopes=None, keys=None):
        kept = [key, value] if keys is None else [key, value, keys]
        if module in self.past:
            kept = [torch.cat(both) for both in zip(self.past[module], kept, strict=True)]
        self.found[module] = tuple(kept)
        key, value = kept[:2]
        seen = torch.ones(1, len(key), dtype=torch.bool, device=key.device)
        if keys is not None:
            seen = _by_head(kept[2], num_heads, query.dim() - 2)[..., None, :]
        asking, key, value = (_split(rows, num_heads, 1).transpose(0, 1) for rows in (query, key, value))
        # to the past and, among the new turns, to earlier ones
        attended = _Attention(seen, True, slopes, dropout, keys is not None)(asking, key, value)
        return attended.transpose(0, 1).reshape(query.shape)


class WithinTurns:
    """Attention among the tokens of each turn, in place of that among the turns of a [`TurnLayout`]."""

    def attend(self, query, key, value, num_heads, causal, dropout, module, slopes=None, keys=None):
        """query (N, M, A), key, value (N, K, A), keys (N, K), of which one at least is true -> (N, M, A)"""
        asking, key, value = (_split(rows, num_heads, 2).transpose(1, 2) for rows in (query, key, value))
        mask = None if keys is None else keys[:, None, None, :]
        attended = F.scaled_dot_product_attention(asking, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)
