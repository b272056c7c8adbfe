"""Identities that the losses must keep, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from train.losses import alpha_sigma, diffusion_target, kl_divergence, loss_weight

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x0, noise


ALPHAS_CUMPROD = torch.tensor([0.0, 1e-3, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)


def test_targets_give_back_clean_latents_and_noise(pair: tuple[Tensor, Tensor]) -> None:
    x0, noise = pair
    alpha, sigma = alpha_sigma(ALPHAS_CUMPROD, x0.ndim)
    noisy = alpha * x0 + sigma * noise
    v = diffusion_target(x0, noise, ALPHAS_CUMPROD, "v_prediction")
    torch.testing.assert_close(alpha * noisy - sigma * v, x0)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise)
    assert torch.equal(diffusion_target(x0, noise, ALPHAS_CUMPROD, "epsilon"), noise)
    assert torch.equal(diffusion_target(x0, noise, ALPHAS_CUMPROD, "sample"), x0)


def test_v_is_what_the_sampler_inverts(pair: tuple[Tensor, Tensor]) -> None:
    """The sampler, given the exact target at any timestep, finds the clean latents."""
    x0, noise = (tensor.float() for tensor in pair)
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
    scheduler.set_timesteps(10)
    for timestep in (999, 500, 3):
        a = scheduler.alphas_cumprod[torch.full((len(x0),), timestep)]
        alpha, sigma = alpha_sigma(a, x0.ndim)
        v = diffusion_target(x0, noise, a, "v_prediction")
        out = scheduler.step(v, timestep, alpha * x0 + sigma * noise).pred_original_sample
        torch.testing.assert_close(out, x0, atol=1e-5, rtol=1e-5)


def test_at_zero_terminal_snr_v_is_minus_the_clean_latents(pair: tuple[Tensor, Tensor]) -> None:
    x0, noise = pair
    last = DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear").alphas_cumprod[-1]
    # diffusers keeps the last value just above zero so that its own divisions stand.
    v = diffusion_target(x0, noise, last.expand(len(x0)).double(), "v_prediction")
    torch.testing.assert_close(v, -x0, atol=1e-3, rtol=0.0)
    exact = diffusion_target(x0, noise, torch.zeros(len(x0), dtype=torch.float64), "v_prediction")
    assert torch.equal(exact, -x0)


def test_unknown_prediction_type_is_refused(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="prediction_type: got 'eps', expected epsilon"):
        diffusion_target(*pair, ALPHAS_CUMPROD, "eps")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_one_weight_on_the_clean_error(
    pair: tuple[Tensor, Tensor], prediction_type: str, gamma: float
) -> None:
    """Weighted error of a prediction = min(SNR, gamma) times the squared error of the x0 it implies."""
    x0, noise = (tensor[1:] for tensor in pair)
    a = ALPHAS_CUMPROD[1:]
    alpha, sigma = alpha_sigma(a, x0.ndim)
    noisy = alpha * x0 + sigma * noise
    target = diffusion_target(x0, noise, a, prediction_type)
    prediction = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).double()
    implied = {
        "epsilon": lambda p: (noisy - sigma * p) / alpha,
        "v_prediction": lambda p: alpha * noisy - sigma * p,
        "sample": lambda p: p,
    }[prediction_type](prediction)
    snr = a / (1 - a)
    direct = snr.clamp(max=gamma) * (implied - x0).square().flatten(1).mean(1)
    weighted = loss_weight(a, prediction_type, "min_snr", gamma) * (
        (prediction - target).square().flatten(1).mean(1)
    )
    torch.testing.assert_close(weighted, direct)


def test_weights_at_the_ends_of_the_schedule_are_finite() -> None:
    ends = torch.tensor([0.0, 1.0])
    expected = {"epsilon": [1.0, 0.0], "v_prediction": [0.0, 0.0], "sample": [0.0, 5.0]}
    for prediction_type, values in expected.items():
        weight = loss_weight(ends, prediction_type, "min_snr")
        torch.testing.assert_close(weight, torch.tensor(values), atol=1e-6, rtol=0.0)
        assert torch.equal(loss_weight(ends, prediction_type, "uniform"), torch.ones(2))


def test_kl_divergence_is_the_distance_of_two_normals() -> None:
    zero = torch.zeros(3, 4)
    assert float(kl_divergence(zero, zero)) == 0.0
    mean, logvar = torch.tensor([0.7]), torch.tensor([-1.2])
    p = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected.mean())
    assert math.isclose(float(kl_divergence(mean, torch.zeros(1))), 0.7**2 / 2, rel_tol=1e-6)
