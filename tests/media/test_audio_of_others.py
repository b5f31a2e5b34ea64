"""
Audio as other programs write and give it: files that hold more or less than they say, samples of another scale,
objects.
"""

import io
import math
import os
import struct

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from mister_e_hf import load_audio
from mister_e_hf.base.errors import InputError
from mister_e_hf.media.audio import AudioError
from support.small_sounds import muxed, noise, sine, written

SOUND, OTHER = noise(3.0), noise(2.0, seed=1)
FORMS = {
    "WAV": lambda sound: written(sound),
    "RF64": lambda sound: written(sound, form="RF64"),
    "W64": lambda sound: written(sound, form="W64"),
    "AIFF": lambda sound: written(sound, form="AIFF"),
    "AU": lambda sound: written(sound, form="AU"),
    "CAF": lambda sound: written(sound, form="CAF"),
    "NIST": lambda sound: written(sound, form="NIST"),
    "FLAC": lambda sound: written(sound, form="FLAC"),
    "Vorbis": lambda sound: written(sound, form="OGG", subtype="VORBIS"),
    "Opus": lambda sound: written(sound, form="OGG", subtype="OPUS"),
    "MP3": lambda sound: written(sound, form="MP3"),
    "MP4": lambda sound: muxed(sound),
    "MKV": lambda sound: muxed(sound, form="matroska"),
    "TS": lambda sound: muxed(sound, form="mpegts"),
    "AVI": lambda sound: muxed(sound, form="avi", codec="pcm_s16le", video=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_second_file_behind_the_first_is_not_left_out(form):
    content = FORMS[form](SOUND) + FORMS[form](OTHER)
    with pytest.raises(AudioError, match="THIS.*(several files|another file follows|behind its samples)"):
        load_audio(content, name="THIS")
    same = FORMS[form](SOUND)
    with pytest.raises(AudioError, match="THIS.*(several files|another file follows|behind its samples)"):
        load_audio(same + same, name="THIS")


def test_parts_without_a_header_are_one_file():
    assert len(load_audio(muxed(SOUND, form="adts") + muxed(OTHER, form="adts"))) == pytest.approx(80_000, abs=4_000)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("TS", "MP4")])  # MP4's index is cut off, too
def test_a_file_that_ends_early_is_not_a_shorter_one(form):
    content = FORMS[form](SOUND)
    with pytest.raises(AudioError, match="THIS is (cut off|corrupt)"):
        load_audio(content[: len(content) * 2 // 3], name="THIS")


def test_bytes_after_the_samples_of_wave64_raise():
    tag = b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000)
    np.testing.assert_array_equal(load_audio(tag + FORMS["W64"](SOUND)), load_audio(FORMS["W64"](SOUND)))
    with pytest.raises(AudioError, match="holds something behind its samples"):
        load_audio(FORMS["W64"](SOUND) + b"TAG" + bytes(125))


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF", "AU", "CAF", "FLAC", "Vorbis", "Opus", "MP3"])
def test_tags_before_and_behind_are_no_audio(form):
    content = FORMS[form](SOUND)
    tag = b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000)
    for whole in (tag + content, content + b"TAG" + bytes(125), tag * 2 + content):
        np.testing.assert_array_equal(load_audio(whole), load_audio(content))
    with pytest.raises(AudioError, match=r"THIS contradicts its header.* 1?\d\d,?\d* bytes follow"):
        load_audio(content + bytes(50_000), name="THIS")


@pytest.mark.parametrize("total", [1, 16_000])
def test_a_flac_file_that_counts_too_few_samples(total):
    content = bytearray(written(SOUND, form="FLAC"))
    content[18:26] = (int.from_bytes(content[18:26], "big") >> 36 << 36 | total).to_bytes(8, "big")
    with pytest.raises(AudioError, match="contradicts its header"):
        load_audio(bytes(content))


@pytest.mark.parametrize("frames", [10, 40])
def test_an_mp3_file_that_counts_too_few_frames(frames):
    content = bytearray(written(SOUND, form="MP3"))
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    content[at : at + 4] = frames.to_bytes(4, "big")
    with pytest.raises(AudioError, match="counts too few frames"):
        load_audio(bytes(content))


