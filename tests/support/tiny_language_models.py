"""Tiny causal language models with random weights, and a byte-level tokenizer, as folders of transformers."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

WIDTH = 16
WORDS = ["anger", "joy", "neutral", "The emotion is", "yes yes yes", "calm", "tense"]
_COMMON = {"vocab_size": 300, "hidden_size": WIDTH, "num_hidden_layers": 2, "max_position_embeddings": 512}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 300, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 512}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": _COMMON | _HEADS,
    "qwen2": _COMMON | _HEADS,
    "gemma3_text": _COMMON
    | _HEADS
    | {"head_dim": 8, "sliding_window": 400, "layer_types": ["sliding_attention", "full_attention"]},
    # not among the tested ones
    "mistral": _COMMON | _HEADS,
    "bloom": {"vocab_size": 300, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens of bytes, merged where some words have them; `<s>` and `</s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@functools.cache
def tiny_language_model(kind: str) -> str:
    """The folder of a language model of this type, the same one for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-language-model-")) / kind
    torch.manual_seed(5)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind], **special)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # peaked answers, so that differences show
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@functools.cache
def described(kind: str) -> dict[str, Any]:
    """The configuration of such a model, as [`EgmfConfig`] keeps it."""
    config = transformers.AutoConfig.from_pretrained(tiny_language_model(kind))
    return {name: value for name, value in config.to_dict().items() if not name.startswith("_")}


def language_model_fields(kind: str = "gpt2", **changes: Any) -> dict[str, Any]:
    """Fields of an [`EgmfConfig`] with such a model, which is trained whole."""
    fields = {"language_model": tiny_language_model(kind), "language_model_config": described(kind)}
    scores = {"score_range": [-9.0, 9.0], "score_step": 1.0}
    return {**fields, **scores, "train_language_model": True, "context_turns": 2, "max_length": 400, **changes}
