"""
The raw release of CMU-MOSEI: transcripts with times, whole recordings, and labels.

A segment is a line `VIDEO___CLIP___START___END___TEXT` of `Transcript/Segmented/Combined/VIDEO.txt`. Its scores are
the means of the annotators' rows of `Labels/*.csv`, found by video and clip number. The folds are those of
`cmu_mosei_std_folds.py`, the file of the CMU Multimodal SDK, anywhere below, or of the column split of s3prl's
`CMU_MOSEI_Labels.csv`. Without annotators' tables the latter's `label7` is the score, found by equal start and end.
"""

import ast
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import InputError, short
from ..base.plain_text import some_of
from ..media.text_files import read_text, split_lines
from .clip_corpus import PlacedTurn
from .mmsa_layout import number_of, score_of
from .sources import read_table, require_columns

logger = logging.getLogger(__name__)

TITLE = "CMU-MOSEI"
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
_ANSWERS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")  # the annotators' names of EMOTIONS
_FOLDS = {"standard_train_fold": "train", "standard_valid_fold": "validation", "standard_test_fold": "test"}
_SPLITS = {"0": "train", "1": "validation", "2": "test"}  # others are in no fold
_TRANSCRIPTS = "Transcript/Segmented/Combined/*.txt"
_TIMED = "CMU_MOSEI_Labels.csv"
_MOST_EMOTION = 3.0


class Segment(NamedTuple):
    """A line of a transcript; `start` is not below 0, and `stated` is what the line says."""

    video: str
    clip: str
    stated: tuple[float, float]
    start: float
    end: float
    text: str | None


Scores = tuple[float | None, dict[str, float | None]]  # sentiment, and the six emotions


def is_release(folder: Path) -> bool:
    """Whether the folder holds the segmented transcripts of the raw release, and no `label.csv`."""
    return folder.is_dir() and bool(_transcripts(folder)) and not any(folder.rglob("label.csv"))


def source_files(folder: Path) -> list[Path]:
    """Everything that is read."""
    tables = [path for path in folder.rglob("*.csv") if not path.name.startswith(".")]
    recordings = [path for place in ("wav", "mp4") for path in _recordings(folder, place).values()]
    return [*_transcripts(folder), *tables, *folder.rglob("cmu_mosei_std_folds.py"), *recordings]


