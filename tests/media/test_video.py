"""Frames of a video: which one is shown when, in every container, from every kind of source."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf import load_audio
from mister_e_hf.media.video import has_picture, has_sound, load_frames
from support.small_videos import CONTAINERS, RATE, clip, number_of, numbered, plain, write_clip

av = pytest.importorskip("av")

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "white": (235, 235, 235)}
EVERY = [(container, codec) for container, codecs in CONTAINERS.items() for codec in codecs]


def centres(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * (part + 0.5) / count for part in range(count)]


def shown(times: list[float], at: list[float]) -> list[int]:
    """Numbers of the frames that are on the screen."""
    return [max(number for number, time in enumerate(times) if time <= moment) for moment in at]


def check(frames: np.ndarray, times: list[float], at: list[float]):
    """That these frames are on the screen; a frame that begins within half a millisecond may be, or the one before."""
    numbers = [number_of(frame) for frame in frames]
    early, late = (shown(times, [max(0.0, moment + shift) for moment in at]) for shift in (-6e-4, 6e-4))
    assert all(low <= number <= high for low, number, high in zip(early, numbers, late, strict=True)), numbers


def name_of(picture: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(picture.reshape(-1, 3).mean(0) - COLOURS[name]).sum()))


# Which frame


@pytest.mark.parametrize(("container", "codec"), EVERY)
@pytest.mark.parametrize("fps", [25, 10, Fraction(30000, 1001)], ids=str)
def test_frames_are_those_at_the_centres_of_equal_parts(container, codec, fps):
    if (codec == "mpeg2video" or codec.startswith("libvpx")) and fps == 10:
        pytest.skip("these encoders do not write this rate here")
    video, times = clip(100, fps=fps, container=container, codec=codec), [float(n / Fraction(fps)) for n in range(100)]
    generator = np.random.default_rng(0)
    for count in (1, 3, 8):
        for length in (0.011, 0.5, 3.0):
            start = float(generator.uniform(0, times[-1] - length))
            frames = load_frames(video, start, start + length, count)
            assert frames.shape == (count, 48, 80, 3) and frames.dtype == np.uint8
            check(frames, times, centres(start, start + length, count))


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "webm", "mpegts"])
def test_frames_of_variable_rate(container):
    generator = np.random.default_rng(1)
    steps = generator.choice([10, 20, 33, 40, 100, 700], size=79)
    times = [Fraction(int(time), 1000) for time in np.concatenate([[0], np.cumsum(steps)])]
    file = io.BytesIO()
    codec = "libx264" if container == "mov" else None
    write_clip(file, [numbered(number) for number in range(80)], times, container=container, codec=codec)
    seconds = [float(time) for time in times]
    for start in generator.uniform(0, seconds[-1] - 2, size=12):
        check(load_frames(file.getvalue(), start, start + 2, 8), seconds, centres(start, start + 2, 8))


@pytest.mark.parametrize(("container", "codec"), EVERY)
def test_colours_change_when_they_are_said_to(container, codec):
    pictures = [plain(COLOURS[name]) for name in COLOURS for _ in range(25)]  # a second each
    file = io.BytesIO()
    write_clip(file, pictures, container=container, codec=codec)
    assert [name_of(frame) for frame in load_frames(file.getvalue())] == [name for name in COLOURS for _ in range(2)]
    for second, name in enumerate(COLOURS):
        for frame in load_frames(file.getvalue(), second, second + 1, 25):
            assert name_of(frame) == name
            assert np.abs(frame.astype(int) - COLOURS[name]).max() < 25


@pytest.mark.parametrize("container", CONTAINERS)
def test_constant_clip_gives_one_picture(container):
    file = io.BytesIO()
    write_clip(file, [plain(COLOURS["green"])] * 50, container=container)
    frames = load_frames(file.getvalue(), 0.3, 1.7)
    assert frames.shape == (8, 32, 32, 3) and frames.std(axis=(0, 1, 2)).max() < 2


@pytest.mark.parametrize("container", CONTAINERS)
def test_clip_of_one_frame_gives_it_every_time(container):
    frames = load_frames(clip(1, container=container), num_frames=5)
    assert len(frames) == 5 and {number_of(frame) for frame in frames} == {0}


@pytest.mark.parametrize(
    "settings",
    [
        {"container": "matroska", "options": {"container": {"live": "1"}}},  # neither an index nor a length
        {"container": "mp4", "options": {"container": {"movflags": "frag_keyframe+empty_moov"}}},
        {"container": "mp4", "options": {"codec": {"x264-params": "open-gop=1:intra-refresh=1"}}},
        {"container": "mpegts", "options": {"codec": {"x264-params": "open-gop=1"}}},
        {"container": "mp4", "keyframes": 1000},
        {"container": "mp4", "codec": "libx265"},
        {"container": "matroska", "codec": "libsvtav1"},
        {"container": "mpeg", "codec": "mpeg2video"},
        {"container": "flv", "codec": "libx264"},
    ],
    ids=str,
)
def test_frames_of_files_that_are_hard_to_seek_in(settings):
    video, times = clip(100, **settings), [number / 25 for number in range(100)]
    check(load_frames(video), times, centres(0, 4, 8))
    for start, length, count in ((0.0, 0.05, 1), (0.13, 0.3, 8), (1.71, 1.9, 3), (3.4, 0.5, 8)):
        check(load_frames(video, start, start + length, count), times, centres(start, start + length, count))


def test_times_count_from_the_beginning_of_the_file():
    """A picture that starts at 5 s of the container's clock, and one that an edit list cuts off at the front."""
    pictures = [numbered(number) for number in range(50)]
    for container in ("matroska", "mpegts"):
        file = io.BytesIO()
        write_clip(file, pictures, [5 + Fraction(number, 25) for number in range(50)], container=container)
        for part in ((None, None), (1.0, 2.0)):
            times = centres(part[0] or 0.0, 2.0, 4)
            check(load_frames(file.getvalue(), *part, 4), [number / 25 for number in range(50)], times)
    file = io.BytesIO()
    options = {"container": {"avoid_negative_ts": "disabled", "use_editlist": "1"}}
    write_clip(file, pictures, [Fraction(number - 20, 25) for number in range(50)], options=options)
    assert [number_of(frame) for frame in load_frames(file.getvalue(), 0.0, 1.2, 4)] == [23, 31, 38, 46]


