"""What is given for a dialogue is understood, or named with dialogue, turn and field; nothing is passed over."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import pipeline

from mister_e_hf import DialogueCollator, MisterEConfig, MisterEModel
from mister_e_hf.base.errors import InputError
from mister_e_hf.inference.raw_turns import read_dialogue

TASK = "conversation-emotion-recognition"
SOUND = np.sin(np.arange(1600) / 9).astype("float32")


def erc_of(**changes):
    """A pipeline of a tiny model that takes vectors of two numbers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "attention_dim": 6, "fusion_num_layers": 1, "context_num_layers": 1}
    config = MisterEConfig(
        speech_embedding_dim=2, text_embedding_dim=2, id2label={0: "anger", 1: "joy"}, **sizes, **changes
    )
    return pipeline(TASK, model=MisterEModel(config))


@pytest.fixture(scope="module")
def erc():
    return erc_of()


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("Text", "text"),
        (" text", "text"),
        ("TEXT", "text"),
        ("transcript", "text"),
        ("content", "text"),
        ("txt", "text"),
    ]
    + [("audio_path", "audio"), ("file name", "audio"), ("wav", "audio"), ("Start", "start"), ("start_time", "start")]
    + [("end-time", "end"), ("sample_rate", "sampling_rate"), ("text_features", "text_embedding")],
)
def test_similar_field_names_are_suggested(field, meant):
    with pytest.raises(InputError, match=f"turn 1 has the unknown field '{field}'; did you mean '{meant}'"):
        read_dialogue([{"text": "a"}, {field: "b"}], "dialogue 0")


