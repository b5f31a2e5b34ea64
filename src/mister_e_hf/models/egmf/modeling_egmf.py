"""EGMF: the experts of a dialogue's modalities guide a language model, which answers with an emotion or a score.

Built after the abstract of Qiao et al. 2026 (arXiv 2601.07565), whose equations and code are not public; pseudo tokens
and prompts follow MSE-Adapter (arXiv 2502.12478).

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), R turns that are asked about,
C classes, S targets, A possible answers, E experts, M modalities, P pseudo tokens, W width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import initialization
from transformers.utils import ModelOutput

from ...base.losses import answer_loss
from ...base.modalities import IGNORE_INDEX
from ..modeling_conversation import ConversationOutput
from ..turns import RealTurns, TurnLayout
from .answer_generation import written_answers
from .asked_turns import AskedTurns, ask
from .configuration_egmf import EgmfConfig
from .modeling_egmf_fusion import EgmfPreTrainedModel, ExpertFusion, FusedTurns
from .pseudo_tokens import PseudoTokens
from .stored_egmf import StoredEgmf

Transcripts = Sequence[Sequence[str | None]]


@dataclass
class EgmfOutput(ModelOutput):
    """
    Output of [`EgmfModel`]; zero at padding.

    Args:
        loss (`()`, when labels are given): the sum of the losses below.
        logits (`(B, T, C)`):
            log-likelihood of each label's answer, its end included; of a regression model the expected scores
            (B, T, S). In training with labels, zero at the turns without one, and None if the loss is that of the
            right answers alone: then no others are read.
        fusion_logits (`(B, T, C)` or `(B, T, S)`): of the head on the fusion; None without it.
        expert_weights (`(B, T, E)`): weight of each expert, in the order of `config.experts`.
        expert_modality_weights (`(B, T, E, M)`):
            weight of each modality within each expert, in the order of `config.modalities`.
        modality_weights (`(B, T, M)`): weight of each modality in the whole.
        answer_loss (`()`): negative log-likelihood of the right answers.
        fusion_loss (`()`): loss of the head on the fusion, with its weight; None without it.
        numeric_loss (`()`): loss of the expected scores, with its weight; None for classes.
        balance_loss (`()`): of the weights of the experts, with its weight; None without it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    fusion_logits: torch.Tensor | None = None
    expert_weights: torch.Tensor | None = None
    expert_modality_weights: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None
    answer_loss: torch.Tensor | None = None
    fusion_loss: torch.Tensor | None = None
    numeric_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None


