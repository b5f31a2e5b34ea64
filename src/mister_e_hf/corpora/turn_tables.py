"""Read turns from a folder, a table or a subtitle file, each with all fields and the place where it was found."""

import decimal
import logging
import math
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError, short
from ..media.subtitles import SUBTITLES, read_subtitles
from ..media.text_files import text_of_name
from ..media.video import VideoError, has_picture
from .columns import TURN_COLUMNS, listed, match_columns, plain, unused
from .doubtful_cells import check_cell, check_turns
from .parquet_tables import Nested, encoded, texts_of
from .recordings import MEDIA, PICTURES, files_in, find_file, is_path, not_read, recording_of
from .sources import TABLES, AudioInTable, EmptyTableError, read_table
from .splits import SPLIT_NAMES, split_named, splits_of_names

logger = logging.getLogger(__name__)

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_LARGEST = 1e38  # about float32's largest, in which scores are trained on
_ROUNDED = re.compile(r"\d[.,]\d+[eE]\+\d+")
_COMMA = re.compile(r"[+-]?\d+,(\d+)")
_MOST_NAMED = 10  # columns in the advice about numbers
# Names of columns that may hold audio files or other things, which the cells decide.
_DOUBTFUL_AUDIO = {plain(name) for name in ("file_path", "file", "path", "sound", "recording", "wav")}
# Names of columns that may mean a file with its picture, if it has one.
_ANY_FILE = {plain(name) for name in ("file_name", "file_path", "file", "path", "recording")}


def read_turns(
    folder: Path,
    columns: Mapping[str, str | None] | None = None,
    in_row_order: bool = False,
    scores: Sequence[str] = (),
) -> list[dict[str, Any]]:
    r"""
    Every turn with the fields of [`TURN_COLUMNS`] and the scores, None if a field is not given, and `where` it was
    found; warnings name the files and columns that are not read.

    Args:
        folder: tables or subtitles, in itself or in folders of the splits; or one table or subtitle file.
        columns: the column of a field, or None or `""` for none.
        in_row_order: a table without `dialogue_id` is one dialogue, and one without `order` and `start` is in the
            order of its rows.
        scores: further fields that hold a number, or nothing; each table must have a column of each.

    Raises:
        FileNotFoundError: if the folder has neither tables nor subtitles.
        InputError: naming the file and row, if something does not fit.
    """
    chosen: dict[str, str | None] = {**dict(zip(scores, scores, strict=True)), **(columns or {})}
    reader = _Reader(chosen, in_row_order, scores)
    if folder.is_file():
        rows = reader.read_file(folder, split_named(folder.stem) if folder.suffix.lower() in TABLES else None)
    elif not folder.is_dir():
        raise InputError(f"'{folder}' is neither a folder nor a file")
    else:
        rows = reader.read_folder(folder)
    reader.warn()
    check_turns(rows)
    return rows


