"""What a pipeline call returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class HummingbirdPipelineOutput(BaseOutput):
    """Videos of one call.

    Args:
        frames: One entry per video, in the order of the prompts, each prompt's videos side by side. Lists of
            PIL images ("pil"), an array (B, F, H, W, 3) or a tensor (B, F, 3, H, W) of float32 in [0, 1]
            ("np", "pt"), or latents (B, C, F, h, w) of float32 ("latent").
    """

    frames: Any
