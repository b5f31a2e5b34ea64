"""EMO-Caps: primary capsules of the modalities, alone and together, routed to a capsule of each class, turn by turn.

No paper on EMO-Caps could be found. This model follows a description of it (capsules, cross-modal attention over
speech, text and video, self-supervised pre-training) and is built from the published parts that `emoformer.py` and
`capsules.py` name.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), C classes, S targets,
K primary capsules, P parents: C, or for scores S times the anchors of a target.
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization
from transformers.utils import ModelOutput

from ...base.errors import InputError
from ...base.losses import margin_loss
from ..modeling_conversation import ConversationOutput, ConversationPreTrainedModel
from ..turn_layers import ModalityInput
from ..turns import DialogueCache, NextTurns
from .capsules import CapsuleHead, PrimaryCapsules
from .configuration_emo_caps import EmoCapsConfig
from .emoformer import EmoCapsBackbone

# The anchors of a target reach from -3 to 3 standard deviations.
_ANCHOR_RANGE = 3.0


@dataclass
class EmoCapsOutput(ModelOutput):
    """
    Output of [`EmoCapsModel`]; zero at padding.

    Args:
        loss (`()`, when labels are given): cross-entropy or margin loss; for scores the regression loss.
        logits (`(B, T, C)`): scores before the softmax; of a regression model its predicted scores (B, T, S).
        routing_weights (`(B, T, K, P)`):
            how each primary capsule, in the order of `config.capsules`, shares itself among the parents; they sum to
            one over the classes, or over the anchors of a target.
        capsule_activations (`(B, T, K)`): activation of each primary capsule, exactly 0 where a modality is absent.
        capsule_weights (`(B, T, K)`): share of each primary capsule in the prediction.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    routing_weights: torch.Tensor | None = None
    capsule_activations: torch.Tensor | None = None
    capsule_weights: torch.Tensor | None = None


class EmoCapsModel(ConversationPreTrainedModel):
    r"""
    EMO-Caps: an emotion, or scores, for every turn of a dialogue from the vectors of its modalities, without using who
    speaks.

    Padding and absent modalities are ignored whatever they hold, NaN included: the capsules of an absent modality have
    activation 0. A turn without any gets the same answer wherever it is, unless `config.context` is `"after"`.
    """

    config_class = EmoCapsConfig
    title = "EMO-Caps"
    method = (
        "EMO-Caps, built after a description, since no paper of this name is known: capsules, with the routing of "
        "[Tsai et al. 2020](https://arxiv.org/abs/2004.14198) and the Emoformer of "
        "[Li et al. 2022](https://arxiv.org/abs/2203.13504)"
    )
    tags = ("capsules", "emo-caps")
    reads_host = True

    config: EmoCapsConfig

    def __init__(self, config: EmoCapsConfig):
        super().__init__(config)
        self.backbone = EmoCapsBackbone(config)
        self.capsules = PrimaryCapsules(config)
        self.head = CapsuleHead(config)
        self._removed: frozenset[str] = frozenset()
        self.post_init()

    def input_of(self, modality: str) -> ModalityInput | None:
        return self.backbone.input_of(modality)

    @classmethod
    def is_pretrained(cls, name: str) -> bool:
        return name.startswith("backbone.")

    def left_out_parts(self) -> Collection[str]:
        return [f"backbone.{part}" for part in self.backbone.left_out_parts()]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CapsuleHead):
            initialization.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
            initialization.zeros_(module.bias)
            if module.readout is not None and module.prior is not None:
                bound = module.readout.shape[1] ** -0.5
                initialization.uniform_(module.readout, -bound, bound)
                initialization.zeros_(module.prior)

    @contextlib.contextmanager
    def without_capsules(self, names: Collection[str]) -> Iterator[None]:
        r"""
        Leave out primary capsules for a while: their activations are 0, as if the model did not have them.

        Args:
            names: of `config.capsules`.

        Raises:
            InputError: if the model has no capsule of that name.
        """
        if unknown := sorted(set(names) - set(self.config.capsules)):
            raise InputError(f"Unknown capsule '{unknown[0]}'; expected one of {', '.join(self.config.capsules)}")
        before = self._removed
        self._removed = before | set(names)
        try:
            yield
        finally:
            self._removed = before

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past: DialogueCache | None = None,
        visual_embeddings: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
    ) -> EmoCapsOutput:
        r"""
        Arguments and errors as in [`MisterEModel`], and `visual_embeddings` (B, T, Dv) with `visual_mask` (B, T) if
        the configuration has a width for them. A modality that `config.modalities` does not name is not read.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns = self.real_turns(embeddings, attention_mask, masks, past)
        layout, present = turns.layout, turns.present
        states = self.backbone(self.modality_turns(embeddings, turns.present_on_host, layout), present, layout)
        poses, activations = self.capsules(states, present)
        if self._removed:
            kept = torch.tensor([name not in self._removed for name in self.config.capsules], device=poses.device)
            activations = activations.masked_fill(~kept[:, None], 0.0)
        parents, coefficients = self.head(poses, activations, layout)
        logits = self.in_label_unit(self._scores(parents))

        loss = None
        if labels is not None:
            scored = self.scored_rows(labels, turns)
            loss = self._loss(logits, scored, num_items_in_batch)

        if isinstance(layout, NextTurns) and past is not None:
            past.add(layout)

        return EmoCapsOutput(
            loss=loss,
            logits=turns.padded(logits),
            routing_weights=turns.padded(coefficients.flatten(2).transpose(0, 1)),
            capsule_activations=turns.padded(activations.transpose(0, 1)),
            capsule_weights=turns.padded(self._shares(parents, coefficients, activations)),
        )

    def _scores(self, parents: torch.Tensor) -> torch.Tensor:
        """Logits of the parents (N, S, C) -> logits (N, C), or scores (N, S) in units of the targets' deviation."""
        if self.config.task == "classification":
            return parents.squeeze(1)
        anchors = torch.linspace(
            -_ANCHOR_RANGE, _ANCHOR_RANGE, parents.shape[-1], device=parents.device, dtype=parents.dtype
        )
        return parents.softmax(-1) @ anchors

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items) -> torch.Tensor:
        config = self.config
        if config.loss == "cross_entropy":
            return self.label_loss(logits, labels, num_items)
        margins = config.margin_positive, config.margin_negative, config.margin_weight
        return margin_loss(logits.sigmoid(), labels, *margins, self.class_weights(logits), num_items)

    def _shares(self, parents: torch.Tensor, coefficients: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """
        Share of each primary capsule in the prediction (N, K): r_ij a_i of the predicted class j divided by their sum;
        for scores r_ij a_i is the mean over the anchors j, each weighted with its probability, summed over targets.
        """
        with torch.no_grad():
            if self.config.task == "classification":
                weights = torch.zeros_like(parents).scatter(-1, parents.argmax(-1, keepdim=True), 1.0)
            else:
                weights = parents.softmax(-1)
            parts = (coefficients * weights).sum((-1, -2)) * activations
            total = parts.sum(0)
            return torch.where(total > 0, parts / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0).transpose(0, 1)

    def view(self, output: EmoCapsOutput) -> ConversationOutput:
        return ConversationOutput(loss=output.loss, logits=output.logits, capsule_weights=output.capsule_weights)