class _Reader:
    def __init__(self, columns: dict[str, str | None], in_row_order: bool, scores: Sequence[str]):
        self.columns, self.in_row_order, self.scores = columns, in_row_order, scores
        self.unused: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        self.numbers: dict[tuple[str, ...], list[str]] = {}  # those of the unused columns that hold numbers
        self.empty: list[EmptyTableError] = []
        self.alone: list[Path] = []  # subtitles without a recording
        self.pictures: dict[Path, bool] = {}

    def warn(self):
        for names, tables in self.unused.items():
            more = f" and {len(tables) - 1} more" if len(tables) > 1 else ""
            numbers = self.numbers[names]
            hint = f". To keep numbers as scores, name them in scores (--scores {shlex.join(numbers[:_MOST_NAMED])})"
            logger.warning(
                "'%s'%s: the columns %s are not used; fields are %s%s",
                tables[0],
                more,
                listed(names),
                ", ".join(TURN_COLUMNS),
                hint if numbers else "",
            )
        if self.empty:
            more = f", with {len(self.empty) - 1} more" if len(self.empty) > 1 else ""
            logger.warning("%s; skipped%s", self.empty[0], more)
        if self.alone:
            more = f", nor beside {len(self.alone) - 1} more" if len(self.alone) > 1 else ""
            logger.warning(
                "'%s': no recording of that name beside it%s; the turns have text only", self.alone[0], more
            )

    def read_folder(self, folder: Path) -> list[dict[str, Any]]:
        """Read the folders of the splits and the files of the folder itself."""
        inside = {
            # Spark writes a table as a folder of tables.
            path: path.stem if path.suffix.lower() in TABLES else path.name
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        }
        splits = splits_of_names(list(inside.values()))
        places = {folder: None} | {path: splits[name] for path, name in inside.items() if name in splits}
        rows = [row for place, split in places.items() for row in self._read_place(place, split)]
        left = {place: not_read(place, self._used(rows), TABLES) for place in places}
        if not rows:
            if self.empty:
                raise self.empty[0]
            raise FileNotFoundError(
                f"'{folder}' holds no table of turns ({', '.join(TABLES)}) and no subtitles ({', '.join(SUBTITLES)}) "
                "beside recordings, neither itself nor in folders train, validation and test. It holds "
                f"{listed(left[folder] or _names(folder))}."
            )
        for place, names in left.items():
            if names:
                logger.warning("'%s': these files and folders are not read: %s", place, listed(names))
        return rows

    @staticmethod
    def _used(rows: list[dict[str, Any]]) -> set[Path]:
        return {path for row in rows for path in (Path(row["source"]), row["audio"], row["video"]) if is_path(path)}

    def _read_place(self, folder: Path, split: str | None) -> list[dict[str, Any]]:
        files = files_in(folder)
        tables = [path for path in files if path.suffix.lower() in TABLES]
        tables = [path for path in tables if path.stem.lower() == "metadata"] or tables
        named = splits_of_names([path.stem for path in tables])
        rows = []
        for path in tables or [path for path in files if path.suffix.lower() in SUBTITLES]:
            try:
                rows += self.read_file(path, split or (named.get(path.stem) if tables else None), files)
            except EmptyTableError as error:  # which Spark writes beside the others
                self.empty.append(error)
        return rows

    def read_file(self, path: Path, split: str | None, beside: list[Path] | None = None) -> list[dict[str, Any]]:
        if path.suffix.lower() in SUBTITLES:
            return self._read_recording(path, split, files_in(path.parent) if beside is None else beside)
        table = read_table(path)
        there = list(table[0])
        if "utterances" in there:
            raise InputError(
                f"'{path}' holds a row per dialogue, not per turn: it is a finished corpus, use its folder as it is"
            )
        names = self._names(path, table, there)
        if left := tuple(unused(there, names)):
            self.unused[left].append(path)
            numbers = [name for name in left if _is_numbers([row[name] for row in table])]
            self.numbers[left] = [name for name in self.numbers.get(left, numbers) if name in numbers]
        for field, name in names.items():
            if name and field not in ("audio", "video") and any(isinstance(row[name], AudioInTable) for row in table):
                for row, text in zip(table, texts_of(path, name), strict=True):
                    row[name] = text
        takes_picture = (
            names["video"] is None and "video" not in self.columns and plain(names["audio"] or "") in _ANY_FILE
        )
        rows = []
        for place, cells in enumerate(table):
            turn = {field: cells[name] if name else None for field, name in names.items()}
            if self.in_row_order:
                if names["dialogue_id"] is None:
                    turn["dialogue_id"] = text_of_name(path.stem)
                if names["order"] is None and names["start"] is None:
                    turn["order"] = place
            rows.append(_checked(turn, f"'{path}', row {cells.number}", path, split, self.scores))
            if takes_picture and self._has_picture(rows[-1]["audio"]):
                rows[-1]["video"] = rows[-1]["audio"]
        return rows

    def _names(self, path: Path, table: Sequence[Mapping[str, Any]], there: list[str]) -> dict[str, str | None]:
        names = match_columns(path, there, TURN_COLUMNS, self.columns)
        utterance = names["utterance_id"]
        for field, kinds in (("audio", MEDIA), ("video", PICTURES)):
            name = names[field]
            if name and field not in self.columns and (field == "video" or plain(name) in _DOUBTFUL_AUDIO):
                first = next((row[name] for row in table if row[name] is not None), None)
                if not isinstance(first, AudioInTable | dict) and not str(first).strip().lower().endswith(kinds):
                    names[field] = None
        spoken = [name for name in there if plain(name) in ("utterance", "utterances") and name not in names.values()]
        if not names["text"] and "text" not in self.columns and len(spoken) == 1:  # another column holds the ids
            names["text"] = spoken[0]
        if utterance and "utterance_id" not in self.columns and plain(utterance) == "utterance" and not names["text"]:
            if any(" " in str(row[utterance]).strip() for row in table if row[utterance] is not None):
                raise InputError(
                    f"'{path}': does the column '{utterance}' hold text or ids? Pass "
                    f"columns={{'text': '{utterance}'}} or columns={{'utterance_id': '{utterance}'}}."
                )
        if names["start"] is None or names["end"] is not None:
            names["duration"] = None  # of the whole file, or redundant
        lacking = [] if self.in_row_order else [field for field in ("dialogue_id",) if names[field] is None]
        if names["order"] is None and names["start"] is None and not self.in_row_order:
            lacking.append("order (or start)")
        if not (names["text"] or names["audio"] or names["video"]):
            lacking.append("text or audio")
        if lacking:
            raise InputError(
                f"'{path}' has the columns {listed(there)}; expected dialogue_id, order (or start), and text, audio "
                f"or both. It lacks {', '.join(lacking)}: say which column holds it, for example "
                f"columns={{'{lacking[0].split()[0]}': '{short(there[0], 60)}'}}."
            )
        return names

    def _has_picture(self, path: Any) -> bool:
        """Whether a file that no column calls a video has a picture; one that cannot be read fails as audio."""
        if not is_path(path) or not str(path).lower().endswith(PICTURES):
            return False
        if path not in self.pictures:
            try:
                self.pictures[path] = has_picture(path)
            except VideoError:
                self.pictures[path] = False
        return self.pictures[path]

    def _read_recording(self, path: Path, split: str | None, beside: list[Path]) -> list[dict[str, Any]]:
        if self.scores:
            raise InputError(
                f"'{path}': subtitles hold no scores, but scores names {listed(self.scores)}; put the turns into "
                "a table"
            )
        recording = recording_of(path, beside)
        if recording is None:
            self.alone.append(path)
        nothing = dict.fromkeys(TURN_COLUMNS)
        place = recording and recording.resolve()
        takes_picture = "video" not in self.columns and self._has_picture(place)
        return [
            nothing
            | cue
            | {"dialogue_id": text_of_name((recording or path).stem), "order": float(number)}
            | {"audio": place, "video": place if takes_picture else None, "split": split}
            | {"where": f"'{path}', cue {number + 1}", "source": str(path)}
            for number, cue in enumerate(read_subtitles(path))
        ]


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder))


