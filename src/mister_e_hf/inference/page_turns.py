"""The table and the uploads of the local web app as turns of the pipeline."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError, short
from ..media.subtitles import read_subtitles

COLUMNS = ("words", "start", "end", "recording")
KEPT = 3600  # seconds until an uploaded recording is deleted
_MAX_TURNS = 2000


def page_turns(rows: Sequence[Sequence[Any]], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """
    The turns of the table for the pipeline, and their rows; see [`emotions`].

    Raises:
        InputError: naming the turn; turns that are not empty are counted from 1.
    """
    recordings = {Path(path).name: path for path in paths}
    if len(recordings) < len(paths):
        raise InputError("Two recordings have the same name; rename one and choose them again")
    if gone := [name for name, path in recordings.items() if not Path(path).is_file()]:
        raise InputError(f"The recording {gone[0]} was deleted after {KEPT // 60} minutes; choose it again")
    cells = [row for row in table_rows(rows) if any(row)] or ([[""] * len(COLUMNS)] if len(paths) == 1 else [])
    if len(cells) > _MAX_TURNS:
        raise InputError(f"The table has {len(cells)} turns; the page takes {_MAX_TURNS} at once")
    if not cells:
        raise InputError("The table has no turns yet: write the text of one into it, or choose a recording")
    named = {row[3] for row in cells}
    shared = next(iter(recordings)) if len(recordings) == 1 and not named & set(recordings) else None
    turns, used = [], set[str]()
    for number, (text, start, end, name) in enumerate(cells, start=1):
        turn: dict[str, Any] = {"text": text or None}
        for field, given in {"start": start, "end": end}.items():
            if given:
                turn[field] = _seconds(given, f"Turn {number}: {field}")
        if len(turn) == 2:
            raise InputError(f"Turn {number} has only a start or an end: enter both, in seconds, or neither")
        if len(turn) == 3 and turn["end"] <= turn["start"]:
            raise InputError(f"Turn {number} ends at {end} s, and starts at {start} s")
        if name and name not in recordings:
            have = ", ".join(recordings) or "none"
            raise InputError(f"Turn {number}: unknown recording {name!r}; expected one of {have}")
        if not name and shared and (start or len(cells) == 1):
            name = shared
        if name:
            turn["audio"] = recordings[name]
            used.add(name)
        elif not text:
            raise InputError(f"Turn {number} has neither text nor a recording: enter one, or clear the row")
        turns.append(turn)
    if unused := [name for name in recordings if name not in used]:
        raise InputError(
            f"The recording {unused[0]} belongs to no turn: enter the start and end of turns in it, write its name "
            "into the column 'recording', or remove it"
        )
    return turns, cells


def subtitle_rows(path: str) -> list[list[str]]:
    """
    The table's rows for an SRT or WebVTT file.

    Raises:
        InputError: if the file cannot be read; see [`read_subtitles`].
    """
    try:
        cues = read_subtitles(path)
    except ValueError as error:
        raise InputError(for_page(str(error), [path])) from error
    return [[cue["text"] or "", f"{cue['start']:g}", f"{cue['end']:g}", ""] for cue in cues]


def name_recordings(rows: Sequence[Sequence[Any]], paths: Sequence[str]) -> list[list[str]]:
    """
    Write the names of several recordings beside the turns, in order, and append rows if there are more recordings. A
    single recording belongs to all turns and is not written.
    """
    cells = table_rows(rows)
    if len(paths) < 2:
        return cells
    named = {row[3] for row in cells}
    waiting = [name for name in (Path(path).name for path in paths) if name not in named]
    for row in cells:
        if waiting and not row[1] and not row[3]:
            row[3] = waiting.pop(0)
    return cells + [["", "", "", name] for name in waiting]


def table_rows(rows: Any) -> list[list[str]]:
    """The rows of the table with every cell as text."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise InputError(f"The table must be a list of rows, got {type(rows).__name__}")
    found = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(COLUMNS):
            cells = f"{len(row)} cells" if isinstance(row, Sequence) and not isinstance(row, str) else short(row, 40)
            raise InputError(f"Row {number} has {cells}; expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
        found.append(["" if cell is None else str(cell).strip() for cell in row])
    return found


def _seconds(given: str, name: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", given):
        raise InputError(f"{name} must be seconds, such as 12.5, got {given!r:.80}")
    return float(given)


def for_page(message: str, paths: Sequence[str]) -> str:
    """The pipeline's message with the names of uploads instead of their paths, and turns counted from 1."""
    for path in paths:
        message = message.replace(str(path), Path(path).name)
    return re.sub(r"dialogue 0, turn (\d+)", lambda found: f"Turn {int(found[1]) + 1}", message)
