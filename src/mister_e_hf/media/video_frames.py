"""Decode the frames that a video shows at given times, from the keyframe before each, and turn them upright."""

import io
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from ..base.errors import short

MAX_PIXELS = 8192 * 4320  # of a frame

_TOLERANCE = 0.5  # seconds that may silently be missing at the end, as in audio
_ROUNDING = 0.0005  # seconds by which containers round the times of frames
_FIRST_STEP_BACK = 0.5  # seconds; doubled until frames before it can be decoded
_FURTHEST_BACK = 16.0  # seconds before a frame that does not decode, from which decoding is tried
_BEFORE_ALL = 60.0  # seconds
_HELD_BYTES = 1 << 26  # of packets that may turn out not to be needed
_WIDEST = 8  # shape of a pixel that is believed, width to height
_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


class UnusableVideoError(Exception):
    """What is wrong with a video, without its name."""


class _DamagedError(UnusableVideoError):
    pass


class FramesOfTrack:
    r"""
    Frames of one picture track. Times are seconds from the beginning of the file, as in `load_audio`.

    Args:
        av: the module, which is optional.
        container: the opened file.
        track: its picture.
    """

    def __init__(self, av: Any, container: Any, track: Any):
        self.av, self.container, self.track = av, container, track
        decoder = track.codec_context
        if decoder is None:
            raise UnusableVideoError("has a picture of a codec that PyAV does not know")
        if decoder.width * decoder.height > MAX_PIXELS:
            raise UnusableVideoError(
                f"has frames of {decoder.width} x {decoder.height} pixels; at most {MAX_PIXELS:,} are taken"
            )
        kind = container.format.name
        if kind == "asf" and decoder.name == "h264":
            # FFmpeg gives such frames the times of others.
            raise UnusableVideoError(
                "holds H.264 in a WMV (ASF) file, whose frames have unreliable times. Convert it to MP4 (ffmpeg -i "
                "FILE -c copy FILE.mp4)"
            )
        self.counts_frames = kind == "avi"  # whose packets have a number instead of a time
        self.seeks = kind != "mpeg"  # whose times are wrong after a seek, as is the length it states
        self.ends_count_from_zero = kind.startswith(("matroska", "flv"))
        rate = track.average_rate or track.guessed_rate
        self.frame_seconds = float(1 / rate) if rate else None
        self.origin = (container.start_time or 0) / av.time_base
        self.rounding = min(float(track.time_base) / 2, _ROUNDING)
        self.reformatter = av.video.reformatter.VideoReformatter()
        self.size: tuple[int, int] | None = None
        decoder.thread_count = 1  # several files are read side by side; frame threads would decode more than is asked
        options = {"max_pixels": str(MAX_PIXELS)}
        # Frames of which parts are lost are refused. In AVI those before a keyframe, which need what was before it,
        # cannot be told by their time.
        if not (self.counts_frames and decoder.name == "h264"):
            options["err_detect"] = "explode"
        decoder.options = decoder.options | options
        for other in container.streams:
            if other is not track:
                other.discard = av.stream.Discard.all

    def at_centres(self, start: float | None, end: float | None, count: int) -> np.ndarray:
        """Frames at the centres of `count` equal parts of [start, end), (count, H, W, 3) uint8."""
        begin, whole = start or 0.0, self._whole()
        if end is None:
            end = self.length()
            if begin >= end:
                raise UnusableVideoError(f"has a picture of {end:.2f} s; the requested part starts at {begin:g} s")
        elif whole is not None and begin >= whole:
            raise UnusableVideoError(f"lasts {whole:.2f} s; the requested part starts at {begin:g} s")
        elif whole is not None and end > whole + _TOLERANCE:
            raise UnusableVideoError(f"lasts {whole:.2f} s, but the requested part ends at {end:g} s")
        return np.stack(self.at([begin + (end - begin) * (part + 0.5) / count for part in range(count)]))

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

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Yield what is shown in [start, end), each picture with the second from which on it is shown."""
        place, _ = self._keyframe_before(start)
        shown, step = None, _FIRST_STEP_BACK
        while shown is None:
            if not self._seek(place):
                raise UnusableVideoError("is damaged: no place in it can be reached")
            for time, frame in self._frames(-math.inf, place <= 0):
                if shown is None and time > start + self.rounding and place > 0:
                    break
                if shown is not None and time > start + self.rounding:
                    yield shown[0], self._upright(shown[1])
                if time >= end:
                    return
                shown = max(time, start), frame
            if shown is None and place <= 0:
                raise UnusableVideoError(f"has no frame at {start:.2f} s that can be decoded")
            place, step = max(0.0, place - step), step * 2
        yield shown[0], self._upright(shown[1])

    # Seeking

    def _keyframe_before(self, time: float) -> tuple[float, float]:
        """A place to seek to, and the time of the keyframe that is reached from there, at or before `time`."""
        place, step = time if self.seeks else 0.0, _FIRST_STEP_BACK
        while place > 0:
            if self._seek(place):
                packet = next((packet for packet in self._packets() if packet.is_keyframe), None)
                key = None if packet is None else self._time(packet)
                if key is not None and key <= time + self.rounding:
                    return place, key
            place, step = time - step, step * 2
        return 0.0, -math.inf

    def _seek(self, place: float) -> bool:
        # The first packets may be earlier than the first frame; but not every container takes such a time.
        for seconds in [place] if place > 0 else [-_BEFORE_ALL, 0.0]:
            try:
                self.container.seek(int((seconds + self.origin) / self.track.time_base), stream=self.track)
                return True
            except (self.av.FFmpegError, OverflowError):
                continue
        return False

    # Decoding

    def _decoded(self, place: float, times: list[float]) -> list[np.ndarray]:
        """Frames at times that are near each other, decoded in one pass."""
        step, latest = _FIRST_STEP_BACK, True
        while True:
            try:
                found = self._forward(place, times, latest)
                if found is not None:
                    return found
            except _DamagedError:
                if (place <= 0 and not latest) or step > _FURTHEST_BACK:
                    raise
            # Frames after a keyframe may need what was before it.
            place, step, latest = max(0.0, place - step), step * 2, False

    def _forward(self, place: float, times: list[float], latest: bool) -> list[np.ndarray] | None:
        """Decode from `place` on; None if the first frame is later than the first time, and not the file's first."""
        found: list[np.ndarray] = []
        shown: Any = None
        shown_at, picture = -math.inf, None
        if not self._seek(place):
            raise UnusableVideoError("is damaged: no place in it can be reached")
        from_the_first = place <= 0 and not latest
        for time, frame in self._frames(times[0] if latest else -math.inf, from_the_first):
            if shown is None and time > times[0] + self.rounding:
                if not from_the_first:
                    return None
                if time > times[-1] + _TOLERANCE:
                    raise UnusableVideoError(f"has no picture before {time:.2f} s")
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
            raise _DamagedError(f"has no frame at {times[0]:.2f} s that can be decoded")
        self._check_end(shown, shown_at, times)
        return found + [self._upright(shown)] * (len(times) - len(found))

    def _check_end(self, last: Any, time: float, times: list[float]):
        """The last frame is shown until the file ends, but not instead of frames that are lost."""
        until = time + float((last.duration or 0) * last.time_base)
        if times[-1] <= until + _TOLERANCE:
            return
        length = self._promised()
        if length is not None and until < length - _TOLERANCE:
            raise UnusableVideoError(f"is cut off: it holds {until:.2f} s of {length:.2f} s of picture")
        if times[0] > until + _TOLERANCE:
            raise UnusableVideoError(f"has no picture after {until:.2f} s")

    def _frames(self, first: float, from_the_first: bool) -> Iterator[tuple[float, Any]]:
        """Yield frames and their times, decoded from the last keyframe that is not after `first`."""
        held: list[Any] | None = []
        size, last = 0, -(self.frame_seconds or 0.0) if from_the_first else math.inf  # infinity for a time not known
        for packet in self._packets(flush=True):
            if held is not None:
                at = self._time(packet)
                if packet.is_keyframe and at is not None and at <= first:
                    held, size = [], 0
                if held or packet.is_keyframe or not packet.size:  # a seek may lead between keyframes
                    held.append(packet)
                    size += packet.size
                if packet.size and size < _HELD_BYTES and self._time(packet, decoded=True) <= first:
                    continue
            try:
                for one in [packet] if held is None else held:
                    if one.is_corrupt:
                        raise _DamagedError(f"is damaged{_after(last)}")
                    for frame in one.decode():
                        last = self._time_of_frame(frame, last)
                        yield last, frame
            except self.av.FFmpegError as error:
                if not self.track.codec_context.width:  # FFmpeg takes back the size of frames that it refuses
                    raise UnusableVideoError(
                        f"has frames of more than {MAX_PIXELS:,} pixels, or does not say their size"
                    ) from error
                raise _DamagedError(f"is damaged{_after(last)}: {short(error.strerror)}") from error
            held = None if held else held

    def _packets(self, flush: bool = False) -> Iterator[Any]:
        try:
            for packet in self.container.demux(self.track):
                if packet.size or (flush and packet.dts is None):  # the last; others without content repeat a frame
                    yield packet
        except self.av.FFmpegError as error:
            raise _DamagedError(f"is damaged: {short(error.strerror)}") from error

    # Times

    def _time(self, packet: Any, decoded: bool = False) -> float:
        """Seconds at which a packet is shown, or decoded, which is not later; before everything if not known."""
        by_dts = decoded or self.counts_frames or packet.pts is None
        at = packet.dts if by_dts and packet.dts is not None else packet.pts
        return -math.inf if at is None else float(at * packet.time_base) - self.origin

    def _time_of_frame(self, frame: Any, last: float) -> float:
        """Seconds of a frame, given those of the one before."""
        if self.counts_frames:  # a frame leaves the decoder with the number of the packet that pushed it out
            late = self.track.codec_context.reorder_depth * (self.frame_seconds or 0.0)
            at = None if frame.dts is None else float(frame.dts * frame.time_base) - late
        else:
            at = None if frame.pts is None else float(frame.pts * frame.time_base)
        if at is not None:
            return at - self.origin
        if self.frame_seconds is None:
            raise UnusableVideoError("does not say when its frames are shown")
        return last + self.frame_seconds

    def _whole(self) -> float | None:
        """Where the file ends, as it says."""
        if not self.seeks or not self.container.duration:
            return None
        return self.container.duration / self.av.time_base - self.origin * self.ends_count_from_zero

    def _promised(self) -> float | None:
        """Where the picture ends, as the file says."""
        if self.track.duration and self.seeks:
            return float(((self.track.start_time or 0) + self.track.duration) * self.track.time_base) - self.origin
        if tag := _TAG.fullmatch(self.track.metadata.get("DURATION", "")):
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - self.origin
        return self._whole()

    def length(self) -> float:
        """Where the picture ends. If the file does not say it, as a recording made in a browser, all is passed."""
        length = self._promised()
        if length is None and self._seek(0.0):
            length = max(
                (self._time(one) + float((one.duration or 0) * one.time_base) for one in self._packets()), default=None
            )
        return max(0.0, length or 0.0)

    # Pictures

    def _upright(self, frame: Any) -> np.ndarray:
        """A frame as it is to be seen, (H, W, 3) uint8."""
        if frame.is_corrupt:
            raise _DamagedError(f"is damaged at {self._time_of_frame(frame, 0.0):.2f} s")
        if self.size is None:
            aspect = float(self.track.sample_aspect_ratio or 1)
            self.size = round(frame.width * aspect) if 1 / _WIDEST < aspect < _WIDEST else frame.width, frame.height
        has_alpha = len(frame.format.components) in (2, 4)
        kind = "rgba" if has_alpha else "rgb24"
        picture = self.reformatter.reformat(frame, *self.size, kind, threads=1).to_ndarray()
        if has_alpha:
            picture = (picture[..., :3] * picture[..., 3:].astype(np.uint16) // 255).astype(np.uint8)
        matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        return picture if matrix is None else _displayed(picture, np.frombuffer(matrix, dtype=np.int32))


def write_h264(av: Any, pictures: Iterator[tuple[float, np.ndarray]], start: float, end: float) -> bytes:
    """An MP4 file, `end - start` long, of pictures (H, W, 3) with the seconds at which each begins."""
    file, base = io.BytesIO(), Fraction(1, 90_000)
    lasts: dict[int, int] = {}  # how long each picture is shown
    with av.open(file, "w", format="mp4") as container:
        track: Any = None
        time, picture = next(pictures)
        while time < end:
            following, next_picture = next(pictures, (end, picture))
            if track is None:
                # Frames that are stored before earlier ones would make the file say that it ends too early.
                track = container.add_stream("libx264", rate=30, options={"crf": "18", "bf": "0"})
                track.height, track.width = (max(2, size // 2 * 2) for size in picture.shape[:2])
                track.pix_fmt, track.codec_context.time_base = "yuv420p", base
                track.codec_context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame = frame.reformat(track.width, track.height, "yuv420p", threads=1)
            frame.pts, frame.time_base = round((time - start) / base), base
            lasts[frame.pts] = round((following - start) / base) - frame.pts
            _mux(container, track.encode(frame), lasts)
            time, picture = following, next_picture
        _mux(container, track.encode(None), lasts)
    return file.getvalue()


def _mux(container: Any, packets: list[Any], lasts: dict[int, int]):
    for packet in packets:
        packet.duration = lasts[packet.pts]
        container.mux(packet)


def _after(time: float) -> str:
    return f" after {max(0.0, time):.2f} s" if time < math.inf else ""


def _displayed(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror a picture (H, W, 3) as a display matrix says: (x, y) -> (a x + c y, b x + d y)."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, across, down = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
