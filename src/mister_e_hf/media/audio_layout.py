"""
Check the structure of an audio file: is it complete, and is it everything that the file holds?

Decoders take a truncated file for a shorter one and stop after the first of several files; neither would be noticed.
"""

import io
import math
import re
from typing import BinaryIO, Literal, NamedTuple, cast

from ..base.errors import short

_TOLERANCE = 0.5  # seconds that may be missing at the end, or follow it
NO_END = 2**63 - 1  # number of samples, libsndfile's value for unknown
_HEADER_BYTES = 1024  # at most, of a file without samples and tags
_JUNK = 8192  # bytes that may follow at most; zeros may be half a second
_SECOND = "holds several files, one after another; the next begins at byte {}. Split them, or decode them to one"


class Layout(NamedTuple):
    """Structure of a file: what is wrong with it, what is doubtful, and how many streams run in parallel."""

    problem: str | None = None
    remark: str | None = None
    streams: int = 1


class _Chunks(NamedTuple):
    first: int  # where the first chunk begins
    name: int  # bytes of its name
    size: int  # bytes of its size
    order: Literal["little", "big"]
    pad: int
    data: bytes  # the name of the one with the samples
    whole: bool = False  # whether the size counts name and size, too


_RIFF = _Chunks(12, 4, 4, "little", 2, b"data")
_CHUNKED = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _RIFF._replace(order="big"),
    b"FORM": _Chunks(12, 4, 4, "big", 2, b"SSND"),
    b"riff": _Chunks(40, 16, 8, "little", 8, b"data", True),  # Sony Wave64
    b"caff": _Chunks(8, 4, 8, "big", 1, b"data"),
}
_MOST = 100_000  # chunks or boxes that are looked at
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def bytes_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Read bytes at a position; the file position changes."""
    file.seek(offset)
    return file.read(count)


def after_tags(file: BinaryIO) -> int:
    """Position after the ID3v2 tags at the beginning of a file."""
    position = 0
    for _ in range(16):
        tag = bytes_at(file, position, 10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        position += 10 + sum((byte & 127) << 7 * power for power, byte in enumerate(tag[:5:-1]))
    return position


def says_length(file: BinaryIO, size: int, opened) -> bool:
    """
    Whether a file's header states its length. Writers to a pipe cannot go back to fill it in: libsndfile reads nothing
    of a WAV file with length 0, does not find the end of a FLAC file, and guesses the length of an MP3 file from its
    first frame.
    """
    if not opened.subtype.startswith("MPEG"):
        return opened.frames != NO_END and (opened.frames > 0 or size <= _HEADER_BYTES)
    position = file.tell()
    first_frame = bytes_at(file, after_tags(file), _HEADER_BYTES)
    file.seek(position)
    return b"Xing" in first_frame or b"Info" in first_frame


def text_at_the_start(file: BinaryIO) -> str:
    """
    For the end of a message: how a text file begins, such as a web page in place of a download; empty for other files.
    """
    start = bytes_at(file, 0, _HEADER_BYTES)
    if len(start) < 16 or not start.isascii() or re.search(rb"[^\t\r\n -~]", start):
        return ""
    begins = short(start.decode("ascii"), 60)
    advice = "; fetch the file that it refers to with `git lfs pull`" if "git-lfs" in begins else ""
    return f"; it is text, which begins with {begins!r}{advice}"


class Behind(io.RawIOBase):
    """A file without its first bytes."""

    def __init__(self, file: BinaryIO, begin: int):
        self._file, self._begin = file, begin
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset + self._begin * (whence == io.SEEK_SET), whence) - self._begin

    def readinto(self, buffer) -> int:
        return cast(io.BufferedIOBase, self._file).readinto(buffer)  # BinaryIO does not list it


def without_tags(file: BinaryIO) -> BinaryIO:
    """The file without leading tags that a decoder would take for header or samples."""
    begin = after_tags(file)
    magic = bytes_at(file, begin, 4)
    file.seek(0)
    # Decoders of MP3 and FLAC know such tags.
    tagged = begin and (magic in _CHUNKED or magic in (b"OggS", b".snd"))
    return cast(BinaryIO, Behind(file, begin)) if tagged else file


def examine(file: BinaryIO, size: int, seconds: float, to_end: bool = True) -> Layout:
    r"""
    Args:
        file: its position is kept.
        size: of the file, in bytes.
        seconds: that a decoder finds in it; half a second may lack or follow without a word.
        to_end: whether it is read to its end; then every page of an Ogg file is looked at.
    """
    position = file.tell()
    try:
        begin = after_tags(file)
        head = bytes_at(file, begin, 12)
        whole = _File(file, size, seconds, begin)
        if head[:4] in _CHUNKED:
            return _examine_chunks(whole, head)
        if head[:4] == b"OggS":
            return _examine_pages(whole, to_end)
        if head[:4] == _EBML:
            return _examine_ebml(whole)
        if head[:8] == b"NIST_1A\n":
            return _examine_nist(whole)
        if head[4:8] == b"ftyp":
            return _examine_boxes(whole)
        if head[:4] == b".snd":
            offset, count = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
            return Layout(None if count >= 0xFFFFF000 else whole.ends_at(begin + offset + count, b".snd"))
        length = _length_of_mp3(whole)
        return Layout(whole.ends_at(begin + length) if length and begin + length < size else None)
    finally:
        file.seek(position)


class _File(NamedTuple):
    file: BinaryIO
    size: int
    seconds: float
    begin: int

    def at(self, offset: int, count: int) -> bytes:
        return bytes_at(self.file, offset, count) if 0 <= offset < self.size else b""

    def ends_at(self, end: int, magic: bytes | None = None) -> str | None:
        """What is wrong if the structure ends at this byte."""
        tolerance = _TOLERANCE * min(self.size, end) / self.seconds if self.seconds else 0
        if end - self.size > tolerance:
            return f"is cut off: its header promises {end} bytes, and it has {self.size}"
        following = self.at(end, 12)
        if magic and following.startswith(magic):
            return _SECOND.format(end)
        rest = self.size - end
        padding = rest <= tolerance and not self.at(end, min(rest, 1 << 20)).strip(b"\0")
        if rest > min(tolerance, _JUNK) and not padding and not following.startswith(_TAGS):
            return (
                f"contradicts its header, by which it ends at byte {end}; {rest} bytes follow. Either its size "
                "wrapped, as over "
                "4 GiB, or was never filled in, or another file follows: write it again with a true header"
            )
        return None


def _examine_chunks(whole: _File, head: bytes) -> Layout:
    form, magic, film = _CHUNKED[head[:4]], head[:4], head[8:12] == b"AVI "
    position, found, remark, long_size = whole.begin + form.first, False, None, None
    for _ in range(_MOST):
        start = whole.at(position, form.name + form.size)
        name = start[:4]
        second = name == magic and not (film and whole.at(position + 8, 4) == b"AVIX")
        if second or not _is_name(name) or len(start) < form.name + form.size:
            break
        count = int.from_bytes(start[form.name :], form.order)
        content = position + form.name + form.size
        if name == b"ds64":
            long_size = int.from_bytes(whole.at(content + 8, 8), "little")
        elif name == b"fmt " and head[8:12] == b"WAVE":
            problem, remark = _check_format(whole.at(content, 40), form.order)
            if problem:
                return Layout(problem)
        samples = name == form.data or film and name == b"LIST"
        if samples and count == 0xFFFFFFFF and long_size is not None:
            count = long_size
        elif samples and _is_unknown(count, form):  # written to a pipe: samples up to the end
            return Layout(None, remark)
        found |= samples
        end = content + count - (form.name + form.size) * form.whole
        if samples and form.whole and whole.size - end > form.pad:
            return Layout("holds something behind its samples, which decoders of Wave64 take for samples; remove it")
        if end > whole.size or end <= position:
            position = end if samples else whole.size
            break
        position = end + (whole.begin - end) % form.pad
        if position > end and whole.at(end, 1) != b"\0" and _is_name(whole.at(end, 4)):
            position = end  # written without padding
    if not found or film and position <= whole.size and whole.at(position, 4) != magic:
        return Layout(None, remark)
    return Layout(whole.ends_at(position, magic), remark)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _is_unknown(count: int, form: _Chunks) -> bool:
    if form.size == 8:
        return count >= 2**63 - 1
    return count == 0 or count >= 0xFFFFF000 or 0x7FFFF000 <= count <= 0x80000000


def _check_format(fields: bytes, order: Literal["little", "big"]) -> tuple[str | None, str | None]:
    """Check the redundant fields of a WAV header with linear samples; returns a problem and a remark."""
    kind, channels, rate, per_second, frame, bits = (
        int.from_bytes(fields[a:b], order) for a, b in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    if kind == 0xFFFE:
        kind = int.from_bytes(fields[24:26], order)
    said = (
        f"has a header that contradicts itself: {channels} channels of {bits} bits, {frame} bytes a frame, {rate} "
        f"frames and {per_second} bytes a second"
    )
    if kind not in (1, 3) or (channels and bits and frame == channels * -(-bits // 8) and per_second == rate * frame):
        return None, None
    if channels and bits and frame == channels * -(-bits // 8):
        return None, f"{said}; the last is not used"
    return said, None


def _examine_pages(whole: _File, to_end: bool) -> Layout:
    """Examine Ogg: pages of one or more streams, each with a serial number."""
    streams: dict[int, int] = {}  # number of the last page by serial number
    position, beginning, page, begin = whole.begin, True, b"", 0
    while position < whole.size:
        following = whole.at(position, 27 + 255)
        if len(following) < 27 or following[:4] != b"OggS":
            break
        page, begin = following, position
        serial, number = int.from_bytes(page[14:18], "little"), int.from_bytes(page[18:22], "little")
        starts = page[5] & 2
        if (starts and not beginning) or (not starts and serial not in streams):
            return Layout(_SECOND.format(position))
        if not starts and number > streams[serial] + 1:
            return Layout(f"is corrupt: {number - streams[serial] - 1} pages before byte {position} are missing")
        streams[serial] = number
        beginning = bool(starts)
        if not beginning and not to_end:
            tail = whole.at(max(whole.begin, whole.size - 70_000), 70_000)
            last = tail[tail.rfind(b"OggS\0") :][14:18]
            other = len(last) == 4 and int.from_bytes(last, "little") not in streams
            return Layout(_SECOND.format("later") if other else None, streams=len(streams))
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if position > whole.size:
        return Layout(f"is cut off: its page at byte {begin} is not whole")
    if b"OggS\0" in whole.at(position, 70_000):
        return Layout(f"is corrupt: byte {position} does not begin a page")
    remark = None if not page or page[5] & 4 else "has no mark of its end; it may be cut off"
    return Layout(whole.ends_at(position), remark, len(streams))


def _examine_nist(whole: _File) -> Layout:
    """Examine SPHERE, a format of speech corpora: a header of lines such as `sample_count -i 48000`."""
    text = whole.at(whole.begin, 1024)
    fields = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d{1,12})\n", text)}
    size = re.match(rb"NIST_1A\n\s*(\d{1,9})\n", text)
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if size is None or not fields.keys() >= set(names):
        return Layout()
    return Layout(whole.ends_at(whole.begin + int(size[1]) + math.prod(fields[name] for name in names), b"NIST_1A"))


def _examine_boxes(whole: _File) -> Layout:
    """Examine MP4: a second `ftyp` or `moov` begins another file."""
    position, seen = whole.begin, set()
    for _ in range(_MOST):
        start = whole.at(position, 16)
        count, name = int.from_bytes(start[:4], "big"), start[4:8]
        if name in (b"ftyp", b"moov") and name in seen:
            return Layout(_SECOND.format(position))
        seen.add(name)
        count = int.from_bytes(start[8:16], "big") if count == 1 else count
        if count < 8:
            break
        position += count
    return Layout()


def _examine_ebml(whole: _File) -> Layout:
    """Examine Matroska and WebM: a header and a segment that may state its length."""
    position = whole.begin
    for number in range(_MOST):
        start = whole.at(position, 12)
        if number and start[:4] == _EBML:
            return Layout(_SECOND.format(position))
        if start[:4] not in (_EBML, _SEGMENT) or len(start) < 12 or not start[4]:
            break
        width = 9 - start[4].bit_length()
        count = int.from_bytes(start[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if count == (1 << 7 * width) - 1:  # written to a pipe
            break
        position += 4 + width + count
    return Layout(whole.ends_at(position) if position > whole.size else None)


def _length_of_mp3(whole: _File) -> int | None:
    """Length in bytes according to the first frame of an MP3 file."""
    frame = whole.at(whole.begin, 1024)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 16:
        return None
    flags = frame[at + 7]
    place = at + 8 + 4 * (flags & 1)
    return int.from_bytes(frame[place : place + 4], "big") if flags & 2 else None


def rest_behind(file: BinaryIO, size: int, seconds: float) -> str | None:
    """What is wrong with the bytes after the last sample that the header of a FLAC or MP3 file counts."""
    reached = file.tell()
    begin = after_tags(file)
    whole = _File(file, size, seconds, begin)
    if count := _length_of_mp3(whole):
        left = min(size, begin + count) - reached
        return (
            f"contradicts its header, which counts too few frames: {left} bytes of them are left"
            if left > 2048
            else None
        )
    position = max(begin + 4, reached - (1 << 16))
    while part := whole.at(position, 1 << 20):
        if (at := part.find(b"fLaC\0\0\0\x22")) >= 0:
            return _SECOND.format(position + at)
        position += max(len(part) - 7, 1)
    return whole.ends_at(reached) if reached < size else None
