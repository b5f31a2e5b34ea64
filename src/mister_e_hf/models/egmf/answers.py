"""What the language model may answer: words of labels, or numbers of a grid.

Letters: A possible answers.
"""

from typing import Any


class Answers:
    r"""
    The possible answers of a model, in the order of its labels or of the numbers of its grid.

    Args:
        config: an [`EgmfConfig`].
        tokenizer: of the language model.

    Attributes:
        token_ids: tokens of each answer (A); those of labels end with the token that ends a text.
        values: the number that each answer is (A); None for labels.
    """

    token_ids: list[list[int]]
    values: list[float] | None

    def __init__(self, config: Any, tokenizer: Any):
        raise NotImplementedError

    def nearest(self, value: float) -> int:
        """The index of the answer nearest to a score."""
        raise NotImplementedError

    def parse(self, text: str) -> int | float | None:
        """The label's index, or the score, that a generated text says; None if it says neither."""
        raise NotImplementedError
