"""The stage-2 conversation model: speech, text and fusion experts over a dialogue's turns, mixed by a gate per turn.

Dutta, Balaji and Ganapathy, "A Mixture-of-Experts Model for Multimodal Emotion Recognition in Conversations", Computer
Speech & Language 100, 2026, 101965 (arXiv 2602.23300).

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), Ds and Dt embedding widths,
H hidden, A attention width, C classes, S targets, E experts in the order speech, text, fusion.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from ...base.losses import focal_terms, regression_terms
from ..modeling_conversation import ConversationOutput, ConversationPreTrainedModel
from ..turn_layers import ModalityInput, ModalityTurns, TurnConvolution, TurnLinear
from ..turns import DialogueCache, NextTurns, TurnLayout
from .co_attention import CoAttentionLayer
from .configuration_mister_e import EXPERTS, MisterEConfig

# Old name of the base class.
MisterEPreTrainedModel = ConversationPreTrainedModel

CITATION = """@article{dutta2026mistere,
  title = {A Mixture-of-Experts Model for Multimodal Emotion Recognition in Conversations},
  author = {Dutta, Soumya and Balaji, Smruthi and Ganapathy, Sriram},
  journal = {Computer Speech \\& Language},
  volume = {100},
  pages = {101965},
  year = {2026}
}"""


@dataclass
class MisterEOutput(ModelOutput):
    """
    Output of [`MisterEModel`]; zero at padding.

    Args:
        loss (`()`, when labels are given):
            focal loss of the mixture and of each expert, added up; for scores the regression loss.
        logits (`(B, T, C)`):
            the mixture's scores before the softmax; of a regression model its predicted scores (B, T, S), the
            gate-weighted mean of the experts'.
        expert_logits (`(B, T, E, C)` or `(B, T, E, S)`): the same of each expert.
        gate_weights (`(B, T, E)`): the gate's weights; they sum to one, and an absent modality's expert has exactly 0.
        speech_states, text_states (`(B, T, H)`): final states of the fusion expert, None in a model without
            it.
        speech_mask, text_mask (`(B, T)`, bool): where the modality counted as present, after modality dropout.
        focal_losses (`(1 + E,)`, when labels are given): the parts of `loss`, of the mixture and of each expert,
            without a gradient; for scores their regression losses.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    gate_weights: torch.Tensor | None = None
    speech_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    speech_mask: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    focal_losses: torch.Tensor | None = None


