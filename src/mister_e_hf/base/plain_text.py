"""Escape text from other people's files, such as names and labels, with one function per destination.

Each of them returns one line without control characters.
"""

import re
import unicodedata
from collections.abc import Sequence

# Controls of C0 and C1, separators of lines and paragraphs, lone surrogates, and controls of the text direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def for_terminal(text: object, lines: bool = False) -> str:
    r"""
    Escape control characters, which a terminal would execute, as `\u001b`.

    Args:
        text: any value, converted with `str`.
        lines: whether it is a whole output, whose line breaks and tabs are kept, rather than a name within a line.
    """
    return _CONTROL.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _visible(found[0]), str(text))


def for_markdown(text: object) -> str:
    """Escape a name for Markdown, also in the cell of a table and where HTML is allowed."""
    text = for_terminal(" ".join(str(text).split()))
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # not emphasis within a word
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^([#+=-]|\d+(?=[.)]))", lambda found: _escaped_start(found[0]), text)


def for_plot(text: object, limit: int = 60) -> str:
    """A label for matplotlib, which reads text between dollar signs as a formula; truncated to `limit` characters."""
    text = for_terminal(" ".join(str(text).split()))
    return (text if len(text) <= limit else f"{text[: limit - 1]}…").replace("$", r"\$")


def for_csv(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would run as a formula is prefixed with an apostrophe."""
    runs = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if runs else value


def from_csv(cell: str) -> str:
    """What [`for_csv`] wrote as this cell."""
    return cell[1:] if cell.startswith("'") and for_csv(cell[1:]) == cell else cell


def some_of(names: Sequence[str], separator: str = ", ", most: int = 10) -> str:
    """The first names of many, and how many more there are."""
    more = len(names) - most
    return separator.join(names[:most]) + (f"{separator}and {more} more" if more > 0 else "")


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for Chinese, Japanese and Korean characters, none for accents."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def count_of(number: int, thing: str) -> str:
    """`1 turn`, `2,000 turns`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _visible(character: str) -> str:
    return f"\\u{ord(character):04x}"  # as in JSON, so that JSON lines stay valid


def _escaped_start(start: str) -> str:
    """Escape what would begin a heading or a list."""
    return f"\\{start}" if not start.isdigit() else f"{start}\\"
