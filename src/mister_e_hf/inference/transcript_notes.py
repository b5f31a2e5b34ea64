"""What a model that reads transcripts lacks in those that it is given: words, and its language."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..base.plain_text import count_of

_LETTERS = 20  # fewer do not say which language a text is in
_NAMES = {"en": "English", "zh": "Chinese"}


class TranscriptNotes:
    r"""
    Counts the transcripts of turns that a model reads.

    Args:
        config: of the model.

    Attributes:
        turns, lacking: how many turns there are, and how many of them have no transcript.
    """

    def __init__(self, config: Any):
        self.reads = bool(config.reads_transcripts)
        self._language: str | None = getattr(config, "language", None)  # of models that write prompts
        self.turns = self.lacking = self._letters = self._chinese = 0

    def add(self, transcripts: Iterable[str | None]):
        """Count the transcripts of some turns, None where one has none."""
        for transcript in transcripts if self.reads else ():
            words = (transcript or "").strip()
            self.turns, self.lacking = self.turns + 1, self.lacking + (not words)
            letters = [letter for letter in words if letter.isalpha()]
            self._letters += len(letters)
            self._chinese += sum(unicodedata.name(letter, "").startswith("CJK") for letter in letters)

    def sentences(self, where: str = "") -> Iterator[str]:
        """Yield a sentence for each shortcoming; `where` is what they begin with, such as `"train: "`."""
        if self.lacking:
            yield (
                f"{where}{self.lacking:,} of {count_of(self.turns, 'turn')} have no transcript, which the model reads"
            )
        if self._language not in _NAMES or self._letters < _LETTERS:
            return
        share = self._chinese / self._letters
        if (share > 0.5) != (self._language == "zh"):
            yield (
                f"{where}{100 * share:.0f} % of the letters of the transcripts are Chinese, and the model's prompts "
                f"and answers are {_NAMES[self._language]} (language '{self._language}')"
            )


def transcript_notes(
    config: Any, splits: Mapping[str, Iterable[Sequence[str | None]] | None], turns: Mapping[str, int]
) -> Iterator[str]:
    r"""
    Yield a sentence for each shortcoming of the transcripts of splits that a model is to read.

    Args:
        config: of the model.
        splits: of each, the transcripts by dialogue; None if it has none at all.
        turns: number of turns of each split.
    """
    for split, transcripts in splits.items():
        notes = TranscriptNotes(config)
        if transcripts is None:
            notes.add([None] * turns[split])
        for dialogue in transcripts or ():
            notes.add(dialogue)
        yield from notes.sentences(f"{split}: ")
