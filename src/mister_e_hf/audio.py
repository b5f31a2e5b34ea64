"""Any sound file or array -> mono 16 kHz float32.

soundfile reads what libsndfile knows (WAV, FLAC, OGG, Opus, MP3, AIFF, ...); any other container (MP4, M4A, WebM, ...) goes through
PyAV, the extra `av`, and so does what was written to a pipe and does not say its length. A file is read in blocks and only between
`start` and `end`, so that memory is bounded by the stretch asked for, whatever the file's length, rate and number of channels.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from .errors import InputError

SAMPLING_RATE = 16_000
MAX_SECONDS = 600.0

_BLOCK_VALUES = 1 << 20
_RATES = (1_000, 768_000)
_SILENCE = 2.0**-15  # one step of 16-bit sound
# What a stretch may lack at its end, or a file against its own header, without a word: codecs pad and subtitles run over.
_TOLERANCE = 0.5
_RUN_UP = 1.0  # seconds that a codec is given before a stretch, since its frames lean on those before them
_JITTER = 0.1  # seconds by which the times of frames may be off before they tell of a gap or an overlap
_NO_END = 2**63 - 1  # as libsndfile says it
_HEADER_BYTES = 1024  # a file without samples is not longer, but for its tags


class AudioError(InputError):
    """Sound that cannot be used as it is: missing, empty, corrupt, silent, not finite or too long. The message names the file."""


def load_audio(
    source: str | os.PathLike | bytes | dict[str, Any] | np.ndarray,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
    name: str | None = None,
) -> np.ndarray:
    r"""
    Read sound as mono 16 kHz float32. Channels are averaged; resampling is soxr's, high quality.

    Args:
        source: a file's path or its content; an array (S,) or (channels, S) with its `sampling_rate`; or a dictionary as `datasets`
            gives it, `{"path": ..., "bytes": ...}` or `{"array": ..., "sampling_rate": ...}`.
        sampling_rate: of an array, in Hz.
        start, end: the stretch to read, in seconds from the beginning, of a video from that of its picture; by default all.
        max_seconds: the longest stretch taken, in seconds.
        name: what to call the sound in messages where it is no file.

    Returns:
        (S,) float32, S samples of 1/16000 second.

    Raises:
        AudioError: a `ValueError` that says what is wrong with which file. Nothing is cut: a file that ends before its header or
            `end` says, by more than half a second, is an error too.
        ValueError: if the arguments make no sense.
    """
    if (start is not None and not 0 <= start < np.inf) or (end is not None and not (start or 0.0) < end < np.inf):
        raise InputError(f"Expected 0 <= start < end in seconds, got start={start}, end={end}")
    if isinstance(source, dict):
        name = name or source.get("path")
        if source.get("array") is not None:
            source, sampling_rate = np.asarray(source["array"]), source.get("sampling_rate")
        else:
            source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, np.ndarray):
        return _finish(_array_blocks(source, sampling_rate, start, end), name or "array", start, end, max_seconds)
    if isinstance(source, bytes | bytearray | memoryview):
        label, file, size = name or "sound given as bytes", io.BytesIO(source), len(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise AudioError(f"There is no sound file '{path}'")
        label, file, size = f"'{path}'", path.open("rb"), path.stat().st_size
    else:
        raise InputError(
            f"Expected a path, bytes, an array with sampling_rate, or a dictionary of these; got {type(source).__name__}"
        )
    with file:
        if size == 0:
            raise AudioError(f"{label} is empty (0 bytes)")
        return _finish(_file_blocks(file, label, size, start, end, max_seconds), label, start, end, max_seconds)


def encode_flac(samples: np.ndarray) -> bytes:
    """
    Mono 16 kHz samples (S,) as the content of a 16-bit FLAC file; sound of 16 bits comes back bit-equal. Where the peak is above
    full scale, all is scaled down to it rather than clipped.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, samples / peak if peak > 1 else samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


# Blocks: (rate, mono float32 samples of the stretch), one after another.


