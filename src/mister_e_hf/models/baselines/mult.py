"""MulT, the multimodal transformer, over the turns of a dialogue instead of the words and frames of an utterance.

Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "Multimodal Transformer for Unaligned Multimodal Language
Sequences", ACL 2019, arXiv 1906.00295.
"""

import torch
from torch import nn

from ..turn_layers import TurnLinear
from .configuration import MultConfig
from .layers import Transformer, sinusoidal_positions
from .modeling import BaselineModel


class MultModel(BaselineModel):
    """Each modality's turns attend to the other's, then to one another; a residual block over both and a head."""

    config_class = MultConfig
    title = "MulT over turns"
    method = "MulT over the turns of a dialogue (Tsai et al., [ACL 2019](https://arxiv.org/abs/1906.00295))"

    def __init__(self, config: MultConfig):
        super().__init__(config)
        hidden = config.hidden_size
        # over time it spans one turn, as in the authors' code
        self.speech_projection = TurnLinear(config.speech_embedding_dim, hidden)
        self.text_projection = TurnLinear(config.text_embedding_dim, hidden)
        self.text_to_speech = Transformer(config)
        self.speech_to_text = Transformer(config)
        self.speech_memory = Transformer(config)
        self.text_memory = Transformer(config)
        self.dropout = nn.Dropout(config.dropout)
        self.residual = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(2 * hidden, 2 * hidden)
        )
        self.head = nn.Linear(2 * hidden, config.num_labels)
        self.post_init()

    def heads(self, turns, layout) -> tuple[torch.Tensor, ...]:
        speech, text = self.speech_projection(turns["speech"]), self.text_projection(turns["text"])
        positions = sinusoidal_positions(layout, self.config.hidden_size, speech)
        speech, text = self.dropout(speech + positions), self.dropout(text + positions)
        # X_to_Y: Y asks and X answers
        spoken = self.speech_memory(self.text_to_speech(speech, layout, text), layout)
        written = self.text_memory(self.speech_to_text(text, layout, speech), layout)
        both = torch.cat([spoken, written], dim=-1)
        return (self.head(both + self.residual(both)),)
