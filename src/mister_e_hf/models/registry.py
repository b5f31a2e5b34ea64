"""Every conversation model, declared once.

A new model is a folder beside this file and one entry of `_ENTRIES`. Nothing of a model is loaded before it is used.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError, short
from .ablations import EGMF, EGMF_FUSION, EMO_CAPS, MISTER_E, Ablation

if TYPE_CHECKING:
    from .configuration_conversation import ConversationConfig
    from .modeling_conversation import ConversationPreTrainedModel
    from .pretraining import PretrainingModel


@dataclass(frozen=True)
class RegisteredModel:
    r"""
    A conversation model as the rest of the package knows it.

    Args:
        name: short name, for options, folders and tables (`"bc_lstm"`).
        model_type: as `config.json` states it (`"erc_bc_lstm"`).
        config, model: where the classes are, as `"module:Class"`; a module that begins with a dot is below this
            folder.
        training: defaults of its training arguments beside the recipe's.
        search_space: values to search by `section.field`.
        ablations: by name.
        streams: whether it can take a dialogue turn by turn, if its configuration says so.
        baseline: whether it is run beside other models for comparison.
        trainer: where the class of its Trainer is. The default adds the terms that a model names; a model whose terms
            have weights of their own names a subclass, whose `arguments_class` has a field for each weight.
        pretraining: where the class is that pre-trains it, if there is one.
    """

    name: str
    model_type: str
    config: str
    model: str
    training: Mapping[str, Any] = field(default_factory=dict)
    search_space: Mapping[str, list] = field(default_factory=dict)
    ablations: Mapping[str, Ablation] = field(default_factory=dict)
    streams: bool = False
    baseline: bool = False
    trainer: str = "..training.dialogue_trainer:MisterETrainer"
    pretraining: str | None = None

    def config_class(self) -> "type[ConversationConfig]":
        return _load(self.config)

    def model_class(self) -> "type[ConversationPreTrainedModel]":
        return _load(self.model)

    def pretraining_class(self) -> "type[PretrainingModel]":
        r"""
        The class that pre-trains it.

        Raises:
            InputError: if there is none.
        """
        if self.pretraining is None:
            others = ", ".join(each.name for each in registered() if each.pretraining)
            raise InputError(f"Model '{self.name}' has no pre-training; models that have it: {others}")
        return _load(self.pretraining)

    def trainer_class(self) -> Any:
        """A [`DialogueTrainer`], which this folder knows by name alone."""
        return _load(self.trainer)

    @property
    def title(self) -> str:
        """Name of the method, as its class states it."""
        return self.model_class().title

    @property
    def method(self) -> str:
        """The method in a sentence, with a link to its paper."""
        return self.model_class().method

    @property
    def citation(self) -> str:
        """BibTeX entry of the paper; empty without one."""
        return self.model_class().citation


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module, __package__), name)


def registered() -> tuple[RegisteredModel, ...]:
    """All models, in the order of tables."""
    return tuple(_ENTRIES.values())


def default_model_type() -> str:
    """The `model_type` of a recipe that does not state one."""
    return registered()[0].model_type


def baselines() -> tuple[RegisteredModel, ...]:
    """The models that are run beside others for comparison."""
    return tuple(each for each in registered() if each.baseline)


def models_taking(modality: str) -> list[str]:
    """Names of the models that can read vectors of this modality, as their configurations' fields say."""
    return [each.name for each in registered() if modality in each.config_class().takes()]


def entry(name: str) -> RegisteredModel:
    r"""
    A model by its short name.

    Raises:
        InputError: if no model has that name.
    """
    if name not in _ENTRIES:
        raise InputError(f"Unknown model '{name}'; expected one of {', '.join(_ENTRIES)}")
    return _ENTRIES[name]


