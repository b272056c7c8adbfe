"""One optimizer step, and the making of samples, played through on networks without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hummingbird.models.shells import Shell
from hummingbird.pipelines.decoding import default_chunk_size
from hummingbird.planning.memory import KernelPaths, PeakMemory, tensor_bytes
from hummingbird.planning.recipe import PRECISIONS, Device, Recipe

__all__ = [
    "Found",
    "Sampling",
    "Sketch",
    "Slot",
    "checkpointing",
    "forward_bytes",
    "optimizer_bytes",
    "play",
    "sampling",
    "tensors",
]

_SMALL_TENSOR = 4096  # 8-bit optimizers keep the state of smaller ones in float32


@dataclass
class Slot:
    """What one micro-step computes.

    Args:
        losses: their names.
        loss: their sum, on meta tensors.
        frozen_bytes: networks that only such micro-steps need, by name.
        resident_bytes: those among them that stay where they are while videos are made.
    """

    losses: tuple[str, ...]
    loss: Callable[[], Tensor]
    frozen_bytes: dict[str, int] = field(default_factory=dict)
    resident_bytes: dict[str, int] = field(default_factory=dict)


@dataclass
class Sampling:
    """A moment of the first process in which it makes or judges videos.

    Args:
        frozen_bytes: all networks that are there beside the trained one, by name.
        peak: bytes beside all weights.
        has_optimizer_states: whether training has begun.
    """

    frozen_bytes: dict[str, int]
    peak: Callable[[], int]
    has_optimizer_states: bool = True


@dataclass
class Sketch:
    """A task without weights: the trained network, its losses, and what stands beside it.

    Args:
        network: the trained one.
        slots: kinds of micro-steps, which follow each other over the processes and then over their
            micro-steps.
        frozen: networks whose weights are counted by name, not as tensors of a step.
        frozen_bytes: those that are always there, by name.
        samplings: moments beside the steps.
    """

    network: Any
    slots: list[Slot]
    frozen: list[nn.Module]
    frozen_bytes: dict[str, int]
    samplings: list[Sampling] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """Of one micro-step: bytes beside the weights, and FLOPs."""

    peak_bytes: int
    activation_bytes: int
    flops: int


def play(sketch: Sketch, slot: Slot, recipe: Recipe, device: Device, *, has_gradients: bool) -> Found:
    """Forward and backward of one micro-step.

    Args:
        sketch: on the meta device.
        slot: of the sketch.
        recipe: for precision and checkpointing.
        device: whose kernels are taken.
        has_gradients: whether those of an earlier micro-step are there.
    """
    precision = PRECISIONS[recipe.loop("mixed_precision")]
    if recipe.loop("gradient_checkpointing"):
        sketch.network.enable_gradient_checkpointing(checkpointing(precision, device))
    sketch.network.train()
    for parameter in sketch.network.parameters():
        parameter.grad = None
    known = [tensor for module in (sketch.network, *sketch.frozen) for tensor in tensors(module)]
    with PeakMemory(known) as memory:
        if has_gradients:
            for parameter in sketch.network.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        before = memory.live_bytes
        with KernelPaths(precision, fused_attention=device == "gpu"):
            loss = slot.loss()
        forward = memory.live_bytes - before
        loss.backward()
    return Found(peak_bytes=memory.peak_bytes, activation_bytes=forward, flops=memory.flops)


def checkpointing(precision: torch.dtype | None, device: Device) -> Callable[..., Any]:
    """Checkpointing whose second forward goes the same ways: inside of ``backward`` modes are off."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), KernelPaths(precision, fused_attention=device == "gpu")

    def run(module: nn.Module, *args: Any) -> Any:
        return checkpoint(module, *args, use_reentrant=False, context_fn=contexts)

    return run


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def forward_bytes(
    module: nn.Module, run: Callable[[], object], device: Device, precision: torch.dtype | None
) -> int:
    """Peak of a pass that keeps nothing, weights apart, under autocast to ``precision``."""
    paths = KernelPaths(precision, fused_attention=device == "gpu")
    with torch.no_grad(), PeakMemory(tensors(module)) as memory, paths:
        run()
    return memory.peak_bytes


def optimizer_bytes(parameters: list[Tensor], recipe: Recipe, device: Device) -> int:
    """Two moments of every trained weight: float32, or a byte and its share of block scales."""
    if recipe.loop("optimizer") != "adamw8bit":
        return 2 * tensor_bytes(parameters)
    if device == "cpu":
        recipe.notes.append("adamw8bit: counted as float32, as where no 8-bit library works")
        return 2 * tensor_bytes(parameters)
    recipe.notes.append("adamw8bit: counted as bitsandbytes has it, blocks of 256")
    large = sum(p.numel() for p in parameters if p.numel() >= _SMALL_TENSOR)
    small = sum(p.numel() for p in parameters if p.numel() < _SMALL_TENSOR)
    return int(large * 2 * (1 + 4 / 256)) + 8 * small


def sampling(
    shell: Shell,
    unet: Any,
    size: tuple[int, int, int],
    num_videos: int,
    gate: int,
    device: Device,
    frozen_bytes: dict[str, int],
    has_optimizer_states: bool = True,
) -> Sampling:
    """The larger of denoising and decoding, all videos at once, with text encoder and autoencoder there.

    Args:
        shell: the other networks.
        unet: that denoises; twice the videos where guidance takes two passes.
        size: frames, height and width of latents.
        num_videos: to make.
        gate: clips of the caption test; 0 for none.
        device: whose kernels are taken.
        frozen_bytes: further networks that are there.
        has_optimizer_states: whether training has begun.
    """
    frames, height, width = size
    channels, guidance = unet.config.in_channels, unet.config.time_cond_proj_dim
    tokens = (shell.num_tokens, unet.config.cross_attention_dim)

    def peak() -> int:
        batch = max(num_videos if guidance else 2 * num_videos, gate)
        sample = torch.empty(batch, channels, frames, height, width, device="meta")
        text, steps = torch.empty(batch, *tokens, device="meta"), torch.zeros(batch, device="meta")
        scale = torch.empty(batch, guidance, device="meta") if guidance else None
        low = torch.bfloat16 if device == "gpu" else None
        unet.eval()
        denoise = forward_bytes(
            unet, lambda: unet(sample, steps, text, timestep_cond=scale, return_dict=False), device, low
        )
        factor = shell.vae_scale_factor
        kind = torch.device("cpu" if device == "cpu" else "cuda")
        chunk = min(default_chunk_size(height * factor, width * factor, kind), num_videos * frames)
        latents = torch.empty(chunk, channels, height, width, device="meta")
        decode = forward_bytes(shell.vae, lambda: shell.vae.decode(latents, return_dict=False), device, low)
        pixels = 3 * num_videos * frames * height * width * factor**2 * 4  # float32, twice while joined
        return max(denoise, decode + 2 * pixels)

    companions = {
        "autoencoder": tensor_bytes(tensors(shell.vae)),
        "text encoder": tensor_bytes(tensors(shell.text_encoder)),
    }
    return Sampling(frozen_bytes | companions, peak, has_optimizer_states)
