"""A recipe: one YAML file that says encoders, model, corpus and training, and is checked whole before any work starts."""

import contextlib
import copy
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from .configuration_mister_e import MisterEConfig
from .configuration_utterance_encoder import UtteranceEncoderConfig
from .modeling_utterance_encoder import UtteranceEncoder
from .processing_mister_e import MisterEProcessor
from .trainer import MisterETrainingArguments
from .utterance_trainer import UtteranceTrainingArguments
from .vectors import DialogueVectors, read_corpus


@dataclasses.dataclass
class CorpusSettings:
    r"""
    The `corpus` section of a recipe.

    Args:
        path: folder, Hub dataset id; see [`~mister_e_hf.vectors.read_corpus`].
        name: what to call it in a model card.
        labels: class names in the order of the model's class indices.
        label_column: the table's column of labels.
        score_column: a real-valued score per turn (CMU-MOSI's sentiment); the same predictions are then also scored with the
            turns left out whose score is zero or missing.
    """

    path: str | None = None
    name: str | None = None
    labels: list[str] = dataclasses.field(default_factory=list)
    label_column: str = "labels"
    score_column: str | None = None


_MODEL_FIELDS = dict(MisterEConfig.__annotations__)
_CORPUS_FIELDS = {field.name: field.type for field in dataclasses.fields(CorpusSettings)}
_TRAINING_FIELDS = {field.name: field.type for field in dataclasses.fields(MisterETrainingArguments) if field.init}
# A recipe is the same for every run of it, is stored with each and pushed.
_NO_PART_OF_A_RECIPE = {
    "output_dir": "pass --output_dir",
    "seed": "pass --seeds",
    "hub_token": "set HF_TOKEN in the environment, or log in",
}
_SECTIONS = {"model": _MODEL_FIELDS, "corpus": _CORPUS_FIELDS, "training": _TRAINING_FIELDS}
# Sections of stage 1, whose fields are always named in full: --text_encoder.tuning full --text_encoder.training.learning_rate 1e-4.
_PROCESSOR_FIELDS = {
    "prompt": str | None,
    "max_tokens": int,
    "window_seconds": float | None,
    "trailing_silence": float | None,
}
_ENCODER_FIELDS = {
    **{
        name: hint
        for name, hint in UtteranceEncoderConfig.__annotations__.items()
        if name not in ("modality", "backbone_config")
    },
    **_PROCESSOR_FIELDS,
    "dtype": Literal["float32", "bfloat16", "float16"],
    "folds": int | None,
}
_ENCODER_TRAINING_FIELDS = {
    field.name: field.type for field in dataclasses.fields(UtteranceTrainingArguments) if field.init
}
_ENCODER_SECTIONS = {
    "speech_encoder": _ENCODER_FIELDS,
    "speech_encoder.training": _ENCODER_TRAINING_FIELDS,
    "text_encoder": _ENCODER_FIELDS,
    "text_encoder.training": _ENCODER_TRAINING_FIELDS,
}
_ALL_SECTIONS = _SECTIONS | _ENCODER_SECTIONS


