"""The part of EMO-Caps that pre-training and fine-tuning share: each modality in its context and in the others'.

After Emoformer (Li, Tang, Zhao and Zhu, "EmoCaps", Findings of ACL 2022, arXiv 2203.13504) and the cross-modal
attention of MulT (Tsai et al., ACL 2019, arXiv 1906.00295).

Letters: N real turns of the batch (as flat rows, see `turns.py`), H hidden.
"""

from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple

import torch
from torch import nn

from ...base.modalities import MODALITIES
from ..turn_layers import ModalityInput, ModalityTurns, TurnLinear
from ..turn_transformer import Transformer, sinusoidal_positions
from ..turns import TurnLayout
from .configuration_emo_caps import EmoCapsConfig


class EmoCapsStates(NamedTuple):
    r"""
    What the backbone computes of each turn; rows of a modality that is absent there mean nothing.

    Args:
        sentence (`(N, H)`): by modality, its projected vector (e_m^0).
        context (`(N, H)`): by modality, its states in the dialogue (h_m).
        emotion (`(N, H)`): by modality, its emotion vector (E_m).
        crossed (`(N, H)`): by (m, other), what the turns of m find in the turns of the other modality (X_{m<-other}).
    """

    sentence: dict[str, torch.Tensor]
    context: dict[str, torch.Tensor]
    emotion: dict[str, torch.Tensor]
    crossed: dict[tuple[str, str], torch.Tensor]


class Emoformer(nn.Module):
    """One modality in its dialogue: a recurrence, a transformer over its turns, and a mapping network."""

    def __init__(self, config: EmoCapsConfig, embedding_dim: int):
        super().__init__()
        hidden = config.hidden_size
        self.projection = TurnLinear(embedding_dim, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = None
        if config.context == "before":
            self.gru = turn_gru(hidden, hidden, config.causal)
        self.transformer = Transformer(config, causal=config.causal)
        # narrow in the middle: H, H/2, H/2, H, H for five layers
        last = config.mapping_layers
        widths = [hidden // 2 if 1 < layer < last - 1 else hidden for layer in range(last + 1)]
        layers: list[nn.Module] = []
        for width, following in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width, following), nn.ReLU(), nn.Dropout(config.dropout)]
        self.mapping = nn.Sequential(*layers[:-2])

    def forward(
        self, turns: ModalityTurns, present: torch.Tensor, layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sentence vectors, states and emotion vectors, (N, H) each; `present` (N,)."""
        sentence = self.projection(turns)
        states = self.dropout(sentence + sinusoidal_positions(layout, sentence.shape[1], sentence))
        if self.gru is not None:
            states = states + self.dropout(layout.recur(self.gru, states))
        states = self.transformer(states, layout, keys=present)
        return sentence, states, self.mapping(states)


def turn_gru(input_size: int, hidden_size: int, causal: bool) -> nn.GRU:
    """A recurrence over turns, in both directions unless it is causal, to states of width H."""
    return nn.GRU(input_size, hidden_size if causal else hidden_size // 2, bidirectional=not causal, batch_first=True)


class EmoCapsBackbone(nn.Module):
    """
    The inputs of the modalities, an [`Emoformer`] of each, and attention of each to each other over the turns of the
    dialogue. A turn attends to those turns alone that have the modality.
    """

    def __init__(self, config: EmoCapsConfig):
        super().__init__()
        names = config.modalities
        for name in names:
            setattr(self, f"{name}_input", ModalityInput(config.width(name), config.feature_clip))
        self.emoformers = nn.ModuleDict({name: Emoformer(config, config.width(name)) for name in names})
        self.pairs = tuple(permutations(names, 2)) if config.interactions else ()
        # X_to_Y: Y asks and X answers
        self.crossings = nn.ModuleDict(
            {f"{other}_to_{name}": Transformer(config, causal=config.causal) for name, other in self.pairs}
        )

    def input_of(self, modality: str) -> ModalityInput | None:
        """The layer that standardises the vectors of a modality; None if they are not read."""
        return getattr(self, f"{modality}_input", None)

    def left_out_parts(self) -> list[str]:
        """Names of the layers that a backbone with every modality has beside those of this one."""
        others = [name for name in MODALITIES if name not in self.emoformers]
        inputs = [part for name in others for part in (f"{name}_input", f"emoformers.{name}")]
        pairs = [pair for pair in permutations(MODALITIES, 2) if {*pair} & {*others}]
        return inputs + [f"crossings.{name}_to_{other}" for name, other in pairs]

    def forward(
        self, turns: Mapping[str, ModalityTurns], present: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> EmoCapsStates:
        """
        `turns` by modality, standardised by its input layer; `present` by modality (N,): where its turns are
        attended to.
        """
        states = EmoCapsStates({}, {}, {}, {})
        for name, emoformer in self.emoformers.items():
            found = emoformer(turns[name], present[name], layout)
            states.sentence[name], states.context[name], states.emotion[name] = found
        for name, other in self.pairs:
            states.crossed[name, other] = self.crossings[f"{other}_to_{name}"](
                states.context[name], layout, states.context[other], present[other]
            )
        return states
