"""Base class of the configurations of all conversation models."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..base.configuration_labelled import LabelledConfig
from ..base.errors import InputError, short
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
        regression_loss (`str`, defaults to `"l1"`): loss of scores, `"l1"` or `"huber"`.
        huber_delta (`float`, defaults to 1.0): error from which Huber's loss is linear, in the labels' unit.
        speech_columns (`list[str]`, *optional*):
            names of the columns of the speech vectors, if they were picked by name from those of a corpus; the
            evaluation and prediction of corpora pick the same ones.
        problem_type (`str`, *optional*):
            `"regression"` for a model that predicts scores; its `logits` are then the scores, in the labels' unit.
        id2label, label2id: names of the classes, or of the targets, by index and back; giving one fills in the other.
    """

    feature_clip: float | int | None = None
    calibration_temperature: float | int = 1.0
    class_weights: dict[str, float | int] | None = None
    regression_loss: Literal["l1", "huber"] = "l1"
    huber_delta: float | int = 1.0
    speech_columns: list[str] | None = None

    def __post_init__(self, **kwargs):
        for name, modality in MODALITIES.items():
            if modality.width in kwargs:
                raise InputError(f"{type(self).__name__} has no field '{modality.width}': {self.does_not_take(name)}")
        super().__post_init__(**kwargs)

    @classmethod
    def takes(cls) -> tuple[str, ...]:
        """The modalities that models of this configuration can read, in the order of [`MODALITIES`]."""
        fields = cls.own_fields()
        return tuple(name for name, modality in MODALITIES.items() if modality.width in fields)

    @classmethod
    def does_not_take(cls, modality: str) -> str:
        """The end of a message about vectors of a modality that no model of this configuration reads."""
        try:
            from mister_e_hf.models.registry import models_taking

            others = ", ".join(models_taking(modality))
        except ImportError:  # a checkpoint's own code, without the package
            others = ""
        read = f"the model reads {' and '.join(cls.takes())}, not {modality}"
        return f"{read}; models that read {modality}: {others}" if others else read

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
        found = {name: getattr(self, each.width, None) for name, each in MODALITIES.items()}
        return {name: width for name, width in found.items() if width is not None}

    @property
    def read_widths(self) -> dict[str, int]:
        """Width of the vectors of each modality that the model reads."""
        return {name: width for name, width in self.widths.items() if name in self.modalities}

    def width(self, modality: str) -> int:
        r"""
        Width of the vectors of one modality.

        Raises:
            InputError: if the configuration does not state it.
        """
        if modality not in self.widths:
            field = MODALITIES[modality].width
            raise InputError(f"{field} is not set, but the model reads {modality} vectors; set it to their width")
        return self.widths[modality]

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
    def capsules(self) -> tuple[str, ...]:
        """Names of the primary capsules, in the order of `capsule_weights`; each joins its modalities with `+`."""
        return ()

    @property
    def fusion_experts(self) -> tuple[str, ...]:
        """Names of the experts inside the model, which have no heads, in the order of `expert_weights`."""
        return ()

    @property
    def weighed_modalities(self) -> tuple[str, ...]:
        """The modalities that the model gives a weight at each turn, in the order of `modality_weights`."""
        return ()

    @property
    def reads_transcripts(self) -> bool:
        """Whether `forward` takes the transcripts of the turns beside their vectors."""
        return False

    @property
    def score_limits(self) -> tuple[float, float] | None:
        """The lowest and the highest score that the model can be trained on; None without limits."""
        return None

    @property
    def streams(self) -> bool:
        """Whether the model can take the turns of a dialogue one by one."""
        return False

    @classmethod
    def head_fields(cls) -> frozenset[str]:
        """The fields that may differ between pre-training and fine-tuning: of heads, losses and dropout."""
        dropouts = (name for name in cls.own_fields() if name.endswith("dropout"))
        return frozenset({"calibration_temperature", "class_weights", "regression_loss", "huber_delta", *dropouts})

    def differs_from(self, pretrained: "ConversationConfig") -> list[str]:
        """The fields that keep a model of this configuration from beginning from a pre-trained one."""
        unread = {each.width for name, each in MODALITIES.items() if name not in self.modalities}
        unread |= set() if "speech" in self.modalities else {"speech_columns"}
        names = [name for name in self.own_fields() if name not in self.head_fields() | unread]
        return [name for name in names if getattr(self, name) != getattr(pretrained, name)]

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

    def validate_speech_columns(self):
        if self.speech_columns is None:
            return
        width = self.widths.get("speech")
        if len(set(self.speech_columns)) != len(self.speech_columns) or len(self.speech_columns) != width:
            raise InputError(
                f"speech_columns must name each column of the speech vectors once; speech_embedding_dim is {width}, "
                f"got {len(self.speech_columns)} names: {short(', '.join(self.speech_columns))}"
            )

    def validate_shared_ranges(self):
        self.check_temperature("calibration_temperature")
        if self.task == "regression" and self.calibration_temperature != 1:
            raise InputError(
                "calibration_temperature is for probabilities, and problem_type is 'regression'; leave it at 1, got "
                f"{self.calibration_temperature}"
            )
        if self.feature_clip is not None and not 0 < self.feature_clip < math.inf:
            raise InputError(f"feature_clip must be positive and finite, or null, got {self.feature_clip}")
