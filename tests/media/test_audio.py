import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from mister_e_hf import load_audio
from mister_e_hf.media.audio import AudioError, encode_flac
from support.small_sounds import indexed_first, muxed, noise, piped, sine, spectrum_peak, written


def root_mean_square(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def shift(part: np.ndarray, whole: np.ndarray, at: int, reach: int = 800) -> int:
    """
    Shift in samples of the part in the whole, relative to `at`; edges, at which a resampler rings, do not count.
    """
    edge = 200
    part, whole = part.astype(np.float64), whole.astype(np.float64)
    window = whole[at + edge - reach : at + len(part) - edge + reach]
    core = part[edge : edge + len(window) - 2 * reach]
    energies = np.cumsum(np.pad(np.square(window), (1, 0)))
    energy = np.square(core).sum()
    products = np.fft.irfft(np.fft.rfft(window) * np.fft.rfft(core, len(window)).conj(), len(window))
    distances = energies[len(core) :] - energies[: -len(core)] + energy - 2 * products[: len(energies) - len(core)]
    assert distances.min() < 0.02 * energy, "the part was not found"
    return int(distances.argmin()) - reach


# Formats and rates


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000])
def test_a_sine_keeps_frequency_amplitude_and_length(rate):
    samples = load_audio(written(sine(2.0, rate), rate, subtype="FLOAT"))
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    assert abs(len(samples) - 32_000) <= 1
    frequency, amplitude = spectrum_peak(samples)
    assert frequency == pytest.approx(440, abs=0.5)
    assert amplitude == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_allclose(samples[400:31_600], sine(2.0)[0, 400:31_600], atol=1e-3)


def test_frequencies_above_8_khz_are_filtered_out():
    both = sine(1.0, 48_000, 1000) + sine(1.0, 48_000, 11_000)
    np.testing.assert_allclose(load_audio(both, 48_000)[400:-400], sine(1.0, 16_000, 1000)[0, 400:-400], atol=1e-3)


EXACT = 2**-15
FORMATS = {
    "WAV": {
        "PCM_16": EXACT,
        "PCM_24": 2**-23,
        "PCM_32": 2**-23,
        "PCM_U8": 2**-7,
        "FLOAT": 0,
        "DOUBLE": 0,
        "ULAW": 0.01,
        "ALAW": 0.01,
        "IMA_ADPCM": 0.03,
        "MS_ADPCM": 0.03,
        "GSM610": 0.03,
        "G721_32": 0.03,
    },
    "WAVEX": {"PCM_16": EXACT},
    "RF64": {"PCM_16": EXACT},
    "W64": {"PCM_16": EXACT},
    "FLAC": {"PCM_16": EXACT, "PCM_24": 2**-23, "PCM_S8": 2**-7},
    "AIFF": {"PCM_16": EXACT, "FLOAT": 0},
    "CAF": {"PCM_16": EXACT, "ALAC_16": EXACT},
    "AU": {"PCM_16": EXACT},
    "OGG": {"VORBIS": 0.03, "OPUS": 0.03},
    "MP3": {"MPEG_LAYER_III": 0.03},
}
SOUNDFILE = {f"{form} {subtype}": (form, subtype) for form, subtypes in FORMATS.items() for subtype in subtypes}


@pytest.mark.parametrize(("form", "subtype"), SOUNDFILE.values(), ids=SOUNDFILE)
def test_formats_of_soundfile(tmp_path, form, subtype):
    sound = noise(3.0)
    content = written(sound, form=form, subtype=subtype)
    path = tmp_path / "sound"  # the content decides the format, not the name
    path.write_bytes(content)
    whole = load_audio(path)
    assert abs(len(whole) - 48_000) <= 1_000  # coders fill up their last block
    assert root_mean_square(whole[:47_000] - sound[0, :47_000]) <= FORMATS[form][subtype]
    np.testing.assert_array_equal(load_audio(str(path)), whole)
    np.testing.assert_array_equal(load_audio(content), whole)
    np.testing.assert_array_equal(load_audio(bytearray(content)), whole)
    np.testing.assert_array_equal(load_audio(memoryview(content)), whole)
    np.testing.assert_array_equal(load_audio({"path": str(path), "bytes": None}), whole)
    np.testing.assert_array_equal(load_audio({"path": "elsewhere.wav", "bytes": content}), whole)
    apart = 5e-3 if subtype == "OPUS" else 1e-6  # Opus comes close to what it was only after a while
    np.testing.assert_allclose(load_audio(path, start=1.25, end=2.5), whole[20_000:40_000], atol=apart)
    np.testing.assert_allclose(load_audio(path, start=2.0), whole[32_000:], atol=apart)
    np.testing.assert_allclose(load_audio(path, end=0.5), whole[:8_000], atol=apart)


CONTAINERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "M4A": lambda sound: muxed(sound, 48_000),
    "MP4 with video": lambda sound: muxed(sound, 48_000, video=True),
    "MP4 in fragments": lambda sound: muxed(sound, 48_000, movflags="frag_keyframe+empty_moov"),
    "MP4 with the index first": lambda sound: indexed_first(sound, 48_000),
    "MOV, ALAC": lambda sound: muxed(sound, 48_000, "mov", "alac"),
    "MOV, PCM": lambda sound: muxed(sound, 48_000, "mov", "pcm_s16le", video=True),
    "MKV": lambda sound: muxed(sound, 48_000, "matroska", video=True),
    "WebM": lambda sound: muxed(sound, 48_000, "webm", "libopus"),
    "AVI": lambda sound: muxed(sound, 48_000, "avi", "libmp3lame", video=True),
    "TS": lambda sound: muxed(sound, 48_000, "mpegts", video=True),
    "ADTS": lambda sound: muxed(sound, 48_000, "adts"),
    "MPEG": lambda sound: muxed(sound, 48_000, "mpeg", "mp2", video=True),
}


@pytest.mark.parametrize("form", CONTAINERS)
def test_containers(tmp_path, form):
    sound = noise(6.0, 48_000, channels=2)
    (tmp_path / "sound").write_bytes(CONTAINERS[form](sound))
    whole = load_audio(tmp_path / "sound")
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert len(whole) == pytest.approx(6 * 16_000, abs=0.05 * 16_000)
    mean = soxr.resample(sound.mean(axis=0), 48_000, 16_000)
    offset = shift(whole[16_000:48_000], mean, 16_000)
    assert abs(offset) < 0.03 * 16_000  # an encoder's delay, if the container does not state it
    # Times in a container may be rounded to a millisecond.
    for start, end in ((0.0, 0.5), (0.7, 1.7), (1.2, 2.2), (1.9, 2.3), (2.6, 3.0), (3.1, 4.3), (4.0, 4.4), (5.0, 5.6)):
        part = load_audio(tmp_path / "sound", start=start, end=end)
        assert len(part) == round((end - start) * 16_000)
        if start:
            assert abs(shift(part, whole, round(start * 16_000), reach=400)) <= 32
    rest = load_audio((tmp_path / "sound").read_bytes(), start=5.0)
    assert len(rest) == pytest.approx(len(whole) - 80_000, abs=48)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_a_sine_in_mp4(rate):
    samples = load_audio(muxed(sine(2.0, rate), rate))
    assert len(samples) == pytest.approx(32_000, abs=1024 * 16_000 / rate)
    frequency, amplitude = spectrum_peak(samples[4_000:28_000])
    assert frequency == pytest.approx(440, abs=1)
    assert amplitude == pytest.approx(0.5, rel=0.03)


def test_audio_that_begins_after_the_picture():
    sound = noise(4.0, 44_100)
    content = muxed(sound, 44_100, video=True, late=0.7)
    whole = load_audio(content)
    assert len(whole) == pytest.approx(4.7 * 16_000, abs=1000)
    assert np.abs(whole[:10_000]).max() == 0
    assert abs(shift(whole[16_000:40_000], soxr.resample(sound[0], 44_100, 16_000), 16_000 - 11_200)) <= 400
    for start, end in ((0.2, 1.2), (0.9, 1.5), (2.5, 3.5), (4.2, 4.6)):
        part = load_audio(content, start=start, end=end)
        assert len(part) == round((end - start) * 16_000)
        np.testing.assert_allclose(part[200:-200], whole[round(start * 16_000) :][: len(part)][200:-200], atol=5e-3)


@pytest.mark.parametrize(
    ("codec", "step"), [("pcm_u8", 2**-7), ("pcm_s16le", 2**-15), ("pcm_s32le", 2**-23), ("pcm_f32le", 0)]
)
def test_samples_of_any_width_in_a_container(codec, step):
    sound = noise(2.0, channels=2)
    samples = load_audio(muxed(sound, form="matroska", codec=codec))
    np.testing.assert_allclose(samples, sound.mean(axis=0), atol=1.1 * step + 1e-6)


