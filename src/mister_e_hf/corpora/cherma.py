"""CHERMA (Sun et al. 2023), from its lists of utterances with the released features, or MSE-Adapter's pickles."""

import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..base.errors import InputError, short
from ..base.plain_text import some_of
from ..media.text_files import CHINESE, read_text
from ..media.transcripts import transcript
from .builder import CorpusBuilder, CorpusConfig
from .clip_corpus import PlacedTurn, dialogues_of, in_order
from .counts import Dialogues, published
from .frame_statistics import FrameStatistics, frames_of, length_of, read_frames
from .licences import PUBLISHED
from .plain_pickle import read_pickle
from .recordings import is_path
from .schema import LABELS, SPLITS
from .splits import split_named

logger = logging.getLogger(__name__)

# The words of the annotation, in the order of the class numbers of published code.
WORDS = dict(zip(("愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"), LABELS["cherma"], strict=True))
_LABELS = {
    "emotion": "video_label",
    "emotion_text": "txt_label",
    "emotion_speech": "audio_label",
    "emotion_visual": "visual_label",
}
_FOLDERS = {"speech": ("audio", ".npy"), "text": ("text", ".npy"), "visual": ("visual", ".mp4.npy")}
_PICKLED = {"speech": "audio", "visual": "video"}
_NAME = re.compile("[^\x00-\x1f\ud800-\udfff]{1,240}")
_PICKLE = re.compile(r"cherma_(train|valid|test)\.pkl", re.IGNORECASE)


@dataclasses.dataclass
class ChermaConfig(CorpusConfig):
    r"""
    Args:
        group_pattern: regular expression for names of utterances, with the groups `dialogue` and `order`:
            `(?P<dialogue>.+)_(?P<order>\d+)`. Utterances of the same dialogue are its turns, by number of `order`;
            names that do not match stay dialogues of one turn. By default all do, since nothing published says that
            names give an order.
    """

    group_pattern: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.group_pattern is not None:
            try:
                groups = set(re.compile(self.group_pattern).groupindex)
            except re.error as error:
                raise InputError(
                    f"group_pattern {self.group_pattern!r} is not a regular expression: {error}"
                ) from None
            if groups != {"dialogue", "order"}:
                raise InputError(
                    f"group_pattern {self.group_pattern!r} has the groups {sorted(groups)}; expected dialogue and "
                    "order"
                )