def test_zeros_behind_are_padding():
    content = written(SOUND)
    np.testing.assert_array_equal(load_audio(content + bytes(15_000)), load_audio(content))
    with pytest.raises(AudioError, match="contradicts its header"):
        load_audio(content + noise(0.4).astype(np.float32).tobytes())


def test_chunks_behind_the_samples_are_no_audio():
    content = written(SOUND)
    more = b"LIST" + struct.pack("<I", 60_001) + bytes(60_001)
    np.testing.assert_array_equal(load_audio(content + more + b"\0"), load_audio(content))  # padded to an even size
    np.testing.assert_array_equal(load_audio(content + more + more[:8] + bytes(60_001)), load_audio(content))


@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.4])
def test_a_wav_file_whose_size_wrapped(seconds):
    content = bytearray(written(SOUND))
    content[40:44] = struct.pack("<I", int(seconds * 32_000))
    with pytest.raises(
        AudioError, match="contradicts its header, by which it ends at byte .* Either its size wrapped"
    ):
        load_audio(bytes(content))


def test_a_wav_file_of_over_four_gib(tmp_path):
    with (tmp_path / "long.wav").open("wb") as file:  # sparse
        header = bytearray(written(SOUND)[:44])
        size = (1 << 32) + 64_000
        header[4:8], header[40:44] = struct.pack("<I", (size + 36) % (1 << 32)), struct.pack("<I", size % (1 << 32))
        file.write(header + written(SOUND)[44:])
        file.truncate(44 + size)
    with pytest.raises(AudioError, match="Either its size wrapped, as over 4 GiB"):
        load_audio(tmp_path / "long.wav", end=1.0)


@pytest.mark.parametrize("riff", [1, 0x60000000, 0xFFFFFFF0])
def test_where_only_the_outer_size_is_nonsense_all_is_read(riff):
    content = bytearray(written(SOUND))
    content[4:8] = struct.pack("<I", riff)
    np.testing.assert_array_equal(load_audio(bytes(content)), load_audio(written(SOUND)))


def header(channels: int = 1, rate: int = 16_000, per_second: int = 32_000, frame: int = 2, bits: int = 16) -> bytes:
    content = bytearray(written(SOUND))
    content[22:36] = struct.pack("<HIIHH", channels, rate, per_second, frame, bits)
    return bytes(content)


@pytest.mark.parametrize(
    "fields", [{"frame": 4}, {"frame": 0}, {"channels": 0}, {"channels": 2}, {"bits": 24}, {"bits": 8}, {"bits": 0}]
)
def test_a_header_whose_fields_disagree_is_refused(fields):
    with pytest.raises(AudioError, match="THIS has a header that contradicts itself: . channels of"):
        load_audio(header(**fields), name="THIS")


def test_bytes_a_second_are_not_used_and_named(caplog):
    np.testing.assert_array_equal(load_audio(header(per_second=1), name="A"), load_audio(written(SOUND)))
    load_audio(header(per_second=1), name="A", end=1.0)
    (record,) = caplog.records  # once a file
    assert "A has a header that contradicts itself" in record.getMessage()


def pages(content: bytes) -> list[bytes]:
    found, position = [], 0
    while position < len(content):
        count = content[position + 26]
        end = position + 27 + count + sum(content[position + 27 : position + 27 + count])
        found.append(content[position:end])
        position = end
    return found


def test_pages_of_ogg_that_are_missing_are_named(caplog):
    whole = pages(written(noise(9.0), form="OGG"))
    assert len(whole) > 5
    with pytest.raises(AudioError, match="is corrupt: 1 pages before byte .* are missing"):
        load_audio(b"".join(whole[:3] + whole[4:]))
    with pytest.raises(AudioError, match="is corrupt: byte .* does not begin a page"):
        load_audio(b"".join([*whole[:3], b"?" * 99, *whole[3:]]))
    try:
        load_audio(b"".join(whole[:-1]), name="LIVE")  # it is not said where it should end
    except AudioError as error:
        assert "LIVE is cut off" in str(error)
    else:
        assert "LIVE has no mark of its end" in caplog.text


