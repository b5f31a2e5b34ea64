"""The tokens of a prompt: instruction, earlier turns, the turn itself, and what is missing.

Letters: S targets of a regression; a classification has one answer, S = 1.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """
    The token ids of one turn's prompt. The pseudo tokens are between `before` and one of `after`, which has an entry
    for each answer that is asked for (S). With `pseudo_position="first"`, `before` holds little more than the token
    that begins a text, and `after` all words.
    """

    before: list[int]
    after: tuple[list[int], ...]


class PromptWriter:
    r"""
    Writes the prompts of dialogues.

    Args:
        config: an [`EgmfConfig`].
        tokenizer: of the language model.
        longest: how many tokens `before` and the longest of `after` may have together; the oldest turns are left out
            first.
    """

    def __init__(self, config: Any, tokenizer: Any, longest: int):
        self.config, self.tokenizer, self.longest = config, tokenizer, longest

    def prompts(
        self, transcripts: Sequence[str | None], present: Sequence[Collection[str]], turns: Sequence[int]
    ) -> list[Prompt]:
        r"""
        The prompts of some turns of one dialogue.

        Args:
            transcripts: of its real turns, in their order; None where a turn has none.
            present: of each turn, the names of the modalities that the model reads and that the turn has.
            turns: indices of the turns to ask about.
        """
        raise NotImplementedError
