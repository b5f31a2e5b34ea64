"""Decode the frames that a video shows at given times, from the keyframe before each, and turn them upright."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_PIXELS = 8192 * 4320  # of a frame

_TOLERANCE = 0.5  # seconds that may silently be missing at the end, as in audio
_ROUNDING = 0.0005  # seconds by which containers round the times of frames
_FIRST_STEP_BACK = 0.5  # seconds; doubled until a keyframe is found


class UnusableVideoError(Exception):
    """What is wrong with a video, without its name."""


class FramesOfTrack:
    r"""
    Frames of one picture track. Times are seconds from the beginning of the file, as in `load_audio`.

    Args:
        av: the module, which is optional.
        container: the opened file.
        track: its picture.
        label: what messages call the file.
    """

    def __init__(self, av: Any, container: Any, track: Any, label: str):
        self.av, self.container, self.track, self.label = av, container, track, label
        decoder = track.codec_context
        if decoder is None:
            raise UnusableVideoError("has a picture of a codec that PyAV does not know")
        if decoder.width * decoder.height > MAX_PIXELS:
            raise UnusableVideoError(
                f"has frames of {decoder.width} x {decoder.height} pixels; at most {MAX_PIXELS:,} are taken"
            )
        decoder.thread_count = 1  # several files are read side by side; frame threads would decode more than is asked
        decoder.options = decoder.options | {"max_pixels": str(MAX_PIXELS)}
        for other in container.streams:
            if other is not track:
                other.discard = "all"
        self.origin = (container.start_time or 0) / av.time_base
        self.rounding = min(float(track.time_base) / 2, _ROUNDING)
        self.reformatter = av.video.reformatter.VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.at_start = True  # nothing has been read yet

    def at_centres(self, start: float | None, end: float | None, count: int) -> np.ndarray:
        """Frames at the centres of `count` equal parts of [start, end), (count, H, W, 3) uint8."""
        begin = start or 0.0
        if end is None:
            end = self._length()
            if begin >= end:
                raise UnusableVideoError(f"has a picture of {end:.2f} s; the requested part starts at {begin:g} s")
        elif self.container.duration and end > (whole := self.container.duration / self.av.time_base) + _TOLERANCE:
            raise UnusableVideoError(f"lasts {whole:.2f} s, but the requested part ends at {end:g} s")
        times = [begin + (end - begin) * (part + 0.5) / count for part in range(count)]
        return np.stack(self.at(times))

    def at(self, times: list[float]) -> list[np.ndarray]:
        """The frames shown at these times, in ascending order."""
        passes: list[tuple[float, list[float]]] = []
        rest = times
        while rest:  # from the last, since all times behind its keyframe are found on the way to it
            place, key = self._keyframe_before(rest[-1])
            group = [time for time in rest if time + self.rounding >= key] or rest[-1:]
            passes.append((place, group))
            rest = rest[: len(rest) - len(group)]
        return [frame for place, group in reversed(passes) for frame in self._decoded(place, group)]

    def _keyframe_before(self, time: float) -> tuple[float, float]:
        """A place to seek to, and the time of the keyframe that is reached from there, at or before `time`."""
        place, step = time, _FIRST_STEP_BACK
        while True:
            self._seek(place)
            packet = next((packet for packet in self._packets() if packet.is_keyframe), None)
            key = None if packet is None else self._time(packet)
            if place <= 0 or (key is not None and key <= time + self.rounding):
                return place, -math.inf if key is None or place <= 0 else key
            place, step = max(0.0, time - step), step * 2

    def _decoded(self, place: float, times: list[float]) -> list[np.ndarray]:
        step = _FIRST_STEP_BACK
        while True:
            found = self._forward(place, times)
            if found is not None:
                return found
            # The first frame that could be decoded comes later: what is before it needs frames before the keyframe.
            place, step = max(0.0, place - step), step * 2

    def _forward(self, place: float, times: list[float]) -> list[np.ndarray] | None:
        """Decode from `place` on; None if the first frame is later than the first time, and not the file's first."""
        found: list[np.ndarray] = []
        shown: Any = None
        shown_at, picture = -math.inf, None
        self._seek(place)
        for time, frame in self._frames():
            if shown is None and place > 0 and time > times[0] + self.rounding:
                return None
            if time < shown_at - _TOLERANCE:
                raise UnusableVideoError(
                    f"has times that go back from {shown_at:.2f} s to {time:.2f} s, as if several files stood one "
                    "after another. Split them"
                )
            while shown is not None and times[len(found)] + self.rounding < time:
                picture = self._upright(shown) if picture is None else picture
                found.append(picture)
                if len(found) == len(times):
                    return found
            shown, shown_at, picture = frame, time, None
        if shown is None:
            raise UnusableVideoError(f"has no picture at {times[0]:.2f} s that can be decoded")
        self._check_end(shown, shown_at, times)
        return found + [self._upright(shown)] * (len(times) - len(found))

    def _check_end(self, frame: Any, time: float, times: list[float]):
        """The last frame is shown until the picture ends."""
        until = time + float((frame.duration or 0) * frame.time_base)
        if times[-1] <= until + _TOLERANCE:
            return
        length = self._promised()
        if length is not None and until < length - _TOLERANCE:
            raise UnusableVideoError(f"is cut off: it holds {until:.2f} s of {length:.2f} s of picture")
        if times[0] > until + _TOLERANCE:
            raise UnusableVideoError(f"has a picture of {until:.2f} s; the requested part begins later")

    def _frames(self) -> Iterator[tuple[float, Any]]:
        rate = self.track.average_rate or self.track.guessed_rate
        last = None
        started = False
        try:
            for packet in self._packets(flush=True):
                started = started or packet.is_keyframe or packet.size == 0
                if not started:  # a seek may lead between keyframes
                    continue
                for frame in packet.decode():
                    time = self._time(frame)
                    if time is None:
                        if not rate:
                            raise UnusableVideoError("does not say when its frames are shown")
                        time = 0.0 if last is None else last + float(1 / rate)
                    last = time
                    yield time, frame
        except self.av.FFmpegError as error:
            raise UnusableVideoError(f"is damaged after {last or 0.0:.2f} s: {error}") from error

    def _packets(self, flush: bool = False) -> Iterator[Any]:
        self.at_start = False
        for packet in self.container.demux(self.track):
            if packet.size or flush:
                yield packet

    def _seek(self, place: float):
        if self.at_start:
            if place <= 0:
                return
        offset = self.track.start_time if place <= 0 else None
        if offset is None:
            offset = int((max(0.0, place) + self.origin) / self.track.time_base)
        with contextlib.suppress(OverflowError):
            self.container.seek(offset, stream=self.track)

    def _time(self, of: Any) -> float | None:
        """Seconds of a packet or frame."""
        at = of.pts if of.pts is not None else of.dts
        return None if at is None else float(at * of.time_base) - self.origin

    def _promised(self) -> float | None:
        """Where the picture ends, as the file says."""
        if self.track.duration:
            return float(((self.track.start_time or 0) + self.track.duration) * self.track.time_base) - self.origin
        if self.container.duration:
            return self.container.duration / self.av.time_base
        return None

    def _length(self) -> float:
        length = self._promised()
        if length is None:  # as of a recording made in a browser
            self._seek(0.0)
            ends = [
                (self._time(packet) or 0.0) + float((packet.duration or 0) * packet.time_base)
                for packet in self._packets()
            ]
            length = max(ends, default=0.0)
        return length

    def _upright(self, frame: Any) -> np.ndarray:
        """A frame as it is to be seen, (H, W, 3) uint8."""
        if frame.is_corrupt:
            raise UnusableVideoError(f"is damaged at {self._time(frame) or 0.0:.2f} s")
        if self.size is None:
            self.size = frame.width, frame.height
        has_alpha = len(frame.format.components) in (2, 4)
        width, height = self.size
        picture = self.reformatter.reformat(
            frame, width, height, "rgba" if has_alpha else "rgb24", threads=1
        ).to_ndarray()
        if has_alpha:
            picture = (picture[..., :3] * (picture[..., 3:].astype(np.uint16)) // 255).astype(np.uint8)
        return picture
