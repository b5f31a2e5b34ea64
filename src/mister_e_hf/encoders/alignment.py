"""Vectors of one encoder in the space of another, which was trained for the same from the same start.

Letters: N utterances, D embedding width.
"""

from dataclasses import dataclass

import torch


@dataclass
class Alignment:
    """A rotation (D, D) between two means (D,)."""

    mean: torch.Tensor
    rotation: torch.Tensor
    target_mean: torch.Tensor

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, D)"""
        return ((vectors.double() - self.mean) @ self.rotation + self.target_mean).float()


def align(vectors: torch.Tensor, target: torch.Tensor) -> Alignment:
    r"""
    The rotation that brings centred vectors closest to others of the same utterances in squares (orthogonal Procrustes; Schönemann 1966). Distances
    between vectors stay: nothing of what the target's encoder learned of single utterances gets in.

    Args:
        vectors, target (`(N, D)`).
    """
    vectors, target = vectors.double(), target.double()
    mean, target_mean = vectors.mean(0), target.mean(0)
    left, _, right = torch.linalg.svd((vectors - mean).T @ (target - target_mean))
    return Alignment(mean, left @ right, target_mean)
