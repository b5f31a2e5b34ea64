import math
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mister_e_hf import load_audio
from mister_e_hf.media.audio import MAX_SECONDS, AudioError
from support.small_sounds import indexed_first, muxed, noise, piped, sine, spectrum_peak, written

# What cannot be used


@pytest.fixture
def refused(tmp_path):
    """Checks that a file, its content and a stretch of it all give an error with these words and the file's name."""

    def refused(content: bytes, message: str, **settings):
        path = tmp_path / "the file.wav"
        path.write_bytes(content)
        with pytest.raises(AudioError, match=rf"the file\.wav.*{message}"):
            load_audio(path, **settings)
        with pytest.raises(AudioError, match=f"THIS.*{message}"):
            load_audio(content, name="THIS", **settings)
        with pytest.raises(AudioError, match=f"THIS.*{message}"):
            load_audio({"path": "THIS", "bytes": content}, **settings)
        with pytest.raises(AudioError, match=f"audio given as bytes.*{message}"):
            load_audio(content, **settings)

    return refused


def test_audio_errors_are_value_errors():
    assert issubclass(AudioError, ValueError)


@pytest.mark.parametrize("name", ["missing.wav", "folder", "missing/a.wav", "a\0b.wav"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / name, str(tmp_path / name), {"path": str(tmp_path / name), "bytes": None}):
        with pytest.raises(AudioError, match="Audio file '.*(missing|folder|a\0b)"):
            load_audio(source)


@pytest.mark.parametrize("stretch", [{}, {"start": 1.0}, {"end": 1.0}, {"start": 1.0, "end": 2.0}])
def test_empty_audio_raises(refused, stretch):
    refused(b"", r"is empty \(0 bytes\)", **stretch)
    for form in ("WAV", "AIFF", "W64", "AU"):
        refused(written(sine(0), form=form), "holds no samples", **stretch)
    for array in (np.zeros(0), np.zeros((2, 0)), np.zeros((0, 0))):
        with pytest.raises(AudioError, match="THIS holds no samples"):
            load_audio({"array": array, "sampling_rate": 16_000, "path": "THIS"}, **stretch)


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "MP3"])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_truncated_files_raise(refused, form, kept):
    content = written(noise(10.0), form=form)
    content = content[: round(kept * len(content))]
    refused(content, "(is cut off|is corrupt)")
    refused(content, "(is cut off|is corrupt|lasts)", start=kept * 10 - 1, end=kept * 10 + 1)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "W64"])
def test_truncated_file_reports_its_length(form):
    content = written(sine(10.0), form=form)
    with pytest.raises(AudioError, match=f"cut off: its header promises {len(content)} bytes, and it has 50000"):
        load_audio(content[:50_000])
    np.testing.assert_array_equal(load_audio(content[:-10_000]), load_audio(content)[:-5_000])
    header = content[: len(content) - 320_000]
    with pytest.raises(AudioError, match="cut off"):
        load_audio(header)


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_mp4_raises(refused, video, kept):
    sound = noise(10.0)
    index_last, index_first = muxed(sound, video=video), indexed_first(sound, video=video)
    refused(index_last[: round(kept * len(index_last))], "is corrupt")
    cut = index_first[: round(kept * len(index_first))]
    refused(cut, "(is cut off: it holds|is corrupt)")
    assert len(load_audio(cut, start=0.5, end=1.5)) == 16_000
    refused(cut, "(is cut off|is corrupt|holds no samples)", start=8.5, end=9.5)


def test_mp4_with_a_hole(refused):
    content = bytearray(indexed_first(noise(10.0)))
    begin = round(0.6 * len(content))
    content[begin : begin + 2000] = bytes(2000)
    refused(bytes(content), "is corrupt")
    refused(bytes(content), "is corrupt", start=3.0, end=9.0)
    np.testing.assert_array_equal(load_audio(bytes(content), end=4.0), load_audio(indexed_first(noise(10.0)), end=4.0))
    assert len(load_audio(bytes(content), start=8.5, end=9.5)) == 16_000


