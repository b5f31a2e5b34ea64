"""Dialogues for pre-training: which vectors are hidden is a function of seed, epoch and dialogue.

Letters: T turns.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, Subset

from ..base.modalities import MODALITIES
from .collator import field_of


def draw_masks(
    seed: int, epoch: int, dialogue_id: str | int, present: Mapping[str, np.ndarray], rate: float, span: int
) -> dict[str, np.ndarray]:
    r"""
    Draw the vectors that are hidden in one epoch, in spans of 1 to `span` turns, which may overlap. Each modality is
    drawn on its own, so that of most turns something else stays visible.

    Args:
        seed, epoch, dialogue_id: the draw is the same for the same three.
        present (`(T,)`, bool): by modality, the turns that have it. No other vector is hidden.
        rate: probability that a vector is hidden.
        span: longest span.

    Returns:
        by modality (T,), true where the vector is hidden. A dialogue is never hidden altogether: of one whose vectors
        were all drawn, the first is kept.
    """
    start, masks = _start_probability(rate, span), {}
    for name, there in present.items():
        digest = hashlib.blake2b(repr((seed, epoch, dialogue_id, name)).encode(), digest_size=16).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "big"))
        # Spans also begin before the first turn, so that each turn is hidden with the same probability.
        begins = np.flatnonzero(generator.random(len(there) + span - 1) < start) - (span - 1)
        ends = begins + generator.integers(1, span + 1, len(begins))
        hidden = np.zeros(len(there), dtype=bool)
        for first, end in zip(begins, ends, strict=True):
            hidden[max(first, 0) : max(end, 0)] = True
        masks[name] = hidden & there
    if not any((present[name] & ~hidden).any() for name, hidden in masks.items()):
        first_drawn = next((hidden for hidden in masks.values() if hidden.any()), None)
        if first_drawn is not None:
            first_drawn[first_drawn.argmax()] = False
    return masks


@functools.cache
def _start_probability(rate: float, span: int) -> float:
    """The probability p of a span at each turn: 1 - rate is the product over k < span of 1 - p (span - k) / span."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        kept = np.prod([1 - middle * (span - k) / span for k in range(span)])
        low, high = (middle, high) if kept > 1 - rate else (low, middle)
    return high


def dialogue_ids(dataset: Any) -> Sequence[str | int]:
    """What each dialogue of a dataset is known by, whatever the order: its id, or its number where it has none."""
    if getattr(dataset, "dialogue_ids", None) is not None:
        return dataset.dialogue_ids
    if isinstance(dataset, Subset):
        ids = dialogue_ids(dataset.dataset)
        return [ids[index] for index in dataset.indices]
    return range(len(dataset))


class MaskedDialogues(Dataset):
    r"""
    Dialogues with the draw of what is hidden beside each mask (`speech_masked`). Nothing else is passed on, no label.

    An index is the number of a dialogue, whose draw is that of epoch 0, or epoch and number. So the epoch travels with
    the index, also to the worker processes of a data loader, which would not notice that an attribute changes.

    Args:
        dataset: dialogues as [`DialogueCollator`] takes them; labels are not needed.
        modalities: those that the model reads.
        seed, rate, span: see [`draw_masks`].
    """

    def __init__(self, dataset: Any, modalities: Sequence[str], seed: int, rate: float, span: int):
        self.dataset, self.modalities = dataset, tuple(modalities)
        self.seed, self.rate, self.span = seed, rate, span
        self.dialogue_ids = dialogue_ids(dataset)

    @property
    def lengths(self) -> np.ndarray:
        """Number of turns of each dialogue (n,)."""
        if getattr(self.dataset, "lengths", None) is not None:
            return np.asarray(self.dataset.lengths)
        return np.array([len(next(iter(self[number].values()))) for number in range(len(self))])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        dialogue, where = self.dataset[number], f"dialogue {number} of the dataset"
        item, present = {}, {}
        for name in self.modalities:
            modality = MODALITIES[name]
            if modality.embeddings in dialogue:
                item[modality.embeddings] = field_of(dialogue, modality.embeddings, where)
                mask = torch.ones(len(item[modality.embeddings]), dtype=torch.bool)
                if modality.mask in dialogue:
                    mask = field_of(dialogue, modality.mask, where).bool()
                item[modality.mask], present[name] = mask, mask.numpy()
        masks = draw_masks(self.seed, epoch, self.dialogue_ids[number], present, self.rate, self.span)
        return item | {MODALITIES[name].masked: torch.from_numpy(mask) for name, mask in masks.items()}


class EpochSampler(Sampler[tuple[int, int]]):
    """The indices of another sampler, each with the epoch; see [`MaskedDialogues`]."""

    def __init__(self, sampler: Any):
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int):
        """Begin an epoch."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        for index in self.sampler:
            yield epoch, index
