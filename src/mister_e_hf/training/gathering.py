"""Rows of all processes together, with their gradient."""

from typing import Any

import torch
import torch.distributed as dist


def gather_rows(accelerator: Any, rows: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    r"""
    The rows (M, H) of all processes, with their gradient, and a number (M,) of each, one process after another. M may
    differ between processes, and be 0.

    Returns:
        rows (K, H), numbers (K,), and the place of this process's first row.
    """
    counts = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    longest = max(*counts, 1)
    padded = rows.new_zeros(longest, rows.shape[1]).index_copy(0, torch.arange(len(rows), device=rows.device), rows)
    all_rows = _GatherWithGradient.apply(padded)
    padded_numbers = torch.nn.functional.pad(numbers, (0, longest - len(rows)))
    all_numbers = accelerator.gather(padded_numbers).split(longest)
    return (
        torch.cat([part[:count] for part, count in zip(all_rows, counts, strict=True)]),
        torch.cat([part[:count] for part, count in zip(all_numbers, counts, strict=True)]),
        sum(counts[: accelerator.process_index]),
    )


class _GatherWithGradient(torch.autograd.Function):
    """Gather rows (M, H) to (processes, M, H) with their gradient, which `Accelerator.gather` would lose."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]
