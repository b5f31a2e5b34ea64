"""From the host to an accelerator."""

import torch


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on a device, without waiting for what is queued there; those of the device as they are."""
    # CUDA has read what is not pinned when the call returns; other devices promise nothing
    return values.to(device, non_blocking=device.type == "cuda")
