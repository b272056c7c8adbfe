"""How alike two pictures are: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["psnr_db", "ssim"]

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr_db(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, in dB; infinite where they are equal.

    Args:
        pictures: (N, C, H, W) in [0, 1].
        reference: the same shape.

    Returns:
        (N,) float32.
    """
    mse = (pictures.float() - reference.float()).square().flatten(1).mean(dim=1)
    return -10.0 * torch.log10(mse)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each picture, the mean over channels and windows that lie inside; at most 1.

    Args:
        pictures: (N, C, H, W) in [0, 1], at least 11 x 11.
        reference: the same shape.

    Returns:
        (N,) float32.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window.

    Reference:
        Wang et al., IEEE TIP 13(4), 2004, equation 13, with its Gaussian window of 11 x 11 and deviation 1.5.
    """
    if pictures.shape != reference.shape or min(pictures.shape[2:]) < _WINDOW:
        raise ValueError(
            f"ssim: got {tuple(pictures.shape)} and {tuple(reference.shape)}, expected two equal shapes "
            f"(N, C, H, W) with sides from {_WINDOW}"
        )
    x, y = pictures.float().flatten(0, 1).unsqueeze(1), reference.float().flatten(0, 1).unsqueeze(1)
    steps = torch.arange(_WINDOW, device=x.device) - _WINDOW // 2
    window = torch.exp(-(steps**2) / (2.0 * _SIGMA**2))
    window = torch.outer(window, window)[None, None] / window.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    covariance = mean(x * y) - mu_x * mu_y
    c1, c2 = _K1**2, _K2**2
    similarity = ((2 * mu_x * mu_y + c1) * (2 * covariance + c2)) / (
        (mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.flatten(1).mean(dim=1).unflatten(0, pictures.shape[:2]).mean(dim=1)
