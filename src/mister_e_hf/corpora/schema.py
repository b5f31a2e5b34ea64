"""Columns of a corpus and label sets."""

from collections.abc import Sequence

from datasets import ClassLabel, Features, List, Value

from ..base.modalities import MODALITIES

SPLITS = ("train", "validation", "test")
# The classes of a corpus without labels: ClassLabel needs a name.
UNLABELLED = ["unlabelled"]

# In the order of the class numbers of published code.
LABELS = {
    "iemocap-6way": ["happy", "sad", "neutral", "angry", "excited", "frustrated"],
    "iemocap-4way": ["happy", "sad", "neutral", "angry"],
    "meld": ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"],
    "cmu_mosi": ["negative", "non-negative"],
    "cmu_mosei": ["negative", "non-negative"],
    "ch_sims_v2": ["negative", "neutral", "positive"],
    "cherma": ["anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"],
}


def dialogue_features(
    labels: list[str],
    scores: Sequence[str] = (),
    other_labels: Sequence[str] = (),
    vectors: Sequence[str] = (),
) -> Features:
    r"""
    Columns of a corpus, one row per dialogue.

    - `dialogue_id`: once in the whole corpus.
    - `utterances`: the turns in order, each with

      | field | |
      |---|---|
      | `utterance_id` | once in the dialogue |
      | `text` | transcript, or null |
      | `audio` | `{"path", "bytes"}` of an audio file, or null; cast to `datasets.Audio` if torchcodec is installed |
      | `video` | likewise of a file with a picture; it may be the same file |
      | `start`, `end` | seconds, if the turn is part of a longer file; else null |
      | `duration` | seconds of audio of the turn, or null |
      | `speaker` | for readers; never given to a model |
      | `emotion` | class, or null if the turn is not scored |
      | `sentiment` | score, or null |

      and the further fields of the corpus, if it has any.

    - for a corpus that is released as features, by modality: `speech_features` and so on (a vector per turn, or null)
      and `has_audio` and so on (whether the turn has one). Such a corpus is a table of vectors as well.

    Args:
        labels: class names in the order of the class indices.
        scores: further fields of a turn that hold a score, or null, as `valence`.
        other_labels: further fields of a turn that hold one of `labels`, or null, as the class by the speech alone.
        vectors: the modalities that have vectors.
    """
    return Features(
        {
            "dialogue_id": Value("string"),
            "utterances": List(
                {
                    "utterance_id": Value("string"),
                    "text": Value("string"),
                    # The storage type of datasets.Audio, which itself can only be written if torchcodec is installed.
                    "audio": {"bytes": Value("binary"), "path": Value("string")},
                    "video": {"bytes": Value("binary"), "path": Value("string")},
                    "start": Value("float64"),
                    "end": Value("float64"),
                    "duration": Value("float64"),
                    "speaker": Value("string"),
                    "emotion": ClassLabel(names=labels),
                    "sentiment": Value("float64"),
                    **{name: Value("float64") for name in scores},
                    **{name: ClassLabel(names=labels) for name in other_labels},
                }
            ),
            **{MODALITIES[name].features: List(List(Value("float32"))) for name in vectors},
            **{MODALITIES[name].has: List(Value("bool")) for name in vectors},
        }
    )
