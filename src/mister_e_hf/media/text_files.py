"""
Read text files as Unicode (by byte-order mark, zero bytes or UTF-8), falling back to Windows-1252, or for Chinese
corpora to GB18030, with a warning.
"""

import codecs
import logging
import os
import re
from pathlib import Path

from ..base.errors import InputError, short

logger = logging.getLogger(__name__)

# What old files are written in: of Western languages, and of Chinese, where it includes GBK and GB2312.
WESTERN, CHINESE = "cp1252", "gb18030"
_OLD = {WESTERN: "Windows-1252", CHINESE: "GB18030"}
# Longer marks first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Without a mark: width of a unit, which of its bytes are zero (in UTF-16 of commas, digits and line ends at least),
# and which never is.
_ZEROS = {
    "utf-32-le": (4, (2, 3), 0),
    "utf-32-be": (4, (0, 1), 3),
    "utf-16-le": (2, (1,), 0),
    "utf-16-be": (2, (0,), 1),
}
_LOOKED_AT = 4096
_C1 = {code: char for code in range(0x80, 0xA0) if (char := bytes([code]).decode("cp1252", "ignore"))}
_CONTROLS = re.compile(f"[{''.join(map(chr, _C1))}]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# UTF-8 that was read as Windows-1252 and saved so: an accented letter, a mark of typography, two letters of Cyrillic,
# Greek or Arabic.
_FOLLOWS = "[{}]".format("".join(re.escape(bytes([code]).decode("cp1252", "ignore")) for code in range(0x80, 0xC0)))
_TWICE_ENCODED = re.compile(f"Ã{_FOLLOWS}|â{_FOLLOWS}{{2}}|(?:[ÐÑÎÏØÙ]{_FOLLOWS}){{2}}")
_ADVICE = "Save the file as UTF-8, or rewrite it with `iconv -f ITS_ENCODING -t UTF-8`."


def read_text(path: str | Path, old: str = WESTERN) -> str:
    r"""
    The text of a file. The encoding is that of its byte-order mark; UTF-16 or UTF-32 without a mark where the zero
    bytes of Western text say so; else UTF-8; else `old`, as old copies of corpora are, with a warning that shows an
    example, since other code pages would pass for it. In UTF-8, C1 controls are what Windows-1252 has in their place.
    The mark is not part of the text.

    Args:
        path: the file.
        old: `WESTERN` or `CHINESE`.

    Raises:
        InputError: naming the file, if it is not text in any of these, or mixes two of them.
    """
    path = Path(path)
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None) or _by_zeros(content)
    if encoding is not None:
        try:
            return mend_controls(content.decode(encoding).removeprefix("\ufeff"))
        except UnicodeDecodeError as error:
            where = f"byte {error.start:,} is not valid {encoding.upper().removesuffix('-LE').removesuffix('-BE')}"
            raise InputError(f"'{path}' is not text: {where}, in which the file begins. {_ADVICE}") from None
    try:
        text = mend_controls(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _in_old_encoding(path, content, old, error)
    if found := _TWICE_ENCODED.search(text):
        logger.warning(
            "'%s' holds characters that were damaged before, as when UTF-8 is opened as Windows-1252 and saved. They "
            "stay as they are; export the file again, or mend lines such as this: %s",
            path,
            short(text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0], 200),
        )
    return text


def split_lines(text: str) -> list[str]:
    """Split text at CR, LF or CRLF only; `str.splitlines` also splits at characters that occur within a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def text_of_name(name: str | os.PathLike) -> str:
    """
    A file name or command-line argument as text that can be stored: bytes that are not valid UTF-8 become U+FFFD.
    """
    return os.fsencode(name).decode("utf-8", "replace")


def mend_controls(text: str) -> str:
    """
    Replace C1 controls, which no text contains, by the Windows-1252 characters of their codes: such text was once
    decoded as Latin-1.
    """
    return text.translate(_C1) if _CONTROLS.search(text) else text


def _by_zeros(content: bytes) -> str | None:
    start = content[:_LOOKED_AT]
    if b"\0" in start:
        for encoding, (width, zeros, other) in _ZEROS.items():
            share = [start[place::width].count(0) / max(1, len(start[place::width])) for place in range(width)]
            if min(share[place] for place in zeros) > max(4 * share[other], 0.9 if width == 4 else 0.2):
                return encoding
    return None


def _in_old_encoding(path: Path, content: bytes, old: str, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    # Characters of several bytes that are valid UTF-8 hardly arise by chance in another encoding.
    valid = len(_NOT_ASCII.findall(content.decode("utf-8", "ignore")))
    if valid > content.decode("utf-8", "replace").count("\ufffd") and b"\0" not in content:
        raise InputError(
            f"'{path}', line {line}: byte 0x{content[error.start]:02x} is not valid UTF-8, in which the rest of the "
            f"file is written: it mixes two encodings. {_ADVICE}"
        )
    try:
        if b"\0" in content:  # most binary files would otherwise pass
            raise error
        text = content.decode(old)
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is text neither in UTF-8 nor in {_OLD[old]}. {_ADVICE}") from None
    example = next(line for line in split_lines(text) if _NOT_ASCII.search(line))
    logger.warning(
        "'%s' is not valid UTF-8 and is read as %s. If this line is wrong, the file is in another encoding; save it "
        "as UTF-8: %s",
        *(path, _OLD[old], short(example, 200)),
    )
    return text
