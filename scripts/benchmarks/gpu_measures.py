"""What measurements on a GPU share: a clock that waits for the device, its matrix rate, its memory, and a time limit.

All of it runs on a CPU, too, to try a benchmark where there is no GPU.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class Device:
    """The device that is measured, and the moment when measuring ends."""

    def __init__(self, name: str, minutes: float):
        self.device = torch.device(name)
        self.is_gpu = self.device.type == "cuda"
        self._end = time.monotonic() + 60 * minutes

    def __str__(self) -> str:
        what = torch.cuda.get_device_name(self.device) if self.is_gpu else platform.processor() or platform.machine()
        return f"{what}, torch {torch.__version__}"

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self._end

    def wait(self):
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any], least: float, most: int) -> float:
        """Median seconds of a call, over calls that take `least` seconds, at most `most`; two before do not count."""
        for _ in range(2):
            call()
        self.wait()
        found: list[float] = []
        while not found or (sum(found) < least and len(found) < most and self.has_time):
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def once(self, call: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def busy_share(self, call: Callable[[], Any]) -> float | None:
        """Share of a call's time in which the device computes, under the profiler; None on a CPU."""
        if not self.is_gpu:
            call()
            return None
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
            seconds = self.once(call)
        kernels = [each for each in profiler.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        return sum(each.time_range.elapsed_us() for each in kernels) / 1e6 / seconds

    def forget_peak(self):
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """The most memory of the device that was in use since `forget_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.is_gpu else None

    def matrix_rate(self, size: int, dtype: torch.dtype = torch.bfloat16) -> float:
        """The best of several products of two square matrices, in operations a second."""
        left = torch.randn(size, size, device=self.device, dtype=dtype)
        right = torch.randn(size, size, device=self.device, dtype=dtype)
        for _ in range(3):
            left @ right
        best = float("inf")
        for _ in range(10):
            self.wait()
            start = time.perf_counter()
            left @ right
            self.wait()
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best


def training_step(model: torch.nn.Module, batch: Mapping[str, Any]) -> Callable[[], None]:
    """A call that takes a step on a batch: the loss under bfloat16 autocast, its gradient and a fused AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    kind = trained[0].device.type

    def step():
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, Callable[[dict[str, Any]], str]]]) -> str:
    """Rows as text, with a line for each and a column for each name."""
    cells = [[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