def _checked(row: dict[str, Any], where: str, path: Path, split: str | None, scores: Sequence[str]) -> dict[str, Any]:
    for field, cell in row.items():
        check_cell(cell, field, where)
    for field in ("dialogue_id", "utterance_id", "text", "speaker", "emotion"):
        row[field] = _words(row[field], field, where)
    if row["dialogue_id"] is None:
        raise InputError(f"{where}: no dialogue_id")
    if _ROUNDED.fullmatch(row["dialogue_id"]):
        raise InputError(
            f"{where}: dialogue_id '{row['dialogue_id']}' is a long number that a spreadsheet or data frame rounded, "
            "so that several dialogues may have it; write the ids as text"
        )
    if row["dialogue_id"].lower() in ("nan", "<na>", "null"):
        raise InputError(f"{where}: dialogue_id '{row['dialogue_id']}' is what data frames write for an empty cell")
    for field in ("order", "start", "end", "duration", "sentiment", *scores):
        read = _seconds if field in ("start", "end", "duration") else _number
        row[field] = read(row[field], field, where)
    if row["order"] is None and row["start"] is None:
        raise InputError(
            f"{where}: neither order nor start, so the turn's place in dialogue '{row['dialogue_id']}' is not known"
        )
    if row["duration"] is not None and row["end"] is None and row["start"] is not None:
        row["end"] = row["start"] + row["duration"]
    if row["split"] is not None:
        given = split_named(str(row["split"]))
        if given is None:
            names = [name for names in SPLIT_NAMES.values() for name in names]
            raise InputError(f"{where}: unknown split {short(repr(row['split']), 60)}; expected one of {names}")
        if split is not None and split != given:
            raise InputError(f"{where}: split {row['split']!r}, but the row is in {split}")
        split = given
    for content in ("audio", "video"):
        media = row[content]
        if isinstance(media, dict) and isinstance(media.get("array"), list) and content == "audio":
            row[content] = {"path": None, "bytes": encoded(media["array"], media.get("sampling_rate"), where)}
        elif media is not None and not isinstance(media, AudioInTable):
            name = media.get("path") if isinstance(media, dict) and not media.get("bytes") else media
            if not isinstance(name, str):
                raise InputError(f"{where}: {content} must be the path of a file, got {short(repr(media), 100)}")
            # One table may be above the folders of the splits, as in AudioFolder.
            split = split or split_named(next(iter(Path(name).parts[:-1]), ""))
            row[content] = find_file(path.parent, name.strip(), where, content)
    return row | {"split": split, "where": where, "source": str(path)}


