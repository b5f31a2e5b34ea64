"""One training step in several processes.

Usage: torchrun --nproc_per_node 2 distributed_gradient.py FOLDER [UNLABELLED ...]

Dialogues 0 and 1 fall to the first process, 2 and 3 to the second.
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from mister_e_hf import MisterETrainer
from support.dialogue_training import arguments, dialogues_of, tiny_corpus, tiny_model, unlabel
from support.gradient_steps import end_process

if __name__ == "__main__":
    folder, unlabelled = Path(sys.argv[1]), tuple(map(int, sys.argv[2:]))
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = MisterETrainer(
        model=model,
        args=arguments(folder, per_device_train_batch_size=2),
        train_dataset=unlabel(dialogues_of(tiny_corpus()["train"]), unlabelled),
    )
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    if trainer.is_world_process_zero():
        change = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
        save_file(change, folder / "gradient.safetensors")
    end_process()
