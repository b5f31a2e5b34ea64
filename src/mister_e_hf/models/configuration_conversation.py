"""Base class of the configurations of all conversation models."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict

from ..base.configuration_labelled import LabelledConfig
from ..base.errors import InputError
from ..base.modalities import MODALITIES


@strict
class ConversationConfig(LabelledConfig):
    r"""
    Base class of the configurations of conversation models.

    A subclass has a field `<modality>_embedding_dim` for each modality of its vectors, and overrides the properties
    below where its model differs from them.

    Args:
        feature_clip (`float`, *optional*): clip standardised vectors at this many standard deviations.
        calibration_temperature (`float`, defaults to 1.0):
            what the logits are divided by where probabilities are made of them (Guo et al. 2017); fitted on
            validation. Neither `logits` nor the loss uses it.
        class_weights (`dict[str, float]`, *optional*):
            weight of each label's turns in the loss, by label name; a label left out weighs 1.
        id2label, label2id: class names by index and back; giving one fills in the other.
    """

    feature_clip: float | int | None = None
    calibration_temperature: float | int = 1.0
    class_weights: dict[str, float | int] | None = None

    @property
    def modalities(self) -> Sequence[str]:
        """The modalities that the model reads, in the order of [`MODALITIES`]."""
        return tuple(self.widths)

    @property
    def required_modalities(self) -> Sequence[str]:
        """The modalities that some training turn must have; by default all that the model reads."""
        return self.modalities

    @property
    def widths(self) -> dict[str, int]:
        """Width of the vectors of each modality that the configuration has a width for."""
        fields = self.own_fields()
        return {name: getattr(self, each.width) for name, each in MODALITIES.items() if each.width in fields}

    def without(self, absent: Collection[str]) -> dict[str, Any]:
        """
        The changes of a recipe, by `section.field`, that leave out the parts which need these modalities; empty if
        there are none.
        """
        return {}

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads beside the main one, in the order of the gate's weights."""
        return ()

    @property
    def task(self) -> str:
        return "classification"

    @property
    def reads_transcripts(self) -> bool:
        """Whether `forward` takes the transcripts of the turns beside their vectors."""
        return False

    @property
    def streams(self) -> bool:
        """Whether the model can take the turns of a dialogue one by one."""
        return False

    def check_training(self, arguments: Any):
        r"""
        Check the weights of the loss terms in the arguments of a training.

        Raises:
            InputError: if a term has a weight that a model of this configuration cannot compute.
        """

    def validate_heads(self):
        # "mixture" is the main head's name in results and tables.
        if "mixture" in self.heads or len(set(self.heads)) != len(self.heads):
            raise InputError(f"heads must have different names, none of them 'mixture', got {list(self.heads)}")

    def validate_shared_ranges(self):
        self.check_temperature("calibration_temperature")
        if self.feature_clip is not None and not 0 < self.feature_clip < math.inf:
            raise InputError(f"feature_clip must be positive and finite, or null, got {self.feature_clip}")