def _words(value: Any, field: str, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool | AudioInTable | Nested | list | dict | tuple | bytes | set):
        raise InputError(f"{where}: {field} must be text or null, got {short(repr(value), 100)}")
    if (
        isinstance(value, float | decimal.Decimal)
        and value == value
        and abs(float(value)) < 2**53
        and value == value // 1
    ):
        value = int(value)  # data frames store integers with empty cells as floats
    text = str(value).strip()
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: {field} holds half of a character (a lone surrogate): {short(ascii(text), 100)}")
    if "\0" in text:
        raise InputError(f"{where}: {field} holds a NUL character, which no text has: {short(ascii(text), 100)}")
    return text or None


def _number(value: Any, field: str, where: str) -> float | None:
    if value is None:
        return None
    given = value
    if isinstance(value, str):
        comma = _COMMA.fullmatch(value.strip())
        # With three digits it may be a thousands separator.
        if comma and (len(comma[1]) != 3 or re.match(r"[+-]?0,", value.strip())):
            value = value.replace(",", ".")
        elif "_" in value:
            value = None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
        if abs(number) > _LARGEST:
            number = math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        thousands = isinstance(given, str) and _COMMA.fullmatch(given.strip())
        hint = "; its comma may part decimals or thousands, so write a point or nothing" if thousands else ""
        raise InputError(f"{where}: {field} must be a number, got {short(repr(given), 100)}{hint}")
    return number


def _is_numbers(cells: Sequence[Any]) -> bool:
    """Whether the cells of a column are numbers, where they hold anything."""
    given = [cell for cell in cells if cell is not None]
    try:
        return bool(given) and all(_number(cell, "", "") is not None for cell in given)
    except InputError:
        return False


def _seconds(value: Any, field: str, where: str) -> float | None:
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return _number(value, field, where)
    hours, minutes, seconds = int(clock[1] or 0), int(clock[2]), float(clock[3].replace(",", "."))
    return hours * 3600 + minutes * 60 + seconds
