"""Dialogues -> a padded batch with masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..base.errors import InputError, short
from ..base.losses import IGNORE_INDEX

_PADDING = {
    "speech_embeddings": 0.0,
    "text_embeddings": 0.0,
    "speech_mask": False,
    "text_mask": False,
    "labels": IGNORE_INDEX,
}


def field_of(dialogue: Any, name: str, where: str) -> torch.Tensor:
    r"""
    A field of a dialogue as a tensor with an entry per turn.

    Raises:
        InputError: naming the field, if the dialogue is no dictionary, or the field is not numbers with one entry per turn.
    """
    if not isinstance(dialogue, Mapping):
        raise InputError(f"{where} must be a dictionary of fields, such as labels, got {type(dialogue).__name__}")
    expected = "class indices, -100 at turns without a label" if name == "labels" else "numbers"
    try:
        rows = torch.as_tensor(dialogue[name])
    except Exception as error:  # of torch, of several kinds
        raise InputError(f"{where}: '{name}' must be {expected}, one entry per turn: {short(error)}") from error
    if not rows.ndim:
        raise InputError(f"{where}: '{name}' must be {expected}, one entry per turn, got {short(dialogue[name])}")
    if name == "labels" and rows.is_floating_point() and not torch.equal(rows, rows.round()):
        raise InputError(f"{where}: 'labels' must be {expected}, got numbers with decimals")
    return rows


class DialogueCollator:
    r"""
    Puts dialogues of different length into one batch, padded at the end.

    Takes the items of [`DialogueVectors`], or dictionaries of the same fields as lists or arrays: `speech_embeddings` (T, Ds),
    `text_embeddings` (T, Dt) or one of them, and optionally `speech_mask`, `text_mask`, `labels` (T,). Other fields are left
    out. Returns what [`MisterEModel`] takes: embeddings in float32, `attention_mask` (B, T), and each given mask and labels.

    Raises:
        ValueError: if a dialogue has no turns or no embeddings, or its fields differ in length, or dialogues differ in their fields or
            widths.
    """

    def __repr__(self) -> str:
        return f"DialogueCollator(fields={list(_PADDING)})"

    def __call__(self, dialogues: Sequence[dict]) -> dict[str, torch.Tensor]:
        if not len(dialogues):
            raise InputError("A batch of no dialogues; give at least one")
        read = []
        for number, dialogue in enumerate(dialogues):
            where = f"dialogue {number} of the batch"
            there = _PADDING if not isinstance(dialogue, Mapping) else [name for name in _PADDING if name in dialogue]
            read.append({name: field_of(dialogue, name, where) for name in there})
        fields = list(read[0])
        lengths = []
        for number, dialogue in enumerate(dialogues):
            given = {name: len(rows) for name, rows in read[number].items()}
            if not any(name.endswith("_embeddings") for name in given):
                raise InputError(f"dialogue {number} of the batch has no embeddings, only {sorted(dialogue)}")
            if set(given) != set(fields):
                raise InputError(
                    f"dialogue {number} of the batch has the fields {sorted(given)}, the first one {sorted(fields)}"
                )
            if len(set(given.values())) != 1 or 0 in given.values():
                raise InputError(
                    f"dialogue {number} of the batch must have one entry per turn in each field, got {given}"
                )
            lengths.append(next(iter(given.values())))
        batch = {}
        for name in fields:
            dtype = (
                torch.float32 if name.endswith("_embeddings") else torch.bool if name.endswith("_mask") else torch.long
            )
            rows = [dialogue[name].to(dtype) for dialogue in read]
            shapes = {tuple(row.shape[1:]) for row in rows}
            if len(shapes) != 1 or len(*shapes) != name.endswith("_embeddings"):
                raise InputError(f"'{name}' of the dialogues in the batch must be of one width, got {sorted(shapes)}")
            batch[name] = pad_sequence(rows, batch_first=True, padding_value=_PADDING[name])
        batch["attention_mask"] = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return batch
