import contextlib
import csv
import json
import logging
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from mister_e_hf import (
    ConversationEmotionPipeline,
    MisterEConfig,
    MisterEModel,
    MisterEProcessor,
    UtteranceEncoder,
    load_audio,
)
from mister_e_hf.hub.checkpoint import save_checkpoint
from support.loopback_hub import TOKEN, loopback_hub
from support.small_checkpoint import WIDTH, write_checkpoint
from support.small_encoders import LABELS, RATE, tiny_encoder, tone, write_backbone

TASK = "conversation-emotion-recognition"
WORDS = "so you see this is what they said about it when we came back grr hooray well".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "run")


@pytest.fixture(scope="module")
def pipe(folder) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=write_checkpoint(tmp_path_factory.mktemp("causal") / "run", seed=1, causal=True))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """`long.wav` of 8 s, whose pitch rises; `clip.wav`, its second from 2 s on; files that cannot be used."""
    folder = tmp_path_factory.mktemp("sounds")
    seconds = np.arange(8 * RATE) / RATE
    samples = 0.3 * np.sin(2 * np.pi * (150 + 60 * seconds) * seconds)
    soundfile.write(folder / "long.wav", samples, RATE, subtype="PCM_16")
    samples, _ = soundfile.read(folder / "long.wav", dtype="int16")
    soundfile.write(folder / "clip.wav", samples[2 * RATE : 3 * RATE], RATE, subtype="PCM_16")
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    (folder / "corrupt.flac").write_bytes(b"fLaC" + bytes(range(256)))
    return folder


@pytest.fixture(scope="module")
def clip(sounds) -> np.ndarray:
    return soundfile.read(sounds / "clip.wav", dtype="float32")[0]


