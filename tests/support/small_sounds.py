"""Short recordings in every format, made on the spot."""

import io
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr


def sine(seconds: float = 1.0, rate: int = 16_000, frequency: float = 440.0, peak: float = 0.5) -> np.ndarray:
    """(1, S) float32"""
    times = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * frequency * times)).astype(np.float32)[None]


def noise(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """(channels, S) float32, below 1 kHz, so that every coder keeps it; no two stretches are alike."""
    generator = np.random.default_rng(seed)
    coarse = 0.15 * generator.standard_normal((math.ceil(seconds * 2000), channels))
    return np.ascontiguousarray(soxr.resample(coarse, 2000, rate)[: round(seconds * rate)].T, dtype=np.float32)


def written(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = None) -> bytes:
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", rate, len(samples), subtype, format=form) as file:
        for begin in range(0, samples.shape[1], 1 << 15):  # libsndfile breaks down over much Vorbis at once
            file.write(samples.T[begin : begin + (1 << 15)])
    return target.getvalue()


def muxed(
    samples: np.ndarray,
    rate: int = 16_000,
    form: str = "mp4",
    codec: str = "aac",
    video: bool = False,
    late: float = 0.0,
    layout: str | None = None,
    title: str | None = None,
    file: io.IOBase | str | None = None,
    stream_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A container written with PyAV, whose audio begins `late` seconds after the picture."""
    target = io.BytesIO() if file is None else file
    layout = layout or ("mono" if len(samples) == 1 else "stereo")
    with av.open(target, "w", format=form, options=options) as container:
        if title:
            container.metadata["title"] = title
        if video:
            picture = container.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 16
            picture.pix_fmt = "yuv420p"
        track = container.add_stream(codec, rate=rate, layout=layout, options=stream_options or {})
        if video:
            for number in range(round((samples.shape[1] / rate + late) * 5)):
                frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 9 * number % 256, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 5)
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        kind = track.codec_context.format
        values = samples
        if kind.name == "u8":
            values = np.round(128 + samples * 127).astype(np.uint8)
        elif kind.name.startswith("s"):
            values = np.round(samples * (2.0 ** (kind.bits - 1) - 1)).astype(f"int{kind.bits}")
        step = track.codec_context.frame_size or 8192
        for begin in range(0, samples.shape[1], step):
            block = values[:, begin : begin + step]
            block = block if kind.is_planar else block.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=kind.name, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin + round(late * rate), Fraction(1, rate)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return b"" if file is not None else target.getvalue()


class Pipe(io.RawIOBase):
    """A file that can only be written on and on."""

    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, part):
        self.content += part
        return len(part)


def indexed_first(samples: np.ndarray, rate: int = 16_000, video: bool = False) -> bytes:
    """MP4 as it is made for the web, which takes a file with a name."""
    with tempfile.TemporaryDirectory() as folder:
        muxed(samples, rate, video=video, file=f"{folder}/a.mp4", movflags="faststart")
        return Path(folder, "a.mp4").read_bytes()


def piped(samples: np.ndarray, rate: int, form: str, codec: str) -> bytes:
    pipe = Pipe()
    muxed(samples, rate, form, codec, file=pipe)
    return bytes(pipe.content)


def spectrum_peak(samples: np.ndarray) -> tuple[float, float]:
    """Frequency in Hz and amplitude of the strongest sine."""
    window = np.hanning(len(samples))
    amplitudes = np.abs(np.fft.rfft(samples * window)) * 2 / window.sum()
    return amplitudes.argmax() * 16_000 / len(samples), amplitudes.max()
