"""
The layouts of thuiar/MMSA: a table of clips beside `Raw/VIDEO/CLIP.mp4`, and pickles of processed features.

Letters: n clips of a split, L frames, D width of a frame.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, short
from ..media.transcripts import transcript
from .columns import match_columns
from .frame_statistics import FrameStatistics, length_of
from .plain_pickle import read_pickle
from .sources import read_table, walk
from .splits import split_named

logger = logging.getLogger(__name__)

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
PICTURES = (".mp4", ".mkv", ".webm", ".avi")
_COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
_PARTS = ("label_T", "label_A", "label_V")
_FEATURES = {"speech": "audio", "text": "text", "visual": "vision"}  # names in the pickles
_MISSING = ("", "nan", "none", "null")


@dataclass
class Clip:
    r"""
    One clip of a table or pickle.

    Args:
        where: names its place in messages.
        video, clip: ids as they stand, with leading zeros.
        split: `train`, `validation` or `test`.
        text: transcript, or None.
        score: the label of all modalities together, or None.
        parts: the labels of the text, the sound and the picture alone, or None each.
        vectors: by modality, if the source holds features.
    """

    where: str
    video: str
    clip: str
    split: str
    text: str | None
    score: float | None
    parts: tuple[float | None, ...] = (None, None, None)
    vectors: dict[str, np.ndarray | None] = field(default_factory=dict)


def table_clips(table: Path, most: float, old_encoding: str) -> list[Clip]:
    r"""
    The clips of `label.csv` or `meta.csv`, columns by name.

    Args:
        table: the file.
        most: the largest score; the smallest is its negative.
        old_encoding: of a table that is not Unicode.
    """
    rows = read_table(table, old_encoding)
    names = match_columns(table, list(rows[0]), {name: (name,) for name in _COLUMNS + _PARTS})
    if lacking := [name for name in _COLUMNS if names[name] is None]:
        raise InputError(f"'{table}' has no column {lacking}; it has {list(rows[0])}")
    clips = []
    for row in rows:
        where = f"'{table}', row {row.number}"
        cells = {field: None if name is None else row[name] for field, name in names.items()}
        scores = [score_of(cells[name], most, f"{where}, {name}") for name in ("label", *_PARTS)]
        if not cells["video_id"] or not cells["clip_id"]:
            raise InputError(f"{where}: video_id {cells['video_id']!r}, clip_id {cells['clip_id']!r}; expected names")
        video, clip = str(cells["video_id"]).strip(), str(cells["clip_id"]).strip()
        split = split_named(str(cells["mode"] or ""))
        if split is None and scores[0] is None:
            split = "train"  # rows of an unlabelled part have other modes, or none
        if split is None:
            raise InputError(f"{where}: unknown mode {cells['mode']!r}; expected train, valid or test")
        clips.append(Clip(where, video, clip, split, _text(cells["text"], where), scores[0], tuple(scores[1:])))
    return clips


def pickle_clips(path: Path, most: float, title: str) -> list[Clip]:
    r"""
    The clips of a processed pickle: by split the lists `id`, `raw_text`, `regression_labels` (and `_T`, `_A`, `_V`),
    and the sequences `text`, `audio`, `vision` (n, L, D), one vector each ([`FrameStatistics`]). The real length of
    audio and vision is that of `audio_lengths` and `vision_lengths`, that of text by the mask in `text_bert`; without
    these, frames of zeros are padding.

    Raises:
        InputError: naming file and field, if the pickle has another form.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds {type(content).__name__}; expected a dictionary of splits")
    clips: list[Clip] = []
    statistics = {modality: FrameStatistics() for modality in _FEATURES}
    for name, data in content.items():
        split = split_named(str(name))
        if split is None:
            logger.warning("'%s': '%s' is not train, valid or test and is left out", path, short(name, 60))
            continue
        clips += _split_clips(f"'{path}', {name}", split, data, most, statistics)
    if not clips:
        raise InputError(f"'{path}' has the keys {short(list(content), 200)}; expected train, valid and test")
    for modality, each in statistics.items():
        if each.turns:
            each.report(title, modality)
    return clips


def pickle_modalities(path: Path) -> tuple[str, ...]:
    """The modalities whose sequences a processed pickle holds."""
    content = read_pickle(path)
    parts = content if isinstance(content, dict) else {}
    held = [data for name, data in parts.items() if split_named(str(name))]
    return tuple(
        modality
        for modality, name in _FEATURES.items()
        if any(isinstance(data, dict) and _sequences(data.get(name)) for data in held)
    )


