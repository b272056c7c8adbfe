"""Rewards as a loss of latents: a few frames decoded with gradients, several rewards, weights that change.

Reference:
    Li et al., T2V-Turbo, arXiv 2405.18750.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hummingbird.rewards.base import Reward
from hummingbird.rewards.frame_selection import FrameSelection

_GRADIENT_SCALE = 4096.0
"""Of a reward's gradient on its way to the latents, where small ones vanish in half precision. A power of two
changes no bit of the others."""


def decode_frames(
    vae: Any,
    latents: Tensor,
    frame_indices: Sequence[int],
    *,
    chunk_size: int = 1,
    use_checkpoint: bool = True,
) -> Tensor:
    """Decode some frames of latents as a reward sees them, with gradients.

    Args:
        vae: Diffusers' autoencoder, frozen.
        latents: (B, C, F, h, w), scaled as the U-Net sees them.
        frame_indices: n of them, in [0, F); one that is given twice is decoded once.
        chunk_size: Frames decoded at once, at least 1.
        use_checkpoint: Whether what the decoder computed is forgotten and computed again for the gradient:
            memory of one chunk in place of all, for one more decode.

    Returns:
        Frames (B, n, 3, H, W) in [0, 1], in the autoencoder's type. Outside of the range the gradient is
        zero.

    Raises:
        ValueError: An index or a chunk size out of range.
    """
    num_frames = latents.shape[2]
    if not frame_indices or not all(0 <= index < num_frames for index in frame_indices):
        raise ValueError(f"frame_indices: got {list(frame_indices)}, expected some in [0, {num_frames})")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
    distinct = sorted(set(frame_indices))
    scaled = latents[:, :, distinct] / vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None)
    if shift is not None:
        scaled = scaled + shift
    scaled = rearrange(scaled, "b c f h w -> (b f) c h w").to(vae.dtype)

    def decode(part: Tensor) -> Tensor:
        return (vae.decode(part, return_dict=False)[0] / 2 + 0.5).clamp(0.0, 1.0)

    parts = [
        # A decoder draws nothing, so there is no random state to keep.
        checkpoint(decode, part, use_reentrant=False, preserve_rng_state=False)
        if use_checkpoint
        else decode(part)
        for part in scaled.split(chunk_size)
    ]
    frames = torch.cat(parts).unflatten(0, (len(latents), len(distinct)))
    return frames[:, [distinct.index(index) for index in frame_indices]]


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """A weight that is ``start`` until step ``first_step``, ``end`` from ``last_step`` on, linear between.

    Args:
        end: The weight in the end, at least 0.
        start: The weight before.
        first_step: Where it begins to change.
        last_step: Where it is ``end``; at least ``first_step``.

    Raises:
        ValueError: A value out of its range.
    """

    end: float
    start: float = 0.0
    first_step: int = 0
    last_step: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0:
            raise ValueError(f"weight: got {self.start} to {self.end}, expected at least 0")
        if not 0 <= self.first_step <= self.last_step:
            raise ValueError(
                f"first_step, last_step: got {self.first_step}, {self.last_step}, expected 0 <= first <= last"
            )

    def at(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        if step >= self.last_step:
            return self.end
        if step <= self.first_step:
            return self.start
        share = (step - self.first_step) / (self.last_step - self.first_step)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class RewardTerm:
    """One reward of a weighted sum.

    Args:
        reward: The reward.
        weight: Of its mean score. The original uses 1 for HPSv2.1 and 2 for InternVideo2.
        frame_selection: Frames decoded for it; the reward's own rule where left out.
    """

    reward: Reward
    weight: WeightSchedule
    frame_selection: FrameSelection | None = None


def reward_loss(
    terms: Sequence[RewardTerm],
    vae: Any,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    step: int,
    generator: torch.Generator,
    chunk_size: int = 1,
    use_checkpoint: bool = True,
    embed_prompts: Callable[[Reward, Sequence[str]], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative weighted sum of mean scores of latents.

    Each reward's gradient is taken down to the latents before the next one starts: what is kept for gradients
    is that of one reward at a time, and the norm of each is known. The result carries their sum to whatever
    made the latents, with the gradient that the plain sum would have.

    Args:
        terms: Which rewards; a term whose weight is 0 at this step is not computed.
        vae: Diffusers' autoencoder, frozen.
        latents: (B, C, F, h, w), a prediction of clean latents, scaled as the U-Net sees them.
        prompts: B of them.
        step: For the schedules, counted from 0.
        generator: Draws frames and crops.
        chunk_size: See ``decode_frames``.
        use_checkpoint: See ``decode_frames``.
        embed_prompts: Where a reward's features of prompts come from, such as a cache; its own method where
            left out.

    Returns:
        The loss, a float32 scalar, and figures by name, without gradients: ``reward/NAME`` the mean score,
        ``reward_weight/NAME``, ``reward_grad_norm/NAME`` the norm of the weighted gradient on the latents.
    """
    figures: dict[str, Tensor] = {}
    total = torch.zeros((), device=latents.device)
    gradient = torch.zeros_like(latents, dtype=torch.float32)
    for term in terms:
        name, weight = term.reward.name, term.weight.at(step)
        figures[f"reward_weight/{name}"] = torch.tensor(weight, device=latents.device)
        if weight == 0:
            continue
        leaf = latents.detach().requires_grad_()
        with torch.enable_grad():
            selection = term.frame_selection or term.reward.frame_selection
            indices = selection.indices(latents.shape[2], generator)
            frames = decode_frames(vae, leaf, indices, chunk_size=chunk_size, use_checkpoint=use_checkpoint)
            text = (
                term.reward.embed_prompts(prompts)
                if embed_prompts is None
                else embed_prompts(term.reward, prompts)
            )
            score = term.reward(frames, prompt_embeds=text, generator=generator).mean()
            (part,) = torch.autograd.grad(-weight * score * _GRADIENT_SCALE, leaf)
        part = part.float() / _GRADIENT_SCALE
        total = total - weight * score.detach()
        gradient = gradient + part
        figures[f"reward/{name}"] = score.detach()
        figures[f"reward_grad_norm/{name}"] = part.norm()
    # Adds nothing to the value; its derivative with respect to the latents is the gradient.
    return total + (gradient * (latents.float() - latents.detach().float())).sum(), figures
