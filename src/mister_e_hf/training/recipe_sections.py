"""The sections of a recipe: their fields with types, and the settings of a corpus and of an encoder."""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError

from ..base.errors import InputError, short, unwrapped
from ..base.modalities import MODALITIES
from ..encoders.configuration_utterance_encoder import UtteranceEncoderConfig
from ..encoders.modeling_utterance_encoder import UtteranceEncoder
from ..encoders.processing_utterance_encoder import MisterEProcessor
from ..models.registry import baselines, entry_of, registered
from .utterance_trainer import UtteranceTrainingArguments


@dataclasses.dataclass
class CorpusSettings:
    r"""
    The `corpus` section of a recipe.

    Args:
        path: folder or Hub id; see [`~mister_e_hf.vectors.store.read_corpus`].
        name: name of the corpus in a model card.
        labels: class names in the order of the class indices; by default those of the corpus
            ([`~mister_e_hf.vectors.corpus_labels.corpus_labels`]).
        label_column: name of the column of labels.
        score_column: name of a column with a real-valued score per turn (the sentiment of CMU-MOSI); predictions are
            then also scored without the turns whose score is zero or missing.
        vectors: by modality, a description of what made the vectors, for the results of a study.
        group_pattern: regular expression whose match in the id of a dialogue is its group (the session of IEMOCAP);
            folds of the development data consist of whole groups. By default each dialogue is a group.
        validation_group: the group that becomes validation; all other dialogues of train and validation become train.
    """

    path: str | None = None
    name: str | None = None
    labels: list[str] = dataclasses.field(default_factory=list)
    label_column: str = "labels"
    score_column: str | None = None
    vectors: dict[str, str] | None = None
    group_pattern: str | None = None
    validation_group: str | None = None

    def check(self, source: str):
        """
        Check labels and patterns.

        Raises:
            InputError: naming the recipe and the field.
        """
        if not all(isinstance(label, str) and label.strip() for label in self.labels):
            raise InputError(f"{source}: corpus.labels must be names, none of them empty; got {short(self.labels)}")
        if not self.labels:
            raise InputError(
                f"{source}: no labels: give a corpus, whose own are then used (--corpus), or name them "
                "(--corpus.labels)"
            )
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise InputError(
                f"{source}: corpus.labels must name two classes or more, each once; got {short(self.labels)}"
            )
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise InputError(
                f"{source}: corpus.group_pattern '{short(self.group_pattern)}' is not a regular expression: {error}"
            ) from error


CORPUS_FIELDS = {field.name: field.type for field in dataclasses.fields(CorpusSettings)}
# A recipe is the same for all of its runs, and is stored and pushed with each.
NOT_IN_A_RECIPE = {
    "output_dir": "pass --output_dir",
    "resume_from_checkpoint": "an interrupted run resumes from its own folder",
    "seed": "pass --seeds",
    "hub_token": "set HF_TOKEN in the environment, or log in",
}
SECTIONS = ("model", "corpus", "training")
# Fields of stage 1 are always named in full: --text_encoder.tuning full --text_encoder.training.learning_rate 1e-4.
_PROCESSOR_FIELDS = {
    "prompt": str | None,
    "max_tokens": int,
    "window_seconds": float | None,
    "trailing_silence": float | None,
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


def training_fields(model_type: str) -> dict[str, Any]:
    """Name and type of the fields of the section training, of a registered model."""
    arguments = entry_of(model_type).trainer_class().arguments_class
    return {field.name: field.type for field in dataclasses.fields(arguments) if field.init}


def model_fields(model_type: str) -> dict[str, Any]:
    """Name and type of the fields of a registered model's section."""
    types = tuple(each.model_type for each in registered())
    return {"model_type": Literal[types], **entry_of(model_type).config_class().own_fields()}


def encoder_sections() -> dict[str, dict[str, Any]]:
    """Fields of the sections of encoders, by the section's name."""
    return {
        f"{modality.encoder}{part}": fields
        for modality in MODALITIES.values()
        for part, fields in (("", _ENCODER_FIELDS), (".training", _ENCODER_TRAINING_FIELDS))
    }


def baseline_sections() -> dict[str, dict[str, Any]]:
    """Fields of the sections of baselines, by the section's name."""
    return {
        f"baselines.{each.name}.{part}": fields
        for each in baselines()
        for part, fields in (
            ("model", each.config_class().own_fields()),
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

    @property
    def folds(self) -> int:
        """Number of folds of the training dialogues for cross-fitted vectors; 0 for none."""
        return self.fields.get("folds") or 0

    def config(self, label2id: dict[str, int]) -> UtteranceEncoderConfig:
        """The configuration of the encoder, without that of its backbone."""
        own = {
            name: value for name, value in self.fields.items() if name not in (*_PROCESSOR_FIELDS, "folds", "dtype")
        }
        with self._naming_itself():
            fields: dict[str, Any] = {"modality": self.modality, "label2id": label2id, **own}
            return UtteranceEncoderConfig(**fields)

    def model(self, label2id: dict[str, int]) -> UtteranceEncoder:
        """A new encoder with the pretrained backbone."""
        own = {name: value for name, value in self.fields.items() if name not in (*_PROCESSOR_FIELDS, "folds")}
        backbone, revision, dtype = (
            own.pop("backbone"),
            own.pop("backbone_revision", None),
            own.pop("dtype", "float32"),
        )
        labels = {index: label for label, index in label2id.items()}
        with self._naming_itself():
            return UtteranceEncoder.from_backbone(
                backbone, self.modality, revision, {"dtype": getattr(torch, dtype)}, id2label=labels, **own
            )

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
            return UtteranceTrainingArguments(**self.training, output_dir=str(output_dir), seed=seed)
        except Exception as error:  # transformers' own checks raise errors of several kinds
            raise InputError(
                f"{self.source}: section '{MODALITIES[self.modality].encoder}.training': {short(error)}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The section as one dictionary, with the modality."""
        return {"modality": self.modality, **self.fields, "training": self.training}
