"""The parts of an exported folder in the places of text encoder, U-Net and VAE of ``HummingbirdPipeline``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from hummingbird.export.manifest import MAX_BATCHES, Bucket, ExportError, ExportManifest, read_manifest

__all__ = ["ExportedPart", "ExportedTextEncoder", "ExportedUNet", "ExportedVAE", "load_parts"]

Runner = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class ExportedPart(nn.Module):
    """A part that runs without its Python code, where the pipeline expects a module.

    Args:
        config: what the pipeline asks ``.config`` for.
        runners: what computes, by size; the key is None for a part without sizes.
        device: where its inputs and outputs live.
        dtype: of its inputs and outputs.
    """

    def __init__(
        self, config: dict[str, Any], runners: dict[Any, Runner], device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config = FrozenDict(config)
        self.runners = runners
        self.device = device
        self.dtype = dtype

    def to(self, *args: Any, **kwargs: Any) -> ExportedPart:
        """Stay: an exported part runs where and in what it was exported for.

        Raises:
            ValueError: another device or dtype was asked for.
        """
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != self.device.type:
            raise ValueError(
                f"device: got {device}, but this exported folder runs on {self.device.type}; leave it "
                "out, or export it for that target"
            )
        if dtype is not None and dtype != self.dtype:
            raise ValueError(
                f"dtype: got {dtype}, but this exported folder takes {self.dtype}; leave it out, or export "
                "it with another --dtype"
            )
        return self

    def _find(self, size: Any, sizes: str) -> Runner:
        if size not in self.runners:
            raise ValueError(
                f"size: got {sizes}, but this folder was exported for {self._known()}; export it again"
            )
        return self.runners[size]

    def _known(self) -> str:
        return ", ".join(str(size) for size in self.runners)


class ExportedTextEncoder(ExportedPart):
    """``text_encoder(input_ids)[0]`` is the sequence ``(B, L, width)``."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        """Encode token ids ``(B, L)``."""
        return (self.runners[None]({"input_ids": input_ids}).to(self.dtype),)


class ExportedUNet(ExportedPart):
    """The denoiser, with the call of ``UNetSpatioTemporalModel``."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        fps: torch.Tensor | float = 16,
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor]:
        """Predict ``(B, C, F, h, w)``; see ``UNetSpatioTemporalModel.forward``.

        Raises:
            ValueError: a size that it was not exported for, or low-rank layers, which are fixed in it.
        """
        if attention_kwargs:
            raise ValueError(
                "attention_kwargs: LoRA layers cannot be weighed in an exported model; leave it out"
            )
        batch_size, _, num_frames, height, width = sample.shape
        scale = self.config["pixels_per_latent"]
        bucket = Bucket(num_frames=num_frames, height=height * scale, width=width * scale)
        run = self._find(str(bucket), f"{bucket} (frames x height x width)")
        inputs = {
            "sample": sample,
            "timestep": _per_video(timestep, batch_size, self.device),
            "encoder_hidden_states": encoder_hidden_states,
        }
        if self.config["fps_conditioning"]:
            inputs["fps"] = _per_video(fps, batch_size, self.device)
        if timestep_cond is not None:
            inputs["timestep_cond"] = timestep_cond
        return (run(inputs),)


class ExportedVAE(ExportedPart):
    """The decoder half of the autoencoder."""

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Decode scaled latents ``(N, C, h, w)`` to ``(N, 3, H, W)``."""
        scale = 2 ** (len(self.config["block_out_channels"]) - 1)
        size = f"{latents.shape[2] * scale}x{latents.shape[3] * scale}"
        run = self._find(size, f"{size} pixels")
        return (torch.cat([run({"latents": chunk}) for chunk in latents.split(MAX_BATCHES["decoder"])]),)


def _per_video(value: torch.Tensor | float, batch_size: int, device: torch.device) -> torch.Tensor:
    values = torch.as_tensor(value, dtype=torch.float32, device=device)
    return values.expand(batch_size).contiguous()


_CLASSES: dict[str, type[ExportedPart]] = {
    "text_encoder": ExportedTextEncoder,
    "unet": ExportedUNet,
    "vae": ExportedVAE,
}


def load_parts(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, ExportedPart]:
    """Verify an exported folder and open its graphs.

    An AOTInductor package is native code, which runs as soon as it is loaded: call this for folders that the
    user names and trusts.

    Args:
        folder: with ``export.json``.
        skip: components that are not wanted.

    Returns:
        Components by their names in the pipeline: ``text_encoder``, ``unet``, ``vae``.

    Raises:
        ExportError: the folder was changed, is for another machine, or a runtime is missing.
        ImportError: the extra ``[onnx]`` is missing.
    """
    manifest = read_manifest(folder)
    load, device, dtype = _loader(folder, manifest)
    runners: dict[str, dict[Any, Runner]] = {name: {} for name in _CLASSES}
    for graph in manifest.graphs:
        name = "vae" if graph.part == "decoder" else graph.part
        if name in skip:
            continue
        bucket = graph.bucket
        if bucket is None and name != "text_encoder":
            raise ExportError(f"{folder}: {graph.file} has no size; export again")
        key = None if bucket is None else str(bucket) if name == "unet" else f"{bucket.height}x{bucket.width}"
        runners[name][key] = load(graph.file, graph.weights)
    return {
        name: _CLASSES[name](manifest.configs.get(name, {}), found, device, dtype)
        for name, found in runners.items()
        if found
    }


def _loader(
    folder: Path, manifest: ExportManifest
) -> tuple[Callable[[str, str | None], Runner], torch.device, torch.dtype]:
    if manifest.format == "onnx":
        from hummingbird.export.onnx_format import open_graph, require_packages

        require_packages()
        return (
            lambda file, weights: open_graph(folder, manifest, file, weights),
            torch.device("cpu"),
            torch.float32,
        )
    from hummingbird.export.aoti_format import AotiRunner, check_machine

    check_machine(manifest, folder)
    device = torch.device("cpu" if manifest.target == "cpu" else "cuda")
    return lambda file, weights: AotiRunner(folder / file), device, getattr(torch, manifest.dtype)
