"""The words of the generated corpora, in English and Chinese: a text pattern is a word that shows it, or none."""

from typing import Literal

import numpy as np

Language = Literal["en", "zh"]

_FILLERS = {
    "en": "well you see this is what they said about it when we came back home again today with her and him".split(),
    "zh": "嗯 你 看 这 就是 什么 他们 说 关于 它 当 我们 来 回 家里 又 今天 和 她 还有 他".split(),
}
# By pattern: plain, own, first, second.
_KEYWORDS: dict[str, tuple[list[str], ...]] = {
    "en": ([], ["hooray", "lovely", "great"], ["really", "truly", "indeed"], ["never", "hardly", "barely"]),
    "zh": ([], ["太好了", "真棒", "好极了"], ["真的", "确实", "的确"], ["从不", "很少", "几乎不"]),
}
_GAPS = {"en": " ", "zh": ""}


def draw_line(generator: np.random.Generator, pattern: int, language: Language = "en") -> str:
    """Draw a line of words with one that shows the pattern; the draws are the same in every language."""
    fillers, keywords = _FILLERS[language], _KEYWORDS[language][pattern]
    words = list(generator.choice(fillers, size=int(generator.integers(3, 7))))
    if keywords:
        words.insert(int(generator.integers(len(words) + 1)), str(generator.choice(keywords)))
    return _GAPS[language].join(words)
