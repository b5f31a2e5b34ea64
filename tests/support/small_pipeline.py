"""Dialogues for a pipeline of small_checkpoint.py, and the comparison of what it finds."""

from pathlib import Path

import numpy as np
import soundfile

from mister_e_hf import MisterEProcessor, UtteranceEncoder
from support.small_encoders import LABELS, RATE

TASK = "conversation-emotion-recognition"
WORDS = "so you see this is what they said about it when we came back grr hooray well".split()


def write_recordings(folder: Path) -> Path:
    """`long.wav` of 8 s, whose pitch rises; `clip.wav`, its second from 2 s on; files that cannot be used."""
    seconds = np.arange(8 * RATE) / RATE
    samples = 0.3 * np.sin(2 * np.pi * (150 + 60 * seconds) * seconds)
    soundfile.write(folder / "long.wav", samples, RATE, subtype="PCM_16")
    samples, _ = soundfile.read(folder / "long.wav", dtype="int16")
    soundfile.write(folder / "clip.wav", samples[2 * RATE : 3 * RATE], RATE, subtype="PCM_16")
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    (folder / "corrupt.flac").write_bytes(b"fLaC" + bytes(range(256)))
    return folder


def dialogues(sounds: Path, lengths=(5, 1, 23, 2, 9, 1, 3), seed: int = 0) -> list[list[dict]]:
    """Of very different lengths; some turns lack sound, some words, some both."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        turns = []
        for _ in range(length):
            start = round(generator.uniform(0, 7), 2)
            sound = {"audio": str(sounds / "long.wav"), "start": start, "end": start + generator.uniform(0.2, 1)}
            text = " ".join(generator.choice(WORDS, size=generator.integers(1, 9)))
            turns.append(
                [{"text": text} | sound, {"text": text}, sound, {}][generator.choice(4, p=[0.5, 0.2, 0.2, 0.1])]
            )
        turns[-1] = turns[-1] or {"text": "well"}
        made.append(turns)
    return made


def numbers(result) -> np.ndarray:
    """The results of a dialogue as an array (T, ...) in the order of labels and experts; -1 for an absent expert."""
    found = []
    for turn in result:
        blocks = [turn["scores"], *[block or dict.fromkeys(LABELS, -1) for block in turn["experts"].values()]]
        found.append([block[label] for block in blocks for label in LABELS] + [*turn["gate"].values()])
    return np.array(found)


def assert_same(found, expected, tolerance: float = 1e-5):
    assert len(found) == len(expected)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0, atol=tolerance)


def encoders_of(folder: Path) -> dict:
    return {
        modality: (
            UtteranceEncoder.from_pretrained(folder, subfolder=f"{modality}_encoder"),
            MisterEProcessor.from_pretrained(folder, subfolder=f"{modality}_encoder"),
        )
        for modality in ("speech", "text")
    }
