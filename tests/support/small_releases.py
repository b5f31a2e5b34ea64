"""Corpora of a few turns with scores or several labels, in the layouts of CMU-MOSEI, CH-SIMS v2 and CHERMA."""

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from support.small_corpora import noise

MODES = {"train": "train", "validation": "valid", "test": "test"}
COLUMNS = "video_id clip_id text label label_T label_A label_V annotation mode".split()

# Videos of CMU-MOSEI by split, clips as (id, text, score): digits alone, a hyphen, an underscore and a digit.
MOSEI = {
    "train": {
        "-mJ2ud6oKI8": [("10", "It is over.", -0.6666667), ("2", "Not good.", -3.0), ("0", "Fine!", 0.0)],
        "100178": [("3", "I liked it.", 2.3333333)],
    },
    "validation": {"x266rUJQC_8": [("1", "Is it?", None), ("0", "No.", -1.0)]},
    "test": {"FcAgbLF6__s": [("5", "You should see this.", 3.0)]},
}
# Clips of CH-SIMS v2: (video, clip, text, scores of all, text, sound, picture, split).
SIMS = [
    ("aqgy3_0001", "00010", "我不知道。", (-0.8, -0.2, -0.6, -1.0), "train"),
    ("aqgy3_0001", "00002", "你说什么？", (0.0, 0.2, 0.0, -0.2), "train"),
    ("video_0001", "0001", "太好了！", (1.0, 1.0, 0.8, 0.6), "train"),
    ("video_0002", "0001", "再见", (-0.2, 0.0, 0.0, -0.4), "validation"),
    ("test1", "00001", "走吧", (0.6, 0.0, 0.4, 1.0), "test"),
    ("test1", "00002", "哦", (None, None, None, None), "test"),
]
CUT = ("aqgy3_0001", "00003", "好。", (0.4, 0.0, 0.4, 1.0), "test")  # in another split than the rest of its video
WORDS = ["愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"]
EMOTIONS = ["anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


def mosei_clips() -> list[tuple]:
    return [
        (video, clip, text, score, split)
        for split, videos in MOSEI.items()
        for video, clips in videos.items()
        for clip, text, score in clips
    ]


def write_rows(path: Path, columns: list[str], rows: list[dict], encoding: str = "utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def write_sound(path: Path, seconds: float, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed), 16_000, format="WAV")
    return path


def write_mosei_table(folder: Path, sounds: bool = True) -> Path:
    """MMSA's label.csv in MOSEI's order of columns, with a WAV file for each clip."""
    rows = [
        {"video_id": video, "clip_id": clip, "text": text, "label": score, "mode": MODES[split]}
        for video, clip, text, score, split in mosei_clips()
    ]
    columns = "video_id clip_id text label annotation mode label_T label_A label_V".split()
    write_rows(folder / "label.csv", columns, rows)
    for number, (video, clip, *_) in enumerate(mosei_clips() if sounds else []):
        write_sound(folder / "Raw" / video / f"{clip}.wav", 0.25, number)
    return folder


def segment_times(index: int, first: float = 0.0) -> tuple[float, float]:
    """Start and end of a segment of the raw release."""
    return (index * 0.5 or first), index * 0.5 + 0.75


def write_mosei_release(folder: Path, labels: str = "annotators", first: float = 0.0) -> Path:
    """
    The raw release: transcripts, whole recordings, labels (`annotators` or `s3prl`) and the SDK's file of folds.

    Segments follow each other in time in the order of MOSEI, which is not that of clip numbers; the first of each
    video begins at `first`.
    """
    transcripts, sounds = folder / "Raw/Transcript/Segmented/Combined", folder / "Raw/Audio/Full/WAV_16000"
    transcripts.mkdir(parents=True)
    rows, timed = [], []
    names = ("Input.VIDEO_ID", "Input.CLIP", "WorkerId", "Answer.sentiment")
    emotions = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
    for number, videos in enumerate(MOSEI.values()):
        for video, clips in videos.items():
            lines = {}
            for index, (clip, text, score) in enumerate(clips):
                start, end = segment_times(index, first)
                lines[int(clip)] = f"{video}___{clip}___{start}___{end}___{text}\n"
                if score is None:
                    continue
                for worker, change in enumerate((0, 0.5, -0.5)):
                    answers = [video, clip, f"A{worker}", max(-3.0, min(3.0, score + change * (abs(score) < 2)))]
                    rows.append(dict(zip(names, answers, strict=True)))
                    rows[-1] |= {f"Answer.{name}": place % 4 for place, name in enumerate(emotions)}
                    rows[-1]["Answer.fear"] = "" if worker else 3
                whole = int(np.sign(score) * np.ceil(abs(score)))
                timed.append({"": len(timed), "file": video, "index": index, "start": start, "end": end})
                timed[-1] |= {"label2a": int(score >= 0), "label7": whole, "split": number}
            (transcripts / f"{video}.txt").write_text("".join(lines[key] for key in sorted(lines)), encoding="utf-8")
            write_sound(sounds / f"{video}.wav", 2.0, number)
    if labels == "annotators":
        columns = [*names, *(f"Answer.{name}" for name in emotions)]
        write_rows(folder / "Raw/Labels/mturk_extra_v2.csv", columns, rows[: len(rows) // 2])
        moved = [row | {"Input.VIDEO_ID": f"x/{row['Input.VIDEO_ID']}"} for row in rows[len(rows) // 2 :]]
        write_rows(folder / "Raw/Labels/pom_extra_sqa_mono_results.csv", columns, moved)
        folds = {"train": "train", "valid": "validation", "test": "test"}
        lists = [f"standard_{name}_fold = {list(MOSEI[split])!r}\n" for name, split in folds.items()]
        (folder / "cmu_mosei_std_folds.py").write_text("".join(lists), encoding="utf-8")
    else:
        columns = ["", "file", "index", "start", "end", "label2a", "label7", "split"]
        write_rows(folder / "CMU_MOSEI_Labels.csv", columns, timed)
    return folder


def write_sims(
    folder: Path,
    name: str = "meta.csv",
    encoding: str = "utf-8",
    sounds: bool = True,
    clips: Sequence[tuple] = SIMS,
) -> Path:
    """CH-SIMS v2's table and a WAV file for each clip, ids with their zeros."""
    rows = [
        {"video_id": video, "clip_id": clip, "text": text, "mode": MODES[split], "annotation": "Neutral"}
        | dict(zip(("label", "label_T", "label_A", "label_V"), scores, strict=True))
        for video, clip, text, scores, split in clips
    ]
    write_rows(folder / name, COLUMNS, rows, encoding)
    for number, (video, clip, *_) in enumerate(clips if sounds else []):
        write_sound(folder / "Raw" / video / f"{clip}.wav", 0.25, number)
    return folder


def frames(count: int, length: int, width: int, seed: int) -> np.ndarray:
    """Sequences (count, length, width) whose real lengths are 1, 2, ... in turn, then zeros."""
    values = np.random.default_rng(seed).normal(size=(count, length, width)).astype(np.float32)
    for index in range(count):
        values[index, 1 + index % length :] = 0
    return values


def features_of(clips: Sequence[tuple], aligned: bool = False) -> dict:
    """The processed pickle of clips (video, clip, text, score or scores, split)."""
    content = {}
    for number, (split, mode) in enumerate(MODES.items()):
        own = [clip for clip in clips if clip[-1] == split]
        count = len(own)
        mask = np.zeros((count, 6))
        for index in range(count):
            mask[index, : 1 + index % 6] = 1
        scores = [score if isinstance(score, tuple) else (score,) for *_, score, _ in own]
        content[mode] = {
            "raw_text": np.array([text for _, _, text, *_ in own]),
            "id": [f"{video}$_${clip}" for video, clip, *_ in own],
            "audio": frames(count, 5, 4, number),
            "vision": frames(count, 3, 2, 10 + number),
            "text": np.random.default_rng(number).normal(size=(count, 6, 8)).astype(np.float32),
            "text_bert": np.stack([mask * 101, mask, mask * 0], axis=1),
            "regression_labels": np.array([np.nan if one[0] is None else one[0] for one in scores]),
            "classification_labels": np.zeros(count),
        }
        if not aligned:
            for name in ("audio", "vision"):
                length = content[mode][name].shape[1]
                content[mode][f"{name}_lengths"] = [1 + index % length for index in range(count)]
        for place, part in enumerate("TAV", start=1):
            if count and len(scores[0]) > 1:
                values = [np.nan if one[place] is None else one[place] for one in scores]
                content[mode][f"regression_labels_{part}"] = np.array(values)
    return content


def write_pickle(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def write_cherma(folder: Path) -> Path:
    """CHERMA's lists and features: three utterances in train, one in each other split, the labels turning round."""
    names = {"train": ["film1_2", "film1_10", "film2_1"], "dev": ["film2_2"], "test": ["film3_1"]}
    for number, (stage, own) in enumerate(names.items()):
        items = []
        for index, name in enumerate(own):
            words = [WORDS[(number + index + place) % 7] for place in range(4)]
            keys = ("video_label", "txt_label", "audio_label", "visual_label")
            items.append(
                {"audio_file": f"{name}.wav", "video_file": f"{name}.mp4"} | dict(zip(keys, words, strict=True))
            )
            for modality, width, suffix in (("text", 8, ""), ("audio", 6, ""), ("visual", 4, ".mp4")):
                path = folder / modality / stage / f"{name}{suffix}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, frames(1, 4, width, number * 10 + index)[0])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stage}.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return folder


def write_cherma_pickles(folder: Path) -> Path:
    for number, stage in enumerate(("train", "valid", "test")):
        items = [
            {
                "features": {
                    "text": f"第{index}句",
                    "audio": frames(1, 5, 6, number)[0],
                    "video": frames(1, 3, 4, number)[0],
                    "audio_len": 1,
                    "video_len": 1,
                },
                "label": WORDS[(number + index) % 7],
            }
            for index in range(2)
        ]
        write_pickle(folder / f"cherma_{stage}.pkl", items)
    return folder
