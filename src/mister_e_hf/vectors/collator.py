"""Dialogues -> a padded batch with masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..base.errors import InputError, short
from ..base.modalities import IGNORE_INDEX, MODALITIES


def batch_fields() -> dict[str, float | bool | int]:
    """
    The fields of a dialogue that become tensors of a batch, each with the value of its padding. Scores as labels are
    padded with NaN.
    """
    embeddings = {each.embeddings: 0.0 for each in MODALITIES.values()}
    masks = {name: False for each in MODALITIES.values() for name in (each.mask, each.masked)}
    return {**embeddings, **masks, "labels": IGNORE_INDEX}


def field_of(dialogue: Any, name: str, where: str) -> torch.Tensor:
    r"""
    A field of a dialogue as a tensor with an entry per turn.

    Args:
        dialogue: a dictionary of fields.
        name: name of the field.
        where: what to call the dialogue in messages.

    Raises:
        InputError: naming the field, if the dialogue is not a dictionary, or the field has no entry per turn.
    """
    if not isinstance(dialogue, Mapping):
        raise InputError(f"{where} must be a dictionary of fields, such as labels, got {type(dialogue).__name__}")
    expected = "numbers, one entry per turn"
    if name == "labels":
        expected = (
            "class indices, -100 at turns without a label, one entry per turn; for a regression scores "
            "(turns, targets) as floats, NaN where a turn has none"
        )
    try:
        rows = torch.as_tensor(dialogue[name])
    except Exception as error:  # torch raises errors of several kinds
        raise InputError(f"{where}: '{name}' must be {expected}: {short(error)}") from error
    if not rows.ndim:
        raise InputError(f"{where}: '{name}' must be {expected}, got {short(dialogue[name])}")
    if name == "labels" and rows.ndim > 1 and not rows.is_floating_point():
        raise InputError(f"{where}: 'labels' must be {expected}; got integers of shape {tuple(rows.shape)}")
    if name == "labels" and rows.ndim == 1 and rows.is_floating_point() and not torch.equal(rows, rows.round()):
        raise InputError(f"{where}: 'labels' must be {expected}; got numbers with decimals, one per turn")
    return rows


class DialogueCollator:
    r"""
    Put dialogues of different lengths into one batch, padded at the end.

    Takes the items of [`DialogueVectors`], or dictionaries of the same fields as lists or arrays: `speech_embeddings`
    (T, Ds), `text_embeddings` (T, Dt), `visual_embeddings` (T, Dv) or some of them, and optionally masks (T,) of each
    such as `speech_mask` and, for pre-training, `speech_masked`, and `labels`: class indices (T,), or scores (T, S)
    for a regression. Other fields are ignored. Returns the arguments of a model: embeddings in float32,
    `attention_mask` (B, T), each given mask, and the labels (B, T), -100 in padding, or (B, T, S) in float32, NaN in
    padding.

    Args:
        transcripts: whether to return the `transcripts` of the turns as well, for a model that reads them: a list of T
            strings per dialogue, None in padding, at turns without a transcript and where `text_mask` is false.

    Raises:
        InputError: if a dialogue has no turns or no embeddings, its fields differ in length, or the dialogues differ
            in their fields or widths.
    """

    def __init__(self, transcripts: bool = False):
        self.transcripts = transcripts

    def __repr__(self) -> str:
        fields = [*batch_fields(), *(["transcripts"] if self.transcripts else [])]
        return f"DialogueCollator(fields={fields})"

    def __call__(self, dialogues: Sequence[Any]) -> dict[str, Any]:
        if not len(dialogues):
            raise InputError("A batch of no dialogues; give at least one")
        padding, read = batch_fields(), []
        for number, dialogue in enumerate(dialogues):
            where = f"dialogue {number} of the batch"
            there = [name for name in padding if name in dialogue] if isinstance(dialogue, Mapping) else [*padding]
            read.append({name: field_of(dialogue, name, where) for name in there})
        lengths = [
            _length(number, dialogue, fields, read[0])
            for number, (dialogue, fields) in enumerate(zip(dialogues, read, strict=True))
        ]
        batch: dict[str, Any] = {}
        for name in read[0]:
            batch[name] = _padded(name, [fields[name] for fields in read], padding[name])
        batch["attention_mask"] = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        if self.transcripts:
            batch["transcripts"] = [
                _transcripts(number, dialogue, lengths[number], max(lengths))
                for number, dialogue in enumerate(dialogues)
            ]
        return batch


def _padded(name: str, rows: list[torch.Tensor], padding: float | bool | int) -> torch.Tensor:
    """A field of the dialogues in a batch, padded at the end: (B, T), or (B, T, width) of vectors and scores."""
    shapes = {tuple(row.shape[1:]) for row in rows}
    has_width, dtype = name.endswith("_embeddings"), torch.bool
    if has_width:
        dtype = torch.float32
    elif name == "labels":
        has_width = rows[0].ndim > 1
        dtype, padding = (torch.float32, float("nan")) if has_width else (torch.long, padding)
    if len(shapes) != 1 or len(*shapes) != has_width:
        raise InputError(f"'{name}' of the dialogues in the batch must be of one width, got {sorted(shapes)}")
    return pad_sequence([row.to(dtype) for row in rows], batch_first=True, padding_value=padding)


def _length(number: int, dialogue: Any, fields: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> int:
    """Turns of a dialogue whose fields have one entry per turn."""
    given = {name: len(rows) for name, rows in fields.items()}
    if not any(name.endswith("_embeddings") for name in given):
        raise InputError(f"dialogue {number} of the batch has no embeddings, only {sorted(dialogue)}")
    if set(given) != set(first):
        raise InputError(
            f"dialogue {number} of the batch has the fields {sorted(given)}, the first one {sorted(first)}"
        )
    if len(set(given.values())) != 1 or 0 in given.values():
        raise InputError(f"dialogue {number} of the batch must have one entry per turn in each field, got {given}")
    return next(iter(given.values()))


def _transcripts(number: int, dialogue: Mapping[str, Any], length: int, padded_length: int) -> list[str | None]:
    given = dialogue.get("transcripts")
    if given is None:
        raise InputError(f"dialogue {number} of the batch has no 'transcripts', which the model reads")
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) != length or not all(text is None or isinstance(text, str) for text in texts):
        raise InputError(
            f"dialogue {number} of the batch: 'transcripts' must hold a string or None for each of {length} turns, "
            f"got {short(given)}"
        )
    mask = dialogue.get(MODALITIES["text"].mask)
    present = [True] * length if mask is None else torch.as_tensor(mask).bool().tolist()
    kept = [text if there else None for text, there in zip(texts, present, strict=True)]
    return kept + [None] * (padded_length - length)
