"""One step of gradient descent, which changes the parameters by the gradient."""

import os
import sys

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


def end_process():
    """End one of several processes after its work; gloo's threads may abort a process that ends as usual."""
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
