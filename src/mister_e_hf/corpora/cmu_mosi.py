"""
CMU-MOSI (Zadeh et al. 2016), from its segmented release or the layout with one `label.csv`; a dialogue is a video.
"""

import logging
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets

from ..base.errors import InputError
from ..media.text_files import read_text, split_lines
from .builder import CorpusBuilder
from .counts import Dialogues, published
from .licences import PUBLISHED
from .mmsa_layout import score_of
from .schema import LABELS
from .sources import read_table, require_columns

logger = logging.getLogger(__name__)

_MODES = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4")
_PICTURES = (".mp4",)
_MOST = 3.0  # the largest score; the smallest is its negative
_SEGMENT = re.compile(r"(.+)_(\d+)")


class CmuMosi(CorpusBuilder):
    r"""
    CMU-MOSI's videos, with the standard folds. The emotion is the sign of the sentiment score (-3 to 3): negative, or
    non-negative, zero included. A segment without a score has no label. Upper-case texts are lower-cased.

    Layouts of `data_dir`:

    - the segmented release: `Audio/WAV_16000/Segmented/VIDEO_N.wav`, `Video/Segmented/VIDEO_N.mp4` for the picture,
      if it is there, `Transcript/Segmented/VIDEO.annotprocessed` and the scores in `Labels/OpinionLevelSentiment.csv`
      (start, end, video, segment, score; no header).
    - `label.csv` with the columns video_id, clip_id, text, label and mode, and clips as `VIDEO/N.mp4` (with their
      picture; this needs the extra `av`), `.wav` or another audio format, anywhere below. The splits are those of the
      column mode.
    """

    VERSION = datasets.Version("1.0.0")
    title = PUBLISHED["cmu_mosi"].title
    about = PUBLISHED["cmu_mosi"].info()
    origin = "Get it from http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/ and pass its folder as data_dir."

    @property
    def labels(self) -> list[str]:
        return LABELS["cmu_mosi"]

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        table, segmented = _layout(folder)
        return [
            table,
            *(_transcripts(folder) if segmented else ()),
            *_media_files(folder, segmented, _SUFFIXES).values(),
            *_media_files(folder, segmented, _PICTURES).values(),
        ]

    def read(self, folder: Path) -> Dialogues:
        table, segmented = _layout(folder)
        audio_files, pictures = (_media_files(folder, segmented, kinds) for kinds in (_SUFFIXES, _PICTURES))
        if not audio_files:
            logger.warning("CMU-MOSI: no audio of segments in '%s'; its turns have text only", folder)
        videos: dict[str, dict[str, dict[int, dict[str, Any]]]] = {
            split: defaultdict(dict) for split in ("train", "validation", "test")
        }
        without_text = []
        for line, split, video, segment, text, score in _segments(folder, table, segmented):
            if segment in videos[split][video]:
                raise InputError(f"'{table}', row {line}: segment {video}_{segment} appears twice")
            text = (text or "").strip() or None
            if text is None:
                without_text.append(f"{video}_{segment}")
            videos[split][video][segment] = {
                "utterance_id": f"{video}_{segment}",
                "text": text.lower() if text and text.isupper() else text,
                "audio": _expected(audio_files, video, segment, ".wav" if segmented else ".mp4", segmented),
                "video": pictures.get((video, segment)),
                "speaker": video,
                "emotion": None if score is None else self.labels[score >= 0],
                "sentiment": score,
            }
        if without_text:
            logger.warning(
                "CMU-MOSI: %d turns have no transcript: %s", len(without_text), ", ".join(without_text[:10])
            )
        return {
            split: [
                {"dialogue_id": video, "utterances": [turns[segment] for segment in sorted(turns)]}
                for video, turns in found.items()
            ]
            for split, found in videos.items()
        }

    def published_counts(self) -> dict[str, dict[str, int]]:
        return {split: counts for split, counts in published("cmu_mosi").items() if split != "source"}


