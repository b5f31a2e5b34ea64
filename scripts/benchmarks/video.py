"""
Time to read the frames of a turn late in a long video against one early in it, and memory against the file's length.

    python scripts/benchmarks/video.py --hours 2.1
"""

import argparse
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mister_e_hf.media.video import load_frames

CONTAINERS = {
    "mp4": ("libx264", "mp4"),
    "mkv": ("libx264", "matroska"),
    "webm": ("libvpx", "webm"),
    "avi": ("mpeg4", "avi"),
    "ts": ("libx264", "mpegts"),
}
_FAST = {"libx264": {"preset": "ultrafast"}, "libvpx": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}}
SECONDS, FRAMES = 4.0, 8  # of a turn
_MEMORY = """
import resource, sys
from mister_e_hf.media.video import load_frames
load_frames(sys.argv[1], float(sys.argv[2]), float(sys.argv[2]) + 4.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write(path: Path, codec: str, container: str, seconds: int, fps: int):
    """A moving picture of small frames; a keyframe every ten seconds."""
    gradient = np.linspace(0, 255, 320).astype(np.uint8)
    with av.open(str(path), "w", format=container) as file:
        track = file.add_stream(codec, rate=fps, options=_FAST.get(codec, {}))
        track.width, track.height, track.pix_fmt = 160, 120, "yuv420p"
        track.codec_context.gop_size, track.codec_context.time_base = 10 * fps, Fraction(1, fps)
        for number in range(seconds * fps):
            begin = 2 * number % 160
            picture = np.repeat(gradient[None, begin : begin + 160, None], 120, axis=0).repeat(3, axis=2)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            file.mux(track.encode(frame))
        file.mux(track.encode(None))


def seconds_of(path: Path, start: float, times: int = 15) -> float:
    """The median time of reading a turn."""
    spent = []
    for _ in range(times):
        before = time.perf_counter()
        load_frames(path, start, start + SECONDS, FRAMES)
        spent.append(time.perf_counter() - before)
    return float(np.median(spent))


def megabytes_of(path: Path, start: float) -> int:
    """The most memory that a process takes which reads one turn."""
    command = [sys.executable, "-c", _MEMORY, str(path), str(start)]
    return int(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.1, help="length of the long file")
    parser.add_argument("--fps", type=int, default=5)
    parser.add_argument("--containers", nargs="+", choices=CONTAINERS, default=list(CONTAINERS))
    arguments = parser.parse_args()
    length, late = round(3600 * arguments.hours), 3600 * arguments.hours - 360
    print(f"a turn of {SECONDS:g} s, {FRAMES} frames, from 160 x 120 at {arguments.fps} fps; file of {length} s")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.containers:
            short, long = (Path(folder) / f"{size}.{name}" for size in ("short", "long"))
            write(short, *CONTAINERS[name], 60, arguments.fps)
            write(long, *CONTAINERS[name], length, arguments.fps)
            early, end = seconds_of(long, 10.0), seconds_of(long, late)
            little, much = megabytes_of(short, 10.0), megabytes_of(long, late)
            print(
                f"{name:5} {long.stat().st_size / 1e6:6.1f} MB: {1e3 * early:6.1f} ms at 0:10, {1e3 * end:6.1f} ms at "
                f"{int(late) // 3600}:{int(late) // 60 % 60:02}:{int(late) % 60:02} (ratio {end / early:.2f}; "
                f"{1e3 * seconds_of(short, 10.0):.1f} ms in a file of 60 s); memory {little} MB for 60 s, {much} MB"
            )
            long.unlink()


if __name__ == "__main__":
    main()
