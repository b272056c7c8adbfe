"""A look at unfinished latents that costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["SMALL_DECODER", "Preview", "make_preview"]

SMALL_DECODER = 2_000_000
"""A decoder of at most so many parameters shows one frame in far less time than a step takes."""

_CHART_CELLS = 12

Preview = Callable[["torch.Tensor"], "np.ndarray"]


def make_preview(pipe: HummingbirdPipeline) -> Preview | None:
    """Choose how the latents of a model are shown while they are made.

    A small decoder decodes one frame. For a large one a linear map from one latent pixel to its mean colour
    is fitted, once, to a chart of plain colours that the autoencoder encodes: the latents of image
    autoencoders are close to such a map, which shows place and colour but no detail. Before the last step the
    latents still hold noise, and so does either picture.

    Returns:
        A function from the latents (C, F, h, w) of one video to its middle frame, (H, W, 3) uint8 RGB. None
        where the decoder is large and the model has no encoder (exported models).
    """
    vae = pipe.vae
    decoder = getattr(vae, "decoder", None)
    if decoder is not None and sum(weight.numel() for weight in decoder.parameters()) <= SMALL_DECODER:
        return lambda latents: _to_image(_decode(pipe, latents))
    if getattr(vae, "encoder", None) is None:
        return None
    weight = _fit(pipe)
    return lambda latents: _to_image(_map(weight, latents, pipe.vae_scale_factor))


def _middle(latents: torch.Tensor) -> torch.Tensor:
    middle = latents.shape[1] // 2
    return latents[:, middle : middle + 1]


def _to_image(pixels: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    import torch

    image: np.ndarray = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return image


def _decode(pipe: HummingbirdPipeline, latents: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return pipe.decode_latents(_middle(latents)[None])[0, :, 0] / 2 + 0.5


def _map(weight: torch.Tensor, latents: torch.Tensor, scale: int) -> torch.Tensor:
    import torch

    frame = _middle(latents)[:, 0].float().cpu()  # C h w
    colors = torch.einsum("chw,ck->khw", frame, weight[:-1]) + weight[-1][:, None, None]
    return torch.nn.functional.interpolate(colors[None], scale_factor=scale, mode="bilinear")[0]


def _fit(pipe: HummingbirdPipeline) -> torch.Tensor:
    """Least squares over the chart.

    Returns:
        (C + 1, 3) float32 on the CPU; the last row is the constant.
    """
    import torch

    vae = pipe.vae
    generator = torch.Generator("cpu").manual_seed(0)
    cells = torch.rand(1, 3, _CHART_CELLS, _CHART_CELLS, generator=generator)
    colors = _enlarge(cells, 4)  # one for each latent pixel
    chart = _enlarge(colors, pipe.vae_scale_factor) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(chart.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = (encoded - shift) * vae.config.scaling_factor  # as the U-Net sees them
    rows = torch.cat([latents[0].flatten(1).T, torch.ones(latents[0, 0].numel(), 1)], dim=1)
    solution: torch.Tensor = torch.linalg.lstsq(rows, colors[0].flatten(1).T, driver="gelsd").solution
    return solution


def _enlarge(images: torch.Tensor, factor: int) -> torch.Tensor:
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
