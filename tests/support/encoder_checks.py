"""
What the tests of utterance encoders share: running, saving and comparing them, and the states that transformers
computes.
"""

import math
from pathlib import Path

import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoTokenizer,
)

from mister_e_hf import UtteranceEncoder
from support.tiny_backbones import (
    SPEECH,
    TEXT,
    TOKENS,
    WAVES,
)

TUNINGS = ["frozen", "lora", "full"]
# Every part of an encoder that may be trained.
EVERY_PART = {"tuning": "lora", "layer": "weighted_sum", "pooling": "attentive_statistics"}


def run(encoder, batch, **changes):
    with torch.no_grad():
        return encoder(**{**batch, **changes})


def own_states(folder: Path, kind: str, turn) -> list[torch.Tensor]:
    """
    Hidden states (P, H) at one utterance's own positions, from transformers' own forward; the output in the last
    place.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    own = slice(None)
    if kind in TEXT:
        inputs = AutoTokenizer.from_pretrained(folder)(turn, return_tensors="pt")
        inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    else:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        inputs = extractor(turn, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        inputs = {"input_values": inputs["input_values"]} if kind in WAVES else dict(inputs)
    if kind == "whisper":
        model = model.get_encoder()
        frames = int(inputs.pop("attention_mask").sum())
        own = slice(math.ceil(frames / 2))
    if kind == "qwen2_audio":
        mask = inputs.pop("attention_mask")
        count = (int(mask.sum() - 1) // 2 + 1 - 2) // 2 + 1
        names = ["<s>", "<|audio_bos|>", *["<|AUDIO|>"] * count, "<|audio_eos|>", "</s>"]
        ids = torch.tensor([[TOKENS.index(name) for name in names]])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "feature_attention_mask": mask}
        own = slice(2, 2 + count)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states if hasattr(output, "hidden_states") else output.encoder_hidden_states
    return [layer[0, own] for layer in (*states[:-1], output.last_hidden_state)]


def pooled(encoder, states: torch.Tensor) -> torch.Tensor:
    """One utterance's states (P, H) -> what its pooling must give, by the textbook."""
    if encoder.config.pooling == "mean":
        return states.mean(0)
    if encoder.config.pooling == "last_token":
        return states[-1]
    hidden, score = encoder.pooling.hidden, encoder.pooling.score
    weights = ((states @ hidden.weight.T + hidden.bias).tanh() @ score.weight.T + score.bias).softmax(0)
    mean = (weights * states).sum(0)
    return torch.cat([mean, ((weights * states**2).sum(0) - mean**2).clamp(min=1e-6).sqrt()])


def embedded(encoder, states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder.projection(pooled(encoder, encoder.norm(states)))


def small_windows(kind: str) -> dict:
    """Settings of a processor that cuts the utterances into windows, and lets Whisper hear less than 30 seconds."""
    return ({"window_seconds": 0.2} if kind in SPEECH else {}) | (
        {"trailing_silence": 0.1} if kind == "whisper" else {}
    )


def saved(encoder, folder: Path) -> Path:
    encoder.save_pretrained(folder)
    return folder


def assert_same(loaded, encoder, batch):
    assert type(loaded) is UtteranceEncoder and not loaded.training
    state, expected = loaded.state_dict(), encoder.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    for name, parameter in encoder.named_parameters():
        assert loaded.get_parameter(name).requires_grad == parameter.requires_grad, name
    output, wanted = run(loaded, batch), run(encoder, batch)
    assert torch.equal(output.logits, wanted.logits) and torch.equal(output.embeddings, wanted.embeddings)
    assert loaded.fingerprint() == encoder.fingerprint()
