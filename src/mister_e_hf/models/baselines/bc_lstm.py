"""bc-LSTM, a recurrence over the turns of a dialogue.

Poria, Cambria, Hazarika, Majumder, Zadeh and Morency, "Context-Dependent Sentiment Analysis in User-Generated Videos",
ACL 2017. The recurrence here is a GRU instead of an LSTM: as accurate with fewer weights.
"""

import torch
from torch import nn

from .configuration import BcLstmConfig
from .modeling import BaselineModel, joined


class BcLstmModel(BaselineModel):
    """A bidirectional GRU over the turns' concatenated vectors, and a linear head."""

    config_class = BcLstmConfig
    title = "bc-LSTM (GRU)"
    method = "bc-LSTM with a GRU in its place (Poria et al., [ACL 2017](https://aclanthology.org/P17-1081))"

    def __init__(self, config: BcLstmConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.input_size,
            config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.head = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def heads(self, turns, layout) -> tuple[torch.Tensor, ...]:
        states = layout.recur(self.gru, self.dropout(joined(turns)))
        return (self.head(self.dropout(states)),)
