"""A small EGMF on a tiny language model, and dialogues for its trainer.

Usage: torchrun --nproc_per_node 2 egmf_training.py FOLDER takes one training step in two processes.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from mister_e_hf.training.egmf_trainer import EgmfTrainer, EgmfTrainingArguments
from support.gradient_steps import ONE_STEP, end_process
from support.model_contract import LABELS, LENGTHS, rows_of, small_batch
from support.tiny_language_models import tiny_language_model

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
SIZES = {"speech_embedding_dim": 5, "text_embedding_dim": 4, "visual_embedding_dim": 3, "hidden_size": 8}
SIZES |= {"num_attention_heads": 2}
EPOCHS = {
    "use_cpu": True,
    "learning_rate": 2e-2,
    "language_model_learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "disable_tqdm": True,
    "report_to": "none",
}


def new_model(kind: str = "gpt2", **changes) -> EgmfModel:
    given = {"id2label": LABELS, "dropout": 0.0, "context_turns": 2, "max_length": 400}
    config = EgmfConfig(**{**SIZES, **given, "language_model": tiny_language_model(kind), **changes})
    torch.manual_seed(3)
    return EgmfModel.from_language_model(config)


def dialogues(lengths=LENGTHS, seed: int = 0) -> list[dict]:
    batch = small_batch(EgmfConfig(**SIZES, id2label=LABELS), lengths, torch.float32, seed=seed)
    batch.pop("attention_mask")
    return [
        {key: values[0] for key, values in rows_of(batch, [row], length).items()} for row, length in enumerate(lengths)
    ]


def trained(model) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: values.detach().clone() for name, values in model.named_parameters() if values.requires_grad}


def gradient(folder, model: EgmfModel, data: list[dict] | None = None, **changes) -> dict[str, torch.Tensor]:
    """The change of each trained parameter by one plain gradient step over four dialogues."""
    before = trained(model)
    arguments = {**ONE_STEP, "language_model_learning_rate": 1.0, **changes}
    EgmfTrainer(
        model=model, args=EgmfTrainingArguments(str(folder), **arguments), train_dataset=data or dialogues()
    ).train()
    return {name: before[name] - values for name, values in trained(model).items()}


def epochs(folder, model: EgmfModel, count: int = 4, callbacks=None, resume=None, **changes) -> EgmfTrainer:
    """Train for some epochs."""
    trainer = EgmfTrainer(
        model=model,
        args=EgmfTrainingArguments(str(folder), **{**EPOCHS, "num_train_epochs": count, **changes}),
        train_dataset=dialogues((5, 1, 7, 2, 3)),
        eval_dataset=dialogues((4, 2, 6), seed=1),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    place = Path(sys.argv[1])
    change = gradient(place / "together", new_model(lora=LORA), per_device_train_batch_size=2)
    assert dist.get_world_size() == 2
    if dist.get_rank() == 0:
        save_file(change, place / "change.safetensors")
    end_process()
