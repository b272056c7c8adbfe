"""Floating-point operations of a forward pass, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hummingbird.models.unet import UNetSpatioTemporalModel


def count_flops(
    config: Mapping[str, Any],
    num_frames: int,
    height: int,
    width: int,
    batch_size: int = 1,
    num_tokens: int = 77,
) -> int:
    """Count convolutions and matrix products of one forward; a multiply-add counts as two.

    Runs on the meta device: nothing is allocated or computed.

    Args:
        config: a configuration, such as ``preset_config("videocrafter2")``.
        num_frames: frames of the video.
        height: of the latents (an eighth of the video's for the published networks).
        width: of the latents.
        batch_size: number of videos.
        num_tokens: text tokens per video.

    Returns:
        The number of operations.

    Raises:
        ValueError: the network cannot take this shape.
    """
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(dict(config))
        sample = torch.empty(batch_size, unet.config.in_channels, num_frames, height, width)
        text = torch.empty(batch_size, num_tokens, unet.config.cross_attention_dim)
        guidance = None
        if unet.config.time_cond_proj_dim is not None:
            guidance = torch.empty(batch_size, unet.config.time_cond_proj_dim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, 0, text, timestep_cond=guidance, return_dict=False)
    return counter.get_total_flops()