class Cherma(CorpusBuilder):
    r"""
    CHERMA's utterances as vectors: the public release holds features and no clips. Each utterance is a dialogue of one
    turn unless [`ChermaConfig`] groups them. The classes are named in English; the annotation's words are 愤怒 anger,
    厌恶 disgust, 恐惧 fear, 高兴 happy, 平静 neutral, 悲伤 sad, 惊奇 surprise. `emotion` is the label of all
    modalities together; `emotion_text`, `emotion_speech` and `emotion_visual` are those of each alone.

    Layouts of `data_dir`, which may be the folder above:

    - `train.json`, `dev.json` and `test.json`, each a list of objects with audio_file, video_label, txt_label,
      audio_label and visual_label, and the features `text/STAGE/NAME.npy`, `audio/STAGE/NAME.npy` and
      `visual/STAGE/NAME.mp4.npy`. A key `text` with the sentence is read if there is one.
    - the pickles `cherma_train.pkl`, `cherma_valid.pkl` and `cherma_test.pkl` of MSE-Adapter, which hold the
      sentences, sequences of sound and picture, and the label of all modalities together.

    A sequence becomes one vector ([`~mister_e_hf.corpora.frame_statistics.FrameStatistics`]); its real length is that
    which the pickle states (audio_len, video_len), else frames of zeros are padding. A missing or damaged file of
    features is an error, or with `bad_audio="missing"` a turn without the modality.
    """

    BUILDER_CONFIG_CLASS = ChermaConfig
    VERSION = datasets.Version("1.0.0")
    title = PUBLISHED["cherma"].title
    about = PUBLISHED["cherma"].info()
    origin = "Get its features through https://github.com/sunjunaimer/LFMIM and pass the folder as data_dir."
    other_labels = ("emotion_text", "emotion_speech", "emotion_visual")

    @property
    def labels(self) -> list[str]:
        return LABELS["cherma"]

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        lists, pickles = _layout(folder)
        return [
            *(lists or pickles).values(),
            *(path for table in lists.values() for path in _feature_files(table).values()),
        ]

    def vector_modalities(self, folder: Path) -> tuple[str, ...]:
        lists, _ = _layout(folder)
        return tuple(_FOLDERS if lists else _PICKLED)

    def read(self, folder: Path) -> Dialogues:
        lists, pickles = _layout(folder)
        if lists and pickles:
            logger.warning(
                "%s: the lists of '%s' are read, and the pickles beside them are not: %s",
                *(self.title, folder, some_of([path.name for path in pickles.values()])),
            )
        found = [turn for split, path in lists.items() for turn in self._listed(split, path)]
        if not lists:
            found = [turn for split, path in pickles.items() for turn in self._pickled(split, path)]
        return dialogues_of(self.title, found)

    def vectors(self, modality: str, given: list[Any]) -> list[np.ndarray | None]:
        return [self._loaded(modality, one) if is_path(one) else one for one in given]

    def published_turns(self) -> dict[str, int]:
        return {"all": published("cherma")["utterances_in_all"]}

    def _generate_examples(self, *args, **settings) -> Iterator[tuple[str, dict[str, Any]]]:
        self._statistics = {modality: FrameStatistics() for modality in _FOLDERS}
        self._unusable: list[str] = []
        yield from super()._generate_examples(*args, **settings)
        for modality, statistics in self._statistics.items():
            statistics.report(self.title, modality)
        if self._unusable:
            logger.warning(
                "%s: %d files of features are not usable; their turns are kept without the modality: %s",
                *(self.title, len(self._unusable), some_of(self._unusable, separator="; ")),
            )

    def _listed(self, split: str, table: Path) -> Iterator[PlacedTurn]:
        """The turns of a JSON list, with the paths of their features."""
        try:
            items = json.loads(read_text(table, CHINESE))
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{table}' is not JSON: {short(error)}") from error
        if not isinstance(items, list) or not items:
            raise InputError(f"'{table}' must hold a list of utterances, got {type(items).__name__}")
        files = _feature_files(table)
        for number, item in enumerate(items):
            where = f"'{table}', item {number}"
            if not isinstance(item, dict) or not isinstance(item.get("audio_file"), str):
                raise InputError(f"{where}: expected an object with audio_file, got {short(item, 100)}")
            name = item["audio_file"].removesuffix(".wav")
            if not _NAME.fullmatch(name):
                given = short(ascii(item["audio_file"]), 100)
                raise InputError(f"{where}: audio_file {given} cannot be the name of a file")
            if lacking := [key for key in _LABELS.values() if key not in item]:
                raise InputError(f"{where} ({name}) has no {lacking}; it has {sorted(map(str, item))}")
            labels = {field: _emotion(item[key], f"{where} ({name}), {key}") for field, key in _LABELS.items()}
            text = item.get("text")
            paths = {
                modality: files.get((modality, name), _feature_file(table, modality, name)) for modality in _FOLDERS
            }
            yield self._placed(split, name, text, labels, paths)

    def _pickled(self, split: str, path: Path) -> Iterator[PlacedTurn]:
        """The turns of a repacked pickle, with their vectors."""
        items = read_pickle(path)
        if not isinstance(items, list) or not items:
            raise InputError(f"'{path}' must hold a list of utterances, got {type(items).__name__}")
        statistics = {modality: FrameStatistics() for modality in _PICKLED}
        for number, item in enumerate(items):
            where = f"'{path}', item {number}"
            features = item.get("features") if isinstance(item, dict) else None
            if not isinstance(features, dict) or "label" not in item:
                raise InputError(f"{where}: expected a dictionary with features and label, got {short(item, 100)}")
            vectors = {}
            for modality, name in _PICKLED.items():
                frames, length = features.get(name), features.get(f"{name}_len")
                length = None if length is None else length_of(length, f"{where}: {name}_len")
                vectors[modality] = statistics[modality].pooled(frames_of(frames, f"{where}: {name}"), length)
            labels = {"emotion": _emotion(item["label"], f"{where}, label")}
            yield self._placed(split, f"{split}_{number:05d}", features.get("text"), labels, vectors)
        for modality, each in statistics.items():
            each.report(self.title, modality)

    def _placed(
        self, split: str, name: str, text: Any, labels: dict[str, str | None], vectors: dict[str, Any]
    ) -> PlacedTurn:
        if text is not None and not isinstance(text, str):
            raise InputError(f"{self.title}: the text of {name} must be a string, got {short(text, 60)}")
        text = transcript((text or "").strip() or None, f"{self.title}, {name}")
        utterance = {"utterance_id": name, "text": text, **labels}
        match = re.fullmatch(self.config.group_pattern, name) if self.config.group_pattern else None
        if match and None in (match["dialogue"], match["order"]):  # a group that may be absent
            match = None
        dialogue, order = (match["dialogue"], match["order"]) if match else (name, "")
        return PlacedTurn(split, dialogue, (in_order(order), name), utterance, vectors)

    def _loaded(self, modality: str, path: Path) -> np.ndarray | None:
        try:
            return self._statistics[modality].pooled(read_frames(path))
        except (FileNotFoundError, InputError) as error:
            if self.config.bad_audio == "error":
                way_out = "Repair it, or pass bad_audio='missing' to keep its turn without the modality."
                raise type(error)(f"{str(error).removesuffix('.')}. {way_out}") from error
            self._unusable.append(str(error))
            return None


