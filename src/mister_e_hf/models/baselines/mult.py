"""MulT, the multimodal transformer, over the turns of a dialogue instead of the words and frames of an utterance.

Tsai, Bai, Liang, Kolter, Morency and Salakhutdinov, "Multimodal Transformer for Unaligned Multimodal Language
Sequences", ACL 2019, arXiv 1906.00295.
"""

import torch
from torch import nn

from ..turn_layers import TurnLinear
from ..turn_transformer import Transformer, sinusoidal_positions
from .configuration import MultConfig
from .modeling import BaselineModel


class MultModel(BaselineModel):
    """
    Each modality's turns attend to those of each other modality, then to one another; a residual block over all of
    them and a head. With one modality the turns attend to one another alone.
    """

    config_class = MultConfig
    title = "MulT over turns"
    method = "MulT over the turns of a dialogue (Tsai et al., [ACL 2019](https://arxiv.org/abs/1906.00295))"

    def __init__(self, config: MultConfig):
        super().__init__(config)
        hidden, modalities = config.hidden_size, config.modalities
        # over time it spans one turn, as in the authors' code
        for name in modalities:
            setattr(self, f"{name}_projection", TurnLinear(config.width(name), hidden))
        # X_to_Y: Y asks and X answers; Y's memory is over the answers of all others
        for name in modalities:
            for other in self._others(name):
                setattr(self, f"{other}_to_{name}", Transformer(config))
        memory = hidden * max(len(modalities) - 1, 1)
        for name in modalities:
            setattr(self, f"{name}_memory", Transformer(config, memory))
        width = memory * len(modalities)
        self.dropout = nn.Dropout(config.dropout)
        self.residual = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.head = nn.Linear(width, config.num_labels)
        self.post_init()

    def _others(self, modality: str) -> list[str]:
        return [name for name in self.config.modalities if name != modality]

    def heads(self, turns, layout) -> tuple[torch.Tensor, ...]:
        streams = {name: getattr(self, f"{name}_projection")(vectors) for name, vectors in turns.items()}
        positions = sinusoidal_positions(layout, self.config.hidden_size, next(iter(streams.values())))
        streams = {name: self.dropout(stream + positions) for name, stream in streams.items()}
        memories = []
        for name, stream in streams.items():
            answers = [
                getattr(self, f"{other}_to_{name}")(stream, layout, streams[other]) for other in self._others(name)
            ]
            answered = torch.cat(answers, dim=-1) if answers else stream
            memories.append(getattr(self, f"{name}_memory")(answered, layout))
        joint = torch.cat(memories, dim=-1)
        return (self.head(joint + self.residual(joint)),)
