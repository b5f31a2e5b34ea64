"""Any map-style dataset of dialogues: lengths, and mean and standard deviation of its vectors.

An item is what [`DialogueCollator`] takes. Letters: n dialogues, N turns, D vector width.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from ..base.errors import InputError, short
from ..base.modalities import MODALITIES
from .collator import batch_fields, field_of
from .tables import MISSPELT_RATIO

Blocks = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
_BLOCK_ROWS = 65536


def check_dialogues(dataset: Any, name: str, config: Any, labelled: bool = True):
    r"""
    Check that a model of this configuration can be trained on this dataset.

    Args:
        dataset: what is given to the trainer.
        name: name of the dataset in messages.
        config (`ConversationConfig`): configuration of the model.
        labelled: whether it is trained with labels and transcripts, rather than with vectors alone.

    Raises:
        InputError: if it has no length and index, is empty, or its first item has no labels or those of another task,
            no transcripts although the model reads them, or vectors of another width than the model takes.
    """
    if isinstance(dataset, IterableDataset | Mapping) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        raise InputError(
            f"{name} must be a map-style dataset, with a length and items by index, got {type(dataset).__name__}"
        )
    if not len(dataset):
        raise InputError(f"{name} has no dialogues")
    item = dataset[0]
    if not isinstance(item, dict):
        raise InputError(f"{name}: an item must be a dictionary of fields, such as labels, got {type(item).__name__}")
    fields = [*batch_fields(), "transcripts"]
    known = {field: field for field in fields} | {each.features: each.embeddings for each in MODALITIES.values()}
    for field in item:
        near = difflib.get_close_matches(str(field).casefold(), known, 1, MISSPELT_RATIO)
        if field not in fields and near and known[near[0]] not in item:
            raise InputError(
                f"{name}: the field '{field}' of its items is not read; rename it to '{known[near[0]]}', or drop it"
            )
    if labelled:
        _check_labelled(item, name, config)
    for modality, width in config.read_widths.items():
        each = MODALITIES[modality]
        if width is not None and each.embeddings in item:
            found = field_of(item, each.embeddings, f"{name}: its first dialogue").shape[1:]
            if len(found) == 1 and found[0] != width:
                raise InputError(
                    f"{name}: '{each.embeddings}' have width {found[0]}, but the model expects {each.width} = {width}"
                )


def _check_labelled(item: dict, name: str, config: Any):
    """Check the labels of a dialogue, and its transcripts if the model reads them."""
    if "labels" not in item:
        raise InputError(
            f"{name}: no labels, its items have the fields {', '.join(map(str, item))}. Add 'labels', "
            + (
                "a score per turn and target; read_corpus takes them from the columns given as targets"
                if config.task == "regression"
                else "a class index per turn; read_corpus takes them from label names given as label2id"
            )
        )
    _check_labels(field_of(item, "labels", f"{name}: its first dialogue"), name, config)
    if config.reads_transcripts and "transcripts" not in item:
        raise InputError(
            f"{name}: no transcripts, which the model reads; its items have the fields {', '.join(map(str, item))}. "
            "Add 'transcripts', a string per turn; read_corpus takes them from the column 'texts'"
        )


def _check_labels(labels: torch.Tensor, name: str, config: Any):
    """Check that these are the labels that the model's task is trained on: (T,) for classes, (T, S) for scores."""
    found = f"got labels of shape {tuple(labels.shape)} in its first dialogue"
    if config.task == "regression":
        names = [config.id2label[index] for index in range(config.num_labels)]
        if labels.ndim != 2 or labels.shape[1] != len(names):
            raise InputError(
                f"{name}: the model predicts {len(names)} scores, {short(', '.join(names))}, so 'labels' must be "
                f"floats (turns, {len(names)}), NaN where a turn has no score; {found}. read_corpus(..., targets=...) "
                "makes them"
            )
    elif labels.ndim != 1:
        raise InputError(
            f"{name}: the model predicts classes, so 'labels' must be a class index per turn; {found}. For a "
            'regression give the configuration problem_type="regression"'
        )


def check_scores(dataset: Any, name: str, config: Any):
    r"""
    Check that a regression can be trained on all scores of a dataset.

    Args:
        dataset, name, config: as in [`check_dialogues`], of a dataset that it accepts.

    Raises:
        InputError: naming dialogue and turn, if a score is outside of the configuration's `score_limits`.
    """
    if config.score_limits is None:
        return
    low, high = config.score_limits
    labels = _all_labels(dataset).double()
    outside = (labels < low) | (labels > high)
    if outside.any():
        turn, target = outside.nonzero()[0].tolist()
        starts = np.cumsum([0, *dialogue_lengths(dataset)])
        dialogue = int(np.searchsorted(starts, turn, side="right")) - 1
        ids = getattr(dataset, "dialogue_ids", None)
        raise InputError(
            f"{name}: turn {turn - starts[dialogue] + 1} of dialogue "
            f"{dialogue if ids is None else repr(ids[dialogue])} has the score {labels[turn, target]:g} of "
            f"'{config.id2label[target]}', outside of {low:g} to {high:g}, which the model can answer ("
            f"{int(outside.sum()):,} of {int((~labels.isnan()).sum()):,} scores are); set score_range to the range of "
            "the corpus"
        )


