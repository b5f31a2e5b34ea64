"""A recipe: one YAML file that says encoders, model, corpus and training, and is checked whole before any work starts."""

import contextlib
import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, PreTrainedModel

from .baselines import BASELINES, TRAINING, baseline_config
from .configuration_labelled import LabelledConfig
from .configuration_mister_e import MisterEConfig
from .configuration_utterance_encoder import UtteranceEncoderConfig
from .corpus_labels import corpus_labels
from .errors import InputError, short
from .folds import validation_by_group
from .modeling_utterance_encoder import UtteranceEncoder
from .processing_mister_e import MisterEProcessor
from .recipe_files import find_recipe
from .trainer import MisterETrainingArguments
from .training_fields import check_field
from .utterance_trainer import UtteranceTrainingArguments
from .vectors import DialogueVectors, read_corpus


@dataclasses.dataclass
class CorpusSettings:
    r"""
    The `corpus` section of a recipe.

    Args:
        path: folder, Hub dataset id; see [`~mister_e_hf.vectors.read_corpus`].
        name: what to call it in a model card.
        labels: class names in the order of the model's class indices; by default the corpus's own ([`~mister_e_hf.corpus_labels.corpus_labels`]).
        label_column: the table's column of labels.
        score_column: a real-valued score per turn (CMU-MOSI's sentiment); the same predictions are then also scored with the
            turns left out whose score is zero or missing.
        vectors: what made the vectors, by modality, in words; a study's results say it.
        group_pattern: regular expression; what it finds in a dialogue's id is the dialogue's group (IEMOCAP's session), and folds of the
            development data are made of whole groups. By default each dialogue is a group.
        validation_group: make this group validation, and of all other dialogues of train and validation train.
    """

    path: str | None = None
    name: str | None = None
    labels: list[str] = dataclasses.field(default_factory=list)
    label_column: str = "labels"
    score_column: str | None = None
    vectors: dict[str, str] | None = None
    group_pattern: str | None = None
    validation_group: str | None = None


_CONFIGS = {config.model_type: config for config in (MisterEConfig, *map(baseline_config, BASELINES))}
_MODEL_FIELDS = {
    model_type: {"model_type": Literal[tuple(_CONFIGS)], **config.own_fields()}
    for model_type, config in _CONFIGS.items()
}
_CORPUS_FIELDS = {field.name: field.type for field in dataclasses.fields(CorpusSettings)}
_TRAINING_FIELDS = {field.name: field.type for field in dataclasses.fields(MisterETrainingArguments) if field.init}
# A recipe is the same for every run of it, is stored with each and pushed.
_NO_PART_OF_A_RECIPE = {
    "output_dir": "pass --output_dir",
    "resume_from_checkpoint": "a run that was killed resumes from its own folder",
    "seed": "pass --seeds",
    "hub_token": "set HF_TOKEN in the environment, or log in",
}
_SECTIONS = ("model", "corpus", "training")
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
_ENCODER_SECTIONS = {
    "speech_encoder": _ENCODER_FIELDS,
    "speech_encoder.training": _ENCODER_TRAINING_FIELDS,
    "text_encoder": _ENCODER_FIELDS,
    "text_encoder.training": _ENCODER_TRAINING_FIELDS,
}
_BASELINE_SECTIONS = {
    f"baselines.{name}.{part}": fields
    for name in BASELINES
    for part, fields in (("model", baseline_config(name).own_fields()), ("training", _TRAINING_FIELDS))
}


