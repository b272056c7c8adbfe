"""Which way of computing temporal convolutions and small attentions is the fastest on this CPU?

``python benchmarks/blocks_cpu.py [--threads N]`` prints milliseconds of CPU time, forward and forward with
backward, at the sizes of a nano network (16 videos of 16 frames), and a JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from hummingbird.models.blocks import plain_attention

Function = Callable[..., torch.Tensor]


def conv3d(video: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv3d(video, weight, padding=(1, 0, 0))


def conv2d_plane(video: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    plane = F.conv2d(video.flatten(3), weight.squeeze(-1), padding=(1, 0))
    return plane.unflatten(3, video.shape[3:])


def unfolded_linear(video: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    tokens = F.pad(video.permute(0, 2, 3, 4, 1), (0, 0, 0, 0, 0, 0, 1, 1))  # (B, F+2, H, W, C)
    tokens = torch.cat([tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]], dim=-1)
    return F.linear(tokens, weight[:, :, :, 0, 0].permute(0, 2, 1).flatten(1)).permute(0, 4, 1, 2, 3)


def fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def cpu_ms(function: Callable[[], object], repeats: int = 3) -> float:
    """Smallest CPU time of a few calls: other work on the machine does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return round(min(times) * 1e3, 2)


def measure(functions: dict[str, Function], inputs: tuple[torch.Tensor, ...]) -> dict[str, list[float]]:
    """Return ``[forward, forward + backward]`` in milliseconds for each function."""
    results = {}
    for name, function in functions.items():
        gradient = torch.randn_like(function(*inputs))

        def forward(function: Function = function) -> None:
            with torch.no_grad():
                function(*inputs)

        def backward(function: Function = function, gradient: torch.Tensor = gradient) -> None:
            torch.autograd.grad(function(*inputs), inputs, gradient)

        results[name] = [cpu_ms(forward), cpu_ms(backward)]
    return results


def main(argv: list[str] | None = None) -> int:
    """Print every case and the JSON summary."""
    parser = argparse.ArgumentParser(description="Time temporal convolutions and small attentions on a CPU.")
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args(argv).threads)
    report: dict[str, dict[str, list[float]]] = {}
    convolutions = {"conv3d": conv3d, "conv2d_plane": conv2d_plane, "unfolded_linear": unfolded_linear}
    attentions = {"plain": plain_attention, "fused": fused_attention}
    for dtype in (torch.float32, torch.bfloat16):
        for channels, size in ((32, 16), (64, 8), (128, 4)):
            weight = torch.randn(channels, channels, 3, 1, 1, dtype=dtype, requires_grad=True)
            for layout in (torch.channels_last_3d, torch.contiguous_format):
                video = torch.randn(16, channels, 16, size, size, dtype=dtype).to(memory_format=layout)
                name = f"temporal conv {dtype} {channels}ch {size}x{size} {layout}".replace("torch.", "")
                report[name] = measure(convolutions, (video.requires_grad_(), weight))
        for label, batch, queries, keys, heads, dim in (
            ("temporal 16x16", 4096, 16, 16, 2, 16),
            ("temporal 8x8", 1024, 16, 16, 4, 16),
            ("spatial 8x8", 256, 64, 64, 4, 16),
            ("spatial 16x16", 64, 256, 256, 2, 16),
            ("text 8x8", 16, 1024, 16, 4, 16),
            ("text 8x8, 77 tokens", 16, 1024, 77, 4, 16),
        ):
            tokens = [
                torch.randn(batch, n, heads, dim, dtype=dtype, requires_grad=True)
                for n in (queries, keys, keys)
            ]
            name = f"attention {dtype} {label}".replace("torch.", "")
            report[name] = measure(attentions, tuple(tokens))
    for name, results in report.items():
        row = "  ".join(f"{function} {times[0]}/{times[1]}" for function, times in results.items())
        sys.stdout.write(f"{name:<62} {row}\n")
    sys.stdout.write(
        json.dumps({"unit": "ms of CPU time: forward, forward + backward", "cases": report}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
