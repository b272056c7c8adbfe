"""Rewards reach the latents: through preprocessing, the decoder of a few frames, and a weighted sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hummingbird.rewards import FrameSelection, RewardTerm, WeightSchedule, decode_frames, reward_loss
from tests.pipelines.tiny import tiny_components
from tests.rewards.tiny import tiny_reward

PROMPTS = ["a red cat", "two dogs"]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    made = tiny_components()["vae"].requires_grad_(False)
    made.register_to_config(shift_factor=0.1)
    return made


def latents(frames: int = 16, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(2, 4, frames, 16, 24, generator=torch.Generator().manual_seed(seed))


def terms(image_weight: float = 1.0, video_weight: float = 2.0) -> list[RewardTerm]:
    return [
        RewardTerm(reward=tiny_reward("hpsv2"), weight=WeightSchedule(end=image_weight)),
        RewardTerm(reward=tiny_reward("viclip"), weight=WeightSchedule(end=video_weight)),
    ]


def test_frames_are_those_of_the_autoencoder(vae: AutoencoderKL) -> None:
    z = latents()
    frames = decode_frames(vae, z, [3, 0, 3])
    assert frames.shape == (2, 3, 3, 32, 48)
    scaled = z / vae.config.scaling_factor + 0.1
    for place, index in enumerate([3, 0, 3]):
        expected = (vae.decode(scaled[:, :, index]).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(frames[:, place], expected)
    assert 0 <= frames.min() < frames.max() <= 1


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_checkpointing_changes_nothing_but_memory(vae: AutoencoderKL, chunk_size: int) -> None:
    weights = torch.randn(2, 5, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    results, kept = [], []
    for use_checkpoint in (False, True):
        z = latents().requires_grad_()
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            frames = decode_frames(
                vae, z, [1, 15, 7, 1, 2], chunk_size=chunk_size, use_checkpoint=use_checkpoint
            )
        (frames * weights).sum().backward()
        assert z.grad is not None
        results.append((frames.detach(), z.grad))
        kept.append(sum(saved))
    (plain, gradient), (again, checkpointed) = results
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(checkpointed, gradient, rtol=1e-4, atol=1e-5)
    touched = gradient.abs().amax(dim=(0, 1, 3, 4)) > 0
    assert touched.nonzero()[:, 0].tolist() == [1, 2, 7, 15]
    assert kept[1] < kept[0] / 5


def test_wrong_frames_are_refused(vae: AutoencoderKL) -> None:
    for indices in ([], [16], [-1]):
        with pytest.raises(ValueError, match=r"expected some in \[0, 16\)"):
            decode_frames(vae, latents(), indices)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        decode_frames(vae, latents(), [0], chunk_size=0)


def plain_loss(vae: AutoencoderKL, z: Tensor, generator: torch.Generator) -> Tensor:
    """The weighted sum as one expression."""
    total = torch.zeros(())
    for term in terms():
        indices = term.reward.frame_selection.indices(z.shape[2], generator)
        frames = decode_frames(vae, z, indices, use_checkpoint=False)
        total = total - term.weight.end * term.reward(frames, PROMPTS, generator=generator).mean()
    return total


def test_loss_and_gradient_are_those_of_the_plain_sum(vae: AutoencoderKL) -> None:
    plain, ours = latents().requires_grad_(), latents().requires_grad_()
    expected = plain_loss(vae, 2 * plain, torch.Generator().manual_seed(7))
    loss, figures = reward_loss(
        terms(), vae, 2 * ours, PROMPTS, step=0, generator=torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(loss, expected)
    (3 * expected).backward()
    (3 * loss).backward()
    assert plain.grad is not None
    assert ours.grad is not None
    assert ours.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-7)
    assert set(figures) == {
        f"{kind}/{name}"
        for kind in ("reward", "reward_weight", "reward_grad_norm")
        for name in ("hpsv2", "viclip")
    }
    assert not any(value.requires_grad for value in figures.values())
    value = -(figures["reward/hpsv2"] + 2 * figures["reward/viclip"])
    torch.testing.assert_close(loss.detach(), value)


def test_a_small_gradient_does_not_vanish_in_half_precision(vae: AutoencoderKL) -> None:
    """Without a loss scale, which the loop applies only to what comes after."""
    options: dict[str, Any] = {
        "weight": WeightSchedule(end=1e-4),
        "frame_selection": FrameSelection(rule="all"),
    }
    gradients = []
    for dtype in (torch.float32, torch.float16):
        z = latents(frames=2).requires_grad_()
        term = RewardTerm(reward=tiny_reward("hpsv2").to(dtype), **options)
        reward_loss([term], vae, z, PROMPTS, step=0, generator=torch.Generator().manual_seed(0))[0].backward()
        assert z.grad is not None
        gradients.append(z.grad)
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 0.05


def test_the_gradient_raises_the_reward(vae: AutoencoderKL) -> None:
    still = [
        RewardTerm(
            reward=tiny_reward("hpsv2"),
            weight=WeightSchedule(end=1.0),
            frame_selection=FrameSelection(rule="all"),
        )
    ]
    z = latents(frames=2).requires_grad_()
    options: dict[str, Any] = {"step": 0, "generator": torch.Generator().manual_seed(0)}
    before, figures = reward_loss(still, vae, z, PROMPTS, **options)
    before.backward()
    assert z.grad is not None
    torch.testing.assert_close(figures["reward_grad_norm/hpsv2"], z.grad.norm())
    after, _ = reward_loss(still, vae, z.detach() - 0.01 * z.grad / z.grad.norm(), PROMPTS, **options)
    assert after < before


def test_a_reward_of_weight_zero_is_not_computed(vae: AutoencoderKL) -> None:
    z = latents().requires_grad_()
    loss, figures = reward_loss(
        terms(0.0, 0.0), vae, z, PROMPTS, step=0, generator=torch.Generator().manual_seed(0)
    )
    assert loss == 0
    assert set(figures) == {"reward_weight/hpsv2", "reward_weight/viclip"}
    loss.backward()
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_weights_follow_their_schedule() -> None:
    schedule = WeightSchedule(start=0.5, end=2.0, first_step=10, last_step=20)
    assert [schedule.at(step) for step in (0, 10, 14, 20, 99)] == [0.5, 0.5, 1.1, 2.0, 2.0]
    assert WeightSchedule(end=1.5).at(0) == 1.5
    for change in ({"end": -1.0}, {"end": 1.0, "first_step": 3, "last_step": 2}):
        with pytest.raises(ValueError, match="expected"):
            WeightSchedule(**change)
    assert replace(schedule, last_step=10).at(10) == 2.0
