"""The first step at which something was not finite."""

from collections.abc import Mapping

import torch

_NO_STEP = 2**62


class FirstSteps:
    """The first step at which each value was not finite, noted on its device without waiting for it."""

    def __init__(self):
        self._steps: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.no_grad()
    def note(self, step: int, values: Mapping[str, torch.Tensor]):
        """values by name, () each"""
        names, found = tuple(values), torch.stack([value.detach() for value in values.values()])
        earlier = self._steps.get(names)
        if earlier is None:
            earlier = torch.full_like(found, _NO_STEP, dtype=torch.long)
        self._steps[names] = torch.where(found.isfinite(), earlier, earlier.clamp(max=step))

    def first(self) -> tuple[int, str] | None:
        """The earliest of these steps and the name of the value; of several the one that was noted first."""
        if not self._steps:
            return None
        names = [name for each in self._steps for name in each]
        steps = torch.cat(list(self._steps.values())).tolist()
        step = min(steps)
        return None if step == _NO_STEP else (step, names[steps.index(step)])
