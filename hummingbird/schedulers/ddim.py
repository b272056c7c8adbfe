"""DDIM as VideoCrafter2 samples with it: its timestep grid, and its optional scaling of the data term."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class VideoCrafterDDIMScheduler(DDIMScheduler):
    """DDIM on the grid ``1, 1 + s, 1 + 2s, ...`` with ``s = num_train_timesteps // num_inference_steps``.

    Two things diffusers' class does not do. Where the number of steps does not divide the schedule, the whole
    grid is kept (7 steps become 8) and "previous" means the previous *listed* timestep. With ``use_scale``
    the forward process is ``x_t = sqrt(a_t) * scale_t * x_0 + sqrt(1 - a_t) * noise``, with ``scale`` falling
    linearly from 1 to ``scale_b`` over the first ``mid_step`` timesteps and staying there.

    Args:
        num_train_timesteps: Length of the noise schedule.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: Diffusers' name of the schedule.
        trained_betas: All betas, instead of a schedule.
        prediction_type: What the network predicts.
        use_scale: Whether the data term is scaled.
        scale_b: The scale from ``mid_step`` on, in (0, 1].
        mid_step: Number of timesteps over which the scale falls.

    Reference:
        Denoising Diffusion Implicit Models, Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | np.ndarray | None = None,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        use_scale: bool = False,
        scale_b: float = 0.7,
        mid_step: int = 400,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
            # the parent's own defaults, named so that a saved configuration loads as what it was
            thresholding=False,
            dynamic_thresholding_ratio=0.995,
            clip_sample_range=1.0,
            sample_max_value=1.0,
            rescale_betas_zero_snr=False,
        )
        # As long as the original's (mid_step + num_train_timesteps entries), so that the two can be compared;
        # entries past the last timestep are never read.
        falling = torch.linspace(1.0, scale_b, mid_step, dtype=torch.float64)
        self.scale_arr = torch.cat([falling, torch.full((num_train_timesteps,), scale_b)]).float()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the descending grid of timesteps.

        Args:
            num_inference_steps: Wanted number, 1 to ``num_train_timesteps``; the grid may hold one or a few
                more.
            device: Where the timesteps go.

        Raises:
            ValueError: Where the number is out of range.
        """
        num_train = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= num_train:
            raise ValueError(f"num_inference_steps={num_inference_steps}: expected 1 to {num_train}")
        grid = np.arange(0, num_train, num_train // num_inference_steps, dtype=np.int64) + 1
        # 3 steps would list timestep 1000, which no schedule of 1000 entries has.
        grid = grid[grid < num_train]
        self.num_inference_steps = len(grid)
        self.timesteps = torch.from_numpy(grid[::-1].copy()).to(device)
        self._grid: list[int] = grid.tolist()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, ...]:
        """Go from ``timestep`` to the previous listed one, or to 0 from the first.

        Args:
            model_output: The network's output, (B, ...).
            timestep: Usually one of ``self.timesteps``; 0 to ``num_train_timesteps - 1``.
            sample: The current noisy sample, same shape.
            eta: 0 is deterministic, 1 adds the full DDPM noise.
            use_clipped_model_output: Only False is possible: this scheduler never clips.
            generator: Source of the noise where ``eta > 0``.
            variance_noise: The noise itself, instead of ``generator``.
            return_dict: Whether to return ``DDIMSchedulerOutput``.

        Returns:
            The previous sample and the estimate of the clean one.

        Raises:
            ValueError: Before ``set_timesteps``, on a timestep past the schedule, or on two sources of noise.
        """
        if self.num_inference_steps is None:
            raise ValueError("the timesteps are not set: call set_timesteps(num_inference_steps) first")
        if use_clipped_model_output:
            raise ValueError("use_clipped_model_output=True: this scheduler never clips; leave it False")
        if variance_noise is not None and generator is not None:
            raise ValueError("both generator and variance_noise were given: give one of them")
        t = int(timestep)
        if not 0 <= t < len(self.alphas_cumprod):
            raise ValueError(
                f"timestep={t}: expected 0 to {len(self.alphas_cumprod) - 1}, the schedule's last"
            )
        index = bisect_left(self._grid, t)
        previous = self._grid[index - 1] if index else 0

        alpha_t, alpha_previous = self.alphas_cumprod[t], self.alphas_cumprod[previous]
        x_0, epsilon = self._estimates(model_output, sample, alpha_t)
        sigma = eta * ((1 - alpha_previous) / (1 - alpha_t) * (1 - alpha_t / alpha_previous)) ** 0.5
        if self.config.use_scale:
            x_0 = x_0 / self.scale_arr[t]
        data_weight = alpha_previous**0.5 * (self.scale_arr[previous] if self.config.use_scale else 1.0)
        prev_sample = data_weight * x_0 + (1 - alpha_previous - sigma**2) ** 0.5 * epsilon
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape,
                    generator=generator,
                    device=model_output.device,
                    dtype=model_output.dtype,
                )
            prev_sample = prev_sample + sigma * variance_noise
        if not return_dict:
            return prev_sample, x_0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noise clean samples (B, ...) to ``timesteps`` (B,), with the data term scaled where ``use_scale``
        is on."""
        if self.config.use_scale:
            scale = self.scale_arr.to(original_samples.device, original_samples.dtype)[timesteps]
            original_samples = original_samples * scale.reshape(-1, *[1] * (original_samples.ndim - 1))
        return super().add_noise(original_samples, noise, timesteps)

    def _estimates(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha_t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (scaled clean sample, noise) as the network's output implies them."""
        root, root_noise = alpha_t**0.5, (1 - alpha_t) ** 0.5
        if self.config.prediction_type == "epsilon":
            return (sample - root_noise * model_output) / root, model_output
        if self.config.prediction_type == "v_prediction":
            return root * sample - root_noise * model_output, root * model_output + root_noise * sample
        if self.config.prediction_type == "sample":
            return model_output, (sample - root * model_output) / root_noise
        raise ValueError(
            f"prediction_type={self.config.prediction_type!r}: expected 'epsilon', 'sample' or 'v_prediction'"
        )
