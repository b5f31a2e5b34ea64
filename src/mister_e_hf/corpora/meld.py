"""MELD (Poria et al. 2019), from `MELD.Raw`, wav clips, or its three CSV files only."""

import dataclasses
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from ..base.errors import InputError, short
from ..base.progress import line
from .archives import DAMAGED, unpack
from .builder import CorpusBuilder, CorpusConfig, DownloadError
from .counts import Dialogues, published
from .licences import PUBLISHED
from .schema import LABELS
from .sources import read_table, require_columns, walk

logger = logging.getLogger(__name__)

_CSV = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
_PREFIX = {"train": "train", "validation": "dev", "test": "test"}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
# The folder of a clip tells its split; test clips of the release are in output_repeated_splits_test.
_FOLDERS = {"train": ("train",), "validation": ("dev", "val"), "test": ("test", "output_repeated_splits_test")}
# Formats in order of preference, the fastest to decode first.
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4")
_PICTURES = (".mp4",)
# The full name, which excludes duplicates of the release (final_videos_test...) and macOS (._dia...).
_CLIP = re.compile(r"dia(\d+)_utt(\d+)")
_SENTIMENT = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}


@dataclasses.dataclass
class MeldConfig(CorpusConfig):
    """
    As [`CorpusConfig`], but bad audio and video are `"missing"` by default, since the release itself lacks clips.
    """

    bad_audio: str = "missing"
    bad_video: str = "missing"


class Meld(CorpusBuilder):
    r"""
    MELD's dialogues from scenes of Friends, official splits. `data_dir` holds the three CSV files and, for audio,
    clips `diaN_uttM` as mp4 (with their picture; this needs the extra `av`), wav or another audio format, in a folder
    of each split: `train_splits`, `dev_splits_complete` and `output_repeated_splits_test`, or any whose name begins
    with train, dev or val, test. Without clips the corpus is text only. Without `data_dir` the release (10 GB) is
    downloaded.

    The release lacks the clip dev dia110_utt7, train dia125_utt3 is broken, and two clips of test are cut wrongly and
    last minutes; warnings name such turns. `sentiment` is -1 (negative), 0 (neutral) or 1 (positive).
    """

    BUILDER_CONFIG_CLASS = MeldConfig
    VERSION = datasets.Version("1.0.0")
    archive_url = "https://huggingface.co/datasets/declare-lab/MELD/resolve/main/MELD.Raw.tar.gz"
    title = PUBLISHED["meld"].title
    about = PUBLISHED["meld"].info()

    @property
    def labels(self) -> list[str]:
        return LABELS["meld"]

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        clips = (_clips(folder, suffixes) for suffixes in (_SUFFIXES, _PICTURES))
        return [
            *_tables(folder).values(),
            *(path for kind in clips for found in kind.values() for path in found.values()),
        ]

    def download(self, dl_manager: datasets.DownloadManager) -> Path:
        line(f"downloading {self.title}, 10 GB, unless it was downloaded earlier ({self.archive_url})")
        try:
            archive = dl_manager.download(self.archive_url)
        except Exception as error:  # aiohttp's, httpx's, the Hub's
            raise DownloadError(
                f"{self.title} could not be downloaded from {self.archive_url}: {error.__cause__ or error}. If you "
                "have it, pass data_dir, the folder that holds it."
            ) from error
        place = Path(dl_manager.download_config.cache_dir or datasets.config.DOWNLOADED_DATASETS_PATH)
        unpacked = place / "unpacked" / Path(archive).name
        if not unpacked.is_dir():
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            try:
                unpack(Path(archive), unpacked)
            except (*DAMAGED, InputError) as error:
                raise InputError(
                    f"'{archive}', downloaded from {self.archive_url}, is not the whole release: {short(error)}. "
                    "Delete it, so that it is downloaded again."
                ) from error
        return unpacked

    def read(self, folder: Path) -> Dialogues:
        clips, pictures = _clips(folder, _SUFFIXES), _clips(folder, _PICTURES)
        dialogues, astray = {}, _clips_of_no_split(folder)
        if astray:
            logger.warning(
                "MELD: %d clips are not read, such as '%s', since their folder does not say their split. Move each "
                "split's clips to a folder whose name begins with train, dev (or val) or test, such as %s.",
                len(astray),
                astray[0],
                ", ".join(f"'{folder / name}'" for name in _PREFIX.values()),
            )
        for split, table in _tables(folder).items():
            if not clips[split]:
                logger.warning(
                    "MELD %s: no clips diaN_uttM in a folder %s* of '%s'; its turns have text only",
                    split,
                    _PREFIX[split],
                    folder,
                )
            dialogues[split] = _dialogues(split, table, clips[split], pictures[split])
        return dialogues

    def published_counts(self) -> dict[str, dict[str, int]]:
        facts = published("meld")
        return {
            split: {f"{_PREFIX[split]}_dia{number}": count for number, count in enumerate(facts[split]) if count}
            for split in _CSV
        }


