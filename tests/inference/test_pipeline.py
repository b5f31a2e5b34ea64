"""Raw dialogues of every form go in, and what comes out of the pipeline."""

import json
import re
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
from transformers import (
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from mister_e_hf import (
    MisterEConfig,
    MisterEModel,
    MisterEProcessor,
    UtteranceEncoder,
    load_audio,
)
from support.small_checkpoint import WIDTH
from support.small_encoders import LABELS, RATE, tone
from support.small_pipeline import TASK, assert_same, dialogues, encoders_of, numbers

# Inputs


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
def test_every_form_of_audio_gives_the_same_result(pipe, sounds, clip, form):
    expected = pipe([{"audio": sounds / "clip.wav", "text": "well"}, {"text": "so"}])
    assert_same(pipe([FORMS[form](sounds, clip) | {"text": "well"}, {"text": "so"}]), expected)
    assert not np.allclose(numbers(pipe([{"text": "well"}, {"text": "so"}])), numbers(expected), atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_audio_of_every_rate_is_resampled(pipe, rate, tmp_path):
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
def test_missing_fields_may_be_none_or_blank(pipe, lacking):
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


def test_pipeline_equals_processor_encoder_and_model(pipe, folder, sounds):
    for turns in dialogues(sounds, (5, 1, 9)):
        np.testing.assert_allclose(numbers(pipe(turns)), by_hand(pipe, folder, turns), rtol=0, atol=1e-5)


def test_vectors_replace_audio_and_text(pipe, sounds):
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


def test_vectors_take_precedence_over_audio(pipe, sounds):
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


def test_long_dialogues_are_not_padded_beside_short_ones(pipe):
    rows = np.random.default_rng(0).standard_normal((700, WIDTH))
    several = [[{"text_embedding": row} for row in rows[:count]] for count in (3, 700, 5, 300, 256, 310, 1)]
    shapes: list[tuple[int, ...]] = []

    def noted(module, arguments, inputs):
        shapes.append(tuple(inputs["text_embeddings"].shape[:2]))

    hook = pipe.model.register_forward_pre_hook(noted, with_kwargs=True)
    together = pipe(several, batch_size=7)
    hook.remove()
    assert shapes == [(4, 256), (1, 700), (2, 310)]
    for found, dialogue in zip(together, several, strict=True):
        assert_same(found, pipe(dialogue))


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batching_changes_no_result(pipe, sounds, batch_size):
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


SRT = (
    "1\n00:00:00,500 --> 00:00:01,500\nso you see\n\n2\n00:00:02,000 --> 00:00:03,000\n\n"
    "3\n00:00:05,000 --> 00:00:05,750\nhooray\n"
)


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


# Outputs


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
        with pytest.raises(ValueError, match="dialogue 0: no turn has text, which this model reads"):
            pipe([{"audio": sounds / "clip.wav"}])


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
