"""Which vectors of a dialogue are hidden in pre-training: a function of seed, epoch and dialogue.

Letters: T turns.
"""

import functools
import hashlib
from collections.abc import Mapping

import numpy as np


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
