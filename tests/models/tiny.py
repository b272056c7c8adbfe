"""A real network made small, with no layer left at zero."""

from __future__ import annotations

from typing import Any

import torch

from hummingbird.models import UNetSpatioTemporalModel

CONFIG: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (1, 2),
    "num_head_channels": 16,
    "cross_attention_dim": 24,
}


def tiny_unet(seed: int = 0, **options: Any) -> UNetSpatioTemporalModel:
    """Build a tiny network in eval mode whose every parameter matters."""
    torch.manual_seed(seed)
    unet = UNetSpatioTemporalModel(**{**CONFIG, **options}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return unet


def tiny_inputs(
    batch_size: int = 2, num_frames: int = 3, height: int = 8, width: int = 4, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Random inputs of a tiny network, as keyword arguments."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch_size, 4, num_frames, height, width, generator=generator),
        "timestep": torch.randint(0, 1000, (batch_size,), generator=generator),
        "encoder_hidden_states": torch.randn(batch_size, 5, 24, generator=generator),
    }
