"""The kinds of pretrained models that stage 1 can be built around: found by modality and type, loaded, and made from a configuration."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here

from ..base.errors import InputError
from .backbone_kind import BackboneKind
from .mel_backbones import AudioLanguageBackbone, WhisperBackbone
from .speech_backbones import WaveformBackbone
from .text_backbones import TextBackbone

KINDS: list[BackboneKind] = [TextBackbone(), WaveformBackbone(), WhisperBackbone(), AudioLanguageBackbone()]

WEIGHT_OPTIONS = ("dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config")

# Fields of a configuration that change what a model computes.
_COMPUTATION = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "feat_extract_norm",
    "do_stable_layer_norm",
)


def kind_of(modality: str, model_type: str) -> BackboneKind:
    r"""
    The kind that a type of model is as a backbone of a modality.

    Raises:
        InputError: if no backbone encodes the modality, or the type of model encodes another one.
    """
    modalities = dict.fromkeys(sorted(kind.modality for kind in KINDS))
    if modality not in modalities:
        raise InputError(f"modality must be one of {', '.join(modalities)}, got {modality!r}")
    for kind in KINDS:
        if model_type in kind.tested and not kind.takes_others:
            if kind.modality != modality:
                raise InputError(f"A {model_type} backbone encodes {kind.modality}, not {modality}")
            return kind
    for kind in KINDS:
        if kind.modality == modality and kind.takes_others:
            return kind
    raise _refusal(model_type, modality, "its type is not known")


def check_backbone(config: transformers.PreTrainedConfig, modality: str) -> BackboneKind:
    r"""
    The kind of a pretrained model. One that cannot be an encoder of the modality is refused before its weights are read.

    Raises:
        InputError: naming the type of model and what it takes.
    """
    kind = kind_of(modality, config.model_type)
    if (reason := kind.misfit(config)) is not None:
        raise refusal(config, modality, reason)
    return kind


def tested_backbones(modality: str) -> list[str]:
    """The types of models that are tested as backbones of a modality. Any other is tried when an encoder is made from it."""
    return sorted(model_type for kind in KINDS if kind.modality == modality for model_type in kind.tested)


def refusal(config: transformers.PreTrainedConfig, modality: str, reason: str) -> InputError:
    """The error that says why a backbone cannot be used, and which ones can."""
    return _refusal(config.model_type, modality, reason)


def _refusal(model_type: str, modality: str, reason: str) -> InputError:
    known = ", ".join(tested_backbones(modality))
    return InputError(
        f"A {model_type} backbone cannot encode {modality}: {reason}. Backbones that are tested: {known}"
    )


def build_backbone(config: transformers.PreTrainedConfig, modality: str) -> transformers.PreTrainedModel:
    """A backbone with random weights, to be filled from a checkpoint."""
    model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return kind_of(modality, config.model_type).encoder(model)


def load_backbone(
    name: str, revision: str | None, options: Mapping[str, Any], modality: str
) -> transformers.PreTrainedModel:
    """A pretrained model from the Hub or a folder, in float32 unless the options name another dtype."""
    options = dict(options)
    if revision is not None:
        options["revision"] = revision
    if options.get("dtype", options.get("torch_dtype")) is None:
        options["dtype"] = torch.float32  # never train a half-precision checkpoint in half precision silently
    of_config = {key: value for key, value in options.items() if key not in WEIGHT_OPTIONS}
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **of_config)
    kind = check_backbone(config, modality)
    model = transformers.AutoModel.from_pretrained(name, config=config, trust_remote_code=False, **options)
    return kind.encoder(model)


def computation(config: transformers.PreTrainedConfig) -> dict[str, object]:
    r"""
    What a backbone computes, weights aside, as its configuration describes it: the same from every release of transformers, which adds fields and
    changes how it writes them.
    """
    described: dict[str, object] = {"model_type": config.model_type}
    for name in _COMPUTATION:
        value = getattr(config.get_text_config(), name, None)
        if isinstance(value, str | int | float):
            described[name] = value
    return described
