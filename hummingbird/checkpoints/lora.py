"""T2V-Turbo's ``unet_lora.pt``: low-rank updates as a list of tensors without names.

The list holds up and down matrices by turns, for every linear layer and every two- and three-dimensional
convolution of the U-Net in the order of its ``named_modules``; kernel-1 convolutions over tokens, norms and
biases have none. A layer's update is ``up @ down``, with a scale of 1 whatever the rank.

Reference:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from hummingbird.checkpoints.key_map import Recipe
from hummingbird.models import UNetSpatioTemporalModel

GUIDANCE_PROJECTION = "time_cond_proj"

MissingProjection = Literal["random", "zeros"]


class LoraError(ValueError):
    """A list of low-rank updates that does not fit the network; the message is one line that says why."""


def lora_modules(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d | nn.Conv3d]:
    """Return the layers that have a low-rank update, by name, in the order of the list."""
    modules = unet.named_modules()
    return {name: module for name, module in modules if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))}


def read_lora(unet: nn.Module, tensors: Sequence[Recipe]) -> dict[str, tuple[Recipe, Recipe]]:
    """Name the tensors of a list.

    Args:
        unet: The network that they were trained on, with its guidance projection; may be on the meta device.
        tensors: The list, in its order.

    Returns:
        Layer name -> (up, down), in the order of the list.

    Raises:
        LoraError: Where their number or a shape does not fit.
    """
    modules = lora_modules(unet)
    if len(tensors) != 2 * len(modules):
        raise LoraError(
            f"LoRA: got {len(tensors)} tensors, expected {2 * len(modules)} (two for each of {len(modules)} "
            "layers): the list belongs to another network"
        )
    pairs = {}
    for index, (name, module) in enumerate(modules.items()):
        up, down = tensors[2 * index], tensors[2 * index + 1]
        shape = tuple(module.weight.shape)
        rank, kernel = down.shape[0] if down.shape else 0, (1,) * (len(shape) - 2)
        expected = ((shape[0], rank, *kernel), (rank, *shape[1:]))
        if (up.shape, down.shape) != expected:
            raise LoraError(
                f"LoRA: tensors {2 * index} and {2 * index + 1} are {up.shape} and {down.shape}, expected "
                f"{expected[0]} and {expected[1]} for {name}: the list belongs to another network"
            )
        pairs[name] = (up, down)
    return pairs


def export_lora(unet: nn.Module, adapter: str = "default") -> list[torch.Tensor]:
    """Write the inverse of ``read_lora``: the list of a network that peft added low-rank updates to.

    Args:
        unet: With the adapter on every layer that the list names; weights may be anywhere.
        adapter: Its name.

    Returns:
        Up and down matrices by turns, on the CPU; a scale other than 1 goes into the up matrices.

    Raises:
        LoraError: A layer of the list has no update, or one is not of the plain kind.
    """
    tensors: list[torch.Tensor] = []
    wrapped = ""
    for name, module in unet.named_modules():
        layers = getattr(module, "lora_A", None)
        if layers is not None and adapter in layers:
            up, down = module.lora_B[adapter], layers[adapter]  # type: ignore[union-attr,index]
            if up.bias is not None or getattr(module, "use_dora", {}).get(adapter):
                raise LoraError(f"LoRA: the update of {name} is more than two matrices")
            scale = float(module.scaling[adapter])  # type: ignore[union-attr,index,arg-type]
            tensors += [(up.weight.detach() * scale).cpu(), down.weight.detach().cpu()]
            wrapped = name + "."
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and not (
            wrapped and name.startswith(wrapped)
        ):
            raise LoraError(f"LoRA: {name} has no update named {adapter!r}; every layer needs one")
    return tensors


def merge(
    base: Recipe, up: Recipe, down: Recipe, *, scale: float = 1.0, dtype: torch.dtype | None = None
) -> Recipe:
    """Add a low-rank update to a weight; the sum is formed in float32.

    Args:
        base: Weight of a linear layer or convolution.
        up: ``(out, rank, 1...)``.
        down: ``(rank, in, kernel...)``.
        scale: Factor of the update.
        dtype: Type of the result; the base's where left out.
    """
    result_dtype = dtype or base.dtype

    def load() -> torch.Tensor:
        update = up.load().float().flatten(1) @ down.load().float().flatten(1)
        return base.load().float().add_(update.reshape(base.shape), alpha=scale).to(result_dtype)

    return replace(base, dtype=result_dtype, load=load)


def guidance_width(unet: UNetSpatioTemporalModel, tensors: Sequence[Recipe]) -> int | None:
    """Return the width of the guidance embedding that a list has an update for.

    Args:
        unet: The network that the list is to be merged into, with or without a guidance projection.
        tensors: The list.

    Returns:
        The width, or None where the list has one layer less and so no guidance projection.
    """
    names = list(lora_modules(unet))
    if GUIDANCE_PROJECTION not in names:
        with torch.device("meta"):
            probe = UNetSpatioTemporalModel.from_config({**unet.config, "time_cond_proj_dim": 1})
        names = list(lora_modules(probe))
    if len(tensors) != 2 * len(names):
        return None
    down = tensors[2 * names.index(GUIDANCE_PROJECTION) + 1]
    return down.shape[-1] if down.shape else None


def missing_projection(
    shape: tuple[int, ...], dtype: torch.dtype, how: MissingProjection, seed: int
) -> Recipe:
    """Stand in for the guidance projection's base weights, which ``unet_lora.pt`` does not hold.

    They were random when the training began and were never saved: only their update was. The original's own
    application draws them anew, from a linear layer's usual distribution.

    Args:
        shape: (model_channels, embedding width).
        dtype: Type of the result.
        how: ``random`` draws them as the original's application does, but from a seed; ``zeros`` leaves the
            update alone.
        seed: Of the random draw.
    """

    def load() -> torch.Tensor:
        if how == "zeros":
            return torch.zeros(shape, dtype=dtype)
        bound = 1 / math.sqrt(shape[1])
        generator = torch.Generator().manual_seed(seed)
        return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(dtype)

    return Recipe(shape=shape, dtype=dtype, load=load)
