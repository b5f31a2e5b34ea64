"""Read audio and check video of every turn while a corpus is built; count and name what cannot be used."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.plain_text import some_of
from ..media import audio, video
from . import sources
from .recordings import is_path

logger = logging.getLogger(__name__)

_LONG_SECONDS = 60.0
_ERRORS: dict[str, type[InputError]] = {"audio": audio.AudioError, "video": video.VideoError}


class TurnMedia:
    r"""
    Args:
        title: of the corpus, for messages.
        bad_audio, bad_video: `"error"`, or `"missing"` to keep a turn without what cannot be used.
        max_seconds: longest audio accepted.
    """

    def __init__(self, title: str, bad_audio: str, bad_video: str, max_seconds: float):
        self.title, self.max_seconds = title, max_seconds
        self.policy = {"audio": bad_audio, "video": bad_video}
        self.without: dict[str, list[str]] = {"audio": [], "video": []}
        self.long: list[str] = []

    def check_files(self, utterances: Iterable[dict[str, Any]]):
        """Raise an error if files are missing that must be there; all are counted before any is read."""
        missing: dict[str, dict[Path, str]] = {"audio": {}, "video": {}}
        there: dict[Path, bool] = {}
        for utterance in utterances:
            for content, found in missing.items():
                path = utterance.get(content)
                if is_path(path):
                    if path not in there:
                        there[path] = os.path.isfile(path)
                    if not there[path]:
                        found.setdefault(path, utterance["utterance_id"])
        for content, found in missing.items():
            if found and self.policy[content] == "error":
                (path, turn), *others = found.items()
                more = f", nor {len(others):,} others: {some_of([path.name for path, _ in others])}" if others else ""
                raise _ERRORS[content](
                    f"{self.title}, turn {turn}: {content.capitalize()} file '{path}' not found{more}. "
                    f"{_way_out(content)}"
                )

    def fields(self, turn: dict[str, Any], utterance: dict[str, Any]) -> dict[str, Any]:
        r"""
        `audio`, `video` and `duration` of a turn. A turn with video and no audio takes its sound from the same file,
        if that has any.

        Args:
            turn: its `utterance_id`, `start` and `end`.
            utterance: what was found: `audio` and `video`, each a path, a reference into a table, or nothing.
        """
        found: dict[str, Any] = {"audio": None, "video": None, "duration": None}
        sound, picture = utterance.get("audio"), utterance.get("video")
        if picture is not None and self._check_video(turn, found, sources.stored_audio(picture)) and sound is None:
            sound = picture
        if sound is not None:
            self._check_audio(turn, found, sources.stored_audio(sound))
        return found

    def report(self):
        """Warn about what was not used, and about long turns."""
        for content, reasons in self.without.items():
            if reasons:
                logger.warning(
                    "%s: %d turns have no usable %s and are kept without it: %s",
                    *(self.title, len(reasons), content, some_of(reasons, separator="; ")),
                )
        if self.long:
            logger.warning(
                "%s: %d turns last more than %g s: %s", self.title, len(self.long), _LONG_SECONDS, some_of(self.long)
            )

    def _check_video(self, turn: dict[str, Any], found: dict[str, Any], stored: dict[str, Any]) -> bool:
        """Decode one frame, in the middle of the turn; returns whether the file has sound, too."""
        has_sound = False
        with self._counting("video", turn), video.open_video(stored, stored["path"]) as file:
            has_sound = file.has_sound
            file.frames(turn["start"], turn["end"], 1)
            end = file.picture_seconds() if turn["end"] is None else turn["end"]
            found |= {"video": stored, "duration": end - (turn["start"] or 0.0)}
        return has_sound

    def _check_audio(self, turn: dict[str, Any], found: dict[str, Any], stored: dict[str, Any]):
        with self._counting("audio", turn):
            samples = audio.load_audio(
                stored, start=turn["start"], end=turn["end"], max_seconds=self.max_seconds, name=stored["path"]
            )
            duration = len(samples) / audio.SAMPLING_RATE
            if duration > _LONG_SECONDS:
                self.long.append(f"{turn['utterance_id']} ({duration:.0f} s)")
            found |= {"audio": stored, "duration": duration}

    @contextlib.contextmanager
    def _counting(self, content: str, turn: dict[str, Any]) -> Iterator[None]:
        """Let what cannot be used raise an error that names the turn, or count it."""
        try:
            yield
        except _ERRORS[content] as error:
            if self.policy[content] == "error":
                raise _ERRORS[content](
                    f"{self.title}, turn {turn['utterance_id']}: {str(error).removesuffix('.')}. {_way_out(content)}"
                ) from error
            self.without[content].append(str(error))


def _way_out(content: str) -> str:
    return f"Repair the files, or pass bad_{content}='missing' to keep such turns without {content}."
