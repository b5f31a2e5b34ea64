"""What the language model may answer: words of labels, or numbers of a grid.

Letters: A possible answers.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from ...base.errors import InputError
from .text_tokens import TextTokens
from .wording import WORDINGS, aliases, words_of

# A grid of more numbers is a mistake: each is scored.
_MOST_SCORES = 1001
_PLAIN = str.maketrans("−–—－＋．", "----+.")
# A tokenizer of words writes "+ 0 . 5". What follows is the end, a gap, or a mark that is not inside a number.
_NUMBER = re.compile(r"([+-]?)\s*(\d+)(?:(?:\.|\s\.\s)(\d+))?(?=$|\s|[,.;!?。，；！？](?!\d))", re.ASCII)
_QUOTES = " \t\r\n\"'“”‘’「」*"


class Answers:
    r"""
    The possible answers of a model, in the order of its labels or of the numbers of its grid.

    A label is answered with its word, or with its index; a score with a sign and a fixed number of digits, `"+0.5"`,
    and zero is `"+0.0"`.

    Args:
        config: an [`EgmfConfig`].
        tokenizer: of the language model.

    Attributes:
        texts: each answer as text (A), without the gap between it and the cue.
        end: the token that ends a text.
        token_ids: tokens of each answer (A); those of labels end with the token that ends a text.
        values: the number that each answer is (A); None for labels.

    Raises:
        InputError: if the tokenizer cannot write an answer, or writes two of them alike, or two labels have the same
            word, or the grid of scores does not reach from one end to the other.
    """

    token_ids: list[list[int]]
    values: list[float] | None

    def __init__(self, config: Any, tokenizer: Any):
        self._tokens, self._names = TextTokens(tokenizer), label_names(config)
        self.end, self._is_regression = self._tokens.end, config.task == "regression"
        self.texts = answer_texts(config)
        self.values = [float(text) for text in self.texts] if self._is_regression else None
        self._meanings = [] if self._is_regression else self._read_as(config)
        wording = WORDINGS[config.language]
        end = [] if self._is_regression else [self.end]
        self.token_ids = [[*self._tokens(wording.gap + text, wording.cue_end), *end] for text in self.texts]
        self._check()

    def _read_as(self, config: Any) -> list[tuple[re.Pattern, int]]:
        """What a label may be written as, the longest first, and its index; the answers' texts take precedence."""
        words = words_of(self._names, config.language, config.label_words)
        readings = aliases(self._names)
        for names in (self._names, words, self.texts):
            readings |= {_folded(name): index for index, name in enumerate(names)}
        longest = sorted(readings, key=len, reverse=True)
        return [(_beginning(name), readings[name]) for name in longest]

    def _check(self):
        what = "score" if self._is_regression else "label"
        names = self.texts if self._is_regression else self._names
        for number, ids in enumerate(self.token_ids):
            if (first := self.token_ids.index(ids)) != number:
                raise InputError(
                    f"The {what}s '{names[first]}' and '{names[number]}' have the same tokens {ids}; give one of them "
                    "another word in label_words"
                )
        for name, text, ids in zip(names, self.texts, self.token_ids, strict=True):
            read = self.parse(self.text(ids))
            if read != (float(text) if self._is_regression else self.texts.index(text)):
                raise InputError(
                    f"The tokenizer cannot write the answer '{text}' of the {what} '{name}': its tokens {ids} are "
                    f"'{self.text(ids)}'. Choose another word in label_words, or another language model"
                )

    def text(self, ids: list[int]) -> str:
        """The text of tokens that a language model wrote, up to the one that ends it."""
        return self._tokens.text(ids)

    def nearest(self, value: float) -> int:
        r"""
        The index of the answer nearest to a score.

        Raises:
            InputError: if the score is outside the grid.
        """
        values = self.values
        assert values is not None, "labels have indices"
        step = (values[-1] - values[0]) / (len(values) - 1)
        if not values[0] - step / 2 <= value <= values[-1] + step / 2:
            raise InputError(
                f"The score {value:g} is outside of {self.texts[0]} to {self.texts[-1]}, which can be answered; set "
                "score_range to the range of the corpus"
            )
        return min(range(len(values)), key=lambda index: abs(values[index] - value))

    def parse(self, text: str) -> int | float | None:
        """
        The label's index, or the score, that a generated text says; None if it says neither.

        A label is the longest name, word or known alias that the text begins with, as a whole word; a score is a
        number in the range of the grid. What follows it is ignored.
        """
        if self._is_regression:
            return self._number(text.strip(_QUOTES).translate(_PLAIN))
        said = text.strip(_QUOTES).casefold()
        return next((index for name, index in self._meanings if name.match(said)), None)

    def _number(self, text: str) -> float | None:
        assert self.values is not None
        if not (match := _NUMBER.match(text)):
            return None
        value = float(f"{match[1]}{match[2]}.{match[3] or 0}")
        return value if self.values[0] <= value <= self.values[-1] else None