def turns(folder: Path, emotion: Callable[[float], str], most: float) -> Iterator[PlacedTurn]:
    r"""
    The turns of all videos in the folds.

    Args:
        folder: of the release.
        emotion: the class of a score.
        most: the largest score; the smallest is its negative.

    Raises:
        FileNotFoundError: if labels or folds are missing.
        InputError: naming file and row, if a label is not a number in its range.
    """
    tables = [path for path in sorted(folder.rglob("*.csv")) if not path.name.startswith(".")]
    annotated, timed, splits = _annotations(tables, most), *_timed_labels(tables, most)
    splits = _folds(folder) or splits
    if not splits:
        raise FileNotFoundError(
            f"'{folder}' has no folds. Put cmu_mosei_std_folds.py of the CMU Multimodal SDK (or s3prl's "
            "CMU_MOSEI_Labels.csv) into it"
        )
    if not annotated and not timed:
        raise FileNotFoundError(
            f"'{folder}' has no labels: neither Labels/*.csv with the annotators' rows (Input.VIDEO_ID, Input.CLIP, "
            "Answer.sentiment) nor s3prl's CMU_MOSEI_Labels.csv. A .csd file is not read"
        )
    if not annotated:
        logger.warning("%s: the scores are whole numbers, label7 of s3prl's CMU_MOSEI_Labels.csv", TITLE)
    sounds, pictures = _recordings(folder, "wav"), _recordings(folder, "mp4")
    if not sounds and not pictures:
        logger.warning("%s: no recordings in '%s'; its turns have text only", TITLE, folder)
    counts = {"negative starts, which are read as 0": 0, "segments without a length, which have text only": 0}
    left_out = set()
    labels: dict[tuple, Scores] = dict(annotated or timed)
    for segment in _segments(folder):
        split = splits.get(segment.video)
        if split is None:
            left_out.add(segment.video)
            continue
        key = (segment.video, segment.clip) if annotated else (segment.video, *_milliseconds(segment.stated))
        sentiment, emotions = labels.pop(key, (None, {}))
        counts["negative starts, which are read as 0"] += segment.stated[0] < 0
        empty = segment.end <= segment.start
        counts["segments without a length, which have text only"] += empty
        utterance: dict[str, Any] = {
            "utterance_id": f"{segment.video}_{segment.clip}",
            "text": segment.text,
            "speaker": segment.video,
            "emotion": None if sentiment is None else emotion(sentiment),
            "sentiment": sentiment,
            **emotions,
        }
        if not empty and (sounds or pictures):
            utterance |= {"start": segment.start, "end": segment.end}
            for content, files in {"audio": sounds, "video": pictures}.items():
                if files:
                    utterance[content] = files.get(segment.video) or _expected(files, segment.video)
        yield PlacedTurn(split, segment.video, (segment.start, segment.end, segment.clip), utterance, {})
    for what, count in counts.items():
        if count:
            logger.warning("%s: %d %s", TITLE, count, what)
    if lost := sorted({key[0] for key in labels if key[0] in splits}):
        logger.warning(
            "%s: %d labels of %d videos have no segment in the transcripts and are left out: %s",
            *(TITLE, sum(key[0] in splits for key in labels), len(lost), some_of(lost)),
        )
    if left_out:
        logger.warning(
            "%s: %d videos are not in the folds and are left out: %s",
            *(TITLE, len(left_out), some_of(sorted(left_out))),
        )


def _transcripts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(_TRANSCRIPTS) if not path.name.startswith("."))


def _recordings(folder: Path, suffix: str) -> dict[str, Path]:
    """Whole recordings by video; those of segments, which miss many videos, are not used."""
    place = {"wav": "WAV_16000/*.wav", "mp4": "Full/Combined/*.mp4"}[suffix]
    return {path.stem: path for path in folder.rglob(place) if not path.name.startswith(".")}


def _expected(files: dict[str, Path], video: str) -> Path:
    """Where the recording of a video should be."""
    like = next(iter(files.values()))
    return like.with_name(f"{video}{like.suffix}")


def _segments(folder: Path) -> Iterator[Segment]:
    broken: dict[str, int] = defaultdict(int)
    for path in _transcripts(folder):
        seen = set()
        for line in split_lines(read_text(path)):
            cells = line.strip().removeprefix(f"{path.stem}___").split("___", 3)  # text may hold underscores
            if not line.strip():
                continue
            try:
                clip, start, end = cells[0], number_of(cells[1]), number_of(cells[2])
                if not line.strip().startswith(f"{path.stem}___") or not clip.isdecimal() or not end - start < 1e6:
                    raise ValueError(line)
            except (IndexError, ValueError):
                broken[path.name] += 1
                continue
            clip = str(int(clip))
            if clip in seen:
                raise InputError(f"'{path}' has two lines of clip {clip}")
            seen.add(clip)
            text = cells[3].strip() if len(cells) > 3 else ""
            yield Segment(path.stem, clip, (start, end), max(start, 0.0), end, text or None)
    if broken:
        logger.warning(
            "%s: %d lines of %d transcripts are not VIDEO___CLIP___START___END___TEXT and are left out: %s",
            *(TITLE, sum(broken.values()), len(broken), some_of(list(broken))),
        )


def _milliseconds(times: tuple[float, float]) -> tuple[int, int]:
    return round(1000 * times[0]), round(1000 * times[1])