def dialogue_lengths(dataset: Any) -> np.ndarray:
    """Number of turns of each dialogue (n,), in the order of the dataset."""
    if getattr(dataset, "lengths", None) is not None:
        return np.asarray(dataset.lengths)
    if isinstance(dataset, Subset):
        return dialogue_lengths(dataset.dataset)[list(dataset.indices)]
    return np.array([_length(dataset[index], f"dialogue {index} of the dataset") for index in range(len(dataset))])


def _length(item: Any, where: str) -> int:
    names = ["labels", *(each.embeddings for each in MODALITIES.values())]
    there = [name for name in names if name in item] if isinstance(item, Mapping) else names
    return len(field_of(item, there[0], where)) if there else 0


def mean_and_deviation(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor] | None:
    r"""
    Mean and standard deviation (D,) in float64 of the vectors that count; None if none does.

    Args:
        blocks: function that yields vectors (rows, D) and whether each of them counts (rows,), the same in each call.
    """
    total, squares, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for rows, kept in blocks():
        total = total + rows[kept].double().sum(0)
        count += int(kept.sum())
    if count == 0:
        return None
    mean = total / count
    for rows, kept in blocks():
        squares = squares + (rows[kept].double() - mean).square().sum(0)
    return mean, (squares / count).sqrt()


def dataset_statistics(dataset: Any, modality: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation (D,) of a modality's vectors over the turns that have it; None if no turn does."""
    return mean_and_deviation(lambda: _blocks(dataset, modality))


def target_statistics(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Mean and standard deviation (S,) in float64 of each target of a regression, over the turns that have it.

    Args:
        dataset: dialogues with `labels` (T, S), NaN where a turn has no score.

    Raises:
        InputError: naming the target, if no turn has it or a score is infinite.
    """
    labels = _all_labels(dataset).double()
    count = (~labels.isnan()).sum(0)
    if (wrong := (count == 0) | labels.isinf().any(0)).any():
        target = int(wrong.nonzero()[0, 0])
        named = {index: name for name, index in (getattr(dataset, "label2id", None) or {}).items()}
        raise InputError(
            f"{getattr(dataset, 'name', 'the dataset')}: {'a' if count[target] else 'no'} turn has "
            f"{'an infinite' if count[target] else 'a'} score of target '{named.get(target, target)}'"
        )
    mean = labels.nan_to_num().sum(0) / count
    return mean, ((labels - mean).nan_to_num().square().sum(0) / count).sqrt()


def _all_labels(dataset: Any) -> torch.Tensor:
    """Scores (N, S) of all turns."""
    if getattr(dataset, "labels", None) is not None:
        return torch.as_tensor(dataset.labels)
    where = "dialogue {} of the dataset"
    return torch.cat([field_of(dataset[row], "labels", where.format(row)) for row in range(len(dataset))])


def _blocks(dataset: Any, modality: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors in blocks that have the same rows for every dataset of these turns, so that sums are bit-equal."""
    names = MODALITIES[modality]
    rows: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    count = 0
    for index in range(len(dataset)):
        item = dataset[index]
        if isinstance(item, Mapping) and names.embeddings not in item:
            continue
        vectors = field_of(item, names.embeddings, f"dialogue {index} of the dataset")
        if vectors.ndim != 2 or (rows and vectors.shape[1] != rows[0].shape[1]):
            raise InputError(
                f"dialogue {index} of the dataset: '{names.embeddings}' must be (turns, width) with one width in all "
                f"dialogues, got {tuple(vectors.shape)}"
            )
        mask = item.get(names.mask)
        present = torch.ones(len(vectors), dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        rows.append(vectors)
        kept.append(present)
        count += len(vectors)
        while count >= _BLOCK_ROWS:
            vectors, present = torch.cat(rows), torch.cat(kept)
            yield vectors[:_BLOCK_ROWS], present[:_BLOCK_ROWS]
            rows, kept, count = [vectors[_BLOCK_ROWS:]], [present[_BLOCK_ROWS:]], count - _BLOCK_ROWS
    if count:
        yield torch.cat(rows), torch.cat(kept)
