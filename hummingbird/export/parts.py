"""The three parts of a pipeline as functions of tensors, and their traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hummingbird.export.manifest import MAX_BATCHES, Bucket
from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Part", "list_parts", "steady_layout", "trace"]

_EXAMPLE_BATCH = 2  # one would be taken for a constant


class _TextEncoder(nn.Module):
    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(input_ids)[0]


class _UNet(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        fps: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rate = {} if fps is None else {"fps": fps}
        return self.unet(
            sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False, **rate
        )[0]


class _Decoder(nn.Module):
    """The half of the autoencoder that makes pictures; the other half's weights stay out of the trace."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


@dataclass(frozen=True)
class Part:
    """One graph to be made.

    Args:
        name: one of ``manifest.PARTS``.
        file_stem: name of its file without the ending.
        module: takes the inputs by name, gives one tensor; the first axis of everything is the batch.
        bucket: the size it is made for, None where it has none.
        inputs: an example.
    """

    name: str
    file_stem: str
    module: nn.Module
    bucket: Bucket | None
    inputs: dict[str, torch.Tensor]

    def example(self, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
        """Draw other inputs of the same shapes; timesteps, rates and tokens stay those of the example."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, value in self.inputs.items():
            shape = (batch_size, *value.shape[1:])
            if name in ("sample", "latents", "encoder_hidden_states", "timestep_cond"):
                drawn[name] = torch.randn(shape, generator=generator).to(value)
            else:
                drawn[name] = value[:1].expand(shape).clone()
        return drawn


def list_parts(pipe: HummingbirdPipeline, buckets: list[Bucket]) -> list[Part]:
    """Return the graphs that videos of the given sizes need: a U-Net for each, a decoder per picture size.

    Args:
        pipe: on the device and in the dtype that is exported.
        buckets: sizes in pixels, each a multiple of what the model asks for.
    """
    device, config = pipe.device, pipe.unet.config
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, pipe.unet.dtype)

    tokens = pipe.tokenizer(
        ["a red circle moving right on a black background", ""],
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids.to(device)
    parts = [
        Part(
            "text_encoder",
            "text_encoder",
            _TextEncoder(pipe.text_encoder).eval(),
            None,
            {"input_ids": tokens},
        )
    ]
    scale = pipe.vae_scale_factor
    for bucket in buckets:
        latents = (bucket.height // scale, bucket.width // scale)
        inputs = {
            "sample": draw(_EXAMPLE_BATCH, config.in_channels, bucket.num_frames, *latents),
            "timestep": torch.tensor([999.0, 250.0], device=device),
            "encoder_hidden_states": draw(_EXAMPLE_BATCH, tokens.shape[1], config.cross_attention_dim),
        }
        if config.fps_conditioning:
            inputs["fps"] = torch.tensor([8.0, 16.0], device=device)
        if config.time_cond_proj_dim is not None:
            inputs["timestep_cond"] = draw(_EXAMPLE_BATCH, config.time_cond_proj_dim)
        parts.append(Part("unet", f"unet-{bucket}", _UNet(pipe.unet).eval(), bucket, inputs))
    sizes = {(bucket.height, bucket.width): bucket for bucket in buckets}
    for (height, width), bucket in sizes.items():
        frames = draw(_EXAMPLE_BATCH, pipe.vae.config.latent_channels, height // scale, width // scale)
        frames = frames.to(pipe.vae.dtype)
        name = f"decoder-{height}x{width}"
        parts.append(Part("decoder", name, _Decoder(pipe.vae).eval(), bucket, {"latents": frames}))
    return parts


@contextmanager
def steady_layout(pipe: HummingbirdPipeline, channels_last: bool | None) -> Iterator[None]:
    """Fix the U-Net's memory layout while it is traced: graphs of ONNX know none."""
    before = pipe.unet.channels_last
    pipe.unet.channels_last = channels_last
    try:
        yield
    finally:
        pipe.unet.channels_last = before


def trace(part: Part) -> Any:
    """Return the ``torch.export.ExportedProgram`` of a part: one size, any batch up to ``MAX_BATCHES``."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCHES[part.name])
    shapes = {name: {0: batch} for name in part.inputs}
    with torch.no_grad():
        return torch.export.export(part.module, (), kwargs=part.inputs, dynamic_shapes=shapes, strict=False)
