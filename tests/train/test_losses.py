"""Identities that the losses must keep, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from train.losses import (
    alpha_sigma,
    convert_prediction,
    diffusion_target,
    feature_distillation,
    guided,
    kl_divergence,
    loss_weight,
    output_distillation,
    piecewise_linear,
)

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


@pytest.mark.parametrize("source", PREDICTION_TYPES)
@pytest.mark.parametrize("target", PREDICTION_TYPES)
def test_a_prediction_says_the_same_in_every_type(
    source: str, target: str, pair: tuple[Tensor, Tensor]
) -> None:
    x0, noise = (tensor[1:] for tensor in pair)
    alphas_cumprod = ALPHAS_CUMPROD[1:]  # at 0 the noise says nothing about x0
    alpha, sigma = alpha_sigma(alphas_cumprod, x0.ndim)
    prediction = diffusion_target(x0, noise, alphas_cumprod, source)
    converted = convert_prediction(prediction, alpha * x0 + sigma * noise, alphas_cumprod, source, target)
    torch.testing.assert_close(converted, diffusion_target(x0, noise, alphas_cumprod, target))


def test_guidance_is_diffusers_convention() -> None:
    cond, uncond = torch.tensor([3.0]), torch.tensor([1.0])
    assert float(guided(cond, uncond, 1.0)) == 3.0
    assert float(guided(cond, uncond, 0.0)) == 1.0
    assert float(guided(cond, uncond, 2.5)) == 6.0


def test_distillation_losses_are_zero_at_the_teacher_and_feel_every_level_alike(
    pair: tuple[Tensor, Tensor],
) -> None:
    teacher, other = (tensor.flatten(1, 2).clone() for tensor in pair)
    assert float(feature_distillation(teacher, teacher)) == 0.0
    assert output_distillation(teacher, teacher).tolist() == [0.0] * 6
    assert output_distillation(teacher + 2.0, teacher).tolist() == pytest.approx([4.0] * 6)
    loss = feature_distillation(other, teacher)
    torch.testing.assert_close(feature_distillation(1000 * other, 1000 * teacher), loss)
    torch.testing.assert_close(feature_distillation(torch.zeros_like(teacher), teacher), torch.tensor(1.0))
    teacher.requires_grad_(True)
    other.requires_grad_(True)
    feature_distillation(other, teacher).backward()
    assert teacher.grad is None
    assert other.grad is not None
    assert float(other.grad.abs().sum()) > 0.0


def test_weights_are_lines_through_their_points() -> None:
    points = ((10, 0.0), (20, 1.0), (40, 0.5))
    values = [piecewise_linear(points, step) for step in (0, 10, 15, 20, 30, 40, 99)]
    assert values == pytest.approx([0.0, 0.0, 0.5, 1.0, 0.75, 0.5, 0.5])
    assert piecewise_linear(((5, 0.3),), 0) == 0.3
