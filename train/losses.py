"""Losses; each names its paper and equation and uses its symbols inside that function only."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossWeighting = Literal["uniform", "min_snr"]


def diffusion_target(x0: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the network is asked to predict.

    Args:
        x0: clean latents, any shape (B, ...).
        noise: standard normal, same shape.
        alphas_cumprod: (B,), in [0, 1].
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``.

    Raises:
        ValueError: unknown prediction type.

    Reference:
        epsilon: Ho et al., arXiv 2006.11239, equation 14. v: Salimans and Ho, arXiv 2202.00512, appendix D.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        alpha, sigma = alpha_sigma(alphas_cumprod, x0.ndim)
        return alpha * noise - sigma * x0
    raise ValueError(f"prediction_type: got {prediction_type!r}, expected epsilon, v_prediction or sample")


def alpha_sigma(alphas_cumprod: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """sqrt(a) and sqrt(1 - a), shaped to scale tensors of ``ndim`` axes."""
    shape = (-1,) + (1,) * (ndim - 1)
    return alphas_cumprod.sqrt().view(shape), (1.0 - alphas_cumprod).sqrt().view(shape)


def loss_weight(
    alphas_cumprod: Tensor, prediction_type: str, weighting: LossWeighting, gamma: float = 5.0
) -> Tensor:
    """Weight of each example's squared error: (B,).

    ``min_snr`` is min(SNR, gamma) on the x0 error, written for the given prediction type; in v-prediction
    it is min(SNR, gamma) / (SNR + 1).

    Reference:
        Hang et al., arXiv 2303.09556, section 3.4.
    """
    if weighting == "uniform":
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1.0 - alphas_cumprod).clamp(min=1e-8)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return (gamma / snr.clamp(min=1e-8)).clamp(max=1.0)  # 1, not 0 / 0, at zero terminal SNR
    if prediction_type == "v_prediction":
        return clipped / (snr + 1.0)
    return clipped


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean, exp(logvar)) || N(0, 1)).

    Reference:
        Kingma and Welling, arXiv 1312.6114, appendix B.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
