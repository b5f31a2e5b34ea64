"""Base class of all conversation models: checks of inputs, initial weights, common view of outputs.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), C classes, E heads beside the
main one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization
from transformers.utils import ModelOutput

from ..base.devices import moved
from ..base.errors import InputError
from ..base.fitted_statistics import FittedStatistics
from ..base.losses import focal_loss, regression_loss
from ..base.modalities import IGNORE_INDEX, MODALITIES
from ..base.target_scale import TargetScale
from .configuration_conversation import ConversationConfig
from .stored_models import StoredModel
from .turn_layers import ModalityInput, ModalityTurns, TurnAttention, TurnConvolution
from .turns import DialogueCache, RealTurns, TurnLayout


@dataclass
class ConversationOutput(ModelOutput):
    """
    The common view of a conversation model's output, read by name from its own; see
    [`ConversationPreTrainedModel.view`].

    Args:
        loss (`()`, when labels are given): the model's own loss.
        logits (`(B, T, C)`):
            scores of the main head before the softmax; of a regression model the predicted scores (B, T, S), in the
            labels' unit, and so are `head_logits`. None in training where the loss reads the right answers alone.
        head_logits (`dict[str, (B, T, C)]`): scores of each further head, in the order of `config.heads`; None without
            any.
        gate_weights (`(B, T, E)`): weights of the heads, in the order of `config.heads`; None without a gate.
        capsule_weights (`(B, T, Kp)`):
            share of each primary capsule in the prediction, in the order of `config.capsules`; they sum to one, or are
            all 0 where a turn has no modality. None without capsules.
        expert_weights (`(B, T, E)`):
            weights of the experts inside the model, in the order of `config.fusion_experts`; they sum to one, or are
            all 0 where a turn has no modality. None without such.
        modality_weights (`(B, T, M)`):
            weights of the modalities, in the order of `config.weighed_modalities`; an absent one has exactly 0. None
            if the model does not weigh them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    head_logits: dict[str, torch.Tensor] | None = None
    gate_weights: torch.Tensor | None = None
    capsule_weights: torch.Tensor | None = None
    expert_weights: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None


