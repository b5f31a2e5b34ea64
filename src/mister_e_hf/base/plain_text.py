"""
Names and labels come from other people's files: what each place that they are written to would take for markup is escaped here, one function
per destination. All of them give one line without control characters.
"""

import re

# Controls of C0 and C1, line and paragraph separators, half of a surrogate pair, and what turns the direction of all that follows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def for_terminal(text: object, lines: bool = False) -> str:
    r"""
    What a terminal would obey is shown as `\u001b`.

    Args:
        text: any value; its `str` is taken.
        lines: whether it is whole output, whose line ends and tabs stay, rather than a name within a line.
    """
    return _CONTROL.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _visible(found[0]), str(text))


def for_markdown(text: object) -> str:
    """A name in Markdown, in a cell of a table and where HTML is allowed: shown as it is spelled."""
    text = for_terminal(" ".join(str(text).split()))
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is not emphasis
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^([#+=-]|\d+(?=[.)]))", lambda found: _not_first(found[0]), text)


def for_plot(text: object, most: int = 60) -> str:
    """A label for matplotlib, which takes what is between two dollar signs for a formula; cut after `most` characters."""
    text = for_terminal(" ".join(str(text).split()))
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def for_csv(value: object) -> object:
    """A cell: text that a spreadsheet would run as a formula gets an apostrophe in front, as typed there by hand; numbers stay."""
    runs = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if runs else value


def count_of(number: int, thing: str) -> str:
    """`1 turn`, `2,000 turns`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _visible(character: str) -> str:
    return f"\\u{ord(character):04x}"  # as JSON spells it, so that lines of JSON stay what they are


def _not_first(start: str) -> str:
    """What would begin a heading or an item of a list, made text."""
    return f"\\{start}" if not start.isdigit() else f"{start}\\"
