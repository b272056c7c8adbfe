"""What is known about the published families beyond their tensors: licence, sampler, call arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import LCMScheduler, SchedulerMixin

from hummingbird import schedulers
from hummingbird.checkpoints.key_map import Recipe, recipe_of
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.schedulers import VideoCrafterDDIMScheduler

UNKNOWN = "unknown"
"""A licence that is not stated where we could read it: the publisher's page has the word."""

BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "scale_arr",
)
"""Tensors of the noise schedule in an original checkpoint, beside the networks."""

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_TEACHER_CALL = {"num_inference_steps": 50, "guidance_scale": 12.0, "fps": 28, "eta": 1.0}
_STUDENT_CALL = {"num_inference_steps": 4, "guidance_scale": 7.5, "fps": 16, "eta": 0.0}
_SIZE = {"num_frames": 16, "height": 320, "width": 512}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A published kind of checkpoint.

    Args:
        name: Short name in reports.
        title: What it is.
        licence: Of the published weights, an SPDX-like name, or ``unknown``.
        licence_source: Where that is said.
    """

    name: str
    title: str
    licence: str = UNKNOWN
    licence_source: str = "not recorded here: see the publisher's model page before use"


_AMD_LICENCE = {
    "licence": "gpl-3.0",
    "licence_source": "model page of amd/AMD-Hummingbird-T2V, February 2025",
}
FAMILIES = {
    family.name: family
    for family in (
        Family(name="videocrafter2", title="VideoCrafter2, a teacher of 50 steps"),
        Family(name="t2v-turbo", title="T2V-Turbo, few-step student of VideoCrafter2"),
        Family(name="t2v-turbo-lora", title="T2V-Turbo's low-rank updates of a VideoCrafter2 U-Net"),
        Family(name="hummingbird-0.9b", title="AMD Hummingbird, pruned to one block a level", **_AMD_LICENCE),
        Family(
            name="hummingbird-0.7b",
            title="AMD Hummingbird, pruned to one block a level and without middle block",
            **_AMD_LICENCE,
        ),
        Family(name="custom", title="a network of this structure that nobody published"),
        Family(name="autoencoder-kl", title="image autoencoder of latent diffusion"),
        Family(name="open-clip-text", title="text tower of OpenCLIP"),
    )
}


def family_of(unet: UNetSpatioTemporalModel) -> str:
    """Name the family that a U-Net's structure belongs to, whatever its widths."""
    config = unet.config
    if config.frame_position_embedding or config.pooled_text_embedding or config.pruned_layers:
        return "custom"
    if config.num_res_blocks == 1:
        return "hummingbird-0.9b" if config.has_middle_block else "hummingbird-0.7b"
    if config.num_res_blocks == 2 and config.has_middle_block:
        return "videocrafter2" if config.time_cond_proj_dim is None else "t2v-turbo"
    return "custom"


def default_call(unet: UNetSpatioTemporalModel) -> dict[str, int | float]:
    """Return the call arguments that the publishers' own scripts use for such a network."""
    return {**_SIZE, **(_TEACHER_CALL if unet.config.time_cond_proj_dim is None else _STUDENT_CALL)}


def scheduler_for(unet: UNetSpatioTemporalModel, buffers: Mapping[str, Recipe]) -> SchedulerMixin:
    """Return the sampler of a family: DDIM for teachers, consistency sampling for few-step students.

    Args:
        unet: With a guidance projection it is a few-step student.
        buffers: The file's noise schedule, where it has one; checked against the published one.

    Raises:
        ValueError: The file's noise schedule is another one.
    """
    if "betas" in buffers:
        betas = buffers["betas"].load().double()
        expected = _linear_in_the_root(**_BETAS, steps=1000)
        if betas.shape != expected.shape or not torch.allclose(betas, expected, rtol=2e-3):
            raise ValueError(
                f"noise schedule: got {len(betas)} betas from {betas[0]:.6f} to {betas[-1]:.6f}, expected "
                "1000 from 0.000850 to 0.012000 as in every published file: not supported"
            )
    if unet.config.time_cond_proj_dim is not None:
        return LCMScheduler(**_BETAS, beta_schedule="scaled_linear", original_inference_steps=50)
    scale: dict[str, Any] = {"use_scale": "betas" not in buffers or "scale_arr" in buffers}
    if "scale_arr" in buffers:
        scale_arr = buffers["scale_arr"].load().double()
        scale |= {"scale_b": round(scale_arr[-1].item(), 3), "mid_step": len(scale_arr) - 1000}
    return VideoCrafterDDIMScheduler(**_BETAS, **scale)


def scheduler_from_config(config: Mapping[str, Any]) -> SchedulerMixin:
    """Build the scheduler that a configuration names: ours, or one of diffusers.

    Raises:
        ValueError: It names something else.
    """
    name = str(config.get("_class_name"))
    found: Any = getattr(schedulers, name, None) or getattr(diffusers, name, None)
    is_scheduler = inspect.isclass(found) and issubclass(found, SchedulerMixin)
    if not is_scheduler:
        raise ValueError(
            f"scheduler: got class {name!r}, expected VideoCrafterDDIMScheduler or one of diffusers"
        )
    return found.from_config(dict(config))


def schedule_buffers(scheduler: SchedulerMixin) -> dict[str, Recipe]:
    """Compute the tensors of the noise schedule that original checkpoints carry, in float32.

    Reference:
        Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equations 6 and 7.
    """
    config = scheduler.config
    if config.beta_schedule == "scaled_linear" and not config.get("rescale_betas_zero_snr", False):
        betas = _linear_in_the_root(config.beta_start, config.beta_end, config.num_train_timesteps)
    else:
        betas = scheduler.betas.double()
    alphas = 1 - betas
    cumprod = alphas.cumprod(0)
    previous = torch.cat([cumprod.new_ones(1), cumprod[:-1]])
    variance = betas * (1 - previous) / (1 - cumprod)
    falling = torch.linspace(
        1.0, config.get("scale_b", 0.7), config.get("mid_step", 400), dtype=torch.float64
    )
    values = (
        betas,
        cumprod,
        previous,
        cumprod.sqrt(),
        (1 - cumprod).sqrt(),
        (1 - cumprod).log(),
        (1 / cumprod).sqrt(),
        (1 / cumprod - 1).sqrt(),
        variance,
        variance.clamp_min(1e-20).log(),
        betas * previous.sqrt() / (1 - cumprod),
        (1 - previous) * alphas.sqrt() / (1 - cumprod),
        # as long as the original's, whose entries past the last timestep nothing reads
        torch.cat([falling, falling[-1].expand(len(betas))]),
    )
    return {name: recipe_of(value.float()) for name, value in zip(BUFFERS, values, strict=True)}


def _linear_in_the_root(beta_start: float, beta_end: float, steps: int) -> torch.Tensor:
    """The betas that diffusers calls ``scaled_linear``, in float64."""
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64) ** 2
