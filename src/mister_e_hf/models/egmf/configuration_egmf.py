"""Configuration of [`EgmfModel`]."""

import json
import math
from typing import Any, Literal

import transformers  # the Auto classes when they are used: loading them registers what is here
from huggingface_hub.dataclasses import strict

from ...base.configuration_labelled import DTYPES
from ...base.errors import InputError, short
from .answers import answer_texts
from .configuration_egmf_fusion import EgmfFusionConfig

# Fields of `lora`, and what those left out are.
LORA: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.05, "target_modules": None}


@strict
class EgmfConfig(EgmfFusionConfig):
    r"""
    Configuration of [`EgmfModel`]: the fields of [`EgmfFusionConfig`], and those of the language model.
    [`EgmfModel.from_language_model`] fills in what describes the language model.

    Args:
        language_model (`str`, *optional*):
            name of the causal language model on the Hub, or its folder. Loading a model fetches the weights of this
            one, unless its folder holds them, but never code.
        language_model_revision (`str`, *optional*): branch, tag or commit of the language model.
        language_model_config (`dict`, *optional*): the language model's own configuration.
        language_model_fingerprint (`str`, *optional*):
            hash of the weights that `language_model` named when this model was made; others raise. None compares
            nothing.
        language_model_dtype (`str`, defaults to `"float32"`): dtype of the language model's weights.
        lora (`dict`, *optional*):
            LoRA in the language model, with `r` (16), `alpha` (32), `dropout` (0.05) and `target_modules`, a regular
            expression that the whole name of a module must match, by default the projections of queries and values.
            None leaves the language model as it is.
        train_language_model (`bool`, defaults to `False`): train all of the language model, instead of LoRA.
        save_language_model (`bool`, defaults to `False`): save its weights even if they were not trained.
        num_pseudo_tokens (`int`, defaults to 4): number of vectors P that represent a turn in its prompt.
        use_pseudo_tokens (`bool`, defaults to `True`): False leaves them out: the language model reads words alone.
        shuffle_pseudo_tokens (`bool`, defaults to `False`):
            give each turn the pseudo tokens of the turn half a dialogue later, to measure what they contribute.
        pseudo_position (`str`, defaults to `"last"`): `"last"`, behind the text of the prompt, or `"first"`.
        context_turns (`int`, defaults to 8): earlier turns of the dialogue in the prompt, at most.
        max_length (`int`, defaults to 256): tokens of a prompt with its answer; the oldest turns are left out first.
        language (`str`, defaults to `"en"`): language of the prompts and the answers, `"en"` or `"zh"`.
        instruction (`str`, *optional*): what the prompt begins with, instead of the language's own instruction.
        label_words (`dict[str, str]`, *optional*): what is answered for a label, by its name; others by their name.
        answer (`str`, defaults to `"word"`): whether a label is answered with its `"word"` or its `"index"`.
        score_range (`list[float]`, *optional*):
            lowest and highest score of a regression that can be answered, by default -3 and 3; training on others
            raises.
        score_step (`float`, defaults to 0.1): distance of the scores that can be answered.
        auxiliary_weight (`float`, defaults to 0.3): weight of the loss of the head on the fusion; 0 leaves it out.
        numeric_weight (`float`, defaults to 1.0): weight of the loss of a regression's expected score.
        rows_per_forward (`int`, defaults to 32): turns that the language model reads at once.
    """

    model_type = "egmf"
    language_model: str | None = None
    language_model_revision: str | None = None
    language_model_config: dict | None = None
    language_model_fingerprint: str | None = None
    language_model_dtype: str = "float32"
    lora: dict | None = None
    train_language_model: bool = False
    save_language_model: bool = False
    num_pseudo_tokens: int = 4
    use_pseudo_tokens: bool = True
    shuffle_pseudo_tokens: bool = False
    pseudo_position: Literal["last", "first"] = "last"
    context_turns: int = 8
    max_length: int = 256
    language: Literal["en", "zh"] = "en"
    instruction: str | None = None
    label_words: dict[str, str] | None = None
    answer: Literal["word", "index"] = "word"
    score_range: list[float | int] | tuple[float | int, ...] | None = None
    score_step: float | int = 0.1
    auxiliary_weight: float | int = 0.3
    numeric_weight: float | int = 1.0
    rows_per_forward: int = 32

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.score_range is not None:
            self.score_range = [float(end) for end in self.score_range]
        if self.language_model_config is not None:  # as its file has it
            self.language_model_config = json.loads(json.dumps(self.language_model_config))

    @property
    def heads(self) -> tuple[str, ...]:
        return ("fusion",) if self.auxiliary_weight else ()

    @property
    def reads_transcripts(self) -> bool:
        return True

    @property
    def streams(self) -> bool:
        return False

    @property
    def score_limits(self) -> tuple[float, float] | None:
        if self.task != "regression":
            return None
        low, *_, high = map(float, answer_texts(self))
        half = float(self.score_step) / 2
        return low - half, high + half

    @property
    def holds_language_model(self) -> bool:
        """Whether the checkpoint itself holds the language model's weights."""
        return self.train_language_model or self.save_language_model

    @property
    def lora_settings(self) -> dict[str, Any] | None:
        """`lora` with the fields that it leaves out; None without LoRA."""
        return None if self.lora is None else LORA | self.lora

    def require_language_model_config(self) -> transformers.PreTrainedConfig:
        r"""
        The language model's own configuration.

        Raises:
            InputError: if it is not known.
        """
        if self.language_model_config is None:
            raise InputError(
                "The configuration has no language_model_config; make the model with EgmfModel.from_language_model"
            )
        return transformers.AutoConfig.for_model(**self.language_model_config)

    def validate_language_model(self):
        if self.language_model_dtype not in DTYPES:
            raise InputError(
                f"language_model_dtype must be one of {', '.join(DTYPES)}, got {self.language_model_dtype}"
            )
        if self.lora is not None and self.train_language_model:
            raise InputError("train_language_model trains all of the language model, so lora must be null")
        stored = self.language_model_config
        if stored is None:
            return
        # A stored configuration must not bring code of its own.
        if {"auto_map", "trust_remote_code"} & set(stored) or "model_type" not in stored:
            raise InputError(
                f"language_model_config must have a model_type and no code of its own, got the fields {sorted(stored)}"
            )
        if stored["model_type"] not in transformers.CONFIG_MAPPING:
            kind = short(repr(stored["model_type"]), 80)
            raise InputError(f"language_model_config.model_type is {kind}, which transformers does not know")

    def validate_lora(self):
        if self.lora is None:
            return
        if unknown := sorted(set(self.lora) - set(LORA)):
            raise InputError(f"lora has no field '{unknown[0]}'; expected {', '.join(LORA)}")
        given = LORA | self.lora
        for name in ("r", "alpha"):
            if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
                raise InputError(f"lora.{name} must be a whole number of at least 1, got {given[name]!r}")
        if not isinstance(given["dropout"], int | float) or not 0 <= given["dropout"] < 1:
            raise InputError(f"lora.dropout must be in [0, 1), got {given['dropout']!r}")
        if not isinstance(given["target_modules"], str | None):
            raise InputError(f"lora.target_modules must be a regular expression, got {given['target_modules']!r}")

    def validate_prompt(self):
        self.check_sizes("num_pseudo_tokens", "max_length", "rows_per_forward")
        if self.context_turns < 0:
            raise InputError(f"context_turns must not be negative, got {self.context_turns}")
        for name in ("auxiliary_weight", "numeric_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if unknown := sorted(set(self.label_words or ()) - set(self.label2id)):
            raise InputError(f"label_words names '{unknown[0]}', which is not one of the labels {list(self.label2id)}")

    def validate_scores(self):
        if not 0 < self.score_step < math.inf:
            raise InputError(f"score_step must be positive and finite, got {self.score_step}")
        ends = self.score_range
        if ends is not None and (len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf):
            raise InputError(f"score_range must be the lowest and the highest score, got {ends}")
        answer_texts(self)  # raise before a language model is loaded
