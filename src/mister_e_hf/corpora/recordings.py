"""Find the audio and video files of tables and subtitles, and list the files that are not used."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ..base.errors import InputError, short
from ..media.subtitles import SUBTITLES

PICTURES = (
    *(".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".mts", ".m2ts"),
    ".3gp",
)
MEDIA = (
    *(
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".m4a",
        ".aac",
        ".aif",
        ".aiff",
        ".aifc",
        ".caf",
        ".au",
        ".snd",
    ),
    *(".w64", ".rf64", ".wma", ".amr", ".mka", ".m4b", ".mp2", ".ac3", ".wv", ".spx"),
    *PICTURES,
)
# Files of turns or tables in formats that are not supported.
_OTHER_FORMS = (
    *(
        ".xlsx",
        ".xls",
        ".ods",
        ".json",
        ".txt",
        ".eaf",
        ".textgrid",
        ".rttm",
        ".ass",
        ".ssa",
        ".sub",
        ".ttml",
        ".srv3",
    ),
    *(".feather", ".arrow", ".orc", ".ctm", ".stm", ".lab", ".gz", ".zip", ".tar", ".7z"),
)
_NOTES = ("readme", "license", "licence", "changelog", "citation", "notice")
_LANGUAGE = re.compile(r"(.+)\.([a-zA-Z]{2,3}([-_][a-zA-Z0-9]{2,8})*|forced|sdh|cc|orig|auto)")
_MOST_LISTED = 100_000  # files of a folder that are examined


def files_in(folder: Path) -> list[Path]:
    """The visible files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def is_path(value: Any) -> TypeGuard[Path]:
    """
    Whether a cell of audio or video is a path. Not `isinstance(value, Path)`: datasets replaces the class in modules.
    """
    return isinstance(value, os.PathLike)


def same_name(name: str) -> str:
    """A file name in one Unicode form: macOS stores é as two characters, a table may write it as one."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, name: str, where: str, content: str = "audio") -> Path:
    r"""
    The file that a table in `folder` names, in whatever Unicode form its name is stored and with either slash; if
    there is none, the path at which it was looked for.

    Raises:
        InputError: if the name cannot be one of a file.
    """
    if re.match(r"[a-zA-Z][\w+.-]+://", name):
        if not name.startswith("file:///"):
            raise InputError(f"{where}: {content} '{short(name, 100)}' is an address, not a file; download it first")
        name = name.removeprefix("file://")
    if re.search("[\x00-\x1f\ud800-\udfff]", name):
        raise InputError(f"{where}: {content} {short(ascii(name), 100)} has characters that no file name has")
    try:
        path = (folder / name).resolve()
        if path.is_file():
            return path
        for form in (name, name.replace("\\", "/")):
            found = _in_any_form(folder, Path(form))
            if found is not None:
                return found.resolve()
    except OSError as error:
        raise InputError(f"{where}: {content} '{short(name, 100)}': {error.strerror}") from error
    return path


def _in_any_form(folder: Path, name: Path) -> Path | None:
    """Follow a path step by step, matching entries that differ in Unicode form alone if only one does."""
    place = Path(name.anchor) if name.is_absolute() else folder
    for part in name.parts[1:] if name.is_absolute() else name.parts:
        if (place / part).exists():
            place = place / part
            continue
        if part.isascii() or not place.is_dir():
            return None
        alike = [entry.name for entry in os.scandir(place) if same_name(entry.name) == same_name(part)]
        if len(alike) != 1:
            return None
        place = place / alike[0]
    return place if place.is_file() else None


def recording_of(subtitles: Path, beside: Sequence[Path]) -> Path | None:
    r"""
    The recording that a subtitle file belongs to: of its name in any case and Unicode form, or of its name but for a
    language (`call.en.srt`).

    Raises:
        InputError: if there are several.
    """
    media = [path for path in beside if path.suffix.lower() in MEDIA]
    stem = same_name(subtitles.stem)
    language = _LANGUAGE.fullmatch(stem)
    for wanted in (stem, language and language[1]):
        for form in (str, str.casefold):
            found = [path for path in media if wanted and form(same_name(path.stem)) == form(wanted)]
            if len(found) > 1:
                raise InputError(
                    f"'{subtitles}' may belong to {[path.name for path in found]}; keep one of them there"
                )
            if found:
                return found[0]
    return None


def not_read(folder: Path, used: Iterable[Path], tables: Sequence[str]) -> list[str]:
    """Names of recordings, subtitles and tables in a folder that were not used, and of folders that contain such."""
    known = {os.path.realpath(path) for path in used}
    above = {str(parent) for path in known for parent in Path(path).parents}
    found = []
    kinds = (*MEDIA, *SUBTITLES, *tables, *_OTHER_FORMS)
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_LISTED:
                break
            name = entry.name.casefold()
            if name.startswith((".", "_")) or name.startswith(_NOTES) or os.path.realpath(entry.path) in known:
                continue
            if entry.is_dir() and os.path.realpath(entry.path) not in above:
                below = (name.casefold() for _, _, names in os.walk(entry.path) for name in names or [""])
                inside = itertools.islice(below, 1000)
                if any(one.endswith((*SUBTITLES, *tables, *MEDIA)) for one in inside):
                    found.append(f"{entry.name}/")
            elif entry.is_file() and name.endswith(kinds):
                found.append(entry.name)
    return sorted(found)