# What is seen


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_frames_are_turned_as_the_file_says(container, rotation, mirror):
    picture = np.zeros((32, 64, 3), dtype=np.uint8)
    picture[:16, :32], picture[16:, 32:] = COLOURS["red"], COLOURS["blue"]
    file = io.BytesIO()
    write_clip(file, [picture] * 10, container=container, codec="libx264", rotation=rotation, mirror=mirror)
    expected = np.rot90(picture, rotation // 90)
    expected = expected[:, ::-1] if mirror else expected
    (frame,) = load_frames(file.getvalue(), num_frames=1)
    assert frame.shape == expected.shape
    assert np.abs(frame[4::8, 4::8].astype(int) - expected[4::8, 4::8]).max() < 25


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("libx264", "yuv444p10le"),
        ("libx264", "gray"),
        ("prores_ks", "yuv422p10le"),
        ("qtrle", "rgb555be"),
        ("qtrle", "rgb24"),
        ("png", "pal8"),
        ("png", "rgb48be"),
        ("mjpeg", "yuvj444p"),
    ],
)
def test_pixels_of_any_format_become_rgb(codec, pixels):
    video = (
        clip(25, container="mov", codec=codec, pixels=pixels)
        if pixels != "pal8"
        else clip(25, container="gif", codec="gif", pixels="rgb8")
    )
    assert [number_of(frame) for frame in load_frames(video, num_frames=5)] == [2, 7, 12, 17, 22]


