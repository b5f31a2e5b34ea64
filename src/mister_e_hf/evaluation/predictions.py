"""Predictions of a trained model on one split of a corpus: their scores, and the table that stores them.

Letters: N turns of the split, C classes, S targets of a regression, E heads beside the main one, P parts of a model.
The main head is called `mixture`.
"""

import logging
import statistics
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from sklearn.metrics import confusion_matrix
from transformers import Trainer

from ..base.configuration_labelled import LabelledConfig
from ..base.errors import InputError
from ..base.head_names import head_titles
from ..base.part_weights import GATE, PART_WEIGHTS, WEIGHT_FIELDS
from ..base.score_names import in_per_cent, score_title
from ..vectors.dialogue_vectors import DialogueVectors
from .binned_scores import BINS
from .metrics import (
    IGNORE_INDEX,
    bootstrap_intervals,
    emotion_scores,
    expected_calibration_error,
    scored_turns,
    softmax,
)
from .regression import regression_intervals, regression_scores

logger = logging.getLogger(__name__)


class View(Protocol):
    """
    What a trainer of conversation models predicts: [`~mister_e_hf.models.modeling_conversation.ConversationOutput`] as
    arrays.
    """

    logits: np.ndarray
    head_logits: Mapping[str, np.ndarray] | None
    gate_weights: np.ndarray | None
    capsule_weights: np.ndarray | None
    expert_weights: np.ndarray | None
    modality_weights: np.ndarray | None


def predict(trainer: Trainer, data: DialogueVectors) -> dict[str, np.ndarray]:
    r"""
    Predict the turns of a split.

    Returns:
        logits (N, C) of the `mixture` and of each further head by its name, which in a regression are the predicted
        scores (N, S); and the weights (N, P) that the model gives its parts, by the fields of [`PART_WEIGHTS`].
    """
    metrics, trainer.compute_metrics = trainer.compute_metrics, None  # `score` makes the scores, with their intervals
    try:
        view = cast(View, trainer.predict(data).predictions)
    finally:
        trainer.compute_metrics = metrics
    real = np.arange(view.logits.shape[1]) < data.lengths[:, None]
    found = {"mixture": view.logits[real]}
    found |= {head: logits[real] for head, logits in (view.head_logits or {}).items()}
    weights = {field: getattr(view, field) for field in WEIGHT_FIELDS}
    return found | {field: values[real] for field, values in weights.items() if values is not None}


def probabilities(outputs: dict[str, np.ndarray], temperature: float = 1.0) -> dict[str, np.ndarray]:
    """The output of [`predict`] with probabilities in place of logits; the temperature is that of the mixture."""
    return {
        name: values if name in WEIGHT_FIELDS else softmax(values / (temperature if name == "mixture" else 1.0))
        for name, values in outputs.items()
    }


def labels_of(data: DialogueVectors) -> np.ndarray:
    r"""
    The labels of a split's turns: class indices (N,), or the scores (N, S) of a regression.

    Raises:
        InputError: if it has none.
    """
    if data.labels is None:
        raise InputError(f"{data.name}: the turns have no labels, so nothing can be scored")
    return data.labels


def score(
    predictions: dict[str, np.ndarray], data: DialogueVectors, label_names: list[str], bins: str | None = None
) -> dict[str, dict]:
    r"""
    Score the predictions of a split.

    Args:
        predictions: by head, probabilities (N, C), or the predicted scores (N, S) of a regression.
        data: the split.
        label_names: names of the classes or of the targets, in the order of the model's outputs.
        bins: for a regression, see [`~mister_e_hf.evaluation.regression.regression_scores`].

    Returns:
        scores by head; those of the `mixture` include intervals and, for classes, the confusion matrix. If a corpus
        with classes has real-valued scores (CMU-MOSI), each head is also scored without the turns whose score is zero
        or missing, as `... without zeros`.
    """
    heads = {name: values for name, values in predictions.items() if name not in WEIGHT_FIELDS}
    dialogues = np.repeat(np.arange(len(data)), data.lengths)
    if data.task == "regression":
        return _score_regression(heads, labels_of(data), dialogues, label_names, bins, data.name)
    scores = {}
    for suffix, labels in scored_turns(labels_of(data), data.scores).items():
        for name, probabilities in heads.items():
            scores[name + suffix] = emotion_scores(labels, probabilities, label_names)
        mixture, scored = predictions["mixture"], labels != IGNORE_INDEX
        scores[f"mixture{suffix}"]["intervals"] = bootstrap_intervals(labels, mixture, dialogues)
        classes = range(len(label_names))
        counts = confusion_matrix(labels[scored], mixture[scored].argmax(-1), labels=classes)
        scores[f"mixture{suffix}"]["confusion"] = counts.tolist()
    return scores


