"""What a device can do at best: FLOP/s of a large matrix product and bytes/s of a large copy, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Ceilings", "Stopwatch", "measure_ceilings"]

_MATMUL_SIZE = {"cpu": 1536}
_COPY_BYTES = {"cpu": 256 * 2**20}
_LARGE_MATMUL_SIZE = 8192
_LARGE_COPY_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What was measured.

    Args:
        flops_per_s: of a square matrix product in ``dtype``; a multiply-add counts as two.
        bytes_per_s: of a copy within the device's memory, reading and writing counted.
        dtype: of the product.
        device: that it ran on.
        num_threads: of the CPU.
    """

    flops_per_s: float
    bytes_per_s: float
    dtype: str
    device: str
    num_threads: int

    def floor_s(self, flops: float, size_bytes: float) -> float:
        """Seconds that neither the products nor the traffic can go below."""
        return max(flops / self.flops_per_s, size_bytes / self.bytes_per_s)


class Stopwatch:
    """Seconds of pieces of work: by events of the device on a GPU, by the clock elsewhere.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, work: Callable[[], object]) -> float:
        """Run once and give the seconds; whatever was queued before is waited for and not counted."""
        if self.device.type != "cuda":
            began_s = time.perf_counter()
            work()
            return time.perf_counter() - began_s
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end)) / 1000.0

    def median(self, work: Callable[[], object], repeats: int, warmups: int = 1) -> list[float]:
        """Run several times after some that are not counted; the seconds of each, shortest first."""
        for _ in range(warmups):
            work()
        return sorted(self.time(work) for _ in range(repeats))


def measure_ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> Ceilings:
    """Measure a device; takes about a second on a GPU and on two cores of a CPU.

    Args:
        device: of this machine.
        dtype: of the matrix product.
        repeats: of which the median counts.
    """
    size = _MATMUL_SIZE.get(device.type, _LARGE_MATMUL_SIZE)
    watch, generator = Stopwatch(device), torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    product_s = statistics.median(watch.median(lambda: left @ right, repeats))
    source = torch.zeros(_COPY_BYTES.get(device.type, _LARGE_COPY_BYTES), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = statistics.median(watch.median(lambda: target.copy_(source), repeats))
    return Ceilings(
        flops_per_s=2.0 * size**3 / product_s,
        bytes_per_s=2.0 * source.numel() / copy_s,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        num_threads=torch.get_num_threads(),
    )