def test_truncated_mp4_reports_its_length():
    with tempfile.TemporaryDirectory() as folder:
        muxed(noise(10.0), form="mov", codec="pcm_s16le", file=f"{folder}/a.mov", movflags="faststart")
        content = Path(folder, "a.mov").read_bytes()
    with pytest.raises(AudioError, match=r"THIS is cut off: it holds \d\.\d\d s of 10\.00 s"):
        load_audio(content[: len(content) // 2], name="THIS")
    with pytest.raises(AudioError, match=r"THIS is cut off: it holds \d\.\d\d s of 10\.00 s"):
        load_audio(content[: len(content) // 2], start=2.0, end=9.0, name="THIS")
    assert len(load_audio(content[:-12_000])) == pytest.approx(160_000, abs=8_000)


@pytest.mark.parametrize(
    "content", [b"\0" * 5000, b"hello, world" * 500, b"RIFF", b"RIFF\0\0\0\0WAVE", b"fLaC", b"ID3"]
)
def test_other_files_raise(refused, content):
    refused(content, "(is corrupt|has no audio track|holds no samples)")


def test_random_bytes_are_refused(refused):
    generator = np.random.default_rng(0)
    for _ in range(10):
        refused(b"\x01" + generator.bytes(4000), "(is corrupt|has no audio track|holds no samples)")


def test_silence(refused):
    for form in ("WAV", "FLAC"):
        refused(written(np.zeros((1, 16_000)), form=form), "is silent$")
    one_step = np.ones((1, 16_000)) / 2**15
    refused(written(one_step), "is silent: its peak is 3.1e-05 of full scale 1")
    refused(
        written(np.concatenate([sine(), np.zeros((1, 32_000))], axis=1)),
        "is silent between 1.5 s and 2.5 s",
        start=1.5,
        end=2.5,
    )
    refused(
        written(np.concatenate([sine(), np.zeros((1, 32_000))], axis=1)),
        "is silent between 1.5 s and its end",
        start=1.5,
    )
    assert load_audio(written(2 * one_step * (-1.0) ** np.arange(16_000))).max() == 2**-14
    with pytest.raises(AudioError, match="array is silent"):
        load_audio(np.zeros(100), 16_000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_audio_that_is_not_finite_raises(refused, value, rate, channels):
    sound = noise(2.0, rate, channels)
    sound[-1, rate] = value
    refused(written(sound, rate, subtype="FLOAT"), "holds NaN or infinity")
    assert len(load_audio(written(sound, rate, subtype="FLOAT"), start=1.5)) == 8_000
    with pytest.raises(AudioError, match="array holds NaN or infinity"):
        load_audio(sound, rate)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_beyond_single_precision_raise(rate):
    for value in (1e300, np.float32(3e38)):
        with pytest.raises(AudioError, match=r"array has samples of (1e\+300|3e\+38), and full scale is 1"):
            load_audio(value * np.sign(sine(1.0, rate, 2000)[0]).astype(np.float64), rate)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_absurd_sampling_rates(refused, rate):
    refused(written(np.full((1, 5000), 0.5), rate), f"has a sampling rate of {rate} Hz; expected 1000 to 768000")
    with pytest.raises(AudioError, match=f"array has a sampling rate of {rate} Hz"):
        load_audio(np.full(5000, 0.5), rate)


@pytest.mark.parametrize("rate", [0, -16_000])
def test_impossible_sampling_rates(refused, rate):
    with pytest.raises(AudioError, match="sampling rate|no samples"):
        load_audio(np.full(5000, 0.5), rate)
    content = bytearray(written(sine()))
    content[24:28] = rate.to_bytes(4, "little", signed=True)
    refused(bytes(content), "sampling rate|is corrupt|no samples")


@pytest.mark.parametrize("rate", [1_000, 768_000])
def test_outermost_sampling_rates(rate):
    samples = load_audio(written(sine(2.0, rate, 100), rate))
    assert len(samples) == 32_000
    assert spectrum_peak(samples)[0] == pytest.approx(100, abs=0.5)


SOURCES = {
    "array": lambda sound: sound,
    "WAV": lambda sound: written(sound),
    "FLAC": lambda sound: written(sound, form="FLAC"),
    "OGG": lambda sound: written(sound, form="OGG"),
    "MP3": lambda sound: written(sound, form="MP3"),
    "MP4": lambda sound: muxed(sound),
    "MKV": lambda sound: muxed(sound, form="matroska"),
}


@pytest.mark.parametrize("form", SOURCES)
def test_the_longest_stretch(form):
    content = SOURCES[form](noise(5.0))
    rate = 16_000 if form == "array" else None
    assert len(load_audio(content, rate, max_seconds=5.2)) == pytest.approx(80_000, abs=2_000)
    assert len(load_audio(content, rate, max_seconds=math.inf)) == pytest.approx(80_000, abs=2_000)
    assert len(load_audio(content, rate, start=1.0, end=4.0, max_seconds=3)) == 48_000
    # What headers say is known at once.
    lasts = "lasts more than [345]" if form == "MKV" else "lasts [345]"
    for stretch in ({}, {"start": 1.0}, {"end": 3.5}, {"start": 0.25, "end": 4.0}):
        with pytest.raises(AudioError, match=rf"THIS {lasts}\.\d s, and at most 3 s are taken"):
            load_audio(content, rate, max_seconds=3, name="THIS", **stretch)


def test_ten_minutes_are_accepted():
    sound = np.zeros(601 * 1000, dtype=np.float32)
    sound[::7] = 0.5
    assert MAX_SECONDS == 600
    assert len(load_audio(sound[: 600 * 1000], 1000)) == 600 * 16_000
    with pytest.raises(AudioError, match="at most 600 s are taken. Give start and end, or raise max_seconds"):
        load_audio(sound, 1000)


def test_video_without_audio_raises(refused, tmp_path):
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 16
        picture.pix_fmt = "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
    refused((tmp_path / "video.mp4").read_bytes(), "has no audio track")


def test_a_codec_that_is_not_known(refused):
    content = muxed(sine(), form="avi", codec="pcm_s16le")
    format_of_sound = b"strf" + (16).to_bytes(4, "little")
    assert content.count(format_of_sound) == 1 or b"strf" in content
    at = content.rindex(b"strf") + 8
    refused(content[:at] + b"\x99\x99" + content[at + 2 :], "has audio of a codec that PyAV does not know")


def test_a_sampling_rate_that_changes_on_the_way(refused):
    content = muxed(sine(1.0, 44_100), 44_100, "adts") + muxed(sine(), 16_000, "adts")
    refused(content, "changes its sampling rate from 44100 to 16000 Hz on the way")


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "list.txt": "ffconcat version 1.0\nfile '{}'\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_no_other_file(tmp_path, name):
    (tmp_path / "secret.ts").write_bytes(muxed(sine(), form="mpegts"))
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format("secret.ts"))
    with path.open("rb") as file, av.open(file) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 10_000  # if nothing forbids it
    with pytest.raises(AudioError, match=f"{name}' is corrupt, or of no kind"):
        load_audio(path)
    path.write_text(PLAYLISTS[name].format(f"file://{tmp_path}/secret.ts"))
    with pytest.raises(AudioError, match=f"{name}' is corrupt, or of no kind"):
        load_audio(path)


def test_missing_pyav_raises_with_the_way_to_install_it(refused, monkeypatch):
    video, flac = muxed(sine()), piped(sine(), 16_000, "flac", "flac")
    constant, varying = muxed(sine(), 16_000, "mp3", "libmp3lame"), written(sine(), form="MP3")
    untold = muxed(sine(), 16_000, "mp3", "libmp3lame", write_xing="0")
    monkeypatch.setitem(sys.modules, "av", None)
    refused(video, r"\(Format not recognised\.\)\. PyAV .*: pip install av")
    for content in (flac, untold):
        refused(content, r"does not say its length\)\. PyAV .*: pip install av")
    assert (b"Info" in constant) != (b"Xing" in constant) and (b"Info" in varying) != (b"Xing" in varying)
    for content in (constant, varying, written(sine()), written(sine(), form="FLAC")):
        assert len(load_audio(content)) == pytest.approx(16_000, abs=2_000)


BROKEN = {
    "WAV": lambda: written(noise(1.0)),
    "WAV FLOAT": lambda: written(noise(1.0, 22_050, 2), 22_050, subtype="FLOAT"),
    "FLAC": lambda: written(noise(1.0), form="FLAC"),
    "OGG": lambda: written(noise(1.0), form="OGG"),
    "MP3": lambda: written(noise(1.0), form="MP3"),
    "MP4": lambda: muxed(noise(1.0, 44_100, 2), 44_100, video=True),
    "MKV": lambda: muxed(noise(1.0), form="matroska", video=True, late=0.4),
    "ADTS": lambda: muxed(noise(1.0), form="adts"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.slow  # a decoder that such a file breaks would take the other tests with it
@pytest.mark.parametrize("form", BROKEN)
def test_broken_files_give_finite_samples_or_an_audio_error(form):
    whole = BROKEN[form]()
    generator = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for attempt in range(250):
        content = bytearray(whole if attempt % 4 else whole[: generator.integers(1, len(whole))])
        reach = min(len(content), 300 if attempt % 3 else len(content))
        for place in generator.integers(reach, size=generator.integers(1, 12)):
            content[place] = generator.integers(256)
        if attempt % 5 == 0:
            begin = generator.integers(len(content))
            del content[begin : begin + generator.integers(100)]
        stretch = ({}, {"start": 0.25, "end": 0.75}, {"start": 0.5})[attempt % 3]
        try:
            samples = load_audio(bytes(content), name="THIS", **stretch)
        except AudioError as error:
            assert "THIS" in str(error)
            outcomes["refused"] += 1
        else:
            assert samples.dtype == np.float32 and samples.ndim == 1 and len(samples)
            assert np.isfinite(samples).all()
            outcomes["read"] += 1
    assert outcomes["refused"] > 5 and (outcomes["read"] > 5 or form == "OGG")  # whose pages have checksums