UNCLEAR = {
    "audio without a known key": (
        [{"audio": {"file": "x.wav"}}],
        "audio has the unknown field 'file'; did you mean 'path'",
    ),
    "audio of another rate's name": (
        [{"audio": {"array": SOUND, "sample_rate": 16000}}],
        "'sample_rate'; did you mean 'sampling_rate'",
    ),
    "two rates": (
        [{"audio": {"array": SOUND, "sampling_rate": 8000}, "sampling_rate": 16000}],
        "two sampling rates, 16000 and in audio 8000",
    ),
    "a rate that is not whole": (
        [{"audio": SOUND, "sampling_rate": 16000.5}],
        "turn 0: sampling_rate must be an integer in Hz",
    ),
    "a rate of NaN": ([{"audio": SOUND, "sampling_rate": np.nan}], "turn 0: sampling_rate must be an integer in Hz"),
    "true as start": ([{"audio": "x.wav", "start": True}], "turn 0: start must be a number or None, got True"),
    "half an emoji": ([{"text": "ok \ud83d"}], "The text of dialogue 0, turn 0 has half a character at position 3"),
    "masked numbers": (
        [{"audio": np.ma.masked_invalid([0.1, np.nan]), "sampling_rate": 16000}],
        "turn 0: audio is an array with masked",
    ),
    "a tensor without numbers": (
        [{"audio": torch.ones(9, device="meta"), "sampling_rate": 16000}],
        "turn 0: audio cannot be read as an array",
    ),
    "a message of a chat": ([{"role": "user", "content": "hi"}], "turn 0 has the unknown field 'role'"),
    "more beside utterances": (
        {"utterances": [{"text": "a"}], "audio": "x.wav"},
        "dialogue 0 has the unknown field 'audio'",
    ),
    "turns of another name": ({"turns": [{"text": "a"}]}, "'turns' may be 'segments'"),
    "a dictionary of lists": (
        {"text": ["a", "b"]},
        "a dictionary of lists is not a dialogue; expected a list of turns",
    ),
    "lists of two lengths": (
        {"utterances": {"text": ["a", "b"], "audio": ["x.wav"]}},
        "utterances must be lists of equal length",
    ),
    "a segment with audio of its own": (
        {"audio": "x.wav", "segments": [{"start": 0, "end": 1, "audio": "y.wav"}]},
        "segment 0 has audio, which only the recording may have",
    ),
    "subtitles of another name": ({"audio": "x.wav", "srt": "x.srt"}, "'srt' may be 'segments'"),
    "its own name": (
        {"dialogue_id": "call-7", "utterances": [{"text": 3}]},
        "dialogue 'call-7', turn 0: text must be a string",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unknown_forms_raise(case):
    given, message = UNCLEAR[case]
    with pytest.raises(InputError, match=message):
        read_dialogue(given, "dialogue 0")


def test_strings_are_neither_texts_nor_paths(erc):
    with pytest.raises(InputError, match=r"Expected a dialogue, a list of turns, such as \[{.text.: .*got str"):
        erc("You did what?")
    with pytest.raises(InputError, match="got a list of strings, which may be texts or paths: 'You did what"):
        erc(["You did what?", "Calm down."])


def test_columns_of_a_data_set_are_taken_where_they_say_one_thing(erc):
    one, other = [{"text_embedding": [0.5, 1]}], [{"speech_embedding": [1, 2]}, {"text_embedding": [3, 1]}]
    expected = erc([one, other])
    assert erc({"dialogue_id": ["a", "b"], "utterances": [one, other]}) == expected
    assert erc({"utterances": {"text_embedding": [[0.5, 1]]}}) == expected[0]


def test_overflow_raises(erc):
    good = {"text_embedding": [0.5, -0.5]}
    for wrong, message in {
        (1e38, -1e38): "dialogue 0, turn 1: text_embedding has numbers up to 1e\\+38, which are too large",
        (1e300, 0): "turn 1: text_embedding has numbers up to 1e\\+300, which are too large",
        (np.inf, 0): "turn 1: text_embedding holds NaN or infinity",
    }.items():
        with pytest.raises(InputError, match=message):
            erc([good, {"text_embedding": wrong}])
    steep = erc_of()
    steep.model.gate.dense.weight.data.fill_(1e25)
    for head in (steep.model.fusion_expert.head, steep.model.text_expert.head):
        head.weight.data.mul_(1e15)
    message = "dialogue 0, turn 1: text_embedding has numbers up to 7, for which the model 'MisterEModel' computes NaN"
    with pytest.raises(InputError, match=message):
        steep([good, {"text_embedding": [7, -7]}])
    steep.model.gate.dense.weight.data[0] = torch.nan
    with pytest.raises(InputError, match="has weights that are NaN or infinite"):
        steep([good])


@pytest.mark.parametrize("error", [MemoryError("373 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_dialogue_too_long_for_the_memory_is_named(erc, error):
    def fail(*_):
        raise error

    hook = erc.model.gate.register_forward_hook(fail)
    try:
        turns = [{"text_embedding": [0.5, 1]}]
        with pytest.raises(
            InputError, match="dialogue 1 has 3 turns, which needs more memory .*split it into shorter"
        ):
            erc([turns, turns * 3, turns], batch_size=3)
    finally:
        hook.remove()


def test_one_stream_in_several_threads_forgets_nothing():
    erc = erc_of(causal=True)
    turns, interval = [{"text_embedding": [0.1, 1]}] * 200, sys.getswitchinterval()
    stream = erc.stream()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(stream, turns))
    finally:
        sys.setswitchinterval(interval)
    assert stream.num_turns == 200
    whole = sorted(one["score"] for one in erc(turns))
    np.testing.assert_allclose(sorted(one["score"] for one in found), whole, rtol=0, atol=1e-6)


def test_arguments_of_another_kind_are_named(erc):
    turns = [{"text_embedding": [0.5, 1]}]
    for wrong in ("x", 1.5, True):
        with pytest.raises(InputError, match="batch_size must be a positive number of dialogues"):
            erc(turns, batch_size=wrong)
    for encoders, message in {
        "text": "encoders must be a dictionary by modality, got str",
        ("text", (1, 2)): r"encoders\['text'\] must be \(UtteranceEncoder, MisterEProcessor\), got \(int, int\)",
    }.items():
        with pytest.raises(InputError, match=message):
            pipeline(TASK, model=erc.model, encoders=dict([encoders]) if isinstance(encoders, tuple) else encoders)
    with pytest.raises(InputError, match="transcriber must be the name or pipeline of a recognition model, got 5"):
        pipeline(TASK, model=erc.model, transcriber=5)
    with pytest.raises(InputError, match="The transcriber 'nowhere/at-all/x' could not be loaded"):
        pipeline(TASK, model=erc.model, transcriber="nowhere/at-all/x")([{"audio": SOUND, "sampling_rate": 16000}])


def test_the_pipeline_says_what_it_is(erc):
    shown = repr(erc)
    for part in ("emotions=['anger', 'joy']", "heads=['speech', 'text', 'fusion']", "'text_embedding of 2 numbers'"):
        assert part in shown
    assert "modalities" not in shown


def test_labels_of_no_class_and_a_batch_of_nothing_are_named(erc):
    batch = DialogueCollator()([{"text_embeddings": np.ones((3, 2)), "labels": [0, 7, -100]}])
    with pytest.raises(InputError, match="labels hold 7; the model has 2 classes"):
        erc.model(**batch)
    for labels in (torch.tensor([[0, -1, 1]]), torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0, 1]])):
        with pytest.raises(InputError, match="labels"):
            erc.model(**batch | {"labels": labels})
    with pytest.raises(InputError, match="batch of no dialogues"):
        DialogueCollator()([])
