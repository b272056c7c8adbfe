"""The convolutional backbones of DOVER: ConvNeXt and ConvNeXt V2, inflated in time.

Liu et al., A ConvNet for the 2020s, arXiv 2201.03545; Woo et al., ConvNeXt V2, arXiv 2301.00808. Names and
shapes of the state dict are those of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["ConvNeXt3D", "Variant"]

Variant = Literal["v1+layerscale", "v2+GRN"]

_EPS = 1e-6
_STEM = (2, 4, 4)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2, section 3.2, on ``(B, T, H, W, C)``.

    The response of a channel is its norm over time and rows, one for each column; the paper takes all
    positions of a picture. Checkpoints were trained with this and give other scores without it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (response / (response.mean(dim=-1, keepdim=True) + _EPS))) + self.beta + x


class _ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(B, C, T, H, W)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock3D(nn.Module):
    """Depthwise convolution, norm and MLP around a shortcut, on ``(B, C, T, H, W)``."""

    def __init__(self, dim: int, temporal_kernel: int, variant: Variant) -> None:
        super().__init__()
        kernel = (temporal_kernel, 7, 7)
        padding = (temporal_kernel // 2, 3, 3)
        self.dwconv = nn.Conv3d(dim, dim, kernel, padding=padding, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GlobalResponseNorm(4 * dim) if variant == "v2+GRN" else None
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6)) if variant == "v1+layerscale" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.pwconv1(self.norm(self.dwconv(x).movedim(1, -1))))
        if self.grn is not None:
            hidden = self.grn(hidden)
        hidden = self.pwconv2(hidden)
        if self.gamma is not None:
            hidden = self.gamma * hidden
        return x + hidden.movedim(-1, 1)


class ConvNeXt3D(nn.Module):
    """ConvNeXt-T by default; the arguments have the names of the published configuration.

    Args:
        dims: channels of the four stages.
        depths: blocks of the four stages.
        inflate_strategy: temporal kernels of the blocks of a stage, one digit each, over and over.
        in_chans: channels of the frames.
        variant: ``v1+layerscale``, or ``v2+GRN`` as in DOVER-Mobile.
        num_classes: of a classifier that nothing uses, but that files of V2 have; None is 1000 for V2 and 0
            for the other.
    """

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        inflate_strategy: str = "131",
        in_chans: int = 3,
        variant: Variant = "v1+layerscale",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if variant not in ("v1+layerscale", "v2+GRN"):
            raise ValueError(f"variant: got {variant!r}, expected 'v1+layerscale' or 'v2+GRN'")
        kernels = [int(digit) for digit in inflate_strategy]
        stem = nn.Sequential(
            nn.Conv3d(in_chans, dims[0], _STEM, stride=_STEM), _ChannelsFirstNorm(dims[0], eps=_EPS)
        )
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            halve = nn.Conv3d(before, after, (1, 2, 2), stride=(1, 2, 2))
            self.downsample_layers.append(nn.Sequential(_ChannelsFirstNorm(before, eps=_EPS), halve))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(ConvNeXtBlock3D(dim, kernels[index % len(kernels)], variant) for index in range(depth))
            )
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.num_features = dims[-1]
        self.norm = nn.LayerNorm(dims[-1], eps=_EPS)
        if num_classes is None:
            num_classes = 1000 if variant == "v2+GRN" else 0
        if num_classes:
            self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of normalised frames.

        Args:
            x: ``(B, 3, T, H, W)``; at least 2 frames and 32 rows and columns.

        Returns:
            ``(B, C, T / 2, H / 32, W / 32)``, each rounded down.

        Raises:
            ValueError: the frames are too few or too small.
        """
        if x.shape[2] < _STEM[0] or min(x.shape[3:]) < 32:
            raise ValueError(
                f"frames: got {x.shape[2]} of {x.shape[4]}x{x.shape[3]}, expected 2 or more of 32x32 or more"
            )
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