def two_tracks(first: np.ndarray, second: np.ndarray, flags: tuple) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        tracks = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for track, flag in zip(tracks, flags, strict=True):
            track.disposition = flag
        for track, samples in zip(tracks, (first, second), strict=True):
            frame = av.AudioFrame.from_ndarray((samples * 32_767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux(track.encode(frame))
    return file.getvalue()


@pytest.mark.parametrize(("flags", "read"), [((0, 1), 1), ((1, 0), 0)])
def test_of_several_tracks_the_default_is_read_and_named(flags, read, caplog):
    tones = sine(2.0, frequency=440), sine(2.0, frequency=1000)
    content = two_tracks(*tones, [Disposition.default if flag else Disposition(0) for flag in flags])
    np.testing.assert_allclose(load_audio(content, name=f"TWO{read}"), tones[read][0], atol=1e-3)
    assert f"TWO{read} has 2 audio tracks; number {read + 1} is read" in caplog.text


# Samples


@pytest.mark.parametrize("scale", [32_768.0, 2.0**23, 255.0, 100.0, 1e37])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_floating_point_samples_of_another_scale_are_refused(scale, rate):
    sound = (sine(1.0, rate) * scale).astype(np.float32)
    for source in ((sound, rate), (written(sound, rate, subtype="FLOAT"),)):
        with pytest.raises(AudioError, match="THIS has samples of .*, and full scale is 1: they are of another scale"):
            load_audio(*source, name="THIS")


@pytest.mark.parametrize(
    ("bits", "dtype"), [(16, "int32"), (16, "int64"), (24, "int32"), (24, "int64"), (32, "int64")]
)
def test_whole_numbers_in_wider_ones_are_refused(bits, dtype):
    numbers = (sine() * 2.0 ** (bits - 1)).astype(dtype)
    with pytest.raises(AudioError, match=rf"array has samples of at most \d+ as {dtype}, whose full scale is"):
        load_audio(numbers, 16_000)
    with pytest.raises(AudioError, match="as int64"):
        load_audio(numbers[0].tolist(), 16_000)
    shifted = numbers << (8 * numbers.itemsize - bits)
    np.testing.assert_allclose(load_audio(shifted, 16_000), sine()[0], atol=2.0 ** (1 - bits))


@pytest.mark.parametrize("share", [1.0, 0.97])
@pytest.mark.parametrize("form", ["array", "WAV"])
def test_channels_that_cancel_are_not_silence(share, form):
    sound = np.concatenate([sine(), -share * sine()])
    with pytest.raises(AudioError, match="is silent once its 2 channels are averaged: they cancel .* peak of 0.5"):
        load_audio(sound, 16_000) if form == "array" else load_audio(written(sound))


def test_one_channel_of_many_is_not_cancelled():
    sound = np.zeros((64, 16_000), dtype=np.float32)
    sound[5] = sine()[0]
    np.testing.assert_allclose(load_audio(sound, 16_000), sine()[0] / 64, atol=1e-7)


# Objects


class Decoder:
    """As torchcodec's, of which `datasets` makes its own."""

    def __init__(self, samples: np.ndarray, rate: int = 16_000):
        self.samples, self.rate, self.calls = samples, rate, []
        self.metadata = type("Metadata", (), {"duration_seconds": samples.shape[-1] / rate})

    def _found(self, first: int | None, last: int | None):
        return type("Samples", (), {"data": torch.from_numpy(self.samples[:, first:last]), "sample_rate": self.rate})()

    def get_all_samples(self):
        self.calls.append("all")
        return self._found(None, None)


class SeekingDecoder(Decoder):
    def get_samples_played_in_range(self, start_seconds: float, stop_seconds: float | None):
        self.calls.append("range")
        return self._found(*(None if at is None else round(at * self.rate) for at in (start_seconds, stop_seconds)))


@pytest.mark.parametrize("kind", [Decoder, SeekingDecoder])
def test_decoders_are_read_as_the_array_is(kind):
    sound = noise(3.0, 44_100, channels=2)
    decoder = kind(sound, 44_100)
    for stretch in ({}, {"start": 1.0}, {"end": 2.0}, {"start": 0.5, "end": 2.5}):
        np.testing.assert_array_equal(load_audio(decoder, **stretch), load_audio(sound, 44_100, **stretch))
    assert decoder.calls == (["all"] * 4 if kind is Decoder else ["all"] + ["range"] * 3)
    with pytest.raises(AudioError, match=r"audio decoder ends at 3.00 s, but the requested part at 4 s"):
        load_audio(decoder, end=4.0)
    calls = list(decoder.calls)
    with pytest.raises(AudioError, match="audio decoder lasts 3.0 s, and at most 2 s are taken"):
        load_audio(decoder, max_seconds=2)
    assert decoder.calls == calls
    np.testing.assert_array_equal(load_audio(decoder.get_all_samples()), load_audio(sound, 44_100))


def test_a_decoder_that_fails_is_an_audio_error():
    class Broken:
        def get_all_samples(self):
            raise RuntimeError("no frames")

    with pytest.raises(AudioError, match="THIS cannot be decoded: no frames"):
        load_audio(Broken(), name="THIS")


@pytest.mark.parametrize(
    "given",
    [
        lambda sound: torch.from_numpy(sound),
        lambda sound: torch.from_numpy(sound).requires_grad_(),
        lambda sound: torch.from_numpy(sound[0]),
        lambda sound: sound[0].tolist(),
        lambda sound: {"array": sound.tolist(), "sampling_rate": np.float32(16_000)},
        lambda sound: {"array": torch.from_numpy(sound), "sampling_rate": torch.tensor(16_000), "path": None},
    ],
)
def test_tensors_and_lists_are_arrays(given):
    source = given(SOUND)
    rate = None if isinstance(source, dict) else 16_000
    np.testing.assert_array_equal(load_audio(source, rate), SOUND[0])


def test_half_precision_tensors():
    np.testing.assert_allclose(load_audio(torch.from_numpy(SOUND).bfloat16(), 16_000), SOUND[0], atol=0.01)


GIVEN = {
    "rate of letters": ({"array": [0.5] * 99, "sampling_rate": "16000"}, "sampling_rate must be a whole number"),
    "rate that is not whole": (
        {"array": [0.5] * 99, "sampling_rate": 16_000.5},
        "sampling_rate must be a whole number",
    ),
    "rate of NaN": ({"array": [0.5] * 99, "sampling_rate": math.nan}, "sampling_rate must be a whole number"),
    "rate that is true": ({"array": [0.5] * 99, "sampling_rate": True}, "sampling_rate must be a whole number"),
    "another key": ({"raw": [0.5] * 99, "sampling_rate": 16_000}, "unknown key 'raw'; expected path, bytes, array"),
    "text as bytes": ({"bytes": "a.wav"}, "'bytes' of a dictionary of audio must be bytes, got str"),
    "bytes as path": ({"path": b"a.wav"}, "'path' of a dictionary of audio must be a path, got bytes"),
    "complex numbers": ({"array": np.ones(9, complex), "sampling_rate": 16_000}, "got complex128"),
    "truth values": ({"array": [True] * 9, "sampling_rate": 16_000}, "got bool"),
    "objects": ({"array": [None] * 9, "sampling_rate": 16_000}, "got object"),
    "numbers without bound": ({"array": [10**30] * 9, "sampling_rate": 16_000}, "got object"),
    "a tensor without memory": (
        {"array": torch.empty(16_000, device="meta"), "sampling_rate": 16_000},
        "array cannot be read as an array",
    ),
    "an open file": (io.BytesIO(b"RIFF"), "audio given as a file object is corrupt"),
}


@pytest.mark.parametrize(("given", "message"), GIVEN.values(), ids=GIVEN)
def test_wrong_arguments_raise(given, message):
    with pytest.raises(InputError, match=message):
        load_audio(given)


def test_two_rates_are_refused():
    with pytest.raises(InputError, match="sampling_rate 16000, and sampling_rate=8000 was given, too"):
        load_audio({"array": SOUND, "sampling_rate": 16_000}, 8_000)


@pytest.mark.parametrize("settings", [{"start": "1"}, {"end": True}, {"max_seconds": "2"}])
def test_times_that_are_no_numbers(settings):
    with pytest.raises(InputError, match="must be numbers of seconds"):
        load_audio(SOUND, 16_000, **settings)


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_max_seconds_of_nothing_raises(seconds):
    with pytest.raises(InputError, match="max_seconds must be above 0"):
        load_audio(SOUND, 16_000, max_seconds=seconds)


@pytest.mark.timeout(60)
def test_an_array_without_memory_is_too_long_before_it_is_read():
    for shape in ((10**11,), (2, 10**11)):
        with pytest.raises(AudioError, match="array lasts 6250000.0 s, and at most 600 s are taken"):
            load_audio(np.broadcast_to(np.float32(0.5), shape), 16_000)


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "link.wav").symlink_to("sound.wav")
    (tmp_path / "sound.wav").write_bytes(written(SOUND))
    for name in ("pipe.wav", "/dev/zero", str(tmp_path)):
        with pytest.raises(AudioError, match=r"Audio file '.*' not found \(it is a folder, pipe or device\)"):
            load_audio(tmp_path / name)
    for name in ("loop.wav", "x" * 5000, "a\0b.wav"):
        with pytest.raises(AudioError, match="Audio file|cannot be opened"):
            load_audio(tmp_path / name)
    np.testing.assert_array_equal(load_audio(tmp_path / "link.wav"), load_audio(tmp_path / "sound.wav"))


def test_a_file_that_must_not_be_read(tmp_path):
    (tmp_path / "a.wav").write_bytes(written(SOUND))
    (tmp_path / "a.wav").chmod(0)
    if os.access(tmp_path / "a.wav", os.R_OK):
        pytest.skip("this user may read all files")
    with pytest.raises(AudioError, match="a.wav' cannot be opened: Permission denied"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("seconds", [5, 86_400])
def test_frames_that_jump_ahead_are_named_and_far_ahead_refused(seconds, caplog):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        track = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for at in (0, 16_000 * seconds):
            frame = av.AudioFrame.from_ndarray((sine() * 32_767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, at
            container.mux(track.encode(frame))
    if seconds == 5:
        assert len(load_audio(file.getvalue(), name="GAP")) == 6 * 16_000
        assert "GAP has no audio from 1.00 s to 5.00 s; silence is put there" in caplog.text
    else:
        with pytest.raises(AudioError, match=r"THIS has no audio from 1.00 s to 86400.00 s"):
            load_audio(file.getvalue(), name="THIS", max_seconds=math.inf)


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_a_constant_is_silence(tmp_path, rate):
    (tmp_path / "offset.wav").write_bytes(written(np.full((1, rate), 0.5), rate=rate))
    with pytest.raises(AudioError, match=r"offset\.wav' is silent: all its samples are 0\.5"):
        load_audio(tmp_path / "offset.wav")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5\n",
            "it is text, which begins with 'version https://git-lfs.*git lfs pull",
        ),
        ("<!DOCTYPE html><html>404 Not Found</html>", "it is text, which begins with '<!DOCTYPE html>"),
    ],
)
def test_text_in_place_of_audio_is_said(tmp_path, content, message):
    (tmp_path / "a.wav").write_text(content, encoding="utf-8")
    with pytest.raises(AudioError, match=message):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("swap", [False, True])
def test_a_tuple_of_samples_and_rate_is_named(swap):
    pair = (np.zeros(16_000, dtype=np.float32), 16_000)
    with pytest.raises(ValueError, match="got a tuple of both"):
        load_audio(pair[::-1] if swap else pair)