def test_odd_sizes_and_pixels_that_are_not_square():
    picture = np.zeros((33, 35, 3), dtype=np.uint8)
    picture[:, 17:] = 255
    file = io.BytesIO()
    write_clip(file, [picture] * 5, container="matroska", codec="ffv1")
    np.testing.assert_allclose(load_frames(file.getvalue(), num_frames=1)[0], picture, atol=3)
    file = io.BytesIO()
    write_clip(file, [plain(COLOURS["red"])] * 5, options={"codec": {"aspect": "2:1"}})
    assert load_frames(file.getvalue(), num_frames=1).shape == (1, 32, 64, 3)


def test_transparent_parts_are_black():
    picture = np.full((32, 32, 4), 200, dtype=np.uint8)
    picture[..., 3] = 255
    picture[:16, :, 3] = 0
    picture[16:, 16:, 3] = 128
    file = io.BytesIO()
    write_clip(file, [picture] * 5, container="mov", codec="png", pixels="rgba")
    (frame,) = load_frames(file.getvalue(), num_frames=1)
    assert frame.shape == (32, 32, 3) and not frame[:16].any()
    assert (frame[16:, :16] == 200).all() and (frame[16:, 16:] == 100).all()


@pytest.mark.parametrize("container", CONTAINERS)
def test_sound_and_picture_of_one_file_agree_in_time(container):
    """A tone and white appear at 1 s and vanish at 2.2 s."""
    times = np.arange(3 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * times) * ((times >= 1) & (times < 2.2)) + 1e-3 * np.sin(100 * times)
    pictures = [plain((255,) * 3 if 25 <= number < 55 else (0,) * 3) for number in range(75)]
    file = io.BytesIO()
    write_clip(file, pictures, container=container, sound=tone.astype(np.float32))
    video = file.getvalue()
    assert has_sound(video) and has_picture(video)
    loud = np.flatnonzero(np.abs(load_audio(video)) > 0.2) / RATE
    frames = load_frames(video, 0, 2.9, 290)
    white = (np.flatnonzero(frames.mean(axis=(1, 2, 3)) > 127) + 0.5) / 100
    assert abs(loud[0] - white[0]) < 0.02 and abs(loud[-1] - white[-1]) < 0.02
    part = load_audio(video, start=1.3, end=2.0)  # inside both
    assert np.abs(part).max() > 0.4 and (load_frames(video, 1.3, 2.0).mean(axis=(1, 2, 3)) > 200).all()


# Where from


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("clip") / "clip.mp4"
    place.write_bytes(clip(50))
    return place


def test_every_kind_of_source_gives_the_same_frames(path):
    content, expected = path.read_bytes(), load_frames(path, 0.5, 1.5)
    for source in (str(path), content, bytearray(content), memoryview(content), {"path": str(path), "bytes": None}):
        np.testing.assert_array_equal(load_frames(source, 0.5, 1.5), expected)
    np.testing.assert_array_equal(load_frames({"path": "gone.mp4", "bytes": content}, 0.5, 1.5), expected)
    with path.open("rb") as file:
        file.seek(7)
        np.testing.assert_array_equal(load_frames(file, 0.5, 1.5), expected)
        assert has_picture(file) and not has_sound(file) and file.tell() == 7  # it stays open, where it was
    read, write = os.pipe()
    with ThreadPoolExecutor(1) as pool, os.fdopen(read, "rb") as pipe, os.fdopen(write, "wb") as other:
        pool.submit(lambda: (other.write(content), other.close()))
        np.testing.assert_array_equal(load_frames(pipe, 0.5, 1.5), expected)  # which cannot seek


def test_threads_read_the_same(path):
    parts = [(0.1 * number, 0.1 * number + 0.4) for number in range(12)]
    alone = [load_frames(path, *part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda part: load_frames(path, *part), parts), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size=-1):
        found = super().read(size)
        self.count += len(found)
        return found


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_a_late_turn_reads_no_more_than_an_early_one(container):
    noise = np.random.default_rng(0).integers(0, 256, size=(100, 48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    write_clip(file, [*noise] * 12, container=container, codec="mpeg2video" if container == "mpegts" else "mpeg4")
    counts = []
    for start in (1.0, 46.0):
        counted = Counted(file.getvalue())
        load_frames(counted, start, start + 1)
        counts.append(counted.count)
    assert counts[1] < 1.5 * counts[0] + 300_000
