import random
import re

import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.media.subtitles import read_subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello there.

2
00:00:03,250 --> 00:00:04,000
How are
you?

3
01:02:03,004 --> 01:02:05,000
Late.
"""

VTT = """WEBVTT

00:01.000 --> 00:02.500
Hello there.

00:00:03.250 --> 00:00:04.000
How are
you?

01:02:03.004 --> 01:02:05.000
Late.
"""

CUES = [
    {"start": 1.0, "end": 2.5, "text": "Hello there.", "speaker": None},
    {"start": 3.25, "end": 4.0, "text": "How are you?", "speaker": None},
    {"start": 3723.004, "end": 3725.0, "text": "Late.", "speaker": None},
]


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, suffix: str = ".vtt", encoding: str = "utf-8") -> list[dict]:
        path = tmp_path / f"call{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return read_subtitles(path)

    return read


def texts(cues: list[dict]) -> list[str | None]:
    return [cue["text"] for cue in cues]


@pytest.mark.parametrize(("content", "suffix"), [(SRT, ".srt"), (SRT, ".SRT"), (VTT, ".vtt"), (VTT, ".srt")])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_cues_of_both_formats(read, content, suffix, newline, encoding):
    assert read(content.replace("\n", newline), suffix, encoding) == CUES
    assert read(content.rstrip("\n").replace("\n", newline), suffix, encoding) == CUES


def stamp(milliseconds: int, mark: str) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


@pytest.mark.parametrize("web", [False, True], ids=["srt", "vtt"])
def test_round_trip(read, web):
    words = ["yes", "7", "12", "no.", "NOTE", "it's", "--", "¿qué?", "5", "1\u20442"]
    draw = random.Random(0)
    edges = sorted(draw.sample(range(10_000_000), 400))
    cues = [
        {
            "start": start / 1000,
            "end": end / 1000,
            "text": " ".join(draw.choices(words, k=draw.randint(1, 6))),
            "speaker": None,
        }
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    blocks = [
        f"{stamp(round(cue['start'] * 1000), '.' if web else ',')} --> "
        f"{stamp(round(cue['end'] * 1000), '.' if web else ',')}\n" + cue["text"].replace(" ", draw.choice(" \n"))
        for cue in cues
    ]
    if not web:
        blocks = [f"{number}\n{block}" for number, block in enumerate(blocks, start=1)]
    content = "\n\n".join((["WEBVTT"] if web else []) + blocks)
    for end in ("", "\n", "\n\n\n"):
        assert read(content + end, ".vtt" if web else ".srt") == cues


def test_windows_1252(read):
    assert texts(read("1\n00:00:01,000 --> 00:00:02,000\n“Café” – très", ".srt", "cp1252")) == ["“Café” – très"]


def test_number_as_last_line_is_text(read):
    assert texts(read(SRT.replace("you?", "20").replace("Late.", "So\n42"), ".srt")) == [
        "Hello there.",
        "How are 20",
        "So 42",
    ]
    assert texts(read(VTT.replace("you?", "20").replace("Late.", "42"))) == ["Hello there.", "How are 20", "42"]


def test_srt_without_numbers_or_with_empty_lines_in_a_cue(read):
    cues = read("00:00:01,000 --> 00:00:02,000\nWhich?\n7\n\n00:00:03,000 --> 00:00:04,000\n\nThis\n\none.", ".srt")
    assert texts(cues) == ["Which? 7", "This one."]


def test_identifiers_notes_styles_and_settings_are_no_text(read):
    cues = read(
        "WEBVTT - The title\nKind: captions\n\nSTYLE\n::cue { color: red; }\n\nREGION\nid:left width:40%\n\n"
        "NOTE one line\n\nintroduction\n00:01.000 --> 00:02.000 align:start position:10%\nOne.\n\n"
        "NOTE\nof two\nlines\n\n17\n00:03.000 --> 00:04.000\nTwo.\n\nthe end - 3\n00:05.000 --> "
        "00:06.000\nThree.\n\nNOTE done"
    )
    assert texts(cues) == ["One.", "Two.", "Three."]
    assert [(cue["start"], cue["end"]) for cue in cues] == [(1, 2), (3, 4), (5, 6)]


def test_words_with_times_of_their_own(read):
    cues = read("WEBVTT\n\n00:01.000 --> 00:03.000\nI<00:01.500><c> am</c><00:02.000><c.yellow> here</c>")
    assert texts(cues) == ["I am here"]


@pytest.mark.parametrize(
    ("line", "speaker", "text"),
    [
        ("<v Mary>Hello.", "Mary", "Hello."),
        ("<v.loud.first Mary  Ann O&apos;Neil>Hello.</v>", "Mary Ann O'Neil", "Hello."),
        ("<v   >Hello.</v>", None, "Hello."),
        ("<video>Hello.</video>", None, "Hello."),
        ("<v Mary></v>", "Mary", None),
        ("- <v Mary><i>Hel</i>lo.</v>", "Mary", "- Hello."),
    ],
)
def test_voice_tags_name_the_speaker(read, line, speaker, text):
    (cue,) = read(f"WEBVTT\n\n00:01.000 --> 00:02.000\n{line}")
    assert (cue["speaker"], cue["text"]) == (speaker, text)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("<i>Never</i> <font color='#fff'>mind</font>", "Never mind"),
        (r"{\an8}{\i1}Up{\i0} here\Nand there", "Up here and there"),
        ("{laughs} I see", "{laughs} I see"),
        ("a &amp; b &lt;c&gt; &quot;d&quot;&nbsp;e", 'a & b <c> "d" e'),
        ("&amp;lt;", "&lt;"),
        ("I <3 you, 1 < 2 > 0", "I <3 you, 1 < 2 > 0"),
        ("from A --> B", "from A --> B"),
        ("so  much\tspace", "so much space"),
        ("<i></i>", None),
        ("", None),
        ("   ", None),
    ],
)
def test_markup_is_not_text(read, line, text):
    (first, second) = read(
        f"1\n00:00:01,000 --> 00:00:02,000\n{line}\n\n2\n00:00:03,000 --> 00:00:04,000\nNext.", ".srt"
    )
    assert (first["text"], second["text"]) == (text, "Next.")


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_cues_without_text(read, suffix):
    cues = read(
        "1\n00:00:01.000 --> 00:00:02.000\n\n2\n00:00:03.000 --> 00:00:04.000\n\n\n\n3\n00:00:05.000 --> 00:00:06.000",
        suffix,
    )
    assert texts(cues) == [None, None, None]


def test_cues_come_in_order_of_time_and_may_overlap(read):
    cues = read(
        "WEBVTT\n\n00:05.000 --> 00:09.000\nC\n\n00:01.000 --> 00:07.000\nB\n\n00:01.000 --> 00:02.000\nA\n\n"
        "00:01.000 --> 00:07.000\nB again"
    )
    assert texts(cues) == ["A", "B", "B again", "C"]


@pytest.mark.parametrize(("fraction", "seconds"), [("5", 0.5), ("50", 0.5), ("500", 0.5), ("005", 0.005)])
def test_fractions_of_a_second(read, fraction, seconds):
    (cue,) = read(f"1\n0:0:1,{fraction} --> 100:0:2.0\nA", ".srt")
    assert (cue["start"], cue["end"]) == (1 + seconds, 360_002)


MALFORMED = {
    "hyphen": "00:00:03,000 -> 00:00:04,000 --> 5",
    "no fraction": "00:00:03 --> 00:00:04",
    "letter": "OO:00:03,000 --> 00:00:04,000",
    "sign": "-00:00:03,000 --> 00:00:04,000",
    "one time": "00:00:03,000 -->",
    "no start": "--> 00:00:04,000",
    "seconds alone": "3.0 --> 4.0",
    "four digits": "00:00:03,0000 --> 00:00:04,0000",
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_a_malformed_cue_is_an_error(read, line, suffix):
    content = f"00:00:01.000 --> 00:00:02.000\nHello.\n\n{line}\nLost.\n\n00:00:05.000 --> 00:00:06.000\nBye."
    with pytest.raises(InputError, match=rf"call\{suffix}', line 4: '{re.escape(line)}' is not the timing of a cue"):
        read(content, suffix)


@pytest.mark.parametrize("end", ["00:00:03,999", "00:00:04,000"])
def test_a_backwards_cue_is_an_error(read, end):
    with pytest.raises(ValueError, match=r"call\.srt', line 2: the cue at 4 s ends at (3\.999|4) s, not after it"):
        read(f"1\n00:00:04,000 --> {end}\nA", ".srt")


@pytest.mark.parametrize("content", ["", "\n\n", "WEBVTT\n\nNOTE nothing yet", "Hello.", b"\xef\xbb\xbf"])
def test_a_file_without_cues_is_an_error(read, content):
    with pytest.raises(ValueError, match=r"call\.vtt' holds no cue"):
        read(content)


def test_binary_file_raises(read):
    assert read(SRT, ".srt", "utf-16") == read(SRT, ".srt")
    with pytest.raises(ValueError, match=r"call\.srt' is text neither in UTF-8 nor"):
        read(SRT.encode() + b"\x81\x00", ".srt")


@pytest.mark.parametrize("suffix", [".ass", ".txt", ""])
def test_another_kind_of_file_is_an_error(read, suffix):
    with pytest.raises(ValueError, match=r"call.*' is not a subtitle file: expected one of \.srt, \.vtt"):
        read(SRT, suffix)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "call.srt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"No subtitles at '{path}'"):
            read_subtitles(path)
        with pytest.raises(FileNotFoundError, match=f"No subtitles at '{path}'"):
            read_subtitles(str(path))
