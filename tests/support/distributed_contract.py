"""One training step of models in several processes.

Usage: torchrun --nproc_per_node 2 distributed_contract.py FOLDER NAME ...
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from mister_e_hf import MisterETrainer, MisterETrainingArguments
from mister_e_hf.models.registry import entry
from support.model_contract import LENGTHS, rows_of, small_batch, small_config


def gradient_of_a_step(
    name: str, folder: str | Path, batch_size: int, trainer_class=MisterETrainer
) -> dict[str, torch.Tensor]:
    """The change of each parameter by one plain gradient step over four dialogues."""
    kind = entry(name)
    dropouts = {field: 0.0 for field in kind.config_class().own_fields() if field.endswith("dropout")}
    torch.manual_seed(0)
    model = kind.model_class()(small_config(name, **dropouts))
    batch = small_batch(model.config, dtype=torch.float32)
    batch.pop("attention_mask")
    dialogues = [
        {key: values[0] for key, values in rows_of(batch, [row], length).items()} for row, length in enumerate(LENGTHS)
    ]
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    arguments = MisterETrainingArguments(
        str(folder),
        use_cpu=True,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=1,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        contrastive_weight=0.7,
        consistency_weight=0.3,
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=dialogues)
    trainer.train()
    return {key: before[key] - parameter.detach() for key, parameter in model.named_parameters()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        change = gradient_of_a_step(name, folder / "together", batch_size=2)
        assert dist.get_world_size() == 2
        if dist.get_rank() == 0:
            save_file(change, folder / f"{name}.safetensors")
    dist.destroy_process_group()  # or its threads may abort the process at its exit