def dialogues(sounds: Path, lengths=(5, 1, 23, 2, 9, 1, 3), seed: int = 0) -> list[list[dict]]:
    """Of very different lengths; some turns lack sound, some words, some both."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        turns = []
        for _ in range(length):
            start = round(generator.uniform(0, 7), 2)
            sound = {"audio": str(sounds / "long.wav"), "start": start, "end": start + generator.uniform(0.2, 1)}
            text = " ".join(generator.choice(WORDS, size=generator.integers(1, 9)))
            turns.append(
                [{"text": text} | sound, {"text": text}, sound, {}][generator.choice(4, p=[0.5, 0.2, 0.2, 0.1])]
            )
        turns[-1] = turns[-1] or {"text": "well"}
        made.append(turns)
    return made


def numbers(result) -> np.ndarray:
    """All that was found for the turns of a dialogue, as an array (T, ...) in the order of labels and experts; -1 where an expert was given nothing."""
    found = []
    for turn in result:
        blocks = [turn["scores"], *[block or dict.fromkeys(LABELS, -1) for block in turn["experts"].values()]]
        found.append([block[label] for block in blocks for label in LABELS] + [*turn["gate"].values()])
    return np.array(found)


def assert_same(found, expected, tolerance: float = 1e-5):
    assert len(found) == len(expected)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0, atol=tolerance)


# What goes in


FORMS = {
    "path": lambda sounds, clip: {"audio": str(sounds / "clip.wav")},
    "Path": lambda sounds, clip: {"audio": sounds / "clip.wav"},
    "bytes": lambda sounds, clip: {"audio": (sounds / "clip.wav").read_bytes()},
    "array": lambda sounds, clip: {"audio": clip, "sampling_rate": RATE},
    "array of integers": lambda sounds, clip: {"audio": (clip * 2**15).astype("int16"), "sampling_rate": RATE},
    "channels": lambda sounds, clip: {"audio": np.stack([clip * 0.5, clip * 1.5]), "sampling_rate": RATE},
    "tensor": lambda sounds, clip: {"audio": torch.tensor(clip, requires_grad=True), "sampling_rate": RATE},
    "tensor of channels": lambda sounds, clip: {"audio": torch.tensor(clip)[None], "sampling_rate": np.int64(RATE)},
    "list": lambda sounds, clip: {"audio": clip.tolist(), "sampling_rate": RATE},
    "dictionary with array": lambda sounds, clip: {"audio": {"path": None, "array": clip, "sampling_rate": RATE}},
    "dictionary with bytes": lambda sounds, clip: {
        "audio": {"path": "x.wav", "bytes": (sounds / "clip.wav").read_bytes()}
    },
    "dictionary with path": lambda sounds, clip: {"audio": {"path": str(sounds / "clip.wav"), "bytes": None}},
    "stretch of a file": lambda sounds, clip: {"audio": sounds / "long.wav", "start": 2, "end": 3.0},
    "stretch of bytes": lambda sounds, clip: {
        "audio": (sounds / "long.wav").read_bytes(),
        "start": np.float32(2),
        "end": 3,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_sound_of_every_form_says_the_same(pipe, sounds, clip, form):
    expected = pipe([{"audio": sounds / "clip.wav", "text": "well"}, {"text": "so"}])
    assert_same(pipe([FORMS[form](sounds, clip) | {"text": "well"}, {"text": "so"}]), expected)
    assert not np.allclose(numbers(pipe([{"text": "well"}, {"text": "so"}])), numbers(expected), atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_sound_of_every_rate_is_resampled(pipe, rate, tmp_path):
    samples = 0.3 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "it.flac", np.stack([samples, samples]).T, rate)
    expected = pipe([{"audio": load_audio(tmp_path / "it.flac"), "sampling_rate": RATE}])
    assert_same(pipe([{"audio": tmp_path / "it.flac"}]), expected)
    assert_same(pipe([{"audio": samples, "sampling_rate": rate}]), expected, 1e-3)
    # nearly what it is at 16 kHz
    assert_same(pipe([{"audio": tone(1, 300), "sampling_rate": RATE}]), expected, 0.02)


@pytest.mark.parametrize(
    "lacking",
    [{}, {"text": None}, {"text": ""}, {"text": " \n\t"}, {"audio": None}, {"audio": {"path": None, "bytes": None}}],
)
def test_what_a_turn_lacks_may_be_none_or_blank(pipe, lacking):
    assert_same(pipe([lacking, {"text": "well"}]), pipe([{}, {"text": "well"}]), 0)


def by_hand(pipe, folder: Path, turns: list[dict]) -> np.ndarray:
    model, vectors, masks = pipe.model, {}, {}
    for modality in ("speech", "text"):
        encoder = UtteranceEncoder.from_pretrained(folder, subfolder=f"{modality}_encoder")
        processor = MisterEProcessor.from_pretrained(folder, subfolder=f"{modality}_encoder")
        vectors[f"{modality}_embeddings"] = torch.full((1, len(turns), WIDTH), torch.nan)
        masks[f"{modality}_mask"] = torch.zeros(1, len(turns), dtype=torch.bool)
        for place, turn in enumerate(turns):
            if modality == "speech" and "audio" in turn:
                content = load_audio(turn["audio"], start=turn["start"], end=turn["end"])
            elif modality == "text" and "text" in turn:
                content = turn["text"]
            else:
                continue
            with torch.no_grad():
                vectors[f"{modality}_embeddings"][0, place] = encoder(**processor([content])).embeddings[0]
            masks[f"{modality}_mask"][0, place] = True
    with torch.no_grad():
        output = model(**vectors, **masks)
    experts = output.expert_logits[0].softmax(-1)
    for place, modality in enumerate(("speech", "text")):
        experts[~masks[f"{modality}_mask"][0], place] = -1
    blocks = [output.logits[0].softmax(-1), experts.flatten(1), output.gate_weights[0]]
    return torch.cat(blocks, dim=1).numpy()


def test_it_is_processor_encoder_and_model(pipe, folder, sounds):
    for turns in dialogues(sounds, (5, 1, 9)):
        np.testing.assert_allclose(numbers(pipe(turns)), by_hand(pipe, folder, turns), rtol=0, atol=1e-5)


def test_vectors_stand_for_sound_and_words(pipe, sounds):
    (turns,) = dialogues(sounds, (12,))
    expected, given = pipe(turns), []
    for number, turn in enumerate(turns):
        given.append(dict(turn))
        for modality, fields in (("speech", ("audio", "start", "end")), ("text", ("text",))):
            if number % 3 and fields[0] in turn:
                encoder, processor = pipe._encoders.pairs[modality]
                content = [given[-1].pop(field) for field in fields]
                content = load_audio(content[0], None, *content[1:]) if modality == "speech" else content[0]
                with torch.no_grad():
                    vector = encoder(**processor([content])).embeddings[0]
                forms = [vector, vector.numpy().astype(np.float64), vector.tolist(), vector.clone().requires_grad_()]
                given[-1][f"{modality}_embedding"] = forms[number % 4]
    assert sum("speech_embedding" in turn for turn in given) > 2 and any("audio" in turn for turn in given)
    assert_same(pipe(given), expected)


def test_a_vector_goes_before_the_sound_it_stands_for(pipe, sounds):
    vector = np.linspace(-1, 1, WIDTH)
    expected = pipe([{"speech_embedding": vector, "text": "well"}])
    assert_same(pipe([{"speech_embedding": vector, "audio": "nowhere.wav", "text": "well"}]), expected, 0)


def test_one_pipeline_gives_several_threads_the_answers_of_one(folder, sounds):
    pipe, many = pipeline(TASK, model=folder), dialogues(sounds, (3, 1, 2) * 8)
    expected, interval = pipeline(TASK, model=folder)(many), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:  # its encoders are not loaded yet
            found = list(pool.map(pipe, many))
    finally:
        sys.setswitchinterval(interval)
    for one, wanted in zip(found, expected, strict=True):
        assert_same(one, wanted)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_batch_gives_what_each_dialogue_alone_gives_in_order(pipe, sounds, batch_size):
    many = dialogues(sounds)
    together = pipe(many, batch_size=batch_size)
    assert [len(result) for result in together] == [len(dialogue) for dialogue in many]
    for result, dialogue in zip(together, many, strict=True):
        assert_same(result, pipe(dialogue))


def test_one_or_many_as_lists_tuples_rows_and_data_sets(pipe, sounds):
    one, other = dialogues(sounds, (3, 4))
    expected = pipe([one, other])
    assert_same(pipe(one), expected[0])
    assert_same(pipe(tuple(one)), expected[0])
    assert_same(pipe({"dialogue_id": "a", "utterances": one}), expected[0])
    rows = datasets.Dataset.from_list(
        [
            {
                "dialogue_id": str(n),
                "utterances": [
                    {"speaker": "A", "emotion": 1, "sentiment": 0.5, "utterance_id": "x", "duration": 1.0, **turn}
                    for turn in turns
                ],
            }
            for n, turns in enumerate((one, other))
        ]
    )
    for many in (
        (one, other),
        [tuple(one), other],
        [{"utterances": one}, {"utterances": other}],
        [one, {"utterances": other}],
        rows,
        rows["utterances"],
        KeyDataset(rows, "utterances"),
        iter([one, other]),
        rows.to_iterable_dataset(),
    ):
        results = list(pipe(many, batch_size=2))
        assert len(results) == 2
        for result, wanted in zip(results, expected, strict=True):
            assert_same(result, wanted)


def test_a_generator_is_read_as_the_results_are(pipe):
    read = []

    def endless() -> Iterator[list[dict]]:
        while True:
            read.append(1)
            yield [{"text": "well"}]

    results = pipe(endless(), batch_size=3)
    assert len(read) <= 1
    for _ in range(4):
        assert len(next(results)) == 1
    assert len(read) <= 7
    assert list(pipe(dialogue for dialogue in [])) == []


SRT = "1\n00:00:00,500 --> 00:00:01,500\nso you see\n\n2\n00:00:02,000 --> 00:00:03,000\n\n3\n00:00:05,000 --> 00:00:05,750\nhooray\n"


def test_segments_of_a_recording_are_its_turns(pipe, sounds, tmp_path):
    (tmp_path / "it.srt").write_text(SRT)
    (tmp_path / "it.vtt").write_text(
        "WEBVTT\n\n" + re.sub(r",(\d{3})", r".\1", SRT).replace("hooray", "<v Ann>hooray")
    )
    path = sounds / "long.wav"
    expected = pipe(
        [
            {"audio": path, "start": 0.5, "end": 1.5, "text": "so you see"},
            {"audio": path, "start": 2, "end": 3},
            {"audio": path, "start": 5, "end": 5.75, "text": "hooray"},
        ]
    )
    tuples = [(0.5, 1.5, "so you see"), (2, 3), [5, 5.75, "hooray"]]
    turns = [
        {"start": 0.5, "end": 1.5, "text": "so you see", "speaker": "Bob"},
        {"start": 2, "end": 3, "text": None},
        tuples[2],
    ]
    samples, _ = soundfile.read(path, dtype="float32")
    for segments in (tmp_path / "it.srt", str(tmp_path / "it.vtt"), tuples, turns, iter(tuples)):
        assert_same(pipe({"audio": path, "segments": segments}), expected)
    for audio in (samples, torch.tensor(samples), samples.tolist()):
        assert_same(pipe({"audio": audio, "sampling_rate": RATE, "segments": tuples}), expected)
    both = pipe(
        [{"audio": path, "segments": tuples}, {"audio": path.read_bytes(), "segments": tuples[:1]}], batch_size=2
    )
    assert_same(both[0], expected)
    assert len(both[1]) == 1


# What comes out


def test_probabilities_and_weights_add_up(pipe, sounds):
    for result, dialogue in zip(pipe(dialogues(sounds), batch_size=4), dialogues(sounds), strict=True):
        for found, turn in zip(result, dialogue, strict=True):
            assert list(found) == ["label", "score", "scores", "experts", "gate"]
            assert list(found["experts"]) == list(found["gate"]) == ["speech", "text", "fusion"]
            assert (found["experts"]["speech"] is None) == ("audio" not in turn)
            assert (found["experts"]["text"] is None) == ("text" not in turn)
            for scores in (found["scores"], *filter(None, found["experts"].values())):
                assert set(scores) == set(LABELS) and abs(sum(scores.values()) - 1) < 1e-6
                assert list(scores.values()) == sorted(scores.values(), reverse=True)
            assert found["label"] == next(iter(found["scores"])) and found["score"] == max(found["scores"].values())
            assert abs(sum(found["gate"].values()) - 1) < 1e-6
            assert (found["gate"]["speech"] == 0) == ("audio" not in turn)
            assert (found["gate"]["text"] == 0) == ("text" not in turn)
            assert found["gate"]["fusion"] > 0
    assert json.loads(json.dumps(result)) == result


def test_top_k_is_of_the_classes_of_the_mixture_and_of_each_expert(pipe):
    (whole,), (two,) = pipe([{"text": "well"}]), pipe([{"text": "well"}], top_k=2)
    assert list(two["scores"].items()) == list(whole["scores"].items())[:2]
    assert two["experts"]["speech"] is whole["experts"]["speech"] is None
    for expert in ("text", "fusion"):
        assert list(two["experts"][expert].items()) == list(whole["experts"][expert].items())[:2]
    assert {**two, "scores": 0, "experts": 0} == {**whole, "scores": 0, "experts": 0}
    assert len(pipe([{"text": "well"}], top_k=99)[0]["scores"]) == 3
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="top_k must be a positive number"):
            pipe([{"text": "well"}], top_k=wrong)


def test_temperature_calibrates_the_mixture_and_leaves_the_logits(folder, sounds):
    pipe, (turns,) = pipeline(TASK, model=MisterEModel.from_pretrained(folder)), dialogues(sounds, (4,))
    before, logits = pipe(turns), pipe.forward([pipe.preprocess(turns)])[0]["logits"]
    pipe.model.config.calibration_temperature = 4.0
    after = pipe(turns)
    assert torch.equal(pipe.forward([pipe.preprocess(turns)])[0]["logits"], logits)
    np.testing.assert_allclose(numbers(after)[:, :3], (logits / 4).softmax(-1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(numbers(before)[:, :3], logits.softmax(-1), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(numbers(after)[:, 3:], numbers(before)[:, 3:])
    assert [turn["label"] for turn in after] == [turn["label"] for turn in before]


@pytest.mark.parametrize("experts", [["speech"], ["text"], ["speech", "text"], ["fusion"]])
def test_experts_are_those_of_the_model(folder, sounds, experts):
    config = MisterEModel.from_pretrained(folder).config.to_dict() | {"experts": experts}
    model = MisterEModel(
        MisterEConfig(
            **{name: config[name] for name in MisterEConfig.__annotations__ if name in config},
            id2label=config["id2label"],
        )
    )
    pipe = pipeline(TASK, model=model, encoders=encoders_of(folder))
    turns = [{"audio": sounds / "clip.wav", "text": "well"}, {"text": "so"}, {"audio": sounds / "clip.wav"}]
    for turn in pipe(turns):
        assert list(turn["experts"]) == list(turn["gate"]) == experts
        assert abs(sum(turn["gate"].values()) - 1) < 1e-6
    if experts == ["text"]:  # what is not heard is not loaded
        found, expected = pipe([{"audio": "nowhere.wav", "text": "well"}]), pipe([{"text": "well"}])
        assert [turn["scores"] for turn in found] == [turn["scores"] for turn in expected]
        with pytest.raises(ValueError, match="dialogue 0: no turn has text, which this model takes"):
            pipe([{"audio": sounds / "clip.wav"}])


def encoders_of(folder: Path) -> dict:
    return {
        modality: (
            UtteranceEncoder.from_pretrained(folder, subfolder=f"{modality}_encoder"),
            MisterEProcessor.from_pretrained(folder, subfolder=f"{modality}_encoder"),
        )
        for modality in ("speech", "text")
    }


# Streams


def test_a_stream_gives_what_the_whole_dialogue_gives(causal, sounds):
    (turns,) = dialogues(sounds, (20,), seed=3)
    turns[0] = {}
    assert {frozenset(turn) - {"start", "end"} for turn in turns} == {
        frozenset(x) for x in ([], ["audio"], ["text"], ["audio", "text"])
    }
    stream = causal.stream()
    found = []
    for number, turn in enumerate(turns):
        assert stream.num_turns == number
        found.append(stream(turn))
    assert_same(found, causal(turns))


def test_a_turn_that_fails_leaves_its_stream_as_it_was(causal, sounds):
    turns = [{"text": "so you see"}, {"audio": sounds / "clip.wav"}, {"text": "hooray"}]
    stream, found = causal.stream(), []
    for turn in turns:
        for wrong, words in (
            ({"txt": "a"}, "turn . has the unknown field"),
            ({"audio": "nowhere.wav"}, "Audio file"),
        ):
            with pytest.raises(ValueError, match=words):
                stream(wrong)
        found.append(stream(turn))
    assert stream.num_turns == 3
    assert_same(found, causal(turns))


def test_streams_do_not_mix_and_have_the_pipeline_s_options(causal, sounds):
    first, second = [{"text": "so"}, {"text": "well"}], [{"text": "grr"}, {"text": "back"}]
    streams = causal.stream(), causal.stream()
    found = [(streams[0](a), streams[1](b)) for a, b in zip(first, second, strict=True)]
    assert_same([pair[0] for pair in found], causal(first))
    assert_same([pair[1] for pair in found], causal(second))
    two = pipeline(TASK, model=causal.model, top_k=2, bad_audio="missing").stream()
    assert len(two({"text": "so", "audio": "nowhere.wav"})["scores"]) == 2
    assert len(causal.stream(top_k=1)({"text": "so"})["scores"]) == 1


def test_a_model_that_hears_later_turns_does_not_stream(pipe):
    with pytest.raises(ValueError, match="hears later turns too .config.causal is false.*--model.causal true"):
        pipe.stream()


# Errors


WRONG = {
    "unknown field": ([{"text": "a"}, {"txet": "a"}], "dialogue 0, turn 1 has the unknown field 'txet'; did you mean 'text'?"),
    "field like no other": ([{"qqqq": "a"}], "dialogue 0, turn 0 has the unknown field 'qqqq'; known are audio, .*text"),
    "text of another type": ([{"text": 3}], "dialogue 0, turn 0: text must be a string or None, got 3"),
    "array without rate": ([{"audio": np.ones(99)}], "dialogue 0, turn 0: audio is an array, so it needs sampling_rate"),
    "list without rate": ([{"audio": [0.1]}], "dialogue 0, turn 0: audio is an array, so it needs sampling_rate"),
    "dictionary without rate": ([{"audio": {"array": [0.1]}}], "dialogue 0, turn 0: .*needs its sampling_rate"),
    "rate of another type": ([{"audio": np.ones(9), "sampling_rate": "16k"}], "dialogue 0, turn 0: sampling_rate must be a number"),
    "rate out of range": ([{"audio": np.ones(9), "sampling_rate": 16}], "dialogue 0, turn 0: .* sampling rate of 16 Hz"),
    "ragged list": ([{"audio": [[0.1], [0.1, 0.2]], "sampling_rate": RATE}], "dialogue 0, turn 0: audio cannot be read as an array"),
    "sound of another type": ([{"audio": 5}], "dialogue 0, turn 0: Expected a path, bytes, an array .* got int"),
    "too many dimensions": ([{"audio": np.ones((2, 2, 9)), "sampling_rate": RATE}], r"dialogue 0, turn 0: Expected samples of shape \(S,\)"),
    "vector of another width": ([{"speech_embedding": np.ones(4)}], r"dialogue 0, turn 0: speech_embedding must have shape \(6,\), got \(4,\)"),
    "vector of vectors": ([{"text_embedding": np.ones((1, 6))}], r"dialogue 0, turn 0: text_embedding must have shape \(6,\), got \(1, 6\)"),
    "vector with NaN": ([{"text_embedding": [1.0, np.nan, 1, 1, 1, 1]}], "dialogue 0, turn 0: text_embedding holds NaN or infinity"),
    "vector of words": ([{"text_embedding": "abc"}], "dialogue 0, turn 0: text_embedding must be a vector of 6 numbers, got 'abc'"),
    "ragged vector": ([{"text_embedding": [[1.0], 1.0]}], "dialogue 0, turn 0: text_embedding cannot be read as an array"),
    "start without sound": ([{"text": "a", "start": 1.0}], "dialogue 0, turn 0 has start or end, but no audio"),
    "end before start": ([{"audio": "long.wav", "start": 2, "end": 1}], "dialogue 0, turn 0: Expected 0 <= start < end .* start=2, end=1"),
    "start of another type": ([{"audio": "long.wav", "start": "0:01"}], "dialogue 0, turn 0: start must be a number or None, got '0:01'"),
    "start behind the end": ([{"audio": "long.wav", "start": 9}], "dialogue 0, turn 0: 'long.wav' lasts 8.00 s; .* starts at 9 s"),
    "missing file": ([{"text": "a"}, {"audio": "nowhere.wav"}], "dialogue 0, turn 1: Audio file 'nowhere.wav' not found"),
    "corrupt file": ([{"audio": "corrupt.flac"}], "dialogue 0, turn 0: .*'corrupt.flac'"),
    "silent file": ([{"audio": "silent.wav"}], "dialogue 0, turn 0: 'silent.wav' is silent"),
    "no sound at all": ([{"audio": b""}], "dialogue 0, turn 0: .* is empty"),
    "second dialogue": ([[{"text": "a"}], [{"text": "a"}, {"text": 1}]], "dialogue 1, turn 1: text must be"),
    "nothing given": ([{}, {"text": " "}], "dialogue 0: no turn has audio or text, which this model takes"),
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
    "recording without segments": ({"audio": "long.wav"}, "dialogue 0: a recording is a dictionary with audio, segments"),
    "recording with more": ({"audio": "long.wav", "segments": [(0, 1)], "text": "a"}, "dialogue 0: a recording is"),
    "no segments": ({"audio": "long.wav", "segments": []}, "dialogue 0 has no turns"),
    "segments are None": ({"audio": "long.wav", "segments": None}, "dialogue 0: segments must be the path of an SRT .* got None"),
    "segments nowhere": ({"audio": "long.wav", "segments": "nowhere.srt"}, "dialogue 0: No subtitles at 'nowhere.srt'"),
    "segments of sound": ({"audio": "long.wav", "segments": "long.wav"}, "dialogue 0: 'long.wav' is not a subtitle file"),
    "segment of one number": ({"audio": "long.wav", "segments": [(0, 1), (2,)]}, r"dialogue 0, segment 1 must be \(start, end\)"),
    "segment without end": ({"audio": "long.wav", "segments": [{"start": 1}]}, r"dialogue 0, segment 0 must be \(start, end\)"),
    "segment backwards": ({"audio": "long.wav", "segments": [(0, 1), (3, 2)]}, "dialogue 0, turn 1: Expected 0 <= start < end"),
    "segment behind the end": ({"audio": "long.wav", "segments": [(0, 1), (7, 20)]}, "dialogue 0, turn 1: 'long.wav' ends at 8.00 s"),
    "segment of words": ({"audio": "long.wav", "segments": [("so", "well")]}, "dialogue 0, turn 0: start must be a number"),
    "recording of an array without rate": ({"audio": [0.1] * 99, "segments": [(0, 1)]}, "dialogue 0, turn 0: audio is an array"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors_say_where_and_what(pipe, sounds, case, monkeypatch):
    monkeypatch.chdir(sounds)
    given, words = WRONG[case]
    with pytest.raises((ValueError, OSError), match=words):
        pipe(given, batch_size=2)


def test_arguments_that_are_none_are_named(folder, pipe):
    for call in (lambda: pipe([{"text": "a"}], topk=3), lambda: pipeline(TASK, model=folder, topk=3)):
        with pytest.raises(TypeError, match="unknown argument 'topk'; known are bad_audio, top_k and batch_size"):
            call()
    with pytest.raises(TypeError, match="where the pipeline is made encoders and transcriber"):
        pipe([{"text": "a"}], transcriber="x")
    with pytest.raises(ValueError, match="bad_audio must be 'error' or 'missing', got 'skip'"):
        pipe([{"text": "a"}], bad_audio="skip")
    with pytest.raises(ValueError, match="batch_size must be a whole number of dialogues, at least 1, got 0"):
        pipe([{"text": "a"}], batch_size=0)
    with pytest.raises(ValueError, match=r"encoders must name speech, text or both, got \['sound'\]"):
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


def test_bad_sound_may_be_missing(pipe, sounds):
    turns = [{"audio": sounds / name, "text": "well"} for name in ("clip.wav", "silent.wav", "corrupt.flac", "no.wav")]
    with told() as lines:
        found = pipe(turns, bad_audio="missing")
    assert_same(found, pipe([turns[0], *[{"text": "well"}] * 3]))
    assert len(lines) == 3
    for line, number, name in zip(lines, (1, 2, 3), ("silent.wav", "corrupt.flac", "no.wav"), strict=True):
        assert line.startswith(f"dialogue 0, turn {number} goes without audio: ") and name in line
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
        words = f'bare\' has no {modality}_encoder/, so it takes vectors in place of {content}: .* {{"{modality}_embedding": vector of 6'
        with pytest.raises(ValueError, match=words):
            bare([turn])
    given = pipeline(TASK, model=tmp_path / "bare", encoders=encoders_of(folder))
    turns = [{"text": "so"}, {"audio": sounds / "clip.wav"}]
    assert_same(given(turns), pipeline(TASK, model=folder)(turns))


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_parts_of_two_checkpoints_are_told(folder, tmp_path):
    broken = copy_of(folder, tmp_path / "broken")
    backbone = write_backbone(tmp_path / "backbone", "text")
    encoder, _ = tiny_encoder(backbone, "text", tuning="full", embedding_dim=7)
    encoder.save_pretrained(broken / "text_encoder")
    with pytest.raises(ValueError, match="broken/text_encoder' .* vectors of text of 7 numbers; .* of text of 6"):
        pipeline(TASK, model=broken)([{"text": "a"}])
    shutil.rmtree(broken / "text_encoder")
    shutil.copytree(broken / "speech_encoder", broken / "text_encoder")
    with pytest.raises(ValueError, match="broken/text_encoder' prepares audio and makes vectors of speech"):
        pipeline(TASK, model=broken)([{"text": "a"}])


# Words from sound


def write_recogniser(folder: Path) -> Path:
    """A tiny Whisper with random weights that spells twelve letters at most, as a pretrained one would lie there."""
    special = "endoftext startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps".split()
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = [number for token, number in vocabulary.items() if re.fullmatch("[a-z]", token)]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", special=True) for name in special])
    first_time = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>") for step in range(1501)])
    end, start, past, no_times = (tokenizer.convert_tokens_to_ids(f"<|{special[place]}|>") for place in (0, 1, 6, 8))
    sizes = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    tokens = {"pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, init_std=1.0, **sizes, **tokens, bos_token_id=end
        )
    )
    model.model.decoder.embed_tokens.weight.data[first_time:] = 0
    model.generation_config = GenerationConfig(
        max_length=12,
        **tokens,
        no_timestamps_token_id=no_times,
        prev_sot_token_id=past,
        is_multilingual=False,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        suppress_tokens=[number for number in range(first_time) if number not in letters],
    )
    for part in (model, tokenizer, WhisperFeatureExtractor(feature_size=16)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return pipeline("automatic-speech-recognition", model=write_recogniser(tmp_path_factory.mktemp("recogniser")))


def test_turns_without_words_are_transcribed(pipe, recogniser, sounds, clip, folder):
    speaking = pipeline(TASK, model=pipe.model, transcriber=recogniser)
    long = np.tile(clip, 35)
    turns = [
        {"audio": sounds / "clip.wav", "text": "so you see"},
        {"audio": sounds / "clip.wav"},
        {"text": "well"},
        {"audio": sounds / "long.wav", "start": 4, "text": " "},
        {"audio": sounds / "clip.wav", "text_embedding": [0.5] * WIDTH},
        {"audio": sounds / "clip.wav", "speech_embedding": [0.5] * WIDTH},
        {"audio": long, "sampling_rate": RATE},
        {},
    ]
    found = speaking(turns)
    assert [number for number, turn in enumerate(found) if "text" in turn] == [1, 3, 5, 6]
    texts = {number: found[number]["text"] for number in (1, 3, 5, 6)}
    assert all(text and text.strip() == text for text in texts.values())
    assert texts[1] == texts[5] != texts[3] and len(texts[6]) > 12  # longer than one window of 30 s
    expected = recogniser({"raw": load_audio(sounds / "long.wav", start=4), "sampling_rate": RATE})["text"]
    assert texts[3] == expected.strip()
    given = [turn | {"text": texts[number]} if number in texts else turn for number, turn in enumerate(turns)]
    assert_same(found, pipe(given))
    by_name = pipeline(TASK, model=pipe.model, transcriber=recogniser.model.config._name_or_path)
    assert [turn.get("text") for turn in by_name(turns[:4])] == [turn.get("text") for turn in found[:4]]


def test_a_stream_and_a_recording_are_transcribed(causal, recogniser, sounds):
    speaking = pipeline(TASK, model=causal.model, transcriber=recogniser)
    segments = [(0, 1), (2, 3, "well"), (4, 5)]
    whole = speaking({"audio": sounds / "long.wav", "segments": segments})
    assert ["text" in turn for turn in whole] == [True, False, True]
    stream = speaking.stream()
    turns = [dict(zip(("start", "end", "text"), segment, strict=False)) for segment in segments]
    found = [stream({"audio": sounds / "long.wav"} | turn) for turn in turns]
    assert [turn.get("text") for turn in found] == [turn.get("text") for turn in whole]
    assert_same(found, whole)


def letters_and_spaces(text: str) -> list[str]:
    return re.sub("[^a-z ]", "", text.lower().replace("\x92", "'")).split()


@pytest.mark.shared
def test_whisper_hears_what_is_said_in_real_clips(pipe, shared_dir):
    with (shared_dir / "data" / "meld_raw" / "test_sent_emo.csv").open(newline="", encoding="utf-8") as file:
        rows = {f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}": row["Utterance"] for row in csv.DictReader(file)}
    clips = sorted((shared_dir / "data" / "meld_clips").glob("*.wav"))
    whisper = str(shared_dir / "models" / "whisper-tiny.en")
    recogniser = pipeline("automatic-speech-recognition", model=whisper, dtype=torch.float32)
    found = pipeline(TASK, model=pipe.model, transcriber=recogniser)([{"audio": path} for path in clips])
    shares = []  # of the words said, how many were heard, wherever
    for path, turn in zip(clips, found, strict=True):
        said, heard = letters_and_spaces(rows[path.stem]), letters_and_spaces(turn["text"])
        shares.append(len([word for word in said if word in heard]) / len(said))
        assert turn["label"] in LABELS and turn["gate"]["speech"] > 0 and turn["gate"]["text"] > 0
    assert len(shares) == 4 and np.mean(shares) > 0.9, shares


# Memory


def test_a_recording_is_never_in_memory_as_a_whole(pipe, tmp_path):
    seconds = 600
    soundfile.write(tmp_path / "it.flac", np.tile(tone(1, 200), seconds), RATE)
    recording = {"audio": tmp_path / "it.flac", "segments": [(second, second + 1) for second in range(seconds)]}
    pipe({"audio": tmp_path / "it.flac", "segments": recording["segments"][:130]})
    tracemalloc.start()
    assert len(pipe(recording)) == seconds
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    window = 64 * RATE * 4
    # two windows, and what the encoder's input is made of
    assert peak < 4.5 * window < seconds * RATE * 4 / 2


LONG = """
import resource, sys
from transformers import pipeline
import mister_e_hf, torch

