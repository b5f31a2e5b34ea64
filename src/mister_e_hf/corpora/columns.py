"""Match the columns of a table to known fields: by name, by spelling or by synonym, and ask if in doubt."""

import difflib
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base.errors import InputError, short

# Column names of each field of a turn, in order of preference.
TURN_COLUMNS = {
    "dialogue_id": (
        *("dialogue_id", "dialogue", "dialog_id", "dialog", "dialogue_name", "conversation_id", "conversation"),
        *("conv_id", "call_id"),
    ),
    "order": (
        *("order", "turn", "turn_id", "turn_index", "turn_idx", "turn_number", "turn_no", "turn_order"),
        *("utterance_index", "utterance_number", "utterance_order"),
    ),
    "utterance_id": ("utterance_id", "utterance", "utt_id", "segment_id"),
    "text": ("text", "transcript", "transcription", "sentence", "utterance_text", "transcript_text"),
    "audio": (
        *("audio", "file_name", "audio_filepath", "audio_path", "audio_file", "audio_file_name"),
        *("wav_path", "wav_file", "wav", "file_path", "file", "path", "sound", "recording"),
    ),
    "video": ("video", "video_path", "video_file", "video_filepath", "video_file_name", "clip", "clip_path"),
    "start": (
        *("start", "start_time", "begin", "begin_time", "onset", "start_s", "start_sec", "start_seconds"),
        *("start_time_s", "start_time_sec", "start_time_seconds"),
    ),
    "end": (
        *("end", "end_time", "stop", "stop_time", "end_s", "end_sec", "end_seconds"),
        *("end_time_s", "end_time_sec", "end_time_seconds"),
    ),
    "duration": ("duration", "dur", "duration_s", "duration_sec", "duration_seconds"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "spk", "spk_id"),
    "emotion": ("emotion", "label", "emotion_label", "emotion_class", "emotion_name"),
    "sentiment": ("sentiment", "sentiment_score"),
    "split": ("split", "partition", "subset", "data_split"),
}
# Words that name a unit, or nothing: a column named with the field and such a word may be meant, but the user is
# asked.
_UNITS = {"ms", "msec", "millis", "milliseconds", "samples", "sample", "frames", "frame", "time", "times", "name"}
_LIKE = 0.81  # similarity (difflib) from which on a name may be a misspelt field
_LISTED = 20


@functools.lru_cache(1 << 15)
def plain(name: str) -> str:
    """A column's name without case, blanks, underscores, hyphens, dots and differences of Unicode form."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def match_columns(
    path: Path,
    there: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    given: Mapping[str, str | None] | None = None,
) -> dict[str, str | None]:
    r"""
    The column of each field, or None.


    Args:
        path: the table, for messages.
        there: the names of its columns.
        fields: the names under which a column may hold each field, in order of preference.
        given: columns chosen by the user; None or "" for no column.

    Raises:
        InputError: if a chosen column does not exist, or a column may be meant for a field without one; the message
            asks which.
    """
    given = given or {}
    names: dict[str, str | None] = {}
    for field, column in given.items():
        if column and column not in there:
            alike = [name for name in there if plain(name) == plain(column)]
            if len(alike) != 1:
                purpose = "" if column == field else f" for {field}"
                advice = f". If one of them is meant, pass columns={{'{field}': 'NAME'}}" if column == field else ""
                raise InputError(f"'{path}' has no column '{column}'{purpose}; it has {listed(there)}{advice}")
            column = alike[0]
        names[field] = column or None
    free = [name for name in there if name not in names.values()]
    for field, known in fields.items():
        if field not in names:
            names[field] = _column(path, field, known, free)
    used = set(names.values())
    # `offset` is the end beside `onset`, and the start beside a duration.
    offset = [name for name in free if plain(name) == "offset" and name not in used]
    if offset and {"start", "end", "duration"} <= set(fields):
        if names["start"] is None and names["duration"] is not None:
            names["start"] = offset[0]
        elif names["start"] is not None and plain(names["start"]) == "onset" and names["end"] is None:
            names["end"] = offset[0]
    used = set(names.values())
    for field, known in fields.items():
        if names[field] is None and field not in given and not _need_not_ask(field, names):
            near = [name for name in free if name not in used and _near(name, known)]
            near += [name for name in offset if name not in used and field == "start"]
            if near:
                unit = " It must hold seconds." if field in ("start", "end") else ""
                raise InputError(
                    f"'{path}' has no column {field}, but a column '{short(near[0], 60)}'. If that is meant, pass "
                    f"columns={{'{field}': '{short(near[0], 60)}'}}; if not, pass columns={{'{field}': ''}}.{unit}"
                )
    return names


def unused(there: Sequence[str], names: Mapping[str, str | None]) -> list[str]:
    """Columns that match no field, without the row numbers that data frames write."""
    index = re.compile(r"(__index_level_\d+__|Unnamed: 0(\.\d+)?|)")
    return [name for name in there if name not in names.values() and not index.fullmatch(name)]


def listed(names: Sequence[str]) -> str:
    """Names for a message, limited in number and length."""
    more = len(names) - _LISTED
    return (
        "["
        + ", ".join(repr(short(name, 60)) for name in names[:_LISTED])
        + (f", and {more:,} more]" if more > 0 else "]")
    )


def _column(path: Path, field: str, known: Sequence[str], free: Sequence[str]) -> str | None:
    for name in known:
        if name in free:
            return name
    for name in known:
        alike = [column for column in free if plain(column) == plain(name)]
        if len(alike) > 1:
            raise InputError(
                f"'{path}' has the columns {listed(alike)}: which one is {field}? Pass "
                f"columns={{'{field}': '{alike[0]}'}}, for example."
            )
        if alike:
            return alike[0]
    return None


def _need_not_ask(field: str, names: Mapping[str, str | None]) -> bool:
    """
    Whether a missing field may be left without asking: a turn's place is known from order or start, its end from start
    and duration.
    """
    if field == "order":
        return names.get("start") is not None
    if field == "end":
        return names.get("duration") is not None and names.get("start") is not None
    return field in ("utterance_id", "speaker", "duration", "video")


def _near(name: str, known: Sequence[str]) -> bool:
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()))
    if any(words - _UNITS == {one} and words & _UNITS for one in known):
        return True
    return bool(difflib.get_close_matches(plain(name), [plain(one) for one in known[:2]], 1, _LIKE))