def _score_regression(
    heads: Mapping[str, np.ndarray],
    labels: np.ndarray,
    dialogues: np.ndarray,
    target_names: list[str],
    bins: str | None,
    split: str,
) -> dict[str, dict]:
    scores = {name: regression_scores(labels, values, target_names, bins) for name, values in heads.items()}
    mixture = scores["mixture"]
    mixture["intervals"] = regression_intervals(labels, heads["mixture"], dialogues, target_names, bins)
    for sentence in mixture.get("undefined", []):
        logger.warning("%s: %s", split, sentence)
    return scores


def calibration(mixture: np.ndarray, data: DialogueVectors) -> dict[str, Any]:
    """
    Calibration error of the mixture's probabilities (N, C), with its interval.

    Raises:
        InputError: if the split's labels are scores of a regression.
    """
    if data.task == "regression":
        raise InputError(f"{data.name}: the predictions are scores, not probabilities, so they have no calibration")
    labels = labels_of(data)
    dialogues = np.repeat(np.arange(len(data)), data.lengths)
    scored = labels != IGNORE_INDEX
    name = "expected_calibration_error"
    return {
        name: expected_calibration_error(labels[scored], mixture[scored]),
        "interval": bootstrap_intervals(labels, mixture, dialogues)[name],
    }


def prediction_table(predictions: dict[str, np.ndarray], data: DialogueVectors, config: LabelledConfig) -> pa.Table:
    """
    A row per turn of the split: its ids, its label, and the predictions of every head. In a regression `label`,
    `prediction` and `<head>_prediction` are lists of S scores, null where a turn has none. `gate_weights` are lists in
    the order of the heads, weights of other parts numbers by the names of the parts.
    """
    id2label = config.id2label
    labels = labels_of(data)
    columns = {
        "split": [data.name] * data.num_turns,
        "dialogue_id": np.repeat(data.dialogue_ids, data.lengths),
        "utterance_id": [utterance for ids in data.utterance_ids for utterance in ids],
    }
    if data.task == "regression":
        columns["label"] = _lists(labels)
        for name, values in predictions.items():
            if name not in WEIGHT_FIELDS:
                columns["prediction" if name == "mixture" else f"{name}_prediction"] = _lists(values)
        return pa.table(columns | _weights(predictions, config))
    columns["label"] = [id2label.get(int(label)) for label in labels]
    columns["prediction"] = [id2label[index] for index in predictions["mixture"].argmax(-1).tolist()]
    columns["probabilities"] = predictions["mixture"].tolist()
    if data.scores is not None:
        columns["score"] = pa.array(data.scores, from_pandas=True)
    for name, values in predictions.items():
        if name != "mixture" and name not in WEIGHT_FIELDS:
            columns[f"{name}_probabilities"] = values.tolist()
    return pa.table(columns | _weights(predictions, config))


def _weights(predictions: Mapping[str, np.ndarray], config: LabelledConfig) -> dict[str, Any]:
    """The columns of the weights that a model gives its parts."""
    columns: dict[str, Any] = {}
    for kind in PART_WEIGHTS:
        if kind.field in predictions:
            columns[kind.field] = rows = predictions[kind.field].tolist()
            if kind is not GATE:
                names = getattr(config, kind.parts)
                columns[kind.field] = [dict(zip(names, row, strict=True)) for row in rows]
    return columns


