"""What is said of transcripts that a model reads: those that are missing, and their language."""

from types import SimpleNamespace

import pytest

from mister_e_hf.base.prompt_counts import counted_since, prompt_sentence
from mister_e_hf.inference.transcript_notes import TranscriptNotes, transcript_notes

ENGLISH, CHINESE = "what on earth are you doing here", "你到底在这里做什么呢我们都在等你快点回来吧好不好"


def said(language: str | None, *transcripts: str | None, reads: bool = True) -> list[str]:
    notes = TranscriptNotes(SimpleNamespace(reads_transcripts=reads, language=language))
    notes.add(transcripts)
    return [*notes.sentences("train: ")]


def test_missing_transcripts_are_counted():
    assert said("en", ENGLISH, None, " ") == ["train: 2 of 3 turns have no transcript, which the model reads"]
    assert said("en", ENGLISH) == [] == said("en", None, reads=False)


@pytest.mark.parametrize(("language", "transcripts"), [("en", CHINESE), ("zh", ENGLISH)])
def test_another_language_is_said_with_its_share(language, transcripts):
    (sentence,) = said(language, transcripts)
    share = "100 %" if language == "en" else "0 %"
    assert sentence.startswith(f"train: {share} of the letters of the transcripts are Chinese")
    assert f"(language '{language}')" in sentence
    assert said("zh" if language == "en" else "en", transcripts) == []


def test_a_word_or_two_do_not_say_the_language_nor_does_a_model_without_prompts_ask():
    assert said("en", "你好") == [] == said("zh", "OK") == said(None, CHINESE)


def test_a_split_without_any_lacks_all():
    config = SimpleNamespace(reads_transcripts=True, language="en")
    splits = {"train": [[ENGLISH, None], [None]], "test": None}
    assert [*transcript_notes(config, splits, {"train": 3, "test": 5})] == [
        "train: 2 of 3 turns have no transcript, which the model reads",
        "test: 5 of 5 turns have no transcript, which the model reads",
    ]


def test_what_prompts_had_no_room_for():
    counts = {"prompts": 1200, "earlier_turns": 3, "shortened_turns": 1}
    assert prompt_sentence(counts) == (
        "1,200 prompts had no room (max_length) for 3 earlier turns and for the end of 1 turn"
    )
    assert prompt_sentence(counts | {"earlier_turns": 0, "shortened_turns": 0}) is None is prompt_sentence({})
    assert counted_since({"prompts": 2}, {"prompts": 5}) == {"prompts": 3}
