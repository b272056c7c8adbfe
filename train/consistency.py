"""Consistency distillation of a guided teacher into few steps: one step's arithmetic, without a loop.

References:
    Luo et al., Latent Consistency Models, arXiv 2310.04378; Li et al., T2V-Turbo, arXiv 2405.18750.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from hummingbird.config import ConfigError, config_dataclass
from hummingbird.schedulers import (
    boundary_scalings,
    ddim_solver_step,
    few_step_timesteps,
    guidance_scale_embedding,
    predict_original_and_noise,
    pseudo_huber,
)
from train.loop import Count, Positive
from train.losses import Points, alpha_sigma, check_points, piecewise_linear


@config_dataclass
class ConsistencyConfig:
    """How a few-step student is taught; the defaults are T2V-Turbo's."""

    original_steps: Count = 50
    """Points of the DDIM grid that the teacher steps on; one step skips 1000 / 50 = 20 timesteps."""
    guidance_min: Annotated[float, Field(ge=0)] = 5.0
    guidance_max: Annotated[float, Field(ge=0)] = 15.0
    """Guidance scales are uniform in between, in the convention cond + w * (cond - uncond)."""
    loss: Literal["huber", "l2"] = "huber"
    huber_c: Positive = 1e-3
    timestep_scaling: Positive = 10.0
    target: Literal["student", "ema"] = "student"
    """Whose answer one step further is the target: the student's own, or that of its averaged weights."""
    guidance_share: Points = ((0, 0.0),)
    """By step: how much of the loss asks for what the guided teacher predicts at the same place of the grid
    instead of the target. A student that learns guidance alone first needs few steps for it: arXiv
    2210.03142, section 3.1."""
    drop_unconditional_fps: bool = False
    """Reproduces the published code, whose unconditional teacher call has no fps and falls back to 16."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ConsistencyConfig:
        if self.guidance_min > self.guidance_max:
            raise ValueError(
                f"guidance_min: got {self.guidance_min}, expected at most guidance_max={self.guidance_max}"
            )
        check_points("guidance_share", self.guidance_share, largest=1.0)
        return self


def check_grid(original_steps: int, num_train_timesteps: int) -> None:
    """Refuses a grid that ends before the noise does.

    Raises:
        ConfigError: more points than timesteps, or room for another one at the end.
    """
    skip = num_train_timesteps // original_steps
    if original_steps * skip <= num_train_timesteps - max(skip, 1):
        raise ConfigError(
            f"consistency.original_steps: got {original_steps}, whose grid ends at timestep "
            f"{original_steps * skip - 1} of {num_train_timesteps}; expected a divisor, such as 50"
        )


@dataclass(frozen=True, kw_only=True)
class ConsistencyDraw:
    """What is random in one step.

    Args:
        index: (B,) integers, places on the grid, 0 to ``original_steps - 1``.
        guidance_scale: (B,) float32.
        noise: Standard normal, shaped like the latents.
    """

    index: Tensor
    guidance_scale: Tensor
    noise: Tensor


def draw_consistency(
    latents: Tensor, config: ConsistencyConfig, generator: torch.Generator
) -> ConsistencyDraw:
    """Draw places on the grid, guidance scales and noise for latents (B, C, F, h, w)."""
    count, device = len(latents), latents.device
    index = torch.randint(0, config.original_steps, (count,), generator=generator, device=device)
    uniform = torch.rand(count, generator=generator, device=device)
    return ConsistencyDraw(
        index=index,
        guidance_scale=config.guidance_min + (config.guidance_max - config.guidance_min) * uniform,
        noise=torch.randn(latents.shape, generator=generator, device=device),
    )


@dataclass(frozen=True, kw_only=True)
class ConsistencyFunction:
    """From a noisy latent to a clean one: a network's answer between the boundary scalings.

    Args:
        config: Settings.
        alphas_cumprod: The noise schedule, (num_train_timesteps,).
        prediction_type: Of the network.
        time_cond_proj_dim: Width of its guidance embedding.

    Reference:
        Luo et al., arXiv 2310.04378, equation 9.
    """

    config: ConsistencyConfig
    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"
    time_cond_proj_dim: int = 256

    def __call__(
        self,
        network: Any,
        sample: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        fps: Tensor | float,
        guidance_scale: Tensor,
    ) -> Tensor:
        """Clean latents, and the sample itself at timestep 0.

        Args:
            network: A U-Net with a guidance embedding.
            sample: (B, C, F, h, w).
            timesteps: (B,) integers.
            prompt_embeds: (B, L, C).
            fps: Of the clips.
            guidance_scale: (B,), w.
        """
        embedding = guidance_scale_embedding(guidance_scale, self.time_cond_proj_dim).to(sample.dtype)
        output = network(
            sample, timesteps, prompt_embeds, fps=fps, timestep_cond=embedding, return_dict=False
        )[0].float()
        original, _ = predict_original_and_noise(
            output, timesteps, sample, self.alphas_cumprod, self.prediction_type
        )
        c_skip, c_out = (
            factor.view(-1, *[1] * (sample.ndim - 1))
            for factor in boundary_scalings(timesteps, timestep_scaling=self.config.timestep_scaling)
        )
        return c_skip * sample + c_out * original

    def generate(
        self,
        network: Any,
        noise: Tensor,
        num_inference_steps: int,
        prompt_embeds: Tensor,
        fps: Tensor | float,
        guidance_scale: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """What the network makes of noise in a few steps, as the pipeline does, with gradients through all.

        Args:
            network: A U-Net with a guidance embedding.
            noise: (B, C, F, h, w).
            num_inference_steps: 1 to ``original_steps``.
            prompt_embeds: (B, L, C).
            fps: Of the clips.
            guidance_scale: (B,), w.
            generator: Draws the noise of later steps.
        """
        alphas_cumprod = self.alphas_cumprod.to(noise.device)
        grid = few_step_timesteps(num_inference_steps, self.config.original_steps, len(alphas_cumprod))
        sample = noise
        for step, timestep in enumerate(grid):
            if step:
                fresh = torch.randn(noise.shape, generator=generator, device=noise.device)
                alpha, sigma = alpha_sigma(alphas_cumprod[timestep].expand(len(noise)), noise.ndim)
                sample = alpha * sample + sigma * fresh
            timesteps = torch.full((len(noise),), timestep, device=noise.device)
            sample = self(network, sample, timesteps, prompt_embeds, fps, guidance_scale)
        return sample

    def noisy(self, latents: Tensor, draw: ConsistencyDraw) -> tuple[Tensor, Tensor, Tensor]:
        """Latents at the drawn places of the grid.

        Returns:
            ``noisy`` shaped like ``latents``, its timesteps (B,), and those one step further (B,).
        """
        alphas_cumprod = self.alphas_cumprod.to(latents.device)
        skip = len(alphas_cumprod) // self.config.original_steps
        start_timesteps = (draw.index + 1) * skip - 1
        alpha, sigma = alpha_sigma(alphas_cumprod[start_timesteps], latents.ndim)
        noisy = alpha * latents + sigma * draw.noise
        return noisy, start_timesteps, (start_timesteps - skip).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class ConsistencyStep:
    """One step's tensors, for the loss and for whoever looks closer.

    Args:
        loss: Float32 scalar; its gradient reaches the student through ``prediction`` alone.
        prediction: The student's clean latents at ``start_timesteps``: what rewards look at.
        target: Clean latents one step further, without gradients; where only guidance is learnt, those that
            the guided teacher predicts from ``noisy``.
        noisy: The student's input.
        previous: Where the guided teacher's DDIM step leads.
        start_timesteps: (B,).
        timesteps: (B,), one step further.
    """

    loss: Tensor
    prediction: Tensor
    target: Tensor
    noisy: Tensor
    previous: Tensor
    start_timesteps: Tensor
    timesteps: Tensor


def consistency_step(
    student: Any,
    teacher: Any,
    latents: Tensor,
    draw: ConsistencyDraw,
    prompt_embeds: Tensor,
    uncond_prompt_embeds: Tensor,
    *,
    fps: Tensor | float,
    function: ConsistencyFunction,
    teacher_prediction_type: str = "epsilon",
    target_network: Any | None = None,
    global_step: int = 0,
) -> ConsistencyStep:
    """Teach the student that a noisy latent and the one a guided teacher step further have one clean latent.

    Args:
        student: U-Net with a guidance embedding; the only one that receives gradients.
        teacher: Frozen U-Net without one.
        latents: Clean, (B, C, F, h, w), scaled as the U-Nets see them.
        draw: What is random.
        prompt_embeds: (B, L, C).
        uncond_prompt_embeds: Of the empty prompt, (B, L, C).
        fps: Of the clips.
        function: Of the student; the noise schedule is the teacher's, too.
        teacher_prediction_type: Of the teacher.
        target_network: Whose answer one step further is the target; the student's own where left out.
        global_step: Optimizer steps done, for ``guidance_share``.

    Raises:
        ValueError: The target shall be that of averaged weights, and there is no network that has them.

    Reference:
        Luo et al., arXiv 2310.04378, algorithm 1 (one step); pseudo-Huber: Song and Dhariwal, arXiv
        2310.14189.
    """
    config, alphas_cumprod = function.config, function.alphas_cumprod.to(latents.device)
    if config.target == "ema" and target_network is None:
        raise ValueError('target: got "ema" without a network of averaged weights; expected one')
    noisy, start_timesteps, timesteps = function.noisy(latents, draw)
    prediction = function(student, noisy, start_timesteps, prompt_embeds, fps, draw.guidance_scale)
    with torch.no_grad():
        original, noise = _guided_teacher(
            teacher, noisy, start_timesteps, prompt_embeds, uncond_prompt_embeds, fps, draw.guidance_scale,
            alphas_cumprod, teacher_prediction_type, drop_unconditional_fps=config.drop_unconditional_fps,
        )  # fmt: skip
        previous = ddim_solver_step(original, noise, draw.index, alphas_cumprod, config.original_steps)
        share = piecewise_linear(config.guidance_share, global_step)
        target = original
        if share < 1:
            network = student if target_network is None else target_network
            target = function(network, previous, timesteps, prompt_embeds, fps, draw.guidance_scale)
    loss = _distance(prediction, target, config)
    if 0 < share < 1:
        loss = (1.0 - share) * loss + share * _distance(prediction, original, config)
    return ConsistencyStep(
        loss=loss,
        prediction=prediction,
        target=target,
        noisy=noisy,
        previous=previous,
        start_timesteps=start_timesteps,
        timesteps=timesteps,
    )


def _distance(prediction: Tensor, target: Tensor, config: ConsistencyConfig) -> Tensor:
    if config.loss == "huber":
        return pseudo_huber(prediction, target, config.huber_c)
    return (prediction.float() - target.float()).square().mean()


def _guided_teacher(
    teacher: Any,
    noisy: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    uncond_prompt_embeds: Tensor,
    fps: Tensor | float,
    guidance_scale: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    *,
    drop_unconditional_fps: bool,
) -> tuple[Tensor, Tensor]:
    """Clean latents and noise of the teacher, both guided: cond + w * (cond - uncond)."""
    sample = noisy.to(teacher.dtype)
    unconditional = {} if drop_unconditional_fps else {"fps": fps}

    def ask(embeds: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        output = teacher(sample, timesteps, embeds.to(teacher.dtype), return_dict=False, **options)[0].float()
        return predict_original_and_noise(output, timesteps, noisy, alphas_cumprod, prediction_type)

    weight = guidance_scale.view(-1, *[1] * (noisy.ndim - 1))
    with_prompt, without = ask(prompt_embeds, fps=fps), ask(uncond_prompt_embeds, **unconditional)
    original, noise = (
        cond + weight * (cond - uncond) for cond, uncond in zip(with_prompt, without, strict=True)
    )
    return original, noise