class EgmfModel(StoredEgmf, EgmfPreTrainedModel):
    r"""
    EGMF: an emotion, or scores, for every turn of a dialogue, from the vectors of its modalities and its transcripts,
    without using who speaks. A language model reads the transcripts and, as pseudo tokens, what experts make of the
    vectors; each label's score is the log-likelihood of its word as the answer.

    Make a new one with [`EgmfModel.from_language_model`]. Padding and absent modalities are ignored whatever they
    hold, NaN included.
    """

    config_class = EgmfConfig
    title = "EGMF"
    method = (
        "EGMF, in which experts guide a language model by pseudo tokens, after the abstract of "
        "[Qiao et al. 2026](https://arxiv.org/abs/2601.07565)"
    )
    tags = ("mixture-of-experts", "language-model", "egmf")

    config: EgmfConfig

    def __init__(self, config: EgmfConfig, with_language_model: bool = True):
        r"""
        Args:
            config: with a `language_model_config`.
            with_language_model: False leaves the language model out, for one with weights to be put in.
        """
        super().__init__(config)
        self.fusion = ExpertFusion(config)
        if config.auxiliary_weight:
            self.dropout = nn.Dropout(config.dropout)
            self.head = nn.Linear(config.hidden_size, config.num_labels)
        if config.use_pseudo_tokens:
            self.pseudo_tokens = PseudoTokens(config.hidden_size, config.num_pseudo_tokens, self.width)
        self.make_language_model(with_language_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, PseudoTokens):
            initialization.ones_(module.scale)
            initialization.zeros_(module.places)

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
        transcripts: Transcripts | None = None,
    ) -> EgmfOutput:
        r"""
        Arguments and errors as in [`MisterEModel`], and `visual_embeddings` (B, T, Dv) with `visual_mask` (B, T) if
        the configuration has a width for them. A modality that `config.modalities` does not name is not read.

        Args:
            transcripts: a list of T strings for each dialogue, None where a turn has none; what it holds at padding is
                ignored. Without it, no turn has one.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns, fused = self.fuse(embeddings, attention_mask, masks)
        scored = None if labels is None else self.scored_rows(labels, turns)
        asked = self.asked_turns(turns, fused, transcripts, self._places(turns, scored))
        wanted = None if scored is None else self._answers_to(scored[asked.turns])
        right = wanted.clamp(min=0) if wanted is not None and self._reads_right_answers else None
        found = self.answer_likelihoods(asked, right)
        scores = self._scores(found) if right is None else None
        output = EgmfOutput(
            logits=None if scores is None else turns.padded(_at(asked.turns, scores, turns.layout)),
            expert_weights=turns.padded(fused.expert_weights),
            expert_modality_weights=turns.padded(fused.expert_modality_weights),
            modality_weights=turns.padded(fused.modality_weights),
        )
        head = self.in_label_unit(self.head(self.dropout(fused.states))) if self.config.auxiliary_weight else None
        if head is not None:
            output.fusion_logits = turns.padded(head)
        if scored is not None and wanted is not None:
            if weight := self.config.balance_weight:
                balance = self.balance_loss(fused.expert_weights, scored, turns.layout, num_items_in_batch)
                output.balance_loss = weight * balance
            self._add_losses(output, found, wanted, scores, head, scored, asked.turns, num_items_in_batch)
            if head is None and not self.config.use_pseudo_tokens:
                # a parameter without a gradient would block the other processes
                output.loss = cast(torch.Tensor, output.loss) + 0.0 * fused.states.sum()
        return output

    @torch.no_grad()
    def generate_answers(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        visual_embeddings: torch.Tensor | None = None,
        visual_mask: torch.Tensor | None = None,
        transcripts: Transcripts | None = None,
        constrained: bool = False,
    ) -> list[list[list[str]]]:
        r"""
        What the language model writes about each turn, to be read with `answers.parse`. It is a demonstration: the
        model is scored by its `logits`.

        Args:
            constrained:
                write the possible answer of the highest log-likelihood, found by a beam search; else, at each token,
                the most probable one of all.
            speech_embeddings, ..., transcripts: as in `forward`.

        Returns:
            for each dialogue a list of T texts, each a list of one for each target (S); empty at padding. A
            classification has one target.
        """
        embeddings = {"speech": speech_embeddings, "text": text_embeddings, "visual": visual_embeddings}
        masks = {"speech": speech_mask, "text": text_mask, "visual": visual_mask}
        turns, fused = self.fuse(embeddings, attention_mask, masks)
        found: list[list[list[str]]] = [[[] for _ in dialogue] for dialogue in turns.mask]
        if turns.weight:
            places = torch.arange(turns.layout.count, device=turns.mask.device)
            with self.prompts.uncounted():  # `forward` counts them
                asked = self.asked_turns(turns, fused, transcripts, places)
            language_model, rows = self.language_model, self.config.rows_per_forward
            texts = written_answers(language_model, self.answers, asked.prompts, asked.pseudo, rows, constrained)
            width = turns.mask.shape[1]
            for at, text in zip(turns.layout.on_host.place.tolist(), texts, strict=True):
                found[at // width][at % width] = text
        return found

    def _places(self, turns: RealTurns, scored: torch.Tensor | None) -> torch.Tensor:
        """Indices (R) of the turns that are asked about: all, but in training those with a label; at least one."""
        wanted = torch.ones(turns.layout.count, dtype=torch.bool, device=turns.mask.device)
        if not turns.weight:
            wanted[1:] = False
        elif self.training and scored is not None:
            is_scored = ~scored.isnan().all(-1) if scored.is_floating_point() else scored != IGNORE_INDEX
            wanted = is_scored if is_scored.any() else wanted & (torch.arange(len(wanted), device=wanted.device) == 0)
        return wanted.nonzero().squeeze(1)

    def asked_turns(
        self, turns: RealTurns, fused: FusedTurns, transcripts: Transcripts | None, places: torch.Tensor
    ) -> AskedTurns:
        """The prompts and pseudo tokens of the turns at these places (R) among the real ones."""
        prompts = ask(self.prompts, self.config.modalities, turns, transcripts, places.tolist())
        pseudo = None
        if self.config.use_pseudo_tokens:
            tokens = self.pseudo_tokens(fused.states)
            pseudo = tokens[_other_turns(turns.layout)[places] if self.config.shuffle_pseudo_tokens else places]
        return AskedTurns(places, prompts, pseudo)

    @property
    def _reads_right_answers(self) -> bool:
        """Whether the loss needs the right answers alone, as in training without a loss of the expected scores."""
        return self.training and not (self.config.task == "regression" and self.config.numeric_weight)

    def _answers_to(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (R), or scores (R, S) -> indices of the answers (R, S), -100 where there is none."""
        return self._nearest(labels) if self.config.task == "regression" else labels[:, None]

    def _scores(self, found: torch.Tensor) -> torch.Tensor:
        """Log-likelihoods (R, S, A) -> logits (R, C), or expected scores (R, S)."""
        if self.config.task == "classification":
            return found.squeeze(1)
        return found.softmax(-1) @ found.new_tensor(self.answers.values)

    def _add_losses(
        self,
        output: EgmfOutput,
        found: torch.Tensor,
        wanted: torch.Tensor,
        scores: torch.Tensor | None,
        head: torch.Tensor | None,
        labels: torch.Tensor,
        places: torch.Tensor,
        num_items: torch.Tensor | int | None,
    ):
        config, asked = self.config, labels[places]
        weights = self.class_weights(found) if config.task == "classification" else None
        output.answer_loss = answer_loss(found, wanted, weights, num_items)
        if config.task == "regression" and scores is not None:
            output.numeric_loss = config.numeric_weight * self.label_loss(scores, asked, num_items)
        if head is not None:
            output.fusion_loss = config.auxiliary_weight * self.label_loss(head, labels, num_items)
        output.loss = torch.stack([*self.loss_parts(output).values()]).sum()

    def _nearest(self, scores: torch.Tensor) -> torch.Tensor:
        """The index of the answer nearest to each score, -100 where it is NaN; in evaluation also beyond the grid."""
        if not self.training and (values := self.answers.values) is not None:
            scores = scores.clamp(values[0], values[-1])
        nearest = [
            IGNORE_INDEX if value != value else self.answers.nearest(value) for value in scores.flatten().tolist()
        ]
        return torch.tensor(nearest, device=scores.device).view(scores.shape)

    def loss_parts(self, output: EgmfOutput) -> dict[str, torch.Tensor]:
        kind = self.config.regression_loss if self.config.task == "regression" else "cross_entropy"
        parts = {
            kind: output.numeric_loss,
            "answer": output.answer_loss,
            f"fusion_{kind}": output.fusion_loss,
            "balance": output.balance_loss,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def view(self, output: EgmfOutput) -> ConversationOutput:
        head = output.fusion_logits
        return ConversationOutput(
            loss=output.loss,
            logits=output.logits,
            head_logits=None if head is None else {"fusion": head},
            expert_weights=output.expert_weights,
            modality_weights=output.modality_weights,
        )


def _at(places: torch.Tensor, rows: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
    """(R, ...) at these places -> (N, ...), zero elsewhere."""
    return rows.new_zeros(layout.count, *rows.shape[1:]).index_copy(0, places, rows)


def _other_turns(layout: TurnLayout) -> torch.Tensor:
    """For each turn (N), another of its dialogue: half a dialogue later, around its end."""
    lengths = layout.lengths[layout.dialogue]
    own = torch.arange(layout.count, device=layout.index.device)
    return own - layout.position + (layout.position + lengths // 2) % lengths
