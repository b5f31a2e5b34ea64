"""A generated corpus whose right answer is known: a test of the method, not of speech or language.

The emotion follows a Markov chain over the turns, and each emotion shows in one place only:

| emotion | speech vector | text vector |
|---|---|---|
| anger | its own pattern | plain |
| joy | plain | its own pattern |
| surprise | pattern a or b | c with a, d with b |
| fear | pattern a or b | d with a, c with b |
| sadness, neutral | plain | plain |

So anger needs the speech vector, joy the text vector, surprise and fear both together, and a plain turn the context:
it is sadness where the last turn that was not plain was anger, else neutral.

With `video=True` every turn also has a visual vector, and a third of the plain turns, drawn at random, are disgust,
which shows there alone:

| emotion | speech vector | text vector | visual vector |
|---|---|---|---|
| disgust | plain | plain | its own pattern |
| surprise, fear | as above | as above | a pattern that both share |
| others | as above | as above | plain |

The rule for plain turns then counts disgust among them, so that nothing around a turn says whether it is disgust.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..base.modalities import MODALITIES
from .demo_words import Language, draw_line

LABELS = ["neutral", "joy", "anger", "surprise", "fear", "sadness"]
VIDEO_LABELS = [*LABELS, "disgust"]
SPEECH_DIM, TEXT_DIM, VISUAL_DIM = 24, 32, 16
SPLIT_SIZES = {"train": 240, "validation": 60, "test": 100}

_TRANSITIONS = np.array(
    [  # neutral, joy, anger, surprise, fear, sadness
        [0.35, 0.15, 0.20, 0.15, 0.15, 0.00],  # neutral
        [0.40, 0.10, 0.20, 0.15, 0.15, 0.00],  # joy
        [0.00, 0.10, 0.15, 0.10, 0.10, 0.55],  # anger
        [0.40, 0.15, 0.20, 0.10, 0.15, 0.00],  # surprise
        [0.40, 0.15, 0.20, 0.15, 0.10, 0.00],  # fear
        [0.00, 0.20, 0.15, 0.10, 0.10, 0.45],  # sadness
    ]
)
_PLAIN, _OWN, _FIRST, _SECOND = range(4)
_SHARED = _FIRST  # the visual pattern of surprise and fear
ABSENT_SHARE = 0.02
_DISGUST_SHARE = 1 / 3
_SPEECH, _TEXT, _VISUAL = MODALITIES["speech"], MODALITIES["text"], MODALITIES["visual"]


def demo_corpus(
    seed: int = 0,
    noise: float = 0.35,
    sizes: dict[str, int] | None = None,
    video: bool = False,
    transcripts: Language | None = None,
) -> dict[str, pa.Table]:
    r"""
    Generate the corpus, a table per split in the form that [`~mister_e_hf.vectors.dialogue_vectors.DialogueVectors`]
    reads.

    Args:
        seed: same seed, same corpus.
        noise: standard deviation of each vector dimension around its pattern, whose dimensions have standard deviation
            1.
        sizes: dialogues per split.
        video: whether turns also have visual vectors. The vectors of speech and text are the same either way.
        transcripts: `"en"` or `"zh"` for lines of words in this language, which show what the text vectors do.
    """
    generator = np.random.default_rng(seed)
    speech_patterns = generator.normal(size=(4, SPEECH_DIM))
    text_patterns = generator.normal(size=(4, TEXT_DIM))
    looks, words = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    visual_patterns = looks.normal(size=(3, VISUAL_DIM))
    corpus = {}
    for split, size in (sizes or SPLIT_SIZES).items():
        table, shown = _split(generator, split, size, speech_patterns, text_patterns, noise)
        if transcripts is not None:
            lines = [[draw_line(words, pattern, transcripts) for pattern in dialogue] for dialogue in shown]
            table = table.append_column("texts", pa.array(lines))
        corpus[split] = _with_looks(looks, table, visual_patterns, noise) if video else table
    return corpus


def write_demo_corpus(
    folder: str | Path, seed: int = 0, video: bool = False, transcripts: Language | None = None
) -> Path:
    """Write `train.parquet`, `validation.parquet` and `test.parquet`; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in demo_corpus(seed, video=video, transcripts=transcripts).items():
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def _split(generator, split, size, speech_patterns, text_patterns, noise) -> tuple[pa.Table, list[list[int]]]:
    """The table of a split, and the text pattern that each turn of each dialogue shows."""
    patterns_shown = []
    rows: dict[str, list] = {
        name: [] for name in ("dialogue_id", "utterance_ids", "labels", _SPEECH.has, _SPEECH.features, _TEXT.features)
    }
    for number in range(size):
        emotions = draw_emotions(generator, length=int(generator.integers(3, 17)))
        speech, text = draw_patterns(generator, emotions)
        patterns_shown.append(text.tolist())
        rows["dialogue_id"].append(f"{split}_{number:03}")
        rows["utterance_ids"].append([f"{split}_{number:03}_{turn:02}" for turn in range(len(emotions))])
        rows["labels"].append([LABELS[emotion] for emotion in emotions])
        rows[_SPEECH.has].append((generator.random(len(emotions)) >= ABSENT_SHARE).tolist())
        for name, patterns, shown in (
            (_SPEECH.features, speech_patterns, speech),
            (_TEXT.features, text_patterns, text),
        ):
            vectors = patterns[shown] + noise * generator.normal(size=(len(shown), patterns.shape[1]))
            rows[name].append(vectors.astype(np.float32).tolist())
    vector_list = pa.list_(pa.list_(pa.float32()))
    schema = pa.schema(
        {
            "dialogue_id": pa.string(),
            "utterance_ids": pa.list_(pa.string()),
            "labels": pa.list_(pa.string()),
            _SPEECH.has: pa.list_(pa.bool_()),
            _SPEECH.features: vector_list,
            _TEXT.features: vector_list,
        }
    )
    return pa.table(rows, schema=schema), patterns_shown


