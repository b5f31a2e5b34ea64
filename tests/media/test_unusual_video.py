"""Files that people have beside ordinary clips: of phones, animated pictures, music with a cover, any name or size."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf import load_audio
from mister_e_hf.media.audio import AudioError
from mister_e_hf.media.video import VideoError, encode_clip, has_picture, has_sound, load_frames, open_video
from support.small_videos import RATE, clip, number_of, numbered, plain, write_clip

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

TONE = (0.3 * np.sin(np.arange(2 * RATE) / 9)).astype(np.float32)
PICTURES = [Image.fromarray(numbered(number)) for number in range(20)]


@pytest.mark.parametrize(("codec", "rotation"), [("libx264", 90), ("libx265", 270)])
def test_clips_of_phones(codec, rotation):
    """Held upright, with frames at varying times, a front that an edit list cuts off, and sound."""
    steps = np.random.default_rng(0).choice([33, 34, 17, 50], size=99)
    times = [Fraction(int(time) - 1000, 1000) for time in np.concatenate([[0], np.cumsum(steps)])]
    first = next(number for number, time in enumerate(times) if time >= 0)
    times = [time - times[first] for time in times]  # a frame begins where the cut is
    file = io.BytesIO()
    options = {"container": {"avoid_negative_ts": "disabled", "use_editlist": "1"}}
    settings = {"container": "mov", "codec": codec, "rotation": rotation, "keyframes": 30, "options": options}
    write_clip(file, [numbered(number) for number in range(100)], times, sound=TONE, **settings)
    at = [0.5 + (part + 0.5) / 6 for part in range(6)]
    expected = [max(number for number, time in enumerate(times) if time <= moment) for moment in at]
    for frames in (
        load_frames(file.getvalue(), 0.5, 1.5, 6),
        load_frames(encode_clip(file.getvalue(), 0.5, 1.5), num_frames=6),
    ):
        assert frames.shape == (6, 80, 48, 3)
        assert [number_of(np.rot90(frame, -rotation // 90)) for frame in frames] == expected
    with open_video(encode_clip(file.getvalue(), 0.5, 1.5)) as part:
        assert part.picture_seconds() == pytest.approx(1.0, abs=1e-3)
    assert len(load_audio(file.getvalue(), start=0.5, end=1.5)) == RATE


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_animated_pictures_are_video_without_sound(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    PICTURES[0].save(path, save_all=True, append_images=PICTURES[1:], duration=[50, 200] * 10, loop=0)
    assert [number_of(frame) for frame in load_frames(path, num_frames=5)] == [2, 6, 10, 14, 18]
    assert [number_of(frame) for frame in load_frames(path, 0.5, 1.5, 4)] == [5, 7, 9, 11]
    assert has_picture(path) and not has_sound(path)
    with pytest.raises(AudioError, match="has no audio track"):
        load_audio(path)


def test_webp_is_read_unless_it_is_animated(tmp_path):
    PICTURES[5].save(tmp_path / "still.webp", lossless=True)
    assert {number_of(frame) for frame in load_frames(tmp_path / "still.webp")} == {5}
    PICTURES[0].save(tmp_path / "a.webp", save_all=True, append_images=PICTURES[1:])
    for read in (load_frames, has_picture):
        with pytest.raises(VideoError, match="a.webp' is an animated WebP, which FFmpeg does not read; convert it to"):
            read(tmp_path / "a.webp")


@pytest.mark.parametrize("cover", ["mjpeg", "png"])
def test_music_with_a_cover_is_sound_without_a_picture(tmp_path, cover):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as file:
        voice = file.add_stream("libmp3lame", rate=RATE)
        voice.layout = "mono"
        picture = file.add_stream(cover, rate=1)
        picture.width, picture.height = 64, 64
        picture.pix_fmt = "yuvj420p" if cover == "mjpeg" else "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(plain((200, 9, 9), (64, 64)), "rgb24").reformat(format=picture.pix_fmt)
        frame.pts = 0
        file.mux(picture.encode(frame) + picture.encode(None))
        for begin in range(0, len(TONE) - 576, 576):
            part = av.AudioFrame.from_ndarray(TONE[None, begin : begin + 576], "fltp", "mono")
            part.sample_rate, part.pts = RATE, begin
            file.mux(voice.encode(part))
        file.mux(voice.encode(None))
    samples = load_audio(path)
    assert len(samples) / RATE == pytest.approx(2, abs=0.1) and 0.25 < np.abs(samples).max() < 0.35
    assert len(load_audio(path, start=0.5, end=1.0)) == RATE // 2
    assert has_sound(path) and not has_picture(path)
    with pytest.raises(VideoError, match="song.mp3' has no picture but a cover picture"):
        load_frames(path)


@pytest.fixture(scope="module")
def content() -> bytes:
    return clip(10, sound=TONE[: RATE // 2])


@pytest.mark.parametrize(
    "name",
    ["a b.mp4", "你好.mp4", "a%03d.mp4", "[x].mp4", "concat:a.mp4", "-i.mp4", "a\nb.mp4", "q'\".mp4", "http:x.mp4"]
    + ["pipe:0", ".mp4", "none", "x.gif", "x.m3u8", "x.raw", "a*b.mp4", "\udcff.mp4"],
)
def test_the_content_counts_whatever_the_name(tmp_path, name, content):
    path = Path(tmp_path, name)
    path.write_bytes(content)
    assert [number_of(frame) for frame in load_frames(path, num_frames=2)] == [2, 7]
    assert len(load_audio(path)) == pytest.approx(RATE / 2, abs=2048)


def test_a_frame_of_8k_is_read_and_larger_ones_are_refused(tmp_path):
    picture = np.zeros((4320, 7680, 3), dtype=np.uint8)
    picture[:, 3840:] = 255
    write_clip(tmp_path / "8k.mp4", [picture], options={"codec": {"preset": "ultrafast"}})
    (frame,) = load_frames(tmp_path / "8k.mp4", num_frames=1)
    assert frame.shape == picture.shape and frame[::999, :3800].max() < 9 and frame[::999, 3900:].min() > 240
    write_clip(tmp_path / "more.avi", [np.zeros((8000, 8000, 3), dtype=np.uint8)], container="avi", codec="mjpeg")
    with pytest.raises(VideoError, match=r"more.avi' has frames of more than 35,389,440 pixels, or does not say"):
        load_frames(tmp_path / "more.avi", num_frames=1)