def test_container_that_does_not_begin_at_zero():
    sound = noise(4.0)
    whole = load_audio(muxed(sound, late=0.9))
    assert len(whole) == pytest.approx(64_000, abs=2_048)
    assert abs(shift(whole[8_000:40_000], sound[0], 8_000, reach=2_000)) <= 1_024
    part = load_audio(muxed(sound, late=0.9), start=3.0, end=3.5)
    assert abs(shift(part, whole, 48_000)) <= 16


def test_far_into_a_long_mp4():
    sound = noise(80.0)
    content = muxed(sound, video=True)
    for start in (0.0, 30.0, 79.0):
        part = load_audio(content, start=start, end=start + 1)
        assert abs(shift(part, np.pad(sound[0], (0, 1000)), round(start * 16_000), reach=min(400, round(start)))) <= 1


# A stretch of MP3 needs the frames before it, too, and so does every block after the first.
@pytest.mark.parametrize(
    ("rate", "bit_rate"), [(44_100, 64), (16_000, 24), (8_000, 8)], ids=["44 kHz", "16 kHz", "8 kHz"]
)
def test_mp3_is_the_same_in_one_go_in_blocks_and_in_stretches(rate, bit_rate):
    content = muxed(noise(50.0, rate), rate, "mp3", "libmp3lame", stream_options={"b": f"{bit_rate}k"})
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    whole = soxr.resample(samples, rate, 16_000)
    np.testing.assert_allclose(load_audio(content), whole, atol=1e-5)
    for start in (0.0, 0.5, 17.0, 26.5, 47.5):
        part = load_audio(content, start=start, end=start + 2)
        expected = whole[round(start * 16_000) : round(start * 16_000) + 32_000]
        np.testing.assert_allclose(part[200:-200], expected[200:-200], atol=1e-3)


def test_mp3_without_length_in_its_first_frame():
    sound = noise(30.0, 44_100)
    sound[:, : 5 * 44_100] *= 0.01  # few bits, from which the length would be guessed
    settings = {"flags": "+qscale", "global_quality": "500"}
    content = muxed(sound, 44_100, "mp3", "libmp3lame", write_xing="0", stream_options=settings)
    with soundfile.SoundFile(io.BytesIO(content)) as guess:
        assert guess.frames < 25 * 44_100
    whole = load_audio(content)
    assert len(whole) == pytest.approx(30 * 16_000, abs=1600)
    part = load_audio(content, start=27.5, end=28.5)
    assert shift(part, whole, round(27.5 * 16_000)) == 0


def test_mp3_with_tags_before_it():
    content = muxed(sine(3.0), 16_000, "mp3", "libmp3lame", id3v2_version="0")
    tag = b"ID3\x04\x00\x00" + bytes([0, 2, 78, 32])  # 2 * 128**2 + 78 * 128 + 32 bytes in steps of seven bits
    tagged = tag + bytes(2 * 128**2 + 78 * 128 + 32) + content
    np.testing.assert_array_equal(load_audio(tagged), load_audio(content))


PIPES = {
    "WAV": ("wav", "pcm_s16le"),
    "AIFF": ("aiff", "pcm_s16be"),
    "AU": ("au", "pcm_s16be"),
    "FLAC": ("flac", "flac"),
}


@pytest.mark.parametrize("form", PIPES)
def test_files_written_to_a_pipe_do_not_know_their_length(form):
    sound = noise(3.0)
    content = piped(sound, 16_000, *PIPES[form])
    samples = load_audio(content)
    np.testing.assert_allclose(samples, sound[0], atol=2**-14)
    np.testing.assert_allclose(load_audio(content, start=0.5, end=2.5), samples[8_000:40_000], atol=1e-6)
    np.testing.assert_allclose(load_audio(content, start=2.5, end=3.0), samples[40_000:], atol=1e-6)
    with pytest.raises(AudioError, match="at most 2 s are taken"):
        load_audio(content, max_seconds=2)