def _with_looks(generator, table: pa.Table, patterns: np.ndarray, noise: float) -> pa.Table:
    """The table with visual vectors, and with disgust among its labels."""
    labels, present, vectors = [], [], []
    for names in table["labels"].to_pylist():
        emotions, looks = draw_looks(generator, np.array([LABELS.index(name) for name in names]))
        labels.append([VIDEO_LABELS[emotion] for emotion in emotions])
        present.append((generator.random(len(looks)) >= ABSENT_SHARE).tolist())
        shown = patterns[looks] + noise * generator.normal(size=(len(looks), VISUAL_DIM))
        vectors.append(shown.astype(np.float32).tolist())
    table = table.set_column(table.column_names.index("labels"), "labels", pa.array(labels))
    table = table.append_column(_VISUAL.has, pa.array(present))
    return table.append_column(_VISUAL.features, pa.array(vectors, pa.list_(pa.list_(pa.float32()))))


def draw_looks(generator: np.random.Generator, emotions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw which plain turns are disgust; returns the emotions and the visual pattern that each turn shows."""
    names = np.array(LABELS)[emotions]
    plain = np.isin(names, ["neutral", "sadness"])
    disgust = plain & (generator.random(len(emotions)) < _DISGUST_SHARE)
    looks = np.where(disgust, _OWN, np.where(np.isin(names, ["surprise", "fear"]), _SHARED, _PLAIN))
    return np.where(disgust, VIDEO_LABELS.index("disgust"), emotions), looks


def draw_emotions(generator: np.random.Generator, length: int) -> np.ndarray:
    emotions = [int(generator.choice(len(LABELS), p=_TRANSITIONS[0]))]
    while len(emotions) < length:
        emotions.append(int(generator.choice(len(LABELS), p=_TRANSITIONS[emotions[-1]])))
    return np.array(emotions)


def draw_patterns(generator: np.random.Generator, emotions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pattern that the speech vector and the text vector of each turn show."""
    names = np.array(LABELS)[emotions]
    paired = np.isin(names, ["surprise", "fear"])
    which = generator.integers(2, size=len(emotions))
    speech = np.where(names == "anger", _OWN, np.where(paired, _FIRST + which, _PLAIN))
    text = np.where(names == "joy", _OWN, np.where(paired, _FIRST + (which ^ (names == "fear")), _PLAIN))
    return speech, text
