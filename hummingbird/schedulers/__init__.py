"""Only what diffusers does not have. Few-step models use diffusers' ``LCMScheduler`` with our timesteps."""

from hummingbird.schedulers.ddim import VideoCrafterDDIMScheduler
from hummingbird.schedulers.few_step import (
    boundary_scalings,
    ddim_solver_step,
    few_step_timesteps,
    guidance_scale_embedding,
    predict_original_and_noise,
    pseudo_huber,
)

__all__ = [
    "VideoCrafterDDIMScheduler",
    "boundary_scalings",
    "ddim_solver_step",
    "few_step_timesteps",
    "guidance_scale_embedding",
    "predict_original_and_noise",
    "pseudo_huber",
]
