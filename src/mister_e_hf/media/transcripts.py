"""What counts as the transcript of a turn: one rule for tables, pipeline and processor."""

import unicodedata

from ..base.errors import InputError, short

# Letters and symbols that are invisible: Hangul fillers, the empty Braille pattern.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Separators, controls, what only joins or directs (zero-width characters, byte order marks), and marks without a
# letter.
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Me", "Mc"})


def has_words(text: str) -> bool:
    """
    Whether a text contains something visible: a letter, digit or symbol. Blanks and zero-width characters alone are
    not a transcript.
    """
    return any(unicodedata.category(letter) not in _UNSEEN and letter not in _BLANK for letter in text)


def transcript(text: str | None, where: str) -> str | None:
    r"""
    A turn's text unchanged, or None if it has no words, so that the turn lacks the modality.


    Args:
        text: as it was read.
        where: what to call it in an error, such as `"turn 3"`.

    Raises:
        InputError: if it holds half a character (a lone surrogate, as of an emoji that was cut in two), which no text
            file and no tokenizer can hold.
    """
    if text is None:
        return None
    for position, letter in enumerate("" if text.isascii() else text):
        if "\ud800" <= letter <= "\udfff":
            cut = ascii(text[max(0, position - 10) : position + 10])
            raise InputError(
                f"The text of {where} has half a character at position {position} ({short(cut)}): a surrogate without "
                "its other half, as of an emoji that was cut. Remove it, or put the whole character there"
            )
    return text if has_words(text) else None
