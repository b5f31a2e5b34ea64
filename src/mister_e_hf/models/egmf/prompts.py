"""The tokens of a prompt: instruction, earlier turns, the turn itself, and what is missing.

Letters: S targets of a regression; a classification has one answer, S = 1.
"""

import bisect
import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...base.errors import InputError
from .answers import answer_texts, label_names
from .text_tokens import TextTokens
from .wording import SENTIMENTS, WORDINGS, words_of

logger = logging.getLogger(__name__)


class Prompt(NamedTuple):
    """
    The token ids of one turn's prompt. The pseudo tokens are between `before` and one of `after`, which has an entry
    for each answer that is asked for (S). With `pseudo_position="first"`, `before` holds little more than the token
    that begins a text, and `after` all words.
    """

    before: list[int]
    after: tuple[list[int], ...]


@dataclass
class PromptCounts:
    """Of the prompts written so far: how many there are, and what was left out because it was too long."""

    prompts: int = 0
    earlier_turns: int = 0
    shortened_turns: int = 0


class PromptWriter:
    r"""
    Writes the prompts of dialogues, without the names of speakers:

        Recognize the emotion of the current turn of this English dialogue: neutral, joy or anger.
        Earlier turns:
        - "Where were you?"
        - "At home."
        Current turn: "I do not believe you!" (no video)
        <pseudo tokens> The emotion is

    Transcripts are data: each is one line between quotes, whatever it says. A turn without a transcript is left out of
    the earlier turns. Where a prompt is too long, the oldest turns are left out first, then the end of the current
    turn; `counts` says how many, and a warning says it once.

    Args:
        config: an [`EgmfConfig`].
        tokenizer: of the language model.
        longest: how many tokens `before` and the longest of `after` may have together.

    Raises:
        InputError: if `longest` tokens are not enough for a turn without words.
    """

    def __init__(self, config: Any, tokenizer: Any, longest: int):
        self.config, self.counts, self._said = config, PromptCounts(), False
        self._tokens, self._wording = TextTokens(tokenizer), WORDINGS[config.language]
        names = label_names(config)
        is_regression = config.task == "regression"
        sentiment = SENTIMENTS.issuperset(names)
        noun = self._wording.sentiment if sentiment else self._wording.emotion
        nouns = words_of(names, config.language, config.label_words) if is_regression else [noun]
        self._instruction = self._tokens(f"{self._instruction_text(nouns)}\n")
        self._earlier = self._tokens(f"{self._wording.earlier}\n")
        self._cues = [self._tokens(self._wording.cue.format(noun=noun)) for noun in nouns]
        self._room = longest - len(self._tokens.start) - len(self._instruction) - max(map(len, self._cues))
        others = [name for name in config.modalities if name != "text"]
        least = max(len(self._turn(said, others)) for said in ("", None))
        if self._room < least:
            raise InputError(
                f"max_length leaves {max(longest, 0)} tokens for a prompt, fewer than the "
                f"{longest - self._room + least} of its instruction and a turn without words; raise max_length, up to "
                "what the language model can take, or shorten the instruction"
            )

    def _instruction_text(self, nouns: list[str]) -> str:
        config, wording = self.config, self._wording
        if config.instruction is not None:
            return config.instruction.strip()
        answers = answer_texts(config)
        if config.task == "regression":
            both = wording.listed(nouns, " and " if config.language == "en" else "和")
            return wording.scores.format(noun=both, low=answers[0], high=answers[-1])
        if config.answer == "index":
            words = words_of(label_names(config), config.language, config.label_words)
            answers = [f"{number} = {word}" for number, word in zip(answers, words, strict=True)]
        return wording.classes.format(noun=nouns[0], answers=wording.listed(answers))

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
        said = [transcript if transcript and transcript.strip() else None for transcript in transcripts]
        lines: dict[int, list[int]] = {}
        found = []
        for number in turns:
            past = [at for at in range(max(0, number - self.config.context_turns), number) if said[at] is not None]
            for at in past:
                if at not in lines:
                    lines[at] = self._tokens(f"- {self._wording.quoted(said[at] or '')}\n")
            missing = [name for name in self.config.modalities if name != "text" and name not in present[number]]
            words = self._words(said[number], missing, [lines[at] for at in past])
            found.append(self._prompt(words))
        return found

    def as_text(self, transcripts: Sequence[str | None], pseudo: str) -> str:
        r"""
        The prompt of the last turn of a dialogue whose turns have every modality, as the language model reads it.

        Args:
            transcripts: as in `prompts`.
            pseudo: what to show for the pseudo tokens.
        """
        present = [set(self.config.modalities)] * len(transcripts)
        with self.uncounted():
            ((before, after),) = self.prompts(transcripts, present, [len(transcripts) - 1])
        return f"{self._tokens.text(before[len(self._tokens.start) :])}{pseudo}{self._tokens.text(after[0])}"

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Prompts that are written in this context are not counted: they are shown, or counted elsewhere."""
        counts, self.counts = self.counts, PromptCounts()
        try:
            yield
        finally:
            self.counts = counts

    def _prompt(self, words: list[int]) -> Prompt:
        if self.config.pseudo_position == "first":
            return Prompt(self._tokens.start, tuple([*words, *cue] for cue in self._cues))
        return Prompt([*self._tokens.start, *words], tuple(self._cues))

    def _words(self, said: str | None, missing: Sequence[str], past: list[list[int]]) -> list[int]:
        """Instruction, earlier turns and current turn, as many as there is room for."""
        turn = self._turn(said, missing)
        if len(turn) > self._room and said is not None:
            text = said
            kept = bisect.bisect_right(
                range(1, len(text) + 1), self._room, key=lambda count: len(self._turn(text[:count], missing))
            )
            turn = self._turn(text[:kept], missing)
            self._count("shortened_turns")
        room = self._room - len(turn) - len(self._earlier)
        first = len(past)
        while first and (room := room - len(past[first - 1])) >= 0:
            first -= 1
        self._count("earlier_turns", first)
        self.counts.prompts += 1
        context = [token for line in past[first:] for token in line]
        return [*self._instruction, *(self._earlier if context else ()), *context, *turn]

    def _turn(self, said: str | None, missing: Sequence[str]) -> list[int]:
        """The line of the current turn."""
        absent = [self._wording.missing[name] for name in (*missing, *(["text"] if said is None else []))]
        parts = [*([] if said is None else [self._wording.quoted(said)]), *absent]
        return self._tokens(f"{self._wording.turn.format(said=self._wording.gap.join(parts))}\n")

    def _count(self, what: str, number: int = 1):
        setattr(self.counts, what, getattr(self.counts, what) + number)
        if number and not self._said:
            self._said = True
            logger.warning(
                "A prompt is too long: it goes without the oldest turns of the dialogue, or without the end of its own"
                " turn. Raise max_length (%d tokens with the answer) for more",
                self.config.max_length,
            )
