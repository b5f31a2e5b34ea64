"""Settings of MiSTER-E that its tests run through, and how they run it."""

import pytest
import torch

PER_TURN = ("logits", "expert_logits", "gate_weights", "speech_states", "text_states")
MODALITIES = ("speech", "text")
SETTINGS = {
    "published": {},
    "causal": {"causal": True},
    "concatenation": {"fusion": "concatenation"},
    "no context layer": {"context_layer": False},
    "mean gate": {"gate": "mean"},
    "speech alone": {"experts": ["speech"]},
    "no fusion expert": {"experts": ["speech", "text"]},
    "clipped": {"feature_clip": 1.0},
    "attention that sees distance": {"attention_decay": True},
    "fusion of states in context": {"fusion_context": True},
    "both of these, causal": {"attention_decay": True, "fusion_context": True, "causal": True},
}
settings = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)


def run(model, batch, **changes):
    with torch.no_grad():
        return model(**{**batch, **changes})


def dialogue(batch, row: int) -> dict[str, torch.Tensor]:
    """One dialogue of a batch, alone and without padding."""
    real = batch["attention_mask"][row]
    return {name: values[row][real][None] for name, values in batch.items()}


LENGTHS = [5, 1, 7, 2]
