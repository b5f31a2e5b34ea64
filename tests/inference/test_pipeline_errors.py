"""Errors of the pipeline name dialogue, turn and field."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    pipeline,
)

from mister_e_hf import (
    MisterEModel,
)
from mister_e_hf.hub.checkpoint import save_checkpoint
from support.small_checkpoint import WIDTH
from support.small_encoders import RATE, tiny_encoder, write_backbone
from support.small_pipeline import TASK, assert_same, encoders_of

WRONG = {
    "unknown field": (
        [{"text": "a"}, {"txet": "a"}],
        "dialogue 0, turn 1 has the unknown field 'txet'; did you mean 'text'?",
    ),
    "field like no other": (
        [{"qqqq": "a"}],
        "dialogue 0, turn 0 has the unknown field 'qqqq'; expected one of audio, .*text",
    ),
    "text of another type": ([{"text": 3}], "dialogue 0, turn 0: text must be a string or None, got 3"),
    "array without rate": (
        [{"audio": np.ones(99)}],
        "dialogue 0, turn 0: audio is an array, so it needs sampling_rate",
    ),
    "list without rate": ([{"audio": [0.1]}], "dialogue 0, turn 0: audio is an array, so it needs sampling_rate"),
    "dictionary without rate": ([{"audio": {"array": [0.1]}}], "dialogue 0, turn 0: .*needs its sampling_rate"),
    "rate of another type": (
        [{"audio": np.ones(9), "sampling_rate": "16k"}],
        "dialogue 0, turn 0: sampling_rate must be a number",
    ),
    "rate out of range": (
        [{"audio": np.ones(9), "sampling_rate": 16}],
        "dialogue 0, turn 0: .* sampling rate of 16 Hz",
    ),
    "ragged list": (
        [{"audio": [[0.1], [0.1, 0.2]], "sampling_rate": RATE}],
        "dialogue 0, turn 0: audio cannot be read as an array",
    ),
    "sound of another type": ([{"audio": 5}], "dialogue 0, turn 0: Expected a path, bytes, an array .* got int"),
    "too many dimensions": (
        [{"audio": np.ones((2, 2, 9)), "sampling_rate": RATE}],
        r"dialogue 0, turn 0: Expected samples of shape \(S,\)",
    ),
    "vector of another width": (
        [{"speech_embedding": np.ones(4)}],
        r"dialogue 0, turn 0: speech_embedding must have shape \(6,\), got \(4,\)",
    ),
    "vector of vectors": (
        [{"text_embedding": np.ones((1, 6))}],
        r"dialogue 0, turn 0: text_embedding must have shape \(6,\), got \(1, 6\)",
    ),
    "vector with NaN": (
        [{"text_embedding": [1.0, np.nan, 1, 1, 1, 1]}],
        "dialogue 0, turn 0: text_embedding holds NaN or infinity",
    ),
    "vector of words": (
        [{"text_embedding": "abc"}],
        "dialogue 0, turn 0: text_embedding must be a vector of 6 numbers, got 'abc'",
    ),
    "ragged vector": (
        [{"text_embedding": [[1.0], 1.0]}],
        "dialogue 0, turn 0: text_embedding cannot be read as an array",
    ),
    "start without sound": (
        [{"text": "a", "start": 1.0}],
        "dialogue 0, turn 0 has start or end, but no audio or video",
    ),
    "end before start": (
        [{"audio": "long.wav", "start": 2, "end": 1}],
        "dialogue 0, turn 0: Expected 0 <= start < end .* start=2, end=1",
    ),
    "start of another type": (
        [{"audio": "long.wav", "start": "0:01"}],
        "dialogue 0, turn 0: start must be a number or None, got '0:01'",
    ),
    "start behind the end": (
        [{"audio": "long.wav", "start": 9}],
        "dialogue 0, turn 0: 'long.wav' lasts 8.00 s; .* starts at 9 s",
    ),
    "missing file": (
        [{"text": "a"}, {"audio": "nowhere.wav"}],
        "dialogue 0, turn 1: Audio file 'nowhere.wav' not found",
    ),
    "corrupt file": ([{"audio": "corrupt.flac"}], "dialogue 0, turn 0: .*'corrupt.flac'"),
    "silent file": ([{"audio": "silent.wav"}], "dialogue 0, turn 0: 'silent.wav' is silent"),
    "no sound at all": ([{"audio": b""}], "dialogue 0, turn 0: .* is empty"),
    "second dialogue": ([[{"text": "a"}], [{"text": "a"}, {"text": 1}]], "dialogue 1, turn 1: text must be"),
    "nothing given": ([{}, {"text": " "}], "dialogue 0: no turn has audio or text, which this model reads"),
    "nothing given in one of many": ([[{"text": "a"}], [{}]], "dialogue 1: no turn has audio or text"),
    "no dialogues": ([], "No dialogues given"),
    "no dialogues in a tuple": ((), "No dialogues given"),
    "empty dialogue": ([[]], "dialogue 0 has no turns"),
    "empty row": ({"utterances": []}, "dialogue 0 has no turns"),
    "string": ("long.wav", 'Expected a dialogue, .* got str. One recording: {"audio": path, "segments"'),
    "path": (Path("long.wav"), "Expected a dialogue, .* got PosixPath. One recording"),
    "bytes": (b"RIFF", "Expected a dialogue, .* got bytes"),
    "array": (np.ones(9), "Expected a dialogue, .* got ndarray"),
    "tensor": (torch.ones(9), "Expected a dialogue, .* got Tensor"),
    "number": (7, "Expected a dialogue, .* got int"),
    "list of paths": (["long.wav"], "Expected a dialogue, .*{.text.: .*got a list of strings, .*'long.wav' is "),
    "turn and list": ([{"text": "a"}, [{"text": "a"}]], "dialogue 0 must be a list of turns"),
    "one turn alone": ({"text": "a"}, "dialogue 0: a recording is .* One turn alone is a list of one turn"),
    "recording without segments": (
        {"audio": "long.wav"},
        "dialogue 0: a recording is a dictionary with audio or video, segments",
    ),
    "recording with more": ({"audio": "long.wav", "segments": [(0, 1)], "text": "a"}, "dialogue 0: a recording is"),
    "no segments": ({"audio": "long.wav", "segments": []}, "dialogue 0 has no turns"),
    "segments are None": (
        {"audio": "long.wav", "segments": None},
        "dialogue 0: segments must be the path of an SRT .* got None",
    ),
    "segments nowhere": (
        {"audio": "long.wav", "segments": "nowhere.srt"},
        "dialogue 0: No subtitles at 'nowhere.srt'",
    ),
    "segments of sound": (
        {"audio": "long.wav", "segments": "long.wav"},
        "dialogue 0: 'long.wav' is not a subtitle file",
    ),
    "segment of one number": (
        {"audio": "long.wav", "segments": [(0, 1), (2,)]},
        r"dialogue 0, segment 1 must be \(start, end\)",
    ),
    "segment without end": (
        {"audio": "long.wav", "segments": [{"start": 1}]},
        r"dialogue 0, segment 0 must be \(start, end\)",
    ),
    "segment backwards": (
        {"audio": "long.wav", "segments": [(0, 1), (3, 2)]},
        "dialogue 0, turn 1: Expected 0 <= start < end",
    ),
    "segment behind the end": (
        {"audio": "long.wav", "segments": [(0, 1), (7, 20)]},
        "dialogue 0, turn 1: 'long.wav' ends at 8.00 s",
    ),
    "segment of words": (
        {"audio": "long.wav", "segments": [("so", "well")]},
        "dialogue 0, turn 0: start must be a number",
    ),
    "recording of an array without rate": (
        {"audio": [0.1] * 99, "segments": [(0, 1)]},
        "dialogue 0, turn 0: audio is an array",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_dialogue_turn_and_field(pipe, sounds, case, monkeypatch):
    monkeypatch.chdir(sounds)
    given, words = WRONG[case]
    with pytest.raises((ValueError, OSError), match=words):
        pipe(given, batch_size=2)


def test_unknown_arguments_raise(folder, pipe):
    for call in (lambda: pipe([{"text": "a"}], topk=3), lambda: pipeline(TASK, model=folder, topk=3)):
        with pytest.raises(
            TypeError, match="unknown argument 'topk'; expected answers, bad_audio, bad_video, top_k or"
        ):
            call()
    with pytest.raises(TypeError, match="or encoders or transcriber when the pipeline is created"):
        pipe([{"text": "a"}], transcriber="x")
    with pytest.raises(ValueError, match="bad_audio must be 'error' or 'missing', got 'skip'"):
        pipe([{"text": "a"}], bad_audio="skip")
    with pytest.raises(ValueError, match="batch_size must be a positive number of dialogues, got 0"):
        pipe([{"text": "a"}], batch_size=0)
    with pytest.raises(ValueError, match=r"encoders must be a choice of speech, text, visual, got \['sound'\]"):
        pipeline(TASK, model=pipe.model, encoders={"sound": None})
    with pytest.raises(ValueError, match=r"encoders\['text'\] must be \(encoder, processor\), got UtteranceEncoder"):
        pipeline(TASK, model=pipe.model, encoders={"text": encoders_of(folder)["text"][0]})
    with pytest.raises(ValueError, match=r"encoders\['text'\] prepares audio .* do not belong together"):
        pipeline(TASK, model=pipe.model, encoders={"text": encoders_of(folder)["speech"]})


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """What the pipeline logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("mister_e_hf.inference.turn_vectors")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def test_bad_audio_may_be_missing(pipe, sounds):
    turns = [{"audio": sounds / name, "text": "well"} for name in ("clip.wav", "silent.wav", "corrupt.flac", "no.wav")]
    with told() as lines:
        found = pipe(turns, bad_audio="missing")
    assert_same(found, pipe([turns[0], *[{"text": "well"}] * 3]))
    assert len(lines) == 3
    for line, number, name in zip(lines, (1, 2, 3), ("silent.wav", "corrupt.flac", "no.wav"), strict=True):
        assert line.startswith(f"dialogue 0, turn {number} is used without audio: ") and name in line
    # also where nothing is left, but not what makes no sense
    with told() as lines:
        assert len(pipe([{"audio": sounds / "silent.wav"}], bad_audio="missing")) == 1
    assert len(lines) == 1
    with pytest.raises(ValueError, match="dialogue 0, turn 0: Expected 0 <= start < end"):
        pipe([{"audio": sounds / "clip.wav", "start": 2, "end": 1}], bad_audio="missing")
    assert_same(pipeline(TASK, model=pipe.model, bad_audio="missing")(turns), found)


