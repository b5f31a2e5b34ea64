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
    Base class of the configurations of the baselines.

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        feature_clip, calibration_temperature, class_weights, id2label, label2id: see [`ConversationConfig`].
    """

    speech_embedding_dim: int = 2048
    text_embedding_dim: int = 2048
    modalities: list[str] | tuple[str, ...] = _READ

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # an unknown name is kept, for validate_modalities to refuse
        self.modalities = sorted(self.modalities, key=str)

    def validate_sizes(self):
        names = ("speech_embedding_dim", "text_embedding_dim", "hidden_size", "num_layers", "num_attention_heads")
        self.check_sizes(*(name for name in names if hasattr(self, name)))

    def validate_ranges(self):
        dropout = getattr(self, "dropout", 0)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {dropout}")

    def validate_modalities(self):
        chosen = set(self.modalities)
        if not chosen or chosen - set(_READ) or len(chosen) != len(self.modalities):
            raise InputError(f"modalities must be a choice of {list(_READ)}, got {self.modalities}")

    def without(self, absent: Collection[str]) -> dict[str, Any]:
        return {"model.modalities": [name for name in self.modalities if name not in absent]}

    @property
    def input_size(self) -> int:
        """Width of the vectors that are read, beside one another."""
        return sum(getattr(self, MODALITIES[name].width) for name in self.modalities)


@strict
class LogisticRegressionConfig(BaselineConfig):
    """Configuration of [`LogisticRegressionModel`]."""

    model_type = "erc_logistic_regression"


@strict
class BcLstmConfig(BaselineConfig):
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
class DialogueRNNConfig(BaselineConfig):
    r"""
    Configuration of [`DialogueRNNModel`].

    Args:
        hidden_size (`int`, defaults to 100): width H of the global, party and emotion states, in each direction.
        dropout (`float`, defaults to 0.2): dropout of the vectors, the party and emotion states and before the head.
    """

    model_type = "erc_dialogue_rnn"

    hidden_size: int = 100
    dropout: float | int = 0.2


class _TransformerConfig(BaselineConfig):
    """Configuration of a model whose modalities attend to one another."""

    def validate_attention(self):
        if self.modalities != list(_READ):
            raise InputError(f"modalities must be {list(_READ)}, for each attends to the other; got {self.modalities}")
        # even: half of the numbers of a position are sines
        if self.hidden_size % 2 or self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size must be even and a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )


@strict
class MultConfig(_TransformerConfig):
    r"""
    Configuration of [`MultModel`].

    Args:
        hidden_size (`int`, defaults to 128): width H of each modality's states.
        num_layers (`int`, defaults to 1): layers of each of the four transformers.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.4): dropout of the vectors, of attention, in each layer and before the head.
    """

    model_type = "erc_mult"

    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.4


@strict
class SdtConfig(_TransformerConfig):
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

    def validate_temperature(self):
        self.check_temperature("distillation_temperature")