class AnswerTree:
    """
    The allowed answers as a tree of tokens: which token may follow the first ones of an answer.

    Args:
        token_ids: tokens of each answer; no two may be the same.
    """

    def __init__(self, token_ids: Iterable[Sequence[int]]):
        self._root: dict[int, dict] = {}
        for ids in token_ids:
            node = self._root
            for token in ids:
                node = node.setdefault(token, {})

    def following(self, ids: Sequence[int]) -> list[int]:
        """The tokens that may follow `ids`; none where they are a whole answer, or do not begin one."""
        node = self._root
        for token in ids:
            if token not in node:
                return []
            node = node[token]
        return list(node)

    def __iter__(self) -> Iterator[list[int]]:
        """All answers."""
        branches: list[tuple[list[int], dict[int, dict]]] = [([], self._root)]
        while branches:
            ids, node = branches.pop()
            if not node:
                yield ids
            branches += [([*ids, token], below) for token, below in node.items()]


def label_names(config: Any) -> list[str]:
    """The labels of a configuration by their indices, or its targets."""
    return [config.id2label[index] for index in range(len(config.id2label))]


def answer_texts(config: Any) -> list[str]:
    r"""
    The possible answers of a configuration as text.

    Raises:
        InputError: if two labels or targets have the same word, or one has none, or the grid of scores does not reach
            from one end to the other.
    """
    names = label_names(config)
    if config.task == "regression":
        _words(names, config, "target", "called")
        low, high = config.score_range or (-3.0, 3.0)
        return _grid(low, high, config.score_step)
    if config.answer == "index":
        return [str(index) for index in range(len(names))]
    return _words(names, config, "label", "answered with")


def _words(names: Sequence[str], config: Any, what: str, used: str) -> list[str]:
    """The words of labels or targets in one line each, none of them empty, and no two the same."""
    words = [" ".join(word.split()) for word in words_of(names, config.language, config.label_words)]
    folded = [_folded(word) for word in words]
    for number, word in enumerate(folded):
        if not word:
            raise InputError(f"The {what} '{names[number]}' has no word; give it one in label_words")
        if (first := folded.index(word)) != number:
            raise InputError(
                f"The {what}s '{names[first]}' and '{names[number]}' are both {used} '{words[number]}'; give "
                "one of them another word in label_words"
            )
    return words


def _grid(low: float, high: float, step: float) -> list[str]:
    """The numbers from low to high, with a sign and all of one width."""
    first, last, distance = (Decimal(repr(float(number))) for number in (low, high, step))
    is_short = (high - low) / step < 2 * _MOST_SCORES  # of more steps, a decimal may have no number
    count, rest = divmod(last - first, distance) if is_short else (0, 0)
    if rest or not 1 <= count < _MOST_SCORES:
        raise InputError(
            f"score_step must divide score_range into 1 to {_MOST_SCORES - 1:,} steps, got {step:g} and "
            f"[{low:g}, {high:g}]"
        )
    numbers = [first + number * distance for number in range(int(count) + 1)]
    decimals = max(-int(number.normalize().as_tuple().exponent) for number in (first, distance))
    decimals = max(0, decimals)
    width = max(len(f"{number:+.{decimals}f}") for number in numbers)
    return [f"{number + 0:+0{width}.{decimals}f}" for number in numbers]


def _folded(text: str) -> str:
    """A text as it is compared: without quotes around it, in lower case, with single gaps."""
    return " ".join(text.strip(_QUOTES).casefold().split())


def _beginning(name: str) -> re.Pattern:
    """Matches what begins with this folded name and does not go on as a word: "joy", but not "joyful"."""
    # A tokenizer of words may write gaps around hyphens and between Chinese characters.
    parts = (
        r"\s+" if each.isspace() else each if each.isalnum() and each < "\u2e80" else rf"\s*{re.escape(each)}\s*"
        for each in name
    )
    return re.compile("".join(parts) + r"(?!\w|[-'’]\w)")
