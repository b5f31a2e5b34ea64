"""Read the turns of a dialogue in every form that users, tables and data sets have; unknown fields raise."""

import dataclasses
import difflib
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..base.errors import InputError, short
from ..base.modalities import MODALITIES
from ..media.audio_objects import as_array
from ..media.subtitles import read_subtitles
from ..media.transcripts import transcript

_TURN = ("audio", "sampling_rate", "video", "start", "end", "text")  # beside the vectors of each modality
_OTHERS = ("utterance_id", "speaker", "emotion", "sentiment", "duration")  # fields of corpora that are not read here
_AUDIO = ("path", "bytes", "array", "sampling_rate")
_VIDEO = ("path", "bytes")
_RECORDING = ("audio", "video", "segments", "sampling_rate")
_ROW = ("utterances", "dialogue_id")
# Other names of the fields.
_SYNONYMS = {
    "text": "transcript transcription sentence utterance words content message caption subtitle",
    "audio": "path file filename file_name wav sound speech recording raw array bytes waveform",
    "video": "clip movie film picture frames mp4",
    "start": "begin from onset start_time starttime start_seconds",
    "end": "stop to offset end_time endtime end_seconds",
    "sampling_rate": "sample_rate samplerate sr rate",
    "speech_embedding": "speech_features speech_vector audio_embedding audio_features",
    "text_embedding": "text_features text_vector embedding",
    "visual_embedding": "visual_features visual_vector video_embedding video_features image_embedding",
    "segments": "subtitles srt vtt cues turns",
    "utterances": "turns dialogue conversation messages",
    "array": "raw samples data waveform",
    "path": "file filename file_name audio",
}
_HOW = 'a list of turns, such as [{"text": "You did what?"}, {"audio": "2.wav", "text": "Never."}]'


@dataclass
class Turn:
    """
    One turn as the user passed it: its fields, and vectors by modality. `name` and `dialogue` are for messages.

    `of_corpus` is true for a row of a corpus, whose columns state what it has: its video is not a source of audio, and
    is ignored by a model that does not read it.
    """

    name: str
    dialogue: str
    audio: Any = None
    sampling_rate: int | None = None
    video: Any = None
    start: float | None = None
    end: float | None = None
    text: str | None = None
    vectors: dict[str, Any] = dataclasses.field(default_factory=dict)
    transcribed: bool = False
    of_corpus: bool = False

    @property
    def sound(self) -> Any:
        """What its audio is read from: without audio, the video."""
        return self.video if self.audio is None and not self.of_corpus else self.audio


def is_dialogue(inputs: Any) -> bool:
    """Whether the input is one dialogue rather than several."""
    if isinstance(inputs, Mapping):
        return True
    if isinstance(inputs, list | tuple) and inputs and isinstance(inputs[0], Mapping):
        return not {"segments", "utterances"} & set(inputs[0])
    return False


def split_slice(inputs: Any) -> Any:
    """
    Turn a slice of a `datasets.Dataset`, which is a dictionary of columns, into a list of its rows.
    """
    columns = isinstance(inputs, Mapping) and inputs.get("utterances")
    if isinstance(columns, list) and columns and not any(isinstance(turns, Mapping) for turns in columns):
        return _rows(inputs, "the slice")
    return inputs


def check_dialogues(inputs: Any):
    r"""
    Raises:
        InputError: if the input is neither a dialogue nor an iterable of dialogues.
    """
    if isinstance(inputs, list | tuple) and inputs and isinstance(inputs[0], str | os.PathLike):
        raise InputError(
            f"Expected a dialogue, {_HOW}; got a list of strings, which may be texts or paths: "
            f'{short(repr(inputs[0]), 60)} is {{"text": ...}} or {{"audio": ...}}'
        )
    if isinstance(inputs, str | bytes | np.ndarray | torch.Tensor) or not _is_iterable(inputs):
        raise InputError(
            f"Expected a dialogue, {_HOW}, or many of them; got {type(inputs).__name__}. One recording: "
            '{"audio": path, "segments": [(start, end), ...]}'
        )


def _is_iterable(inputs: Any) -> bool:
    try:
        iter(inputs)  # also what is indexed from 0, as transformers' own data sets
    except TypeError:
        return False
    return True


