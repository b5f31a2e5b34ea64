"""One step of gradient descent, which changes the parameters by the gradient, and scripts in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

ONE_STEP = {
    "use_cpu": True,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential",
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "disable_tqdm": True,
    "report_to": "none",
}


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 2e-6):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def run_processes(count: int, script: str, *words, **environment: str):
    """Run a script of this folder in several processes, as torchrun does."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)} | environment
    words = [str(here / script), *map(str, words)]
    call = subprocess.run([*command, *words], capture_output=True, text=True, timeout=200, env=environment)
    assert call.returncode == 0, call.stdout + call.stderr


def end_process():
    """End one of several processes after its work; gloo's threads may abort a process that ends as usual."""
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
