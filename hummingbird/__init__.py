"""Hummingbird: few-step text-to-video in one call.

The names below are loaded on first use, so ``import hummingbird`` is instant and free of side effects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hummingbird.models import UNetSpatioTemporalModel
    from hummingbird.pipelines import HummingbirdPipeline
    from hummingbird.schedulers import VideoCrafterDDIMScheduler

__version__ = "0.1.0"

__all__ = ["HummingbirdPipeline", "UNetSpatioTemporalModel", "VideoCrafterDDIMScheduler", "__version__"]

_HOMES = {
    "HummingbirdPipeline": "hummingbird.pipelines",
    "UNetSpatioTemporalModel": "hummingbird.models",
    "VideoCrafterDDIMScheduler": "hummingbird.schedulers",
    # model_index.json names our classes as ["hummingbird", "<class>"]; diffusers' loader then asks that same
    # library for the base classes, to learn how such a class is saved and loaded.
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'hummingbird' has no attribute {name!r}; it exports {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
