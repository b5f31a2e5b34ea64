"""Configuration of [`UtteranceEncoder`]."""

import math
import re
from typing import Any, Literal

import transformers  # the Auto classes when they are used: loading them registers what is here
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..base.configuration_labelled import DTYPES, LabelledConfig
from ..base.errors import InputError, short
from ..base.modalities import MODALITIES


@strict
class UtteranceEncoderConfig(LabelledConfig):
    r"""
    Configuration of [`UtteranceEncoder`]. [`UtteranceEncoder.from_backbone`] creates it with the backbone's own
    configuration.

    Args:
        modality (`str`, defaults to `"text"`): `"speech"`, `"text"` or `"visual"`.
        backbone (`str`, *optional*):
            name of the pretrained model on the Hub, or its folder; None for one that is trained from scratch. Loading
            an encoder fetches the weights of this model, but never code.
        backbone_revision (`str`, *optional*): branch, tag or commit of the backbone.
        backbone_config (`dict`, *optional*): the backbone's own configuration.
        tuning (`str`, defaults to `"lora"`): how the backbone is trained: `"frozen"` (not at all), `"lora"` or
            `"full"`.
        lora_r, lora_alpha, lora_dropout: rank, scale and dropout of LoRA (Hu et al. 2022).
        lora_target_modules (`str`, *optional*):
            regular expression that the whole name of a module must match; by default the projections of queries and
            keys, and for WavLM, whose attention ignores adapters, the feed-forward layers.
        layer (`int` or `"weighted_sum"`, *optional*):
            which hidden state is pooled: None for the backbone's output, an index into `hidden_states` (0 is the
            embedding layer, the last one the output), or a learned convex combination of all.
        pooling (`str`, defaults to `"mean"`):
            `"mean"`, `"attentive_statistics"` (Okabe et al. 2018) or `"last_token"`, over the turn's own positions;
            for video these are its frames, and `"last_token"` is refused.
        pooling_dim (`int`, defaults to 128): width of the attention of attentive statistics.
        embedding_dim (`int`, defaults to 2048): width D of the vector.
        dropout (`float`, defaults to 0.5): before the head.
        focal_gamma (`float`, defaults to 2.0): gamma of the focal loss; 0 is cross-entropy.
        class_weights (`dict[str, float]`, *optional*): weight of each label in the loss, by name; 1 by default.
        save_backbone (`bool`, defaults to `False`): save the backbone's weights even if they were not trained.
        regression_loss (`str`, defaults to `"l1"`): loss of scores, `"l1"` or `"huber"`.
        huber_delta (`float`, defaults to 1.0): error from which Huber's loss is linear, in the labels' unit.
        problem_type (`str`, *optional*):
            `"regression"` for an encoder that predicts scores; the focal loss and its weights are then not used.
        id2label, label2id: names of the classes, or of the targets, by index and back.
    """

    model_type = "mister_e_utterance_encoder"

    modality: str = "text"
    backbone: str | None = None
    backbone_revision: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    tuning: Literal["frozen", "lora", "full"] = "lora"
    lora_r: int = 8
    lora_alpha: int = 32
    lora_dropout: float | int = 0.1
    lora_target_modules: str | None = None
    layer: int | Literal["weighted_sum"] | None = None
    pooling: Literal["mean", "attentive_statistics", "last_token"] = "mean"
    pooling_dim: int = 128
    embedding_dim: int = 2048
    dropout: float | int = 0.5
    focal_gamma: float | int = 2.0
    class_weights: dict[str, float | int] | None = None
    save_backbone: bool = False
    regression_loss: Literal["l1", "huber"] = "l1"
    huber_delta: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if isinstance(self.backbone_config, dict):
            # Only what describes the architecture: a stored configuration must not bring code of its own.
            given = {
                name: value
                for name, value in self.backbone_config.items()
                if name not in ("auto_map", "trust_remote_code")
            }
            if "model_type" not in given:
                raise InputError(f"backbone_config must have a model_type, got the fields {sorted(given)}")
            if given["model_type"] not in transformers.CONFIG_MAPPING:
                kind = short(repr(given["model_type"]), 80)
                raise InputError(f"backbone_config.model_type is {kind}, which transformers does not know")
            for name in ("dtype", "torch_dtype"):
                if name in given:
                    given[name] = _named_dtype(name, given[name])
            self.backbone_config = transformers.AutoConfig.for_model(**given)

    def validate_modality(self):
        if self.modality not in MODALITIES:
            raise InputError(f"modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}")
        if self.modality == "visual" and self.pooling == "last_token":
            raise InputError(
                "pooling='last_token' is for text and speech: the last frame of a video does not sum up the others. "
                "Choose 'mean' or 'attentive_statistics'"
            )

    def validate_ranges(self):
        for name in ("lora_r", "lora_alpha", "pooling_dim", "embedding_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.focal_gamma < math.inf:
            raise InputError(f"focal_gamma must be finite and not negative, got {self.focal_gamma}")
        if self.lora_target_modules is not None:
            try:
                re.compile(self.lora_target_modules)
            except (re.error, RecursionError, OverflowError) as error:
                raise InputError(f"lora_target_modules is not a regular expression: {short(error)}") from error

    def validate_backbone(self):
        if (
            self.tuning != "full"
            and self.backbone is None
            and self.backbone_config is not None
            and not self.save_backbone
        ):
            raise InputError(
                f"tuning='{self.tuning}' does not save the backbone, but no backbone is named; name it, or set "
                "save_backbone=True"
            )

    def require_backbone_config(self) -> PreTrainedConfig:
        r"""
        Raises:
            InputError: if there is no `backbone_config`.
        """
        if not isinstance(self.backbone_config, PreTrainedConfig):
            raise InputError(
                "The configuration has no backbone_config; make the encoder with UtteranceEncoder.from_backbone"
            )
        return self.backbone_config

    @property
    def holds_backbone(self) -> bool:
        """Whether the checkpoint itself holds the backbone's weights."""
        return self.tuning == "full" or self.save_backbone

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if isinstance(self.backbone_config, PreTrainedConfig):
            output["backbone_config"] = self.backbone_config.to_dict()
        return output


def _named_dtype(field: str, given: Any) -> Any:
    """A dtype as transformers writes it, without the name of the module that some releases write."""
    name = str(given).removeprefix("torch.")
    if given is not None and name not in DTYPES:
        raise InputError(f"backbone_config.{field} must be one of {', '.join(DTYPES)}, got {short(repr(given), 80)}")
    return name if isinstance(given, str) else given
