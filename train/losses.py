"""Losses; each names its paper and equation and uses its symbols inside that function only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

LossWeighting = Literal["uniform", "min_snr"]
Points = tuple[tuple[int, float], ...]
"""(step, value), ascending in their steps; see ``piecewise_linear``."""


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


# --- distillation ------------------------------------------------------------------------------------------


def guided(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance in diffusers' convention: 1 is the conditional prediction, 0 the other one.

    Reference:
        Ho and Salimans, arXiv 2207.12598, equation 6, with w = ``guidance_scale`` - 1; as the target of a
        student that needs one pass: Meng et al., arXiv 2210.03142, section 3.1.
    """
    return uncond + guidance_scale * (cond - uncond)


def convert_prediction(
    prediction: Tensor, noisy: Tensor, alphas_cumprod: Tensor, source: str, target: str
) -> Tensor:
    """Says what a network predicted in the words of another prediction type.

    Args:
        prediction: of the network, (B, ...).
        noisy: what it saw, same shape.
        alphas_cumprod: (B,); over 0 where the source is ``epsilon``, which says nothing about x0 at 0.
        source: prediction type of the network.
        target: wanted prediction type.

    Raises:
        ValueError: unknown prediction type.

    Reference:
        Salimans and Ho, arXiv 2202.00512, appendix D.
    """
    if source == target:
        return prediction
    alpha, sigma = alpha_sigma(alphas_cumprod, noisy.ndim)
    if source == "epsilon":
        x0 = (noisy - sigma * prediction) / alpha
        noise = prediction
    elif source == "v_prediction":
        x0 = alpha * noisy - sigma * prediction
        noise = sigma * noisy + alpha * prediction
    elif source == "sample":
        x0 = prediction
        noise = (noisy - alpha * prediction) / sigma
    else:
        raise ValueError(f"prediction_type: got {source!r}, expected one of epsilon, v_prediction and sample")
    return diffusion_target(x0, noise, alphas_cumprod, target)


def output_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two predictions, per example: (B, ...) -> (B,).

    Reference:
        Kim et al. (BK-SDM), arXiv 2305.15798, equation 2.
    """
    return (student.float() - teacher.float()).square().flatten(1).mean(dim=1)


def feature_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two feature maps of one level, relative to the teacher's mean square: a scalar.

    Features of different levels differ in size by orders of magnitude; divided by their own mean square,
    every level weighs the same, and 1 is what a student that answers zero would get.

    Args:
        student: (N, C, H, W).
        teacher: same shape; no gradient flows into it.

    Reference:
        Kim et al. (BK-SDM), arXiv 2305.15798, equation 3 (one term of the sum); the normalisation is ours.
    """
    target = teacher.detach().float()
    return (student.float() - target).square().mean() / target.square().mean().clamp(min=1e-8)


def check_points(name: str, points: Points, largest: float = math.inf) -> None:
    """Refuses points that are no schedule of weights from 0 to ``largest``.

    Raises:
        ValueError: with the setting's name.
    """
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    if not points or steps != sorted(set(steps)) or min(values) < 0 or max(values) > largest:
        limit = "" if math.isinf(largest) else f" and none over {largest:g}"
        raise ValueError(
            f"{name}: got {list(points)}, expected one or more [step, weight] with ascending steps and no "
            f"negative weight{limit}"
        )


def piecewise_linear(points: Sequence[tuple[int, float]], step: int) -> float:
    """Value at ``step`` of the line through ``points``; constant before the first and after the last.

    Args:
        points: (step, value), ascending in their steps.
        step: optimizer steps done.
    """
    for (start, low), (end, high) in pairwise(points):
        if step < end:
            share = max(step - start, 0) / (end - start)
            return low + share * (high - low)
    return points[-1][1]
