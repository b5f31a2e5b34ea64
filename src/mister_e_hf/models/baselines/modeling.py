"""What all baselines share: inputs, masks, output and loss are those of MiSTER-E, so that its collator and trainer run them.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), D width of a turn's vectors, H hidden, C classes.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from ...base.losses import focal_loss
from ..mister_e.modeling_mister_e import MisterEPreTrainedModel, ModalityInput, ModalityTurns
from ..turns import TurnLayout
from .configuration import BaselineConfig


@dataclass
class BaselineOutput(ModelOutput):
    """
    Output of a baseline; zero at padding.

    Args:
        loss (`()`, when labels are given): cross-entropy, with what else the method learns by.
        logits (`(B, T, C)`): scores before the softmax.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class BaselineModel(MisterEPreTrainedModel):
    r"""
    Base class of the baselines; each defines `heads`, and `title` and `method` for its card. Padding and absent modalities are ignored whatever they hold, NaN included; a learned
    vector stands for an absent one.
    """

    config_class = BaselineConfig
    title: str
    method: str

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        for modality in config.modalities:
            width = getattr(config, f"{modality}_embedding_dim")
            setattr(self, f"{modality}_input", ModalityInput(width, config.feature_clip))

    def heads(self, turns: dict[str, ModalityTurns], layout: TurnLayout) -> tuple[torch.Tensor, ...]:
        """Logits (N, C) of each head from the turns by modality, the model's own logits first; the others are for the loss alone."""
        raise NotImplementedError

    def turn_loss(self, heads: tuple[torch.Tensor, ...], labels: torch.Tensor, num_items) -> torch.Tensor:
        """The loss from the logits (N, C) of the heads and the labels (N,): a sum over turns divided by `num_items`."""
        return self.cross_entropy(heads[0], labels, num_items)

    def cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, num_items) -> torch.Tensor:
        return focal_loss(logits, labels, 0.0, self.class_weights(logits), num_items)

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> BaselineOutput:
        r"""
        Arguments and errors are those of [`MisterEModel`]. A modality that the configuration does not name is not read.
        """
        real, masks = self._check_inputs(speech_embeddings, text_embeddings, attention_mask, speech_mask, text_mask)
        # A batch of nothing but padding still has to take part in a distributed step: stand-in turns, weighing nothing.
        weight = real.any()
        layout = TurnLayout(real if weight else torch.ones_like(real))
        embeddings, turns = {"speech": speech_embeddings, "text": text_embeddings}, {}
        for name in self.config.modalities:
            module = getattr(self, f"{name}_input")
            given = embeddings[name]
            vectors = module.mean.expand(layout.count, -1) if given is None else layout.flatten(given)
            turns[name] = module(vectors, layout.flatten(masks[name]))
        heads = self.heads(turns, layout)
        loss = None
        if labels is not None:
            scored = layout.flatten(self._labels(labels, real))
            loss = self.turn_loss(heads, scored, num_items_in_batch)
        return BaselineOutput(loss=loss, logits=layout.unflatten(heads[0] * weight.to(heads[0].dtype)))


def joined(turns: dict[str, ModalityTurns]) -> torch.Tensor:
    """The vectors of all modalities beside one another, the learned ones where a modality is absent: (N, D)."""
    return torch.cat([_filled(each) for each in turns.values()], dim=-1)


def _filled(turns: ModalityTurns) -> torch.Tensor:
    # absent or not: a parameter without a gradient would hold up the other processes
    absent = 0.0 if turns.absent is None else turns.absent
    return turns.vectors + absent * turns.null
