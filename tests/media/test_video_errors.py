"""Video that cannot be used: the error names the file and says what is wrong with it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.media.audio import AudioError, load_audio
from mister_e_hf.media.video import VideoError, has_picture, has_sound, load_frames
from support.small_videos import RATE, clip, number_of, numbered, plain, write_clip

av = pytest.importorskip("av")


def sound_alone(cover: bool) -> bytes:
    """An MP3-like file: sound, with a cover picture if asked."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska" if not cover else "mp4") as container:
        voice = container.add_stream("aac", rate=RATE)
        voice.layout = "mono"
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(plain((9, 9, 9)), "rgb24").reformat(format="yuvj420p")
            frame.pts = 0
            container.mux(picture.encode(frame))
        samples = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32)
        for begin in range(0, RATE - 1024, 1024):
            part = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], "fltp", "mono")
            part.sample_rate, part.pts = RATE, begin
            container.mux(voice.encode(part))
        container.mux(voice.encode(None))
    return file.getvalue()


def damaged(video: bytes, begin: int, size: int = 400) -> bytes:
    return video[:begin] + np.random.default_rng(begin).bytes(size) + video[begin + size :]


def test_missing_and_empty_files_raise(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for source, message in {
        tmp_path / "gone.mp4": "Video file '.*gone.mp4' not found",
        tmp_path: r"not found \(it is a folder, pipe or device\)",
        tmp_path / "empty.mp4": "'.*empty.mp4' is empty",
        b"": "video given as bytes is empty",
        "a\0b.mp4": "cannot be opened|not found",
    }.items():
        for read in (load_frames, has_picture, has_sound):
            with pytest.raises(VideoError, match=message):
                read(source)
    with pytest.raises(VideoError, match="turn 3 is empty"):
        load_frames(b"", name="turn 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is text\n" * 100, "is damaged, or not a video|is not a video"),
        (np.random.default_rng(0).bytes(3000), "is damaged, or not a video"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is not a video: FFmpeg takes it for 'concat'|is damaged"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n", "is damaged|is not a video"),
    ],
)
def test_other_files_raise(content, message, tmp_path):
    for name in ("clip.mp4", "clip.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=message):
            load_frames(tmp_path / name)


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_has_no_picture(cover):
    video = sound_alone(cover)
    assert not has_picture(video) and has_sound(video)
    with pytest.raises(VideoError, match="has no picture but a cover picture$" if cover else "has no picture$"):
        load_frames(video)


def test_picture_alone_has_no_sound():
    assert has_picture(clip(5)) and not has_sound(clip(5))


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_turns_beyond_the_end_raise(container):
    video = clip(50, container=container)
    with pytest.raises(VideoError, match=r"lasts (1.9|2.0)\d s; the requested part starts at 2.5 s"):
        load_frames(video, 2.5, 3)
    with pytest.raises(VideoError, match=r"(has a picture of|lasts) (1.9|2.0)\d s; the requested part starts at 3 s"):
        load_frames(video, 3)
    with pytest.raises(VideoError, match=r"lasts (1.9|2.0)\d s, but the requested part ends at 2.7 s"):
        load_frames(video, 1.5, 2.7)
    assert number_of(load_frames(video, 1.8, 2.4)[-1]) == 49  # as subtitles often end


def test_picture_that_ends_before_the_sound():
    """Its last frame stays, as players show it; but a turn that is all behind it has no picture."""
    file = io.BytesIO()
    sound = (0.3 * np.sin(np.arange(4 * RATE) / 9)).astype(np.float32)
    write_clip(file, [numbered(number) for number in range(50)], sound=sound)
    video = file.getvalue()
    assert [number_of(frame) for frame in load_frames(video, 1.0, 3.0, 4)] == [31, 43, 49, 49]
    assert number_of(load_frames(video)[-1]) == 46  # the whole picture
    with pytest.raises(VideoError, match=r"has no picture after 2.00 s"):
        load_frames(video, 3.0, 4.0)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_sound_that_ends_before_the_picture(container):
    file = io.BytesIO()
    sound = (0.3 * np.sin(np.arange(RATE // 2) / 9)).astype(np.float32)
    write_clip(file, [numbered(number) for number in range(50)], container=container, sound=sound)
    assert len(load_frames(file.getvalue(), 1.0, 2.0)) == 8
    with pytest.raises(AudioError, match=r"^the audio of call ends at 0.5\d s, but the requested part at 2 s"):
        load_audio(file.getvalue(), start=0.0, end=2.0, name="call")
    said = r"^the audio of call lasts 0.5\d s; the requested part starts" if container == "mp4" else "call holds no"
    with pytest.raises(AudioError, match=said):
        load_audio(file.getvalue(), start=1.0, end=2.0, name="call")


@pytest.mark.parametrize("camera", [False, True])
def test_mpeg_ts_that_ends_within_a_packet_is_reported(caplog, camera):
    """Such a file does not state its length, so that what is lost cannot be counted."""
    file = io.BytesIO()
    sound = (0.3 * np.sin(np.arange(4 * RATE) / 9)).astype(np.float32)
    options = {"container": {"mpegts_m2ts_mode": "1"}} if camera else {}
    write_clip(file, [numbered(number) for number in range(100)], container="mpegts", sound=sound, options=options)
    whole = file.getvalue()
    load_audio(whole), load_frames(whole)
    assert not caplog.records
    cut = whole[: len(whole) * 6 // 10 // 192 // 188 * 192 * 188 + 50]
    assert len(load_audio(cut, name=f"sound {camera}")) < 3 * RATE
    load_frames(cut, name=f"picture {camera}")
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} {camera} ends within a packet of MPEG-TS; it may be cut off" for name in ("sound", "picture")
    ]


def noise(count: int, **settings) -> bytes:
    """A clip that cannot be compressed, so that its file is much larger than its index."""
    file = io.BytesIO()
    pictures = np.random.default_rng(0).integers(0, 256, size=(count, 48, 80, 3), dtype=np.uint8)
    write_clip(file, list(pictures), **settings)
    return file.getvalue()


@pytest.mark.parametrize("container", ["matroska", "webm", "avi", "mpegts"])
def test_truncated_files_give_what_is_there(container):
    whole = noise(75, container=container)
    cut = whole[: len(whole) * 2 // 3]
    np.testing.assert_array_equal(load_frames(cut, 0.0, 1.0, 4), load_frames(whole, 0.0, 1.0, 4))
    with pytest.raises(VideoError, match="is cut off: it holds|lasts|is damaged"):
        load_frames(cut, 2.0, 2.9)


def test_truncated_mp4_raises(tmp_path):
    whole = noise(75)
    with pytest.raises(VideoError, match="is damaged, or not a video that PyAV can read"):  # its index is at the end
        load_frames(whole[: len(whole) // 2])
    pictures = [numbered(number) for number in range(100)]
    write_clip(tmp_path / "early.mp4", pictures, options={"container": {"movflags": "faststart"}})
    early = (tmp_path / "early.mp4").read_bytes()
    np.testing.assert_array_equal(load_frames(early[:-600], 0, 1, 4), load_frames(early, 0, 1, 4))
    with pytest.raises(VideoError, match="is cut off|is damaged"):
        load_frames(early[:-600], 3.0, 3.9)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")],
)
def test_damage_gives_frames_or_a_video_error(container, codec):
    whole, errors = noise(30, container=container, codec=codec, keyframes=10), 0
    for begin in np.linspace(len(whole) // 10, len(whole) - 500, 25).astype(int):
        try:
            assert load_frames(damaged(whole, int(begin)), 0.0, 1.2, 6).shape == (6, 48, 80, 3)
        except VideoError as error:
            errors += 1
            assert str(error).startswith("video given as bytes ")
    assert errors or codec == "libvpx-vp9"  # which takes any bits for a picture


def test_lost_parts_do_not_shift_what_is_behind_them():
    whole = clip(100, container="mpegts")
    place = (len(whole) // 2 // 188) * 188
    lost = whole[:place] + whole[place + 4 * 188 :]
    for start in np.arange(0, 3.8, 0.2):
        try:
            frames = load_frames(lost, float(start), float(start) + 0.15, 2)
        except VideoError:
            continue
        assert [number_of(frame) for frame in frames] == [int((start + part) * 25 + 1e-6) for part in (0.0375, 0.1125)]


def test_frames_that_are_too_large_raise():
    video = clip(3, container="mov", codec="qtrle")
    place = video.index(b"rle ") + 28  # width and height of the sample description
    large = video[:place] + (60_000).to_bytes(2, "big") + (60_000).to_bytes(2, "big") + video[place + 4 :]
    with pytest.raises(VideoError, match="has frames of more than 35,389,440 pixels"):
        load_frames(large)


def test_nothing_stays_open(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip(20))
    (tmp_path / "cut.mp4").write_bytes(clip(20)[:900])
    (tmp_path / "sound.mkv").write_bytes(sound_alone(False))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        load_frames(tmp_path / "clip.mp4")
        has_sound(tmp_path / "clip.mp4")
        for name in ("cut.mp4", "sound.mkv", "clip.mp4"):
            with pytest.raises(VideoError):
                load_frames(tmp_path / name, 50, 60)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after <= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"video": None}, "Expected a video as a path, .*; got NoneType"),
        ({"video": 5}, "got int"),
        ({"video": np.zeros((3, 4, 4, 3))}, "got ndarray"),
        ({"video": {}}, "'path' of a dictionary of video must be a path, got NoneType"),
        ({"video": {"bytes": "x"}}, "'bytes' of a dictionary of video must be bytes, got str"),
        ({"video": {"array": 1}}, "unknown key 'array'"),
        ({"video": io.StringIO("x")}, "was opened as text"),
        ({"video": b"x", "start": -1}, "Expected 0 <= start < end"),
        ({"video": b"x", "start": 2, "end": 2}, "Expected 0 <= start < end"),
        ({"video": b"x", "end": float("inf")}, "Expected 0 <= start < end"),
        ({"video": b"x", "start": float("nan")}, "Expected 0 <= start < end"),
        ({"video": b"x", "start": "1"}, "must be numbers of seconds, got '1'"),
        ({"video": b"x", "num_frames": 0}, "num_frames must be a whole number from 1 to"),
        ({"video": b"x", "num_frames": 2.0}, "num_frames must be a whole number from 1 to"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(InputError, match=message):
        load_frames(**arguments)


def test_a_decoder_of_torchcodec_is_refused_with_the_way_out():
    decoder = type("VideoDecoder", (), {"get_frames_played_at": None})()
    with pytest.raises(InputError, match=r"got VideoDecoder. Cast the column to datasets.Video\(decode=False\)"):
        load_frames(decoder)


def test_without_pyav_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from mister_e_hf.media.video import VideoError, load_frames\n"
        "try: load_frames(b'x')\n"
        "except VideoError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Video is read with PyAV, which is not installed: pip install av"


def test_h264_in_wmv_is_refused_and_other_wmv_is_read(tmp_path):
    frames = [plain((200, 0, 0))] * 8
    write_clip(tmp_path / "bad.wmv", frames, fps=4, container="asf", codec="libx264")
    with pytest.raises(VideoError, match=r"bad.wmv' holds H.264 in a WMV \(ASF\) file.*MP4"):
        load_frames(tmp_path / "bad.wmv")
    write_clip(tmp_path / "good.wmv", frames, fps=4, container="asf", codec="mpeg4")
    assert load_frames(tmp_path / "good.wmv", num_frames=2).shape[0] == 2
