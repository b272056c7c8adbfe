"""The arithmetic of few-step consistency sampling that diffusers' ``LCMScheduler`` leaves to its caller.

References:
    Latent Consistency Models, Luo et al. 2023 (arXiv:2310.04378); T2V-Turbo, Li et al. 2024
    (arXiv:2405.18750).
"""

from __future__ import annotations

import math

import torch


def few_step_timesteps(
    num_inference_steps: int, original_steps: int = 50, num_train_timesteps: int = 1000
) -> list[int]:
    """Return the descending timesteps that a few-step model was distilled for.

    The distillation grid is ``k*c - 1`` for ``k = 1..original_steps`` with ``c = num_train_timesteps //
    original_steps``; from its top every ``original_steps // num_inference_steps``-th entry is taken.
    diffusers rounds the spacing differently, so these are handed to it as explicit ``timesteps``.

    Args:
        num_inference_steps: How many, 1 to ``original_steps``. 4 gives ``[999, 759, 519, 279]``.
        original_steps: Size of the distillation grid, 1 to ``num_train_timesteps``.
        num_train_timesteps: Length of the noise schedule.

    Raises:
        ValueError: Where either count is out of its range.
    """
    if not 1 <= original_steps <= num_train_timesteps:
        raise ValueError(
            f"original_steps={original_steps}: expected 1 to num_train_timesteps={num_train_timesteps}"
        )
    if not 1 <= num_inference_steps <= original_steps:
        raise ValueError(
            f"num_inference_steps={num_inference_steps}: a model distilled on {original_steps} steps "
            f"samples in 1 to {original_steps} steps; give a number in that range"
        )
    spacing = num_train_timesteps // original_steps
    grid = [k * spacing - 1 for k in range(original_steps, 0, -1)]
    return grid[:: original_steps // num_inference_steps][:num_inference_steps]


def guidance_scale_embedding(
    guidance_scale: torch.Tensor, embedding_dim: int = 256, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Embed guidance scales as the sinusoids that a guidance-distilled U-Net takes as ``timestep_cond``.

    Unlike the timestep embedding, the order is ``[sin | cos]`` and the frequencies run over ``half - 1``.

    Args:
        guidance_scale: Scales ``w`` of shape (B,), in the convention ``cond + w * (cond - uncond)``.
        embedding_dim: Width of the embedding, at least 4; an odd one is padded with a zero.
        dtype: Type of the result; the angles are computed in float32.

    Returns:
        Embeddings of shape (B, embedding_dim).

    Raises:
        ValueError: Where ``guidance_scale`` is not one-dimensional or the embedding too narrow.
    """
    if guidance_scale.ndim != 1:
        raise ValueError(f"guidance_scale has shape {tuple(guidance_scale.shape)}: expected (B,)")
    if embedding_dim < 4:
        raise ValueError(f"embedding_dim={embedding_dim}: expected at least 4")
    half = embedding_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=guidance_scale.device)
    frequencies = torch.exp(exponent * -(math.log(10000.0) / (half - 1)))
    angles = (guidance_scale.float() * 1000.0)[:, None] * frequencies[None, :]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, embedding_dim % 2)).to(dtype)


def boundary_scalings(
    timesteps: torch.Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(c_skip, c_out)`` of the consistency function, LCM eq. 9, for integer timesteps of any shape.

    They make the model the identity at timestep 0: ``c_skip = 1``, ``c_out = 0``.
    """
    scaled = timesteps.float() * timestep_scaling
    total = scaled**2 + sigma_data**2
    return sigma_data**2 / total, scaled / total**0.5


def predict_original_and_noise(
    model_output: torch.Tensor,
    timesteps: torch.Tensor,
    sample: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str = "epsilon",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a network's output into its estimates of the clean sample and of the noise.

    Args:
        model_output: The network's output, (B, ...).
        timesteps: Integer timesteps, (B,).
        sample: The noisy input, same shape as ``model_output``.
        alphas_cumprod: The noise schedule, (num_train_timesteps,).
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.

    Returns:
        The clean sample and the noise, both shaped like ``sample``.

    Raises:
        ValueError: On an unknown ``prediction_type``.
    """
    alpha_bar = alphas_cumprod.to(sample.device)[timesteps].reshape(-1, *[1] * (sample.ndim - 1))
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (sample - sigma * model_output) / alpha, model_output
    if prediction_type == "sample":
        return model_output, (sample - alpha * model_output) / sigma
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * model_output, alpha * model_output + sigma * sample
    raise ValueError(f"prediction_type={prediction_type!r}: expected 'epsilon', 'sample' or 'v_prediction'")


def ddim_solver_step(
    pred_original: torch.Tensor,
    pred_noise: torch.Tensor,
    index: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    original_steps: int = 50,
    scale_arr: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take one deterministic DDIM step down the distillation grid: the target of consistency distillation.

    Args:
        pred_original: The teacher's clean sample, (B, ...).
        pred_noise: The teacher's noise, same shape.
        index: Position on the ascending grid ``c*k - 1``, (B,), each 0 to ``original_steps - 1``. From
            position 0 the step goes to timestep 0.
        alphas_cumprod: The noise schedule, (num_train_timesteps,).
        original_steps: Size of the grid.
        scale_arr: Scale of the data term by timestep, for a teacher trained with ``use_scale``; then
            ``pred_original`` is the scaled clean sample, as the noise prediction implies it.

    Returns:
        The sample at the previous grid point, shaped like ``pred_original``.
    """
    spacing = len(alphas_cumprod) // original_steps
    index = index.to(pred_original.device)
    current, previous = (index + 1) * spacing - 1, torch.clamp(index * spacing - 1, min=0)
    shape = (-1, *[1] * (pred_original.ndim - 1))
    alpha_bar = alphas_cumprod.to(pred_original.device)[previous].reshape(shape)
    weight = alpha_bar.sqrt()
    if scale_arr is not None:
        scale_arr = scale_arr.to(weight)
        weight = weight * (scale_arr[previous] / scale_arr[current]).reshape(shape)
    return weight * pred_original + (1 - alpha_bar).sqrt() * pred_noise


def pseudo_huber(prediction: torch.Tensor, target: torch.Tensor, c: float = 0.001) -> torch.Tensor:
    """Return the mean of ``sqrt(d^2 + c^2) - c``: like |d| far from zero, like d^2 / 2c near it.

    Reference: Improved Techniques for Training Consistency Models, Song and Dhariwal 2023 (arXiv:2310.14189).
    """
    difference = prediction.float() - target.float()
    return (torch.sqrt(difference**2 + c**2) - c).mean()
