"""Rules for the values of a field of the training arguments, each with a description for messages."""

import math
import numbers
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """
    A finite number from `low` to `high`, without `low` if `above` is set. `also` lists further values that have a
    meaning.
    """

    low: float = 0
    high: float = math.inf
    whole: bool = False
    above: bool = False
    also: tuple = ()
    share: bool = False  # below 1 a fraction of the steps, from 1 on a number of steps

    def takes(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return value is None and None in self.also
        number = float(value)
        if number in self.also:
            return True
        if not math.isfinite(number) or not self.low <= number <= self.high or (self.above and number == self.low):
            return False
        return number.is_integer() if self.whole or (self.share and number >= 1) else True

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        range_ = f"above {self.low:,}" if self.above else f"of at least {self.low:,}"
        range_ += f" and at most {int(self.high) if self.whole else self.high:,}" if self.high < math.inf else ""
        steps = " (below 1 a share of all steps, from 1 on a whole number of steps)" if self.share else ""
        return f"{kind} {range_}{steps}" + "".join(f", or {_word(value)}" for value in self.also)


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    words: tuple

    def takes(self, value: Any) -> bool:
        return any(same(value, word) for word in self.words)

    def __str__(self) -> str:
        return f"one of {', '.join(map(_word, self.words))}"


@dataclass(frozen=True)
class Kind:
    """Any value of some types."""

    name: str
    kinds: tuple

    def takes(self, value: Any) -> bool:
        return isinstance(value, self.kinds)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Refused:
    """Only the default, with the reason."""

    reason: str
    also: tuple = ()  # what transformers makes of the default

    def takes(self, value: Any) -> bool:
        return any(same(value, other) for other in self.also)

    def __str__(self) -> str:
        return f"left out: {self.reason}"


def same(value: Any, other: Any) -> bool:
    """Whether two values are equal; 1 and true are not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _word(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