@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF, 0x7FFFF024])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_wav_with_length_zero_or_maximum(riff, data):
    content = bytearray(written(noise(3.0)))
    content[4:8], content[40:44] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    np.testing.assert_array_equal(load_audio(bytes(content)), load_audio(written(noise(3.0))))


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "MP4"])
def test_file_name_does_not_matter(tmp_path, form):
    content = muxed(sine()) if form == "MP4" else written(sine(), form=form)
    for name in ("a.raw", "a.wav", "a.mp3", "a.txt", "a", "é ö.MP4"):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_allclose(load_audio(tmp_path / name), load_audio(content), atol=1e-5)


def test_tags_that_are_not_utf8():
    content = muxed(sine(), title="Caféx")
    content = content.replace("Caféx".encode(), "Caféxx".encode("latin-1"))
    np.testing.assert_array_equal(load_audio(content), load_audio(muxed(sine())))


# Channels


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_channels_are_averaged(form):
    tones = np.concatenate([sine(1.0, frequency=440, peak=0.4), sine(1.0, frequency=1000, peak=0.8)])
    samples = load_audio(written(tones, form=form))[: tones.shape[1]]
    np.testing.assert_allclose(samples[1_000:-1_000], tones.mean(axis=0)[1_000:-1_000], atol=0.06)
    opposite = np.concatenate([tones[:1], -tones[:1]])
    if form == "WAV":
        with pytest.raises(AudioError, match="silent"):
            load_audio(written(opposite, form=form))


@pytest.mark.parametrize("channels", [3, 6, 8, 9, 64, 1024])
def test_many_channels(channels):
    sound = noise(0.25, channels=channels)
    np.testing.assert_allclose(load_audio(written(sound, subtype="FLOAT")), sound.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(load_audio(sound, 16_000), sound.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(("layout", "channels", "family"), [("7.1", 8, "1"), ("hexadecagonal", 16, "255")])
def test_many_channels_in_planes(layout, channels, family):
    sound = np.repeat(noise(2.0, 48_000), channels, axis=0)
    options = {"mapping_family": family}
    samples = load_audio(muxed(sound, 48_000, "matroska", "libopus", layout=layout, stream_options=options))
    mean = soxr.resample(sound[0], 48_000, 16_000)
    assert abs(shift(samples[4_000:24_000], mean, 4_000)) <= 16


def test_channels_that_change_on_the_way():
    mono, stereo = noise(2.0), noise(2.0, channels=2, seed=1)
    samples = load_audio(muxed(mono, form="adts") + muxed(stereo, form="adts"))
    assert len(samples) == pytest.approx(64_000, abs=5_000)
    begin = len(samples) // 2
    assert abs(shift(samples[begin + 4_000 : begin + 20_000], stereo.mean(axis=0), 4_000, reach=3_000)) <= 2_048


# Arrays


@pytest.mark.parametrize("rate", [16_000, 16_000.0, np.int64(16_000)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_of_floats(dtype, rate):
    sound = noise(1.0, channels=2).astype(dtype)
    for array in (sound[0], sound[:1], np.asfortranarray(sound[:1]), sound[0, ::-1][::-1]):
        samples = load_audio(array, rate)
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, sound[0].astype(np.float32))
    np.testing.assert_allclose(load_audio(sound, rate), sound.mean(axis=0, dtype=np.float64), atol=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_arrays_of_integers(dtype):
    info = np.iinfo(dtype)
    array = np.array([info.min, info.min // 2, 0, info.max // 2 + 1, info.max] * 10, dtype=dtype)
    samples = load_audio(array, 16_000)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, [-1, -0.5, 0, 0.5, 1] * 10, atol=2 / 2.0 ** (info.bits - 1) + 1e-7)


def test_an_array_is_as_the_file_of_it():
    sound = noise(2.0, 44_100, channels=2)
    sixteen = np.round(sound * 32767).astype(np.int16)
    content = written(sixteen, 44_100)
    np.testing.assert_allclose(load_audio(sixteen, 44_100), load_audio(content), atol=1e-6)
    np.testing.assert_allclose(
        load_audio({"array": sixteen, "sampling_rate": 44_100, "path": None}, start=0.5, end=1.5),
        load_audio({"path": None, "bytes": content}, start=0.5, end=1.5),
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        load_audio({"array": [0.5, 0.25] * 100, "sampling_rate": 16_000}), np.float32([0.5, 0.25] * 100)
    )


def test_array_is_not_modified():
    sound = noise(1.0)
    before = sound.copy()
    load_audio(sound, 16_000)[:] = 0
    np.testing.assert_array_equal(sound, before)


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.ones(100), None, "needs its sampling_rate"),
        ({"array": np.ones(100)}, None, "needs its sampling_rate"),
        (np.ones((100, 2)), 16_000, r"shape \(S,\) or \(channels, S\), got \(100, 2\)"),
        (np.ones((2, 3, 100)), 16_000, "shape"),
        (np.float32(1), 16_000, "got float32"),
        (np.ones(100, complex), 16_000, "got complex128"),
        (np.ones(100, bool), 16_000, "got bool"),
        (np.ones(100, np.uint8), 16_000, "got uint8"),
        (np.array(["a"] * 100), 16_000, "floating point or signed integers"),
        ([0.5, [0.5]], 16_000, "array cannot be read as an array"),
        (None, None, "got NoneType"),
        ({"path": None, "bytes": None}, None, "got NoneType"),
        ({}, None, "got NoneType"),
        (17, None, "got int"),
    ],
    ids=str,
)
def test_other_objects_raise(source, rate, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source, rate)


# Stretches


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "array"])
def test_a_stretch_is_a_slice_of_the_whole(rate, form):
    sound = noise(60.0, rate)
    source = (sound, rate) if form == "array" else (written(sound, rate, form=form),)
    whole = load_audio(*source)
    generator = np.random.default_rng(0)
    for start, length in zip(generator.integers(0, 570, 12) / 10, generator.integers(2, 30, 12) / 10, strict=True):
        part = load_audio(*source, start=start, end=start + length)
        begin = round(start * 16_000)
        assert len(part) == round(length * 16_000)
        np.testing.assert_allclose(part[200:-200], whole[begin : begin + len(part)][200:-200], atol=1e-4)
    np.testing.assert_array_equal(load_audio(*source, start=0), whole)
    np.testing.assert_array_equal(load_audio(*source, end=60), whole)


