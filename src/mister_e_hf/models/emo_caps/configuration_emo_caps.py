"""The configuration of EMO-Caps."""

from itertools import combinations
from typing import Literal

from huggingface_hub.dataclasses import strict

from ...base.errors import InputError
from ..configuration_chosen_modalities import ChosenModalitiesConfig


@strict
class EmoCapsConfig(ChosenModalitiesConfig):
    r"""
    Sizes and switches of [`EmoCapsModel`].

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        visual_embedding_dim (`int`, *optional*):
            width Dv of an utterance's vector of its video; needed if `modalities` names `"visual"`.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        hidden_size (`int`, defaults to 128): width H of each modality's states.
        num_layers (`int`, defaults to 1): layers of each of the transformers.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.3): dropout of the projected vectors, of attention, in each layer and before
            the capsules.
        context (`str`, defaults to `"before"`):
            where a recurrence over the turns is: `"before"` the transformer of each modality, `"after"` the class
            capsules, whose logits it adds to, or `"none"`.
        mapping_layers (`int`, defaults to 5): layers of the mapping network of each modality.
        interactions (`bool`, defaults to `True`):
            whether there are capsules of two and of three modalities together, beside one of each modality.
        pose_size (`int`, defaults to 32): width d of a primary capsule's pose.
        capsule_size (`int`, defaults to 16): width d' of a class capsule.
        routing (`str`, defaults to `"attention"`):
            `"attention"`, inverted dot-product attention (Tsai et al. 2020), or `"dynamic"` (Sabour et al. 2017).
        num_routing (`int`, defaults to 2):
            passes of the routing: for `"attention"` how often the coefficients are computed from the parents, for
            `"dynamic"` how often the parents are computed.
        detach_routing (`bool`, defaults to `False`): whether no gradient goes through the coefficients.
        loss (`str`, defaults to `"cross_entropy"`):
            `"cross_entropy"`, or `"margin"` of the capsules' lengths, with dynamic routing.
        margin_positive (`float`, defaults to 0.9): length that the true class's capsule should have at least.
        margin_negative (`float`, defaults to 0.1): length that another class's capsule should have at most.
        margin_weight (`float`, defaults to 0.5): weight of the other classes in the margin loss.
        num_anchors (`int`, defaults to 7):
            capsules of each target of a regression, at scores spread evenly from -3 to 3 standard deviations.
        causal (`bool`, defaults to `False`): make turn t depend on turns up to t alone.
        feature_clip, calibration_temperature, class_weights, regression_loss, huber_delta, speech_columns,
        problem_type, id2label, label2id: see [`ConversationConfig`].
    """

    model_type = "emo_caps"
    keys_to_ignore_at_inference = ["routing_weights", "capsule_activations"]

    visual_embedding_dim: int | None = None
    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.3
    context: Literal["none", "before", "after"] = "before"
    mapping_layers: int = 5
    interactions: bool = True
    pose_size: int = 32
    capsule_size: int = 16
    routing: Literal["attention", "dynamic"] = "attention"
    num_routing: int = 2
    detach_routing: bool = False
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    margin_positive: float | int = 0.9
    margin_negative: float | int = 0.1
    margin_weight: float | int = 0.5
    num_anchors: int = 7
    causal: bool = False

    @property
    def capsules(self) -> tuple[str, ...]:
        counts = range(1, len(self.modalities) + 1 if self.interactions else 2)
        return tuple("+".join(chosen) for count in counts for chosen in combinations(self.modalities, count))

    @classmethod
    def head_fields(cls) -> frozenset[str]:
        sizes = {"pose_size", "capsule_size", "num_anchors"}
        routing = {"routing", "num_routing", "detach_routing"}
        return (
            super().head_fields() | sizes | routing | {"loss", "margin_positive", "margin_negative", "margin_weight"}
        )

    @property
    def streams(self) -> bool:
        return self.causal

    def validate_attention(self):
        self.check_attention(self.hidden_size, self.num_attention_heads)

    def validate_capsules(self):
        self.check_sizes("mapping_layers", "pose_size", "capsule_size", "num_routing", "num_anchors")
        if self.num_routing > 10:
            raise InputError(f"num_routing must be at most 10, got {self.num_routing}")
        if self.task == "regression" and self.num_anchors < 2:
            raise InputError(f"num_anchors must be at least 2, got {self.num_anchors}")

    def validate_loss(self):
        if self.loss == "margin" and (self.routing != "dynamic" or self.task == "regression"):
            raise InputError("loss 'margin' is for classes and capsules of routing 'dynamic', whose length is below 1")
        if not 0 <= self.margin_negative < self.margin_positive <= 1:
            raise InputError(
                "expected 0 <= margin_negative < margin_positive <= 1, "
                f"got {self.margin_negative} and {self.margin_positive}"
            )
        if not 0 <= self.margin_weight <= 1e4:
            raise InputError(f"margin_weight must be from 0 to 10,000, got {self.margin_weight}")
