"""The words of prompts and answers, in English and Chinese."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    r"""
    How a prompt is worded in one language.

    Args:
        name: of the language, in English.
        classes: the instruction for classes, from `{noun}` and `{answers}`.
        scores: the instruction for scores, from `{noun}`, `{low}` and `{high}`.
        earlier: the line before the earlier turns.
        turn: the current turn, from `{said}`.
        quotes: what a transcript is between, and the mark that replaces them inside it.
        missing: what is said of a modality that a turn lacks.
        cue, cue_end: what the answer follows, from `{noun}`, and its end, the same for every noun.
        gap: what separates the cue from the answer.
        comma, last_comma: what separates the entries of a list, and the last two of them.
        emotion, sentiment: the noun for classes.
        example: two turns, to show a prompt.
    """

    name: str
    classes: str
    scores: str
    earlier: str
    turn: str
    quotes: tuple[str, str, str]
    missing: Mapping[str, str]
    cue: str
    cue_end: str
    gap: str
    comma: str
    last_comma: str
    emotion: str
    sentiment: str
    example: tuple[str, str]

    def listed(self, words: Sequence[str], last: str | None = None) -> str:
        """Words as a list: "a, b or c"."""
        *first, final = words
        return (self.last_comma if last is None else last).join([self.comma.join(first), final] if first else [final])

    def quoted(self, transcript: str) -> str:
        """A transcript between quotes, in one line and without these quotes inside."""
        opening, closing, inside = self.quotes
        plain = " ".join(transcript.split()).replace(opening, inside).replace(closing, inside)
        return f"{opening}{plain}{closing}"


WORDINGS = {
    "en": Wording(
        name="English",
        classes="Recognize the {noun} of the current turn of this English dialogue: {answers}.",
        scores="Rate the {noun} of the current turn of this English dialogue from {low} to {high}.",
        earlier="Earlier turns:",
        turn="Current turn: {said}",
        quotes=('"', '"', "'"),
        missing={"speech": "(no speech)", "text": "(no transcript)", "visual": "(no video)"},
        cue="The {noun} is",
        cue_end=" is",
        gap=" ",
        comma=", ",
        last_comma=" or ",
        emotion="emotion",
        sentiment="sentiment",
        example=("You did what?", "Calm down."),
    ),
    "zh": Wording(
        name="Chinese",
        classes="请识别这段中文对话中当前一句的{noun}：{answers}。",
        scores="请评估这段中文对话中当前一句的{noun}，范围从{low}到{high}。",
        earlier="之前的对话：",
        turn="当前一句：{said}",
        quotes=("“", "”", "'"),
        missing={"speech": "（无语音）", "text": "（无文本）", "visual": "（无视频）"},
        cue="{noun}是：",
        cue_end="是：",
        gap="",
        comma="、",
        last_comma="或",
        emotion="情绪",
        sentiment="情感",
        example=("你说什么？", "别生气。"),
    ),
}
SENTIMENTS = frozenset({"negative", "non-negative", "neutral", "positive", "消极", "非消极", "中性", "积极"})
# Names of one and the same class: where one is a label, the others are read as it. The Chinese word comes last.
SAME_CLASS = (
    ("anger", "angry", "mad", "生气", "愤怒"),
    ("disgust", "disgusted", "disgusting", "反感", "厌恶"),
    ("fear", "fearful", "afraid", "scared", "害怕", "恐惧"),
    ("joy", "joyful", "happy", "happiness", "开心", "快乐", "高兴"),
    ("sadness", "sad", "难过", "悲伤"),
    ("surprise", "surprised", "惊讶", "惊奇"),
    ("excited", "excitement", "兴奋", "激动"),
    ("frustrated", "frustration", "沮丧"),
    ("neutral", "calm", "中性", "平静"),
    ("negative", "负面", "消极"),
    ("non-negative", "nonnegative", "非负面", "非消极"),
    ("positive", "正面", "积极"),
)
_CHINESE_TARGETS = {"sentiment": "情感", "valence": "效价", "arousal": "唤醒度", "dominance": "支配度"}


def words_of(names: Sequence[str], language: str, given: Mapping[str, str] | None = None) -> list[str]:
    """
    What each label or target is called in a prompt: the word given for it, else in Chinese that of its class if it is
    a known one, else its own name.
    """
    words = {name: name for name in names}
    if language == "zh":
        words |= {name: _CHINESE_TARGETS[name] for name in names if name in _CHINESE_TARGETS}
        words |= {name: same[-1] for name in names for same in SAME_CLASS if name.casefold() in same}
        if SENTIMENTS.issuperset(names):
            words |= {name: "中性" for name in names if name == "neutral"}
    words |= given or {}
    return [words[name] for name in names]


def aliases(names: Sequence[str]) -> dict[str, int]:
    """Other names of the labels, and the index of the label; without those that could be of two labels."""
    found: dict[str, int] = {}
    for same in SAME_CLASS:
        indices = [index for index, name in enumerate(names) if name.casefold() in same]
        if len(indices) == 1:
            found |= dict.fromkeys(same, indices[0])
    return found