class ContextExpert(nn.Module):
    """One modality in its context: parallel convolutions, a GRU, a linear skip from the input and a head."""

    def __init__(self, config: MisterEConfig, embedding_dim: int):
        super().__init__()
        hidden = config.hidden_size
        self.skip = TurnLinear(embedding_dim, hidden)
        self.dropout = nn.Dropout(config.context_dropout)
        self.head = nn.Linear(hidden, config.num_labels)
        self.has_context = config.context_layer
        if self.has_context:
            self.convolutions = nn.ModuleList(
                TurnConvolution(embedding_dim, hidden, size, config.causal) for size in config.context_kernel_sizes
            )
            self.gru = nn.GRU(
                hidden,
                hidden if config.causal else hidden // 2,
                num_layers=config.context_num_layers,
                bidirectional=not config.causal,
                batch_first=True,
                dropout=config.context_dropout if config.context_num_layers > 1 else 0.0,
            )

    def forward(self, turns: ModalityTurns, layout: TurnLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and the states (N, H) that they are read off."""
        states = self.states(turns, layout)
        return self.head(self.dropout(states)), states

    def states(self, turns: ModalityTurns, layout: TurnLayout) -> torch.Tensor:
        """The states of the turns (N, H)."""
        states = self.skip(turns)
        if self.has_context:
            local = sum(F.relu(convolution(turns, layout)) for convolution in self.convolutions)
            states = states + layout.recur(self.gru, self.dropout(local))
        return states


class FusionExpert(nn.Module):
    """Both modalities together: co-attention, or concatenation of one projection each."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden = config.hidden_size
        co_attention = config.fusion == "co_attention"
        self.speech_projection = TurnLinear(config.speech_embedding_dim, hidden)
        self.text_projection = TurnLinear(config.text_embedding_dim, hidden)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.layers = nn.ModuleList(CoAttentionLayer(config) for _ in range(config.fusion_num_layers * co_attention))
        self.speech_skip = TurnLinear(config.speech_embedding_dim, hidden) if co_attention else None
        self.text_skip = TurnLinear(config.text_embedding_dim, hidden) if co_attention else None
        self.norm = nn.LayerNorm(2 * hidden, eps=config.layer_norm_eps)
        self.dense = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(
        self, speech: ModalityTurns, text: ModalityTurns, context: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        `context`: states (N, H) by modality to begin with beside the vectors. Logits (N, C), final speech and text
        states (N, H).
        """
        speech_states, text_states = self.states(speech, text, context, layout)
        fused = self.norm(torch.cat([text_states, speech_states], dim=-1))
        return self.head(F.relu(self.dense(fused))), speech_states, text_states

    def states(
        self, speech: ModalityTurns, text: ModalityTurns, context: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The final speech and text states, (N, H) each; `context` as for `forward`."""
        speech_states, text_states = self.speech_projection(speech), self.text_projection(text)
        if context:
            speech_states = speech_states + context.get("speech", 0.0)
            text_states = text_states + context.get("text", 0.0)
        speech_states, text_states = self.dropout(speech_states), self.dropout(text_states)
        for layer in self.layers:
            speech_states, text_states = layer(speech_states, text_states, layout)
        if self.speech_skip is not None and self.text_skip is not None:
            speech_states = speech_states + self.speech_skip(speech)
            text_states = text_states + self.text_skip(text)
        return speech_states, text_states


class ExpertGate(nn.Module):
    """Weights of the experts at each turn from their logits; an expert that is not available gets exactly 0."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        num_experts = len(config.experts)
        self.learned = config.gate == "learned" and num_experts > 1
        self.temperature = config.gate_temperature
        if self.learned:
            self.dense = nn.Linear(num_experts * config.num_labels, config.gate_hidden_size)
            self.output = nn.Linear(config.gate_hidden_size, num_experts)

    def forward(self, expert_logits: torch.Tensor, available: torch.Tensor | None) -> torch.Tensor:
        """
        expert_logits (N, E, C) or (N, E, S), available (N, E) with at least one true in each row, None where all are
        -> (N, E)
        """
        if not self.learned:
            available = torch.ones_like(expert_logits[..., 0]) if available is None else available
            return available.to(expert_logits) / available.sum(1, keepdim=True)
        seen = expert_logits if available is None else expert_logits.masked_fill(~available[..., None], 0.0)
        scores = self.output(F.relu(self.dense(seen.flatten(1)))) / self.temperature
        return (scores if available is None else scores.masked_fill(~available, -torch.inf)).softmax(-1)


class MisterEModel(ConversationPreTrainedModel):
    r"""
    MiSTER-E, stage 2: an emotion, or scores, for every turn of a dialogue from its speech and text vectors, without
    using who speaks.

    Padding and absent modalities are ignored whatever they hold, NaN included. At a turn where no existing expert's
    modality is present (both absent and no fusion expert), all experts count: they still see the neighbouring turns.
    """

    config_class = MisterEConfig
    title = "MiSTER-E"
    method = "MiSTER-E ([Dutta, Balaji and Ganapathy 2026](https://arxiv.org/abs/2602.23300))"
    citation = CITATION
    tags = ("mixture-of-experts", "mister-e")
    reads_host = True
    # Both compare turns or experts of the whole step, across processes: MisterETrainer computes them.
    loss_term_weights = {"contrastive": "contrastive_weight", "consistency": "consistency_weight"}

    def __init__(self, config: MisterEConfig):
        super().__init__(config)
        has_fusion = "fusion" in config.experts
        clip = config.feature_clip
        if has_fusion or "speech" in config.experts:
            self.speech_input = ModalityInput(config.speech_embedding_dim, clip)
        if has_fusion or "text" in config.experts:
            self.text_input = ModalityInput(config.text_embedding_dim, clip)
        if "speech" in config.experts:
            self.speech_expert = ContextExpert(config, config.speech_embedding_dim)
        if "text" in config.experts:
            self.text_expert = ContextExpert(config, config.text_embedding_dim)
        if has_fusion:
            self.fusion_expert = FusionExpert(config)
        self.gate = ExpertGate(config)
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
    ) -> MisterEOutput:
        r"""
        Args:
            speech_embeddings (`(B, T, Ds)`), text_embeddings (`(B, T, Dt)`):
                one vector per turn. One of the two may be None: it is then absent at every turn.
            attention_mask (`(B, T)`): true (or 1) where the turn is real; by default everywhere. Padding may be
                anywhere.
            speech_mask, text_mask (`(B, T)`): true where the modality was given; by default at every real turn.
            labels (`(B, T)`):
                class indices, -100 where nothing is to be scored; for a regression model scores (B, T, S), NaN there.
            num_items_in_batch: scored turns, or scores, of the whole optimizer step, the divisor of the loss; by
                default this batch's.
            past: past turns of one dialogue (B = 1), for a causal model; the given turns follow them and are added.
            visual_embeddings, visual_mask: not taken; given vectors raise an error that names the models of video.

        Raises:
            ValueError: if no embeddings are given, or of video, or their shapes, the masks' and the configuration's
                disagree.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns = self.real_turns(embeddings, attention_mask, masks, past)
        layout, present, seen = turns.layout, turns.present, dict(turns.present_on_host)
        if self.training and self.config.modality_dropout:
            for name, mask in seen.items():
                seen[name] = mask & (torch.rand(layout.count) >= self.config.modality_dropout)
            present = {name: layout.moved(mask) for name, mask in seen.items()}
        modalities = self.modality_turns(embeddings, seen, layout)

        logits_of_experts, context, speech_states, text_states = [], {}, None, None
        for name in ("speech", "text"):
            if name in self.config.experts:
                logits, context[name] = getattr(self, f"{name}_expert")(modalities[name], layout)
                logits_of_experts.append(logits)
        if "fusion" in self.config.experts:
            logits, speech_states, text_states = self.fusion_expert(
                modalities["speech"], modalities["text"], context if self.config.fusion_context else {}, layout
            )
            logits_of_experts.append(logits)
        expert_logits = torch.stack(logits_of_experts, dim=1)  # [N, E, C]
        available = expert_availability(self.config.experts, seen["speech"], seen["text"])
        all_available = bool(available.all())
        both = torch.stack([available, available | ~available.any(1, keepdim=True)])
        available, available_to_gate = layout.moved(both).unbind()
        gate_weights = self.gate(expert_logits, None if all_available else available_to_gate)
        # the gate compares the experts in one unit, whatever the targets' units are
        expert_logits = self.in_label_unit(expert_logits)
        logits = (gate_weights[..., None] * expert_logits).sum(1)

        loss, losses = None, None
        if labels is not None:
            scored = self.scored_rows(labels, turns)
            terms = self._loss_terms(logits, expert_logits, available, scored, num_items_in_batch)
            loss, losses = sum(terms[1:], terms[0]), torch.stack(terms).detach()

        if isinstance(layout, NextTurns) and past is not None:
            past.add(layout)

        return MisterEOutput(
            loss=loss,
            logits=turns.padded(logits),
            expert_logits=turns.padded(expert_logits),
            gate_weights=turns.padded(gate_weights),
            speech_states=None if speech_states is None else turns.padded(speech_states),
            text_states=None if text_states is None else turns.padded(text_states),
            speech_mask=turns.padded(present["speech"]),
            text_mask=turns.padded(present["text"]),
            focal_losses=losses,
        )

    def _loss_terms(self, logits, expert_logits, available, labels, num_items) -> list[torch.Tensor]:
        config = self.config
        if config.task == "regression":
            kind, delta = config.regression_loss, config.huber_delta
            return regression_terms(logits, expert_logits, available, labels, kind, delta, num_items)
        weights = self.class_weights(logits)
        return focal_terms(logits, expert_logits, available, labels, config.focal_gamma, weights, num_items)

    @classmethod
    def is_pretrained(cls, name: str) -> bool:
        return super().is_pretrained(name) and not name.startswith(("fusion_expert.norm.", "fusion_expert.dense."))

    def left_out_parts(self) -> Collection[str]:
        parts = {*(f"{name}_expert" for name in EXPERTS), "speech_input", "text_input"}
        return parts - {name for name, _ in self.named_children()}

    def view(self, output: MisterEOutput) -> ConversationOutput:
        assert output.expert_logits is not None
        experts = enumerate(self.config.heads)
        return ConversationOutput(
            loss=output.loss,
            logits=output.logits,
            head_logits={name: output.expert_logits[..., number, :] for number, name in experts},
            gate_weights=output.gate_weights,
        )

    def loss_parts(self, output: MisterEOutput) -> dict[str, torch.Tensor]:
        kind = self.config.regression_loss if self.config.task == "regression" else "focal"
        names = [f"{name}_{kind}" for name in ("mixture", *self.config.heads)]
        assert output.focal_losses is not None
        return dict(zip(names, output.focal_losses, strict=True))


def expert_availability(
    experts: list[str] | tuple[str, ...], speech_mask: torch.Tensor, text_mask: torch.Tensor
) -> torch.Tensor:
    """Which experts have their modality at each turn: masks (...) -> (..., E). The fusion expert always counts."""
    masks = {"speech": speech_mask, "text": text_mask, "fusion": torch.ones_like(speech_mask)}
    return torch.stack([masks[name] for name in experts], dim=-1)
