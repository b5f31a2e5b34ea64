"""Small tokenizers of each kind that language models have, trained where a test needs them."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = [
    "Recognize the emotion of the current turn of this English dialogue: neutral, joy, anger, fear or sadness.",
    "Rate the sentiment of the current turn from -3.0 to +3.0. The emotion is\nThe sentiment is\n",
    'Earlier turns:\n- "Where were you?"\nCurrent turn: "At home, I do not believe you!" (no video)\n',
    "negative non-negative positive surprise disgust happy sad angry excited frustrated 0 1 2 3 4 5 6 7 8 9 10",
    "请识别这段中文对话中当前一句的情绪：愤怒、厌恶、恐惧、高兴、平静、悲伤或惊奇。情绪是：",
    "请评估这段中文对话中当前一句的情感，范围从到。消极、中性、积极、非消极、激动、沮丧。之前的对话：当前一句：“你去哪儿了？”（无语音）",
] * 3
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_level(size: int = 400) -> PreTrainedTokenizerFast:
    """As GPT-2, Qwen2 and SmolLM2: byte-level BPE; a text begins with no token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def gemma_like(size: int = 500) -> PreTrainedTokenizerFast:
    """As Gemma: BPE on characters with ▁ for a gap, bytes for the unknown; a text begins with <s>."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=[*_SPECIAL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    stored = json.loads(tokenizer.to_str())  # bytes are ordinary tokens
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in _SPECIAL]
    return _with_start(Tokenizer.from_str(json.dumps(stored)))


def llama_like(size: int = 500) -> PreTrainedTokenizerFast:
    """As Llama 2: a SentencePiece Unigram that puts ▁ before a text, which begins with <s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    return _with_start(tokenizer)


def of_words() -> PreTrainedTokenizerFast:
    """Words and marks without the gaps between them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    chinese = [*"愤怒厌恶恐惧高兴平静悲伤惊奇消极中性积非"]
    trainer = trainers.WordLevelTrainer(special_tokens=_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(
        [*_TEXT, *chinese, "愤怒 厌恶 恐惧 高兴 平静 悲伤 惊奇 消极 中性 积极 非消极 激动 沮丧 - + ."], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMES)


def _with_start(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMES)


KINDS = {"byte_level": byte_level, "gemma_like": gemma_like, "llama_like": llama_like, "of_words": of_words}


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()
