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
"""

import csv
from pathlib import Path

import numpy as np
import soundfile

from ..base.progress import bar
from ..media.audio import SAMPLING_RATE
from .demo import ABSENT_SHARE, LABELS, draw_emotions, draw_patterns

SPLIT_SIZES = {"train": 160, "validation": 40, "test": 60}

_FILLERS = "well you see this is what they said about it when we came back home again today with her and him".split()
_KEYWORDS: tuple[list[str], ...] = (
    [],
    ["hooray", "lovely", "great"],
    ["really", "truly", "indeed"],
    ["never", "hardly", "barely"],
)
_PROSODY = ((120, 115, 0.08, 4), (220, 225, 0.35, 7), (130, 240, 0.15, 4), (240, 130, 0.15, 4))


def write_demo_recordings(folder: str | Path, seed: int = 0, sizes: dict[str, int] | None = None) -> Path:
    """
    Write `train/`, `validation/` and `test/`, each with audio files and their `metadata.csv`; returns the folder.
    """
    folder, generator = Path(folder), np.random.default_rng(seed)
    for split, size in (sizes or SPLIT_SIZES).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (
            (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file,
            bar(f"generating {split}", size, "dialogues") as progress,
        ):
            table = csv.writer(file)
            table.writerow(["dialogue_id", "order", "speaker", "text", "file_name", "emotion"])
            for number in range(size):
                dialogue = f"{split}_{number:03}"
                voices = generator.uniform(0.85, 1.15, size=2)
                emotions = draw_emotions(generator, length=int(generator.integers(3, 13)))
                for turn, (emotion, speech, text) in enumerate(
                    zip(emotions, *draw_patterns(generator, emotions), strict=True)
                ):
                    name = "" if generator.random() < ABSENT_SHARE else f"{dialogue}_{turn:02}.wav"
                    samples = _spoken(generator, speech, voices[turn % 2])
                    if name:
                        soundfile.write(folder / split / name, samples, SAMPLING_RATE)
                    table.writerow([dialogue, turn, "AB"[turn % 2], _line(generator, text), name, LABELS[emotion]])
                progress.update()
    return folder


def _line(generator: np.random.Generator, pattern: int) -> str:
    words = list(generator.choice(_FILLERS, size=int(generator.integers(3, 7))))
    if _KEYWORDS[pattern]:
        words.insert(int(generator.integers(len(words) + 1)), str(generator.choice(_KEYWORDS[pattern])))
    return " ".join(words)


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
