"""EGMF's fusion: experts of local, cross-modal and global context and a hierarchical gate, turn by turn.

After the abstract of Qiao, Xu, Li and Liu, "A Unified Framework for Emotion Recognition and Sentiment Analysis via
Expert-Guided Multimodal Fusion with Large Language Models", arXiv 2601.07565, which names the three experts and the
gate. Their equations could not be read; those here are the package's own.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), E experts, M modalities,
H hidden, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization
from transformers.utils import ModelOutput

from ...base.modalities import IGNORE_INDEX
from ..modeling_conversation import ConversationOutput, ConversationPreTrainedModel
from ..turn_layers import ModalityInput, ModalityTurns, TurnLinear
from ..turn_transformer import sinusoidal_positions
from ..turns import DialogueCache, NextTurns, RealTurns, TurnLayout
from .configuration_egmf_fusion import EgmfFusionConfig
from .experts import EXPERT_LAYERS, LocalExpert, ModalityProducts, TokenRows
from .hierarchical_gate import ExpertGate, HierarchicalGate, ModalityGate, balance_loss


class FusedTurns(NamedTuple):
    r"""
    What the fusion computes of the real turns.

    Args:
        states (`(N, H)`): the fused vector F.
        expert_weights (`(N, E)`): of each expert, in the order of `config.experts`; they sum to one.
        expert_modality_weights (`(N, E, M)`): of each modality within each expert; exactly 0 where it is absent.
        modality_weights (`(N, M)`): of each modality in the whole; the sum over the experts of both weights.

    Where a turn has no modality, all weights are 0.
    """

    states: torch.Tensor
    expert_weights: torch.Tensor
    expert_modality_weights: torch.Tensor
    modality_weights: torch.Tensor


class ExpertFusion(nn.Module):
    """The inputs of the modalities, the experts and the gate. The vector of an absent modality is never read."""

    def __init__(self, config: EgmfFusionConfig):
        super().__init__()
        self.names, hidden = tuple(config.modalities), config.hidden_size
        for name in self.names:
            setattr(self, f"{name}_input", ModalityInput(config.width(name), config.feature_clip, False))
        self.projections = nn.ModuleDict({name: TurnLinear(config.width(name), hidden) for name in self.names})
        self.projection_norm = nn.LayerNorm(hidden)
        self.modality_tokens = nn.Parameter(torch.empty(len(self.names), hidden))
        self.turn_token = nn.Parameter(torch.empty(hidden))
        self.dropout = nn.Dropout(config.dropout)
        self.experts = nn.ModuleDict({name: EXPERT_LAYERS[name](config) for name in config.experts})
        self.gate = HierarchicalGate(config)
        self.norm = nn.LayerNorm(hidden)

    def input_of(self, modality: str) -> ModalityInput | None:
        """The layer that standardises the vectors of a modality; None if they are not read."""
        return getattr(self, f"{modality}_input", None)

    def forward(
        self, turns: Mapping[str, ModalityTurns], present: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> FusedTurns:
        """`turns` by modality, standardised by its input layer; `present` by modality (N,)."""
        tokens = self.tokens(turns, torch.stack([present[name] for name in self.names], dim=1), layout)
        count = tokens.present.sum(1, keepdim=True).clamp(min=1)
        mean = tokens.modalities.sum(1) / count
        states = torch.stack([expert(tokens, layout) for expert in self.experts.values()])
        fused, experts, within = self.gate(states, tokens.present, mean, tokens.turn)
        total = torch.einsum("ne,nem->nm", experts, within)
        return FusedTurns(self.norm(fused + tokens.turn), experts, within, total)

    def tokens(self, turns: Mapping[str, ModalityTurns], present: torch.Tensor, layout: TurnLayout) -> TokenRows:
        """What the experts read; `present` (N, M)."""
        projected = torch.stack([self.projections[name](turns[name]) for name in self.names], dim=1)
        rows = self.dropout(self.projection_norm(projected)) + self.modality_tokens
        rows = rows.masked_fill(~present[..., None], 0.0)
        positions = sinusoidal_positions(layout, rows.shape[-1], rows)
        return TokenRows(rows, present, self.turn_token + positions, positions)


@dataclass
class EgmfFusionOutput(ModelOutput):
    """
    Output of [`EgmfFusionModel`]; zero at padding.

    Args:
        loss (`()`, when labels are given): cross-entropy, or for scores the regression loss; plus the balance loss.
        logits (`(B, T, C)`): scores before the softmax; of a regression model its predicted scores (B, T, S).
        expert_weights (`(B, T, E)`): weight of each expert, in the order of `config.experts`.
        expert_modality_weights (`(B, T, E, M)`):
            weight of each modality within each expert, in the order of `config.modalities`.
        modality_weights (`(B, T, M)`): weight of each modality in the whole.
        states (`(B, T, H)`): the fused vectors, which the head reads.
        balance_loss (`()`): the balance loss with its weight, which is part of the loss; None without one.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    expert_weights: torch.Tensor | None = None
    expert_modality_weights: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None
    states: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None


