"""Rotate the vectors of one encoder into the space of another, which was trained from the same start on the same task.

Letters: N utterances, D embedding width.
"""

from dataclasses import dataclass

import torch


@dataclass
class Alignment:
    """A rotation (D, D) around two means (D,); see [`align`]."""

    mean: torch.Tensor
    rotation: torch.Tensor
    target_mean: torch.Tensor

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, D)"""
        return ((vectors.double() - self.mean) @ self.rotation + self.target_mean).float()


def align(vectors: torch.Tensor, target: torch.Tensor) -> Alignment:
    r"""
    The rotation that brings centred vectors closest to those of the same turns in squared distance (orthogonal
    Procrustes; Schönemann 1966). Distances between vectors are kept, so what the target's encoder learned about single
    turns does not enter.

    Args:
        vectors (`(N, D)`): to be rotated.
        target (`(N, D)`): of the same turns, in the space to rotate into.
    """
    vectors, target = vectors.double(), target.double()
    mean, target_mean = vectors.mean(0), target.mean(0)
    left, _, right = torch.linalg.svd((vectors - mean).T @ (target - target_mean))
    return Alignment(mean, left @ right, target_mean)