class Recipe:
    r"""
    What to train on what and how, one section each.

    Args:
        sections: `model` (fields of [`MisterEConfig`], or of the configuration that its `model_type` names), `corpus` (of [`CorpusSettings`])
            and `training` (of [`MisterETrainingArguments`]); for stage 1 `speech_encoder` and `text_encoder` (of [`UtteranceEncoderConfig`] and
            [`MisterEProcessor`], `dtype`, `folds` for cross-fitted vectors, and a section `training` of [`UtteranceTrainingArguments`]); and
            `baselines`, sections `model` and `training` by a baseline's name, where it is not to be as [`Recipe.baseline`] has it.

    Raises:
        ValueError: naming the section and the field, for a key that is not known or a value that does not fit.
    """

    def __init__(self, sections: dict[str, dict[str, Any]], source: str = "recipe"):
        self.source = source
        if not isinstance(sections, dict):
            raise InputError(f"{source}: expected the sections {list(_SECTIONS)}, got {sections!r}")
        self.sections = {name: {} for name in _SECTIONS}
        for section, values in self._one_level(copy.deepcopy(sections)).items():
            if section not in self.fields():
                raise self._unknown_section(section)
            self._check_holds(section, values, "fields and values")
            if section in _BASELINE_SECTIONS:
                self.sections[section] = {}  # that it is named says something already
            # the model's type first, for its fields depend on it
            for field, value in sorted((values or {}).items(), key=lambda item: item[0] != "model_type"):
                self.set(f"{section}.{field}", value)

    def _one_level(self, sections: dict[str, Any]) -> dict[str, Any]:
        """Sections that stand in others, under their dotted names."""
        for section in [name for name in sections if name in _ENCODER_SECTIONS and isinstance(sections[name], dict)]:
            if "training" in sections[section]:
                sections[f"{section}.training"] = sections[section].pop("training")
        baselines = sections.pop("baselines", None)
        self._check_holds("baselines", baselines, "names of baselines")
        for name, parts in (baselines or {}).items():
            if name not in BASELINES:
                raise InputError(f"{self.source}: unknown baseline '{name}'{_nearest(name, BASELINES)}")
            self._check_holds(f"baselines.{name}", parts, "the sections model and training")
            sections |= {
                f"baselines.{name}.{part}": values for part, values in ({"model": {}} | (parts or {})).items()
            }
        return sections

    def _check_holds(self, section: str, values: Any, what: str):
        if values is not None and not isinstance(values, dict):
            raise InputError(f"{self.source}: section '{section}' must hold {what}, got {values!r}")

    def _unknown_section(self, section: Any) -> ValueError:
        return InputError(
            f"{self.source}: unknown section '{section}'{_nearest(section, [*self.fields(), 'baselines'])}"
        )

    def fields(self) -> dict[str, dict[str, Any]]:
        """Name and type of the fields of each section; those of the model depend on its type."""
        model = _MODEL_FIELDS[self.sections["model"].get("model_type", MisterEConfig.model_type)]
        stage_2 = {"model": model, "corpus": _CORPUS_FIELDS, "training": _TRAINING_FIELDS}
        return stage_2 | _ENCODER_SECTIONS | _BASELINE_SECTIONS

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        r"""
        Read a recipe file.

        Args:
            path: a YAML file, or the name of a recipe of this package; see [`~mister_e_hf.recipe_files.find_recipe`].
            overrides: command-line words, `--learning_rate 1e-4`, `--model.causal`, `--corpus=PATH`; see [`Recipe.override`].
        """
        path = find_recipe(path)
        try:
            sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"'{path}' is no valid YAML: {error}") from error
        recipe = cls(sections, source=str(path))
        recipe.override(overrides)
        return recipe

    def set(self, name: str, value: Any, word: str | None = None):
        """
        Set one field, by `section.field`, or by the field's name alone where only one section has it. With the command-line
        word that the value was read from, the word itself or a list of one is taken where the value does not fit but they do.
        """
        section, _, field = name.rpartition(".")
        all_fields = self.fields()
        if not section:
            homes = [home for home in _SECTIONS if field in all_fields[home]]
            if not homes:
                known = [known for home in _SECTIONS for known in all_fields[home]]
                raise InputError(f"{self.source}: unknown field '{field}'{_nearest(field, known)}")
            if len(homes) > 1:
                raise InputError(f"{self.source}: '{field}' may be {' or '.join(f'{home}.{field}' for home in homes)}")
            section = homes[0]
        if section not in all_fields:
            raise self._unknown_section(section)
        if field not in all_fields[section]:
            raise InputError(
                f"{self.source}: section '{section}' has no field '{field}'{_nearest(field, all_fields[section])}"
            )
        if section.rpartition(".")[2] == "training" and field in _NO_PART_OF_A_RECIPE:
            raise InputError(
                f"{self.source}: training.{field} does not belong in a recipe: {_NO_PART_OF_A_RECIPE[field]}"
            )
        hint = all_fields[section][field]
        choices = [_as_number(value, hint), *([] if word is None else [word, [value]])]
        fitting = [choice for choice in choices if _fits(choice, hint)]
        if not fitting:
            kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise InputError(f"{self.source}: section '{section}': '{field}' must be {kind}, got {value!r}")
        if section.rpartition(".")[2] == "training":
            stage_1 = section in _ENCODER_SECTIONS
            arguments = UtteranceTrainingArguments if stage_1 else MisterETrainingArguments
            try:
                check_field(field, fitting[0], arguments)
            except InputError as error:
                raise InputError(f"{self.source}: section '{section}': {error}") from error
        if field == "model_type":
            foreign = [name for name in self.sections["model"] if name not in _MODEL_FIELDS[fitting[0]]]
            if foreign:
                raise InputError(
                    f"{self.source}: a model of type '{fitting[0]}' has no {', '.join(foreign)}; give model_type before its fields"
                )
        self.sections.setdefault(section, {})[field] = fitting[0]

    def override(self, words: Sequence[str]):
        """Set fields by command-line words: `--field value`, `--field=value`, or `--field` alone for true; values as YAML."""
        words = list(words)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                raise InputError(f"Expected --field value, got '{word}'")
            name, equals, text = word[2:].partition("=")
            values = [text] if equals else []
            while not equals and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            text = f"[{', '.join(values)}]" if len(values) > 1 else values[0] if values else "true"
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise InputError(f"--{name}: '{text}' is no valid YAML: {error}") from error
            self.set("corpus.path" if name == "corpus" else name, value, text if len(values) == 1 else None)

    @property
    def corpus(self) -> CorpusSettings:
        """The section, with the corpus's own labels where it names none; from then on the recipe states them."""
        given = self.sections["corpus"]
        if given.get("path") and not given.get("labels"):
            given["labels"] = corpus_labels(given["path"], given.get("label_column", CorpusSettings.label_column))
        settings = CorpusSettings(**given)
        if not all(isinstance(label, str) for label in settings.labels):
            raise InputError(
                f"{self.source}: corpus.labels must be names (quote yes, no, on, off); got {settings.labels}"
            )
        if not settings.labels:
            raise InputError(
                f"{self.source}: no labels: give a corpus, whose own are then taken (--corpus), or name them (--corpus.labels)"
            )
        if len(settings.labels) < 2 or len(set(settings.labels)) != len(settings.labels):
            raise InputError(
                f"{self.source}: corpus.labels must name two classes or more, each once; got {settings.labels}"
            )
        return settings

    def model_config(self) -> LabelledConfig:
        """The model's configuration, its classes those of the corpus section."""
        fields = dict(self.sections["model"])
        config_class = _CONFIGS[fields.pop("model_type", MisterEConfig.model_type)]
        try:
            return config_class(id2label=dict(enumerate(self.corpus.labels)), **fields)
        except Exception as error:  # the config's checks raise errors of several kinds
            raise InputError(f"{self.source}: section 'model': {error}") from error

    def model(self) -> PreTrainedModel:
        """A new model of that configuration."""
        return AutoModel.from_config(self.model_config())

    def baseline(self, name: str) -> "Recipe":
        r"""
        The recipe of a baseline on the same corpus of vectors. Its model has the widths, clipping and class weights of this recipe's, its training is this
        recipe's with the rate and length that suit it ([`~mister_e_hf.baselines.TRAINING`]), and what the section `baselines` says of either goes
        before.

        Args:
            name: one of [`~mister_e_hf.baselines.BASELINES`].
        """
        model, training = ({**self.sections.get(f"baselines.{name}.{part}", {})} for part in ("model", "training"))
        shared = ("speech_embedding_dim", "text_embedding_dim", "feature_clip", "class_weights")
        model = {field: value for field, value in self.sections["model"].items() if field in shared} | model
        # of a push there is one model, and the loss has no such terms
        own = {
            field: value
            for field, value in self.sections["training"].items()
            if not field.startswith(("hub_", "push_"))
        }
        without = {"contrastive_weight": 0.0, "consistency_weight": 0.0}
        return Recipe(
            {
                "model": {"model_type": baseline_config(name).model_type, **model},
                "corpus": self.sections["corpus"],
                "training": own | TRAINING[name] | training | without,
            },
            f"{self.source}, baseline {name}",
        )

    def value(self, name: str) -> Any:
        """What a field of the model or of training comes to, by `section.field`: what the recipe says, or the default."""
        section, _, field = name.partition(".")
        if field in self.sections[section]:
            return self.sections[section][field]
        return getattr(self.model_config() if section == "model" else MisterETrainingArguments, field)

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """A copy with these fields set, by `section.field`."""
        changed = Recipe(self.to_dict(), self.source)
        for field, value in changes.items():
            changed.set(field, value)
        return changed

    def training_arguments(self, output_dir: str | Path, seed: int) -> MisterETrainingArguments:
        try:
            return MisterETrainingArguments(**self.sections["training"], output_dir=str(output_dir), seed=seed)
        except Exception as error:  # transformers' own checks raise errors of several kinds
            raise InputError(f"{self.source}: section 'training': {short(error)}") from error

    def read_corpus(self) -> dict[str, DialogueVectors]:
        """The corpus's splits, checked against the model's configuration."""
        corpus, config = self.corpus, self.model_config()
        splits = read_corpus(self.corpus_path(), config.label2id, corpus.label_column, corpus.score_column)
        if corpus.validation_group is not None:
            splits |= validation_by_group(splits, corpus.group_pattern, corpus.validation_group)
        widths = {"speech": config.speech_embedding_dim, "text": config.text_embedding_dim}
        for data in splits.values():
            data.check(widths)
            if not (data.labels >= 0).any():
                raise InputError(f"{data.name}: no turn has a label in '{corpus.label_column}'")
        parts = "experts" if hasattr(config, "experts") else "modalities"
        for modality in widths:
            present = splits["train"].present.get(modality)
            if modality in getattr(config, parts) and (present is None or not present.any()):
                raise InputError(
                    f"train: no turn has {modality}, so nothing can be learned from it; leave it out of model.{parts}"
                )
        return splits

    def corpus_path(self) -> str:
        """Where the corpus lies, as it was given."""
        if self.corpus.path is None:
            raise InputError(f"{self.source}: no corpus given; set corpus.path or pass --corpus")
        return self.corpus.path

    def encoder(self, modality: str) -> "EncoderSettings":
        """The section of one modality's encoder."""
        section = f"{modality}_encoder"
        if not self.sections.get(section, {}).get("backbone"):
            raise InputError(f"{self.source}: no {section}.backbone, so there is no encoder of {modality} to train")
        return EncoderSettings(
            self.source,
            modality,
            copy.deepcopy(self.sections[section]),
            copy.deepcopy(self.sections.get(f"{section}.training", {})),
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        sections = copy.deepcopy(self.sections)
        for name in [name for name in sections if "." in name]:
            *above, own = name.split(".")
            place = sections
            for each in above:
                place = place.setdefault(each, {})
            place[own] = sections.pop(name)
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
            raise InputError(f"{self.source}: section '{section}': {error}") from error

    def training_arguments(self, output_dir: str | Path, seed: int) -> UtteranceTrainingArguments:
        try:
            return UtteranceTrainingArguments(**self.training, output_dir=str(output_dir), seed=seed)
        except Exception as error:  # transformers' own checks raise errors of several kinds
            raise InputError(f"{self.source}: section '{self.modality}_encoder.training': {short(error)}") from error

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
