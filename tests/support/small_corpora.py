"""Corpora of a few turns on disk, in the layouts that the builders read."""

import csv
from pathlib import Path

import datasets
import numpy as np
import soundfile

from mister_e_hf import DialogueFolder

LABELS = ["joy", "sad", "anger"]  # no turn of the calls is sad

# Sound is a file's name and the stretch of it in seconds, where it is not the whole.
CALLS = {
    "train": {
        "a": [
            ("Good morning.", ("a.wav", None, None), "Ann", "joy", 1.5),
            ("Is it?", ("long.wav", 0.5, 1.25), "Bob", "anger", None),
            (None, ("long.wav", 1.5, 2.0), "Ann", "joy", None),
        ],
        "b": [
            ("Nobody recorded this.", None, "Bob", None, -2.0),
            ('Grüße, "Welt"', ("b.wav", None, None), None, "joy", 0.0),
        ],
    },
    "validation": {"c": [("Hello?", ("c.wav", None, None), None, "anger", None)]},
    "test": {"d/1": [("Hm.", None, None, None, None), ("Yes!", ("d.wav", None, None), None, "joy", None)]},
}
SECONDS = {"a.wav": 1.0, "b.wav": 0.5, "c.wav": 0.25, "d.wav": 0.75, "long.wav": 3.0}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """16-bit samples at 16 kHz, both ends of the range among them."""
    samples = np.random.default_rng(seed).integers(-32768, 32768, size=round(16_000 * seconds)).astype(np.int16)
    samples[:2] = -32768, 32767
    return samples


def sound_of(name: str) -> np.ndarray:
    return noise(SECONDS[name], seed=list(SECONDS).index(name))


def stretch_of(sound: tuple[str, float | None, float | None]) -> np.ndarray:
    """The samples that a turn of the calls has."""
    name, start, end = sound
    return sound_of(name)[round(16_000 * (start or 0)) : None if end is None else round(16_000 * end)]


def write_calls(folder: Path) -> Path:
    """One's own folder: a table and WAV files."""
    folder.mkdir(parents=True)
    for name in SECONDS:
        soundfile.write(folder / name, sound_of(name), 16_000)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            "dialogue_id order text file_name start end speaker emotion sentiment split utterance_id".split()
        )
        for split, dialogues in CALLS.items():
            for dialogue, turns in dialogues.items():
                for order, (text, sound, *others) in enumerate(turns):
                    table.writerow(
                        [dialogue, order, text, *(sound or [None] * 3), *others, split, f"{dialogue}_{order}"]
                    )
    return folder


def read_calls(folder: Path, cache: Path, **settings) -> datasets.DatasetDict:
    builder = DialogueFolder(folder, cache_dir=str(cache), **{"labels": LABELS, **settings})
    builder.download_and_prepare()
    return builder.as_dataset()


def write_iemocap(folder: Path) -> Path:
    """
    The layout of IEMOCAP, with one dialogue of each of sessions 1, 2 and 5.

    `Ses01F_impro03_F007` has no majority label and is happy in the community's labels; `Ses02F_impro02` is one of the
    twelve validation dialogues of the community.
    """
    utterances = {"F000": "neu", "F001": "exc", "F002": "oth", "F007": "xxx", "M000": "fru"}
    for session, dialogue in enumerate(("Ses01F_impro03", "Ses02F_impro02", None, None, "Ses05F_impro01"), start=1):
        if dialogue is None:
            continue
        evaluation, transcripts, sounds = (
            folder / f"Session{session}" / place
            for place in ("dialog/EmoEvaluation", "dialog/transcriptions", f"sentences/wav/{dialogue}")
        )
        for place in (evaluation, transcripts, sounds):
            place.mkdir(parents=True)
        lines, texts = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
        for number, (turn, code) in enumerate(utterances.items()):
            name = f"{dialogue}_{turn}"
            lines.append(f"[{number}.0000 - {number}.9000]\t{name}\t{code}\t[2.5000, 2.5000, 2.5000]")
            texts.append(f"{name} [00{number}.0000-00{number}.9000]: Turn {number}.")
            soundfile.write(sounds / f"{name}.wav", noise(0.25, seed=number), 16_000)
        (evaluation / f"{dialogue}.txt").write_text("\n".join(lines) + "\n")
        (transcripts / f"{dialogue}.txt").write_text("\n".join(texts) + "\n")
    return folder


def write_meld(folder: Path) -> Path:
    """MELD's layout with audio: a dialogue of two utterances per split, one clip missing."""
    for name, clips in (
        ("train", "train_splits"),
        ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):
        (folder / clips).mkdir(parents=True)
        with (folder / f"{name}_sent_emo.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"])
            table.writerow([1, "Oh, no!", "Ross", "sadness", "negative", 0, 0])
            table.writerow([2, "How are you doing?", "Joey", "joy", "positive", 0, 1])
        soundfile.write(folder / clips / "dia0_utt0.wav", noise(0.5), 16_000)
        if name != "dev":
            soundfile.write(folder / clips / "dia0_utt1.wav", noise(0.5), 16_000)
    return folder


def write_mosi(folder: Path) -> Path:
    """CMU-MOSI's layout with one table: a video of two segments per split, one without a score."""
    folder.mkdir(parents=True)
    with (folder / "label.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "clip_id", "text", "label", "mode"])
        for video, mode in (("v1", "train"), ("v2", "valid"), ("v3", "test")):
            table.writerow([video, 1, "Not good.", -1.4, mode])
            table.writerow([video, 2, "Fine.", 0.0 if mode == "train" else "", mode])
            (folder / video).mkdir()
            for segment in (1, 2):
                soundfile.write(folder / video / f"{segment}.wav", noise(0.25, seed=segment), 16_000)
    return folder
