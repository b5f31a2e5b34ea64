"""
Read any audio file or array as mono 16 kHz float32.

soundfile reads the formats of libsndfile (WAV, FLAC, OGG, Opus, MP3, AIFF, ...). Other containers (MP4, M4A, WebM,
...) and files written to a pipe, which do not state their length, are read with PyAV, the extra `av`. A file is read
in blocks and only between `start` and `end`, so memory is bounded by the requested stretch, whatever the length, rate
and number of channels of the file.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from ..base.errors import short
from ..base.interrupts import delayed_interrupts
from .audio_layout import NO_END, examine, rest_behind, says_length, text_at_the_start, without_tags
from .audio_objects import AudioError, check_stretch, decode, resolve, too_long
from .media_files import opened, remark

SAMPLING_RATE = 16_000
MAX_SECONDS = 600.0

_BLOCK_VALUES = 1 << 20
_RATES = (1_000, 768_000)
_SILENCE = 2.0**-15  # one step of 16-bit audio
_LOUDEST = 4.0  # times full scale; louder samples have another scale
_CANCELLED = 0.1  # share of the loudest channel that the sum of channels must reach
# Seconds that may silently be missing at the end of a stretch or file: codecs pad, and subtitles exceed recordings.
_TOLERANCE = 0.5
_RUN_UP = 1.0  # seconds decoded before a stretch, since frames depend on earlier ones
_JITTER = 0.1  # seconds by which frame times may be off before they count as a gap or overlap


@delayed_interrupts()
def load_audio(
    source: Any,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
    name: str | None = None,
) -> np.ndarray:
    r"""
    Read audio as mono 16 kHz float32. Channels are averaged; soxr resamples in high quality.


    Args:
        source: a file's path or its content, or an open binary file; an array, tensor or list (S,) or (channels, S)
            with its `sampling_rate`, floating-point samples from -1 to 1, or integers of their width; or what
            `datasets` gives: a dictionary `{"path": ..., "bytes": ...}` or `{"array": ..., "sampling_rate": ...}`, or
            an audio decoder (any object with `get_all_samples`).
        sampling_rate: of an array, a whole number of Hz.
        start, end: part to read, in seconds from the beginning (of a video, from the beginning of the picture);
            everything by default.
        max_seconds: longest part accepted, in seconds.
        name: how messages refer to audio that is not a file.

    Returns:
        (S,) float32, S samples of 1/16000 second.

    Raises:
        AudioError: a `ValueError` that names the file and what is wrong with it. Audio is never truncated silently: a
            file that ends more than half a second before its header or `end` says, or that holds something after the
            audio, raises too, as do samples beyond four times full scale and channels that cancel each other.
        ValueError: if the arguments are not valid.
    """
    check_stretch(start, end, max_seconds)
    source, sampling_rate, name = resolve(source, sampling_rate, name)
    if hasattr(source, "get_all_samples"):
        name = name or "audio decoder"
        array, sampling_rate, _ = resolve(*decode(source, start, end, max_seconds, name), name)
        assert isinstance(array, np.ndarray) and sampling_rate is not None  # decoders give tensors
        return _finish(
            _array_blocks(array, sampling_rate, None, None, max_seconds, name), name, start, end, max_seconds
        )
    if isinstance(source, np.ndarray):
        assert sampling_rate is not None  # `resolve` checks it
        name = name or "array"
        blocks = _array_blocks(source, sampling_rate, start, end, max_seconds, name)
        return _finish(blocks, name, start, end, max_seconds)
    with opened(source, name, "audio", AudioError) as (file, label):
        file = without_tags(file)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return _finish(_file_blocks(file, label, size, start, end, max_seconds), label, start, end, max_seconds)


@delayed_interrupts()
def encode_flac(samples: np.ndarray) -> bytes:
    """
    Encode mono 16 kHz samples (S,) as a 16-bit FLAC file; 16-bit audio round-trips bit-equal. If the peak is above
    full scale, the whole signal is scaled down instead of clipped.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, samples / peak if peak > 1 else samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _check_rate(rate: int, label: str):
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"{label} has a sampling rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]}")