def test_stretches_join_to_the_whole():
    content = written(noise(10.0), form="FLAC")
    edges = [0.0, 0.1, 2.75, 2.8, 7.0, None]
    parts = [load_audio(content, start=start, end=end) for start, end in zip(edges, edges[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(parts), load_audio(content))


@pytest.mark.parametrize("form", ["array", "WAV", "FLAC", "MP3", "OGG", "MP4", "MKV", "FLAC by a pipe"])
def test_stretches_beyond_the_end(form):
    sound = noise(3.0)
    source = {
        "array": lambda: (sound, 16_000),
        "MP4": lambda: (muxed(sound),),
        "MKV": lambda: (muxed(sound, form="matroska"),),
        "FLAC by a pipe": lambda: (piped(sound, 16_000, "flac", "flac"),),
    }.get(form, lambda: (written(sound, form=form),))()
    assert len(load_audio(*source, start=1.0, end=3.4)) == pytest.approx(32_000, abs=2_000)
    with pytest.raises(AudioError, match=r"THIS.* ends at 3\.\d\d s, but the requested part at 3\.8 s"):
        load_audio(*source, start=1.0, end=3.8, name="THIS")
    unknown = form in ("array", "MKV", "FLAC by a pipe")
    beyond = "holds no samples between" if unknown else r"lasts 3\.\d\d s; the requested part starts at"
    for start in (3.2, 1e6, 1e300):
        for end in (None, 2 * start):
            with pytest.raises(AudioError, match=f"THIS {beyond}"):
                load_audio(*source, start=start, end=end, name="THIS")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (-1, None),
        (None, 0),
        (None, -1),
        (2, 1),
        (1, 1),
        (math.nan, None),
        (None, math.nan),
        (math.inf, None),
        (0, math.inf),
    ],
)
def test_invalid_times_raise(tmp_path, start, end):
    with pytest.raises(ValueError, match="0 <= start < end"):
        load_audio(sine(), 16_000, start=start, end=end)
    with pytest.raises(ValueError, match="0 <= start < end"):
        load_audio(tmp_path / "missing.wav", start=start, end=end)


# Memory

