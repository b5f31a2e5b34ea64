"""What all baselines share: inputs, masks, output and loss.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), D width of a turn's vectors,
H hidden, C classes.
"""

import torch

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
    reads_host = True

    def __init__(self, config: BaselineConfig):
        super().__init__(config)
        for name in config.modalities:
            setattr(self, f"{name}_input", ModalityInput(config.width(name), config.feature_clip))

    def heads(self, turns: dict[str, ModalityTurns], layout: TurnLayout) -> tuple[torch.Tensor, ...]:
        """
        Logits (N, C) of each head from the turns by modality: the model's own, then those of `config.heads`. For
        scores (N, S), in units of the targets' deviation from their mean.
        """
        raise NotImplementedError

    def turn_loss(self, heads: tuple[torch.Tensor, ...], labels: torch.Tensor, num_items) -> torch.Tensor:
        """
        Loss from the heads' logits (N, C) or scores (N, S) and the labels as rows, a sum over what is scored divided
        by `num_items`.
        """
        return self.label_loss(heads[0], labels, num_items)

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        visual_embeddings: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
    ) -> ConversationOutput:
        r"""
        Arguments and errors as in [`MisterEModel`], and `visual_embeddings` (B, T, Dv) with `visual_mask` (B, T) if
        the configuration has a width for them. A modality that `config.modalities` does not name is not read.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns = self.real_turns(embeddings, attention_mask, masks)
        computed = self.heads(self.modality_turns(embeddings, turns.present_on_host, turns.layout), turns.layout)
        main, *others = heads = tuple(self.in_label_unit(rows) for rows in computed)
        loss = None
        if labels is not None:
            scored = self.scored_rows(labels, turns)
            loss = self.turn_loss(heads, scored, num_items_in_batch)
        names = self.config.heads
        head_logits = {name: turns.padded(rows) for name, rows in zip(names, others, strict=True)} if names else None
        return ConversationOutput(loss=loss, logits=turns.padded(main), head_logits=head_logits)


def joined(turns: dict[str, ModalityTurns]) -> torch.Tensor:
    """Concatenated vectors of all modalities, the learned ones where a modality is absent: (N, D)."""
    return torch.cat([_filled(each) for each in turns.values()], dim=-1)


def _filled(turns: ModalityTurns) -> torch.Tensor:
    # absent or not: a parameter without a gradient would block the other processes
    absent = 0.0 if turns.absent is None else turns.absent
    return turns.vectors if turns.null is None else turns.vectors + absent * turns.null
