"""Self-supervised pre-training of MiSTER-E.

Letters: N real turns of the batch (as flat rows, see `turns.py`), H hidden.
"""

from collections.abc import Mapping

import torch

from ..pretraining import PretrainingHeads, PretrainingModel, TurnStates
from ..turn_layers import ModalityInput, ModalityTurns
from ..turns import RealTurns
from .configuration_mister_e import MisterEConfig
from .modeling_mister_e import ContextExpert, FusionExpert, MisterEModel


class MisterEForPreTraining(PretrainingModel):
    r"""
    MiSTER-E without its gate and heads, trained without labels: the states of a modality's context expert and of the
    fusion expert together reconstruct hidden turns, and the context experts' states of a turn find one another.
    [`MisterEModel`] begins from these weights.

    The fusion expert's own states are not compared: each has seen the other modality of its dialogue, so that they
    find the dialogue without having learned anything of its turns. Where a context expert is left out, what is
    compared is the fusion expert's projection of the modality. Modality dropout does not act.
    """

    config_class = MisterEConfig
    fine_tuned = MisterEModel
    title, method, citation, tags = MisterEModel.title, MisterEModel.method, MisterEModel.citation, MisterEModel.tags

    def __init__(self, config: MisterEConfig):
        super().__init__(config)
        hidden, names = config.hidden_size, config.modalities
        for name in names:
            setattr(self, f"{name}_input", ModalityInput(config.widths[name], config.feature_clip))
        own = [name for name in names if name in config.experts]
        for name in own:
            expert = ContextExpert(config, config.widths[name])
            del expert.head
            setattr(self, f"{name}_expert", expert)
        if "fusion" in config.experts:
            self.fusion_expert = FusionExpert(config)
            del self.fusion_expert.norm, self.fusion_expert.dense, self.fusion_expert.head
        read = {name: hidden * ((name in own) + ("fusion" in config.experts)) for name in names}
        self.pretraining = PretrainingHeads(config.widths, read, dict.fromkeys(names, hidden), hidden)
        self.post_init()

    def states(self, modalities: Mapping[str, ModalityTurns], turns: RealTurns) -> TurnStates:
        layout, config = turns.layout, self.config
        context: dict[str, torch.Tensor] = {}
        for name in modalities:
            if name in config.experts:
                context[name] = getattr(self, f"{name}_expert").states(modalities[name], layout)
        if "fusion" not in config.experts:
            return TurnStates(context, context)
        speech, text = self.fusion_expert.states(
            modalities["speech"], modalities["text"], context if config.fusion_context else {}, layout
        )
        fused = {"speech": speech, "text": text}
        alone = {
            name: getattr(self.fusion_expert, f"{name}_projection")(modalities[name])
            for name in fused
            if name not in context
        }
        read = {
            name: torch.cat([context[name], fused[name]], -1) if name in context else fused[name] for name in fused
        }
        return TurnStates(read, {**alone, **context})
