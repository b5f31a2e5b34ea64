"""DialogueRNN, bidirectional and with attention over the emotion states.

Majumder, Poria, Hazarika, Mihalcea, Gelbukh and Cambria, "DialogueRNN: An Attentive RNN for Emotion Detection in
Conversations", AAAI 2019, arXiv 1811.00405. Speakers are not used here: one party, with one state, says all turns.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        past: _Past | None = None
        parties: list[torch.Tensor] = []
        for to_global, to_party, query in steps:
            reading = len(query)
            if past is not None:
                states = past.of(reading)
                # computed again for its gradient, since its parts are as long as the past
                again = layout.is_long and torch.is_grad_enabled()
                context = (
                    checkpoint(_context, query, states, use_reentrant=False) if again else _context(query, states)
                )
            common = self.global_cell(to_global, party[:reading], common[:reading])
            past = _Past(common) if past is None else past
            past.add(common)
            party = self.dropout(self.party_cell(to_party, context[:reading], party[:reading]))
            parties.append(party)
        read = torch.cat(parties)[inverse] if packs else layout.unpad(torch.stack(parties, dim=1))
        return self.dropout(layout.recur(self.emotion_gru, read))


class _Past:
    """
    The states of the steps until now, of the dialogues that are still read, in one tensor that doubles when it is
    full, so that memory is linear in the turns.
    """

    def __init__(self, first: torch.Tensor):
        self._memory = first.new_empty(len(first), 32, first.shape[1])
        self._states = self._memory[:, :0]  # [b, t, H]

    def of(self, reading: int) -> torch.Tensor:
        """Of the first so many dialogues, (b, t, H)."""
        return self._states if len(self._states) == reading else self._states[:reading]

    def add(self, state: torch.Tensor):
        """state (b, H)"""
        count = self._states.shape[1]
        if count == self._memory.shape[1]:
            larger = state.new_empty(len(state), 2 * count, state.shape[1])
            larger[:, :count] = self._memory[: len(state)]
            self._memory = larger
        self._states = _Appended.apply(self._states, state, self._memory)


class _Appended(torch.autograd.Function):
    """
    The states of past steps (B, t, H), which are the first of a memory (B or b, more, H), and behind them that of the
    dialogues b that are still read, (b, H), which is written there: (b, t + 1, H).
    """

    @staticmethod
    def forward(context, past: torch.Tensor, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        context.ended, count = len(past) - len(state), past.shape[1]
        memory[: len(state), count] = state
        # What is read at a step does not change when a later one is written, so autograd need not know that it is.
        return memory.data[: len(state), : count + 1]

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        of_past = gradient[:, :-1]
        if context.ended:
            of_past = F.pad(of_past, (0, 0, 0, 0, 0, context.ended))
        return of_past, gradient[:, -1], None


def _context(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a turn's query (b, H) attends to among the states (b, t, H): (b, H)."""
    weights = (states @ query[..., None]).softmax(1)
    return (weights * states).sum(1)


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
