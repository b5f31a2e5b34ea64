"""The sections of a recipe: their fields with types, and the settings of an encoder."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError

from ..base.errors import InputError, short, unwrapped
from ..base.modalities import MODALITIES
from ..encoders.configuration_utterance_encoder import UtteranceEncoderConfig
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..models.configuration_conversation import ConversationConfig
from ..models.registry import RegisteredModel, entry, entry_of, registered
from .pretraining_trainer import PretrainingArguments
from .utterance_trainer import UtteranceTrainingArguments

# A recipe is the same for all of its runs, and is stored and pushed with each.
NOT_IN_A_RECIPE = {
    "output_dir": "pass --output_dir",
    "resume_from_checkpoint": "an interrupted run resumes from its own folder",
    "seed": "pass --seeds",
    "hub_token": "set HF_TOKEN in the environment, or log in",
}
SECTIONS = ("model", "corpus", "training")
_OF_THE_CORPUS = {"speech_columns"}  # fields of a model's configuration that the section `corpus` sets
REGRESSION = "regression"  # the `problem_type` of a configuration; without it the task is classification
# Fields of stage 1 are always named in full: --text_encoder.tuning full --text_encoder.training.learning_rate 1e-4.
_PROCESSOR_FIELDS = {
    "prompt": str | None,
    "max_tokens": int,
    "window_seconds": float | None,
    "trailing_silence": float | None,
    "num_frames": int,
}
_ENCODER_FIELDS = {
    **{
        name: hint
        for name, hint in UtteranceEncoderConfig.own_fields().items()
        if name not in ("modality", "backbone_config")
    },
    **_PROCESSOR_FIELDS,
    "dtype": Literal["float32", "bfloat16", "float16"],
    "folds": int | None,
}
_ENCODER_TRAINING_FIELDS = {
    field.name: field.type for field in dataclasses.fields(UtteranceTrainingArguments) if field.init
}


# Fields of the section pretraining, which are always named in full, too.
PRETRAINING = {
    "pretraining": {field.name: field.type for field in dataclasses.fields(PretrainingArguments) if field.init}
    | {"corpora": list[str] | None}
}


def training_fields(model_type: str) -> dict[str, Any]:
    """Name and type of the fields of the section training, of a registered model."""
    return _training_fields(entry_of(model_type).trainer_class().arguments_class)


@functools.cache  # a recipe asks for the fields of every model at each field that is set
def _training_fields(arguments: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(arguments) if field.init} | {
        "pretrained": str | None
    }


def training_values(model_type: str, regression: bool, section: Mapping[str, Any]) -> dict[str, Any]:
    """What the section training says of the Trainer's arguments, with the defaults that the task sets."""
    given = {name: value for name, value in section.items() if name != "pretrained"}
    return training_defaults(model_type, regression) | given


def arguments_of(section: str, model_type: str) -> Any:
    """The class of the training arguments that a section holds the fields of; None if it is another section."""
    if section in PRETRAINING:
        return PretrainingArguments
    if section.rpartition(".")[2] != "training":
        return None
    if section in encoder_sections():
        return UtteranceTrainingArguments
    own = entry(section.split(".")[1]) if section.startswith("baselines.") else entry_of(model_type)
    return own.trainer_class().arguments_class


def training_defaults(model_type: str, regression: bool) -> dict[str, Any]:
    """Defaults of the section training that the task sets, in place of those of the model's Trainer."""
    if not regression:
        return {}
    known = training_fields(model_type)
    # The best epoch has the least error, and the loss has no terms that compare classes.
    defaults = {"metric_for_best_model": "mae", "contrastive_weight": 0.0, "consistency_weight": 0.0}
    return {field: value for field, value in defaults.items() if field in known}


def model_fields(model_type: str) -> dict[str, Any]:
    """Name and type of the fields of a registered model's section."""
    types = tuple(each.model_type for each in registered())
    return {"model_type": Literal[types], **_own_fields(entry_of(model_type))}


def _own_fields(model: RegisteredModel) -> dict[str, Any]:
    """Name and type of the fields of a model's configuration that a recipe may state in its section."""
    return _stated_fields(model.config_class())  # type: ignore[arg-type]  # a class has a hash, its instances have none


@functools.cache
def _stated_fields(config: type[ConversationConfig]) -> dict[str, Any]:
    return {name: hint for name, hint in config.own_fields().items() if name not in _OF_THE_CORPUS}


def absent_modality(model_type: str, field: str) -> str | None:
    """The end of a message about the width of a modality that a registered model does not read; None otherwise."""
    name = next((name for name, modality in MODALITIES.items() if modality.width == field), None)
    return name and f": {entry_of(model_type).config_class().does_not_take(name)}"


