"""Checkpoint folders with encoders, tiny and random: they take audio, text and, of some models, video."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.hub.checkpoint import save_checkpoint
from support.model_contract import small_model
from support.small_encoders import LABELS, tiny_encoder, write_backbone

WIDTH = 6


def write_checkpoint(folder: Path, seed: int = 0, **changes) -> Path:
    """A MiSTER-E with encoders of speech and text. No weight of it is at its neutral value."""
    encoders = write_encoders(folder, ("speech", "text"), seed)
    sizes = {"hidden_size": 8, "context_num_layers": 1, "fusion_num_layers": 1, "attention_dim": 6}
    widths = {"speech_embedding_dim": WIDTH, "text_embedding_dim": WIDTH}
    torch.manual_seed(seed)
    model = MisterEModel(MisterEConfig(**sizes, **widths, id2label=dict(enumerate(LABELS)), **changes))
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return save_checkpoint(folder, model, encoders=encoders)


def write_video_checkpoint(folder: Path, name: str = "mult", **changes) -> Path:
    """A registered model of all three modalities, with their encoders."""
    widths = {modality.width: WIDTH for modality in MODALITIES.values()}
    changes = {**widths, "modalities": [*MODALITIES], "id2label": dict(enumerate(LABELS)), **changes}
    model = small_model(name, torch.float32, **changes)
    return save_checkpoint(folder, model, {}, encoders=write_encoders(folder, tuple(MODALITIES)))


def write_encoders(folder: Path, modalities: Sequence[str], seed: int = 0) -> dict[str, Path]:
    """Encoders beside the folder, by modality."""
    encoders = {}
    for modality in modalities:
        backbone = folder.with_name(f"{folder.name}-{modality}-backbone")
        encoders[modality] = folder.with_name(f"{folder.name}-{modality}")
        for part in tiny_encoder(write_backbone(backbone, modality), modality, seed, tuning="full"):
            part.save_pretrained(encoders[modality])
    return encoders