def _annotations(tables: list[Path], most: float) -> dict[tuple[str, str], Scores]:
    """Means over annotators by video and clip number."""
    names = ["Input.VIDEO_ID", "Input.CLIP", "Answer.sentiment", *(f"Answer.{answer}" for answer in _ANSWERS)]
    given: dict[tuple[str, str], list[list[float | None]]] = defaultdict(list)
    for path in tables:
        if path.parent.name != "Labels" or path.name == _TIMED:
            continue
        for row in require_columns(path, read_table(path), names):
            where = f"'{path}', row {row.number}"
            video, clip = str(row[names[0]] or "").rpartition("/")[2], str(row[names[1]] or "")
            if not video or not re.fullmatch(r"\d+(\.0)?", clip):
                raise InputError(f"{where}: {names[0]} {video!r}, {names[1]} {clip!r}; expected an id and a number")
            answers = [score_of(row[names[2]], most, f"{where}, {names[2]}")]
            for name in names[3:]:
                answer = score_of(row[name], _MOST_EMOTION, f"{where}, {name}")
                if answer is not None and answer < 0:
                    raise InputError(f"{where}, {name}: score {answer:g} is not a number from 0 to {_MOST_EMOTION:g}")
                answers.append(answer)
            given[video, str(int(float(clip)))].append(answers)
    scores = {}
    for key, rows in given.items():
        sentiment, *emotions = map(_mean, zip(*rows, strict=True))
        scores[key] = sentiment, dict(zip(EMOTIONS, emotions, strict=True))
    return scores


def _mean(answers: tuple[float | None, ...]) -> float | None:
    given = [answer for answer in answers if answer is not None]
    return sum(given) / len(given) if given else None


def _timed_labels(tables: list[Path], most: float) -> tuple[dict[tuple[str, int, int], Scores], dict[str, str]]:
    """`label7` of s3prl's table by video, start and end in milliseconds; and the split of each video."""
    scores: dict[tuple[str, int, int], Scores] = {}
    splits: dict[str, str] = {}
    for path in tables:
        if path.name != _TIMED:
            continue
        for row in require_columns(path, read_table(path), ("file", "start", "end", "label7", "split")):
            where = f"'{path}', row {row.number}"
            try:
                times = _milliseconds((number_of(row["start"]), number_of(row["end"])))
            except (TypeError, ValueError, OverflowError):
                raise InputError(f"{where}: start {row['start']!r}, end {row['end']!r}; expected seconds") from None
            video, split = str(row["file"]), _SPLITS.get(str(row["split"]).removesuffix(".0"))
            scores[video, *times] = score_of(row["label7"], most, f"{where}, label7"), {}
            if split:
                if splits.setdefault(video, split) != split:
                    raise InputError(f"{where}: video {video} is in {splits[video]} and in {split}")
    return scores, splits


def _folds(folder: Path) -> dict[str, str]:
    """The split of each video from the SDK's Python file, of which only the lists are read."""
    for path in sorted(folder.rglob("cmu_mosei_std_folds.py")):
        try:
            statements = ast.parse(read_text(path)).body
            lists = {
                target.id: ast.literal_eval(statement.value)
                for statement in statements
                if isinstance(statement, ast.Assign)
                for target in statement.targets
                if isinstance(target, ast.Name) and target.id in _FOLDS
            }
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise InputError(f"'{path}' is not the SDK's file of folds: {short(error, 100)}") from error
        if set(lists) != set(_FOLDS):
            raise InputError(f"'{path}' has the lists {sorted(lists)}; expected {sorted(_FOLDS)}")
        splits: dict[str, str] = {}
        for name, videos in lists.items():
            if not isinstance(videos, list | tuple) or not all(isinstance(video, str | int) for video in videos):
                raise InputError(f"'{path}': {name} must be a list of video ids, got {short(videos, 60)}")
            for video in map(str, videos):
                if splits.setdefault(video, _FOLDS[name]) != _FOLDS[name]:
                    raise InputError(f"'{path}': video {video} is in {splits[video]} and in {_FOLDS[name]}")
        return splits
    return {}
