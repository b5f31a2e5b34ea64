"""The dialogues of `demo.py` as recordings: short tones whose pitch, energy and rate are made by rule, and lines of
words.

What a turn shows in each modality is the same (see the table there); here a speech pattern is a way of speaking and a
text pattern a word.

| pattern | pitch, Hz | energy | syllables a second | word |
|---|---|---|---|---|
| plain | 120, level | low | 4 | none of the others |
| own | 220, level | high | 7 | hooray, lovely, great |
| first | 130 to 240 | middle | 4 | really, truly, indeed |
| second | 240 to 130 | middle | 4 | never, hardly, barely |

`demo_words.py` has all words, also in Chinese. With `video=True` a turn is an MP4 of a face (`demo_faces.py`) with
that sound. A few clips have no sound, and a few turns have sound alone.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..base.progress import bar
from ..media.audio import SAMPLING_RATE
from .demo import ABSENT_SHARE, VIDEO_LABELS, draw_emotions, draw_looks, draw_patterns
from .demo_faces import FRAMES_PER_SECOND, draw_frames, draw_speaker, write_clip
from .demo_words import Language, draw_line

SPLIT_SIZES = {"train": 160, "validation": 40, "test": 60}

_PROSODY = ((120, 115, 0.08, 4), (220, 225, 0.35, 7), (130, 240, 0.15, 4), (240, 130, 0.15, 4))


def write_demo_recordings(
    folder: str | Path,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    video: bool = False,
    language: Language = "en",
) -> Path:
    r"""
    Write `train/`, `validation/` and `test/`, each with media files and their `metadata.csv`; returns the folder.

    Args:
        folder: created if it does not exist.
        seed: same seed, same recordings.
        sizes: dialogues per split.
        video: whether turns also have a picture; what is said, and how, is the same either way.
        language: of the words, `"en"` or `"zh"`; all else is the same.
    """
    folder, generator = Path(folder), np.random.default_rng(seed)
    looks = np.random.default_rng([seed, 1]) if video else None
    for split, size in (sizes or SPLIT_SIZES).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (
            (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file,
            bar(f"generating {split}", size, "dialogues") as progress,
        ):
            table = csv.writer(file)
            media = ["audio", "video"] if video else ["file_name"]
            table.writerow(["dialogue_id", "order", "speaker", "text", *media, "emotion"])
            for number in range(size):
                dialogue = f"{split}_{number:03}"
                turns = _turns(generator, dialogue, language)
                files = _write_sound(folder / split, turns) if looks is None else _film(looks, folder / split, turns)
                for order, (turn, names) in enumerate(zip(turns, files, strict=True)):
                    label = VIDEO_LABELS[turn.emotion]
                    table.writerow([dialogue, order, turn.speaker, turn.line, *names, label])
                progress.update()
    return folder


@dataclass
class _Turn:
    """A turn's name and speaker, its emotion, words and sound, None where the turn has no sound."""

    name: str
    speaker: str
    emotion: int
    line: str
    samples: np.ndarray | None


def _turns(generator: np.random.Generator, dialogue: str, language: Language) -> list[_Turn]:
    voices = generator.uniform(0.85, 1.15, size=2)
    emotions = draw_emotions(generator, length=int(generator.integers(3, 13)))
    turns = []
    for order, (emotion, speech, text) in enumerate(zip(emotions, *draw_patterns(generator, emotions), strict=True)):
        silent = generator.random() < ABSENT_SHARE
        samples = _spoken(generator, speech, voices[order % 2])
        line = draw_line(generator, text, language)
        turns.append(_Turn(f"{dialogue}_{order:02}", "AB"[order % 2], int(emotion), line, None if silent else samples))
    return turns


def _write_sound(folder: Path, turns: list[_Turn]) -> list[list[str]]:
    """Write the audio files of a dialogue; returns the column of each turn."""
    columns = []
    for turn in turns:
        name = "" if turn.samples is None else f"{turn.name}.wav"
        if turn.samples is not None:
            soundfile.write(folder / name, turn.samples, SAMPLING_RATE)
        columns.append([name])
    return columns


def _film(generator: np.random.Generator, folder: Path, turns: list[_Turn]) -> list[list[str]]:
    """Write the clips of a dialogue, and make some plain turns disgust; returns the columns of each turn."""
    speakers = {"A": draw_speaker(generator), "B": draw_speaker(generator)}
    emotions, looks = draw_looks(generator, np.array([turn.emotion for turn in turns]))
    columns = []
    for turn, emotion, look in zip(turns, emotions, looks, strict=True):
        turn.emotion = int(emotion)
        seconds = 0.7 if turn.samples is None else len(turn.samples) / SAMPLING_RATE
        frames = draw_frames(generator, speakers[turn.speaker], look, int(np.ceil(seconds * FRAMES_PER_SECOND)))
        if generator.random() >= ABSENT_SHARE:
            write_clip(folder / f"{turn.name}.mp4", frames, turn.samples)
            columns.append(["", f"{turn.name}.mp4"])
        else:
            columns.append([*_write_sound(folder, [turn])[0], ""])
    return columns


def _spoken(generator: np.random.Generator, pattern: int, voice: float) -> np.ndarray:
    """Half a second to a second of harmonics that swell with each syllable."""
    first, last, energy, rate = _PROSODY[pattern]
    time = np.arange(int(SAMPLING_RATE * generator.uniform(0.5, 0.9))) / SAMPLING_RATE
    pitch = voice * np.linspace(first, last, len(time)) * generator.uniform(0.95, 1.05)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    tone = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 7))
    swell = np.abs(np.sin(np.pi * rate * generator.uniform(0.9, 1.1) * time))
    loudness = energy * generator.uniform(0.7, 1.4)
    return 0.3 * loudness * swell * tone + 0.003 * generator.standard_normal(len(time))
