"""Make transformers' Auto classes and pipelines know ours, whichever of the two packages is imported first.

Where an auto module is loaded already, ours is registered at once; else a finder on `sys.meta_path` waits for it, so
that importing this package imports neither torch nor transformers.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def _register_config():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from .encoders.configuration_utterance_encoder import UtteranceEncoderConfig
    from .models.registry import registered

    configs: list[type[PreTrainedConfig]] = [UtteranceEncoderConfig, *(each.config_class() for each in registered())]
    for config in configs:
        if config.model_type not in CONFIG_MAPPING:
            AutoConfig.register(config.model_type, config)


def _register_model():
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_PRETRAINING_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForPreTraining,
    )

    from .encoders.configuration_utterance_encoder import UtteranceEncoderConfig
    from .encoders.modeling_utterance_encoder import UtteranceEncoder
    from .models.registry import registered

    models: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
        UtteranceEncoderConfig: UtteranceEncoder,
        **{each.config_class(): each.model_class() for each in registered()},
    }
    for config, model in models.items():
        if config not in MODEL_MAPPING:
            AutoModel.register(config, model)
    for each in registered():
        if each.pretraining is not None and each.config_class() not in MODEL_FOR_PRETRAINING_MAPPING:
            AutoModelForPreTraining.register(each.config_class(), each.pretraining_class())


def _register_processor():
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, AutoProcessor

    from .encoders.configuration_utterance_encoder import UtteranceEncoderConfig
    from .encoders.processing_utterance_encoder import MisterEProcessor

    if UtteranceEncoderConfig not in PROCESSOR_MAPPING:
        AutoProcessor.register(UtteranceEncoderConfig, MisterEProcessor)


def _register_pipeline():
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .base.modalities import TASK

    # By name: the class itself is made from what is being loaded here.
    implementation = f"{__package__}.inference.pipeline_conversation_emotion.ConversationEmotionPipeline"
    known = {"impl": implementation, "pt": (AutoModel,), "type": "multimodal"}
    PIPELINE_REGISTRY.supported_tasks.setdefault(TASK, known)


_REGISTER = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.pipelines": _register_pipeline,
}


class _RegisterAfterLoading(importlib.abc.Loader):
    """Load a module with its own loader, then register ours in it."""

    def __init__(self, loader: importlib.abc.Loader, register: Callable[[], None]):
        self._loader = loader
        self._register = register

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        module.__spec__.loader = self._loader
        self._register()

    def __getattr__(self, name: str):
        return getattr(self._loader, name)


class _AutoModuleFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname not in _REGISTER:
            return None
        waiting = [finder for finder in sys.meta_path if finder is not self]
        for finder in waiting:
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None and spec.loader is not None:
                spec.loader = _RegisterAfterLoading(spec.loader, _REGISTER[fullname])
                return spec
        return None


def install_loaded():
    """Register all of ours in the auto modules that are loaded; what they know already stays."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register()


def install():
    install_loaded()
    if not all(name in sys.modules for name in _REGISTER):
        sys.meta_path.insert(0, _AutoModuleFinder())
