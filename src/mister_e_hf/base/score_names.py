"""What scores are called in tables and sentences, and which of them are shown in per cent."""

from typing import NamedTuple


class ScoreName(NamedTuple):
    """The names of a score: in tables, and in full in a sentence; and whether it is a share, shown in per cent."""

    title: str
    full: str
    per_cent: bool


SCORE_NAMES = {
    "weighted_f1": ScoreName("weighted F1", "weighted F1", True),
    "macro_f1": ScoreName("macro F1", "macro F1", True),
    "accuracy": ScoreName("accuracy", "accuracy", True),
    "unweighted_average_recall": ScoreName("UAR", "unweighted average recall", True),
    "expected_calibration_error": ScoreName("ECE", "expected calibration error", True),
    "mae": ScoreName("MAE", "mean absolute error", False),
    "corr": ScoreName("Corr", "Pearson correlation", False),
    "ccc": ScoreName("CCC", "concordance correlation", False),
    "acc7": ScoreName("Acc-7", "Acc-7", True),
    "acc5": ScoreName("Acc-5", "Acc-5", True),
    "acc3": ScoreName("Acc-3", "Acc-3", True),
    "acc2_has0": ScoreName("Acc-2 with zeros", "Acc-2 with zeros", True),
    "f1_has0": ScoreName("F1 with zeros", "F1 with zeros", True),
    "acc2_non0": ScoreName("Acc-2 without zeros", "Acc-2 without zeros", True),
    "f1_non0": ScoreName("F1 without zeros", "F1 without zeros", True),
    "acc2": ScoreName("Acc-2", "Acc-2", True),
    "f1": ScoreName("F1", "F1", True),
    "acc2_weak": ScoreName("Acc-2 weak", "Acc-2 of weak sentiment", True),
    "r2": ScoreName("R²", "R²", False),
}


def score_title(name: str) -> str:
    """A score's name in tables, with what precedes it: `eval_speech_mae` becomes "eval speech MAE"."""
    prefix, score = _split(name)
    title = SCORE_NAMES[score].title if score in SCORE_NAMES else score
    return f"{prefix.replace('_', ' ')} {title}" if prefix else title


def in_per_cent(name: str) -> bool:
    """Whether tables show a score in per cent: accuracies and F1, but neither errors nor correlations."""
    _, score = _split(name)
    return score in SCORE_NAMES and SCORE_NAMES[score].per_cent


def capitalized(text: str) -> str:
    """The text as the beginning of a sentence: the first letter alone is changed."""
    return text[:1].upper() + text[1:]


def _split(name: str) -> tuple[str, str]:
    """What precedes the longest known score that a name ends with, and that score; else nothing, and the name."""
    for score in sorted(SCORE_NAMES, key=len, reverse=True):
        if name == score or name.endswith(f"_{score}"):
            return name.removesuffix(score).strip("_"), score
    return "", name.replace("_", " ")
