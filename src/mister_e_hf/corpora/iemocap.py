"""IEMOCAP (Busso et al. 2008), from `IEMOCAP_full_release`."""

import dataclasses
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets

from ..base.errors import InputError, short
from ..media.text_files import read_text, split_lines
from .builder import CorpusBuilder, CorpusConfig
from .counts import Dialogues, published
from .licences import PUBLISHED
from .schema import LABELS

logger = logging.getLogger(__name__)

_SESSIONS = range(1, 6)
_EMOTIONS = {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"}
_EVALUATION = re.compile(r"^\[(\d{1,9}\.\d+) - (\d{1,9}\.\d+)\]\t(Ses0\S+_\w+)\t(\w+)\t(.*)$")
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d+)?|nan)?\s*"
_DIMENSIONS = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER}\]", re.IGNORECASE)
_TRANSCRIPT = re.compile(r"^(Ses\S+) \[[^\]]*\]:(.*)$")


@dataclasses.dataclass
class IemocapConfig(CorpusConfig):
    r"""
    Args:
        validation: `"session 1"`, as the MiSTER-E authors do (train has sessions 2 to 4), or `"conv-emotion"`, the
            twelve dialogues of sessions 1 to 4 that other papers take (train has the other 108). Test is session 5 in
            both.
        labels: `"community"` counts as happy, besides the official majority labels, the 53 utterances without a
            majority that the list of declare-lab/conv-emotion calls happy: 7,433 six-way utterances. `"official"` does
            not: 7,380.
        other_labels: utterances of other labels are left out (`"drop"`), as in published work, or kept as turns
            without a label (`"context"`).
    """

    validation: str = "session 1"
    labels: str = "community"
    other_labels: str = "drop"

    def __post_init__(self):
        super().__post_init__()
        for field, choices in {
            "validation": ("session 1", "conv-emotion"),
            "labels": ("community", "official"),
            "other_labels": ("drop", "context"),
        }.items():
            if getattr(self, field) not in choices:
                raise InputError(f"{field} must be one of {choices}, got {getattr(self, field)!r}")