class EgmfPreTrainedModel(ConversationPreTrainedModel):
    """Base class of the models that hold an [`ExpertFusion`] as `fusion`."""

    reads_host = True

    config: EgmfFusionConfig
    fusion: ExpertFusion

    def input_of(self, modality: str) -> ModalityInput | None:
        return self.fusion.input_of(modality)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ExpertFusion):
            initialization.normal_(module.modality_tokens, std=0.02)
            initialization.normal_(module.turn_token, std=0.02)
        elif isinstance(module, LocalExpert):
            bound = len(module.taps) ** -0.5
            initialization.uniform_(module.taps, -bound, bound)
        elif isinstance(module, ModalityProducts):
            bound = module.weight.shape[-1] ** -0.5
            initialization.uniform_(module.weight, -bound, bound)
        elif isinstance(module, ModalityGate):
            bound = (2 * module.weight.shape[-1]) ** -0.5
            initialization.uniform_(module.weight, -bound, bound)
            initialization.uniform_(module.score, -bound, bound)
        elif isinstance(module, ExpertGate):
            initialization.zeros_(module.weight)
            initialization.zeros_(module.bias)

    def fuse(
        self,
        embeddings: Mapping[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        masks: Mapping[str, torch.Tensor | None],
        past: DialogueCache | None = None,
    ) -> tuple[RealTurns, FusedTurns]:
        r"""
        The real turns of a batch and what the fusion makes of them, with the past turns of a stream.

        Args:
            embeddings, masks: by modality: (B, T, D) and (B, T), as `forward` takes them.
        """
        turns = self.real_turns(embeddings, attention_mask, masks, past)
        fused = self.fusion(
            self.modality_turns(embeddings, turns.present_on_host, turns.layout), turns.present, turns.layout
        )
        if isinstance(turns.layout, NextTurns) and past is not None:
            past.add(turns.layout)
        return turns, fused

    def balance_loss(
        self,
        expert_weights: torch.Tensor,
        labels: torch.Tensor,
        layout: TurnLayout,
        num_items: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """[`balance_loss`] of the experts' weights (N, E), over the turns that have a label (N,) or scores (N, S)."""
        regression = self.config.task == "regression"
        scored = (~labels.isnan()).sum(-1) if regression else labels != IGNORE_INDEX
        return balance_loss(expert_weights, scored, layout.dialogue, scored.sum() if num_items is None else num_items)


class EgmfFusionModel(EgmfPreTrainedModel):
    r"""
    EGMF's fusion with a head: an emotion, or scores, for every turn of a dialogue from the vectors of its modalities,
    without using who speaks and without a language model.

    Padding and absent modalities are ignored whatever they hold, NaN included: an absent modality weighs exactly 0.
    """

    config_class = EgmfFusionConfig
    title = "EGMF fusion"
    method = (
        "the fusion of EGMF without its language model: three experts and a hierarchical gate, after the abstract of "
        "[Qiao et al. 2026](https://arxiv.org/abs/2601.07565)"
    )
    tags = ("mixture-of-experts", "egmf")

    def __init__(self, config: EgmfFusionConfig):
        super().__init__(config)
        self.fusion = ExpertFusion(config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

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
    ) -> EgmfFusionOutput:
        r"""
        Arguments and errors as in [`MisterEModel`], and `visual_embeddings` (B, T, Dv) with `visual_mask` (B, T) if
        the configuration has a width for them. A modality that `config.modalities` does not name is not read.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns, fused = self.fuse(embeddings, attention_mask, masks, past)
        logits = self.in_label_unit(self.head(self.dropout(fused.states)))
        loss = balance = None
        if labels is not None:
            scored = self.scored_rows(labels, turns)
            loss = self.label_loss(logits, scored, num_items_in_batch)
            if weight := self.config.balance_weight:
                balance = weight * self.balance_loss(fused.expert_weights, scored, turns.layout, num_items_in_batch)
                loss = loss + balance
        return EgmfFusionOutput(
            loss=loss,
            balance_loss=balance,
            logits=turns.padded(logits),
            expert_weights=turns.padded(fused.expert_weights),
            expert_modality_weights=turns.padded(fused.expert_modality_weights),
            modality_weights=turns.padded(fused.modality_weights),
            states=turns.padded(fused.states),
        )

    def view(self, output: EgmfFusionOutput) -> ConversationOutput:
        return ConversationOutput(
            loss=output.loss,
            logits=output.logits,
            expert_weights=output.expert_weights,
            modality_weights=output.modality_weights,
        )

    def loss_parts(self, output: EgmfFusionOutput) -> dict[str, torch.Tensor]:
        if output.loss is None or output.balance_loss is None:
            return {}
        kind = self.config.regression_loss if self.config.task == "regression" else "cross_entropy"
        return {kind: output.loss - output.balance_loss, "balance": output.balance_loss}
