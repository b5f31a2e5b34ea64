"""The backbones of utterance encoders: their kinds, looked up by modality and model type, and how they are loaded."""

import os
from collections.abc import Mapping
from typing import Any

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here

from ..base.errors import InputError, short
from ..hub.loading import explained
from .backbone_kind import BackboneKind
from .configuration_utterance_encoder import UtteranceEncoderConfig
from .image_backbones import ImageBackbone
from .mel_backbones import AudioLanguageBackbone, WhisperBackbone
from .speech_backbones import WaveformBackbone
from .text_backbones import TextBackbone

KINDS: list[BackboneKind] = [
    TextBackbone(),
    WaveformBackbone(),
    WhisperBackbone(),
    AudioLanguageBackbone(),
    ImageBackbone(),
]

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
    # of pictures
    "image_size",
    "patch_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "depth_multiplier",
    "output_stride",
    "vision_use_head",
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
    The kind of a pretrained model. One that cannot be an encoder of the modality raises before its weights are read.

    Raises:
        InputError: naming the type of model and what it takes.
    """
    kind = kind_of(modality, config.model_type)
    if (reason := kind.misfit(kind.part(config))) is not None:
        raise refusal(config, modality, reason)
    return kind


def supported_backbones(modality: str) -> list[str]:
    """The model types that are tested as backbones of a modality. Any other is tried when an encoder is created."""
    return sorted(model_type for kind in KINDS if kind.modality == modality for model_type in kind.tested)


def refusal(config: transformers.PreTrainedConfig, modality: str, reason: str) -> InputError:
    """The error that says why a backbone cannot be used, and which ones can."""
    return _refusal(config.model_type, modality, reason)


def _refusal(model_type: str, modality: str, reason: str) -> InputError:
    known = ", ".join(supported_backbones(modality))
    return InputError(
        f"A {model_type} backbone cannot encode {modality}: {reason}. Backbones that are tested: {known}"
    )


def width_and_states(config: UtteranceEncoderConfig) -> tuple[int, int]:
    r"""
    Width of an encoder's backbone, and the number of its hidden states, the output among them.

    Raises:
        InputError: if the encoder's `layer` is not one of them, or they have several widths and cannot be mixed.
    """
    stored = config.require_backbone_config()
    width, layers = kind_of(config.modality, stored.model_type).sizes(stored)
    states = layers + 1
    if isinstance(config.layer, int) and not -states <= config.layer < states:
        raise InputError(f"layer {config.layer} is not one of the backbone's {states} hidden states")
    if config.layer == "weighted_sum" and not layers:
        raise InputError(
            f"layer='weighted_sum' needs layers of one width, which a {stored.model_type} backbone does not have; "
            "leave layer out to read its output"
        )
    return width, states


def build_backbone(config: transformers.PreTrainedConfig, modality: str) -> transformers.PreTrainedModel:
    """A backbone with random weights, to be filled from a checkpoint."""
    model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return kind_of(modality, config.model_type).encoder(model)


def load_backbone(
    name: str, revision: str | None, options: Mapping[str, Any], modality: str, check: bool = True
) -> transformers.PreTrainedModel:
    r"""
    A pretrained model from the Hub or a folder, in float32 unless the options name another dtype.

    Raises:
        InputError: if `check` and it cannot be an encoder of the modality.
    """
    options = dict(options)
    if revision is not None:
        options["revision"] = revision
    if options.get("dtype", options.get("torch_dtype")) is None:
        options["dtype"] = torch.float32  # never train a half-precision checkpoint in half precision silently
    of_config = {key: value for key, value in options.items() if key not in WEIGHT_OPTIONS}
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **of_config)
    if check:
        check_backbone(config, modality)
    kind = kind_of(modality, config.model_type)
    model = transformers.AutoModel.from_pretrained(name, config=kind.part(config), trust_remote_code=False, **options)
    return kind.encoder(model)


def load_stored_backbone(
    encoder: str | os.PathLike, config: UtteranceEncoderConfig, options: Mapping[str, Any]
) -> transformers.PreTrainedModel:
    r"""
    The backbone of a saved encoder whose checkpoint does not hold it.

    Args:
        encoder: name of the encoder, for messages.
        config: of the encoder.
        options: see [`load_backbone`].

    Raises:
        OSError: if the backbone cannot be loaded; the message says how to supply it.
        InputError: if the name belongs to another model now.
    """
    stored = config.require_backbone_config()
    assert config.backbone is not None  # else the checkpoint would hold it
    try:
        with explained(config.backbone, options, or_pickle=True):
            backbone = load_backbone(config.backbone, config.backbone_revision, options, config.modality, check=False)
    except (OSError, InputError) as error:
        raise OSError(
            f"The encoder '{encoder}' was trained on the backbone '{config.backbone}' (revision "
            f"{config.backbone_revision}), which could not be loaded: {error}. Restore it, write its new place as "
            f"`backbone` into '{encoder}/config.json' (in Python, from_pretrained(..., backbone=...)), or train again "
            f"with --{config.modality}_encoder.save_backbone true (save_backbone=True), which stores its weights."
        ) from error
    kind = kind_of(config.modality, stored.model_type)
    if kind.sizes(backbone.config) != kind.sizes(stored):
        raise InputError(
            f"'{config.backbone}' has become another model than the one that '{encoder}' was trained on; "
            "pass backbone=... and backbone_revision=... of that one"
        )
    return backbone


def stored_dtype(
    encoder: str | os.PathLike, config: UtteranceEncoderConfig, requested: torch.dtype | str | None
) -> torch.dtype | None:
    r"""
    The dtype of a saved encoder's backbone: the requested one, else the one that it had, which need not be that of the
    weights trained on top of it.

    Raises:
        InputError: if that is not a dtype.
    """
    dtype = config.require_backbone_config().dtype if requested in (None, "auto") else requested
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if not isinstance(dtype, torch.dtype | None):
        raise InputError(f"'{encoder}' gives its backbone the dtype {short(repr(dtype), 80)}")
    return dtype


def turn_off_augmentation(backbone: torch.nn.Module, *configs: transformers.PreTrainedConfig):
    """Turn off augmentations of a backbone that fail on short turns, in the model and in its configurations."""
    for config in configs:
        for field, off in (("apply_spec_augment", False), ("layerdrop", 0.0), ("encoder_layerdrop", 0.0)):
            if hasattr(config, field):
                setattr(config, field, off)
    for module in backbone.modules():
        if isinstance(getattr(module, "layerdrop", None), float):
            vars(module)["layerdrop"] = 0.0


def hold_batch_norm(backbone: torch.nn.Module):
    """Keep the statistics of batch norm as they are, so that the turns of a batch do not depend on each other."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def backbone_state(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the backbone in the state dict of an encoder, under the backbone's own names."""
    prefix = "backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def computation(config: transformers.PreTrainedConfig) -> dict[str, object]:
    r"""
    What a backbone computes, weights aside, as its configuration describes it. The description is the same with every
    release of transformers, which adds fields and changes how it writes them.
    """
    described: dict[str, object] = {"model_type": config.model_type}
    for name in _COMPUTATION:
        value = getattr(config.get_text_config(), name, None)
        if isinstance(value, str | int | float | list | tuple):
            described[name] = value
    return described
