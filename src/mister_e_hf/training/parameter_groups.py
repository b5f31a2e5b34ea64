"""Learning rates of their own for some parameters."""

from collections.abc import Iterable

import torch


def give_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter], rate: float):
    """Move these parameters, as far as an optimizer has them, to groups with this learning rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        options = {name: value for name, value in group.items() if name not in ("params", "lr")}
        if moved:
            optimizer.add_param_group({"params": moved, "lr": rate} | options)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
