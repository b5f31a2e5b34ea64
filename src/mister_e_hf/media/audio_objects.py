"""Inputs accepted as audio: paths, bytes, arrays, tensors, lists, dictionaries and decoders of `datasets`."""

import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from ..base.errors import InputError, short
from .media_files import is_file_like

_KEYS = ("path", "bytes", "array", "sampling_rate")


class AudioError(InputError):
    """
    Audio that cannot be used: missing, empty, corrupt, silent, not finite, too loud or too long. Messages name the
    file.
    """


def resolve(
    source: Any, sampling_rate: Any, name: str | None
) -> tuple[str | os.PathLike | bytes | np.ndarray | Any, int | None, str | None]:
    r"""
    Resolve an input to a path, bytes, an open file, an array (S,) or (channels, S) with its sampling rate, or a
    decoder with `get_all_samples`.


    Raises:
        InputError: if the input is something else.
    """
    if isinstance(source, Mapping):
        source, sampling_rate, name = _of_dictionary(source, sampling_rate, name)
    if is_file_like(source) or hasattr(source, "get_all_samples"):
        return source, sampling_rate, name
    if hasattr(source, "data") and hasattr(source, "sample_rate"):  # decoded by torchcodec
        source, sampling_rate = source.data, source.sample_rate
    if source is None or isinstance(source, np.generic | Real):
        raise InputError(
            "Expected a path, bytes, an array with sampling_rate, a dictionary of these, an open binary file or an "
            f"audio decoder; got {type(source).__name__}"
        )
    if isinstance(source, tuple) and len(source) == 2 and any(isinstance(part, Real) for part in source):
        raise InputError(
            "Expected samples and their sampling_rate apart, got a tuple of both; pass {'array': ..., "
            "'sampling_rate': ...}"
        )
    array = as_array(source, name or "array")
    if array.dtype.kind not in "fi":
        raise InputError(f"Expected samples as floating point or signed integers, got {array.dtype}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > array.shape[1] > 0):
        raise InputError(f"Expected samples of shape (S,) or (channels, S), got {array.shape}")
    return array, whole_rate(sampling_rate), name


def _of_dictionary(given: Mapping[str, Any], sampling_rate: Any, name: str | None) -> tuple[Any, Any, str | None]:
    if unknown := [key for key in given if key not in _KEYS]:
        raise InputError(
            f"A dictionary of audio has the unknown key {short(repr(unknown[0]), 80)}; expected {', '.join(_KEYS)}"
        )
    path, content, array = (given.get(key) for key in _KEYS[:3])
    if array is not None:
        rate = given.get("sampling_rate")
        if None not in (rate, sampling_rate) and whole_rate(rate) != whole_rate(sampling_rate):
            raise InputError(
                f"The array has sampling_rate {rate!r}, and sampling_rate={sampling_rate!r} was given, too"
            )
        return array, sampling_rate if rate is None else rate, name or path
    if content is not None and not isinstance(content, bytes | bytearray | memoryview):
        raise InputError(f"'bytes' of a dictionary of audio must be bytes, got {type(content).__name__}")
    if content is None and path is not None and not isinstance(path, str | os.PathLike):
        raise InputError(f"'path' of a dictionary of audio must be a path, got {type(path).__name__}")
    return path if content is None else content, sampling_rate, name or path


def as_array(given: Any, name: str) -> np.ndarray:
    """
    Convert an array, tensor or list to a NumPy array.


    Raises:
        InputError: if it is masked, ragged, or a tensor without numbers, as on the device `meta`.
    """
    try:
        if hasattr(given, "detach"):  # a tensor of torch, which this file does not import
            given = given.detach().cpu()
            given = given.float() if given.is_floating_point() else given
        if np.ma.is_masked(given):
            raise InputError(f"{name} is an array with masked values; fill them, or leave them out")
        return np.asarray(given)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # every library raises different errors for objects without numbers
        raise InputError(f"{name} cannot be read as an array: {short(error)}") from error


def whole_rate(given: Any) -> int:
    """Check a sampling rate in Hz and convert it to an integer."""
    if given is None:
        raise InputError("An array of samples needs its sampling_rate in Hz")
    if hasattr(given, "item") and getattr(given, "ndim", None) == 0:
        given = given.item()
    if not isinstance(given, Real) or isinstance(given, bool) or not abs(float(given)) < 2**63 or given % 1:
        raise InputError(f"sampling_rate must be a whole number of Hz, got {short(repr(given), 80)}")
    return int(float(given))


def decode(source: Any, start: float | None, end: float | None, max_seconds: float, name: str) -> tuple[Any, Any]:
    r"""
    Samples and sampling rate of a decoder (of `torchcodec`, as `datasets` gives it) between `start` and `end`.


    Raises:
        AudioError: if it cannot decode.
    """
    seconds = getattr(getattr(source, "metadata", None), "duration_seconds", None)
    if start is end is None and isinstance(seconds, Real) and float(seconds) > max_seconds:
        raise AudioError(too_long(name, float(seconds), max_seconds))
    try:
        if (start is not None or end is not None) and hasattr(source, "get_samples_played_in_range"):
            found = source.get_samples_played_in_range(start or 0.0, end)
        else:
            found = source.get_all_samples()
            first, last = (None if at is None else round(at * found.sample_rate) for at in (start, end))
            return found.data[..., first:last], found.sample_rate
        return found.data, found.sample_rate
    except Exception as error:  # raised by another library, about the content
        raise AudioError(f"{name} cannot be decoded: {short(error)}") from error


def check_stretch(start: float | None, end: float | None, max_seconds: float):
    """Raise InputError if the times are not valid."""
    for given in (start, end, max_seconds):
        if given is not None and (not isinstance(given, Real) or isinstance(given, bool)):
            raise InputError(f"start, end and max_seconds must be numbers of seconds, got {short(repr(given), 80)}")
    if (start is not None and not 0 <= start < np.inf) or (end is not None and not (start or 0.0) < end < np.inf):
        raise InputError(f"Expected 0 <= start < end in seconds, got start={start}, end={end}")
    if max_seconds is None or not max_seconds > 0:
        raise InputError(f"max_seconds must be above 0, got {max_seconds}")


def too_long(label: str, seconds: float, max_seconds: float, at_least: bool = False) -> str:
    return (
        f"{label} lasts {'more than ' if at_least else ''}{seconds:.1f} s, and at most {max_seconds:g} s are taken. "
        "Give start and end, or raise max_seconds if this is one utterance."
    )
