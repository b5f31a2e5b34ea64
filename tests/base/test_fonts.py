"""Text of every language in plots, with fonts that are built here."""

import io
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from fontTools.fontBuilder import FontBuilder  # noqa: E402  (matplotlib requires it)
from fontTools.pens.ttGlyphPen import TTGlyphPen  # noqa: E402
from matplotlib import font_manager  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from mister_e_hf.base import fonts  # noqa: E402
from mister_e_hf.base.fonts import PlotFigure  # noqa: E402
from mister_e_hf.evaluation.confusion_figure import confusion_figure  # noqa: E402

LABELS = ["愤怒", "기쁨", "かな", "🥺", "neutral"]


@pytest.fixture(autouse=True)
def only_the_fonts_of_matplotlib(monkeypatch):
    """As on a server: whatever is installed on this machine is not found."""
    own = [each for each in font_manager.fontManager.ttflist if each.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    caches = fonts._families_for, fonts._find_new_fonts, fonts._warn
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


def write_font(path, characters: str):
    """A font whose characters are all one square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(each):x}" for each in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(each): f"u{ord(each):x}" for each in characters})
    font.setupGlyf({name: pen.glyph() for name in names})
    font.setupHorizontalMetrics({name: (1000, 0) for name in names})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


def saved(figure: PlotFigure, form: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    return buffer.getvalue()


def drawn(figure: PlotFigure, monkeypatch) -> set[str]:
    """The texts that a PNG shows."""
    texts = set()
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (texts.add(self.get_text()), draw(self, renderer))[1])
    saved(figure, "png")
    return texts


def test_a_font_is_chosen_by_the_characters(tmp_path, caplog, monkeypatch):
    for name, characters in {"Bopomofo": "愤怒厌恶", "Other": "かな怒"}.items():
        font_manager.fontManager.addfont(write_font(tmp_path / f"{name}.ttf", characters))
    figure = confusion_figure(np.eye(3, dtype=int), ["愤怒", "かな", "joy"])
    assert {"愤怒", "かな", "joy"} <= drawn(figure, monkeypatch)
    families = [label.get_fontfamily()[1:] for label in figure.axes[0].get_yticklabels()]
    assert families == [["Bopomofo"], ["Other"], []]
    assert caplog.records == []


def test_a_font_that_was_installed_after_matplotlib_listed_all_is_found(tmp_path, monkeypatch):
    path = write_font(tmp_path / "New.ttf", "愤怒")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path), str(tmp_path / "broken.ttf")])
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert fonts._families_for(frozenset("愤怒"), ()) == (("New",), frozenset())


@pytest.mark.parametrize("form", ["png", "pdf"])
def test_missing_characters_are_replaced_and_said_once(form, caplog, recwarn):
    figure = confusion_figure(np.eye(5, dtype=int), LABELS)
    for _ in range(2):
        saved(figure, form)
    (record,) = caplog.records
    assert "No installed font has か な 怒 愤 기 쁨 🥺" in record.getMessage()
    assert "fonts-noto-cjk" in record.getMessage()
    assert not [each for each in recwarn if "missing from font" in str(each.message)]


def test_substitutes_are_words_names_and_code_points(monkeypatch):
    figure = confusion_figure(np.eye(5, dtype=int), LABELS)
    figure.axes[0].set_title("未知 (愤怒)\ufe0f")
    shown = {"anger", "gi bbeum", "ka na", "face with pleading eyes", "neutral", "U+672A U+77E5 (anger)"}
    assert shown <= drawn(figure, monkeypatch)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == LABELS  # of the figure itself
    assert figure.axes[0].get_title() == "未知 (愤怒)\ufe0f"


def test_svg_keeps_text_as_text(caplog, recwarn):
    svg = saved(confusion_figure(np.eye(5, dtype=int), LABELS), "svg").decode()
    assert set(LABELS) <= set(re.findall(r"<text [^>]*>([^<]*)</text>", svg))
    assert caplog.records == [] and not [each for each in recwarn if "missing" in str(each.message)]


def test_text_of_latin_letters_looks_for_no_font(monkeypatch):
    monkeypatch.setattr(fonts, "_find_new_fonts", lambda: pytest.fail("fonts were searched"))
    figure = confusion_figure(np.eye(3, dtype=int), ["joy", "très bien", "грусть"])
    saved(figure, "png")
    assert all(label.get_fontfamily() == ["sans-serif"] for label in figure.axes[0].get_yticklabels())


def test_the_font_of_boxes_is_never_chosen():
    assert fonts._families_for(frozenset("愤"), ()) == ((), frozenset("愤"))
