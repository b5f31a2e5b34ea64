"""
A recipe: one YAML file with the encoders, the model, the corpus and the training of a run, checked before any work
starts.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from ..base.errors import InputError, short, unwrapped
from ..base.modalities import MODALITIES
from ..base.yaml_files import read_yaml
from ..encoders.embedding import RECORD
from ..models.configuration_conversation import ConversationConfig
from ..models.registry import default_model_type, entry_of, registered
from ..vectors.corpus_labels import corpus_labels
from ..vectors.dialogue_vectors import DialogueVectors
from .corpus_settings import CORPUS_FIELDS, CorpusSettings
from .dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from .pretrained_start import new_model
from .recipe_baselines import sections_of_baseline
from .recipe_fields import as_typed, fits, nearest, read_word, type_name
from .recipe_files import find_recipe
from .recipe_sections import (
    NOT_IN_A_RECIPE,
    PRETRAINING,
    REGRESSION,
    SECTIONS,
    EncoderSettings,
    absent_modality,
    advice_without_backbone,
    arguments_of,
    baseline_sections,
    check_focal_gamma,
    encoder_sections,
    model_fields,
    training_defaults,
    training_fields,
    training_values,
)
from .recipe_widths import find_widths, picked_columns, take_picked_width
from .training_fields import check_field


class Recipe:
    r"""
    The settings of a run, in sections.

    Args:
        sections: `model` (fields of the configuration that `model_type` names, by default [`MisterEConfig`]), `corpus`
            (of [`CorpusSettings`]) and `training` (of [`MisterETrainingArguments`], or of the model's own Trainer);
            for stage 1 a section per modality such as `text_encoder` (fields of [`UtteranceEncoderConfig`] and
            [`MisterEProcessor`], `dtype`, `folds` for cross-fitted vectors, and a section `training` of
            [`UtteranceTrainingArguments`]); `pretraining` (of [`PretrainingArguments`]); and `baselines`, sections
            `model` and `training` by a baseline's name, for what differs from [`Recipe.baseline`].
        source: name of the recipe in messages.

    Raises:
        InputError: naming the section and the field, for an unknown key or a value of another type.
    """

    def __init__(self, sections: dict[str, dict[str, Any]], source: str = "recipe"):
        self.source = source
        if not isinstance(sections, dict):
            raise InputError(f"{source}: expected the sections {list(SECTIONS)}, got {short(repr(sections))}")
        self.sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        for section, values in self._one_level(copy.deepcopy(sections)).items():
            if section not in self.fields():
                raise self._unknown_section(section)
            self._check_holds(section, values, "fields and values")
            if section in baseline_sections():
                self.sections[section] = {}  # a baseline that is named without fields counts
            # model_type comes first, since the fields of the model depend on it.
            for field, value in sorted((values or {}).items(), key=lambda item: item[0] != "model_type"):
                self.set(f"{section}.{field}", value)

    def _one_level(self, sections: dict[str, Any]) -> dict[str, Any]:
        """Move nested sections to the top, under their dotted names."""
        for section in [name for name in sections if name in encoder_sections() and isinstance(sections[name], dict)]:
            if "training" in sections[section]:
                sections[f"{section}.training"] = sections[section].pop("training")
        given, known = sections.pop("baselines", None), [each.name for each in registered()]
        self._check_holds("baselines", given, "names of baselines")
        for name, parts in (given or {}).items():
            if name not in known:
                raise InputError(f"{self.source}: unknown baseline '{name}'{nearest(name, known)}")
            self._check_holds(f"baselines.{name}", parts, "the sections model and training")
            sections |= {
                f"baselines.{name}.{part}": values for part, values in ({"model": {}} | (parts or {})).items()
            }
        return sections

    def _check_holds(self, section: str, values: Any, what: str):
        if values is not None and not isinstance(values, dict):
            raise InputError(f"{self.source}: section '{section}' must hold {what}, got {short(repr(values))}")

    def _unknown_section(self, section: Any) -> ValueError:
        return InputError(
            f"{self.source}: unknown section '{section}'{nearest(section, [*self.fields(), 'baselines'])}"
        )

    def __repr__(self) -> str:
        return (
            f"Recipe({self.source!r})\n{yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)}".rstrip()
        )

    def fields(self) -> dict[str, dict[str, Any]]:
        """Name and type of the fields of each section; those of `model` depend on its type."""
        model = model_fields(self.model_type)
        stage_2 = {"model": model, "corpus": CORPUS_FIELDS, "training": training_fields(self.model_type)}
        return stage_2 | PRETRAINING | encoder_sections() | baseline_sections()

    @property
    def model_type(self) -> str:
        """The type of the model, one of those in [`~mister_e_hf.models.registry`]."""
        return self.sections["model"].get("model_type", default_model_type())

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        r"""
        Read a recipe file.

        Args:
            path: a YAML file, or the name of a recipe of this package; see
                [`~mister_e_hf.training.recipe_files.find_recipe`].
            overrides: command-line arguments such as `--learning_rate 1e-4`, `--model.causal` or `--corpus=PATH`; see
                [`Recipe.override`].
        """
        path = find_recipe(path)
        sections = read_yaml(path)
        recipe = cls(sections, source=str(path))
        recipe.override(overrides)
        corpus = recipe.sections["corpus"]
        named = any(re.match(r"--(corpus\.)?vectors\b", word) for word in overrides)
        if not named and corpus.get("vectors") and (Path(corpus.get("path") or "").expanduser() / RECORD).is_file():
            # Encoders of this package made these vectors, not what the recipe states for its own corpus.
            del corpus["vectors"]
        return recipe

    def set(self, name: str, value: Any, words: Sequence[str] = ()):
        r"""
        Set one field.

        Args:
            name: `section.field`, or the field alone if only one section has it.
            value: the new value.
            words: the command-line arguments that the value was read from; they are taken as text, or as a list, if
                the value has another type than the field.

        Raises:
            InputError: if the field is unknown, may not be set, or has another type.
        """
        if name.rpartition(".")[2] == "problem_type":
            raise InputError(
                f"{self.source}: {name} does not belong in a recipe: name columns of scores in corpus.targets, which "
                "makes the task regression; without it the classes of corpus.labels are predicted"
            )
        section, field = self._place(name)
        arguments = arguments_of(section, self.model_type)
        if arguments is not None and field in NOT_IN_A_RECIPE:
            raise InputError(f"{self.source}: {section}.{field} does not belong in a recipe: {NOT_IN_A_RECIPE[field]}")
        hint = self.fields()[section][field]
        choices = [value, list(words)] if len(words) > 1 else [value, *words, *([[value], [*words]] if words else [])]
        fitting = [typed for choice in choices if fits(typed := as_typed(choice, hint), hint)]
        if not fitting:
            quotes = "; quote it if it is a name" if isinstance(value, bool | int) and fits("", hint) else ""
            raise InputError(
                f"{self.source}: section '{section}': '{field}' must be {type_name(hint)}, got "
                f"{short(repr(value))}{quotes}"
            )
        if arguments is not None:
            try:
                check_field(field, fitting[0], arguments)
            except InputError as error:
                raise InputError(f"{self.source}: section '{section}': {error}") from error
        if field == "model_type":
            foreign = [name for name in self.sections["model"] if name not in model_fields(fitting[0])]
            if foreign:
                raise InputError(
                    f"{self.source}: a model of type '{fitting[0]}' has no {', '.join(foreign)}; write a recipe "
                    "of that model, as Recipe.baseline does"
                )
        self.sections.setdefault(section, {})[field] = fitting[0]

    def _place(self, name: str) -> tuple[str, str]:
        """Section and field that a name refers to."""
        section, _, field = name.rpartition(".")
        all_fields = self.fields()
        if not section:
            homes = [home for home in SECTIONS if field in all_fields[home]]
            if not homes:
                known = [known for home in SECTIONS for known in all_fields[home]]
                raise InputError(f"{self.source}: unknown field '{field}'{nearest(field, known)}")
            if len(homes) > 1:
                raise InputError(f"{self.source}: '{field}' may be {' or '.join(f'{home}.{field}' for home in homes)}")
            section = homes[0]
        if section not in all_fields:
            raise self._unknown_section(section)
        if field not in all_fields[section]:
            hint = absent_modality(self.model_type, field) if section == "model" else None
            hint = hint or nearest(field, all_fields[section])
            raise InputError(f"{self.source}: section '{section}' has no field '{field}'{hint}")
        return section, field

    def override(self, words: Sequence[str]):
        r"""
        Set fields with command-line arguments.

        Args:
            words: `--field value`, `--field=value`, or `--field` alone for true, with values in YAML. If a field
                appears twice, the last value counts. `--text_encoder none` removes a section of stage 1.
        """
        words = list(words)
        while words:
            word = words.pop(0)
            if not word.startswith("--") or word == "--":
                raise InputError(f"Expected --field value, got '{word}'")
            name, equals, text = word[2:].partition("=")
            given = [text] if equals else []
            while not equals and words and not words[0].startswith("--"):
                given.append(words.pop(0))
            values = [read_word(each, name) for each in given]
            if name in encoder_sections() and "." not in name:
                self._leave_out(name, given)
            else:
                value = values if len(values) > 1 else values[0] if values else True
                self.set("corpus.path" if name == "corpus" else name, value, given)

    def _leave_out(self, section: str, given: list[str]):
        if given not in (["none"], ["null"]):
            raise InputError(
                f"--{section} takes only the value none, which removes the section; its fields are "
                f"--{section}.backbone, ..."
            )
        self.drop_encoder(next(name for name, modality in MODALITIES.items() if modality.encoder == section))

    @property
    def corpus(self) -> CorpusSettings:
        """
        The section `corpus`. If it names neither labels nor targets, the labels of the corpus are added to the recipe.
        """
        given = self.sections["corpus"]
        if given.get("path") and not given.get("labels") and given.get("targets") is None:
            given["labels"] = corpus_labels(given["path"], given.get("label_column", CorpusSettings.label_column))
        settings = CorpusSettings(**given)
        settings.check(self.source)
        return settings

    @property
    def label2id(self) -> dict[str, int]:
        """Index of each class, or of each target of a regression."""
        return {name: index for index, name in enumerate(self.corpus.names)}

    @property
    def regression(self) -> bool:
        """Whether the targets of the section `corpus` are predicted in place of classes."""
        return self.sections["corpus"].get("targets") is not None

    def model_config(self) -> ConversationConfig:
        """
        The configuration of the model, with the labels or targets of the section `corpus`. A width that neither the
        recipe nor the model's defaults state becomes that of the corpus or of the encoder.
        """
        names = dict(enumerate(self.corpus.names))
        if self.regression:
            check_focal_gamma(self.sections, self.model_type, self.source)
        find_widths(self)
        fields = dict(self.sections["model"])
        fields.pop("model_type", None)
        if self.regression:
            fields["problem_type"] = REGRESSION
        if columns := picked_columns(self):
            fields["speech_columns"] = columns
        try:
            return entry_of(self.model_type).config_class()(id2label=names, **fields)
        except Exception as error:  # the checks of a configuration raise errors of several kinds
            raise InputError(f"{self.source}: section 'model': {unwrapped(error)}") from error

    def model(self) -> PreTrainedModel:
        """A new model with this configuration, which begins from pre-training if training.pretrained names one."""
        return new_model(self.model_config(), self.sections["training"].get("pretrained"))

    def title(self) -> str:
        """Name of the model, for reports."""
        return entry_of(self.model_type).title

    def baseline(self, name: str) -> "Recipe":
        r"""
        The recipe of another model on the same corpus of vectors.

        Its model has the widths, clipping and class weights of this recipe's model. Its training is that of this
        recipe with the training defaults of the registry. The section `baselines` overrides both.

        Args:
            name: short name of a registered model.

        Raises:
            InputError: if the name is unknown.
        """
        take_picked_width(self)
        sections = sections_of_baseline(name, self.sections, self.model_type)
        return Recipe(sections, f"{self.source}, baseline {name}")

    def value(self, name: str) -> Any:
        """The value of `section.field`, of the model or of training: that of the recipe, or the default."""
        section, _, field = name.partition(".")
        if field in self.sections[section]:
            return self.sections[section][field]
        if section == "model":
            return getattr(self.model_config(), field)
        return training_defaults(self.model_type, self.regression).get(
            field, getattr(self.trainer_class.arguments_class, field, None)
        )

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """A copy with other values of some fields, by `section.field`."""
        changed = Recipe(self.to_dict(), self.source)
        for field, value in changes.items():
            changed.set(field, value)
        return changed

    @property
    def trainer_class(self) -> type[DialogueTrainer]:
        """The class of the model's Trainer."""
        return entry_of(self.model_type).trainer_class()

    def training_arguments(self, output_dir: str | Path, seed: int) -> DialogueTrainingArguments:
        """The arguments of the Trainer of stage 2."""
        try:
            fields = training_values(self.model_type, self.regression, self.sections["training"])
            return self.trainer_class.arguments_class(**fields, output_dir=str(output_dir), seed=seed)
        except Exception as error:  # transformers' own checks raise errors of several kinds
            raise InputError(f"{self.source}: section 'training': {short(error)}") from error

    def read_corpus(self) -> dict[str, DialogueVectors]:
        """Read the splits of the corpus, and check them against the configuration of the model."""
        config = self.model_config()
        return self.corpus.read(self.corpus_path(), config, self.title())

    def leave_out(self, absent: Sequence[str]) -> str:
        r"""
        Leave out the parts of the model that need vectors of absent modalities.

        Returns:
            A description of the changes; empty without any.
        """
        changes = self.model_config().without(absent)
        changes = {name: value for name, value in changes.items() if self.value(name) != value}
        for name, value in changes.items():
            self.set(name, value)
        return ", ".join(
            f"{name} is {' '.join(value) if isinstance(value, list) else f'{value:g}'}"
            for name, value in changes.items()
        )

    def drop_encoder(self, modality: str):
        """Remove the section of an encoder."""
        for section in (MODALITIES[modality].encoder, f"{MODALITIES[modality].encoder}.training"):
            self.sections.pop(section, None)

    def corpus_path(self) -> str:
        """Folder or id of the corpus, as it was given."""
        if self.corpus.path is None:
            raise InputError(f"{self.source}: no corpus given; set corpus.path or pass --corpus")
        return self.corpus.path

    def encoder(self, modality: str) -> "EncoderSettings":
        """The section of the encoder of one modality."""
        section = MODALITIES[modality].encoder
        if not self.sections.get(section, {}).get("backbone"):
            raise InputError(
                f"{self.source}: no {section}.backbone, so no encoder of {modality} can be trained. "
                f"{advice_without_backbone(self.source, section)}"
            )
        return EncoderSettings(
            self.source,
            modality,
            copy.deepcopy(self.sections[section]),
            copy.deepcopy(self.sections.get(f"{section}.training", {})),
            self.regression,
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as a recipe file nests them."""
        sections = copy.deepcopy(self.sections)
        for name in [name for name in sections if "." in name]:
            *above, own = name.split(".")
            place: dict[str, Any] = sections
            for each in above:
                place = place.setdefault(each, {})
            place[own] = sections.pop(name)
        return sections