def _layout(folder: Path) -> tuple[Path, bool]:
    """The table of scores, and whether the folder is the segmented release."""
    for name, segmented in (("label.csv", False), ("OpinionLevelSentiment.csv", True)):
        found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
        if found:
            return found[0], segmented
    raise FileNotFoundError(
        f"'{folder}' is not CMU-MOSI: it has neither a label.csv nor a Labels/OpinionLevelSentiment.csv with the "
        "scores"
    )


def _transcripts(folder: Path) -> list[Path]:
    """Transcripts of the segmented release, without the hidden copies that macOS leaves."""
    return [path for path in folder.rglob("Segmented/*.annotprocessed") if not path.name.startswith(".")]


def _expected(
    files: dict[tuple[str, int], Path], video: str, segment: int, suffix: str, segmented: bool
) -> Path | None:
    """A segment's file; one that is missing is expected beside the others, so that it is reported."""
    like = next(iter(files.values()), None)
    if like is None or (video, segment) in files:
        return files.get((video, segment))
    return (
        like.parent / f"{video}_{segment}{suffix}" if segmented else like.parent.parent / video / f"{segment}{suffix}"
    )


def _media_files(folder: Path, segmented: bool, suffixes: tuple[str, ...]) -> dict[tuple[str, int], Path]:
    """The file of each segment, of the first of the formats in which there is one."""
    found: dict[tuple[str, int], Path] = {}
    for suffix in reversed(suffixes):
        for path in sorted(folder.rglob(f"*{suffix}")):
            match = _SEGMENT.fullmatch(path.stem)
            if segmented and match and "Segmented" in path.relative_to(folder).parts:
                found[match[1], int(match[2])] = path
            elif not segmented and path.stem.isdecimal():
                found[path.parent.name, int(path.stem)] = path
            elif not segmented and match:
                found[match[1], int(match[2])] = path
    return found


def _segments(folder: Path, table: Path, segmented: bool):
    """Yield row, split, video, segment, text and score of each segment."""
    if segmented:
        yield from _released_segments(folder, table)
        return
    for row in require_columns(table, read_table(table), ("video_id", "clip_id", "text", "label", "mode")):
        line = row.number
        mode = str(row["mode"]).strip().lower()
        if mode not in _MODES:
            raise InputError(f"'{table}', row {line}: unknown mode {row['mode']!r}; expected one of {list(_MODES)}")
        if not row["video_id"] or not str(row["clip_id"]).isdecimal():
            raise InputError(
                f"'{table}', row {line}: video_id {row['video_id']!r}, clip_id {row['clip_id']!r}; expected a name "
                "and a number"
            )
        score = score_of(row["label"], _MOST, f"'{table}', row {line}")
        yield line, _MODES[mode], row["video_id"], int(row["clip_id"]), row["text"], score


def _released_segments(folder: Path, table: Path):
    texts: dict[tuple[str, int], str] = {}
    for path in _transcripts(folder):
        for row in split_lines(read_text(path)):
            number, delimiter, text = row.partition("_DELIM_")
            if delimiter and number.strip().isdecimal():
                texts[path.stem, int(number)] = text
    if not texts:
        raise FileNotFoundError(f"'{folder}' has no Transcript/Segmented/*.annotprocessed with the segments' texts")
    folds = {video: split for split, videos in published("cmu_mosi").items() if split != "source" for video in videos}
    scores, without = {}, set()
    for line, cells in enumerate((row.split(",") for row in split_lines(read_text(table)) if row.strip()), start=1):
        if len(cells) != 5 or not cells[3].strip().isdecimal():
            raise InputError(f"'{table}', row {line}: expected start, end, video, segment and score, got {cells}")
        key = cells[2].strip(), int(cells[3])
        if key in scores:
            raise InputError(f"'{table}', row {line}: segment {key[0]}_{key[1]} appears twice")
        scores[key] = line, score_of(cells[4], _MOST, f"'{table}', row {line}")
    for key in sorted({*texts, *scores}):
        if key[0] not in folds:
            without.add(key[0])
            continue
        line, score = scores.get(key, (0, None))
        yield line, folds[key[0]], *key, texts.get(key), score
    if without:
        logger.warning(
            "CMU-MOSI: %d videos are not in the standard folds and are left out: %s",
            len(without),
            ", ".join(sorted(without)[:10]),
        )
