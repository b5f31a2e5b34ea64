"""What all baselines share: inputs, masks, output and loss.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), D width of a turn's vectors,
H hidden, C classes.
"""

import torch

from ...base.losses import focal_loss
from ...base.modalities import MODALITIES
from ..modeling_conversation import ConversationOutput, ConversationPreTrainedModel
from ..turn_layers import ModalityInput, ModalityTurns
from ..turns import TurnLayout
from .configuration import BaselineConfig


class BaselineModel(ConversationPreTrainedModel):
    r"""
    Base class of the baselines, which define `heads`, `title` and `method`.

    Padding and absent modalities are ignored whatever they hold, NaN included; a learned vector replaces absent ones.
    """

    config_class = BaselineConfig
    tags = ("baseline",)

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        for name in config.modalities:
            width = getattr(config, MODALITIES[name].width)
            setattr(self, f"{name}_input", ModalityInput(width, config.feature_clip))

    def heads(self, turns: dict[str, ModalityTurns], layout: TurnLayout) -> tuple[torch.Tensor, ...]:
        """Logits (N, C) of each head from the turns by modality: the model's own, then those of `config.heads`."""
        raise NotImplementedError

    def turn_loss(self, heads: tuple[torch.Tensor, ...], labels: torch.Tensor, num_items) -> torch.Tensor:
        """Loss from the heads' logits (N, C) and the labels (N,): a sum over turns divided by `num_items`."""
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
    ) -> ConversationOutput:
        r"""
        Arguments and errors as in [`MisterEModel`]. A modality that the configuration does not name is not read.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings}
        real, masks = self.check_inputs(embeddings, attention_mask, {"speech": speech_mask, "text": text_mask})
        # A batch of padding alone must still take part in a distributed step: its turns are computed with weight 0.
        weight = real.any()
        layout = TurnLayout(real if weight else torch.ones_like(real))
        present = {name: layout.flatten(mask) for name, mask in masks.items()}
        main, *others = heads = self.heads(self.modality_turns(embeddings, present, layout), layout)
        loss = None
        if labels is not None:
            scored = layout.flatten(self.scored_labels(labels, real))
            loss = self.turn_loss(heads, scored, num_items_in_batch)

        def padded(rows: torch.Tensor) -> torch.Tensor:
            return layout.unflatten(rows * weight.to(rows.dtype))

        names = self.config.heads
        head_logits = {name: padded(rows) for name, rows in zip(names, others, strict=True)} if names else None
        return ConversationOutput(loss=loss, logits=padded(main), head_logits=head_logits)


def joined(turns: dict[str, ModalityTurns]) -> torch.Tensor:
    """Concatenated vectors of all modalities, the learned ones where a modality is absent: (N, D)."""
    return torch.cat([_filled(each) for each in turns.values()], dim=-1)


def _filled(turns: ModalityTurns) -> torch.Tensor:
    # absent or not: a parameter without a gradient would block the other processes
    absent = 0.0 if turns.absent is None else turns.absent
    return turns.vectors + absent * turns.null
