"""A figure whose text is readable in every language: fonts are chosen by the characters, and no box is ever drawn.

Import this module only where matplotlib may be needed: it imports it.
"""

import functools
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import font_manager, rc_context
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import Formatter

logger = logging.getLogger(__name__)

# Common fonts are tried before all others, simplified Chinese first: most fonts of East Asia share its characters.
_PREFERRED = [
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "Hiragino Sans",
    "Yu Gothic",
    "IPAexGothic",
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "NanumGothic",
    "Arial Unicode MS",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Symbola",
]
_BOXES = "Last Resort"  # these fonts have every character, as a box
# Ideographs have no names, so that the words of emotions, which are labels, are known by themselves.
_WORDS = {
    "愤怒": "anger",
    "生气": "anger",
    "厌恶": "disgust",
    "恐惧": "fear",
    "害怕": "fear",
    "高兴": "joy",
    "开心": "joy",
    "快乐": "joy",
    "平静": "neutral",
    "中性": "neutral",
    "悲伤": "sadness",
    "伤心": "sadness",
    "惊奇": "surprise",
    "惊讶": "surprise",
}
_NAMES = {"HANGUL SYLLABLE ": "", "HIRAGANA LETTER ": "", "KATAKANA LETTER ": "", " FACE": ""}


class PlotFigure(Figure):
    """
    A `matplotlib.figure.Figure` that draws every character with an installed font that has it. A character that no
    font has becomes its name or code point, and a Chinese word of an emotion the English one, with one warning that
    says what to install. SVG keeps text as text, which the browser shows with its own fonts.
    """

    def draw(self, renderer):
        """Draw the figure; called by every `savefig`."""
        missing = _choose_fonts(self)
        with rc_context({"svg.fonttype": "none"}):
            if not missing:
                super().draw(renderer)
            elif isinstance(self.canvas, FigureCanvasSVG):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph .* missing from font")
                    super().draw(renderer)
            else:
                _warn(missing)
                with _replaced(self, missing):
                    super().draw(renderer)


def _choose_fonts(figure: Figure) -> frozenset[str]:
    """Give each text the fonts of its characters; returns the characters that no font has."""
    missing: set[str] = set()
    for text in figure.findobj(Text):
        if not isinstance(text, Text) or text.get_text().isascii() or text.get_usetex():
            continue
        own = text.get_fontfamily()
        paths = tuple(font_manager.findfont(FontProperties(family=[family])) for family in own)
        families, lacking = _families_for(frozenset(_printed(text.get_text())), paths)
        if added := [name for name in families if name not in own]:
            text.set_fontfamily([*own, *added])
        missing |= lacking
    return frozenset(missing)


@functools.lru_cache(maxsize=1024)
def _families_for(characters: frozenset[str], paths: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have the characters which these font files lack, and the characters that no font has."""
    missing, chosen = set(characters), []
    for path in paths:
        missing -= _has(path, missing)
    if missing:
        _find_new_fonts()
        rank = {name: number for number, name in enumerate(_PREFERRED)}
        entries = [each for each in font_manager.fontManager.ttflist if not each.name.startswith(_BOXES)]
        upright = [each for each in entries if each.style == "normal"]
        for entry in sorted(upright, key=lambda each: (rank.get(each.name, len(rank)), each.name, each.weight != 400)):
            if missing and entry.name not in chosen and (found := _has(entry.fname, missing)):
                chosen.append(entry.name)
                missing -= found
    return tuple(chosen), frozenset(missing)


def _has(path: str, characters: set[str]) -> set[str]:
    """The characters that a font file has and that can be drawn with it; a font of coloured pictures has none."""
    try:
        font = FT2Font(path)
        found = {character for character in characters if font.get_char_index(ord(character))}
        if found:
            font.set_size(10, 100)
    except (OSError, RuntimeError):
        return set()
    return found


@functools.cache
def _find_new_fonts():
    """Add fonts that were installed after matplotlib listed all fonts."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):
            continue


@functools.cache
def _warn(missing: frozenset[str]):
    shown = " ".join(sorted(missing)[:20]) + (" ..." if len(missing) > 20 else "")
    logger.warning(
        "No installed font has %s, so the plot shows words, names or code points in their place. Install a font, such "
        "as Noto Sans CJK for Chinese, Japanese and Korean (on Debian and Ubuntu: apt install fonts-noto-cjk; other "
        "scripts and emoji: fonts-noto-core, fonts-symbola), or write the plot as .svg",
        shown,
    )


def _printed(text: str) -> Iterator[str]:
    """The characters of a text that show: not spaces, line breaks, joiners or variation selectors."""
    return (each for each in text if not _is_invisible(each) and not each.isspace())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"


def _substitute(text: str, missing: frozenset[str]) -> str:
    """The text with words, names or code points in place of missing characters: `anger`, `gi`, `U+6012`."""
    if not missing & set(text):
        return text
    for word, english in _WORDS.items():
        if missing & set(word):
            text = text.replace(word, f" {english} ")
    shown = "".join(f" {_name(each)} " if each in missing else "" if _is_invisible(each) else each for each in text)
    return re.sub(r"(?<=[(\[]) | (?=[)\],.;:!?])", "", " ".join(shown.split()))


def _name(character: str) -> str:
    name = unicodedata.name(character, "")
    code_point = f"U+{ord(character):04X}"
    if not name or code_point.removeprefix("U+") in name or len(name) > 40:  # ideographs have no name of their own
        return code_point
    for part, shorter in _NAMES.items():
        name = name.replace(part, shorter)
    return name.lower()


@contextmanager
def _replaced(figure: Figure, missing: frozenset[str]) -> Iterator[None]:
    """Within the context, the texts of a figure have substitutes of missing characters."""
    axes: list[Axis] = [axis for each in figure.get_axes() for axis in (each.xaxis, each.yaxis)]
    formatters: list[tuple[Axis, Formatter]] = []
    for axis in axes:  # which writes its labels again whenever it is drawn
        if missing & set("".join(label.get_text() for label in axis.get_majorticklabels())):
            formatters.append((axis, axis.get_major_formatter()))
            axis.set_major_formatter(_Substituting(axis.get_major_formatter(), missing))
    texts = [(text, text.get_text()) for text in figure.findobj(Text) if isinstance(text, Text)]
    texts = [(text, before) for text, before in texts if missing & set(before)]
    for text, before in texts:
        text.set_text(_substitute(before, missing))
    try:
        yield
    finally:
        for axis, formatter in formatters:
            axis.set_major_formatter(formatter)
        for text, before in texts:
            text.set_text(before)


class _Substituting(Formatter):
    """The labels of another formatter with substitutes of missing characters."""

    def __init__(self, formatter: Formatter, missing: frozenset[str]):
        self.formatter, self.missing = formatter, missing

    def __call__(self, x, pos=None):
        return _substitute(self.formatter(x, pos), self.missing)

    def format_ticks(self, values):
        return [_substitute(label, self.missing) for label in self.formatter.format_ticks(values)]

    def set_locs(self, locs):
        self.locs = locs
        self.formatter.set_locs(locs)

    def get_offset(self):
        return self.formatter.get_offset()