def read_dialogue(inputs: Any, name: str) -> list[Turn]:
    r"""
    Read the turns of one dialogue: a list of them, a row of a corpus, or a recording with its segments.

    Raises:
        InputError: naming dialogue, turn and field.
    """
    vectors: list[dict[str, Any]] = []
    if isinstance(inputs, Mapping) and "utterances" in inputs:
        columns = [column for each in MODALITIES.values() for column in (each.features, each.has)]
        _refuse_unknown(inputs, _ROW, name, also=columns)
        if inputs.get("dialogue_id") is not None:
            name = f"dialogue '{short(inputs['dialogue_id'], 60)}'"
        vectors = _vectors_beside(inputs, name)
        inputs = inputs["utterances"]
        if isinstance(inputs, Mapping) and "segments" not in inputs:
            inputs = _rows(inputs, f"{name}, utterances")
    if isinstance(inputs, Mapping):
        inputs = _stretches(inputs, name)
    inputs = getattr(inputs, "messages", inputs)  # transformers wraps turns that look like those of a chat
    if not isinstance(inputs, list | tuple) or not all(isinstance(turn, Mapping) for turn in inputs):
        raise InputError(
            f"{name} must be a list of turns, each a dictionary with audio, text or video; got {inputs!r:.80}"
        )
    if not inputs:
        raise InputError(f"{name} has no turns")
    if vectors and len(vectors) != len(inputs):
        raise InputError(f"{name} has {len(inputs)} turns in utterances, and {len(vectors)} vectors")
    inputs = [{**turn, **own} for turn, own in zip(inputs, vectors, strict=True)] if vectors else inputs
    return [read_turn(turn, f"{name}, turn {number}", name) for number, turn in enumerate(inputs)]


def read_turn(given: Mapping[str, Any], name: str, dialogue: str) -> Turn:
    r"""
    Read one turn; blank text counts as missing.

    Raises:
        InputError: naming turn and field.
    """
    if not isinstance(given, Mapping):
        raise InputError(f'{name} must be a dictionary such as {{"text": "Never."}}; got {given!r:.80}')
    embeddings = {modality.embedding: modality.name for modality in MODALITIES.values()}
    of_corpus = "utterance_id" in given
    # a corpus may have further columns of numbers: scores, and classes by their index
    numbers = [field for field, value in given.items() if isinstance(value, Real | None)] if of_corpus else []
    _refuse_unknown(given, (*_TURN, *embeddings), name, also=(*_OTHERS, *numbers))
    turn = Turn(name, dialogue, of_corpus=of_corpus, **{field: given[field] for field in _TURN if field in given})
    turn.vectors = {of: given[field] for field, of in embeddings.items() if given.get(field) is not None}
    turn.text = _text(turn.text, name)
    for field in ("sampling_rate", "start", "end"):
        value = getattr(turn, field)
        if value is not None and (not isinstance(value, Real) or isinstance(value, bool | np.bool_)):
            raise InputError(f"{name}: {field} must be a number or None, got {value!r:.80}")
    turn.audio = _audio(turn.audio, turn.sampling_rate, name)
    turn.video = _video(turn.video, name)
    timed = turn.start is not None or turn.end is not None
    if turn.audio is None and turn.video is None and timed and not of_corpus:
        raise InputError(f"{name} has start or end, but no audio or video")
    if isinstance(turn.audio, np.ndarray):
        if turn.sampling_rate is None:
            raise InputError(f"{name}: audio is an array, so it needs sampling_rate, in Hz")
        if not math.isfinite(turn.sampling_rate) or turn.sampling_rate != int(turn.sampling_rate):
            raise InputError(f"{name}: sampling_rate must be an integer in Hz, got {turn.sampling_rate}")
    return turn