class Recipe:
    r"""
    What to train on what and how, one section each.

    Args:
        sections: `model` (fields of [`MisterEConfig`]), `corpus` (of [`CorpusSettings`]) and `training` (of
            [`MisterETrainingArguments`]); and for stage 1 `speech_encoder` and `text_encoder` (of [`UtteranceEncoderConfig`] and
            [`MisterEProcessor`], `dtype`, `folds` for cross-fitted vectors, and a section `training` of [`UtteranceTrainingArguments`]).

    Raises:
        ValueError: naming the section and the field, for a key that is not known or a value that does not fit.
    """

    def __init__(self, sections: dict[str, dict[str, Any]], source: str = "recipe"):
        self.source = source
        if not isinstance(sections, dict):
            raise ValueError(f"{source}: expected the sections {list(_SECTIONS)}, got {sections!r}")
        self.sections = {name: {} for name in _SECTIONS}
        sections = copy.deepcopy(sections)
        for section in [name for name in sections if name in _ENCODER_SECTIONS and isinstance(sections[name], dict)]:
            if "training" in sections[section]:
                sections[f"{section}.training"] = sections[section].pop("training")
        for section, values in sections.items():
            if section not in _ALL_SECTIONS:
                raise ValueError(f"{source}: unknown section '{section}'{_nearest(section, _ALL_SECTIONS)}")
            if values is not None and not isinstance(values, dict):
                raise ValueError(f"{source}: section '{section}' must hold fields and values, got {values!r}")
            for field, value in (values or {}).items():
                self.set(f"{section}.{field}", value)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        r"""
        Read a recipe file.

        Args:
            path: a YAML file.
            overrides: command-line words, `--learning_rate 1e-4`, `--model.causal`, `--corpus=PATH`; see [`Recipe.override`].
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No recipe at '{path}'")
        try:
            sections = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"'{path}' is no valid YAML: {error}") from error
        recipe = cls(sections, source=str(path))
        recipe.override(overrides)
        return recipe

    def set(self, name: str, value: Any, word: str | None = None):
        """
        Set one field, by `section.field`, or by the field's name alone where only one section has it. With the command-line
        word that the value was read from, the word itself or a list of one is taken where the value does not fit but they do.
        """
        section, _, field = name.rpartition(".")
        if not section:
            homes = [home for home, fields in _SECTIONS.items() if field in fields]
            if not homes:
                known = [known for fields in _SECTIONS.values() for known in fields]
                raise ValueError(f"{self.source}: unknown field '{field}'{_nearest(field, known)}")
            if len(homes) > 1:
                raise ValueError(f"{self.source}: '{field}' may be {' or '.join(f'{home}.{field}' for home in homes)}")
            section = homes[0]
        if section not in _ALL_SECTIONS:
            raise ValueError(f"{self.source}: unknown section '{section}'{_nearest(section, _ALL_SECTIONS)}")
        if field not in _ALL_SECTIONS[section]:
            raise ValueError(
                f"{self.source}: section '{section}' has no field '{field}'{_nearest(field, _ALL_SECTIONS[section])}"
            )
        if section.rpartition(".")[2] == "training" and field in _NO_PART_OF_A_RECIPE:
            raise ValueError(
                f"{self.source}: training.{field} is no part of a recipe; {_NO_PART_OF_A_RECIPE[field]} instead"
            )
        hint = _ALL_SECTIONS[section][field]
        choices = [_as_number(value, hint), *([] if word is None else [word, [value]])]
        fitting = [choice for choice in choices if _fits(choice, hint)]
        if not fitting:
            kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ValueError(f"{self.source}: section '{section}': '{field}' must be {kind}, got {value!r}")
        self.sections.setdefault(section, {})[field] = fitting[0]

    def override(self, words: Sequence[str]):
        """Set fields by command-line words: `--field value`, `--field=value`, or `--field` alone for true; values as YAML."""
        words = list(words)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                raise ValueError(f"Expected --field value, got '{word}'")
            name, equals, text = word[2:].partition("=")
            values = [text] if equals else []
            while not equals and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            text = f"[{', '.join(values)}]" if len(values) > 1 else values[0] if values else "true"
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"--{name}: '{text}' is no valid YAML: {error}") from error
            self.set("corpus.path" if name == "corpus" else name, value, text if len(values) == 1 else None)

    @property
    def corpus(self) -> CorpusSettings:
        settings = CorpusSettings(**self.sections["corpus"])
        if not all(isinstance(label, str) for label in settings.labels):
            raise ValueError(
                f"{self.source}: corpus.labels must be names (quote yes, no, on, off); got {settings.labels}"
            )
        if len(settings.labels) < 2 or len(set(settings.labels)) != len(settings.labels):
            raise ValueError(
                f"{self.source}: corpus.labels must name two classes or more, each once; got {settings.labels}"
            )
        return settings

    def model_config(self) -> MisterEConfig:
        """The model's configuration, its classes those of the corpus section."""
        try:
            return MisterEConfig(id2label=dict(enumerate(self.corpus.labels)), **self.sections["model"])
        except Exception as error:  # the config's checks raise errors of several kinds
            raise ValueError(f"{self.source}: section 'model': {error}") from error

    def training_arguments(self, output_dir: str | Path, seed: int) -> MisterETrainingArguments:
        try:
            return MisterETrainingArguments(**self.sections["training"], output_dir=str(output_dir), seed=seed)
        except ValueError as error:
            raise ValueError(f"{self.source}: section 'training': {error}") from error

    def read_corpus(self) -> dict[str, DialogueVectors]:
        """The corpus's splits, checked against the model's configuration."""
        corpus, config = self.corpus, self.model_config()
        splits = read_corpus(self.corpus_path(), config.label2id, corpus.label_column, corpus.score_column)
        widths = {"speech": config.speech_embedding_dim, "text": config.text_embedding_dim}
        for data in splits.values():
            data.check(widths)
            if not (data.labels >= 0).any():
                raise ValueError(f"{data.name}: no turn has a label in '{corpus.label_column}'")
        for modality in widths:
            present = splits["train"].present.get(modality)
            if modality in config.experts and (present is None or not present.any()):
                raise ValueError(
                    f"train: no turn has {modality}, so its expert cannot be trained; leave it out of model.experts"
                )
        return splits

    def corpus_path(self) -> str:
        """Where the corpus lies, as it was given."""
        if self.corpus.path is None:
            raise ValueError(f"{self.source}: no corpus given; set corpus.path or pass --corpus")
        return self.corpus.path

    def encoder(self, modality: str) -> "EncoderSettings":
        """The section of one modality's encoder."""
        section = f"{modality}_encoder"
        if not self.sections.get(section, {}).get("backbone"):
            raise ValueError(f"{self.source}: no {section}.backbone, so there is no encoder of {modality} to train")
        return EncoderSettings(
            self.source,
            modality,
            copy.deepcopy(self.sections[section]),
            copy.deepcopy(self.sections.get(f"{section}.training", {})),
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        sections = copy.deepcopy(self.sections)
        for name in [name for name in sections if name.endswith("_encoder.training")]:
            sections.setdefault(name.partition(".")[0], {})["training"] = sections.pop(name)
        return sections


@dataclasses.dataclass
class EncoderSettings:
    """What a recipe says of one encoder: its own fields and those of its training."""

    source: str
    modality: str
    fields: dict[str, Any]
    training: dict[str, Any]

    @property
    def folds(self) -> int:
        """Into how many folds the training dialogues are parted for cross-fitted vectors; 0 for none."""
        return self.fields.get("folds") or 0

    def model(self, label2id: dict[str, int]) -> UtteranceEncoder:
        """A new encoder around the pretrained backbone."""
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
        given = {name: value for name, value in self.fields.items() if name in _PROCESSOR_FIELDS}
        with self._naming_itself():
            return MisterEProcessor.from_backbone(
                self.fields["backbone"], self.modality, self.fields.get("backbone_revision"), **given
            )

    @contextlib.contextmanager
    def _naming_itself(self):
        """Errors say which section they come from."""
        section = f"{self.modality}_encoder"
        try:
            yield
        except OSError as error:
            raise FileNotFoundError(
                f"{self.source}: {section}.backbone '{self.fields['backbone']}' could not be loaded: {error}"
            ) from error
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"{self.source}: section '{section}': {error}") from error

    def training_arguments(self, output_dir: str | Path, seed: int) -> UtteranceTrainingArguments:
        try:
            return UtteranceTrainingArguments(**self.training, output_dir=str(output_dir), seed=seed)
        except ValueError as error:
            raise ValueError(f"{self.source}: section '{self.modality}_encoder.training': {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return {"modality": self.modality, **self.fields, "training": self.training}


def _nearest(name: str, known) -> str:
    nearest = difflib.get_close_matches(str(name), known, n=1)
    return f". Did you mean '{nearest[0]}'?" if nearest else f". Known: {', '.join(sorted(known))}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a field of this type takes the value; a whole number is a float too, a truth value no number."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if kind is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _as_number(value: Any, hint: Any) -> Any:
    """YAML 1.1 reads `1e-5`, without a point, as a string."""
    if isinstance(value, str) and "float" in str(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return value
