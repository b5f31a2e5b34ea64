"""The configurations of the baselines. Their defaults are what did best on validation with vectors of IEMOCAP."""

import math

from huggingface_hub.dataclasses import strict

from ...base.configuration_labelled import LabelledConfig
from ...base.errors import InputError

MODALITIES = ("speech", "text")


@strict
class BaselineConfig(LabelledConfig):
    r"""
    What all baselines have.

    Args:
        speech_embedding_dim (`int`, defaults to 2048): width Ds of an utterance's speech vector.
        text_embedding_dim (`int`, defaults to 2048): width Dt of an utterance's text vector.
        modalities (`list[str]`, defaults to `["speech", "text"]`): which vectors are read, always in this order.
        feature_clip (`float`, *optional*): clip standardised vectors at this many standard deviations.
        calibration_temperature (`float`, defaults to 1.0):
            what the logits are divided by where probabilities are made of them; fitted on validation.
        class_weights (`dict[str, float]`, *optional*):
            weight of each label's turns in the loss, by label name; a label left out weighs 1.
        id2label, label2id: class names by index and back; giving one fills in the other.
    """

    speech_embedding_dim: int = 2048
    text_embedding_dim: int = 2048
    modalities: list[str] | tuple[str, ...] = MODALITIES
    feature_clip: float | int | None = None
    calibration_temperature: float | int = 1.0
    class_weights: dict[str, float | int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # a wrong name stays, for validate_modalities to refuse
        self.modalities = sorted(self.modalities, key=str)

    def validate_sizes(self):
        names = ("speech_embedding_dim", "text_embedding_dim", "hidden_size", "num_layers", "num_attention_heads")
        self.check_sizes(*(name for name in names if hasattr(self, name)))

    def validate_ranges(self):
        dropout = getattr(self, "dropout", 0)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {dropout}")
        self.check_temperature("calibration_temperature")
        if self.feature_clip is not None and not 0 < self.feature_clip < math.inf:
            raise InputError(f"feature_clip must be positive and finite, or null, got {self.feature_clip}")

    def validate_modalities(self):
        chosen = set(self.modalities)
        if not chosen or chosen - set(MODALITIES) or len(chosen) != len(self.modalities):
            raise InputError(f"modalities must be a choice of {list(MODALITIES)}, got {self.modalities}")

    @property
    def input_size(self) -> int:
        """Width of the vectors that are read, beside one another."""
        return sum(getattr(self, f"{modality}_embedding_dim") for modality in self.modalities)


@strict
class LogisticRegressionConfig(BaselineConfig):
    """Of [`LogisticRegressionModel`], which has no size of its own."""

    model_type = "erc_logistic_regression"


@strict
class BcLstmConfig(BaselineConfig):
    r"""
    Of [`BcLstmModel`].

    Args:
        hidden_size (`int`, defaults to 96): width H of the recurrence in each direction.
        num_layers (`int`, defaults to 1): layers of the recurrence.
        dropout (`float`, defaults to 0.4): of the vectors, between layers and before the head.
    """

    model_type = "erc_bc_lstm"

    hidden_size: int = 96
    num_layers: int = 1
    dropout: float | int = 0.4


@strict
class DialogueRNNConfig(BaselineConfig):
    r"""
    Of [`DialogueRNNModel`].

    Args:
        hidden_size (`int`, defaults to 100): width H of the global, party and emotion states, in each direction.
        dropout (`float`, defaults to 0.2): of the vectors, of the party and emotion states and before the head.
    """

    model_type = "erc_dialogue_rnn"

    hidden_size: int = 100
    dropout: float | int = 0.2


class _TransformerConfig(BaselineConfig):
    """Of a model whose modalities attend to one another."""

    def validate_attention(self):
        if self.modalities != list(MODALITIES):
            raise InputError(
                f"modalities must be {list(MODALITIES)}, for each attends to the other; got {self.modalities}"
            )
        # even, for half of the position's numbers are sines
        if self.hidden_size % 2 or self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size must be even and a multiple of num_attention_heads ({self.num_attention_heads}), got {self.hidden_size}"
            )


@strict
class MultConfig(_TransformerConfig):
    r"""
    Of [`MultModel`].

    Args:
        hidden_size (`int`, defaults to 128): width H of each modality's states.
        num_layers (`int`, defaults to 1): layers of each of the four transformers.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.4): of the vectors, of attention, in each layer and before the head.
    """

    model_type = "erc_mult"

    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.4


@strict
class SdtConfig(_TransformerConfig):
    r"""
    Of [`SdtModel`].

    Args:
        hidden_size (`int`, defaults to 128): width H of all states.
        num_layers (`int`, defaults to 1): layers of each of the four transformers.
        num_attention_heads (`int`, defaults to 4): attention heads; must divide `hidden_size`.
        dropout (`float`, defaults to 0.5): of the projected vectors, of attention, in each layer and before the students' heads.
        distillation_temperature (`float`, defaults to 1.0): what students' and teacher's logits are divided by to be compared.
    """

    model_type = "erc_sdt"

    hidden_size: int = 128
    num_layers: int = 1
    num_attention_heads: int = 4
    dropout: float | int = 0.5
    distillation_temperature: float | int = 1.0

    def validate_temperature(self):
        self.check_temperature("distillation_temperature")