def _sequences(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.ndim == 3 and given.dtype.kind in "fiu"


def _split_clips(
    where: str, split: str, data: Any, most: float, statistics: dict[str, FrameStatistics]
) -> Iterator[Clip]:
    if not isinstance(data, dict) or "id" not in data or "regression_labels" not in data:
        keys = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{where}: expected a dictionary with id and regression_labels, got {short(keys, 200)}")
    for name in _FEATURES.values():
        if data.get(name) is not None and not _sequences(data[name]):
            given = getattr(data[name], "shape", type(data[name]).__name__)
            raise InputError(f"{where}: {name} must be an array of sequences (n, L, D), got {short(given, 60)}")
    ids = _entries(data["id"], f"{where}: id")
    count = len(ids)
    fields = {
        name: _entries(data[name], f"{where}: {name}")
        for name in ("raw_text", "regression_labels", *(f"regression_labels_{part}" for part in "TAV"))
        if data.get(name) is not None
    }
    sequences = {modality: data[name] for modality, name in _FEATURES.items() if _sequences(data.get(name))}
    lengths = {
        modality: _entries(data[f"{name}_lengths"], f"{where}: {name}_lengths")
        for modality, name in _FEATURES.items()
        if data.get(f"{name}_lengths") is not None
    }
    bert = data.get("text_bert")
    if isinstance(bert, np.ndarray) and _sequences(bert) and bert.shape[1] == 3:  # input ids, mask, segments
        lengths["text"] = bert[:, 1].sum(axis=1)
    for name, values in {
        **fields,
        **sequences,
        **{f"lengths of {each}": one for each, one in lengths.items()},
    }.items():
        if len(values) != count:
            raise InputError(f"{where}: {len(values):,} of {name}, but {count:,} ids")
    for index, identity in enumerate(ids):
        if isinstance(identity, bytes) or not isinstance(identity, str | int):
            raise InputError(f"{where}: the id of clip {index} must be text, got {short(type(identity).__name__)}")
        video, clip = _ids(identity)
        place = f"{where}, {video} {clip}"
        scores = [
            score_of(fields[name][index] if name in fields else None, most, f"{place}, {name}")
            for name in ("regression_labels", *(f"regression_labels_{part}" for part in "TAV"))
        ]
        vectors = {
            modality: statistics[modality].pooled(
                frames[index],
                length_of(lengths[modality][index], f"{place}: length of {modality}") if modality in lengths else None,
                modality == "text",
            )
            for modality, frames in sequences.items()
        }
        text = _text(fields["raw_text"][index], place) if "raw_text" in fields else None
        yield Clip(place, video, clip, split, text, scores[0], tuple(scores[1:]), vectors)


def _ids(identity: Any) -> tuple[str, str]:
    """Video and clip of `VIDEO$_$CLIP`; an id of another form is a video of one clip."""
    video, _, clip = str(identity).strip().rpartition("$_$")
    return (video, clip) if video and clip else (str(identity).strip(), "")


def _entries(given: Any, where: str) -> Sequence[Any] | np.ndarray:
    """A list or array with an entry for each clip; raises InputError for anything else."""
    if not isinstance(given, list | tuple) and not (isinstance(given, np.ndarray) and given.ndim):
        raise InputError(f"{where} must be a list with an entry for each clip, got {type(given).__name__}")
    return given


def _text(cell: Any, where: str) -> str | None:
    if cell is not None and not isinstance(cell, str):
        raise InputError(f"{where}: the transcript must be text, got {short(type(cell).__name__)}")
    return transcript((cell or "").strip() or None, where)


def score_of(cell: Any, most: float, where: str) -> float | None:
    """A score from -`most` to `most`; None for an empty cell or NaN; anything else is an InputError."""
    if cell is None or str(cell).strip().lower() in _MISSING:
        return None
    try:
        score = number_of(np.asarray(cell).reshape(()) if isinstance(cell, np.ndarray) else cell)
    except (TypeError, ValueError):
        score = float("inf")
    if not -most <= score <= most:
        raise InputError(f"{where}: score {short(cell, 60)} is not a number from {-most:g} to {most:g}")
    return score


def number_of(cell: Any) -> float:
    """As `float`, but underscores within digits raise ValueError, too."""
    if "_" in str(cell):
        raise ValueError(f"could not convert {cell!r} to a number")
    return float(cell)


def clip_files(folder: Path) -> dict[tuple[str, str], dict[str, Path]]:
    """
    `audio` and `video` of each clip, `VIDEO/CLIP.mp4` and so on anywhere below, by the two names. The builder takes
    the sound of a clip without a file for it from its video.
    """
    found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for path in walk(folder):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in SOUNDS + PICTURES:
            continue
        found[path.parent.name, path.stem].setdefault("video" if suffix in PICTURES else "audio", path)
    return found
