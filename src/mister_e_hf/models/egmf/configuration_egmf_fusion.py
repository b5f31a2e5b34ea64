"""The configuration of EGMF's fusion: three experts and a hierarchical gate."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from ...base.errors import InputError, short
from ..configuration_chosen_modalities import ChosenModalitiesConfig

# In the order of every list of them.
FUSION_EXPERTS = ("local", "semantic", "global")


@strict
class EgmfFusionConfig(ChosenModalitiesConfig):
    r"""
    Sizes and switches of [`EgmfFusionModel`].

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        visual_embedding_dim (`int`, *optional*):
            width Dv of an utterance's vector of its video; needed if `modalities` names `"visual"`.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        experts (`list[str]`, defaults to `["local", "semantic", "global"]`):
            which experts there are, always in this order: `"local"` sees each modality in the turns around a turn,
            `"semantic"` the modalities of the turn, `"global"` each modality in the whole dialogue.
        hidden_size (`int`, defaults to 256): width H of all states.
        num_layers (`int`, defaults to 1): layers of the global expert.
        num_attention_heads (`int`, defaults to 4):
            attention heads of the semantic and the global expert; must divide `hidden_size`.
        kernel_sizes (`list[int]`, defaults to `[1, 3, 5]`):
            turns that each convolution of the local expert spans; odd. `[1]` sees no other turn.
        dropout (`float`, defaults to 0.3): dropout of the projected vectors, of attention, in each layer and before
            the head.
        modality_gate (`str`, defaults to `"learned"`):
            how each expert weighs the modalities that a turn has: `"learned"`, or `"mean"`, all the same.
        expert_gate (`str`, defaults to `"learned"`): the same of the experts.
        gate_temperature (`float`, defaults to 1.0): what the scores of the experts are divided by before the softmax.
        balance_weight (`float`, defaults to 0.0):
            weight of the loss that asks for experts of equal weight within a dialogue; needs two experts.
        causal (`bool`, defaults to `False`): make turn t depend on turns up to t alone.
        feature_clip, calibration_temperature, class_weights, regression_loss, huber_delta, speech_columns,
        problem_type, id2label, label2id: see [`ConversationConfig`].
    """

    model_type = "egmf_fusion"
    keys_to_ignore_at_inference = [
        "expert_weights",
        "expert_modality_weights",
        "modality_weights",
        "states",
        "balance_loss",
    ]

    visual_embedding_dim: int | None = None
    experts: list[str] | tuple[str, ...] = FUSION_EXPERTS
    hidden_size: int = 256
    num_layers: int = 1
    num_attention_heads: int = 4
    kernel_sizes: list[int] | tuple[int, ...] = (1, 3, 5)
    dropout: float | int = 0.3
    modality_gate: Literal["learned", "mean"] = "learned"
    expert_gate: Literal["learned", "mean"] = "learned"
    gate_temperature: float | int = 1.0
    balance_weight: float | int = 0.0
    causal: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # an unknown name is kept, for validate_experts to refuse
        known = {name: place for place, name in enumerate(FUSION_EXPERTS)}
        self.experts = sorted(self.experts, key=lambda name: known.get(name, len(known)))
        self.kernel_sizes = list(self.kernel_sizes)

    @property
    def fusion_experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of `expert_weights`."""
        return tuple(self.experts)

    @property
    def weighed_modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of `modality_weights`."""
        return tuple(self.modalities)

    @property
    def streams(self) -> bool:
        return self.causal

    @classmethod
    def head_fields(cls) -> frozenset[str]:
        return super().head_fields() | {"balance_weight"}

    def validate_attention(self):
        self.check_attention(self.hidden_size, self.num_attention_heads)

    def validate_experts(self):
        chosen = set(self.experts)
        if not chosen or chosen - set(FUSION_EXPERTS) or len(chosen) != len(self.experts):
            raise InputError(f"experts must be a choice of {list(FUSION_EXPERTS)}, got {self.experts}")

    def validate_kernel_sizes(self):
        sizes = self.kernel_sizes
        if not 0 < len(sizes) <= 16 or any(not 0 < size < 1000 or size % 2 == 0 for size in sizes):
            raise InputError(f"kernel_sizes must be odd positive numbers below 1,000, got {short(sizes)}")

    def validate_gates(self):
        self.check_temperature("gate_temperature")
        if not 0 <= self.balance_weight < math.inf:
            raise InputError(f"balance_weight must be finite and not negative, got {self.balance_weight}")
        learned = len(self.experts) > 1 and self.expert_gate == "learned"
        if self.balance_weight and not learned:
            raise InputError(
                "balance_weight needs two experts at least and expert_gate 'learned', got "
                f"{self.experts} and '{self.expert_gate}'; set it to 0"
            )