def test_without_encoders_it_takes_vectors_and_says_so(folder, tmp_path, sounds):
    model = MisterEModel.from_pretrained(folder)
    save_checkpoint(tmp_path / "bare", model)
    bare, vector = pipeline(TASK, model=tmp_path / "bare"), [0.5] * WIDTH
    assert len(bare([{"text_embedding": vector}, {"speech_embedding": vector}])) == 2
    for turn, modality, content in (
        ({"text": "a"}, "text", "text"),
        ({"audio": sounds / "clip.wav"}, "speech", "audio"),
    ):
        words = (
            f"bare' has no {modality}_encoder/, so it takes vectors instead of {content}: "
            f'.* {{"{modality}_embedding": vector of 6'
        )
        with pytest.raises(ValueError, match=words):
            bare([turn])
    given = pipeline(TASK, model=tmp_path / "bare", encoders=encoders_of(folder))
    turns = [{"text": "so"}, {"audio": sounds / "clip.wav"}]
    assert_same(given(turns), pipeline(TASK, model=folder)(turns))


def test_parts_of_two_checkpoints_raise(folder, tmp_path):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    backbone = write_backbone(tmp_path / "backbone", "text")
    encoder, _ = tiny_encoder(backbone, "text", tuning="full", embedding_dim=7)
    encoder.save_pretrained(broken / "text_encoder")
    with pytest.raises(ValueError, match="broken/text_encoder' .* vectors of text of 7 numbers; .* of text of 6"):
        pipeline(TASK, model=broken)([{"text": "a"}])
    shutil.rmtree(broken / "text_encoder")
    shutil.copytree(broken / "speech_encoder", broken / "text_encoder")
    with pytest.raises(ValueError, match="broken/text_encoder' prepares audio and makes vectors of speech"):
        pipeline(TASK, model=broken)([{"text": "a"}])
