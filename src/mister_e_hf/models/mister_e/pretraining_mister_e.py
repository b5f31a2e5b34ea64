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
    MiSTER-E without its gate and heads, trained without labels: the context experts' states reconstruct hidden turns,
    and the fusion expert's speech and text states of a turn find one another. [`MisterEModel`] begins from these
    weights.

    Without a context expert of a modality, the fusion expert's states reconstruct it. Modality dropout does not act.
    """

    config_class = MisterEConfig
    fine_tuned = MisterEModel
    title, method, citation, tags = MisterEModel.title, MisterEModel.method, MisterEModel.citation, MisterEModel.tags

    def __init__(self, config: MisterEConfig):
        super().__init__(config)
        for name in config.modalities:
            setattr(self, f"{name}_input", ModalityInput(config.widths[name], config.feature_clip))
        for name in ("speech", "text"):
            if name in config.experts:
                expert = ContextExpert(config, config.widths[name])
                del expert.head
                setattr(self, f"{name}_expert", expert)
        fuses = "fusion" in config.experts
        if fuses:
            self.fusion_expert = FusionExpert(config)
            del self.fusion_expert.norm, self.fusion_expert.dense, self.fusion_expert.head
        hidden = dict.fromkeys(config.modalities, config.hidden_size)
        self.pretraining = PretrainingHeads(config.widths, hidden, hidden if fuses else {}, config.hidden_size)
        self.post_init()

    def states(self, modalities: Mapping[str, ModalityTurns], turns: RealTurns) -> TurnStates:
        layout, config = turns.layout, self.config
        context: dict[str, torch.Tensor] = {}
        for name in ("speech", "text"):
            if name in config.experts:
                context[name] = getattr(self, f"{name}_expert").states(modalities[name], layout)
        if "fusion" not in config.experts:
            return TurnStates(context, {})
        speech, text = self.fusion_expert.states(
            modalities["speech"], modalities["text"], context if config.fusion_context else {}, layout
        )
        fused = {"speech": speech, "text": text}
        return TurnStates({**fused, **context}, fused)
