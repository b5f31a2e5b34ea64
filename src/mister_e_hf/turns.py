"""The real turns of a padded batch as flat rows, so that padding takes part in nothing.

Letters: B dialogues, T turns, N real turns of the batch, B' dialogues with at least one real turn.
"""

import torch
from torch.nn.utils.rnn import PackedSequence


class TurnLayout:
    r"""
    Where each real turn of a batch stands. A dialogue's real turns are neighbours of one another in their order,
    whatever padding stands before, between or behind them.

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

    def neighbours(self, offset: int) -> torch.Tensor:
        """Row of the turn `offset` turns later in the same dialogue, or N where there is none: (N,)."""
        rows = torch.arange(self.count, device=self.index.device)
        target = self.position + offset
        inside = (target >= 0) & (target < self.lengths[self.dialogue])
        return torch.where(inside, rows + offset, self.count)

    @property
    def is_rectangular(self) -> bool:
        """Whether all dialogues have the same number of real turns, so that `pad` pads nothing."""
        return self.count == self.num_dialogues * self.longest

    def key_mask(self) -> torch.Tensor:
        """(B', longest), true at the positions that `pad` fills with real turns."""
        return torch.arange(self.longest, device=self.index.device) < self.lengths[:, None]

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

    def recur(self, recurrence: torch.nn.RNNBase, rows: torch.Tensor) -> torch.Tensor:
        """Run a recurrence over each dialogue's own turns: (N, D) -> (N, H)."""
        order, inverse, batch_sizes = self._packing
        packed, _ = recurrence(PackedSequence(rows[order], batch_sizes))
        return packed.data[inverse]

    @property
    def _packing(self):
        if not hasattr(self, "_packing_cache"):
            self._packing_cache = self.packing()
        return self._packing_cache