def read_vector(given: Any, width: int, name: str, columns: Sequence[str] | None = None) -> torch.Tensor:
    r"""
    Read a vector (width,) in float32.

    Args:
        given: the vector.
        width: the width that the model expects.
        name: what to call the vector in messages.
        columns: what the numbers of the vector are, if the model states it.

    Raises:
        InputError: for another shape, or numbers that are not finite or too large to compute with.
    """
    array = as_array(given, name)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must be a vector of {width} numbers, got {given!r:.80}")
    if array.shape != (width,):
        named = f": {short(', '.join(columns))}" if columns else ""
        raise InputError(f"{name} must have shape ({width},){named}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
        if not np.isfinite(numbers @ numbers):
            raise InputError(
                f"{name} has numbers up to {np.abs(array).max():.3g}, which are too large for float32 computation"
            )
    return torch.from_numpy(numbers)


def _refuse_unknown(given: Mapping, known: Sequence[str], name: str, also: Sequence[str] = ()):
    for field in given:
        if field not in known and field not in also:
            nearest = _nearest(field, known)
            hint = f"; did you mean '{nearest}'?" if nearest else f"; expected one of {', '.join(known)}"
            raise InputError(f"{name} has the unknown field {field!r:.60}{hint}")


def _nearest(field: Any, known: Sequence[str]) -> str | None:
    """The known field that was probably meant: a synonym, another spelling, or a typing error."""
    plain = str(field)[:60].strip().lower().replace(" ", "_").replace("-", "_")
    for name in known:
        if plain == name or plain in _SYNONYMS.get(name, "").split():
            return name
    return next(iter(difflib.get_close_matches(plain, known, n=1)), None)


def _rows(columns: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Turn a dictionary of lists into a list of dictionaries."""
    lengths = {field: len(values) if isinstance(values, list) else None for field, values in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) != 1:
        raise InputError(f"{name} must be lists of equal length by field, got the lengths {lengths}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _vectors_beside(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The vectors of each turn that a row of a corpus has beside its turns, as fields of a turn; empty without any."""
    columns: dict[str, list[Any]] = {}
    for modality in MODALITIES.values():
        features, there = row.get(modality.features), row.get(modality.has)
        if features is not None:
            there = [True] * len(features) if there is None else there
            if len(there) != len(features):
                raise InputError(
                    f"{name} has {len(features)} {modality.features}, but {len(there)} values of {modality.has}"
                )
            given = [vector if own else None for vector, own in zip(features, there, strict=True)]
            columns[modality.embedding] = given
    return _rows(columns, name) if columns else []


def _stretches(recording: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    if isinstance(recording.get("text"), list):
        raise InputError(
            f"{name}: a dictionary of lists is not a dialogue; expected {_HOW}. With datasets, pass "
            "[row for row in dataset] instead of a slice"
        )
    if set(recording) - set(_RECORDING) or "segments" not in recording or not {"audio", "video"} & set(recording):
        meant = {field: _nearest(field, _RECORDING + _ROW) for field in recording if field not in _RECORDING}
        hints = [f"{field!r:.60} may be '{nearest}'" for field, nearest in meant.items() if nearest]
        raise InputError(
            f"{name}: a recording is a dictionary with audio or video, segments and, for an array, sampling_rate; got "
            f"{short(sorted(map(str, recording)))}. One turn alone is a list of one turn"
            + "".join(f"; {hint}" for hint in hints)
        )
    segments = recording["segments"]
    if isinstance(segments, str | os.PathLike):
        try:
            segments = read_subtitles(Path(segments))
        except (OSError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if not isinstance(segments, Iterable) or isinstance(segments, Mapping):
        raise InputError(
            f"{name}: segments must be the path of an SRT or WebVTT file, or a list; got {segments!r:.80}"
        )
    # Converted once, not once per turn.
    rate = recording.get("sampling_rate")
    whole = {"audio": _audio(recording.get("audio"), rate, name), "sampling_rate": rate}
    whole["video"] = _video(recording.get("video"), name)
    if whole["audio"] is None and whole["video"] is None:
        raise InputError(f"{name}: the recording has neither audio nor video; got None")
    turns = []
    for number, segment in enumerate(segments):
        if isinstance(segment, list | tuple) and len(segment) in (2, 3):
            segment = dict(zip(("start", "end", "text"), segment, strict=False))
        if not isinstance(segment, Mapping) or not {"start", "end"} <= set(segment):
            raise InputError(
                f"{name}, segment {number} must be (start, end), (start, end, text) or a dictionary of them; got "
                f"{segment!r:.80}"
            )
        if own := {"audio", "video", "sampling_rate"} & set(segment):
            raise InputError(
                f"{name}, segment {number} has {' and '.join(sorted(own))}, which only the recording may have"
            )
        turns.append(whole | dict(segment))
    return turns


def _text(text: Any, name: str) -> str | None:
    if text is not None and not isinstance(text, str):
        raise InputError(f"{name}: text must be a string or None, got {text!r:.80}")
    return transcript(text, name)


def _audio(audio: Any, rate: float | None, name: str) -> Any:
    """Convert lists and tensors to arrays, and an empty dictionary of `datasets` to None."""
    if isinstance(audio, Mapping):
        _refuse_unknown(audio, _AUDIO, f"{name}: audio")
        if all(audio.get(part) is None for part in ("path", "bytes", "array")):
            return None
        if None not in (rate, audio.get("sampling_rate")) and audio["sampling_rate"] != rate:
            raise InputError(f"{name} has two sampling rates, {rate} and in audio {audio['sampling_rate']}")
        if audio.get("array") is not None:
            audio = dict(audio) | {"array": as_array(audio["array"], f"{name}: audio")}
        return audio
    return as_array(audio, f"{name}: audio") if isinstance(audio, list | np.ndarray | torch.Tensor) else audio


def _video(video: Any, name: str) -> Any:
    """Convert a file that cannot be read twice to its content, and an empty dictionary of `datasets` to None."""
    if isinstance(video, Mapping):
        _refuse_unknown(video, _VIDEO, f"{name}: video")
        return None if all(video.get(part) is None for part in _VIDEO) else video
    if isinstance(video, io.TextIOBase):
        raise InputError(f"{name}: video is a file opened as text; open it with mode 'rb'")
    if hasattr(video, "read"):
        if getattr(video, "closed", False):
            raise InputError(f"{name}: video is a file that is closed")
        return video if getattr(video, "seekable", lambda: hasattr(video, "seek"))() else video.read()
    if video is not None and not isinstance(video, str | os.PathLike | bytes | bytearray | memoryview):
        raise InputError(
            f"{name}: video must be a path, bytes, a binary file or a dictionary of path and bytes; got "
            f"{type(video).__name__}"
        )
    return video