def entry_of(config: Any) -> RegisteredModel:
    r"""
    The model that a configuration, or a `model_type`, is of.

    Raises:
        InputError: if it is not a registered model's.
    """
    model_type = config if isinstance(config, str) else config.model_type
    for each in registered():
        if each.model_type == model_type:
            return each
    known = ", ".join(each.model_type for each in registered())
    raise InputError(f"Unknown model type '{model_type}'; expected one of {known}")


def register(new: RegisteredModel):
    r"""
    Add a model of your own: it then works with the Auto classes, recipes, the pipeline and studies as those of this
    package do.

    Raises:
        InputError: if its name or type is taken, its classes are not found, or they do not belong together.
    """
    if new.name in _ENTRIES or any(each.model_type == new.model_type for each in registered()):
        raise InputError(f"A model '{new.name}' or of type '{new.model_type}' is registered already")
    try:
        config, model, trainer = new.config_class(), new.model_class(), new.trainer_class()
        pretraining = None if new.pretraining is None else new.pretraining_class()
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"Model '{new.name}': a class is not found, expected 'module:Class' for config, model, trainer and "
            f"pretraining: {error}"
        ) from error
    if model.config_class is not config or config.model_type != new.model_type:
        raise InputError(
            f"Model '{new.name}': expected a model whose config_class is {config.__name__} and a configuration whose "
            f"model_type is '{new.model_type}', got {model.config_class.__name__} and '{config.model_type}'"
        )
    if pretraining is not None:
        _check_pretraining(new, pretraining)
    if missing := [name for name in ("title", "method") if not hasattr(model, name)]:
        raise InputError(f"Model '{new.name}': {model.__name__} lacks {' and '.join(missing)}")
    if missing := [name for name in set(model.loss_term_weights.values()) if not _has_field(trainer, name)]:
        raise InputError(
            f"Model '{new.name}': {trainer.arguments_class.__name__} lacks {', '.join(sorted(missing))}, the weights "
            "of its loss terms"
        )
    _refuse_type_of_others(new)
    _ENTRIES[new.name] = new
    importlib.import_module(".._registration", __package__).install_loaded()


def _check_pretraining(new: RegisteredModel, found: Any):
    """Raise an `InputError` unless a class pre-trains this model and is known by its name from folders."""
    from ..hub.pretrained import is_pretraining
    from .pretraining import PretrainingModel

    config, model = new.config_class(), new.model_class()
    if not (isinstance(found, type) and issubclass(found, PretrainingModel)):
        raise InputError(f"Model '{new.name}': its pretraining must be a PretrainingModel, got {short(repr(found))}")
    if found.config_class is not config or getattr(found, "fine_tuned", None) is not model:
        raise InputError(
            f"Model '{new.name}': {found.__name__} must have config_class {config.__name__} and fine_tuned "
            f"{model.__name__}"
        )
    if not is_pretraining({"architectures": [found.__name__]}):
        raise InputError(f"Model '{new.name}': the name of {found.__name__} must end in ForPreTraining")


def _has_field(trainer: Any, name: str) -> bool:
    return name in trainer.arguments_class.__dataclass_fields__


def _refuse_type_of_others(new: RegisteredModel):
    from transformers import CONFIG_MAPPING

    if new.model_type in CONFIG_MAPPING and CONFIG_MAPPING[new.model_type] is not new.config_class():
        raise InputError(f"Model '{new.name}': transformers knows another model of type '{new.model_type}'")


_DROPOUTS = [0.3, 0.4, 0.5, 0.6, 0.7]
_COMMON: dict[str, list[Any]] = {
    "training.learning_rate": [3e-4, 5e-4, 1e-3, 2e-3],
    "training.weight_decay": [0.01, 0.1, 0.3],
    "training.num_train_epochs": [5, 10, 15, 25],
}
_MISTER_E_SPACE = {
    **_COMMON,
    "model.hidden_size": [96, 192],
    "model.context_dropout": _DROPOUTS,
    "model.projection_dropout": _DROPOUTS,
}

_EMO_CAPS_SPACE = {
    **_COMMON,
    "model.hidden_size": [64, 128],
    "model.dropout": [0.2, 0.3, 0.4, 0.5],
    "model.routing": ["attention", "dynamic"],
}

