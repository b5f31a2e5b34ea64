"""Subtitles as other programs write them: whose lines are read as meant, or named by their number."""

import re

import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.media.subtitles import read_subtitles


@pytest.fixture
def read(tmp_path):
    def read(content: str, suffix: str = ".srt") -> list[dict]:
        path = tmp_path / f"call{suffix}"
        path.write_bytes(content.encode())
        return read_subtitles(path)

    return read


def texts(cues: list[dict]) -> list[str | None]:
    return [cue["text"] for cue in cues]


A, B, C = "00:00:01,000 --> 00:00:02,000", "00:00:03,000 --> 00:00:04,000", "00:00:05,000 --> 00:00:06,000"
FROM_SRT = {
    "number, empty line, timing": (f"1\n\n{A}\nHello.\n\n2\n\n{B}\nBye.", ["Hello.", "Bye."]),
    "with gaps in the numbers": (f"1\n\n{A}\nHello.\n\n5\n\n{B}\nBye.", ["Hello.", "Bye."]),
    "number twice": (f"1\n{A}\nHello.\n\n2\n\n2\n{B}\nBye.", ["Hello.", "Bye."]),
    "number twice, one below the other": (f"1\n{A}\nHello.\n\n2\n2\n{B}\nBye.", ["Hello.", "Bye."]),
    "number behind the last cue": (f"1\n{A}\nHow many?\n\n2\n{B}\n12\n\n3\n", ["How many?", "12"]),
    "from zero": (f"0\n{A}\nHello.\n\n1\n{B}\nBye.\n\n2", ["Hello.", "Bye."]),
    "first number lost": (f"{A}\nHello.\n\n2\n{B}\nBye.", ["Hello.", "Bye."]),
    "all numbers one": (f"1\n{A}\nHello.\n\n1\n{B}\nBye.\n\n1\n{C}\nSo.", ["Hello.", "Bye.", "So."]),
    "a mark of byte order at every number": (f"\ufeff\ufeff1\n{A}\nHello.\n\n\ufeff2\n{B}\nBye.", ["Hello.", "Bye."]),
    "words that count": (f"1\n{A}\nOne\n2\n\n2\n{B}\n3\n\n3\n{C}\n4", ["One 2", "3", "4"]),
    "words that count, without numbers": (f"{A}\n1\n\n{B}\n2\n\n{C}\n3", ["1", "2", "3"]),
    "empty lines in a cue": (f"1\n{A}\nHello.\n\n7 of\n\nthem\n\n2\n{B}\nBye.", ["Hello. 7 of them", "Bye."]),
    "no empty line between cues": (f"1\n{A}\nHello.\n2\n{B}\nBye.", ["Hello.", "Bye."]),
    "superscript": (f"1\n{A}\n²\n\n2\n{B}\nBye.", ["²", "Bye."]),
    "marks of direction around times": (f"1\n\u200e{A}\u200e\nHello.", ["Hello."]),
    "coordinates": (f"1\n{A} X1:100 X2:200 Y1:10 Y2:20\nHello.", ["Hello."]),
    "lines that end in two returns": (
        f"1\r\r\n{A}\r\r\nHello.\r\r\n\r\r\n2\r\r\n{B}\r\r\nBye.\r\r\n",
        ["Hello.", "Bye."],
    ),
    "line ends of all kinds": (f"1\r\n{A}\nHello.\r\r2\r\n{B}\rBye.", ["Hello.", "Bye."]),
    "separators that end no line": (f"1\n{A}\na\u2028b\x0bc\x0cd\x1ce\x85f\n\n2\n{B}\nBye.", ["a b c d e…f", "Bye."]),
}


@pytest.mark.parametrize(("content", "expected"), FROM_SRT.values(), ids=FROM_SRT)
def test_srt_as_others_write_it(read, content, expected):
    assert texts(read(content)) == expected


