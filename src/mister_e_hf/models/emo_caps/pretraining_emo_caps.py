"""Self-supervised pre-training of EMO-Caps.

Letters: N real turns of the batch (as flat rows, see `turns.py`), H hidden.
"""

from collections.abc import Mapping

import torch

from ..pretraining import PretrainingHeads, PretrainingModel, TurnStates
from ..turn_layers import ModalityInput, ModalityTurns
from ..turns import RealTurns
from .configuration_emo_caps import EmoCapsConfig
from .emoformer import EmoCapsBackbone
from .modeling_emo_caps import EmoCapsModel


class EmoCapsForPreTraining(PretrainingModel):
    r"""
    The backbone of EMO-Caps, trained without labels: a modality's states in its dialogue, with what they find in the
    other modalities, reconstruct hidden turns, and the emotion vectors of a turn's modalities find one another.
    [`EmoCapsModel`] begins from these weights; its capsules are new.

    With one modality there is nothing to find, and hidden turns are reconstructed from its emotion vectors.
    """

    config_class = EmoCapsConfig
    fine_tuned = EmoCapsModel
    title, method, citation, tags = EmoCapsModel.title, EmoCapsModel.method, EmoCapsModel.citation, EmoCapsModel.tags

    def __init__(self, config: EmoCapsConfig):
        super().__init__(config)
        self.backbone = EmoCapsBackbone(config)
        hidden, names = config.hidden_size, config.modalities
        others = len(names) - 1 if config.interactions else 0
        compared = dict.fromkeys(names, hidden) if len(names) > 1 else {}
        read = dict.fromkeys(names, hidden * (1 + others))
        self.pretraining = PretrainingHeads(config.widths, read, compared, hidden)
        self.post_init()

    def input_of(self, modality: str) -> ModalityInput | None:
        return self.backbone.input_of(modality)

    def states(self, modalities: Mapping[str, ModalityTurns], turns: RealTurns) -> TurnStates:
        states = self.backbone(modalities, turns.present, turns.layout)
        # all of the backbone is trained
        contexts = states.context if self.compares else states.emotion
        read = {
            name: torch.cat([own, *(found for (asks, _), found in states.crossed.items() if asks == name)], dim=-1)
            for name, own in contexts.items()
        }
        return TurnStates(read, states.emotion)
