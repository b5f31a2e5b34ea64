"""The section `corpus` of a recipe: where the turns are, and what is predicted of them, classes or scores."""

import dataclasses
import re
from typing import Any, Literal

import numpy as np

from ..base.errors import InputError, short
from ..models.configuration_conversation import ConversationConfig
from ..vectors.dialogue_vectors import DialogueVectors
from ..vectors.folds import validation_by_group
from ..vectors.named_columns import check_speech_columns
from ..vectors.store import read_corpus


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
        targets: columns of real-valued scores to predict in place of classes, which makes the task regression; or a
            mapping from the name of each target to its column.
        score_bins: `"mosi"` (scores from -3 to 3) or `"sims"` (from -1 to 1) adds the accuracies over bins of the
            score that are published for these corpora; for one target.
        speech_columns: the columns of the speech vectors to keep, by the names that the corpus's tables state, in this
            order; by default all. A corpus whose tables name no columns counts as one without speech.
    """

    path: str | None = None
    name: str | None = None
    labels: list[str] = dataclasses.field(default_factory=list)
    label_column: str = "labels"
    score_column: str | None = None
    vectors: dict[str, str] | None = None
    group_pattern: str | None = None
    validation_group: str | None = None
    targets: list[str] | dict[str, str] | None = None
    score_bins: Literal["mosi", "sims"] | None = None
    speech_columns: list[str] | None = None

    @property
    def target_columns(self) -> dict[str, str]:
        """The column of each target, by the target's name; empty if classes are predicted."""
        if isinstance(self.targets, dict):
            return dict(self.targets)
        return {name: name for name in self.targets or ()}

    @property
    def names(self) -> list[str]:
        """What a model of this corpus predicts: the names of the targets, or of the classes."""
        return list(self.target_columns) or self.labels

    def columns(self) -> dict[str, Any]:
        """What [`~mister_e_hf.vectors.store.read_corpus`] reads as labels and speech vectors: its arguments."""
        if self.targets is not None:
            return {"targets": self.target_columns, "speech_columns": self.speech_columns}
        return {
            "label2id": self._label2id(),
            "label_column": self.label_column,
            "score_column": self.score_column,
            "speech_columns": self.speech_columns,
        }

    def _label2id(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def turn_labels(self) -> dict[str, Any]:
        """What [`~mister_e_hf.encoders.utterances.Utterances`] reads as labels: its arguments."""
        if self.targets is not None:
            return {"targets": self.target_columns}
        return {"label2id": self._label2id()}

    def read(self, path: str, config: ConversationConfig, title: str) -> dict[str, DialogueVectors]:
        """Read the splits of the corpus, and check them against the configuration of a model, `title`."""
        splits = read_corpus(path, **self.columns())
        if self.validation_group is not None:
            splits |= validation_by_group(splits, self.group_pattern, self.validation_group)
        for data in splits.values():
            data.check(config.read_widths)
            self.check_labelled(data)
        for modality in config.required_modalities:
            present = splits["train"].present.get(modality)
            if present is None or not present.any():
                field = next(iter(config.without([modality])), None)
                hint = f"leave it out of {field}" if field else f"{title} needs it"
                raise InputError(f"train: no turn has {modality}, so nothing can be learned from it; {hint}")
        return splits

    def labelled_turns(self, data: DialogueVectors) -> int:
        """Number of turns of a split that have a class, or a score of some target."""
        if data.labels is None:
            return 0
        return int((~np.isnan(data.labels).all(-1) if data.task == "regression" else data.labels >= 0).sum())

    def check_labelled(self, data: DialogueVectors):
        """
        Check that a split has labels, or scores of every target.

        Raises:
            InputError: naming the split and the column.
        """
        if self.targets is None and not self.labelled_turns(data):
            raise InputError(f"{data.name}: no turn has a label in '{self.label_column}'")
        for index, column in enumerate(self.target_columns.values()):
            if data.labels is None or np.isnan(data.labels[:, index]).all():
                raise InputError(f"{data.name}: no turn has a score in '{column}'; remove it from corpus.targets")

    def check(self, source: str):
        """
        Check labels or targets, names of columns, and patterns.

        Raises:
            InputError: naming the recipe and the field.
        """
        if self.targets is not None:
            self._check_targets(source)
        else:
            self._check_labels(source)
            if self.score_bins is not None:
                raise InputError(
                    f"{source}: corpus.score_bins are bins of a score that is predicted; name it in corpus.targets, "
                    "or remove score_bins"
                )
        if self.speech_columns is not None:
            check_speech_columns(self.speech_columns, f"{source}: corpus.speech_columns")
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise InputError(
                f"{source}: corpus.group_pattern '{short(self.group_pattern)}' is not a regular expression: {error}"
            ) from error

    def _check_labels(self, source: str):
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

    def _check_targets(self, source: str):
        columns, given = self.target_columns, short(self.targets)
        if not columns or not all(name.strip() and column.strip() for name, column in columns.items()):
            raise InputError(f"{source}: corpus.targets must name one column or more, none of them empty; got {given}")
        if len(set(columns.values())) < len(self.targets or ()):
            raise InputError(f"{source}: corpus.targets must name each column once; got {given}")
        beside = {
            "labels": self.labels,
            "score_column": self.score_column,
            "label_column": self.label_column != CorpusSettings.label_column,
        }
        if classes := [f"corpus.{name}" for name, value in beside.items() if value]:
            raise InputError(
                f"{source}: corpus.targets ({', '.join(columns)}) are scores to predict, but {' and '.join(classes)} "
                f"{'are' if len(classes) > 1 else 'is'} for classes; remove one or the other (on the command line: "
                "--corpus.labels [] --corpus.score_column null, or --corpus.targets null)"
            )
        if self.score_bins is not None and len(columns) > 1:
            raise InputError(
                f"{source}: corpus.score_bins are for one target, but corpus.targets names {', '.join(columns)}; "
                "remove score_bins or the other targets"
            )


CORPUS_FIELDS = {field.name: field.type for field in dataclasses.fields(CorpusSettings)}