def _layout(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The JSON lists, or the pickles, of each split."""
    for pattern in ("*", "*/*", "*/*/*"):
        below = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
        lists = [(split_named(path.stem), path) for path in below if path.suffix.lower() == ".json"]
        pickles = [(split_named(match[1]), path) for path in below if (match := _PICKLE.fullmatch(path.name))]
        found = _by_split(lists), _by_split(pickles)
        if any(found):
            return found
    raise FileNotFoundError(
        f"'{folder}' is not CHERMA: it has neither train.json, dev.json and test.json nor cherma_train.pkl, "
        "cherma_valid.pkl and cherma_test.pkl"
    )


def _by_split(files: list[tuple[str | None, Path]]) -> dict[str, Path]:
    """The file of each split; raises InputError if one has two."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        named = [path for name, path in files if name == split]
        if len(named) > 1:
            raise InputError(
                f"'{named[0]}' and '{named[1]}' are both for the split {split}; keep one of them below data_dir"
            )
        if named:
            found[split] = named[0]
    return found


def _feature_file(table: Path, modality: str, name: str) -> Path:
    folder, suffix = _FOLDERS[modality]
    return table.parent / folder / table.stem / f"{name}{suffix}"


def _feature_files(table: Path) -> dict[tuple[str, str], Path]:
    """The files of features beside a list, by modality and name."""
    return {
        (modality, path.name.removesuffix(suffix)): path
        for modality, (folder, suffix) in _FOLDERS.items()
        for path in (table.parent / folder / table.stem).glob(f"*{suffix}")
        if not path.name.startswith(".")
    }


def _emotion(word: Any, where: str) -> str | None:
    if word is None or word == "":
        return None
    emotion = WORDS.get(str(word).strip(), str(word).strip())
    if emotion not in LABELS["cherma"]:
        raise InputError(f"{where}: unknown label {short(word, 60)!r}; expected one of {', '.join(WORDS)}")
    return emotion
