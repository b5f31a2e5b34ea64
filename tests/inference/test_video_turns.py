"""Turns with video: their picture and their audio, from one file, beside turns without."""

import io
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

pytest.importorskip("av", reason="needs the extra `av`")

from mister_e_hf import ConversationEmotionPipeline, cli, load_audio  # noqa: E402
from mister_e_hf.base.errors import InputError  # noqa: E402
from mister_e_hf.corpora.schema import dialogue_features  # noqa: E402
from mister_e_hf.hub.checkpoint import save_checkpoint  # noqa: E402
from mister_e_hf.inference.raw_turns import read_dialogue  # noqa: E402
from mister_e_hf.inference.serve import emotions  # noqa: E402
from mister_e_hf.media.video import load_frames  # noqa: E402
from support.model_contract import small_model  # noqa: E402
from support.small_checkpoint import WIDTH, write_checkpoint, write_video_checkpoint  # noqa: E402
from support.small_encoders import LABELS, tone  # noqa: E402
from support.small_pipeline import TASK  # noqa: E402
from support.small_videos import plain, write_clip  # noqa: E402

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
SRT = "1\n00:00:00,000 --> 00:00:01,000\nso you see\n\n2\n00:00:01,000 --> 00:00:02,500\nwell\n"


@pytest.fixture(scope="module")
def erc(tmp_path_factory) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=write_video_checkpoint(tmp_path_factory.mktemp("video") / "run"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three seconds of red, green and blue with a tone; the same without sound; a tone alone; and bytes."""
    folder = tmp_path_factory.mktemp("clips")
    pictures = [plain(colour) for colour in (RED, GREEN, BLUE) for _ in range(10)]
    write_clip(folder / "clip.mp4", pictures, fps=10, sound=tone(3, 220))
    write_clip(folder / "silent.mp4", pictures, fps=10)
    soundfile.write(folder / "tone.wav", tone(3, 220), 16_000)
    (folder / "broken.mp4").write_bytes(bytes(range(256)) * 9)
    return folder


def numbers(dialogue: list[dict]) -> np.ndarray:
    return np.array([[turn["scores"][label] for label in LABELS] for turn in dialogue])


def assert_same(found: list[dict], expected: list[dict]):
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0, atol=1e-5)


def presence(erc, turns: list[dict]) -> dict[str, list[bool]]:
    with torch.inference_mode():
        _, present = erc._encoders.embed(read_dialogue(turns, "dialogue 0"))
    return {name: there.tolist() for name, there in present.items()}


class Pipe(io.BytesIO):
    """A file that can be read once, as a download is."""

    def seekable(self) -> bool:
        return False


class Response:
    """What has nothing but `read`, as some clients' responses."""

    def __init__(self, content: bytes):
        self.read = io.BytesIO(content).read


FORMS = {
    "path": str,
    "Path": Path,
    "bytes": lambda path: path.read_bytes(),
    "file": lambda path: io.BytesIO(path.read_bytes()),
    "stream": lambda path: Pipe(path.read_bytes()),
    "read alone": lambda path: Response(path.read_bytes()),
    "dictionary with path": lambda path: {"path": str(path), "bytes": None},
    "dictionary with bytes": lambda path: {"path": "clip.mp4", "bytes": path.read_bytes()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_video_gives_picture_and_audio(erc, clips, form):
    turn = {"video": FORMS[form](clips / "clip.mp4"), "text": "well", "start": 0.5, "end": 2}
    expected = erc([{"video": str(clips / "clip.mp4"), "text": "well", "start": 0.5, "end": 2}])
    assert_same(erc([turn]), expected)
    without = numbers(erc([{"audio": str(clips / "clip.mp4"), "text": "well", "start": 0.5, "end": 2}]))
    assert np.abs(without - numbers(expected)).max() > 1e-3


def test_a_closed_file_is_named(erc, clips):
    with (clips / "clip.mp4").open("rb") as file:
        pass
    with pytest.raises(InputError, match="dialogue 0, turn 0: video is a file that is closed"):
        erc([{"video": file}])


def test_it_equals_frames_and_audio_through_encoders_and_model(erc, clips):
    found = erc([{"video": clips / "clip.mp4", "start": 1, "end": 2}, {"text": "so you see"}])
    contents = {
        "visual": load_frames(clips / "clip.mp4", 1, 2, 8),
        "speech": load_audio(clips / "clip.mp4", start=1, end=2),
        "text": "so you see",
    }
    inputs = {}
    for modality, content in contents.items():
        encoder, processor = erc._encoders.encoder(modality)
        with torch.no_grad():
            vector = encoder(**processor([content])).embeddings[0]
        place = int(modality == "text")
        inputs[f"{modality}_embeddings"] = torch.full((1, 2, WIDTH), torch.nan)
        inputs[f"{modality}_embeddings"][0, place] = vector
        inputs[f"{modality}_mask"] = torch.arange(2)[None] == place
    with torch.no_grad():
        expected = erc.model(**inputs).logits[0].softmax(-1)
    np.testing.assert_allclose(numbers(found), expected, rtol=0, atol=1e-5)


def test_turns_of_all_kinds_in_one_dialogue_and_in_batches(erc, clips):
    one = [
        {"video": clips / "clip.mp4", "text": "so", "end": 1},
        {"audio": clips / "tone.wav", "start": 1},
        {"text": "well"},
        {"video": clips / "silent.mp4"},
        {"video": clips / "clip.mp4", "audio": clips / "tone.wav", "start": 1, "end": 2},
        {"visual_embedding": [0.5] * WIDTH, "video": clips / "clip.mp4"},
        {},
    ]
    many = [one, one[2:4], [{"video": clips / "clip.mp4", "start": float(n % 3), "end": n % 3 + 1} for n in range(40)]]
    for found, turns in zip(erc(many, batch_size=3), many, strict=True):
        assert_same(found, erc(turns))
    assert presence(erc, one) == {
        "speech": [True, True, False, False, True, True, False],
        "text": [True, False, True, False, False, False, False],
        "visual": [True, False, False, True, True, True, False],
    }
    # a vector in place of the picture: the audio is still the file's
    assert_same(erc(one[5:6]), erc([{"visual_embedding": [0.5] * WIDTH, "audio": clips / "clip.mp4"}]))


def test_segments_of_a_recording_are_its_turns(erc, clips, tmp_path):
    (tmp_path / "clip.srt").write_text(SRT)
    expected = erc(
        [
            {"video": clips / "clip.mp4", "start": 0, "end": 1, "text": "so you see"},
            {"video": clips / "clip.mp4", "start": 1, "end": 2.5, "text": "well"},
        ]
    )
    for segments in (tmp_path / "clip.srt", [(0, 1, "so you see"), {"start": 1, "end": 2.5, "text": "well"}]):
        for video in (clips / "clip.mp4", io.BytesIO((clips / "clip.mp4").read_bytes())):
            assert_same(erc({"video": video, "segments": segments}), expected)
    both = {"video": clips / "silent.mp4", "audio": clips / "tone.wav", "segments": [(0, 1), (1, 2)]}
    assert_same(
        erc(both),
        erc([{name: both[name] for name in ("video", "audio")} | {"start": n, "end": n + 1} for n in (0, 1)]),
    )


WRONG = {
    "missing": ({"video": "nowhere.mp4"}, "dialogue 0, turn 1: Video file 'nowhere.mp4' not found"),
    "damaged": ({"video": "broken.mp4"}, "dialogue 0, turn 1: 'broken.mp4'"),
    "without picture": ({"video": "tone.wav"}, "dialogue 0, turn 1: 'tone.wav' has no picture"),
    "behind the end": ({"video": "silent.mp4", "start": 9, "end": 10}, "dialogue 0, turn 1: 'silent.mp4'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_video_that_cannot_be_used_stops_or_is_missing(erc, clips, monkeypatch, caplog, case):
    monkeypatch.chdir(clips)
    turn, message = WRONG[case]
    turns = [{"text": "well"}, {"text": "so"} | turn]
    with pytest.raises(InputError, match=message):
        erc(turns)
    with caplog.at_level(logging.WARNING):
        found = erc(turns, bad_video="missing")
    has_sound = case == "without picture"  # which is used
    others = {"audio": "tone.wav"} if has_sound else {}
    assert_same(found, erc([turns[0], {"text": "so"} | others]))
    assert "dialogue 0, turn 1 is used without video: " in caplog.text
    with pytest.raises(ValueError, match="bad_video must be 'error' or 'missing', got 'skip'"):
        erc(turns, bad_video="skip")


def test_other_things_are_not_video(tmp_path):
    (tmp_path / "clip.txt").write_text("a")
    with (tmp_path / "clip.txt").open() as text:
        for video, message in {
            5: "video must be a path, bytes, a binary file or a dictionary of path and bytes; got int",
            text: "video is a file opened as text; open it with mode 'rb'",
        }.items():
            with pytest.raises(InputError, match=f"dialogue 0, turn 0: {message}"):
                read_dialogue([{"video": video}], "dialogue 0")
    with pytest.raises(InputError, match="video has the unknown field 'file'; did you mean 'path'"):
        read_dialogue([{"video": {"file": "clip.mp4"}}], "dialogue 0")
    with pytest.raises(InputError, match="unknown field 'clip'; did you mean 'video'"):
        read_dialogue([{"clip": "clip.mp4"}], "dialogue 0")
    assert read_dialogue([{"video": {"path": None, "bytes": None}}], "dialogue 0")[0].video is None
    with pytest.raises(InputError, match="segment 0 has video, which only the recording may have"):
        read_dialogue({"audio": "a.wav", "segments": [{"start": 0, "end": 1, "video": "b.mp4"}]}, "dialogue 0")


@pytest.mark.parametrize("name", ["mister_e", "sdt", "bc_lstm"])
def test_a_model_without_video_names_those_that_take_it(name):
    erc = pipeline(TASK, model=small_model(name, torch.float32))
    others = "models that take video: emo_caps, egmf_fusion, egmf, logistic_regression, bc_lstm, dialogue_rnn, mult"
    title = type(erc.model).title
    with pytest.raises(InputError) as raised:
        erc([{"text_embedding": [0.0] * 4}, {"video": "clip0.mp4", "text": "well"}])
    assert str(raised.value) == (
        f"dialogue 0, turn 1 has video, and {title} reads audio and transcripts alone; {others}. For the audio of the "
        "file alone, pass {\"audio\": 'clip0.mp4'}"
    )
    with pytest.raises(InputError) as raised:
        erc([{"visual_embedding": [0.0] * 3}])
    assert str(raised.value) == (
        f"dialogue 0, turn 0 has visual_embedding, and {title} reads audio and transcripts alone; {others}"
    )


def test_an_encoder_of_video_is_only_for_a_model_that_reads_it(erc):
    pair = erc._encoders.encoder("visual")
    for name in ("mister_e", "sdt"):
        with pytest.raises(
            InputError, match=r"encoders\['visual'\] is given, and the model takes .*speech and text al"
        ):
            pipeline(TASK, model=small_model(name, torch.float32), encoders={"visual": pair})


def test_pictures_of_different_sizes_are_one_clear_error(erc, clips, tmp_path, monkeypatch):
    write_clip(tmp_path / "wide.mp4", [plain(RED, (64, 32))] * 10, fps=10)
    _, processor = erc._encoders.encoder("visual")
    monkeypatch.setattr(processor.image_processor, "size", {"shortest_edge": 16})
    turns = [{"video": tmp_path / "wide.mp4"}, {"video": clips / "silent.mp4"}]
    with pytest.raises(InputError, match="makes pictures of different sizes .* set a size of height and width"):
        erc(turns)


def row_of(clips: Path) -> dict:
    turn = dict.fromkeys(dialogue_features(LABELS, ["valence"])["utterances"].feature)
    video = {"path": str(clips / "clip.mp4"), "bytes": None}
    turns = [
        turn | {"utterance_id": "a", "text": "so", "video": video, "start": 0.0, "end": 1.0, "valence": 2.5},
        turn | {"utterance_id": "b", "text": "well", "audio": {"path": str(clips / "tone.wav"), "bytes": None}},
    ]
    return {"dialogue_id": "d", "utterances": turns}


def test_rows_of_a_corpus_are_read_by_models_with_and_without_video(erc, clips):
    data = datasets.Dataset.from_list([row_of(clips)] * 2, features=dialogue_features(LABELS, ["valence"]))
    turns = erc(data[0])
    # the corpus says that the first turn has no audio
    with torch.inference_mode():
        vector = erc._encoders.embed(read_dialogue([row_of(clips)["utterances"][0]], "d"))[0]["visual"][0]
    assert_same(
        turns, erc([{"visual_embedding": vector, "text": "so"}, {"audio": clips / "tone.wav", "text": "well"}])
    )
    assert_same(list(erc(data))[1], turns)
    plain_erc = pipeline(TASK, model=small_model("mister_e", torch.float32), encoders={})
    vectors = [{"utterance_id": "a", "video": {"path": "nowhere.mp4"}, "text_embedding": [0.5] * 4}]
    assert plain_erc(vectors) == plain_erc([{"text_embedding": [0.5] * 4}])


def test_vectors_beside_the_turns_of_a_row_are_used(erc):
    generator = np.random.default_rng(0)
    vectors = {name: generator.normal(size=(2, WIDTH)).tolist() for name in ("speech", "text", "visual")}
    turns = [{"utterance_id": "a", "text": None}, {"utterance_id": "b", "text": None}]
    row = {"dialogue_id": "d", "utterances": turns, "has_video": [True, False]}
    row |= {f"{name}_features": values for name, values in vectors.items()}
    expected = [{f"{name}_embedding": values[number] for name, values in vectors.items()} for number in (0, 1)]
    expected[1].pop("visual_embedding")
    assert_same(erc(row), erc(expected))
    with pytest.raises(InputError, match="'d' has 2 visual_features, but 1 values of has_video"):
        erc(row | {"has_video": [True]})
    with pytest.raises(InputError, match="'d' has 1 turns in utterances, and 2 vectors"):
        erc(row | {"utterances": turns[:1]})


def test_predict_and_the_page_take_a_video(erc, clips, tmp_path, capsys):
    folder = erc.model.config._name_or_path
    (clips / "clip.srt").write_text(SRT)
    words = ["predict", str(clips / "clip.mp4"), "--model", folder, "--out", str(tmp_path / "out.jsonl")]
    assert cli.main(words) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = erc({"video": clips / "clip.mp4", "segments": clips / "clip.srt"})
    assert_same(lines, expected)
    paths = [str(clips / "clip.mp4")]
    rows, shown = emotions(erc, [["so you see", "0", "1", ""], ["well", "1", "2.5", ""]], paths, reads_video=True)
    assert [row[0] for row in rows] == ["so you see", "well"]
    for turn in expected:
        assert f"<td>{turn['label']}</td><td>{turn['score']:.2f}</td>" in shown
    (clips / "turns.csv").write_text(
        "text,video,start,end\nso you see,clip.mp4,0,1\nwell,clip.mp4,1,2.5\ngrr,silent.mp4,2.5,3\n"
    )
    capsys.readouterr()
    for model in (folder, write_checkpoint(tmp_path / "speech_and_text")):
        assert cli.main(["predict", str(clips / "turns.csv"), "--model", str(model)]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        file = "video" if model == folder else "audio"
        turns = [
            {file: clips / "clip.mp4", "start": 0, "end": 1, "text": "so you see"},
            {file: clips / "clip.mp4", "start": 1, "end": 2.5, "text": "well"},
            {"text": "grr"} | ({"video": clips / "silent.mp4", "start": 2.5, "end": 3} if file == "video" else {}),
        ]
        assert_same(lines, pipeline(TASK, model=model)(turns))
    (tmp_path / "bare").mkdir()
    bare = save_checkpoint(tmp_path / "bare", small_model("bc_lstm", torch.float32), {})
    assert cli.main(["predict", str(clips / "clip.mp4"), "--model", str(bare)]) == 2