def _finish(blocks: Iterator, label: str, start: float | None, end: float | None, max_seconds: float) -> np.ndarray:
    """Resample the blocks to 16 kHz and check the whole."""
    stream, parts, read, rate = None, [], 0, SAMPLING_RATE
    for rate, block in blocks:
        if not _RATES[0] <= rate <= _RATES[1]:
            raise AudioError(f"{label} has a sampling rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]}")
        read += len(block)
        if read > max_seconds * rate:
            raise AudioError(_too_long(label, read / rate, max_seconds, at_least=True))
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
        raise AudioError(
            f"{label} ends at {(start or 0.0) + read / rate:.2f} s, but the stretch asked for at {end:g} s"
        )
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise AudioError(f"{label} holds NaN or infinity")
    if not len(samples) or np.abs(samples).max() <= _SILENCE:
        raise AudioError(f"{label} is silent{stretch}")
    return samples


def _too_long(label: str, seconds: float, max_seconds: float, at_least: bool = False) -> str:
    return (
        f"{label} lasts {'more than ' if at_least else ''}{seconds:.1f} s, and at most {max_seconds:g} s are taken. Give start and end, "
        "or raise max_seconds if this is one utterance."
    )


def _mono(block: np.ndarray) -> np.ndarray:
    """(S, channels) -> (S,)"""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found in the end
        return np.ascontiguousarray(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1), dtype=np.float32)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Integers of any width to -1 ... 1; of 8 bits without sign, silence is 128."""
    if samples.dtype.kind == "f":
        return samples
    full = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples / full - (samples.dtype.kind == "u")


def _array_blocks(array: np.ndarray, rate: int | None, start: float | None, end: float | None) -> Iterator:
    if rate is None:
        raise InputError("An array of samples needs its sampling_rate in Hz")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > array.shape[1] > 0):
        raise InputError(f"Expected samples of shape (S,) or (channels, S), got {array.shape}")
    if array.dtype.kind not in "if":
        raise InputError(f"Expected samples as floating point or signed integers, got {array.dtype}")
    array = np.atleast_2d(array)[:, round((start or 0.0) * rate) : None if end is None else round(end * rate)]
    if array.shape[1]:
        yield int(rate), _mono(_scaled(array.T))


def _file_blocks(file, label: str, size: int, start: float | None, end: float | None, max_seconds: float) -> Iterator:
    sound, reason = None, "its header does not say its length"
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        reason = error.error_string
    except TypeError as error:  # of whatever is called .raw
        reason = str(error)
    if sound is None or not _says_length(file, size, sound):
        yield from _container_blocks(file, label, reason, start, end, max_seconds)
        return
    with sound:
        rate = sound.samplerate
        if not _RATES[0] <= rate <= _RATES[1]:
            raise AudioError(f"{label} has a sampling rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]}")
        _check_length(file, label, size, sound)
        first = round((start or 0.0) * rate)
        stop = sound.frames if end is None else min(sound.frames, round(end * rate))
        if stop - first > max_seconds * rate:
            raise AudioError(_too_long(label, (stop - first) / rate, max_seconds))
        if first >= sound.frames > 0:
            raise AudioError(
                f"{label} lasts {sound.frames / rate:.2f} s; the stretch asked for starts at {first / rate:g} s"
            )
        # soundfile seeks after every block, and MP3 is wrong for some frames after a seek.
        run_up = round(_RUN_UP * rate) if sound.subtype.startswith("MPEG") else 0
        position = first if sound.seekable() else 0
        try:
            while position < stop:
                before = min(run_up, position)
                if sound.seekable():
                    sound.seek(position - before)
                count = before + min(_BLOCK_VALUES // sound.channels + 1, stop - position)
                block = sound.read(count, dtype="float32", always_2d=True)[before:]
                if not len(block):
                    break
                wanted = block[max(0, first - position) :]
                position += len(block)
                if len(wanted):
                    yield rate, _mono(wanted)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{label} is corrupt: {error}") from error
        if stop - position > _TOLERANCE * rate:
            raise AudioError(
                f"{label} is cut off: {(stop - position) / rate:.2f} s that its header promises are not there"
            )


def _says_length(file, size: int, sound: soundfile.SoundFile) -> bool:
    """
    What writes to a pipe cannot go back to fill in the length. Of a WAV file that says 0, libsndfile reads nothing; of a FLAC file it
    does not find the end; and of MP3 it guesses the length from the first frame, and goes no further.
    """
    if not sound.subtype.startswith("MPEG"):
        return sound.frames != _NO_END and (sound.frames > 0 or size <= _HEADER_BYTES)
    tags = _bytes_at(file, 0, 10)
    tag_bytes = 10 + sum(byte << 7 * power for power, byte in enumerate(tags[:5:-1])) if tags[:3] == b"ID3" else 0
    first_frame = _bytes_at(file, tag_bytes, _HEADER_BYTES)
    return b"Xing" in first_frame or b"Info" in first_frame


def _check_length(file, label: str, size: int, sound: soundfile.SoundFile):
    """libsndfile takes a WAV or AIFF file that was cut off for a shorter one."""
    header = _bytes_at(file, 0, 28)
    promised = {
        b"RIFF": int.from_bytes(header[4:8], "little") + 8,
        b"FORM": int.from_bytes(header[4:8], "big") + 8,
        b"RF64": int.from_bytes(header[20:28], "little") + 8,
        b"riff": int.from_bytes(header[16:24], "little"),
    }.get(header[:4], 0)
    unknown = 2**63 if header[:4] in (b"RF64", b"riff") else 0x7FFFF000  # what stands there after writing to a pipe
    bytes_per_second = size / (sound.frames / sound.samplerate) if sound.frames else 0
    if promised < unknown and promised - size > _TOLERANCE * bytes_per_second:
        raise AudioError(f"{label} is cut off: its header promises {promised} bytes, and it has {size}")


def _bytes_at(file, offset: int, count: int) -> bytes:
    position = file.tell()
    file.seek(offset)
    content = file.read(count)
    file.seek(position)
    return content


def _container_blocks(file, label: str, reason: str, start: float | None, end: float | None, max_seconds: float):
    try:
        import av
    except ImportError:
        raise AudioError(
            f"soundfile cannot read {label} ({reason}). PyAV reads video and much else: pip install 'mister-e-hf[av]'"
        ) from None
    from_second, to_second = start or 0.0, np.inf if end is None else end
    file.seek(0)
    with contextlib.ExitStack() as stack:
        try:
            # A playlist or manifest must not make the decoder open other files or addresses.
            container = stack.enter_context(
                av.open(file, options={"protocol_whitelist": ""}, metadata_errors="replace")
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{label} is corrupt, or of no kind that soundfile or PyAV can read: {error}") from error
        if not container.streams.audio:
            raise AudioError(f"{label} has no sound track")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise AudioError(f"{label} has sound of a codec that PyAV does not know")
        # Times count from the beginning of the whole; the sound track may begin later than the picture.
        origin = (container.start_time or 0) / av.time_base
        length = None
        if track.frames and track.duration:  # else FFmpeg guesses the length
            length = float(((track.start_time or 0) + track.duration) * track.time_base) - origin
        if length is not None and min(to_second, length) - from_second > max_seconds:
            raise AudioError(_too_long(label, min(to_second, length) - from_second, max_seconds))
        if length is not None and from_second >= length:
            raise AudioError(f"{label} lasts {length:.2f} s; the stretch asked for starts at {from_second:g} s")
        rate = reached = None
        for time, rate_now, block in _decoded(av, container, track, origin, from_second, label):
            if rate is None:
                rate = rate_now
                position, stop = round(from_second * rate), _NO_END if end is None else round(end * rate)
            elif rate_now != rate:
                raise AudioError(f"{label} changes its sampling rate from {rate} to {rate_now} Hz on the way")
            at = reached or 0 if time is None else round(time * rate)
            if reached is not None and abs(at - reached) <= _JITTER * rate:
                at = reached
            reached = at + len(block)
            while position < min(at, stop):
                gap = np.zeros(min(at, stop, position + _BLOCK_VALUES) - position, dtype=np.float32)
                position += len(gap)
                yield rate, gap
            block = block[max(0, position - at) : max(0, stop - at)]
            position += len(block)
            if len(block):
                yield rate, block
            if position >= stop:
                return
        if length is not None and reached is not None and reached / rate < min(to_second, length) - _TOLERANCE:
            raise AudioError(f"{label} is cut off: it holds {reached / rate:.2f} s of {length:.2f} s")


# Takes the module, too: an import outside `try` would make it a requirement of the code that goes to the Hub.
def _decoded(av, container, track, origin: float, from_second: float, label: str) -> Iterator:
    """Time, rate and mono samples of each frame that ends after `from_second`."""
    sought, time = from_second > _RUN_UP, -np.inf
    try:
        if sought:
            # Where it cannot be done, reading from the beginning leads there, too.
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
                        # PyAV looks for the end of a frame's planes by a null that only up to seven have behind them.
                        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
                    samples = frame.to_ndarray()
                    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
                    yield time, rate, _mono(_scaled(samples))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{label} is corrupt: {error}") from error
