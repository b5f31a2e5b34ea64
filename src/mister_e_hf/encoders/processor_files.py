"""The files of a processor: its settings, and those of its tokenizer, feature extractor and image processor."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers.utils import is_vision_available

from ..base.errors import InputError, MissingLibraryError, reading, short
from ..hub.loading import read_json
from .backbone_kind import BackboneKind

PARTS = ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json")
_SETTINGS = {
    "modality": str,
    "backbone_type": str,
    "prompt": str | None,
    "max_tokens": int,
    "window_seconds": float | int | None,
    "trailing_silence": float | int | None,
    "num_frames": int,
}


def check_settings(settings: dict[str, Any], path: str):
    r"""
    Raises:
        InputError: naming the field that is unknown, missing or of another type.
    """
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise InputError(f"'{path}' has the unknown field '{unknown[0]}'; expected {', '.join(_SETTINGS)}")
    if missing := [name for name in ("modality", "backbone_type") if name not in settings]:
        raise InputError(f"'{path}' lacks the field '{missing[0]}'")
    if settings["backbone_type"] not in transformers.CONFIG_MAPPING:
        raise InputError(f"'{path}': backbone_type is {settings['backbone_type']!r}, which transformers does not know")
    for name, value in settings.items():
        if not isinstance(value, _SETTINGS[name]) or isinstance(value, bool):
            raise InputError(f"'{path}': {name} cannot be {short(repr(value), 80)}")


def backbone_beside(path: str, kind: str) -> transformers.PreTrainedConfig | None:
    """The configuration of the backbone, if an encoder is in the processor's folder; else None."""
    config = Path(path).with_name("config.json")
    if not config.is_file():
        return None
    stored = read_json(config).get("backbone_config")
    if not isinstance(stored, dict) or stored.get("model_type") != kind:
        return None
    with reading(config, "the configuration of an encoder"):
        own = {name: value for name, value in stored.items() if name not in ("auto_map", "trust_remote_code")}
        return transformers.AutoConfig.for_model(**own)


def load_parts(
    name: str | os.PathLike, kind: BackboneKind, backbone_type: str, hub: Mapping[str, Any]
) -> dict[str, Any]:
    """The feature extractor, tokenizer and image processor of a pretrained model, if its kind needs them."""
    config, parts = transformers.AutoConfig.for_model(backbone_type), {}
    if "feature_extractor" in kind.parts:
        parts["feature_extractor"] = transformers.AutoFeatureExtractor.from_pretrained(
            name, config=config, trust_remote_code=False, **hub
        )
    if "tokenizer" in kind.parts:
        # Without the name of its own model's processor, which AutoProcessor would take for the one that is saved here.
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(
            name, config=config, processor_class=None, trust_remote_code=False, **hub
        )
    if "image_processor" in kind.parts:
        # Always with Pillow, so that a vector does not depend on whether torchvision is installed.
        require_pillow()
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(
            name, config=config, backend="pil", trust_remote_code=False, **hub
        )
    return parts


def require_pillow():
    r"""
    Raises:
        MissingLibraryError: without Pillow.
    """
    if not is_vision_available():
        raise MissingLibraryError("Preparing pictures needs Pillow: pip install pillow")
