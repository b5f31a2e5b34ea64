"""The configuration of the stage-2 conversation model."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ...base.errors import InputError, short
from ..configuration_conversation import ConversationConfig

EXPERTS = ("speech", "text", "fusion")


@strict
class MisterEConfig(ConversationConfig):
    r"""
    Sizes and switches of [`MisterEModel`]. The defaults are the published sizes (Dutta, Balaji and Ganapathy, Computer
    Speech & Language 100, 2026, 101965).

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        hidden_size (`int`, defaults to 1024): width H of the context experts and of the fusion expert.
        experts (`list[str]`, defaults to `["speech", "text", "fusion"]`):
            which experts exist. Outputs list them in this fixed order, whatever order is given.
        context_layer (`bool`, defaults to `True`):
            whether the speech and text experts see their neighbouring turns (convolutions and GRU). Without it an
            expert is its linear skip and head alone.
        context_kernel_sizes (`list[int]`, defaults to `[1, 3, 5]`): one convolution over the turns per (odd) size.
        context_num_layers (`int`, defaults to 3): GRU layers.
        context_dropout (`float`, defaults to 0.0):
            dropout before the GRU, between its layers and before the head. The published code passes a value that
            never acts, so its figures were made with none.
        fusion (`str`, defaults to `"co_attention"`):
            `"co_attention"`, or `"concatenation"` of one linear projection per modality.
        fusion_num_layers (`int`, defaults to 4): co-attention layers.
        attention_dim (`int`, defaults to 120): width of queries, keys and values.
        num_attention_heads (`int`, defaults to 3): attention heads; must divide `attention_dim`.
        attention_dropout (`float`, defaults to 0.1): dropout of attention probabilities.
        attention_decay (`bool`, defaults to `False`):
            lower an attention score by the two turns' distance times a slope that each head learns, first 1/2, 1/4,
            ... (Press et al. 2022, there fixed). The published attention does not know the order of the turns.
        fusion_context (`bool`, defaults to `False`):
            let the fusion expert begin with the sum of its projections and the states of the speech and text experts,
            if any, so that it attends to turns in their context.
        projection_dropout (`float`, defaults to 0.5): dropout after the fusion expert's input projections.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of the layer norms.
        gate (`str`, defaults to `"learned"`): `"learned"`, or `"mean"` of the experts whose modality is present.
        gate_hidden_size (`int`, defaults to 10): width of the gate's hidden layer.
        gate_temperature (`float`, defaults to 2.0): temperature of the gate's softmax.
        causal (`bool`, defaults to `False`):
            make turn t depend on turns up to t alone: left-padded convolutions, a one-directional GRU of width H in
            place of two of H/2, causal attention.
        modality_dropout (`float`, defaults to 0.0):
            in training, the probability with which each modality of each turn is taken away, independently.
        focal_gamma (`float`, defaults to 3.0): gamma of the focal loss (Lin et al. 2017); 0 is cross-entropy.
        feature_clip, calibration_temperature, class_weights, regression_loss, huber_delta, speech_columns,
        problem_type, id2label, label2id: see [`ConversationConfig`].
    """

    model_type = "mister_e"
    keys_to_ignore_at_inference = ["speech_states", "text_states", "speech_mask", "text_mask", "focal_losses"]

    speech_embedding_dim: int = 2048
    text_embedding_dim: int = 2048
    hidden_size: int = 1024
    experts: list[str] | tuple[str, ...] = EXPERTS
    context_layer: bool = True
    context_kernel_sizes: list[int] | tuple[int, ...] = (1, 3, 5)
    context_num_layers: int = 3
    context_dropout: float | int = 0.0
    fusion: Literal["co_attention", "concatenation"] = "co_attention"
    fusion_num_layers: int = 4
    attention_dim: int = 120
    num_attention_heads: int = 3
    attention_dropout: float | int = 0.1
    attention_decay: bool = False
    fusion_context: bool = False
    projection_dropout: float | int = 0.5
    layer_norm_eps: float = 1e-6
    gate: Literal["learned", "mean"] = "learned"
    gate_hidden_size: int = 10
    gate_temperature: float | int = 2.0
    causal: bool = False
    modality_dropout: float | int = 0.0
    focal_gamma: float | int = 3.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # one order for every output; an unknown name is kept, for validate_experts to refuse
        self.experts = sorted(self.experts, key=lambda name: EXPERTS.index(name) if name in EXPERTS else len(EXPERTS))
        self.context_kernel_sizes = list(self.context_kernel_sizes)

    @property
    def modalities(self) -> Sequence[str]:
        return tuple(name for name in ("speech", "text") if name in self.experts or "fusion" in self.experts)

    @property
    def required_modalities(self) -> Sequence[str]:
        return tuple(name for name in self.modalities if name in self.experts)

    def without(self, absent: Collection[str]) -> dict[str, Any]:
        present = [name for name in ("speech", "text") if name not in absent]
        if len(present) == 2:
            return {}
        experts = [name for name in present if name in self.experts] or present
        changes: dict[str, Any] = {"model.experts": experts, "training.contrastive_weight": 0.0}
        return changes if len(experts) > 1 else changes | {"training.consistency_weight": 0.0}

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.experts)

    @property
    def streams(self) -> bool:
        return self.causal

    @classmethod
    def head_fields(cls) -> frozenset[str]:
        return super().head_fields() | {"gate", "gate_hidden_size", "gate_temperature", "focal_gamma"}

    def differs_from(self, pretrained: ConversationConfig) -> list[str]:
        found = super().differs_from(pretrained)
        # Experts that were pre-trained may be left out.
        fewer = isinstance(pretrained, MisterEConfig) and set(self.experts) <= set(pretrained.experts)
        return [name for name in found if name != "experts" or not fewer]

    def check_training(self, arguments: Any):
        for name in ("contrastive_weight", "consistency_weight") if self.task == "regression" else ():
            if weight := getattr(arguments, name, 0.0):
                raise InputError(
                    f"{name} is {weight}, but that term compares classes and this model predicts scores "
                    "(problem_type is 'regression'); set it to 0"
                )
        if getattr(arguments, "contrastive_weight", 0.0) and "fusion" not in self.experts:
            raise InputError("contrastive_weight needs the fusion expert's states; set it to 0 or add the expert")
        if getattr(arguments, "consistency_weight", 0.0) and len(self.experts) < 2:
            raise InputError(
                f"consistency_weight needs two experts at least, the model has {self.experts}; set it to 0"
            )

    def validate_sizes(self):
        self.check_sizes(
            "speech_embedding_dim",
            "text_embedding_dim",
            "hidden_size",
            "context_num_layers",
            "fusion_num_layers",
            "attention_dim",
            "num_attention_heads",
            "gate_hidden_size",
        )
        if self.attention_dim % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads ({self.num_attention_heads}) must divide attention_dim ({self.attention_dim})"
            )
        if not self.causal and self.hidden_size % 2:
            raise InputError(f"hidden_size must be even for a bidirectional GRU, got {self.hidden_size}")
        sizes = self.context_kernel_sizes
        if not 0 < len(sizes) <= 128 or any(not 0 < size < 1000 or size % 2 == 0 for size in sizes):
            raise InputError(f"context_kernel_sizes must be odd positive numbers below 1,000, got {short(sizes)}")

    def validate_ranges(self):
        for name in ("context_dropout", "attention_dropout", "projection_dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        self.check_temperature("gate_temperature")
        if not 0 < self.layer_norm_eps < 1:
            raise InputError(f"layer_norm_eps must be positive and below 1, got {self.layer_norm_eps}")
        if not 0 <= self.focal_gamma < math.inf:
            raise InputError(f"focal_gamma must be finite and not negative, got {self.focal_gamma}")

    def validate_experts(self):
        if not self.experts or set(self.experts) - set(EXPERTS) or len(set(self.experts)) != len(self.experts):
            raise InputError(f"experts must be a choice of {list(EXPERTS)}, got {self.experts}")
