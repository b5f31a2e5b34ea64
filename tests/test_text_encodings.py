"""Text is read and written as UTF-8, whatever the locale of the machine is."""

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.media import text_files
from mister_e_hf.media.text_files import mend_controls, read_text, split_lines, text_of_name

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
_NOT_TEXT = {"os", "av", "tarfile", "safe_open", "Image", "soundfile"}  # modules whose `open` opens no text


def without_encoding(source: str) -> list[int]:
    """Lines that open, read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", None)
        owner = getattr(node.func.value, "id", None) if method else None
        if name == "open" and owner not in _NOT_TEXT:
            place = 0 if method and owner != "io" else 1
            mode = next((word.value for word in node.keywords if word.arg == "mode"), None)
            mode = mode or (node.args[place] if len(node.args) > place else None)
            if not (isinstance(mode, ast.Constant) and "b" in mode.value):
                found.append(node.lineno)
        # `write_text(path, text)` of files.py is not a method.
        elif name in ("read_text", "write_text") and method and owner != "files":
            found.append(node.lineno)
        elif any(word.arg in ("text", "universal_newlines") and owner == "subprocess" for word in node.keywords):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_with_an_encoding(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


def test_check_finds_files_opened_without_an_encoding():
    right = 'open(p, "rb"); p.open("wb"); p.read_text(encoding="utf-8"); os.open(p, 0); open(p, encoding="utf-8")'
    assert without_encoding(right) == []
    wrong = ["open(p)", 'open(p, "w")', 'p.open("a")', "p.read_text()", "p.write_text(x)", "open(p, mode='w')"]
    assert [without_encoding(line) for line in wrong] == [[1]] * len(wrong)


def test_corpus_is_written_and_printed_with_an_ascii_locale(tmp_path):
    (tmp_path / "calls").mkdir()
    table = "dialogue_id,order,text,emotion\nd,0,你好,中性\nd,1,Hé,wütend\n"
    (tmp_path / "calls" / "metadata.csv").write_text(table, encoding="utf-8")
    words = [
        "corpus",
        "folder",
        "--data_dir",
        "calls",
        "--out",
        "corpus",
        "--cache_dir",
        "cache",
        "--name",
        "Gespräche",
    ]
    ascii_only = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | ascii_only
    call = subprocess.run(
        [sys.executable, "-m", "mister_e_hf", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert call.returncode == 0, call.stderr
    assert "\\u4e2d\\u6027" in call.stdout
    card = (tmp_path / "corpus" / "README.md").read_text(encoding="utf-8")
    assert "# Gespräche" in card and "中性, " not in card and "中性" in card
    features = pq.read_schema(tmp_path / "corpus" / "train.parquet").metadata[b"huggingface"].decode("unicode_escape")
    assert "中性" in features and "wütend" in features


# Files of others


@pytest.fixture
def read(tmp_path, caplog):
    def read(content: bytes) -> str:
        caplog.clear()
        (tmp_path / "a.txt").write_bytes(content)
        with caplog.at_level(logging.WARNING):
            return read_text(tmp_path / "a.txt")

    return read


CHINESE = "dialogue_id,order,text\n" + "".join(f"d{turn},{turn},你好，我很高兴今天天气不错\n" for turn in range(20))


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "naïve “quotes” 日本 😀 \ufeff x\r\n\u2028y\n" * 9, CHINESE, "a zero \0 among words"]
)
@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unicode_is_read_with_and_without_a_byte_order_mark(read, caplog, text, mark, encoding):
    if "\0" in text and encoding != "utf-8" and not mark:
        pytest.skip("zeros of the text and of the encoding cannot be distinguished")
    assert read((("\ufeff" if mark else "") + text).encode(encoding)) == text
    assert not caplog.records


def test_windows_1252_is_read_with_a_warning(read, caplog):
    text = bytes(byte for byte in range(1, 256) if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)).decode("cp1252")
    assert read(text.encode("cp1252")) == text
    (record,) = caplog.records
    assert "a.txt' is not valid UTF-8 and is read as Windows-1252" in record.getMessage()
    for encoding, words in {
        "gbk": "你好，我很高兴",
        "cp1251": "Привет",
        "mac_roman": "I don’t know",
        "big5": "你好",
    }.items():
        try:
            found = read(f"id,text\n1,plain\n2,{words}\n".encode(encoding))
        except ValueError as error:  # a byte that Windows-1252 has not
            assert "a.txt' is text neither in UTF-8 nor in Windows-1252. Save" in str(error)
        else:
            assert found.splitlines()[2] in caplog.text and "plain" not in caplog.text


@pytest.mark.parametrize("text", [CHINESE, "a,b\n1,你说什么？\n", "€1,鿕𠮷\n"])
def test_chinese_files_are_read_as_gb18030_with_a_warning(tmp_path, caplog, text):
    path = tmp_path / "a.txt"
    for encoding in ("gb18030", "gbk")[: 1 + ("𠮷" not in text)]:
        path.write_bytes(text.encode(encoding))
        assert read_text(path, text_files.CHINESE) == text
        assert "a.txt' is not valid UTF-8 and is read as GB18030" in caplog.records[-1].getMessage()
    caplog.clear()
    path.write_text(text, encoding="utf-8")
    assert read_text(path, text_files.CHINESE) == text and not caplog.records
    path.write_bytes(text.encode("gb18030") + b"\xff\xff")
    with pytest.raises(InputError, match="a.txt' is text neither in UTF-8 nor in GB18030. Save"):
        read_text(path, text_files.CHINESE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 \x81", "is text neither in UTF-8 nor in Windows-1252"),
        (b"PK\x03\x04\xe9\x00\x00", "is text neither in UTF-8 nor in Windows-1252"),
        ("one\nIt’s café\n".encode() + b"Don\x92t\n", r"line 3: byte 0x92 is not valid UTF-8, .* mixes two encodings"),
        (b"\xff\xfeab\x00", r"is not text: byte 4 is not valid UTF-16"),
        ("a,b\n".encode("utf-16-le") + b"x", r"is not text: byte 8 is not valid UTF-16"),
        (b"\xef\xbb\xbfa\xff", r"is not text: byte 4 is not valid UTF-8"),
    ],
)
def test_undecodable_text_raises(read, content, message):
    with pytest.raises(ValueError, match=rf"a\.txt'.*{message}.*Save the file as UTF-8"):
        read(content)


def test_c1_controls_are_read_as_windows_1252(read):
    assert read("I\x92m so glad\x85 can\x92t \x81".encode()) == "I’m so glad… can’t \x81"
    assert mend_controls("plain é") == "plain é"
    every = "".join(map(chr, range(0x80, 0xA0)))
    assert [a == b for a, b in zip(mend_controls(every), every, strict=True)].count(True) == 5


def test_lines_end_only_at_line_breaks():
    assert split_lines("a\x0bb\x85c\u2028d\r\ne\rf\n\ng") == ["a\x0bb\x85c\u2028d", "e", "f", "", "g"]
    assert split_lines("a\n") == ["a"] and split_lines("") == [""]


def test_name_that_is_not_utf_8():
    assert text_of_name(os.fsdecode("Grüße".encode())) == "Grüße"
    assert text_of_name(os.fsdecode(b"caf\xe9")) == "caf\ufffd"


@pytest.mark.parametrize(
    ("text", "damaged"), [("it’s", True), ("café", True), ("привет", True), ("CAFÉ» SÃO ESPAÑ»", False)]
)
def test_damaged_text_is_warned_about(tmp_path, caplog, text, damaged):
    text = text.encode().decode("cp1252", "replace") if damaged else text
    (tmp_path / "a.txt").write_text(f"first\n{text}\nlast", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == f"first\n{text}\nlast"
    assert ("were damaged before" in caplog.text) is damaged and ("first" in caplog.text) is False
