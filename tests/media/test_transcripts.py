import pytest

from mister_e_hf.media.transcripts import has_words, transcript

SEEN = ["a", "7", "?", "...", "\u4f60", "\U0001f600", "\u0e2a", "e\u0301", "\u00b0", "\ufffd", "\ue000", "\u200b a"]
UNSEEN = [
    "",
    " \t\n",
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\u00a0\u3000",
    "\u3164",
    "\u2800",
    "\ufe0f\u200d",
    "\x00\x1b",
]


def test_invisible_text_is_none():
    for text in SEEN:
        assert has_words(text) and transcript(text, "turn 0") == text, ascii(text)
    for text in UNSEEN:
        assert not has_words(text) and transcript(text, "turn 0") is None, ascii(text)
    assert transcript(None, "turn 0") is None


@pytest.mark.parametrize("text", ["ok \ud83d", "\ude00 ok", "\ud83d", " \ude00\ud83d "])
def test_half_a_character_is_refused_with_its_place(text):
    with pytest.raises(ValueError, match=r"text of turn 3 has half a character at position \d .*surrogate"):
        transcript(text, "turn 3")
    assert transcript("\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "turn 3") == "\U0001f600"