# Blocks: (rate, samples (S, channels) of the stretch), one after another.


def _finish(blocks: Iterator, label: str, start: float | None, end: float | None, max_seconds: float) -> np.ndarray:
    """Average the channels of the blocks, resample to 16 kHz and check the result."""
    stream, parts, read, rate = None, [], 0, SAMPLING_RATE
    peak, level, channels = 0.0, 0.0, 1
    lowest, highest = np.inf, -np.inf
    for rate, block in blocks:
        _check_rate(rate, label)
        read, channels = read + len(block), block.shape[1]
        if read > max_seconds * rate:
            raise AudioError(too_long(label, read / rate, max_seconds, at_least=True))
        if not np.isfinite(block).all():
            raise AudioError(f"{label} holds NaN or infinity")
        peak = max(peak, float(block.max()), -float(block.min()))
        if peak > _LOUDEST:
            raise AudioError(
                f"{label} has samples of {peak:.6g}, and full scale is 1: they are of another scale. Divide what was "
                "made from 16-bit samples by 32768, or give it as int16"
            )
        block = _mono(block)
        lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
        level = max(highest, -lowest)
        if rate != SAMPLING_RATE:
            stream = stream or soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
            block = stream.resample_chunk(block)
        parts.append(block)
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    stretch = (
        ""
        if start is None and end is None
        else f" between {start or 0:g} s and {'its end' if end is None else f'{end:g} s'}"
    )
    if read == 0:
        raise AudioError(f"{label} holds no samples{stretch}")
    if end is not None and read / rate < end - (start or 0.0) - _TOLERANCE:
        raise AudioError(f"{label} ends at {(start or 0.0) + read / rate:.2f} s, but the requested part at {end:g} s")
    samples = np.concatenate(parts)
    if peak > _SILENCE and level * channels < _CANCELLED * peak:
        raise AudioError(
            f"{label} is silent{stretch} once its {channels} channels are averaged: they cancel each other, though "
            f"one has a peak of {peak:.3g}. Give one channel alone"
        )
    if not len(samples) or np.abs(samples).max() <= _SILENCE:
        quiet = f": its peak is {peak:.2g} of full scale 1; if it was meant to be louder, it is of another scale"
        raise AudioError(f"{label} is silent{stretch}{quiet * (peak > 0)}")
    if read > 1 and highest - lowest <= _SILENCE:
        raise AudioError(f"{label} is silent{stretch}: all its samples are {highest:.3g}")
    return samples


