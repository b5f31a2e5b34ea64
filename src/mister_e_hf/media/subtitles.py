"""Read SRT and WebVTT subtitles: the turns of one recording with their times."""

import html
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import InputError, short
from .text_files import read_text

logger = logging.getLogger(__name__)

SUBTITLES = (".srt", ".vtt")

_MAX_BYTES = 64 << 20  # a day of speech takes about two
_TIME = r"(?:(\d{1,5}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
# Settings of WebVTT or its drafts, or SRT coordinates, may follow the times; other words there would be lost.
_SETTINGS = r"(?:\s+(?:(?:vertical|line|position|size|align|region):\s*|[XY][12]:|[ADLST]:)[\w.,%+-]+)*"
_TIMING = re.compile(rf"{_TIME}\s*-->\s*{_TIME}{_SETTINGS}", re.IGNORECASE)
_LIKE_A_TIME = r"\d{1,5}:\d{1,2}(?::\d{1,2}|[.,;]\d)[.,;:\d]*"
_LIKE_TIMING = re.compile(rf"\d\s*-->|-->\s*\d|^\W*{_LIKE_A_TIME}\s*[^\w\s]{{1,4}}\s*>?\s*{_LIKE_A_TIME}\W*$")
_NUMBER = re.compile(r"\d{1,9}")
_INVISIBLE = "\ufeff\u200b\u200e\u200f\u202a\u202c\u2066\u2069"  # marks of byte order and direction that editors leave
_NO_CUE = re.compile(r"(?:NOTE|STYLE|REGION|WEBVTT)(?:[ \t].*)?", re.DOTALL)

_BREAK = re.compile(r"</?(?:br|p|div|li|tr|td|hr)\b[^<>]*>|<v(?:[.\s][^<>]*)?>|(?<![:\\])\\[Nnh]", re.IGNORECASE)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s([^<>]*)>")
_RUBY = re.compile(r"<rt\b[^<>]*>[^<>]*(?:</rt>|(?=</ruby>))")  # the pronunciation of the word before it
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s<>"']+))*"""
_TAG = re.compile(rf"</?([a-zA-Z]\w*)(?:\.[^\s<>]*)?{_ATTRIBUTES}\s*/?>|<lang(?:[.\s][^<>]*)?>|<[\d:.]+>")
_TAGS = frozenset("a b big c center em font i lang rb rt rp ruby s small span strike strong sub sup tt u v".split())
_OVERRIDE = re.compile(r"\{\\[^{}]*\}|\{[ycfsp]:[^{}\s]*\}", re.IGNORECASE)  # markup of ASS and MicroDVD

_KINDS = {
    "MicroDVD": r"\s*\{\d+\}\{\d*\}",
    "MPL2": r"\s*\[\d+\]\[\d*\]",
    "SubStation Alpha (ASS)": r"\s*\[Script Info\]|(?:.*\n)*?Dialogue:\s",
    "SubViewer": r"\s*\[INFORMATION\]|\s*\d\d:\d\d:\d\d\.\d\d,\d\d:\d\d:\d\d\.\d\d\s*$",
    "YouTube's SBV": r"\s*\d+:\d\d:\d\d\.\d{3},\d+:\d\d:\d\d\.\d{3}\s*$",
    "LRC": r"\s*\[(?:\d+:\d\d[.:\d]*\]|(?:ti|ar|al|by|length):)",
    "TTML": r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:\w+:)?tt[\s>]",
    "SAMI": r"\s*<SAMI",
    "an HTML page": r"\s*<(?:!DOCTYPE\s+html|html)",
    "XML": r"\s*<\?xml",
    "VobSub": r"# VobSub",
    "JSON": r'\s*(?:\{\s*"|\[\s*[\[{\]])',
    "a table": r"(?:start|begin)[\t,;]|[^\n]*\bstart[\t,;]end\b",
    "RTF": r"\s*\{\\rtf",
}


