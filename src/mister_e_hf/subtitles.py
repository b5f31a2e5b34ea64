"""SRT and WebVTT: the turns of one recording, with their stretches."""

import html
import itertools
import re
from pathlib import Path
from typing import Any

from .errors import InputError
from .text_files import read_text

SUBTITLES = (".srt", ".vtt")

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_ARROW = re.compile(r"\d\s*-->|-->\s*\d")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"</?[a-zA-Z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")


def read_subtitles(path: str | Path) -> list[dict[str, Any]]:
    r"""
    The cues of a subtitle file in order, each `{"start", "end", "text", "speaker"}`: seconds; text without markup, null where the cue
    has none; the speaker where a WebVTT voice tag names one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is neither, holds no cue, or a cue is malformed or ends before it starts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No subtitles at '{path}'")
    if path.suffix.lower() not in SUBTITLES:
        raise InputError(f"'{path}' is no subtitle file: expected one of {', '.join(SUBTITLES)}")
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    timings = {number: timing for number, line in enumerate(lines) if (timing := _TIMING.fullmatch(line))}
    arrows = sum(_ARROW.search(line) is not None for line in lines)
    if not timings or arrows != len(timings):
        raise InputError(
            f"'{path}' has {arrows} lines with an arrow between times, of which {len(timings)} are well-formed cues"
        )
    web = path.suffix.lower() == ".vtt" or lines[0].startswith("WEBVTT")
    cues = []
    for (number, timing), following in itertools.zip_longest(timings.items(), itertools.islice(timings, 1, None)):
        block = lines[number + 1 : following]
        if web:
            # Identifiers, of any form, and NOTE, STYLE and REGION stand behind an empty line.
            block = list(itertools.takewhile(str.strip, block))
        elif following and block and block[-1].strip().isdigit():
            block.pop()  # the next cue's number; an empty line may stand within a cue
        cues.append(_cue(path, timing, "\n".join(block)))
    return sorted(cues, key=lambda cue: (cue["start"], cue["end"]))


def _cue(path: Path, timing: re.Match, text: str) -> dict[str, Any]:
    start, end = _seconds(*timing.groups()[:4]), _seconds(*timing.groups()[4:])
    if end <= start:
        raise InputError(f"'{path}': the cue at {start:g} s ends at {end:g} s, before it starts")
    voice = _VOICE.search(text)
    return {
        "start": start,
        "end": end,
        "text": _words(_TAG.sub("", text).replace(r"\N", " ")),
        "speaker": voice and _words(voice[1]),
    }


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return (whole * 1000 + int(fraction.ljust(3, "0"))) / 1000


def _words(text: str) -> str | None:
    return " ".join(html.unescape(text).split()) or None
