"""A tiny pre-training model and generated dialogues, for steps of its trainer."""

from pathlib import Path

import torch

from mister_e_hf import MisterEConfig, MisterEForPreTraining, PretrainingArguments, PretrainingTrainer
from support.gradient_steps import ONE_STEP

LENGTHS = (5, 1, 7, 3)
SIZES = {
    "speech_embedding_dim": 5,
    "text_embedding_dim": 4,
    "hidden_size": 8,
    "context_num_layers": 1,
    "fusion_num_layers": 1,
    "attention_dim": 6,
    "num_attention_heads": 3,
    "attention_dropout": 0.0,
    "projection_dropout": 0.0,
}


def tiny_pretraining_model(**changes) -> MisterEForPreTraining:
    torch.manual_seed(0)
    return MisterEForPreTraining(MisterEConfig(**{**SIZES, **changes}))


def unlabelled(lengths=LENGTHS, seed: int = 0) -> list[dict]:
    """Dialogues without labels, whose second modality some turns lack."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "speech_embeddings": torch.randn(length, 5, generator=generator),
            "speech_mask": torch.rand(length, generator=generator) < 0.8,
            "text_embeddings": torch.randn(length, 4, generator=generator),
            "text_mask": torch.ones(length, dtype=torch.bool),
        }
        for length in lengths
    ]


def pretraining_arguments(folder: str | Path, **changes) -> PretrainingArguments:
    settings = {"standardize": False, "mask_rate": 0.4, "load_best_model_at_end": False}
    return PretrainingArguments(str(folder), **{**ONE_STEP, **settings, **changes})


def pretraining_gradient(folder: str | Path, dialogues=None, **changes) -> dict[str, torch.Tensor]:
    """The change of each parameter by one plain gradient step."""
    model = tiny_pretraining_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = unlabelled() if dialogues is None else dialogues
    PretrainingTrainer(model, pretraining_arguments(folder, **changes), train_dataset=data).train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
