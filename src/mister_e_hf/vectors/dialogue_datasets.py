"""Any map-style dataset of dialogues: how long each is, and mean and deviation of its vectors.

An item is what [`DialogueCollator`] takes. Letters: N turns, D vector width.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from ..base.errors import InputError
from .collator import field_of

Blocks = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]
_BLOCK_ROWS = 65536
_FIELDS = ("speech_embeddings", "text_embeddings", "speech_mask", "text_mask", "labels")
_LIKE = 0.85  # of difflib's ratio, from which on a name may be a misspelt one


def check_dialogues(dataset: Any, name: str, config: Any):
    r"""
    Whether a model of this configuration can be trained on this dataset.

    Raises:
        InputError: if it has no length and index, is empty, or its first item has no labels, or vectors of another width than
            the model takes.
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
    for field in item:
        known = {name: name for name in _FIELDS} | {"speech_features": _FIELDS[0], "text_features": _FIELDS[1]}
        near = [] if field in _FIELDS else difflib.get_close_matches(str(field).casefold(), known, 1, _LIKE)
        if near and known[near[0]] not in item:
            raise InputError(
                f"{name}: the field '{field}' of its items is not read; rename it to '{known[near[0]]}', or drop it"
            )
    if "labels" not in item:
        raise InputError(
            f"{name}: no labels, its items have the fields {', '.join(map(str, item))}. Add 'labels', a class index per turn; "
            "read_corpus takes them from label names given as label2id"
        )
    for size, width in config.to_dict().items():
        field = f"{size.removesuffix('_dim')}s"
        if size.endswith("_embedding_dim") and field in item:
            found = field_of(item, field, f"{name}: its first dialogue").shape[1:]
            if width is not None and len(found) == 1 and found[0] != width:
                raise InputError(f"{name}: '{field}' have width {found[0]}, but the model expects {size} = {width}")


def dialogue_lengths(dataset: Any) -> np.ndarray:
    """Turns of each dialogue (n,), in the dataset's order."""
    if getattr(dataset, "lengths", None) is not None:
        return np.asarray(dataset.lengths)
    if isinstance(dataset, Subset):
        return dialogue_lengths(dataset.dataset)[list(dataset.indices)]
    return np.array([_length(dataset[index], f"dialogue {index} of the dataset") for index in range(len(dataset))])


def _length(item: Any, where: str) -> int:
    names = ("labels", "speech_embeddings", "text_embeddings")
    there = names if not isinstance(item, Mapping) else [name for name in names if name in item]
    return len(field_of(item, there[0], where)) if there else 0


def mean_and_deviation(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor] | None:
    r"""
    Mean and standard deviation (D,) in float64 of the vectors that are kept; None if none is.

    Args:
        blocks: gives vectors (rows, D) and which of them count (rows,), the same each time that it is called.
    """
    total, squares, count = 0.0, 0.0, 0
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
    """Mean and standard deviation (D,) of a modality's vectors over the turns that have it; None if no turn has."""
    return mean_and_deviation(lambda: _blocks(dataset, modality))


def _blocks(dataset: Any, modality: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """In blocks of the same rows for every dataset of these turns, so that sums are the same to the last bit."""
    rows, kept, count = [], [], 0
    for index in range(len(dataset)):
        item = dataset[index]
        if isinstance(item, Mapping) and f"{modality}_embeddings" not in item:
            continue
        vectors = field_of(item, f"{modality}_embeddings", f"dialogue {index} of the dataset")
        if vectors.ndim != 2 or (rows and vectors.shape[1] != rows[0].shape[1]):
            raise InputError(
                f"dialogue {index} of the dataset: '{modality}_embeddings' must be (turns, width) with one width in all dialogues, got "
                f"{tuple(vectors.shape)}"
            )
        mask = item.get(f"{modality}_mask")
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
