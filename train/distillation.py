"""The task of stage 1: a smaller network learns what data and a frozen teacher say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import SchedulerMixin
from pydantic import Field
from torch import Tensor

from hummingbird.config import ConfigError, config_dataclass
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.pruning.features import capture_features, level_ends
from train.loop import Batch
from train.losses import (
    Points,
    alpha_sigma,
    check_points,
    convert_prediction,
    diffusion_target,
    feature_distillation,
    guided,
    loss_weight,
    output_distillation,
    piecewise_linear,
)
from train.placement import FrozenDtype, place_frozen
from train.tasks import DenoisingTask, randn_like

logger = logging.getLogger(__name__)


@config_dataclass
class DistillationConfig:
    """What is learnt from whom, and when.

    A weight is a line through (step, weight) points, constant before the first and after the last. Ground
    truth comes first: features of a network that was just pruned are far from the teacher's, and a student
    that chases them from the start learns to imitate damage.
    """

    ground_truth_weight: Points = ((0, 1.0),)
    """Of the squared error against the data."""
    output_weight: Points = ((0, 1.0),)
    """Of the squared distance to the teacher's prediction."""
    feature_weight: Points = ((0, 0.0),)
    """Of the mean over levels of the relative squared distance to the teacher's features."""
    guidance_scale: Annotated[float, Field(ge=1)] | None = None
    """The teacher's prediction is the guided one of this scale; the student then needs no guidance. None
    teaches with and without caption as they are, and the student is guided like the teacher."""
    teacher_dtype: FrozenDtype = "auto"
    """auto is bfloat16 on a GPU and float32 on a CPU; float8 keeps weights in it and computes in auto's."""
    offload_teacher: bool = False
    """Keeps the teacher's weights in the computer's memory and brings them to the GPU layer by layer."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> DistillationConfig:
        for name in ("ground_truth_weight", "output_weight", "feature_weight"):
            check_points(name, getattr(self, name))
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher is ever asked."""
        return any(weight > 0 for _, weight in (*self.output_weight, *self.feature_weight))


# --- features ----------------------------------------------------------------------------------------------


# --- the task ----------------------------------------------------------------------------------------------


