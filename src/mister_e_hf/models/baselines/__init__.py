"""Published systems of emotion recognition in conversations to compare MiSTER-E with: models of its inputs, for its trainer and recipes.

They are named by a short name, which with `erc_` before it is their `model_type`. Nothing is loaded before it is asked for. None uses who speaks.
"""

import importlib
from typing import Any

from ...base.errors import InputError

_CLASSES = {
    "logistic_regression": "LogisticRegression",
    "bc_lstm": "BcLstm",
    "dialogue_rnn": "DialogueRNN",
    "mult": "Mult",
    "sdt": "Sdt",
}
BASELINES = tuple(_CLASSES)

# The rate and length of training that suit each on validation, where its settings do not say otherwise.
TRAINING: dict[str, dict[str, Any]] = {
    "logistic_regression": {"learning_rate": 1e-3, "num_train_epochs": 25},
    "bc_lstm": {"learning_rate": 1e-3, "num_train_epochs": 25},
    "dialogue_rnn": {"learning_rate": 2e-3, "num_train_epochs": 25},
    "mult": {"learning_rate": 3e-4, "num_train_epochs": 25},
    "sdt": {"learning_rate": 1e-3, "num_train_epochs": 25},
}


def baseline_config(name: str) -> type:
    """The configuration class of a baseline by its short name."""
    return getattr(importlib.import_module(".configuration", __name__), f"{_class_name(name)}Config")


def baseline_model(name: str) -> type:
    """The model class of a baseline by its short name."""
    class_name = f"{_class_name(name)}Model"  # first, for it knows whether there is one
    return getattr(importlib.import_module(f".{name}", __name__), class_name)


def _class_name(name: str) -> str:
    if name not in _CLASSES:
        raise InputError(f"There is no baseline '{name}'; there are {', '.join(BASELINES)}")
    return _CLASSES[name]
