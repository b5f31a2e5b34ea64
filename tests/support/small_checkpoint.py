"""A checkpoint folder with both encoders, tiny and random: it takes audio and text."""

from pathlib import Path

import torch

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.hub.checkpoint import save_checkpoint
from support.small_encoders import LABELS, tiny_encoder, write_backbone

WIDTH = 6


def write_checkpoint(folder: Path, seed: int = 0, **changes) -> Path:
    """No weight of it is at its neutral value."""
    encoders = {}
    for modality in ("speech", "text"):
        backbone = folder.with_name(f"{folder.name}-{modality}-backbone")
        encoder, processor = tiny_encoder(write_backbone(backbone, modality), modality, seed, tuning="full")
        encoders[modality] = folder.with_name(f"{folder.name}-{modality}")
        encoder.save_pretrained(encoders[modality])
        processor.save_pretrained(encoders[modality])
    sizes = {"hidden_size": 8, "context_num_layers": 1, "fusion_num_layers": 1, "attention_dim": 6}
    widths = {"speech_embedding_dim": WIDTH, "text_embedding_dim": WIDTH}
    torch.manual_seed(seed)
    model = MisterEModel(MisterEConfig(**sizes, **widths, id2label=dict(enumerate(LABELS)), **changes))
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return save_checkpoint(folder, model, encoders=encoders)