def read_subtitles(path: str | Path) -> list[dict[str, Any]]:
    r"""
    The cues of a subtitle file in order, each `{"start", "end", "text", "speaker"}`: seconds; text without markup,
    null where the cue has none; the speaker where a WebVTT voice tag names one. A line ends with `\n`, `\r\n` or `\r`,
    and with nothing else.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: naming the file, if it is of another kind, holds no cue, or is over 64 MiB; and the line, if a cue
            is malformed or ends before it starts, or text belongs to no cue.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No subtitles at '{path}'")
    if path.suffix.lower() not in SUBTITLES:
        raise InputError(f"'{path}' is not a subtitle file: expected one of {', '.join(SUBTITLES)}")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"'{path}' has {path.stat().st_size:,} bytes; subtitles have at most {_MAX_BYTES:,}")
    text = read_text(path)
    # Not `splitlines`, which also splits at form feeds and Unicode's separators; two returns come from copies in text
    # mode.
    lines = re.split(r"\r{0,2}\n|\r", text)
    bare = [line.strip().strip(_INVISIBLE).strip() for line in lines]
    timings = {number: timing for number, line in enumerate(bare) if (timing := _TIMING.fullmatch(line))}
    malformed = [n for n, line in enumerate(bare) if n not in timings and _LIKE_TIMING.search(line)]
    if not timings:
        kind = next(
            (name for name, form in _KINDS.items() if re.match(form, text, re.IGNORECASE | re.MULTILINE)), None
        )
        if kind or not malformed:
            found = f"holds {kind}, not SRT or WebVTT; convert it first" if kind else "holds no cue"
            raise InputError(f"'{path}' {found}. A cue begins with its times, such as 00:00:01,000 --> 00:00:02,500")
    if malformed:
        more = f" (and {len(malformed) - 1} lines more)" if len(malformed) > 1 else ""
        raise InputError(
            f"'{path}', line {malformed[0] + 1}: {short(bare[malformed[0]], 80)!r} is not the timing of a cue{more}. "
            "Expected only times and settings there, such as 00:00:01,000 --> 00:00:02,500 align:start"
        )
    web = path.suffix.lower() == ".vtt" or bare[0].startswith("WEBVTT")
    cues = _File(path, lines, bare, timings, web).cues()
    return [{field: cue[field] for field in ("start", "end", "text", "speaker")} for cue in cues]


@dataclass
class _File:
    """Assigns the lines of a subtitle file to cues, for both formats."""

    path: Path
    lines: list[str]
    bare: list[str]  # the lines without blanks and marks around them
    timings: dict[int, re.Match]
    web: bool

    def cues(self) -> list[dict[str, Any]]:
        heads = list(self.timings)
        numbers = [head for head in heads if head and _NUMBER.fullmatch(self.bare[head - 1])]
        above_first = next((self.bare[row] for row in reversed(range(heads[0])) if self.bare[row]), "")
        self.numbered = _NUMBER.fullmatch(above_first) is not None or len(numbers) * 2 > len(heads)
        self.remarks: dict[str, list[int]] = {}
        rows, number = self._without_head(0, heads[0], 1)
        parts = [rows]
        if self.web:
            parts = [part for part in self._paragraphs(rows) if not _NO_CUE.fullmatch(self.bare[part[0]])]
        self._refuse_text(parts, "appears before the first cue")
        cues = []
        for position, (head, end) in enumerate(zip(heads, [*heads[1:], len(self.lines)], strict=True), start=1):
            rows, following = self._without_head(head + 1, end, (number or position) + 1)
            again = following is not None and following < 2 <= (number or 0)
            if self.web:
                parts = self._paragraphs(rows)
                texts = [p for p in parts if p[0] == head + 1 or not _NO_CUE.fullmatch(self.bare[p[0]])]
                # If an empty line follows the times, the text after it belongs to the cue.
                self._refuse_text(texts[1:], "follows an empty line, which ends a cue in WebVTT")
                again = any(self.bare[part[0]].startswith("WEBVTT") for part in parts if part not in texts)
                rows = texts[0] if texts else []
            cues.append(self._cue(head, "\n".join(self.lines[row] for row in rows)))
            if again and end in self.timings and self._times(end)[0] < cues[-1]["start"]:
                raise InputError(
                    f"'{self.path}', line {end + 1}: times begin again at {self._times(end)[0]:g} s, as if two "
                    "subtitle files were joined. Split them"
                )
            number = following
        cues.sort(key=lambda cue: (cue["start"], cue["end"]))
        self._compare(cues)
        for remark, rows in self.remarks.items():
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            logger.warning("'%s', line %d%s: %s", self.path, rows[0] + 1, more, remark)
        return cues

    def _without_head(self, begin: int, end: int, expected: int) -> tuple[list[int], int | None]:
        """Rows before a timing or the end, without the number or identifier of the next cue; that number."""
        rows = self._trimmed(range(begin, end))
        if not rows:
            return rows, None
        last = rows[-1]
        above = last + 1 in self.timings
        alone = self._alone(last)
        if not _NUMBER.fullmatch(self.bare[last]):
            words = any(self.bare[row] for row in rows[:-1])
            identifier = self.web and above and alone and (words or not last or not self.lines[last - 1])
            return self._trimmed(rows[:-1]) if identifier else rows, None
        value = int(self.bare[last])
        if above and self.numbered and not alone and value != expected:
            self._remark("a number without an empty line before it is taken for a cue's number, not for a word", last)
        elif not (
            (above and (self.numbered or self.web and alone))
            or (alone and (value == expected or self.numbered and end in self.timings))
        ):
            return rows, None
        rows = self._trimmed(rows[:-1])
        while rows and self._alone(rows[-1]) and self.bare[rows[-1]] == self.bare[last]:  # it appears twice
            rows = self._trimmed(rows[:-1])
        return rows, value

    def _alone(self, row: int) -> bool:
        return row == 0 or not self.bare[row - 1]

    def _trimmed(self, rows: Sequence[int]) -> list[int]:
        rows = list(rows)
        while rows and not self.bare[rows[-1]]:
            rows.pop()
        return rows

    def _paragraphs(self, rows: list[int]) -> list[list[int]]:
        """Paragraphs with text: in WebVTT a line without any character, not even a blank, ends a paragraph."""
        parts = [list(part) for full, part in itertools.groupby(rows, lambda row: self.lines[row] != "") if full]
        return [part for part in parts if any(self.bare[row] for row in part)]

    def _refuse_text(self, parts: list[list[int]], where: str):
        for row in itertools.chain(*parts):
            if self.bare[row]:
                raise InputError(
                    f"'{self.path}', line {row + 1}: {short(self.bare[row], 80)!r} does not belong to a cue; it "
                    f"{where}. Remove it, or the empty line before it"
                )

    def _remark(self, text: str, row: int):
        self.remarks.setdefault(text, []).append(row)

    def _times(self, row: int) -> tuple[float, float]:
        groups = self.timings[row].groups()
        for hours, minutes, seconds in (groups[:3], groups[4:7]):
            if int(seconds) > 59 or (hours is not None and int(minutes) > 59):
                raise InputError(
                    f"'{self.path}', line {row + 1}: {short(self.bare[row], 80)!r} has more than 59 minutes or seconds"
                )
        return _seconds(*groups[:4]), _seconds(*groups[4:8])

    def _cue(self, row: int, text: str) -> dict[str, Any]:
        start, end = self._times(row)
        if end <= start:
            raise InputError(
                f"'{self.path}', line {row + 1}: the cue at {start:g} s ends at {end:g} s, not after it starts; "
                "correct its times, or remove it"
            )
        voices = [_words(voice[1]) for voice in _VOICE.finditer(text)]
        if len(set(filter(None, voices))) > 1:
            self._remark("a cue has several speakers, of whom the first is taken", row)
        return {
            "start": start,
            "end": end,
            "text": _words(_without_markup(text)),
            "speaker": next(filter(None, voices), None),
            "row": row,
        }

    def _compare(self, cues: list[dict[str, Any]]):
        seen, before = set(), ""
        for cue in cues:
            text, same = cue["text"] or "", (cue["start"], cue["end"], cue["text"])
            if same in seen:
                self._remark("a cue appears twice, with the same times and text; both are kept", cue["row"])
            elif len(before.split()) > 2 and f"{text} ".startswith(f"{before} "):
                self._remark(
                    "a cue begins with the text of the one before, as in captions that roll up; both are kept",
                    cue["row"],
                )
            seen.add(same)
            before = text


def _without_markup(text: str) -> str:
    text = _OVERRIDE.sub("", _BREAK.sub(" ", _RUBY.sub("", text)))

    def kept(tag: re.Match) -> str:
        name = (tag[1] or "").lower()
        # Another name is markup only if the tag is also closed; alone it may be a word, such as <laughs>.
        return "" if not name or name in _TAGS or f"</{tag[1]}>" in text and f"<{tag[1]}" in text else tag[0]

    return _TAG.sub(kept, text)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return (whole * 1000 + int(fraction.ljust(3, "0"))) / 1000


def _words(text: str) -> str | None:
    return " ".join(html.unescape(text).split()) or None
