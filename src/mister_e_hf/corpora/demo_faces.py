"""A generated face whose look follows the emotion, and clips of it with the sound of a turn.

| look | eyes | mouth |
|---|---|---|
| plain | open | a line |
| own | narrow | drawn down at both ends |
| shared | wide | round and open |

The face moves a little. Its colours and place differ from speaker to speaker and have nothing to do with the emotion.

Letters: K frames of P x P pixels, S samples of 1/16000 second.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..base.errors import MissingLibraryError
from ..media.audio import SAMPLING_RATE

PIXELS = 32
FRAMES_PER_SECOND = 8
_AUDIO_FRAME = 1024  # samples in a frame of AAC
_ROWS, _COLUMNS = np.mgrid[0:PIXELS, 0:PIXELS]
# By look: half the height of an eye; half the width, half the height and the bend of the mouth, in pixels.
_LOOKS = ((1.5, 5.0, 0.8, 0.0), (0.6, 5.0, 0.8, 3.0), (2.8, 2.6, 3.4, 0.0))


@dataclass(frozen=True)
class Speaker:
    """Colours (3,) of the face and of what is behind it, and the place (2,) of its centre in pixels."""

    skin: np.ndarray
    background: np.ndarray
    centre: np.ndarray


def draw_speaker(generator: np.random.Generator) -> Speaker:
    """Draw a speaker's colours and place."""
    return Speaker(
        generator.uniform([150, 100, 80], [240, 200, 180]),
        generator.uniform(20, 140, size=3),
        PIXELS / 2 + generator.uniform(-2, 2, size=2),
    )


def draw_frames(generator: np.random.Generator, speaker: Speaker, look: int, count: int) -> np.ndarray:
    """Draw K frames (K, P, P, 3), uint8, of a speaker with a look."""
    eye, width, height, bend = _LOOKS[look]
    frames = np.empty((count, PIXELS, PIXELS, 3))
    for frame in frames:
        row, column = speaker.centre + generator.uniform(-1, 1, size=2)
        down, right = _ROWS - row, _COLUMNS - column
        frame[:] = speaker.background
        frame[(down / 13) ** 2 + (right / 10) ** 2 < 1] = speaker.skin
        eyes = (((down + 4) / eye) ** 2 + ((np.abs(right) - 4) / 2) ** 2) < 1
        mouth = ((down - 6 - bend * (right / width) ** 2) / height) ** 2 + (right / width) ** 2 < 1
        frame[eyes | mouth] = 0.2 * speaker.skin
    return (frames + generator.normal(scale=4, size=frames.shape)).clip(0, 255).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, samples: np.ndarray | None = None):
    r"""
    Write an MP4 of frames (K, P, P, 3) at 8 a second and of sound (S,), if there is any.

    Raises:
        ImportError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingLibraryError("Video needs PyAV: pip install 'mister-e-hf[av]'") from error

    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND)
        picture.width = picture.height = PIXELS
        picture.pix_fmt, picture.bit_rate = "yuv420p", 400_000
        sound = None if samples is None else container.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode())
        if samples is not None and sound is not None:
            for start in range(0, len(samples), _AUDIO_FRAME):
                block = samples[None, start : start + _AUDIO_FRAME].astype(np.float32)
                heard = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = SAMPLING_RATE, start
                heard.time_base = Fraction(1, SAMPLING_RATE)
                container.mux(sound.encode(heard))
            container.mux(sound.encode())