class DistillationTask(DenoisingTask):
    """Denoising with a frozen teacher beside it: ground truth, the teacher's outputs and its features.

    Args:
        network: the student.
        teacher: a whole pipeline; its U-Net is frozen, its other parts are the student's, too.
        config: losses and their weights over time.
        scheduler: of the student; its noise schedule is the teacher's wherever the teacher is asked.
        **settings: those of ``DenoisingTask``.

    Raises:
        ConfigError: teacher and student cannot be compared.

    Reference:
        Kim et al. (BK-SDM), arXiv 2305.15798, section 3.2: the three losses. Isobe et al. (AMD Hummingbird),
        arXiv 2503.18559, section 3.1: pruning and distilling a video network.
    """

    def __init__(
        self,
        network: UNetSpatioTemporalModel,
        teacher: HummingbirdPipeline,
        config: DistillationConfig,
        scheduler: SchedulerMixin,
        **settings: Any,
    ) -> None:
        super().__init__(network, teacher.text_encoder, teacher.tokenizer, teacher.vae, scheduler, **settings)
        self.config = config
        self.teacher_pipeline = teacher
        self.teacher: UNetSpatioTemporalModel = teacher.unet.eval().requires_grad_(False)
        self._teacher_is_placed = False
        self.levels = level_ends(network.config), level_ends(self.teacher.config)
        self._check_fit(network)

    def _check_fit(self, network: UNetSpatioTemporalModel) -> None:
        if (
            network.config.time_cond_proj_dim is not None
            or self.teacher.config.time_cond_proj_dim is not None
        ):
            raise ConfigError(
                "teacher and student: expected networks without a guidance embedding; few-step training "
                "is where one learns to use it"
            )
        if not self.config.has_teacher:
            return
        ours, theirs = self.scheduler.alphas_cumprod, self.teacher_pipeline.scheduler.alphas_cumprod
        if len(ours) != len(theirs) or not torch.allclose(ours, theirs):
            raise ConfigError(
                "diffusion.rescale_betas_zero_snr: got another noise schedule than the teacher's, which it "
                "cannot teach on; leave it out, or set output_weight and feature_weight to [[0, 0.0]]"
            )
        if any(weight > 0 for _, weight in self.config.feature_weight):
            widths = [_widths(unet) for unet in (network, self.teacher)]
            if widths[0] != widths[1]:
                raise ConfigError(
                    f"feature_weight: the student's levels have {widths[0]} channels, the teacher's "
                    f"{widths[1]}; expected the same, or feature_weight [[0, 0.0]]"
                )

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """``loss`` is the weighted sum; the parts are logged without their weights.

        ``mse`` and ``output_loss`` are means over examples, ``feature_loss`` the mean over levels; the
        teacher is not asked while both of its weights are zero.
        """
        device = next(self.network.parameters()).device
        step, config = batch["global_step"], self.config
        weights = {
            name: piecewise_linear(points, step)
            for name, points in (
                ("mse", config.ground_truth_weight),
                ("output_loss", config.output_weight),
                ("feature_loss", config.feature_weight),
            )
        }
        latents = batch["latents"].to(device)
        noise = randn_like(latents, generator)
        timesteps = self._timesteps(torch.rand(len(latents), generator=generator, device=device))
        latents = self._shrunk(latents, timesteps)
        alphas_cumprod = self.scheduler.alphas_cumprod.to(device)[timesteps]
        alpha, sigma = alpha_sigma(alphas_cumprod, latents.ndim)
        noisy = alpha * latents + sigma * noise
        prediction_type = self.scheduler.config.prediction_type
        prompt_embeds = self.batch_embeds(batch)

        student = extract_model_from_parallel(self.network)
        ends = self.levels[0] if weights["feature_loss"] else {}
        with capture_features(student, ends) as features:
            prediction = self.network(noisy, timesteps, prompt_embeds, fps=batch["fps"], return_dict=False)[0]
        weight = loss_weight(alphas_cumprod, prediction_type, self.weighting)
        target = diffusion_target(latents, noise, alphas_cumprod, prediction_type)
        error = (prediction.float() - target).square().flatten(1).mean(dim=1)
        parts = {"mse": error.mean()}
        loss = weights["mse"] * (weight * error).mean()
        if weights["output_loss"] or weights["feature_loss"]:
            answer, theirs = self._ask_teacher(noisy, timesteps, prompt_embeds, batch["fps"], alphas_cumprod)
            distance = output_distillation(prediction, answer)
            parts["output_loss"] = distance.mean()
            loss = loss + weights["output_loss"] * (weight * distance).mean()
            if weights["feature_loss"]:
                levels = {name: feature_distillation(features[name], theirs[name]) for name in features}
                parts["feature_loss"] = torch.stack(list(levels.values())).mean()
                parts |= {f"feature_loss/{name}": value for name, value in levels.items()}
                loss = loss + weights["feature_loss"] * parts["feature_loss"]
        return {"loss": loss, **parts}

    @torch.no_grad()
    def _ask_teacher(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, fps: float, alphas_cumprod: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Its prediction, in the student's prediction type, and its features at the ends of levels.

        Features are those of the captions also where the prediction is the guided one.
        """
        teacher = self._place_teacher(noisy.device)
        inputs, embeds = noisy.to(teacher.dtype), prompt_embeds.to(teacher.dtype)
        with capture_features(teacher, self.levels[1]) as features:
            answer = teacher(inputs, timesteps, embeds, fps=fps, return_dict=False)[0].float()
        if self.config.guidance_scale is not None:
            empty = self.encode_prompts([""]).to(embeds).expand_as(embeds)
            blind = teacher(inputs, timesteps, empty, fps=fps, return_dict=False)[0].float()
            answer = guided(answer, blind, self.config.guidance_scale)
        source = self.teacher_pipeline.scheduler.config.prediction_type
        target = self.scheduler.config.prediction_type
        return convert_prediction(answer, noisy, alphas_cumprod, source, target), features

    def _place_teacher(self, device: torch.device) -> UNetSpatioTemporalModel:
        """On first use: to its precision and its place."""
        if not self._teacher_is_placed:
            place_frozen(self.teacher, self.config.teacher_dtype, device, self.config.offload_teacher)
            self._teacher_is_placed = True
        return self.teacher.eval()

    def _shrunk(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Latents as the forward process of VideoCrafter2 shrinks them at noisy timesteps, where it does."""
        if not self.scheduler.config.get("use_scale", False):
            return latents
        scale = self.scheduler.scale_arr.to(latents)[timesteps]
        return latents * scale.view(-1, *[1] * (latents.ndim - 1))

    def sample_reference(self, folder: Path) -> dict[str, float]:
        """The teacher's samples with the seeds of the student's."""
        if not self._teacher_is_placed:  # before it is rounded to bfloat16
            self.teacher.to(next(self.network.parameters()).device)
        return self.sample_videos(self.teacher_pipeline, folder)


def _widths(unet: UNetSpatioTemporalModel) -> tuple[int, ...]:
    return tuple(unet.config.model_channels * mult for mult in unet.config.channel_mult)
