"""Configurations of the baselines. The defaults scored best on validation with vectors of IEMOCAP."""

from huggingface_hub.dataclasses import strict

from ...base.errors import InputError
from ..configuration_chosen_modalities import ChosenModalitiesConfig


@strict
class BaselineConfig(ChosenModalitiesConfig):
    """Base class of the configurations of the baselines, of speech and text."""


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
        self.check_attention(self.hidden_size, self.num_attention_heads)


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
        if self.modalities != list(self.heads):
            raise InputError(
                f"modalities must be {list(self.heads)}, for each attends to the other; got {self.modalities}"
            )
        self.check_attention(self.hidden_size, self.num_attention_heads)

    def validate_temperature(self):
        self.check_temperature("distillation_temperature")
