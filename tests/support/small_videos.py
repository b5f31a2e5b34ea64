"""Clips that say in each frame which one it is, in any container, with a tone if asked."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BITS = 10  # of a frame's number, as vertical bars, white or black
RATE = 16_000
# Frames are written in this order of codecs: the first of a container is its usual one.
CONTAINERS = {
    "mp4": ("libx264", "mpeg4"),
    "mov": ("mpeg4", "qtrle"),
    "matroska": ("libx264", "ffv1"),
    "webm": ("libvpx-vp9", "libvpx"),
    "avi": ("mpeg4", "libx264", "mjpeg"),
    "mpegts": ("libx264", "mpeg2video"),
}
_PIXELS = {"mjpeg": "yuvj420p", "qtrle": "rgb24", "ffv1": "yuv444p"}
_WITHOUT_B_FRAMES = ("mjpeg", "qtrle", "ffv1", "libvpx", "libvpx-vp9")


def numbered(number: int, size: tuple[int, int] = (80, 48)) -> np.ndarray:
    """The picture of a frame's number, (H, W, 3) uint8."""
    width, height = size
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for bit in range(BITS):
        picture[:, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number that a picture of [`numbered`] holds."""
    height, width = picture.shape[:2]
    row = picture[height // 2].mean(axis=-1)
    return sum(int(row[(2 * bit + 1) * width // (2 * BITS)] > 127) << bit for bit in range(BITS))


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """A picture of one colour."""
    return np.full((size[1], size[0], 3), colour, dtype=np.uint8)


def write_clip(
    target: str | Path | BinaryIO,
    pictures: Sequence[np.ndarray],
    times: Sequence[Fraction] | None = None,
    *,
    fps: int | Fraction = 25,
    container: str = "mp4",
    codec: str | None = None,
    pixels: str | None = None,
    keyframes: int = 12,
    sound: np.ndarray | None = None,
    rotation: int = 0,
    mirror: bool = False,
    options: dict[str, dict[str, str]] | None = None,
):
    r"""
    Args:
        target: a path or a file that can seek.
        pictures: frames as (H, W, 3) uint8, or (H, W, 4) with transparency.
        times: of the frames in seconds; by default `fps` a second.
        keyframes: frames from one keyframe to the next.
        sound: samples (S,) at 16 kHz from -1 to 1.
        rotation, mirror: how a player is to turn the frames.
        options: of the `container` and the `codec`.
    """
    import av

    codec = codec or CONTAINERS[container][0]
    pixels = pixels or _PIXELS.get(codec, "yuv420p")
    base = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
    times = [number * base for number in range(len(pictures))] if times is None else times
    options = options or {}
    target = str(target) if isinstance(target, str | Path) else target
    with av.open(target, "w", format=container, options=options.get("container", {})) as file:
        track: Any = file.add_stream(
            codec, rate=fps if base != Fraction(1, 1000) else 30, options=options.get("codec", {})
        )
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt, track.codec_context.time_base = pixels, base
        track.codec_context.gop_size = keyframes
        if codec not in _WITHOUT_B_FRAMES:
            track.codec_context.max_b_frames = 2
        if rotation or mirror:
            track.set_display_rotation(rotation, hflip=mirror)
        voice: Any = None
        if sound is not None:
            voice = file.add_stream(
                "pcm_s16le"
                if container in ("avi", "mov", "matroska")
                else "libopus"
                if container == "webm"
                else "aac",
                rate=48_000 if container == "webm" else RATE,
            )
            voice.layout = "mono"
        for picture, time in zip(pictures, times, strict=True):
            kind = "rgba" if picture.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), kind).reformat(format=pixels)
            frame.pts, frame.time_base = round(time / base), base
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.round(sound * 32767).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            resampler = av.AudioResampler(
                voice.codec_context.format,
                "mono",
                voice.codec_context.sample_rate,
                frame_size=voice.codec_context.frame_size or None,
            )
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                file.mux(voice.encode(part))
            file.mux(voice.encode(None))


def clip(count: int = 100, **settings) -> bytes:
    """The content of a clip of numbered frames."""
    file = io.BytesIO()
    write_clip(file, [numbered(number) for number in range(count)], **settings)
    return file.getvalue()