def check_focal_gamma(sections: Mapping[str, Mapping[str, Any]], model_type: str, source: str):
    """
    Raise InputError if a recipe of scores sets a gamma of the loss of classes, which has no effect there. 0 and the
    default, which recipes of both tasks share, do not count as set.
    """
    configs = {modality.encoder: UtteranceEncoderConfig for modality in MODALITIES.values()}
    for section, config in ({"model": entry_of(model_type).config_class()} | configs).items():
        given = sections.get(section, {}).get("focal_gamma", 0)
        if given not in (0, getattr(config, "focal_gamma", 0)):
            raise InputError(
                f"{source}: section '{section}': focal_gamma is for classes, and corpus.targets are scores; leave it "
                f"out, got {given}"
            )


def advice_without_backbone(source: str, section: str) -> str:
    """What to do with a recipe that names no backbone: those of the demos get theirs from a script."""
    scripts = {"demo-video": "python scripts/demo.py runs/demo-video --video", "demo-recordings": "make demo"}
    script = scripts.get(Path(source).stem)
    made = f"The backbones of this recipe are made by `{script}`. " if script else ""
    return f"{made}Name one (--{section}.backbone), or take a recipe that does: own-small, or own-video with video"


def encoder_sections() -> dict[str, dict[str, Any]]:
    """Fields of the sections of encoders, by the section's name."""
    return {
        f"{modality.encoder}{part}": fields
        for modality in MODALITIES.values()
        for part, fields in (("", _ENCODER_FIELDS), (".training", _ENCODER_TRAINING_FIELDS))
    }


def baseline_sections() -> dict[str, dict[str, Any]]:
    """Fields of the sections of models that are compared, by the section's name."""
    return {
        f"baselines.{each.name}.{part}": fields
        for each in registered()
        for part, fields in (
            ("model", _own_fields(each)),
            ("training", training_fields(each.model_type)),
        )
    }


@dataclasses.dataclass
class EncoderSettings:
    """The section of one encoder: its fields and those of its training."""

    source: str
    modality: str
    fields: dict[str, Any]
    training: dict[str, Any]
    regression: bool = False

    @property
    def folds(self) -> int:
        """Number of folds of the training dialogues for cross-fitted vectors; 0 for none."""
        return self.fields.get("folds") or 0

    @property
    def reading(self) -> dict[str, Any]:
        """How the turns of the modality are read: arguments of [`Utterances`]."""
        return {"num_frames": self.fields["num_frames"]} if "num_frames" in self.fields else {}

    def config(self, label2id: dict[str, int]) -> UtteranceEncoderConfig:
        """The configuration of the encoder, without that of its backbone."""
        own = {
            name: value for name, value in self.fields.items() if name not in (*_PROCESSOR_FIELDS, "folds", "dtype")
        }
        with self._naming_itself():
            fields: dict[str, Any] = {"modality": self.modality, "label2id": label2id, **self._task(), **own}
            return UtteranceEncoderConfig(**fields)

    def model(self, label2id: dict[str, int]) -> UtteranceEncoder:
        """A new encoder with the pretrained backbone."""
        own = {name: value for name, value in self.fields.items() if name not in (*_PROCESSOR_FIELDS, "folds")}
        backbone, revision, dtype = (
            own.pop("backbone"),
            own.pop("backbone_revision", None),
            own.pop("dtype", "float32"),
        )
        fields = {"id2label": {index: label for label, index in label2id.items()}, **self._task(), **own}
        with self._naming_itself():
            return UtteranceEncoder.from_backbone(
                backbone, self.modality, revision, {"dtype": getattr(torch, dtype)}, **fields
            )

    def _task(self) -> dict[str, Any]:
        return {"problem_type": REGRESSION} if self.regression else {}

    def processor(self) -> MisterEProcessor:
        """The processor of the backbone, with the fields of the section."""
        given = {name: value for name, value in self.fields.items() if name in _PROCESSOR_FIELDS}
        with self._naming_itself():
            return MisterEProcessor.from_backbone(
                self.fields["backbone"], self.modality, self.fields.get("backbone_revision"), **given
            )

    @contextlib.contextmanager
    def _naming_itself(self):
        """Add the section to the messages of errors."""
        section = MODALITIES[self.modality].encoder
        try:
            yield
        except OSError as error:
            raise FileNotFoundError(
                f"{self.source}: {section}.backbone '{self.fields['backbone']}' could not be loaded: {error}"
            ) from error
        except (ValueError, StrictDataclassError) as error:
            raise InputError(f"{self.source}: section '{section}': {unwrapped(error)}") from error

    def training_arguments(self, output_dir: str | Path, seed: int) -> UtteranceTrainingArguments:
        """The arguments of the Trainer of stage 1."""
        try:
            given = ({"metric_for_best_model": "mae"} if self.regression else {}) | self.training
            return UtteranceTrainingArguments(**given, output_dir=str(output_dir), seed=seed)
        except Exception as error:  # transformers' own checks raise errors of several kinds
            raise InputError(
                f"{self.source}: section '{MODALITIES[self.modality].encoder}.training': {short(error)}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The section as one dictionary, with the modality."""
        return {"modality": self.modality, **self.fields, "training": self.training}
