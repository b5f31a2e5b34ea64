"""DialogueRNN (Majumder, Poria, Hazarika, Mihalcea, Gelbukh and Cambria, "DialogueRNN: An Attentive RNN for Emotion Detection in
Conversations", AAAI 2019, arXiv 1811.00405), bidirectional and with attention over the emotion states.

Who speaks is not used here, so one party says all turns and has one state.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..turns import TurnLayout
from .configuration import DialogueRNNConfig
from .modeling import BaselineModel, joined


class DialogueRecurrence(nn.Module):
    """The global, party and emotion states of one direction."""

    def __init__(self, config: DialogueRNNConfig):
        super().__init__()
        width, hidden = config.input_size, config.hidden_size
        self.global_cell = nn.GRUCell(width + hidden, hidden)
        self.party_cell = nn.GRUCell(width + hidden, hidden)
        self.context_query = nn.Linear(width, hidden, bias=False)
        self.emotion_gru = nn.GRU(hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
        """rows (N, D) in the order of reading -> emotion states (N, H)"""
        # Padding is read last, so that no state of a real turn knows it.
        turns, queries = layout.pad(rows), layout.pad(self.context_query(rows))  # [B, T, D], [B, T, H]
        party = common = rows.new_zeros(len(turns), self.party_cell.hidden_size)
        context, past, parties = torch.zeros_like(party), [], []
        for turn, query in zip(turns.unbind(1), queries.unbind(1), strict=True):
            if past:
                states = torch.stack(past, dim=1)  # [B, t, H]
                weights = (states @ query[..., None]).softmax(1)
                context = (weights * states).sum(1)
            common = self.global_cell(torch.cat([turn, party], dim=-1), common)
            past.append(common)
            party = self.dropout(self.party_cell(torch.cat([turn, context], dim=-1), party))
            parties.append(party)
        return self.dropout(layout.recur(self.emotion_gru, layout.unpad(torch.stack(parties, dim=1))))


class DialogueRNNModel(BaselineModel):
    """Global, party and emotion GRUs in both directions, and attention from each turn's emotion state to all of the dialogue's."""

    config_class = DialogueRNNConfig
    title = "DialogueRNN"
    method = "bidirectional DialogueRNN with attention (Majumder et al., [AAAI 2019](https://arxiv.org/abs/1811.00405)), with one party for all turns"

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
        # each dialogue's rows from its last turn to its first; twice over it is the first order again
        start = torch.arange(layout.count, device=rows.device) - layout.position
        backwards = start + layout.lengths[layout.dialogue] - 1 - layout.position
        emotions = torch.cat(
            [self.from_first(rows, layout), self.from_last(rows[backwards], layout)[backwards]], dim=-1
        )  # [N, 2 H]
        # the paper compares by plain products, which `attend` divides by the root of their width
        queries = self.emotion_query(emotions) * math.sqrt(emotions.shape[1])
        attended = layout.attend(queries, emotions, emotions, 1, False, 0.0, self)
        return (self.head(self.dropout(F.relu(self.dense(attended)))),)
