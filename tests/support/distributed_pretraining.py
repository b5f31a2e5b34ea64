"""One step of pre-training in several processes.

Usage: torchrun --nproc_per_node 2 distributed_pretraining.py FOLDER

Dialogues 0 and 1 fall to the first process, 2 and 3 to the second.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

from mister_e_hf import PretrainingTrainer
from support.gradient_steps import end_process
from support.pretraining_run import pretraining_arguments, pretraining_gradient, tiny_pretraining_model, unlabelled

CASES: dict[str, dict] = {
    "both": {},
    "dialogue": {"negatives": "dialogue"},
    "reconstruction": {"contrastive_weight": 0.0},
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, changes in CASES.items():
        found = pretraining_gradient(folder / "run", per_device_train_batch_size=2, **changes)
        assert dist.get_world_size() == 2
        if dist.get_rank() == 0:
            save_file(found, folder / f"{name}.safetensors")
    # an only pair in the whole step, and a process without any
    lonely = unlabelled((1, 1, 1, 1))
    for number, dialogue in enumerate(lonely):
        dialogue["speech_mask"][:] = number == 0
    found = pretraining_gradient(folder / "run", lonely, per_device_train_batch_size=2)
    if dist.get_rank() == 0:
        save_file(found, folder / "lonely.safetensors")
    arguments = pretraining_arguments(folder / "run", per_device_eval_batch_size=1, contrastive_weight=0.0)
    scores = PretrainingTrainer(tiny_pretraining_model(), arguments, eval_dataset=unlabelled((5, 1, 7))).evaluate()
    if dist.get_rank() == 0:
        (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    end_process()
