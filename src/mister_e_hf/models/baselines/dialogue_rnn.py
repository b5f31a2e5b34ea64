"""DialogueRNN, bidirectional and with attention over the emotion states.

Majumder, Poria, Hazarika, Mihalcea, Gelbukh and Cambria, "DialogueRNN: An Attentive RNN for Emotion Detection in
Conversations", AAAI 2019, arXiv 1811.00405. Speakers are not used here: one party, with one state, says all turns.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..turns import TurnLayout
from .configuration import DialogueRNNConfig
from .modeling import BaselineModel, joined


class DialogueCell(nn.GRUCell):
    """GRU cell of a turn's vectors and a state; the product with the vectors is computed for all turns at once."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size + hidden_size, hidden_size)

    def of_turns(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, 3 H)"""
        return F.linear(rows, self.weight_ih[:, : -self.hidden_size], self.bias_ih)

    def forward(  # type: ignore[override]  # the part of the vectors is computed before
        self, of_turn: torch.Tensor, beside: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """of_turn (B, 3 H), beside, state (B, H) -> (B, H)"""
        by_input = of_turn + F.linear(beside, self.weight_ih[:, -self.hidden_size :])
        by_state = F.linear(state, self.weight_hh, self.bias_hh)
        (reset, update, new), (more_reset, more_update, old) = by_input.chunk(3, -1), by_state.chunk(3, -1)
        new = torch.tanh(new + torch.sigmoid(reset + more_reset) * old)
        return torch.lerp(new, state.to(new.dtype), torch.sigmoid(update + more_update))


class DialogueRecurrence(nn.Module):
    """The global, party and emotion states of one direction."""

    def __init__(self, config: DialogueRNNConfig):
        super().__init__()
        width, hidden = config.input_size, config.hidden_size
        self.global_cell = DialogueCell(width, hidden)
        self.party_cell = DialogueCell(width, hidden)
        self.context_query = nn.Linear(width, hidden, bias=False)
        self.emotion_gru = nn.GRU(hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
        """rows (N, D) in the order of reading -> emotion states (N, H)"""
        parts = self.global_cell.of_turns(rows), self.party_cell.of_turns(rows), self.context_query(rows)
        # Each step reads the dialogues that are that long. Short batches are padded in evaluation, so that predictions
        # stay those of older versions to the bit; padding is read last and cannot influence a real turn.
        packs = self.training or layout.is_long
        if packs:
            order, inverse, batch_sizes = layout.packing
            steps = zip(*(part[order].split(batch_sizes.tolist()) for part in parts), strict=True)
        else:
            steps = zip(*(layout.pad(part).unbind(1) for part in parts), strict=True)
        party = common = context = rows.new_zeros(layout.num_dialogues, self.party_cell.hidden_size)
        past = _Past()
        parties: list[torch.Tensor] = []
        for to_global, to_party, query in steps:
            reading = len(query)
            if parties:
                states = past.of(reading)  # [b, t, H]
                weights = (states @ query[..., None]).softmax(1)
                context = (weights * states).sum(1)
            common = self.global_cell(to_global, party[:reading], common[:reading])
            past.add(common)
            party = self.dropout(self.party_cell(to_party, context[:reading], party[:reading]))
            parties.append(party)
        read = torch.cat(parties)[inverse] if packs else layout.unpad(torch.stack(parties, dim=1))
        return self.dropout(layout.recur(self.emotion_gru, read))


class _Past:
    """
    The states of the steps until now, of the dialogues that are still read: without a gradient in one tensor that
    doubles when it is full, so that memory is linear; with one as they are, since it may not be written to.
    """

    def __init__(self):
        self._states: list[torch.Tensor] = []
        self._together: torch.Tensor | None = None
        self._count = 0

    def of(self, reading: int) -> torch.Tensor:
        """Of the first so many dialogues, (b, t, H)."""
        if self._together is not None:
            return self._together[:reading, : self._count]
        return torch.stack([state[:reading] for state in self._states], dim=1)

    def add(self, state: torch.Tensor):
        """state (b, H)"""
        if torch.is_grad_enabled():
            self._states.append(state)
            return
        if self._together is None or self._count == self._together.shape[1]:
            larger = state.new_empty(len(state), max(2 * self._count, 32), state.shape[1])
            if self._together is not None:
                larger[:, : self._count] = self._together[: len(state)]
            self._together = larger
        self._together[: len(state), self._count] = state
        self._count += 1


class DialogueRNNModel(BaselineModel):
    """Global, party and emotion GRUs in both directions, and attention over the dialogue's emotion states."""

    config_class = DialogueRNNConfig
    title = "DialogueRNN, one party"
    method = (
        "bidirectional DialogueRNN with attention (Majumder et al., [AAAI 2019](https://arxiv.org/abs/1811.00405)), "
        "with one party for all turns"
    )

    def __init__(self, config: DialogueRNNConfig):
        super().__init__(config)
        states = 2 * config.hidden_size
        self.dropout = nn.Dropout(config.dropout)
        self.from_first = DialogueRecurrence(config)
        self.from_last = DialogueRecurrence(config)
        self.emotion_query = nn.Linear(states, states, bias=False)
        self.dense = nn.Linear(states, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def heads(self, turns, layout: TurnLayout) -> tuple[torch.Tensor, ...]:
        rows = self.dropout(joined(turns))
        # each dialogue's rows from its last turn to its first; indexing twice restores the order
        places = layout.on_host
        start = torch.arange(layout.count) - places.position
        backwards = layout.moved(start + places.lengths[places.dialogue] - 1 - places.position)
        emotions = torch.cat(
            [self.from_first(rows, layout), self.from_last(rows[backwards], layout)[backwards]], dim=-1
        )  # [N, 2 H]
        # the paper compares by plain products, which `attend` divides by the root of their width
        queries = self.emotion_query(emotions) * math.sqrt(emotions.shape[1])
        attended = layout.attend(queries, emotions, emotions, 1, False, 0.0, self)
        return (self.head(self.dropout(F.relu(self.dense(attended)))),)