torch.set_num_threads(1)
pipe = pipeline("conversation-emotion-recognition", model=sys.argv[1])

def run(count):
    segments = [(5.0 * number, 5.0 * number + 5) for number in range(count)]
    assert len(pipe({"audio": sys.argv[2], "segments": segments})) == count
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)

run(256)
run(7200)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_hours_take_no_more_memory_than_minutes(folder, tmp_path):
    generator, minute = np.random.default_rng(0), 60 * RATE
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1, "PCM_16") as file:
        for _ in range(600):
            file.write(generator.integers(-4, 5, minute, dtype=np.int16))
    command = [sys.executable, "-c", LONG, str(folder), str(tmp_path / "long.flac")]
    call = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert call.returncode == 0, call.stderr
    (_, few), (_, many) = (map(int, line.split()) for line in call.stdout.splitlines())
    assert many - few < 150, call.stdout  # MB; the sound as a whole is 2200


# Files that others made


def damaged(content: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return {
        "cut off": content[: len(content) // 2],
        "cut off in its header": content[:20],
        "empty": b"",
        "huge header": struct.pack("<Q", 2**60) + content[8:],
        "other header": content[:8] + bytes(byte ^ 0xFF for byte in content[8:40]) + content[40:],
        "other offsets": content[:8] + content[8 : 8 + length].replace(b"[0,", b"[4,", 1) + content[8 + length :],
        "other shapes": content[:8]
        + content[8 : 8 + length].replace(b'"shape":[', b'"shape":[9', 1)
        + content[8 + length :],
    }


PLACES = {"": MisterEModel, "speech_encoder": UtteranceEncoder, "text_encoder": UtteranceEncoder}


def load(folder: Path, place: str):
    return PLACES[place].from_pretrained(folder, **({"subfolder": place} if place else {}))


@pytest.mark.parametrize("place", PLACES)
def test_damaged_weights_are_named(folder, tmp_path, place):
    broken = copy_of(folder, tmp_path / "broken")
    path = broken / place / "model.safetensors"
    for kind, content in damaged(path.read_bytes()).items():
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(
            OSError, match=f"'{re.escape(str(path))}' is damaged, or was truncated.*Save or download it again"
        ):
            load(broken, place)
            pytest.fail(kind)
        turn = {"text": "a"} if place == "text_encoder" else {"audio": tone(1, 200), "sampling_rate": RATE}
        with pytest.raises((OSError, ValueError), match=re.escape(f"'{path}' is damaged")):
            pipeline(TASK, model=broken)([turn])


def test_damaged_adapter_and_backbone_are_named(tmp_path):
    backbone = write_backbone(tmp_path / "backbone", "text")
    tiny_encoder(backbone, "text", tuning="lora")[0].save_pretrained(tmp_path / "encoder")
    adapter = tmp_path / "encoder" / "adapter" / "adapter_model.safetensors"
    for path in (adapter, backbone / "model.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        with pytest.raises(OSError, match=f"'{re.escape(str(path))}' is damaged"):
            UtteranceEncoder.from_pretrained(tmp_path / "encoder")
        path.write_bytes(whole)
    assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").config.tuning == "lora"


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json", "config.json"])
def test_damaged_files_beside_the_weights_are_named(folder, tmp_path, name):
    broken = copy_of(folder, tmp_path / "broken")
    (broken / "text_encoder" / name).unlink()
    (broken / "text_encoder" / name).write_text('{"model_type": ')
    with pytest.raises((OSError, ValueError), match=re.escape(f"{broken}/text_encoder")):
        pipeline(TASK, model=broken)([{"text": "a"}])


class Harm:
    """What unpickling runs."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def with_pickle(folder: Path, place: str, mark: Path, keep_weights: bool) -> Path:
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.bin"):
        torch.save({"weight": Harm(mark)}, folder / place / name)
    if not keep_weights:
        (folder / place / "model.safetensors").unlink()
    return folder


def set_config(folder: Path, place: str, **fields):
    path = folder / place / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(config | fields))


@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_is_refused(folder, tmp_path, place):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=False)
    where = re.escape(str(broken / place).rstrip("/"))
    with pytest.raises(
        OSError, match=f"'{where}' has no model.safetensors. Weights are read from safetensors alone: .* is a pickle"
    ):
        load(broken, place)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("shard", ["../elsewhere/model.safetensors", "/elsewhere/model.safetensors", "model.bin"])
@pytest.mark.parametrize("place", ["", "text_encoder"])
def test_shards_lie_in_their_folder_as_safetensors(folder, tmp_path, place, shard):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=True)
    names = load_file(broken / place / "model.safetensors")
    shutil.copytree(broken / place, (broken / place).parent / "elsewhere")
    (broken / place / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (broken / place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=f"index.json' names '{shard}', which is not a safetensors file of its own folder"
    ):
        load(broken, place)
    assert not (tmp_path / "mark").exists()


SAYINGS = {
    "remote code": {"trust_remote_code": True},
    "weights of another name": {"transformers_weights": "pytorch_model.bin"},
    "weights elsewhere": {"transformers_weights": "../elsewhere/model.safetensors"},
    "pickles": {"use_safetensors": False},
    "no check": {"weights_only": False},
    "code of an Auto class": {"auto_map": {"AutoModel": "harm.Harm", "AutoConfig": "harm.Harm"}},
    "a pipeline": {"custom_pipelines": {TASK: {"impl": "harm.Harm", "pt": ["AutoModel"]}}},
    "an adapter": {"adapter": "../elsewhere"},
    "a subfolder": {"subfolder": "../elsewhere"},
    "another home": {"_name_or_path": "../elsewhere"},
}


@pytest.mark.parametrize("place", ["", "text_encoder"])
@pytest.mark.parametrize("saying", SAYINGS)
def test_what_a_configuration_says_runs_nothing(folder, pipe, tmp_path, place, saying):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=True)
    for target in {broken, broken / place}:
        (target / "harm.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Harm: pass\n")
    set_config(broken, place, **SAYINGS[saying])
    # refused by name, or without an effect
    try:
        found = pipeline(TASK, model=broken)([{"text": "well"}])
    except ValueError as error:
        assert f"has no field '{next(iter(SAYINGS[saying]))}'" in str(error)
    else:
        assert_same(found, pipe([{"text": "well"}]), 0)
    assert not (tmp_path / "mark").exists()


def test_a_backbone_s_name_is_looked_up_and_no_more(tmp_path):
    """Whatever a checkpoint calls its backbone: a name on the Hub or a folder, whose weights are read as weights."""
    backbone = write_backbone(tmp_path / "backbone", "text")
    tiny_encoder(backbone, "text")[0].save_pretrained(tmp_path / "encoder")
    shutil.copytree(backbone, tmp_path / "elsewhere")
    set_config(tmp_path / "encoder", "", backbone=str(tmp_path / "elsewhere"))
    assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").config.backbone == str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "model.safetensors").unlink()
    torch.save({"weight": Harm(tmp_path / "mark")}, tmp_path / "elsewhere" / "pytorch_model.bin")
    (tmp_path / "elsewhere" / "harm.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Harm: pass\n")
    set_config(tmp_path / "elsewhere", "", auto_map={"AutoModel": "harm.Harm"}, model_type="bert")
    for name in (str(tmp_path / "elsewhere"), "../elsewhere", "pytorch_model.bin"):
        set_config(tmp_path / "encoder", "", backbone=name)
        with pytest.raises(Exception):  # noqa: B017
            UtteranceEncoder.from_pretrained(tmp_path / "encoder", local_files_only=True)
    assert not (tmp_path / "mark").exists()


# In processes of their own


# Each child in a process of its own, forked where torch is loaded already, and neither transformers nor what is hidden from the last.
CHILDREN = """
import json, os, sys, traceback
import numpy, soundfile, soxr, torch, torch._dynamo, torch.distributed.tensor

torch.set_num_threads(1)
known = {name.partition(".")[0] for name in sys.modules}
assert not {"transformers", "mister_e_hf", "huggingface_hub"} & known
told = json.loads(sys.argv[1])
for step in json.loads(sys.argv[2]):
    children = {}
    for name, code in step.items():
        if (child := os.fork()) == 0:
            try:
                exec(code, names := dict(told))
                with open(name + ".json", "w") as file:
                    json.dump(names["found"], file)
            except BaseException:
                print(name, traceback.format_exc(), flush=True)
                os._exit(1)
            os._exit(0)
        children[child] = name
    failed = [name for child, name in children.items() if os.waitpid(child, 0)[1]]
    assert not failed, failed
    for name in children.values():
        with open(name + ".json") as file:
            told[name] = json.load(file)
"""
CLASS_FIRST = """
from mister_e_hf import ConversationEmotionPipeline, MisterEModel

found = {"first": ConversationEmotionPipeline(MisterEModel.from_pretrained(first))(turns)}
from huggingface_hub import HfApi
from transformers import pipeline
from mister_e_hf.hub.checkpoint import push_checkpoint

assert type(pipeline(task, model=first)) is ConversationEmotionPipeline
shas = [HfApi().model_info(push_checkpoint(folder, "org/name")).sha for folder in (first, second)]
push_checkpoint(second, "org/secret", private=True)
push_checkpoint(first, "org/moving")
found = {"found": found, "shas": shas}
"""
PACKAGE_FIRST = """
import mister_e_hf
from transformers import pipeline

moving = pipeline(task, model="org/moving")
mister_e_hf.MisterEModel.from_pretrained(second).push_to_hub("org/moving")
found = {
    "first": pipeline(task, model=first)(turns),
    "second": pipeline(task, model="org/name")(turns),
    "first as pushed": pipeline(task, model="org/name", revision=pushed["shas"][0])(turns),
    "first before the push": moving(turns),
    "second after the push": pipeline(task, model="org/moving")(turns),
}
assert not any(name.startswith("transformers_modules") for name in __import__("sys").modules)
"""
PACKAGE_LAST = """
import os
os.environ.pop("HF_TOKEN")
from transformers import AutoModel, pipeline
import mister_e_hf

found = {
    "first": pipeline(task, model=first)(turns),
    "first by object": pipeline(task, model=AutoModel.from_pretrained("org/name", revision=pushed["shas"][0]))(turns),
    "second with a token": pipeline(task, model="org/secret", token=token)(turns),
}
assert not any(name.startswith("transformers_modules") for name in __import__("sys").modules)
found["first by its own code"] = pipeline(task, model=first, trust_remote_code=True)(turns)
"""
WITHOUT_THE_PACKAGE = """
import sys

HIDDEN = {"mister_e_hf", "datasets", "pyarrow", "pandas", "sklearn", "scipy", "accelerate", "peft", "evaluate", "av"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from transformers import pipeline

found = {
    "first": pipeline(task, model=first, trust_remote_code=True)(turns),
    "second": pipeline(task, model="org/name", trust_remote_code=True)(turns),
    "first as pushed": pipeline(task, model="org/name", revision=pushed["shas"][0], trust_remote_code=True)(turns),
    "second without a task": pipeline(model="org/name", trust_remote_code=True)(turns),
}
try:
    pipeline(task, model=first, trust_remote_code=False)
    raise AssertionError("its code was run")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
"""


def test_it_loads_in_every_order_from_disk_and_hub_and_without_the_package(folder, pipe, sounds, tmp_path):
    second = write_checkpoint(tmp_path / "second", seed=2)
    turns = [
        {"audio": str(sounds / "clip.wav"), "text": "so you see"},
        {"text": "well"},
        {"audio": str(sounds / "clip.wav")},
    ]
    expected = {"first": pipe(turns), "second": pipeline(TASK, model=second)(turns)}
    assert not np.allclose(numbers(expected["first"]), numbers(expected["second"]), atol=0.01)
    told = {"first": str(folder), "second": str(second), "turns": turns, "task": TASK, "token": TOKEN}
    children = {"before": PACKAGE_FIRST, "after": PACKAGE_LAST, "without": WITHOUT_THE_PACKAGE}
    with loopback_hub() as hub:
        call = subprocess.run(
            [sys.executable, "-c", CHILDREN, json.dumps(told), json.dumps([{"pushed": CLASS_FIRST}, children])],
            env=hub.env(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert call.returncode == 0, call.stdout + call.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pushed", *children)}
    found["pushed"] = found["pushed"]["found"]
    for child, results in found.items():
        for name, result in results.items():
            difference = np.abs(numbers(result) - numbers(expected[name.partition(" ")[0]])).max()
            assert difference < 1e-5, (child, name)
