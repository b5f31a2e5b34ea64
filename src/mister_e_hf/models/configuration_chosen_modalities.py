"""Base class of the configurations of models that read a choice of modalities."""

from collections.abc import Collection
from typing import Any

from huggingface_hub.dataclasses import strict

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from .configuration_conversation import ConversationConfig


@strict
class ChosenModalitiesConfig(ConversationConfig):
    r"""
    Base class of the configurations of models that read the modalities they are built with: speech, text, or both. A
    subclass with a field `visual_embedding_dim` can also read video.

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        feature_clip, calibration_temperature, class_weights, regression_loss, huber_delta, speech_columns,
        problem_type, id2label, label2id: see [`ConversationConfig`].
    """

    speech_embedding_dim: int = 2048
    text_embedding_dim: int = 2048
    modalities: list[str] | tuple[str, ...] = ("speech", "text")

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # an unknown name is kept, for validate_modalities to refuse
        order = list(MODALITIES)
        self.modalities = sorted(self.modalities, key=lambda name: order.index(name) if name in order else len(order))

    def validate_sizes(self):
        widths = [MODALITIES[name].width for name in self.widths]
        names = ("hidden_size", "num_layers", "num_attention_heads")
        self.check_sizes(*widths, *(name for name in names if hasattr(self, name)))

    def validate_ranges(self):
        dropout = getattr(self, "dropout", 0)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {dropout}")

    def validate_modalities(self):
        chosen = set(self.modalities)
        if not chosen or chosen - set(self.takes()) or len(chosen) != len(self.modalities):
            raise InputError(f"modalities must be a choice of {list(self.takes())}, got {self.modalities}")

    def without(self, absent: Collection[str]) -> dict[str, Any]:
        return {"model.modalities": [name for name in self.modalities if name not in absent]}

    def differs_from(self, pretrained: ConversationConfig) -> list[str]:
        found = super().differs_from(pretrained)
        # Modalities that were pre-trained may be left out.
        fewer = set(self.modalities) <= set(pretrained.modalities)
        return [name for name in found if name != "modalities" or not fewer]

    @property
    def input_size(self) -> int:
        """Width of the vectors that are read, beside one another."""
        return sum(self.width(name) for name in self.modalities)

    def check_attention(self, hidden_size: int, num_attention_heads: int):
        """Check the widths of a transformer over turns; half of the numbers of a position are sines."""
        if hidden_size % 2 or hidden_size % num_attention_heads:
            raise InputError(
                f"hidden_size must be even and a multiple of num_attention_heads ({num_attention_heads}), "
                f"got {hidden_size}"
            )