MEASURE = """
import resource, sys
from mister_e_hf.media.audio import load_audio

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def read():
    with open("/proc/self/io") as counters:
        return int(next(counters).split()[1])

small, large = sys.argv[1:]
for start in (0, 1):
    load_audio(small, start=start, end=start + 1)
before, read_before = peak(), read()
for start in (0, 1700, 3500):
    assert len(load_audio(large, start=start, end=start + 1)) == 16000
print(read() - read_before)
for stretch in ({}, {"start": 100, "end": 160}):
    try:
        load_audio(large, **stretch)
    except ValueError as error:
        assert "lasts" in str(error) or "silent" in str(error)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", ["WAV", "FLAC", "MOV"])
def test_memory_does_not_depend_on_the_length_of_a_file(tmp_path, form):
    # An hour; of eight channels, where it costs nothing to write.
    small, large = tmp_path / "small", tmp_path / "large"
    if form == "WAV":
        second = noise(1.0, 48_000, 8)
        small.write_bytes(written(np.tile(second, 3), 48_000))
        content = written(second, 48_000)
        header, data = content[: -16 * 48_000], content[-16 * 48_000 :]
        size = 3600 * len(data)
        with large.open("wb") as file:  # sparse, but for the stretches of a second
            file.write(header[:4] + (size + len(header) - 8).to_bytes(4, "little") + header[8:-4])
            file.write(size.to_bytes(4, "little"))
            for start in (0, 1700, 3500):
                file.seek(len(header) + start * len(data))
                file.write(data)
            file.truncate(len(header) + size)
    elif form == "FLAC":
        small.write_bytes(written(noise(3.0, 8_000), 8_000, "FLAC"))
        with soundfile.SoundFile(large, "w", 8_000, 1, "PCM_16", format="FLAC") as file:
            for seed in range(36):
                file.write(np.tile(noise(10.0, 8_000, seed=seed)[0], 10))
    else:
        small.write_bytes(muxed(sine(3.0, 8_000), 8_000, "mov", "pcm_s16le"))
        large.write_bytes(muxed(np.tile(noise(10.0, 8_000), 360), 8_000, "mov", "pcm_s16le"))
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    call = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert call.returncode == 0, call.stderr
    read, memory = map(int, call.stdout.split())
    assert read < large.stat().st_size / 8
    if form == "WAV":
        assert (
            memory < 60 * 48_000 * 8 * 4 / 2
        )  # half of what the longer stretch takes before its channels are averaged
    else:
        assert memory < 3600 * 8_000 * 4 / 4


# FLAC


def test_sixteen_bits_come_back_bit_equal():
    values = np.arange(-(2**15), 2**15, dtype=np.int32).astype(np.int16)
    samples = load_audio(np.random.default_rng(0).permutation(values), 16_000)
    content = encode_flac(samples)
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert (file.format, file.subtype, file.channels, file.samplerate) == ("FLAC", "PCM_16", 1, 16_000)
        assert np.array_equal(file.read(dtype="int16"), np.round(samples * 2**15).astype(np.int16))
    assert load_audio(content).tobytes() == samples.tobytes()


@pytest.mark.parametrize("peak", [1.0, 1.25, 30.0])
def test_peaks_above_full_scale_are_scaled_not_clipped(peak):
    samples = sine(peak=peak)[0]
    found = load_audio(encode_flac(samples))
    np.testing.assert_allclose(found, samples / max(1.0, np.abs(samples).max()), atol=2**-14)


def test_peaks_below_full_scale_are_not_scaled():
    samples = noise(2.0)[0]
    np.testing.assert_allclose(load_audio(encode_flac(samples)), samples, atol=2**-15)


# Real audio


@pytest.mark.shared
@pytest.mark.parametrize("name", ["dia0_utt0", "dia100_utt1", "dia100_utt5", "dia101_utt0"])
def test_real_clips(shared_dir: Path, name):
    path = shared_dir / "data" / "meld_clips" / f"{name}.wav"
    info = soundfile.info(path)
    samples = load_audio(path)
    assert len(samples) == pytest.approx(info.duration * 16_000, abs=2)
    assert 0.01 < np.abs(samples).max() <= 1.1
    np.testing.assert_array_equal(load_audio(path.read_bytes()), samples)
    middle = load_audio(path, start=0.5, end=1.0)
    np.testing.assert_allclose(middle[200:-200], samples[8_000:16_000][200:-200], atol=1e-3)


@pytest.mark.shared
def test_real_clips_in_a_table(shared_dir: Path):
    rows = pq.read_table(shared_dir / "data" / "ravdess" / "test.parquet").to_pylist()
    assert len(rows) == 120
    for row in rows:
        samples = load_audio(row["audio"])
        assert len(samples) == pytest.approx(row["duration"] * 16_000, abs=0.01 * 16_000)
        assert np.abs(samples).max() > 2**-10