FROM_VTT = {
    "a line of a blank": (f"{A}\n \ngood<00:00:01.500><c> day</c>\n\n{B}\nBye.\n \n\n", ["good day", "Bye."]),
    "a line of a blank between two lines": (f"{A}\nHello\n \nthere\n\n{B}\nBye.", ["Hello there", "Bye."]),
    "an empty line after the timing": (f"{A}\n\nHello.\n\nNOTE later\n\n{B}\nBye.", ["Hello.", "Bye."]),
    "an empty line after a number": (f"1\n\n{A}\nHello.\n\n2\n\n{B}\nBye.", ["Hello.", "Bye."]),
    "lines that end in two returns": (
        f"{A}\r\r\nHello.\r\r\n\r\r\n{B}\r\r\nBye.".replace(",", "."),
        ["Hello.", "Bye."],
    ),
    "an identifier behind a line of blanks": (f"{A}\nHello.\n  \nintro\n{B}\nBye.", ["Hello.", "Bye."]),
    "words before a timing without an empty line": (f"{A}\n \nHello.\n{B}\nBye.", ["Hello.", "Bye."]),
    "a cue without text": (f"{A}\n\nNOTE nothing\n\n{B}\nBye.", [None, "Bye."]),
    "words that begin as a note": (f"{A}\nNOTE that\n\n{B}\nBye.", ["NOTE that", "Bye."]),
    "settings": (f"{A} vertical:rl line:50%,start size: 40% region:bill\nHello.", ["Hello."]),
    "parts of a stream": (f"{A}\nHello.\n\nWEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0\n\n{B}\nBye.", ["Hello.", "Bye."]),
}


@pytest.mark.parametrize(("content", "expected"), FROM_VTT.values(), ids=FROM_VTT)
def test_webvtt_as_others_write_it(read, content, expected):
    assert texts(read(f"WEBVTT\nKind: captions\n\n{content.replace(',000', '.000')}", ".vtt")) == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("not now<br>please<br/>and <BR />so</p><p>on", "not now please and so on"),
        (r"\h\hup\Nand\nthere, C:\new", r"up and there, C:\new"),
        ("<c.colorE5E5E5>so</c> <lang en-GB>far</lang> <b.loud>away</b>", "so far away"),
        ('<font color="#fff" size=3>so</font> <I>far</I> <a href=x>away</a>', "so far away"),
        ("<laughs> I see <that>", "<laughs> I see <that>"),
        ("a <b and c> d, x <y and y> z", "a <b and c> d, x <y and y> z"),
        ("{y:i}so {c:$0000ff}far {what: a day}", "so far {what: a day}"),
        ("<ruby>東<rt>とう</rt></ruby>京", "東京"),
        ("it&#39;s 3&nbsp;&lt; 4 &amp;&amp; so", "it's 3 < 4 && so"),
        ("<v Ann>Hi.</v><v Ann>You", "Hi. You"),
        ("<i", "<i"),
    ],
)
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_markup_of_others(read, line, text, suffix):
    assert texts(read(f"WEBVTT\n\n{A}\n{line}" if suffix == ".vtt" else f"{A}\n{line}", suffix)) == [text]


TWO = f"1\n{A}\nHello.\n\n2\n{B}\nBye."
REFUSED = {
    "words behind the times": (f"1\n{A} Hello.\n\n2\n{B}\nBye.", ".srt", 2, "is not the timing of a cue"),
    "words that look like a setting": (f"1\n{A} S: Hello.", ".srt", 2, "is not the timing of a cue"),
    "arrow of one hyphen": (TWO.replace(B, B.replace("-->", "->")), ".srt", 6, "is not the timing of a cue"),
    "arrow of another letter": (TWO.replace(B, B.replace("-->", "→")), ".srt", 6, "is not the timing of a cue"),
    "arrow of a dash": (TWO.replace(B, B.replace("-->", "–>")), ".srt", 6, "is not the timing of a cue"),
    "times in brackets": (f"[{A}] Hello.", ".srt", 1, "is not the timing of a cue"),
    "two timings": (f"1\n{A} {B}\nHello.", ".srt", 2, "is not the timing of a cue"),
    "hours without end": (f"1\n{'9' * 5000}:{A}\nHello.", ".srt", 2, "is not the timing of a cue"),
    "75 minutes": (f"1\n{A.replace('00:00:02', '00:75:02')}\nHello.", ".srt", 2, "more than 59 minutes or seconds"),
    "60 seconds": (f"1\n{A.replace('00:00:02', '00:00:60')}\nHello.", ".srt", 2, "more than 59 minutes or seconds"),
    "text before the first cue": (f"by Ann\n\n{TWO}", ".srt", 1, "'by Ann' does not belong to a cue"),
    "the same in WebVTT": (f"WEBVTT\n\nHello.\n\n{A}\nBye.", ".vtt", 3, "'Hello.' does not belong to a cue"),
    "an empty line in a cue": (
        f"WEBVTT\n\n{A}\nHello\n\nthere.\n\n{B}\nBye.",
        ".vtt",
        6,
        "'there.' does not belong to a cue",
    ),
    "text behind the last cue": (f"WEBVTT\n\n{A}\nHello\n\nthere.", ".vtt", 6, "'there.' does not belong to a cue"),
    "an identifier with an empty line": (
        f"WEBVTT\n\n{A}\nHello\n\nid\n\n{B}\nBye.",
        ".vtt",
        6,
        "'id' does not belong to a cue",
    ),
    "two files in one": (f"{TWO}\n\n{TWO}", ".srt", 10, "times begin again at 1 s"),
    "two files of WebVTT in one": (f"WEBVTT\n\n{A}\nA\n\n{B}\nB\n\n" * 2, ".vtt", 11, "times begin again at 1 s"),
}


