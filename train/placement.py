"""Which batch computes which losses, and where frozen networks live."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch

from hummingbird.config import ConfigError

FrozenDtype = Literal["auto", "float32", "bfloat16", "float8"]

CONSISTENCY = "consistency"
"""The name of the distillation loss among the parts of a layout; the others are those of rewards."""

Layout = tuple[tuple[str, ...], ...]
"""Losses of each slot. Slots follow each other over the processes and then over their micro-steps."""


def check_layout(layout: Layout, parts: Sequence[str], num_slots: int) -> None:
    """Refuses a layout that leaves something out.

    Args:
        layout: losses of each slot; empty where every slot computes everything.
        parts: names of all losses.
        num_slots: batches of one optimizer step over all processes.

    Raises:
        ConfigError: a name that is none, a loss that nobody computes, or a number of slots that the layout
            does not divide.
    """
    if not layout:
        return
    named = {name for slot in layout for name in slot}
    if unknown := sorted(named - set(parts)):
        raise ConfigError(f"layout: got {', '.join(unknown)}, expected names among {', '.join(parts)}")
    if missing := sorted(set(parts) - named):
        raise ConfigError(f"layout: nobody computes {', '.join(missing)}; name every loss at least once")
    if not all(layout):
        raise ConfigError("layout: got a slot without losses; every slot has to compute something")
    if num_slots % len(layout):
        raise ConfigError(
            f"layout: got {len(layout)} slots for {num_slots} batches per step (processes x accumulation), "
            f"expected a multiple of {len(layout)}; set loop.target_global_batch accordingly"
        )


def without(layout: Layout, names: Collection[str]) -> Layout:
    """The layout without some losses, and without slots that are left empty."""
    slots = (tuple(name for name in slot if name not in names) for slot in layout)
    return tuple(kept for kept, slot in zip(slots, layout, strict=True) if kept or not slot)


def factors(layout: Layout, parts: Sequence[str], slot: int, num_slots: int) -> dict[str, float]:
    """What a slot computes, and the factor of each of its losses.

    The step's gradient is the mean over slots. A loss that only some slots compute is weighed up by as much
    as it is rarer, so that the mean is the sum over losses of each one's mean over the slots that have it:
    the same gradient whether slots are processes, micro-steps of one, or both.

    Args:
        layout: losses of each slot; empty where every slot computes everything.
        parts: names of all losses, in the order of computation.
        slot: which one, 0 to ``num_slots - 1``.
        num_slots: a multiple of the layout's length.
    """
    if not layout:
        return dict.fromkeys(parts, 1.0)
    own = layout[slot % len(layout)]
    return {name: len(layout) / sum(name in other for other in layout) for name in parts if name in own}


def place_frozen(network: Any, dtype: FrozenDtype, device: torch.device, offload: bool) -> None:
    """Brings a frozen U-Net to its precision and its place, once.

    Args:
        network: a model of diffusers.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU. "float8" keeps the weights of layers in
            float8 (e4m3) and casts each one for its call to what "auto" is; norms and embeddings keep that.
        device: where it computes.
        offload: keeps weights in the computer's memory and brings them layer by layer; nothing on a CPU.
    """
    computing = torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype == "float8":
        network.to(computing)
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=computing)
    else:
        wanted = computing if dtype == "auto" else getattr(torch, dtype)
        if network.dtype != wanted:
            network.to(wanted)
    if offload and device.type != "cpu":
        network.enable_group_offload(
            onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda"
        )
    else:
        network.to(device)