class Iemocap(CorpusBuilder):
    r"""
    IEMOCAP's dialogues, with turns in order of time. Configurations: `6way` (happy, sad, neutral, angry, excited,
    frustrated) and `4way` (excited merged into happy, frustrated left out). [`IemocapConfig`] describes splits and
    labels. The scores `valence`, `activation` and `dominance` of a turn are the annotators' means (1 to 5), or null.
    """

    BUILDER_CONFIG_CLASS = IemocapConfig
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [IemocapConfig(name="6way", version=VERSION), IemocapConfig(name="4way", version=VERSION)]
    DEFAULT_CONFIG_NAME = "6way"
    title = PUBLISHED["iemocap"].title
    about = PUBLISHED["iemocap"].info()
    origin = (
        "Its authors provide it on request, for research: ask for it at "
        "https://sail.usc.edu/iemocap/iemocap_release.htm and pass the unpacked IEMOCAP_full_release as "
        "data_dir."
    )
    scores = ("valence", "activation", "dominance")

    @property
    def labels(self) -> list[str]:
        return LABELS[f"iemocap-{self.config.name}"]

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        release = _release(folder)
        return [
            path
            for pattern in ("dialog/EmoEvaluation/*.txt", "dialog/transcriptions/*.txt", "sentences/wav/*/*.wav")
            for path in release.glob(f"Session[1-5]/{pattern}")
        ]

    def read(self, folder: Path) -> Dialogues:
        release, facts = _release(folder), published("iemocap")
        happy = set(facts["happy_without_majority"]) if self.config.labels == "community" else set()
        dialogues: Dialogues = {"train": [], "validation": [], "test": []}
        dropped: Counter[str] = Counter()
        without_text, without_dimensions = [], 0
        for session in (release / f"Session{number}" for number in _SESSIONS):
            has_audio = (session / "sentences" / "wav").is_dir()
            if session.is_dir() and not has_audio:
                logger.warning("IEMOCAP: '%s' has no sentences/wav; its turns have no audio", session)
            for evaluation in _visible(session / "dialog" / "EmoEvaluation"):
                name = evaluation.stem
                texts = _transcripts(session / "dialog" / "transcriptions" / evaluation.name)
                utterances = []
                for start, identity, code, dimensions in _evaluated(evaluation):
                    emotion = "happy" if identity in happy and code not in _EMOTIONS else _EMOTIONS.get(code)
                    if self.config.name == "4way" and emotion == "excited":
                        emotion = "happy"
                    if emotion not in self.labels:
                        emotion = None
                        if self.config.other_labels == "drop":
                            dropped[code] += 1
                            continue
                    if texts.get(identity) is None:
                        without_text.append(identity)
                    utterance = {
                        "utterance_id": identity,
                        "text": texts.get(identity),
                        "audio": session / "sentences" / "wav" / name / f"{identity}.wav" if has_audio else None,
                        "speaker": f"{identity[:5]}_{identity.rpartition('_')[2][0]}",
                        "emotion": emotion,
                        **dict(zip(self.scores, dimensions, strict=True)),
                    }
                    without_dimensions += None in dimensions
                    utterances.append((start, utterance))
                if utterances:
                    in_order = [utterance for _, utterance in sorted(utterances, key=lambda turn: turn[0])]
                    split = self._split(name, facts["validation_conv_emotion"])
                    dialogues[split].append({"dialogue_id": name, "utterances": in_order})
        if dropped:
            kinds = ", ".join(f"{count:,} {code}" for code, count in dropped.most_common())
            logger.info("IEMOCAP: %s utterances of other labels left out (%s)", f"{dropped.total():,}", kinds)
        if without_text:
            logger.warning("IEMOCAP: %d turns have no transcript: %s", len(without_text), ", ".join(without_text[:10]))
        if without_dimensions:
            logger.warning(
                "IEMOCAP: %d turns lack valence, activation or dominance; these are null", without_dimensions
            )
        return dialogues

    def _split(self, dialogue: str, conv_emotion: list[str]) -> str:
        if dialogue.startswith("Ses05"):
            return "test"
        if self.config.validation == "conv-emotion":
            return "validation" if dialogue in conv_emotion else "train"
        return "validation" if dialogue.startswith("Ses01") else "train"

    def published_counts(self) -> dict[str, dict[str, int]]:
        facts = published("iemocap")
        counts = Counter(facts[f"utterances_{self.config.name}"])
        if self.config.labels == "official":
            counts.subtract(identity.rpartition("_")[0] for identity in facts["happy_without_majority"])
        splits: dict[str, dict[str, int]] = {"train": {}, "validation": {}, "test": {}}
        for dialogue, count in counts.items():
            if count:
                splits[self._split(dialogue, facts["validation_conv_emotion"])][dialogue] = count
        return splits


def _release(folder: Path) -> Path:
    """The folder that holds Session1 to Session5: the one given, or IEMOCAP_full_release in it."""
    for release in (folder, folder / "IEMOCAP_full_release"):
        if any(release.glob("Session[1-5]/dialog/EmoEvaluation/*.txt")):
            return release
    raise FileNotFoundError(
        f"'{folder}' is not an IEMOCAP_full_release: no Session1 to Session5 with dialog/EmoEvaluation/*.txt in it. "
        f"It holds {sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else 'a file'}."
    )


def _visible(folder: Path) -> list[Path]:
    """Text files of a folder, without the hidden copies that macOS leaves."""
    return sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))


def _evaluated(path: Path) -> list[tuple[float, str, str, list[float | None]]]:
    """Start in seconds, id, official label, and valence, activation and dominance of each utterance."""
    form = "'[start - end]<tab>utterance<tab>label<tab>[valence, activation, dominance]'"
    utterances = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        match = _EVALUATION.match(line)
        dimensions = match and _dimensions(match[5])
        if match and dimensions:
            utterances.append((float(match[1]), match[3], match[4], dimensions))
        elif line.startswith("["):
            raise InputError(f"'{path}', line {number}: expected {form}, got '{short(line, 100)}'")
    if not utterances:
        raise InputError(f"'{path}' has no line of the form {form}")
    return utterances


def _dimensions(cell: str) -> list[float | None] | None:
    """Valence, activation and dominance from `[v, a, d]`, None where missing; None if the cell is something else."""
    if not cell.strip():
        return [None, None, None]
    match = _DIMENSIONS.fullmatch(cell.strip())
    return match and [None if one is None or one.lower() == "nan" else float(one) for one in match.groups()]


def _transcripts(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    found = [_TRANSCRIPT.match(line) for line in split_lines(read_text(path))]
    return {match[1]: match[2].strip() or None for match in found if match}
