"""The order of dialogues in an epoch: batches of similar length."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class LikeLengthSampler(Sampler[int]):
    r"""
    Yield every dialogue once, ordered so that each run of `batch_size` dialogues has similar lengths.

    Each epoch the lengths are jittered, the dialogues sorted by them and cut into batches, and the batches shuffled.
    The batches thus differ from epoch to epoch and depend on `seed` and epoch alone. An incomplete batch comes last.

    Args:
        lengths: number of turns of each dialogue.
        batch_size: number of dialogues of one step over all processes, so that all of them get similar lengths.
        seed: seed of the jitter and of the order.
        jitter: largest relative change of a length.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, jitter: float = 0.01):
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.batch_size = batch_size
        self.seed = seed
        self.jitter = jitter
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        noise = generator.uniform(-self.jitter, self.jitter, len(self.lengths))
        # Also shuffle dialogues of equal length.
        order = np.argsort(self.lengths * (1 + noise) + generator.uniform(0, 0.5, len(self.lengths)))
        short = len(order) % self.batch_size
        # The longest dialogues differ most in length, so they go into the incomplete batch.
        full = order[: len(order) - short].reshape(-1, self.batch_size)
        yield from full[generator.permutation(len(full))].flatten().tolist()
        yield from order[len(order) - short :].tolist()