class ConversationPreTrainedModel(StoredModel):
    r"""
    Base class of conversation models: an emotion, or scores, for every turn of a dialogue from the vectors of its
    modalities, without using who speaks.

    A subclass takes `<modality>_embeddings` and `<modality>_mask` of each of its modalities, `attention_mask`,
    `labels` and `num_items_in_batch` in its `forward`, by these names, and keeps a [`ModalityInput`] as
    `<modality>_input`, or overrides `input_of`. With `config.reads_transcripts` it also takes `transcripts`, for each
    dialogue a list of strings, None at padding and where a turn has no transcript.

    With `config.task == "regression"` there is a [`TargetScale`] `target_scale`. What a head computes becomes scores
    by `in_label_unit`, and `label_loss` is the loss of both tasks.

    Attributes:
        title: name of the method, for reports (`"MiSTER-E"`).
        method: the same in a sentence of the model card, with a link to the paper.
        citation: BibTeX entry of the paper for the model card; empty to leave it out.
        tags: tags of the model card.
        checkpoint_files: glob patterns of what its checkpoint folder holds beside configuration, weights, code and
            encoders.
        reads_host:
            whether `forward` takes masks and labels that are on the host, where the embeddings are on an accelerator,
            as it does where they go through `real_turns` and `scored_rows` alone. The trainer then leaves them there.
        loss_term_weights: by the name of each loss term beside the output's `loss`, the field of the training
            arguments that is its weight.
    """

    config: ConversationConfig
    config_class = ConversationConfig
    base_model_prefix = ""
    main_input_name = "speech_embeddings"
    accepts_loss_kwargs = True
    _supports_sdpa = True

    title: str
    method: str
    citation: str = ""
    tags: tuple[str, ...] = ()
    checkpoint_files: tuple[str, ...] = ()
    reads_host: bool = False
    loss_term_weights: Mapping[str, str] = {}

    def __init__(self, config: Any, *arguments, **kwargs):
        super().__init__(config, *arguments, **kwargs)
        if config.task == "regression" and not self.pretrains:
            self.target_scale = TargetScale(config.num_labels)

    @classmethod
    def described(cls, config: Any) -> Any:
        """A recipe's configuration with what `begin` adds to it, such as a language model's own, for `__init__`."""
        return config

    def view(self, output: Any) -> ConversationOutput:
        """The common view of this model's own output; a model with an output class of its own overrides it."""
        return output

    def prompt_counts(self) -> dict[str, int]:
        """
        Of a model that writes prompts, since it was made: how many `prompts`, and what was left out of those that were
        too long, `earlier_turns` and the ends of `shortened_turns`. Empty for other models.
        """
        return {}

    def example_prompt(self, transcripts: Sequence[str | None] = ()) -> str | None:
        """The prompt of the last turn of a dialogue as text, by default of two lines; None without prompts."""
        return None

    def what_is_trained(self) -> list[str]:
        """Sentences for a dry run on what of the model is trained, and what it reads beside vectors."""
        return []

    def loss_parts(self, output: Any) -> dict[str, torch.Tensor]:
        """By name, the parts that the output's `loss` is the sum of, for the log; empty where it has one."""
        return {}

    def loss_terms(
        self, output: Any, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """
        Loss terms beside the output's `loss`, by the names in `loss_term_weights`: sums over the turns divided by
        `num_items`. The Trainer multiplies each with its weight and adds it.
        """
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise each layer as torch does, which is what the published code trains from."""
        if isinstance(module, (nn.Linear, TurnConvolution)):
            fan_in = module.weight.shape[-1] * (module.weight.shape[0] if isinstance(module, TurnConvolution) else 1)
            initialization.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
            if module.bias is not None:
                initialization.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
        elif isinstance(module, TurnAttention) and module.log_slopes is not None:
            heads = torch.arange(1, module.num_heads + 1, device=module.log_slopes.device)
            initialization.copy_(module.log_slopes, -heads * math.log(2.0))
        elif isinstance(module, (nn.GRU, nn.GRUCell)):
            for parameter in module.parameters():
                initialization.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, FittedStatistics):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
            if isinstance(module, ModalityInput) and module.null_embedding is not None:
                initialization.zeros_(module.null_embedding)

    def class_weights(self, like: torch.Tensor) -> torch.Tensor | None:
        """The configured class weights (C,), or None."""
        weights = self.config.label_weights()
        return None if weights is None else moved(torch.tensor(weights, dtype=like.dtype), like.device)

    def in_label_unit(self, rows: torch.Tensor) -> torch.Tensor:
        """What a head computes, (..., C) or (..., S): unchanged for classes, for scores in the labels' unit."""
        return self.target_scale(rows) if self.config.task == "regression" else rows

    def label_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None, gamma: float = 0.0
    ) -> torch.Tensor:
        """
        Loss of a head's logits (N, C) or scores (N, S), from the labels of [`scored_labels`] as rows: a sum over what
        is scored, divided by `num_items`. For classes it is the focal loss, with gamma 0 the cross-entropy.
        """
        if self.config.task == "regression":
            return regression_loss(logits, labels, self.config.regression_loss, self.config.huber_delta, num_items)
        return focal_loss(logits, labels, gamma, self.class_weights(logits), num_items)

    def real_turns(
        self,
        embeddings: Mapping[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        masks: Mapping[str, torch.Tensor | None],
        past: DialogueCache | None = None,
    ) -> RealTurns:
        r"""
        The real turns of a batch, after `check_inputs`, in a layout of their mask (B, T). Masks may be on the host,
        where the embeddings are not.

        Raises:
            InputError: if `past` is given and the model does not stream.
        """
        device = next((vectors.device for vectors in embeddings.values() if vectors is not None), None)
        real, present = self.check_inputs(embeddings, attention_mask, masks)
        weight = real.any()
        places = self.layout_after(real if weight else torch.ones_like(real), past, device)
        rows = {name: places.flatten(mask) for name, mask in present.items()}
        moved = places.moved(torch.stack([*rows.values()])).unbind() if rows else ()
        return RealTurns(places.moved(real), weight, places, dict(zip(rows, moved, strict=True)), real, rows)

    def layout_after(
        self, real: torch.Tensor, past: DialogueCache | None, device: torch.device | None = None
    ) -> TurnLayout:
        r"""
        The layout of the real turns (B, T) that follow those of a cache, if one is given.

        Raises:
            InputError: if the model does not stream.
        """
        if past is None:
            return TurnLayout(real, device)
        if not self.config.streams:
            raise InputError(
                "Only a causal model can take turns one by one: this one (config.causal is false) was trained to use "
                "a dialogue's later turns, too. Train with --model.causal true, or give it whole dialogues"
            )
        return past.layout(real, device)

    def check_inputs(
        self,
        embeddings: Mapping[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        masks: Mapping[str, torch.Tensor | None],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        r"""
        Check the inputs of `forward`.

        Args:
            embeddings, masks: by modality, in the order of [`MODALITIES`]: (B, T, D) and (B, T).

        Returns:
            Masks as (B, T) booleans on the host: the real turns, and by modality that the model has a width for the
            turns that have it.

        Raises:
            InputError: if no embeddings are given, or of a modality that the model does not take, or shapes disagree
                with one another or with the configuration.
        """
        given = {name: vectors for name, vectors in embeddings.items() if vectors is not None}
        widths = self.config.widths
        if not given:
            names = ", ".join(MODALITIES[name].embeddings for name in widths)
            raise InputError(f"{type(self).__name__} needs at least one of {names}")
        for name, vectors in given.items():
            modality = MODALITIES[name]
            if name not in widths and name not in self.config.takes():
                raise InputError(f"{modality.embeddings} are given, but {self.config.does_not_take(name)}")
            width = widths[name] if name in widths else self.config.width(name)
            if vectors.dim() != 3 or vectors.shape[-1] != width:
                raise InputError(
                    f"{modality.embeddings} must have shape (B, T, {width}) as config.{modality.width} says, "
                    f"got {tuple(vectors.shape)}"
                )
        shapes = {MODALITIES[name].embeddings: tuple(vectors.shape) for name, vectors in given.items()}
        batch_shape = next(iter(shapes.values()))[:2]
        if any(shape[:2] != batch_shape for shape in shapes.values()) or 0 in batch_shape:
            raise InputError(f"embeddings must agree in B and T, both at least 1; got {shapes}")
        for name, mask in {
            "attention_mask": attention_mask,
            **{MODALITIES[n].mask: m for n, m in masks.items()},
        }.items():
            if mask is not None and tuple(mask.shape) != batch_shape:
                raise InputError(f"{name} must have shape (B, T) = {batch_shape}, got {tuple(mask.shape)}")
        everywhere = torch.ones(batch_shape, dtype=torch.bool)
        real, *own = _on_host([attention_mask, *masks.values()])
        real = everywhere if real is None else real
        present = {}
        for name, mask in zip(masks, own, strict=True):
            if name in given:
                present[name] = real if mask is None else real & mask
            elif mask is not None and (mask & real).any():
                raise InputError(
                    f"{MODALITIES[name].mask} is true at some turns, but {MODALITIES[name].embeddings} is None"
                )
            elif name in widths:
                present[name] = ~everywhere
        return real, present

    def input_of(self, modality: str) -> ModalityInput | None:
        """The layer that standardises the vectors of a modality; None if the model does not read it."""
        return getattr(self, f"{modality}_input", None)

    def modality_turns(
        self, embeddings: Mapping[str, torch.Tensor | None], present: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> dict[str, ModalityTurns]:
        """
        The turns of each modality that the model reads, from vectors (B, T, D) and where they are present (N,), which
        may be on the host.
        """
        turns = {}
        for name, vectors in embeddings.items():
            module = self.input_of(name)
            if module is not None:
                rows = module.mean.expand(layout.count, -1) if vectors is None else layout.flatten(vectors)
                turns[name] = module(rows, present[name])
        return turns

    def scored_labels(self, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Labels, -100 (B, T) or NaN (B, T, S) at padding whatever it holds, and checked."""
        if self.config.task == "regression":
            if labels.shape[:2] == real.shape and labels.dim() == 3 and labels.is_floating_point():
                labels = labels.masked_fill(~real[..., None], math.nan)
        elif labels.shape == real.shape:
            labels = labels.masked_fill(~real, IGNORE_INDEX)
        self.config.check_labels(labels, real.shape)
        return labels

    def scored_rows(self, labels: torch.Tensor, turns: RealTurns) -> torch.Tensor:
        """[`scored_labels`] as rows, (N,) or (N, S). Labels of the host are checked there."""
        real = turns.mask_on_host if labels.device.type == "cpu" else turns.mask
        return turns.layout.moved(turns.layout.flatten(self.scored_labels(labels, real)))


def _on_host(masks: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks (B, T) as booleans on the host; those of an accelerator are copied at once, since it is waited for."""
    there = [mask.bool() for mask in masks if mask is not None and mask.device.type != "cpu"]
    copied = iter(torch.stack(there).cpu() if there else ())
    return [mask if mask is None else mask.bool() if mask.device.type == "cpu" else next(copied) for mask in masks]