@pytest.mark.parametrize(("content", "suffix", "line", "message"), REFUSED.values(), ids=REFUSED)
def test_malformed_lines_raise(read, content, suffix, line, message):
    content = content.replace(",000", ".000") if suffix == ".vtt" else content
    with pytest.raises(InputError, match=rf"call\{suffix}', line {line}: .*{re.escape(message)}") as error:
        read(content, suffix)
    assert len(str(error.value)) < 500


KINDS = {
    "MicroDVD": "{0}{25}Hello.\n{30}{50}Bye.",
    "SubStation Alpha": "[Script Info]\nTitle: x\n\n[Events]\n"
    "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hello.",
    "SubViewer": "[INFORMATION]\n[TITLE]x\n00:00:01.00,00:00:02.00\nHello.",
    "SBV": "0:00:01.000,0:00:02.000\nHello.\n\n0:00:03.000,0:00:04.000\nBye.",
    "LRC": "[00:12.00]Hello.\n[00:17.20]Bye.",
    "TTML": '<?xml version="1.0"?>\n'
    '<tt xmlns="http://www.w3.org/ns/ttml"><body><p begin="0s" end="1s">Hello.</p></body></tt>',
    "SAMI": "<SAMI><BODY><SYNC Start=1000><P>Hello.</SAMI>",
    "HTML": "<!DOCTYPE html>\n<html><body>404</body></html>",
    "JSON": '{"text": "Hello.", "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": "Hello."}]}',
    "a table": "start\tend\ttext\n0\t1000\tHello.",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_are_named(read, kind):
    for suffix in (".srt", ".vtt"):
        with pytest.raises(InputError, match=rf"call\{suffix}' holds .*{kind}.*, not SRT or WebVTT"):
            read(KINDS[kind], suffix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"1\n{A}\nHello.\n\n2\n{B}\nBye.\n\n2\n{B}\nBye.", "line 10: a cue appears twice"),
        (f"1\n{A}\n<v Ann>Hi.\n<v Bob>Hello.", "line 2: a cue has several speakers"),
        (
            f"1\n{A}\nso let us go\n\n2\n{B}\nso let us go\nhome",
            "line 6: a cue begins with the text of the one before",
        ),
        (f"1\n{A}\nHow many?\n12\n{B}\nBye.", "line 4: a number without an empty line before it"),
    ],
)
def test_doubtful_lines_are_reported_once_per_file(read, caplog, content, message):
    assert read(content)
    assert [message in record.getMessage() for record in caplog.records] == [True]


def test_whole_files_give_no_warning(read, caplog):
    read(f"1\n{A}\nNo.\n\n2\n{B}\nNo. No, no.\n\n3\n{C}\nNo.")
    assert not caplog.records


@pytest.mark.timeout(100)
def test_hostile_files_end_soon(read):
    long = 200_000
    lines = ("<" * long, "<v" + " " * long, r"{\ "[:2] * long, "<font " + "a=b " * long, "1" + " " * long, "<b" * long)
    for line in lines:
        read(f"{A}\n{line}")
    for line in (":" * long, "1:" * long, "[" * long, "\r" * long, "{" * long, "0:0:0." + "0" * long, "\n \n" * long):
        with pytest.raises(InputError):
            read(line)


def test_a_file_of_no_subtitles_size_is_not_read(tmp_path):
    with (tmp_path / "call.srt").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(InputError, match=r"call\.srt' has 8,589,934,592 bytes; subtitles have at most"):
        read_subtitles(tmp_path / "call.srt")