def _mono(block: np.ndarray) -> np.ndarray:
    """(S, channels) -> (S,)"""
    return np.ascontiguousarray(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1), dtype=np.float32)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Scale integers of any width to -1 ... 1. Unsigned 8-bit samples have their silence at 128."""
    if samples.dtype.kind == "f":
        return samples
    full = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples / full - (samples.dtype.kind == "u")


def _array_blocks(
    array: np.ndarray, rate: int, start: float | None, end: float | None, max_seconds: float, label: str
) -> Iterator:
    _check_rate(rate, label)
    array = np.atleast_2d(array)[:, round((start or 0.0) * rate) : None if end is None else round(end * rate)]
    frames = array.shape[1]
    if frames > max_seconds * rate:
        raise AudioError(too_long(label, frames / rate, max_seconds))
    wide, peak, low = array.dtype.kind == "i" and array.dtype.itemsize > 2, 0, False
    step = _BLOCK_VALUES // max(1, array.shape[0]) + 1
    for begin in range(0, frames, step):
        block = array[:, begin : begin + step].T
        if wide:
            peak, low = max(peak, int(block.max()), -int(block.min())), low or bool((block & 255).any())
        yield rate, _scaled(block)
    # Samples shifted up to the integer width have zeros in the low bits; true 32-bit samples are not so quiet.
    if low and peak <= 2 ** (8 * array.dtype.itemsize - 9):
        raise AudioError(
            f"{label} has samples of at most {peak} as {array.dtype}, whose full scale is "
            f"{2 ** (8 * array.dtype.itemsize - 1)}: it would "
            "be nearly silent. Give samples of 16 bits as int16, and shift those of 24 bits up by 8 in int32"
        )


def _file_blocks(file, label: str, size: int, start: float | None, end: float | None, max_seconds: float) -> Iterator:
    opened, reason = None, "its header does not say its length"
    try:
        opened = soundfile.SoundFile(file)
    except MemoryError:
        raise
    except Exception as error:  # from libsndfile; or a TypeError, for any file named .raw
        reason = short(getattr(error, "error_string", error))
    if opened is not None:
        seconds = opened.frames / max(1, opened.samplerate) if opened.frames != NO_END else 0.0
        layout = examine(file, size, seconds, end is None or end >= seconds)
        _judge(layout, label)
        if layout.streams > 1:
            opened, reason = None, f"it has {layout.streams} streams side by side"
    if opened is None or not says_length(file, size, opened):
        yield from _container_blocks(file, label, size, reason, start, end, max_seconds)
        return
    with opened:
        rate = opened.samplerate
        _check_rate(rate, label)
        first = round((start or 0.0) * rate)
        stop = opened.frames if end is None else min(opened.frames, round(end * rate))
        if stop - first > max_seconds * rate:
            raise AudioError(too_long(label, (stop - first) / rate, max_seconds))
        if first >= opened.frames > 0:
            raise AudioError(
                f"{label} lasts {opened.frames / rate:.2f} s; the requested part starts at {first / rate:g} s"
            )
        # soundfile seeks after every block, and some MP3 frames after a seek are wrong.
        run_up = round(_RUN_UP * rate) if opened.subtype.startswith("MPEG") else 0
        position = first if opened.seekable() else 0
        try:
            while position < stop:
                before = min(run_up, position)
                if opened.seekable():
                    opened.seek(position - before)
                count = before + min(_BLOCK_VALUES // opened.channels + 1, stop - position)
                block = opened.read(count, dtype="float32", always_2d=True)[before:]
                if not len(block):
                    break
                wanted = block[max(0, first - position) :]
                position += len(block)
                if len(wanted):
                    yield rate, wanted
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{label} is corrupt: {error}") from error
        if stop - position > _TOLERANCE * rate:
            raise AudioError(
                f"{label} is cut off: {(stop - position) / rate:.2f} s that its header promises are not there"
            )
        if (
            opened.format in ("FLAC", "MP3")
            and position == opened.frames
            and (problem := rest_behind(file, size, position / rate))
        ):
            raise AudioError(f"{label} {problem}")


def _judge(layout, label: str):
    if layout.problem:
        raise AudioError(f"{label} {layout.problem}")
    if layout.remark:
        remark(f"{label} {layout.remark}")


def _container_blocks(
    file, label: str, size: int, reason: str, start: float | None, end: float | None, max_seconds: float
) -> Iterator:
    try:
        import av
    except ImportError:
        raise AudioError(
            f"soundfile cannot read {label} ({reason}){text_at_the_start(file)}. PyAV reads video and much else: pip "
            "install av"
        ) from None
    from_second, to_second = start or 0.0, np.inf if end is None else end
    file.seek(0)
    with contextlib.ExitStack() as stack:
        try:
            # A playlist or manifest must not make the decoder open other files or addresses.
            container = stack.enter_context(
                av.open(file, "r", options={"protocol_whitelist": ""}, metadata_errors="replace")
            )
        except Exception as error:  # errors of FFmpeg, and of PyAV about what FFmpeg found
            if isinstance(error, MemoryError) and not isinstance(
                error, av.FFmpegError
            ):  # FFmpeg raises its own for a wrong size in the file
                raise
            raise AudioError(
                f"{label} is corrupt, or of no kind that soundfile or PyAV can read: "
                f"{short(error)}{text_at_the_start(file)}"
            ) from error
        _judge(examine(file, size, (container.duration or 0) / av.time_base), label)
        tracks = container.streams.audio
        if not tracks:
            raise AudioError(f"{label} has no audio track")
        track = container.streams.best("audio") or tracks[0]  # as players do: the track marked as default
        if len(tracks) > 1:
            remark(f"{label} has {len(tracks)} audio tracks; number {tracks.index(track) + 1} is read")
        if track.codec_context is None:
            raise AudioError(f"{label} has audio of a codec that PyAV does not know")
        # Times count from the beginning of the whole; the audio track may begin later than the picture.
        origin = (container.start_time or 0) / av.time_base
        length = None
        if track.frames and track.duration:  # else FFmpeg guesses the length
            length = float(((track.start_time or 0) + track.duration) * track.time_base) - origin
        if length is not None and min(to_second, length) - from_second > max_seconds:
            raise AudioError(too_long(label, min(to_second, length) - from_second, max_seconds))
        of_a_film = any(av.stream.Disposition.attached_pic not in one.disposition for one in container.streams.video)
        whose = f"the audio of {label}" if of_a_film else label  # the picture may last longer
        if length is not None and from_second >= length:
            raise AudioError(f"{whose} lasts {length:.2f} s; the requested part starts at {from_second:g} s")
        rate = reached = None
        for time, rate_now, block in _decoded(av, container, track, origin, from_second, label):
            if rate is None:
                rate = rate_now
                position, stop = round(from_second * rate), NO_END if end is None else round(end * rate)
            elif rate_now != rate:
                raise AudioError(f"{label} changes its sampling rate from {rate} to {rate_now} Hz on the way")
            at = reached or 0 if time is None else round(time * rate)
            if reached is not None and abs(at - reached) <= _JITTER * rate:
                at = reached
            if reached is not None and reached - at > _TOLERANCE * rate:
                raise AudioError(
                    f"{label}: its times go back from {reached / rate:.2f} s to {at / rate:.2f} s, as if several "
                    "files stood one after another. Split them"
                )
            if reached is not None and at - reached > _TOLERANCE * rate and position < min(at, stop):
                remark(f"{label} has no audio from {reached / rate:.2f} s to {at / rate:.2f} s; silence is put there")
            reached = at + len(block)
            if min(at, stop) - position > MAX_SECONDS * rate:
                raise AudioError(f"{label} has no audio from {position / rate:.2f} s to {min(at, stop) / rate:.2f} s")
            while position < min(at, stop):
                gap = np.zeros((min(at, stop, position + _BLOCK_VALUES) - position, 1), dtype=np.float32)
                position += len(gap)
                yield rate, gap
            block = block[max(0, position - at) : max(0, stop - at)]
            position += len(block)
            if len(block):
                yield rate, block
            if position >= stop:
                return
        if rate is None or reached is None:
            return
        if length is not None and reached / rate < min(to_second, length) - _TOLERANCE:
            raise AudioError(f"{label} is cut off: it holds {reached / rate:.2f} s of {length:.2f} s")
        if end is not None and reached / rate < end - _TOLERANCE:
            raise AudioError(f"{whose} ends at {reached / rate:.2f} s, but the requested part at {end:g} s")


# Takes the module, too: an import outside `try` would make it a requirement of the code that goes to the Hub.
def _decoded(av, container, track, origin: float, from_second: float, label: str) -> Iterator:
    """Yield time, rate and samples (S, channels) of each frame that ends after `from_second`."""
    sought = from_second > _RUN_UP
    time: float | None = -np.inf
    try:
        if sought:
            # If seeking fails, decode from the beginning.
            with contextlib.suppress(av.FFmpegError, OverflowError):
                container.seek(int((from_second - _RUN_UP + origin) / track.time_base), stream=track)
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if sought and time is not None and time < from_second:
                    continue  # a seek may lead into the middle of a frame
                raise
            for frame in frames:
                time, rate = None if frame.time is None else frame.time - origin, frame.sample_rate
                if time is None or (from_second - time) * rate < frame.samples:
                    if frame.format.is_planar and frame.layout.nb_channels > 7:
                        # PyAV finds the end of a frame's planes by a null that exists for up to seven planes only.
                        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
                    samples = frame.to_ndarray()
                    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
                    yield time, rate, _scaled(samples)
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError):
            raise
        raise AudioError(f"{label} is corrupt: {short(error)}") from error
