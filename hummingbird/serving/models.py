"""What a server may load, and what a request for it has to look like before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import nano

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["ModelFacts", "ModelInfo", "name_models"]


@dataclass(frozen=True)
class ModelFacts:
    """What a request has to fit.

    Attributes:
        default_call: what a request that leaves something open gets.
        size_multiple: height and width are multiples of it; None where it is known only after loading.
        has_guidance_embedding: whether a negative prompt has no place; None as above.
        max_steps: of a few-step model, which samples on the grid that it was distilled on; None for others.
    """

    default_call: Mapping[str, int | float]
    size_multiple: int | None
    has_guidance_embedding: bool | None
    max_steps: int | None = None

    @classmethod
    def of(cls, pipe: HummingbirdPipeline) -> ModelFacts:
        """Facts of a loaded model."""
        max_steps = pipe.scheduler.config.get("original_inference_steps")
        return cls(pipe.default_call, pipe._size_multiple, pipe.has_guidance_embedding, max_steps)

    @classmethod
    def read(cls, source: str) -> ModelFacts:
        """Facts of a model that is not loaded, from the configuration files of its folder if it has one."""
        from hummingbird.pipelines.pipeline_hummingbird import FALLBACK_CALL

        folder = nano.resolve(source) or Path(source)
        if not (folder / "model_index.json").is_file():
            return cls(FALLBACK_CALL, None, None)
        index, unet, vae, scheduler = (
            json.loads(path.read_text()) if path.is_file() else {}
            for path in (
                folder / "model_index.json",
                folder / "unet" / "config.json",
                folder / "vae" / "config.json",
                folder / "scheduler" / "scheduler_config.json",
            )
        )
        multiple = None
        if "channel_mult" in unet and "block_out_channels" in vae:
            multiple = 2 ** (len(vae["block_out_channels"]) - 1 + len(unet["channel_mult"]) - 1)
        return cls(
            {**FALLBACK_CALL, **(index.get("default_call") or {})},
            multiple,
            unet["time_cond_proj_dim"] is not None if "time_cond_proj_dim" in unet else None,
            scheduler.get("original_inference_steps"),
        )


@dataclass(frozen=True)
class ModelInfo:
    """The loaded model.

    Attributes:
        name: as requests name it.
        source: what it was loaded from.
        device: where it runs.
        dtype: of the U-Net.
        num_parameters: of all parts together.
        memory_bytes: of the weights.
        load_seconds: how long loading took.
        facts: what a request has to fit.
    """

    name: str
    source: str
    device: str
    dtype: str
    num_parameters: int
    memory_bytes: int
    load_seconds: float
    facts: ModelFacts

    @classmethod
    def of(cls, name: str, source: str, pipe: HummingbirdPipeline, load_seconds: float) -> ModelInfo:
        """Describe a loaded pipeline."""
        import torch

        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        weights = [weight for part in parts for weight in part.parameters()]
        return cls(
            name=name,
            source=source,
            device=str(pipe.device),
            dtype=str(pipe.unet.dtype).removeprefix("torch."),
            num_parameters=sum(weight.numel() for weight in weights),
            memory_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
            load_seconds=load_seconds,
            facts=ModelFacts.of(pipe),
        )


def name_models(sources: Iterable[str]) -> dict[str, str]:
    """Give each model a name for the outside: paths of the server are nobody's business.

    Args:
        sources: embedded names, folders, files or hub ids.

    Returns:
        Name -> source, in the given order; a folder or file is called by the last part of its path.

    Raises:
        ValueError: two of one name, or none at all.
    """
    named: dict[str, str] = {}
    for source in sources:
        is_path = nano.resolve(source) is None and Path(source).exists()
        name = Path(source).resolve().name if is_path else source
        if named.setdefault(name, source) != source:
            raise ValueError(
                f"models: {named[name]!r} and {source!r} are both called {name!r}; rename one of the folders"
            )
    if not named:
        raise ValueError("models: got none, expected at least one")
    return named
