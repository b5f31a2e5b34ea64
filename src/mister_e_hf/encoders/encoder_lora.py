"""LoRA's settings in the backbone of an utterance encoder."""

from functools import partial

from .adapters import LoraSettings
from .backbone_kind import BackboneKind
from .backbones import kind_of
from .configuration_utterance_encoder import UtteranceEncoderConfig


def lora_settings(config: UtteranceEncoderConfig) -> LoraSettings:
    """The settings of [`add_adapter`] and of the adapter's files."""
    kind = _kind(config)
    return LoraSettings(
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=lora_targets(config),
        backbone=config.backbone,
        revision=config.backbone_revision,
        prefix=kind.prefix,
        check=partial(kind.check_lora, config.require_backbone_config()),
    )


def lora_targets(config: UtteranceEncoderConfig) -> str:
    """The regular expression of the modules that get LoRA: `lora_target_modules`, or the default of the backbone."""
    if config.lora_target_modules is not None:
        return config.lora_target_modules
    return _kind(config).lora_targets(config.require_backbone_config().model_type)


def _kind(config: UtteranceEncoderConfig) -> BackboneKind:
    return kind_of(config.modality, config.require_backbone_config().model_type)
