"""
One vector for a turn from its sequence of feature vectors.

Letters: L frames, D width of a frame.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float32).max) / 2  # deviations of such numbers are within float32, too


def read_frames(path: Path) -> np.ndarray:
    r"""
    The frames (L, D) of a `.npy` file, which stay on disk until they are used. This is not in the module of a builder,
    since datasets replaces `numpy.load` there.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming the file, if it does not hold an array of numbers of such a shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Features '{path}' not found")
    try:
        with np.errstate(over="ignore"):
            content = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever a damaged file leads to
        raise InputError(f"'{path}' is not an array of numbers: {short(error, 150)}") from error
    return frames_of(content, f"'{path}'")


def length_of(given: Any, where: str) -> int:
    """The number of real frames that a source states; raises InputError for what is not a finite number."""
    cells = np.asarray(given).reshape(-1) if isinstance(given, int | float | np.number | np.ndarray) else np.empty(0)
    if len(cells) != 1 or cells.dtype.kind not in "fiu" or not np.isfinite(cells[0]):
        raise InputError(f"{where} must be a number of frames, got {short(given, 60)}")
    return int(cells[0])


def frames_of(given: Any, where: str) -> np.ndarray:
    """The frames (L, D) of an array, which may have leading axes of size 1; raises InputError for anything else."""
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu" or not given.ndim:
        raise InputError(f"{where} must hold an array of numbers, got {short(getattr(given, 'dtype', given), 60)}")
    if any(size != 1 for size in given.shape[:-2]):
        raise InputError(f"{where} has the shape {given.shape}; expected frames and their width")
    return given.reshape(given.shape[-2] if given.ndim > 1 else 1, given.shape[-1])


@dataclass
class FrameStatistics:
    r"""
    Mean and population standard deviation over the real frames of each turn, and a count of what was not usable.

    Real frames are those that the length names, if the frames after it are zeros (else those before the last `length`
    frames, where a sequence is padded at its start); without such a length, the frames that are not all zeros. A
    length beyond the frames is that of a sequence that was cut, if neither its first nor its last frame is zeros.
    Numbers that are not finite, or beyond float32, are left out, one by one.
    """

    turns: int = 0
    without: int = 0
    not_finite: int = 0
    with_not_finite: int = 0
    wrong_lengths: int = 0

    def pooled(self, frames: np.ndarray, length: int | None = None, masked: bool = False) -> np.ndarray | None:
        r"""
        Args:
            frames: (L, D).
            length: number of real frames.
            masked: take the first `length` frames without looking at the others, as for the outputs of a text encoder,
                which are not zero at padding.

        Returns:
            means and deviations (2D,) float32, or None for a turn without a real frame.
        """
        self.turns += 1
        real = self._real(frames, length, masked).astype(np.float64)
        finite = np.abs(real) <= _LARGEST  # False for NaN
        if not finite.any():
            self.without += 1
            return None
        if not finite.all():
            self.with_not_finite += 1
            self.not_finite += int((~finite).sum())
        count = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, real, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(finite, real - mean, 0) ** 2).sum(axis=0) / count)
        return np.concatenate([mean, deviation]).astype(np.float32)

    def _real(self, frames: np.ndarray, length: int | None, masked: bool) -> np.ndarray:
        if length is not None and masked:
            return frames[:length]
        nonzero = (frames != 0).any(axis=1)  # not finite counts as a frame
        if length is not None:
            padded = len(frames) > 0 and not (nonzero[0] and nonzero[-1])
            fits = length <= len(frames) or not padded  # a longer sequence was cut, and has no padding then
            length = min(max(int(length), 0), len(frames))
            if fits and not nonzero[length:].any():
                return frames[:length]
            if fits and not nonzero[: len(frames) - length].any():
                return frames[len(frames) - length :]
            self.wrong_lengths += 1
        return frames[nonzero]

    def report(self, title: str, noun: str):
        """Warn about what was left out, with counts."""
        if self.without:
            logger.warning("%s: %d turns of %d have no %s features", title, self.without, self.turns, noun)
        if self.not_finite:
            logger.warning(
                "%s: %d numbers in the %s features of %d turns are not finite; means and deviations leave them out",
                *(title, self.not_finite, noun, self.with_not_finite),
            )
        if self.wrong_lengths:
            logger.warning(
                "%s: the lengths of the %s features of %d turns do not fit; their frames that are not zeros count",
                *(title, noun, self.wrong_lengths),
            )
