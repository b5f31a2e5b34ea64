"""Names and labels of other people's files, where they are written to."""

import io

import pytest

from mister_e_hf.base.plain_text import for_csv, for_markdown, for_plot, for_terminal

HOSTILE = [
    "<script>alert(1)</script>",
    "<!-- end of the main table -->",
    "a|b",
    "# heading",
    "- item",
    "1. item",
    "=== ",
    "[click](http://evil.example)",
    "![](http://evil.example/x.png)",
    "`code`",
    "*bold* _italic_ ~~gone~~",
    "&lt;",
    "a\\|b",
    "two\n\n# lines",
    "$\\frac{$",
    "\x1b]0;title\x07\x1b[31m",
    "\ud800 half",
    "\u202eturned",
]


def test_ordinary_names_are_unchanged():
    for name in ("neutral", "happy_excited", "très bien", "高兴", "frustration/anger", "so-so", "C++ (2)", "ça va?"):
        assert for_terminal(name) == for_markdown(name) == for_plot(name) == for_csv(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_every_destination_escapes_line_breaks_and_controls(name):
    for text in (for_terminal(name), for_markdown(name), for_plot(name)):
        assert text.isprintable() or "\u202e" not in text
        assert not any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text)
        text.encode()


def rendered(text: str) -> str:
    """A paragraph or cell of Markdown as HTML."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_renders_a_name_as_text(name):
    shown = " ".join(for_terminal(" ".join(name.split())).split())
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert rendered(for_markdown(name)) == f"<p>{escaped}</p>\n"
    table = rendered(f"| a | b |\n|---|---|\n| {for_markdown(name)} | 1 |\n")
    assert f"<td>{escaped}</td>\n<td>1</td>" in table


def test_whole_output_keeps_its_line_breaks():
    assert for_terminal("a\tb\n\x1b[31mc\r", lines=True) == "a\tb\n\\u001b[31mc\\u000d"


@pytest.mark.parametrize("name", HOSTILE + ["$x$", "100 $ and 5 $", "\\$"])
def test_matplotlib_renders_a_name_as_text(name):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    text = figure.text(0.5, 0.5, for_plot(name))
    figure.savefig(io.BytesIO(), format="svg")
    assert text._preprocess_math(text.get_text()) == (for_terminal(" ".join(name.split())), False)


def test_labels_of_a_plot_are_truncated():
    assert len(for_plot("x" * 100_000)) == 60


def test_csv_cells_are_not_formulas():
    assert for_csv('=HYPERLINK("http://evil.example","x")').startswith("'=")
    assert [for_csv(value) for value in ("+1-1", "-x", "@SUM(1)", "a=1", "-1.5e-3", 2.5, -1, None)] == [
        "'+1-1",
        "'-x",
        "'@SUM(1)",
        "a=1",
        "-1.5e-3",
        2.5,
        -1,
        None,
    ]
