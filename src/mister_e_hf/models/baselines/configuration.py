"""Configurations of the baselines. The defaults scored best on validation with vectors of IEMOCAP."""

from collections.abc import Collection
from typing import Any

from huggingface_hub.dataclasses import strict

from ...base.errors import InputError
from ...base.modalities import MODALITIES
from ..configuration_conversation import ConversationConfig

_READ = ("speech", "text")


@strict
class BaselineConfig(ConversationConfig):
    r"""
    Base class of the configurations of the baselines, of speech and text.

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        feature_clip, calibration_temperature, class_weights, regression_loss, huber_delta, problem_type, id2label,
        label2id: see [`ConversationConfig`].
    """

    speech_embedding_dim: int = 2048
    text_embedding_dim: int = 2048
    modalities: list[str] | tuple[str, ...] = _READ

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

    @property
    def input_size(self) -> int:
        """Width of the vectors that are read, beside one another."""
        return sum(self.width(name) for name in self.modalities)


@strict
class VisualBaselineConfig(BaselineConfig):
    r"""
    Base class of the configurations of the baselines that can also read video.

    Args:
        visual_embedding_dim (`int`, *optional*):
            width Dv of an utterance's vector of its video; needed if `modalities` names `"visual"`.
    """

    visual_embedding_dim: int | None = None


@strict
class LogisticRegressionConfig(VisualBaselineConfig):
    """Configuration of [`LogisticRegressionModel`]."""

    model_type = "erc_logistic_regression"


@strict
class BcLstmConfig(VisualBaselineConfig):
    r"""
    Configuration of [`BcLstmModel`].

    Args:
        hidden_size (`int`, defaults to 96): width H of the recurrence in each direction.
        num_layers (`int`, defaults to 1): layers of the recurrence.
        dropout (`float`, defaults to 0.4): dropout of the vectors, between layers and before the head.
    """

    model_type = "erc_bc_lstm"

    hidden_size: int = 96
    num_layers: int = 1
    dropout: float | int = 0.4


@strict
class DialogueRNNConfig(VisualBaselineConfig):
    r"""
    Configuration of [`DialogueRNNModel`].

    Args:
        hidden_size (`int`, defaults to 100): width H of the global, party and emotion states, in each direction.
        dropout (`float`, defaults to 0.2): dropout of the vectors, the party and emotion states and before the head.
    """

    model_type = "erc_dialogue_rnn"

    hidden_size: int = 100
    dropout: float | int = 0.2


def _check_attention(config: Any):
    """Check the widths of a transformer over turns; half of the numbers of a position are sines."""
    if config.hidden_size % 2 or config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"hidden_size must be even and a multiple of num_attention_heads ({config.num_attention_heads}), "
            f"got {config.hidden_size}"
        )


@strict
class MultConfig(VisualBaselineConfig):
    r"""
    Configuration of [`MultModel`].

    Args:
        hidden_size (`int`, defaults to 128): width H of each modality's states.
        num_layers (`int`, defaults to 1): layers of each of the transformers, four with two modalities.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.4): dropout of the vectors, of attention, in each layer and before the head.
    """

    model_type = "erc_mult"

    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.4

    def validate_attention(self):
        _check_attention(self)


@strict
class SdtConfig(BaselineConfig):
    r"""
    Configuration of [`SdtModel`].

    Args:
        hidden_size (`int`, defaults to 128): width H of all states.
        num_layers (`int`, defaults to 1): layers of each of the four transformers.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.5):
            dropout of the projected vectors, of attention, in each layer and before the students' heads.
        distillation_temperature (`float`, defaults to 1.0): temperature of the students' and the teacher's softmax.
    """

    model_type = "erc_sdt"

    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.5
    distillation_temperature: float | int = 1.0

    @property
    def heads(self) -> tuple[str, ...]:
        return ("speech", "text")

    def validate_attention(self):
        if self.modalities != list(_READ):
            raise InputError(f"modalities must be {list(_READ)}, for each attends to the other; got {self.modalities}")
        _check_attention(self)

    def validate_temperature(self):
        self.check_temperature("distillation_temperature")
