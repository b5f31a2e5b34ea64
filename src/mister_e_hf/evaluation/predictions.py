"""Predictions of a trained model on one split of a corpus: their scores, and the table that stores them.

Letters: N turns of the split, C classes, E heads beside the main one. The main head is called `mixture`.
"""

import statistics
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from sklearn.metrics import confusion_matrix
from transformers import Trainer

from ..base.errors import InputError
from ..vectors.dialogue_vectors import DialogueVectors
from .metrics import (
    IGNORE_INDEX,
    bootstrap_intervals,
    emotion_scores,
    expected_calibration_error,
    scored_turns,
    softmax,
)


class View(Protocol):
    """
    What a trainer of conversation models predicts: [`~mister_e_hf.models.modeling_conversation.ConversationOutput`] as
    arrays.
    """

    logits: np.ndarray
    head_logits: Mapping[str, np.ndarray] | None
    gate_weights: np.ndarray | None


def predict(trainer: Trainer, data: DialogueVectors) -> dict[str, np.ndarray]:
    r"""
    Predict the turns of a split.

    Returns:
        logits (N, C) of the `mixture` and of each further head by its name; and `gate_weights` (N, E), if the model
        has a gate.
    """
    view = cast(View, trainer.predict(data).predictions)
    real = np.arange(view.logits.shape[1]) < data.lengths[:, None]
    found = {"mixture": view.logits[real]}
    found |= {head: logits[real] for head, logits in (view.head_logits or {}).items()}
    if view.gate_weights is not None:
        found["gate_weights"] = view.gate_weights[real]
    return found


def probabilities(outputs: dict[str, np.ndarray], temperature: float = 1.0) -> dict[str, np.ndarray]:
    """The output of [`predict`] with probabilities in place of logits; the temperature is that of the mixture."""
    return {
        name: values if name == "gate_weights" else softmax(values / (temperature if name == "mixture" else 1.0))
        for name, values in outputs.items()
    }


def labels_of(data: DialogueVectors) -> np.ndarray:
    r"""
    The labels (N,) of a split's turns.

    Raises:
        InputError: if it has none.
    """
    if data.labels is None:
        raise InputError(f"{data.name}: the turns have no labels, so nothing can be scored")
    return data.labels


def score(predictions: dict[str, np.ndarray], data: DialogueVectors, label_names: list[str]) -> dict[str, dict]:
    r"""
    Score the predictions of a split.

    Returns:
        scores by head; those of the `mixture` include intervals and the confusion matrix. If the corpus has
        real-valued scores (CMU-MOSI), each head is also scored without the turns whose score is zero or missing, as
        `... without zeros`.
    """
    dialogues = np.repeat(np.arange(len(data)), data.lengths)
    scores = {}
    for suffix, labels in scored_turns(labels_of(data), data.scores).items():
        for name, probabilities in predictions.items():
            if name != "gate_weights":
                scores[name + suffix] = emotion_scores(labels, probabilities, label_names)
        mixture, scored = predictions["mixture"], labels != IGNORE_INDEX
        scores[f"mixture{suffix}"]["intervals"] = bootstrap_intervals(labels, mixture, dialogues)
        classes = range(len(label_names))
        counts = confusion_matrix(labels[scored], mixture[scored].argmax(-1), labels=classes)
        scores[f"mixture{suffix}"]["confusion"] = counts.tolist()
    return scores


def calibration(mixture: np.ndarray, data: DialogueVectors) -> dict[str, Any]:
    """Calibration error of the mixture's probabilities (N, C), with its interval."""
    labels = labels_of(data)
    dialogues = np.repeat(np.arange(len(data)), data.lengths)
    scored = labels != IGNORE_INDEX
    name = "expected_calibration_error"
    return {
        name: expected_calibration_error(labels[scored], mixture[scored]),
        "interval": bootstrap_intervals(labels, mixture, dialogues)[name],
    }


def prediction_table(predictions: dict[str, np.ndarray], data: DialogueVectors, id2label: dict[int, str]) -> pa.Table:
    """A row per turn of the split: its ids, its label, and the predictions of every head."""
    columns = {
        "split": [data.name] * data.num_turns,
        "dialogue_id": np.repeat(data.dialogue_ids, data.lengths),
        "utterance_id": [utterance for ids in data.utterance_ids for utterance in ids],
        "label": [id2label.get(int(label)) for label in labels_of(data)],
        "prediction": [id2label[index] for index in predictions["mixture"].argmax(-1).tolist()],
        "probabilities": predictions["mixture"].tolist(),
    }
    if data.scores is not None:
        columns["score"] = pa.array(data.scores, from_pandas=True)
    for name, values in predictions.items():
        if name != "mixture":
            columns[name if name == "gate_weights" else f"{name}_probabilities"] = values.tolist()
    return pa.table(columns)


def summarize(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and sample standard deviation over runs of each scalar score, by head."""
    summary: dict[str, dict[str, Any]] = {}
    for name, block in runs[0].items():
        summary[name] = {"num_utterances": block["num_utterances"]}
        for metric, value in block.items():
            if isinstance(value, float):
                values = [run[name][metric] for run in runs]
                spread = statistics.stdev(values) if len(values) > 1 else None
                summary[name][metric] = {"mean": statistics.fmean(values), "sd": spread}
    return summary


def format_results(summary: dict, split: str = "test") -> str:
    """A table of weighted and macro F1 of a split in per cent: mean ± standard deviation over seeds."""
    lines = [f"{split:26} {'weighted F1':>16} {'macro F1':>16} {'N':>6}"]
    for name, block in summary[split].items():
        cells = []
        for metric in ("weighted_f1", "macro_f1"):
            mean, spread = block[metric]["mean"], block[metric]["sd"]
            cells.append(f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}"))
        lines.append(f"{name:26} {cells[0]:>16} {cells[1]:>16} {block['num_utterances']:>6}")
    return "\n".join(lines)