def _tables(folder: Path) -> dict[str, Path]:
    tables, files = {}, list(walk(folder))
    for split, name in _CSV.items():
        found = sorted((path for path in files if path.name == name), key=lambda path: (len(path.parts), path))
        if not found:
            raise FileNotFoundError(f"No '{name}' in '{folder}'; MELD needs {list(_CSV.values())}")
        tables[split] = found[0]
    return tables


def _clips(folder: Path, suffixes: tuple[str, ...]) -> dict[str, dict[tuple[int, int], Path]]:
    """The clip of each utterance by split, of the first of the formats in which there is one."""
    found: dict[str, dict[tuple[int, int], list[Path]]] = {split: defaultdict(list) for split in _CSV}
    for path, key, split in _found_clips(folder):
        if split is not None and path.suffix.lower() in suffixes:
            found[split][key].append(path)
    preference = {suffix: rank for rank, suffix in enumerate(suffixes)}
    return {
        split: {
            key: min(paths, key=lambda path: (preference[path.suffix.lower()], path)) for key, paths in clips.items()
        }
        for split, clips in found.items()
    }


def _clips_of_no_split(folder: Path) -> list[Path]:
    return [path for path, _, split in _found_clips(folder) if split is None]


def _found_clips(folder: Path) -> Iterator[tuple[Path, tuple[int, int], str | None]]:
    """Yield every clip, its dialogue and utterance, and the split that the nearest folder names."""
    for path in walk(folder):
        match = _CLIP.fullmatch(path.stem)
        if match and path.suffix.lower() in _SUFFIXES:
            splits = (
                split
                for part in reversed(path.relative_to(folder).parts[:-1])
                for split, names in _FOLDERS.items()
                if part.lower().startswith(names)
            )
            yield path, (int(match[1]), int(match[2])), next(splits, None)


def _expected(clips: dict[tuple[int, int], Path], key: tuple[int, int]) -> Path | None:
    """A clip; one that is missing is expected beside the others, so that it is reported and counted."""
    like = next(iter(clips.values()), None)
    return clips.get(key, like and like.with_stem(f"dia{key[0]}_utt{key[1]}"))


def _dialogues(
    split: str, table: Path, clips: dict[tuple[int, int], Path], pictures: dict[tuple[int, int], Path]
) -> list[dict[str, Any]]:
    dialogues: dict[int, dict[int, dict[str, Any]]] = {}
    for row in require_columns(table, read_table(table), _COLUMNS):
        line = row.number
        try:
            key = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
            if min(key) < 0:
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"'{table}', row {line}: Dialogue_ID and Utterance_ID must be whole numbers from 0, got "
                f"{row['Dialogue_ID']!r} and {row['Utterance_ID']!r}"
            ) from None
        name = f"{_PREFIX[split]}_dia{key[0]}"
        emotion, sentiment = (str(row[field]).strip().lower() for field in ("Emotion", "Sentiment"))
        if emotion not in LABELS["meld"] or sentiment not in _SENTIMENT:
            raise InputError(
                f"'{table}', row {line} ({name}_utt{key[1]}): emotion {row['Emotion']!r} and sentiment "
                f"{row['Sentiment']!r}; expected one of {LABELS['meld']} and of {list(_SENTIMENT)}"
            )
        turns = dialogues.setdefault(key[0], {})
        if key[1] in turns:
            raise InputError(f"'{table}', row {line}: {name}_utt{key[1]} appears twice")
        turns[key[1]] = {
            "utterance_id": f"{name}_utt{key[1]}",
            "text": row["Utterance"],
            "audio": _expected(clips, key),
            "video": _expected(pictures, key),
            "speaker": row["Speaker"],
            "emotion": emotion,
            "sentiment": _SENTIMENT[sentiment],
        }
    return [
        {"dialogue_id": f"{_PREFIX[split]}_dia{number}", "utterances": [turns[order] for order in sorted(turns)]}
        for number, turns in dialogues.items()
    ]
