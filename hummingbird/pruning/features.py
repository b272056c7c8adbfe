"""Where levels of a U-Net end, and what they return: what a pruned student's features are compared by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hummingbird.pruning.plan import unet_blocks

__all__ = ["capture_features", "level_ends"]


def level_ends(config: Mapping[str, Any]) -> dict[str, str]:
    """Level on the way down or up -> the block that ends it: the same levels for teacher and student.

    A level that lost blocks has to do with the rest what all of them did, so its end is compared with the
    teacher's end, not block with block.
    """
    inputs, outputs = unet_blocks(config)
    down = {f"down{b.level}": f"input_blocks.{i}" for i, b in enumerate(inputs) if b.kind == "residual"}
    return down | {f"up{block.level}": f"output_blocks.{index}" for index, block in enumerate(outputs)}


@contextmanager
def capture_features(network: nn.Module, names: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Collects what submodules return while the block runs; afterwards the network is as it was.

    Args:
        network: without its distributed wrapper.
        names: key of the result -> name of the submodule.

    Yields:
        A dict that the forward pass fills.
    """
    features: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            features[key] = output

        return hook

    with contextlib.ExitStack() as hooks:
        for key, name in names.items():
            handle = network.get_submodule(name).register_forward_hook(keep(key))
            hooks.callback(handle.remove)
        yield features
