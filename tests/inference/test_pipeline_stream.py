"""A dialogue turn by turn gives what the whole dialogue gives."""

import pytest
from transformers import (
    pipeline,
)

from support.small_pipeline import TASK, assert_same, dialogues


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
    with pytest.raises(
        ValueError, match="'mister_e' does not stream, because it reads later turns too.*--model.causal true"
    ):
        pipe.stream()
