"""Strict loading of a foreign state dict into one of our modules: every key is accounted for, or the load
fails."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

_MAX_LISTED = 8


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from.

    Args:
        key: Key in the foreign state dict.
        part: Which of ``parts`` equal slices along the first axis it is.
        parts: How many slices the foreign tensor holds.
    """

    key: str
    part: int = 0
    parts: int = 1


def load_mapped(
    model: nn.Module,
    sources: Mapping[str, Source],
    state_dict: Mapping[str, torch.Tensor],
    *,
    name: str,
    ignored: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill ``model`` (its parameters may be on the meta device) from ``state_dict``.

    Args:
        model: Receives copies of the tensors; the given ones are not aliased.
        sources: For every key of the model's state dict, where it comes from.
        state_dict: The foreign tensors.
        name: What is being loaded, for messages.
        ignored: Foreign keys that are known to be unused.
        dtype: Type of the loaded parameters.

    Raises:
        ValueError: Where a key is missing, over, or of another shape; the message names them.
    """
    needed = {source.key for source in sources.values()}
    targets = model.state_dict()
    problems = _listed("missing", sorted(needed - state_dict.keys()))
    problems += _listed("unexpected", sorted(state_dict.keys() - needed - set(ignored)))
    loaded: dict[str, torch.Tensor] = {}
    reshaped = []
    for target_key, source in sources.items():
        if source.key not in state_dict:
            continue
        tensor, shape = state_dict[source.key], tuple(targets[target_key].shape)
        expected = (shape[0] * source.parts, *shape[1:]) if source.parts > 1 else shape
        if _without_trailing_ones(tuple(tensor.shape)) != _without_trailing_ones(expected):
            reshaped.append(f"{source.key} is {tuple(tensor.shape)}, expected {expected}")
            continue
        if source.parts > 1:
            tensor = tensor.chunk(source.parts)[source.part]
        loaded[target_key] = tensor.detach().reshape(shape).to(dtype, copy=True).contiguous()
    problems += _listed("of another shape", sorted(set(reshaped)))
    if problems:
        raise ValueError(
            f"{name}: the state dict does not fit its config ({'; '.join(problems)}). Check that config "
            "and weights belong together and that the keys carry the original's names"
        )
    model.load_state_dict(loaded, strict=True, assign=True)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the kernel axes of a 1x1 convolution beyond (out, in), which is the same map as a linear layer."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _listed(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return [f"{len(items)} {what}: {', '.join(items[:_MAX_LISTED])}{more}"]