def mean_weights(predictions: Mapping[str, np.ndarray], config: LabelledConfig) -> dict[str, dict[str, float]]:
    """
    Mean weight of each part of a model in a split, by field and name: of capsules, and of experts and modalities
    inside the model. Empty for a model without such parts.
    """
    return {
        kind.field: dict(zip(getattr(config, kind.parts), means.tolist(), strict=True))
        for kind in PART_WEIGHTS
        if kind is not GATE and kind.field in predictions
        for means in [predictions[kind.field].mean(0, dtype=np.float64)]
    }


def _lists(scores: np.ndarray) -> pa.ListArray:
    """Scores (N, S) as a list per turn, null for NaN."""
    turns, targets = scores.shape
    values = pa.array(scores.astype(np.float32).ravel(), from_pandas=True)
    return pa.ListArray.from_arrays(np.arange(0, turns * targets + 1, targets, dtype=np.int32), values)


def summarize(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    r"""
    Mean and sample standard deviation over runs of each scalar score, by head, and of a regression also by target. A
    score that is undefined in a run has no mean: None.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, block in runs[0].items():
        blocks = [run[name] for run in runs]
        summary[name] = _summary(blocks)
        if "by_target" in block:
            summary[name]["by_target"] = {
                target: _summary([each["by_target"][target] for each in blocks]) for target in block["by_target"]
            }
    return summary


def _summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"num_utterances": blocks[0]["num_utterances"]}
    for metric in blocks[0]:
        values: list[Any] = [block.get(metric) for block in blocks]
        if not all(value is None or isinstance(value, float) for value in values):
            continue
        if None in values:
            found[metric] = {"mean": None, "sd": None}
        else:
            spread = statistics.stdev(values) if len(values) > 1 else None
            found[metric] = {"mean": statistics.fmean(values), "sd": spread}
    return found


# The scores of a table of results.
_CLASSES = ("weighted_f1", "macro_f1")
_REGRESSION_BY_BINS = {
    None: ("mae", "corr", "ccc"),
    "mosi": ("mae", "corr", "acc7", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0"),
    "sims": ("mae", "corr", "acc2", "f1", "acc3", "acc5", "acc2_weak", "r2"),
}


def format_results(summary: dict, split: str = "test") -> str:
    """
    A table of the scores of a split: mean ± standard deviation over seeds. Weighted and macro F1 in per cent for
    classes; for a regression error and correlations, and accuracies in per cent if the scores were put into bins.
    """
    titles = head_titles(summary[split])
    blocks = {titles[name]: block for name, block in summary[split].items()}
    for name, block in list(blocks.items()):
        targets = block.get("by_target", {})
        if len(targets) > 1:
            blocks |= {f"{name}, {target}": values for target, values in targets.items()}
    columns = _result_columns(next(iter(blocks.values())))
    width = max(26, *map(len, blocks))
    headings = {metric: f" {score_title(metric):>16}" for metric in columns}
    lines = ["".join([f"{split:{width}}", *headings.values(), f" {'N':>6}"])]
    for name, block in blocks.items():
        cells = [f" {_cell(metric, block[metric]):>{len(heading) - 1}}" for metric, heading in headings.items()]
        lines.append("".join([f"{name:{width}}", *cells, f" {block['num_utterances']:>6}"]))
    return "\n".join(lines)


def _result_columns(block: Mapping[str, Any]) -> tuple[str, ...]:
    if "weighted_f1" in block:
        return _CLASSES
    bins = next((bins for bins, names in BINS.items() if set(names) <= set(block)), None)
    return _REGRESSION_BY_BINS[bins]


def _cell(metric: str, score: Mapping[str, float | None]) -> str:
    mean, spread = score["mean"], score["sd"]
    factor, digits = (100, 2) if in_per_cent(metric) else (1, 3)
    if mean is None:
        return "undefined"
    return f"{factor * mean:.{digits}f}" + ("" if spread is None else f" ± {factor * spread:.{digits}f}")
