"""Texts that are too long, say nothing, or are in words that no token has."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mister_e_hf import MisterEProcessor
from support.tiny_backbones import TEXTS, tiny_encoder, tiny_tokenizer, write_backbone

WORDS = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "say", "hello", "there"])}


def words_alone(unknown: str | None = "[UNK]", **settings) -> PreTrainedTokenizerFast:
    """A tokenizer that knows six words, as one of another language does."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    if unknown is None:
        tokenizer = Tokenizer(models.BPE(WORDS, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token=unknown, **settings)


@pytest.mark.parametrize("unknown", ["[UNK]", None])
@pytest.mark.parametrize("prompt", ["{text}", "say {text}"])
def test_texts_that_the_tokenizer_does_not_know_are_counted(prompt, unknown):
    processor = MisterEProcessor("text", "bert", tokenizer=words_alone(unknown), prompt=prompt)
    batch = processor(["hello there", "\u4f60\u597d", "\U0001f600"])
    count = 2 if unknown else 3  # without an unknown token, words are left out
    assert processor.num_unknown == count and processor.num_truncated == 0
    assert batch["pooling_mask"].any(-1).all()  # each has a vector
    processor(["\u4f60"])
    assert processor.num_unknown == count + 1


def test_what_is_cut_is_told_from_what_is_unknown():
    processor = MisterEProcessor("text", "bert", tokenizer=words_alone(), max_tokens=4)
    assert processor(["hello there hello there", "hello"])["input_ids"].tolist() == [[2, 5, 6, 3], [2, 5, 3, 0]]
    assert (processor.num_truncated, processor.num_unknown) == (1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok \ud83d", r"turn 1 of the batch has half a character at position 3 .*surrogate"),
        ("\u200b\ufeff", r"Turn 1 of the batch has no words: '\\u200b\\ufeff'"),
        ("\u3164", "Turn 1 of the batch has no words"),
        (3, "Turn 1 of the batch has no words: 3"),
    ],
)
def test_a_turn_without_a_transcript_is_named(text, message):
    processor = MisterEProcessor("text", "bert", tokenizer=tiny_tokenizer(), prompt="Say: {text}")
    for work in (processor, processor.sizes):
        with pytest.raises(ValueError, match=message):
            work(["hello", text])


@pytest.mark.parametrize(("max_tokens", "most"), [(2, 10**30), (512, 2), (1, 512)])
def test_a_limit_that_leaves_no_room_is_refused(max_tokens, most):
    with pytest.raises(ValueError, match="max_tokens must be over the 2 tokens of the prompt and the special ones"):
        MisterEProcessor("text", "bert", tokenizer=tiny_tokenizer(model_max_length=most), max_tokens=max_tokens)


def test_the_limit_of_the_tokenizer_is_never_switched(monkeypatch):
    tokenizer = tiny_tokenizer(model_max_length=6)
    processor = MisterEProcessor("text", "bert", tokenizer=tokenizer)
    texts = [text * 5 for text in TEXTS]
    expected = processor(texts)
    limits = []
    original = tokenizer.set_truncation_and_padding

    def watched(*args, **kwargs):
        before = tokenizer.backend_tokenizer.truncation
        original(*args, **kwargs)
        limits.append((before, tokenizer.backend_tokenizer.truncation))

    monkeypatch.setattr(tokenizer, "set_truncation_and_padding", watched)
    assert processor.sizes(texts) == expected["attention_mask"].sum(-1).tolist() == [6.0, 6.0, 6.0]
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(lambda _: processor(texts), range(20)):
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert len(limits) >= 21 and all(before == after and after["max_length"] == 6 for before, after in limits)


def test_a_processor_that_is_stored_with_more_tokens_than_the_model_takes(tmp_path):
    folder = write_backbone(tmp_path / "base", "bert", max_position_embeddings=20)
    encoder, made = tiny_encoder(folder, "bert"), MisterEProcessor.from_backbone(folder, "text")
    assert made.max_tokens == 20
    encoder.save_pretrained(tmp_path / "encoder")
    MisterEProcessor("text", "bert", tokenizer=made.tokenizer, max_tokens=500).save_pretrained(tmp_path / "encoder")
    stored = MisterEProcessor.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        assert encoder(**stored(["hello there " * 50])).embeddings.isfinite().all()
    assert stored.num_truncated == 1