_EGMF_FUSION_SPACE = {
    **_COMMON,
    "model.hidden_size": [64, 128, 256],
    "model.dropout": [0.2, 0.3, 0.4, 0.5],
    "model.balance_weight": [0.0, 0.1],
}

_EGMF_SPACE: dict[str, list[Any]] = {
    "training.learning_rate": [2e-4, 5e-4, 1e-3],
    "training.language_model_learning_rate": [1e-4, 2e-4, 5e-4],
    "training.num_train_epochs": [2, 3, 5],
    "model.dropout": [0.2, 0.3, 0.4, 0.5],
    "model.num_pseudo_tokens": [1, 4, 8],
    "model.auxiliary_weight": [0.1, 0.3, 1.0],
}


def _baseline(
    name: str, class_name: str, learning_rate: float, search_space: dict[str, list[Any]] | None = None
) -> RegisteredModel:
    return RegisteredModel(
        name,
        f"erc_{name}",
        f".baselines.configuration:{class_name}Config",
        f".baselines.{name}:{class_name}Model",
        # the rate and length of training that suit it on validation
        training={"learning_rate": learning_rate, "num_train_epochs": 25},
        search_space=_COMMON | (search_space or {}),
        baseline=True,
    )


_ENTRIES = {
    each.name: each
    for each in (
        RegisteredModel(
            "mister_e",
            "mister_e",
            ".mister_e.configuration_mister_e:MisterEConfig",
            ".mister_e.modeling_mister_e:MisterEModel",
            search_space=_MISTER_E_SPACE,
            ablations=MISTER_E,
            streams=True,
            pretraining=".mister_e.pretraining_mister_e:MisterEForPreTraining",
        ),
        RegisteredModel(
            "emo_caps",
            "emo_caps",
            ".emo_caps.configuration_emo_caps:EmoCapsConfig",
            ".emo_caps.modeling_emo_caps:EmoCapsModel",
            training={"learning_rate": 1e-3, "num_train_epochs": 15},
            search_space=_EMO_CAPS_SPACE,
            ablations=EMO_CAPS,
            pretraining=".emo_caps.pretraining_emo_caps:EmoCapsForPreTraining",
            streams=True,
        ),
        RegisteredModel(
            "egmf_fusion",
            "egmf_fusion",
            ".egmf.configuration_egmf_fusion:EgmfFusionConfig",
            ".egmf.modeling_egmf_fusion:EgmfFusionModel",
            training={"learning_rate": 5e-4, "num_train_epochs": 15},
            search_space=_EGMF_FUSION_SPACE,
            ablations=EGMF_FUSION,
            streams=True,
        ),
        RegisteredModel(
            "egmf",
            "egmf",
            ".egmf.configuration_egmf:EgmfConfig",
            ".egmf.modeling_egmf:EgmfModel",
            training={"learning_rate": 5e-4, "language_model_learning_rate": 2e-4, "num_train_epochs": 3},
            search_space=_EGMF_SPACE,
            ablations=EGMF,
            trainer="..training.egmf_trainer:EgmfTrainer",
        ),
        _baseline("logistic_regression", "LogisticRegression", 1e-3),
        _baseline("bc_lstm", "BcLstm", 1e-3, {"model.hidden_size": [64, 96, 128, 192], "model.dropout": _DROPOUTS}),
        _baseline(
            "dialogue_rnn",
            "DialogueRNN",
            2e-3,
            {"model.hidden_size": [64, 100, 150], "model.dropout": [0.1, 0.2, 0.4, 0.5]},
        ),
        _baseline(
            "mult",
            "Mult",
            3e-4,
            {"model.hidden_size": [64, 128], "model.num_layers": [1, 2], "model.dropout": _DROPOUTS},
        ),
        _baseline("sdt", "Sdt", 1e-3, {"model.hidden_size": [64, 128, 256], "model.dropout": _DROPOUTS}),
    )
}
