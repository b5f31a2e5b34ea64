"""
Read frames of a video as RGB: MP4, MOV, MKV, WebM, AVI, MPEG-TS and whatever else FFmpeg reads, with PyAV, the extra
`av`.

Frames are found by seeking, so neither time nor memory depend on how long the file is, or on where in it a turn lies.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, BinaryIO

import numpy as np

from ..base.errors import InputError, short
from ..base.interrupts import delayed_interrupts
from .media_files import is_file_like, opened
from .video_frames import MAX_PIXELS, FramesOfTrack, UnusableVideoError, write_h264

NUM_FRAMES = 8

_MOST_FRAMES = 4096
# What could read other files, or text as if it were a picture.
_NOT_VIDEO = {
    "concat",
    "dash",
    "hls",
    "image2",
    "imf",
    "lavfi",
    "rtsp",
    "sdp",
    "tty",
    "ffmetadata",
    "webm_dash_manifest",
}


class VideoError(InputError):
    """Video that cannot be used: missing, empty, damaged, without picture, or too short. Messages name the file."""


def load_frames(
    video: Any,
    start: float | None = None,
    end: float | None = None,
    num_frames: int = NUM_FRAMES,
    name: str | None = None,
) -> np.ndarray:
    r"""
    Frames at the centres of `num_frames` equal parts of a stretch of a video: at each time, the frame that a player
    shows. They are upright: rotated and mirrored as the file says.

    Args:
        video: a file's path or its content, an open binary file, or what `datasets` stores for a video, a dictionary
            `{"path": ..., "bytes": ...}`.
        start, end: the stretch, in seconds from the beginning of the file (its sound counts from there, too); the
            whole picture by default.
        num_frames: number of frames, K. A stretch with fewer gives the same frame several times.
        name: how messages refer to a video that is not a path.

    Returns:
        (K, H, W, 3) uint8. Transparent parts are black. If the picture changes its size, frames have that of the
        first.

    Raises:
        VideoError: a `ValueError` that names the file and what is wrong with it: it has no picture (a cover picture
            does not count), is damaged or cut off in the stretch, ends more than half a second before `end`, or has
            frames of more than 35 megapixels.
        InputError: if the arguments are not valid, or PyAV is not installed.
    """
    _check_arguments(start, end, num_frames)
    with open_video(video, name) as opened_video:
        return opened_video.frames(start, end, num_frames)


def encode_clip(video: Any, start: float | None = None, end: float | None = None, name: str | None = None) -> bytes:
    r"""
    The picture of a stretch of a video as a file of its own: MP4 with H.264 and without sound. Frames are upright and
    keep their times, counted from `start`; sizes are even.

    Args:
        video, start, end, name: as in [`load_frames`].

    Raises:
        VideoError: as [`load_frames`].
    """
    _check_arguments(start, end)
    with open_video(video, name) as opened_video:
        return opened_video.clip(start, end)


def has_picture(video: Any, name: str | None = None) -> bool:
    r"""
    Whether a media file has a picture that moves, rather than none or a cover alone. Its frames are not decoded.

    Raises:
        VideoError: if it is missing, empty, or not a media file.
    """
    with open_video(video, name) as opened_video:
        return opened_video.has_picture


def has_sound(video: Any, name: str | None = None) -> bool:
    r"""
    Whether a media file has an audio track, which [`load_audio`] reads from the same source.

    Raises:
        VideoError: if it is missing, empty, or not a media file.
    """
    with open_video(video, name) as opened_video:
        return opened_video.has_sound


class OpenVideo:
    r"""
    A media file while it is open, for several questions about it ([`open_video`]). Its methods raise what
    [`load_frames`] does.

    Args:
        av: the module, which is optional.
        container: the opened file.
        label: what messages call it.
    """

    def __init__(self, av: Any, container: Any, label: str):
        self._av, self._container, self._label = av, container, label

    @property
    def has_sound(self) -> bool:
        return bool(self._container.streams.audio)

    @property
    def has_picture(self) -> bool:
        """Whether it has a picture that moves, rather than none or a cover alone."""
        return bool(self._picture_tracks())

    def frames(self, start: float | None, end: float | None, num_frames: int) -> np.ndarray:
        """As [`load_frames`]; the arguments must be valid."""
        with self._naming():
            return self._frames.at_centres(start, end, num_frames)

    def clip(self, start: float | None, end: float | None) -> bytes:
        """As [`encode_clip`]; the arguments must be valid."""
        with self._naming():
            begin, until = start or 0.0, self._frames.length() if end is None else end
            return write_h264(self._av, self._frames.between(begin, until), begin, until)

    def picture_seconds(self) -> float:
        """Where the picture ends, in seconds from the beginning of the file, as the file says."""
        with self._naming():
            return self._frames.length()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with delayed_interrupts():
                yield
        except UnusableVideoError as error:
            raise VideoError(f"{self._label} {error}") from error

    @functools.cached_property
    def _frames(self) -> FramesOfTrack:
        tracks = self._picture_tracks()
        if not tracks:
            cover = " but a cover picture" if self._container.streams.video else ""
            raise UnusableVideoError(f"has no picture{cover}")
        best = self._container.streams.best("video")  # as players do: the track marked as default
        return FramesOfTrack(self._av, self._container, best if best in tracks else tracks[0])

    def _picture_tracks(self) -> list[Any]:
        cover = self._av.stream.Disposition.attached_pic
        return [track for track in self._container.streams.video if cover not in track.disposition]


def _check_arguments(start: float | None, end: float | None, num_frames: int = 1):
    for given in (start, end):
        if given is not None and (not isinstance(given, Real) or isinstance(given, bool)):
            raise InputError(f"start and end must be numbers of seconds, got {short(repr(given), 80)}")
    if (start is not None and not 0 <= start < np.inf) or (end is not None and not (start or 0.0) < end < np.inf):
        raise InputError(f"Expected 0 <= start < end in seconds, got start={start}, end={end}")
    if not isinstance(num_frames, int) or isinstance(num_frames, bool) or not 1 <= num_frames <= _MOST_FRAMES:
        raise InputError(f"num_frames must be a whole number from 1 to {_MOST_FRAMES}, got {num_frames!r}")


def _resolve(video: Any, name: str | None) -> tuple[Any, str | None]:
    if isinstance(video, Mapping):
        if unknown := [key for key in video if key not in ("path", "bytes")]:
            raise InputError(
                f"A dictionary of video has the unknown key {short(repr(unknown[0]), 80)}; expected path, bytes"
            )
        path, content = video.get("path"), video.get("bytes")
        if content is not None and not isinstance(content, bytes | bytearray | memoryview):
            raise InputError(f"'bytes' of a dictionary of video must be bytes, got {type(content).__name__}")
        if content is None and not isinstance(path, str | os.PathLike):
            raise InputError(f"'path' of a dictionary of video must be a path, got {type(path).__name__}")
        video, name = (path, name) if content is None else (content, name or path)
    if not is_file_like(video):
        hint = ". Cast the column to datasets.Video(decode=False)" if hasattr(video, "get_frames_played_at") else ""
        raise InputError(
            "Expected a video as a path, bytes, a binary file or a dictionary of path and bytes; got "
            f"{type(video).__name__}{hint}"
        )
    return video, name


@contextlib.contextmanager
def open_video(video: Any, name: str | None = None) -> Iterator[OpenVideo]:
    r"""
    Open a media file once for several questions about it.

    Args:
        video, name: as in [`load_frames`].

    Raises:
        VideoError: if it is missing, empty, or not a media file.
    """
    video, name = _resolve(video, name)
    try:
        import av
    except ImportError:
        raise VideoError("Video is read with PyAV, which is not installed: pip install av") from None
    with contextlib.ExitStack() as stack:
        file, label = stack.enter_context(opened(video, name, "video", VideoError))
        # A playlist or manifest must not make the decoder open other files or addresses.
        options = {"protocol_whitelist": "", "max_pixels": str(MAX_PIXELS)}
        try:
            with delayed_interrupts():
                container = stack.enter_context(av.open(file, "r", options=options, metadata_errors="replace"))
        except Exception as error:  # errors of FFmpeg, and of PyAV about what FFmpeg found
            if isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError):
                raise
            raise VideoError(f"{label} is damaged, or not a video that PyAV can read: {short(error)}") from error
        if set(container.format.name.split(",")) & _NOT_VIDEO:
            raise VideoError(f"{label} is not a video: FFmpeg takes it for '{container.format.name}'")
        if container.format.name == "webp_pipe" and _is_animated(file):
            raise VideoError(f"{label} is an animated WebP, which FFmpeg does not read; convert it to GIF or MP4")
        yield OpenVideo(av, container, label)


def _is_animated(webp: BinaryIO) -> bool:
    place = webp.tell()
    webp.seek(12)
    header = webp.read(9)
    webp.seek(place)
    return header.startswith(b"VP8X") and bool(header[8] & 2)
