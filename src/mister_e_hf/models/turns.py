"""The real turns of a padded batch as flat rows, so that padding cannot influence any result; a stream's past.

Letters: B dialogues, T turns, N real turns of the batch, B' dialogues with at least one real turn, A attention width,
P past turns.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from ..base.devices import moved
from ..base.errors import InputError
from .turn_attention import LONG, Attention, attend_to, by_head, split_heads
from .turn_recurrence import in_own_precision, packed_gru, takes_packed_gru


class TurnLayout:
    r"""
    The places of the real turns of a batch. A dialogue's real turns are neighbours of one another in their order,
    whatever padding is before, between or behind them. All places are computed on the host: an accelerator that was
    asked how many turns there are would be waited for.

    Args:
        attention_mask (`torch.BoolTensor` of shape `(B, T)`): true where the turn is real; at least one must be.
        device: where the rows are; by default where the mask is.
    """

    def __init__(self, attention_mask: torch.Tensor, device: torch.device | None = None):
        self.shape = attention_mask.shape
        self.device = attention_mask.device if device is None else device
        mask = attention_mask.cpu()
        lengths = mask.sum(1)
        lengths = lengths[lengths > 0]
        index = mask.flatten().nonzero().squeeze(1)  # [N] into the B * T positions
        self.count, self.num_dialogues, self.longest = len(index), len(lengths), int(lengths.max())
        dialogue = torch.repeat_interleave(torch.arange(self.num_dialogues), lengths)  # [N]
        position = torch.arange(self.count) - (lengths.cumsum(0) - lengths)[dialogue]  # [N] within the dialogue
        self.on_host = Places(index, dialogue, position, lengths)
        place = dialogue * self.longest + position  # [N] where all dialogues are as long as the longest
        places = self.moved(torch.stack([index, dialogue, position, place]))
        self.index, self.dialogue, self.position, self._place = places.unbind()
        self.lengths = self.moved(lengths)  # [B']
        self._shifts: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[torch.dtype | None, int], torch.Tensor] = {}

    def moved(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the host where the rows are, without waiting for them."""
        return moved(values, self.device)

    def flatten(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) -> (N, ...), on the host if the values are there."""
        rows = values.flatten(0, 1)
        if self.count == len(rows):
            return rows
        return rows[self.on_host.place if values.device.type == "cpu" else self.index]

    def unflatten(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B, T, ...), zero at padding."""
        positions = self.shape[0] * self.shape[1]
        if self.count == positions:
            return rows.unflatten(0, self.shape)
        flat = rows.new_zeros(positions, *rows.shape[1:])
        return flat.index_copy_(0, self.index, rows).unflatten(0, self.shape)

    def neighbours(self, rows: torch.Tensor, offset: int, module: nn.Module) -> torch.Tensor:
        """The rows (N, ...) of the turns `offset` turns later in the same dialogue, zero beyond its ends: (N, ...)."""
        if not offset:
            return rows
        if offset not in self._shifts:
            target = self.on_host.position + offset
            inside = (target >= 0) & (target < self.on_host.lengths[self.on_host.dialogue])
            self._shifts[offset] = self.moved(torch.where(inside, torch.arange(self.count) + offset, self.count))
        # the row behind the last is zero
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, 1)).index_select(0, self._shifts[offset])

    @property
    def is_rectangular(self) -> bool:
        """Whether all dialogues have the same number of real turns, so that `pad` pads nothing."""
        return self.count == self.num_dialogues * self.longest

    @property
    def is_long(self) -> bool:
        """Whether dialogues are computed apart from those of another length, for one is long."""
        return self.longest > LONG

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B', longest, ...), padded at the end with zeros."""
        if self.is_rectangular:
            return rows.unflatten(0, (self.num_dialogues, self.longest))
        padded = rows.new_zeros(self.num_dialogues * self.longest, *rows.shape[1:])
        return padded.index_copy_(0, self._place, rows).unflatten(0, (self.num_dialogues, self.longest))

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """(B', longest, ...) -> (N, ...), the inverse of `pad`."""
        rows = padded.flatten(0, 1)
        return rows if self.is_rectangular else rows.index_select(0, self._place)

    @functools.cached_property
    def packing(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The order in which a recurrence reads the rows: all first turns, then all second turns, ..., longer dialogues
        first. The order (N,), its inverse (N,) and how many dialogues each step reads (on the host, as
        [`~torch.nn.utils.rnn.PackedSequence`] wants it).
        """
        own = self.on_host
        rank = torch.empty_like(own.lengths)
        rank[own.lengths.argsort(descending=True, stable=True)] = torch.arange(self.num_dialogues)
        order = (own.position * self.num_dialogues + rank[own.dialogue]).argsort()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(self.count)
        there, back = self.moved(torch.stack([order, inverse])).unbind()
        return there, back, torch.bincount(own.position, minlength=self.longest)

    def recur(self, recurrence: nn.RNNBase, rows: torch.Tensor) -> torch.Tensor:
        """Run a recurrence over each dialogue's own turns: (N, D) -> (N, H)."""
        order, inverse, batch_sizes = self.packing
        ordered = _Reordered.apply(rows, order, inverse)
        if takes_packed_gru(recurrence, rows):
            return _Reordered.apply(packed_gru(recurrence, ordered, batch_sizes), inverse, order)
        with in_own_precision(recurrence, ordered) as own:
            packed, _ = recurrence(PackedSequence(own, batch_sizes))
        return _Reordered.apply(packed.data, inverse, order)

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
        return torch.cat(found)[self._ungrouped]

    def _attend(self, query, key, value, num_heads, causal, dropout, slopes, keys) -> torch.Tensor:
        def heads(rows: torch.Tensor) -> torch.Tensor:  # [N, A] -> [B', heads, T, A / heads], M heads of M streams
            return split_heads(self.pad(rows), num_heads, 2).transpose(1, 2)

        seen = None
        if keys is not None:
            seen = by_head(self.pad(keys), num_heads, query.dim() - 2)[..., None, :]
        # Padding is at the end, which causal attention never sees; only real turns are kept.
        elif not causal and not self.is_rectangular:
            seen = self._seen(None if slopes is not None else query.dtype)
        attention = Attention(seen, causal, slopes, dropout, keys is not None)
        attended = attention(heads(query), heads(key), heads(value))
        return self.unpad(attended.transpose(1, 2).flatten(2)).view_as(query)

    def _seen(self, dtype: torch.dtype | None, streams: int = 1) -> torch.Tensor:
        """
        Where `pad` pads nothing, for each stream (S B', 1, 1, longest). With a dtype, on an accelerator, as what is
        added to scores of that dtype, which each attention would make of it otherwise.
        """
        if (dtype, streams) not in self._masks:
            lengths = self.on_host.lengths.repeat(streams)
            seen = (torch.arange(self.longest) < lengths[:, None])[:, None, None, :]
            if dtype is not None and self.device.type != "cpu":
                seen = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
            self._masks[dtype, streams] = self.moved(seen)
        return self._masks[dtype, streams]

    @property
    def joins_streams(self) -> bool:
        """Whether `attend_streams` is faster: an accelerator is bound by the number of calls, a CPU by the work."""
        return self.device.type != "cpu" and not self.is_long

    def attend_streams(
        self, rows: torch.Tensor, num_heads: int, causal: bool, dropout: float, crosses: bool
    ) -> torch.Tensor:
        """
        As `attend` of each of S streams to itself, or of two to each other if it `crosses`. The rows are queries, keys
        and values beside one another: (S, N, 3 A) -> (S, N, A).
        """
        if not self.is_rectangular:
            rows = _Reordered.apply(rows, self._padding, self._place, 1)
        rows = rows.unflatten(1, (self.num_dialogues, -1)).unflatten(-1, (3, num_heads, -1))
        asked = rows[..., 1:, :, :]
        key, value = (asked.flip(0) if crosses else asked).unbind(-3)
        query, key, value = (each.flatten(0, 1).transpose(1, 2) for each in (rows[..., 0, :, :], key, value))
        masked = not causal and not self.is_rectangular
        seen = self._seen(query.dtype, len(rows)) if masked else None
        attended = attend_to(query, key, value, attn_mask=seen, dropout_p=dropout, is_causal=causal)
        found = attended.transpose(1, 2).flatten(2).unflatten(0, (len(rows), -1)).flatten(1, 2)
        return found if self.is_rectangular else found.index_select(1, self._place)

    @functools.cached_property
    def _padding(self) -> torch.Tensor:
        """The row that is read at each of the B' * longest places: in padding the first of the dialogue."""
        lengths = self.on_host.lengths[:, None]
        place = torch.arange(self.longest)
        return self.moved((lengths.cumsum(0) - lengths + place * (place < lengths)).flatten())

    @functools.cached_property
    def _groups(self) -> list[tuple[torch.Tensor, "TurnLayout"]]:
        """
        The rows and the layout of dialogues of like length, since attention computes every dialogue as long as the
        longest beside it. Dialogues of up to `LONG` turns are one group, the others one for each doubling.
        """
        own = torch.arange(self.count)
        if not self.is_long:
            return [(own, self)]
        lengths = self.on_host.lengths
        doublings = (lengths.clamp(min=LONG) / LONG).log2().ceil()
        groups: list[tuple[torch.Tensor, TurnLayout]] = []
        for doubling in doublings.unique():
            some = lengths[doublings == doubling]
            place = torch.arange(int(some.max()))
            rows = self.moved(own[(doublings == doubling)[self.on_host.dialogue]])
            groups.append((rows, TurnLayout(place < some[:, None], self.device)))
        return groups

    @functools.cached_property
    def _ungrouped(self) -> torch.Tensor:
        """Where each row (N,) is among those of the groups, one behind the other."""
        return torch.cat([rows for rows, _ in self._groups]).argsort()


class Places(NamedTuple):
    r"""
    Args:
        place (`(N,)`): of each real turn among the B * T positions.
        dialogue (`(N,)`): which of the dialogues it is in.
        position (`(N,)`): its place in that.
        lengths (`(B',)`): real turns of each dialogue.
    """

    place: torch.Tensor
    dialogue: torch.Tensor
    position: torch.Tensor
    lengths: torch.Tensor


class _Reordered(torch.autograd.Function):
    """
    Rows (N, ...) in another order, whose inverse gives the gradient without sorting it. A row may be read again where
    the gradient is 0; the inverse has its first place.
    """

    @staticmethod
    def forward(context, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, dim: int = 0) -> torch.Tensor:
        context.save_for_backward(inverse)
        context.dim = dim
        return rows.index_select(dim, order)

    @staticmethod
    @once_differentiable
    def backward(context, gradient: torch.Tensor):
        (inverse,) = context.saved_tensors
        return gradient.index_select(context.dim, inverse), None, None, None


class RealTurns(NamedTuple):
    r"""
    The real turns of a batch.

    Args:
        mask (`(B, T)`, bool): where they are.
        weight (`()`, bool, on the host):
            whether there is one. A batch of padding alone must still take part in a distributed step: its turns are
            computed with weight 0.
        layout: their places.
        present (`(N,)`, bool): by modality, which of them have it.
        mask_on_host (`(B, T)`, bool), present_on_host (`(N,)`, bool):
            the same on the host, where reading them does not wait for an accelerator.
    """

    mask: torch.Tensor
    weight: torch.Tensor
    layout: TurnLayout
    present: Mapping[str, torch.Tensor]
    mask_on_host: torch.Tensor
    present_on_host: Mapping[str, torch.Tensor]

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (B, T, ...), zero at padding."""
        return self.layout.unflatten(rows if self.weight else rows * self.weight.to(rows))


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

    def layout(self, attention_mask: torch.Tensor, device: torch.device | None = None) -> "NextTurns":
        """The layout of the next turns (1, T), all of them real, whose rows are on a device."""
        if attention_mask.shape[0] != 1 or not attention_mask.all():
            raise InputError(
                "A cache holds one dialogue, whose next turns must all be real; "
                f"got attention_mask {attention_mask.tolist()}"
            )
        return NextTurns(attention_mask, self._kept, self.num_turns, device)

    def add(self, turns: "NextTurns"):
        """Make these turns part of the past."""
        self._kept = self._kept | turns.found
        self.num_turns += turns.count


class NextTurns(TurnLayout):
    """
    Turns of one dialogue after the `num_past` in a [`DialogueCache`]: they see the past, and `found` is kept of them.
    """

    joins_streams = False

    def __init__(
        self, attention_mask: torch.Tensor, past: dict[Any, Any], num_past: int, device: torch.device | None = None
    ):
        super().__init__(attention_mask, device)
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
            seen = by_head(kept[2], num_heads, query.dim() - 2)[..., None, :]
        asking, key, value = (split_heads(rows, num_heads, 1).transpose(0, 1) for rows in (query, key, value))
        # to the past and, among the new turns, to earlier ones
        attended = Attention(seen, True, slopes, dropout, keys is not None)(asking, key, value)
        return attended.transpose(0, 1).reshape(query.shape)


class WithinTurns:
    """Attention among the tokens of each turn, in place of that among the turns of a [`TurnLayout`]."""

    def attend(self, query, key, value, num_heads, causal, dropout, module, slopes=None, keys=None):
        """query (N, M, A), key, value (N, K, A), keys (N, K), of which one at least is true -> (N, M, A)"""
        asking, key, value = (split_heads(rows, num_heads, 2).transpose(1, 2) for rows in (query, key, value))
        mask = None if keys is None else keys[:, None, None, :]
        attended = attend_to(asking, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)
