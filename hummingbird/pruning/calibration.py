"""Clips that plans are judged on: latents, captions, and the same noise and timesteps for every plan."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.nano import world
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.schedulers import guidance_scale_embedding
from hummingbird.video_io import iter_frames

__all__ = ["MOVING_SHAPES", "Calibration", "calibrate"]

MOVING_SHAPES = "moving-shapes"
_VIDEO_SUFFIXES = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fixed question to a network: predict the noise of these clips at these timesteps.

    Args:
        noisy: latents with noise ``(N, C, F, h, w)``, float32.
        timesteps: one per clip ``(N,)``.
        target: what should be predicted, as ``noisy``.
        prompt_embeds: ``(N, L, D)``.
        fps: frames per second.
        guidance_scale: for networks that take it as an input.
    """

    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    prompt_embeds: torch.Tensor
    fps: float
    guidance_scale: float

    @torch.no_grad()
    def loss(self, unet: UNetSpatioTemporalModel, batch_size: int = 8) -> float:
        """Mean squared error of the prediction, over clips and elements.

        Args:
            unet: in eval mode.
            batch_size: clips at once.

        Reference:
            Ho et al., arXiv 2006.11239, equation 14.
        """
        device, dtype = unet.device, unet.dtype
        errors = []
        for start in range(0, len(self.noisy), batch_size):
            part = slice(start, start + batch_size)
            embeds = self.prompt_embeds[part].to(device, dtype)
            guidance = None
            if unet.config.time_cond_proj_dim is not None:
                scales = torch.full((len(embeds),), self.guidance_scale, device=device)
                guidance = guidance_scale_embedding(scales, unet.config.time_cond_proj_dim, dtype=dtype)
            prediction = unet(
                self.noisy[part].to(device, dtype),
                self.timesteps[part].to(device),
                embeds,
                fps=self.fps,
                timestep_cond=guidance,
                return_dict=False,
            )[0]
            error = (prediction.float() - self.target[part].to(device)).square()
            errors.append(error.flatten(1).mean(dim=1).double().cpu())
        return float(torch.cat(errors).mean())


def calibrate(pipe: HummingbirdPipeline, source: str, num_clips: int, seed: int) -> Calibration:
    """Gather clips and noise them: timesteps spread evenly over the schedule, each clip at one of them.

    Args:
        pipe: its VAE, text encoder, scheduler and call defaults (frames, size, rate) are used.
        source: ``moving-shapes`` (clips rendered here), a folder of videos each with its caption in a text
            file of the same name, or a ``.safetensors`` file of latents (``latents`` (N, F, C, h, w); in its
            metadata ``captions`` as JSON, and ``fps``).
        num_clips: N; a folder or file gives its first ones.
        seed: of rendering and noise.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source lacks captions or clips, or does not fit the model.
    """
    if source == MOVING_SHAPES:
        latents, captions, fps = _rendered(pipe, num_clips, seed)
    elif source.endswith(".safetensors") and Path(source).is_file():
        latents, captions, fps = _stored(pipe, Path(source), num_clips)
    elif Path(source).is_dir():
        latents, captions, fps = _decoded(pipe, Path(source), num_clips)
    else:
        raise FileNotFoundError(
            f"data: got {source!r}, expected {MOVING_SHAPES}, a folder of videos with captions, or a "
            ".safetensors file of latents"
        )
    return _noised(pipe, latents, captions, fps, seed)


def _noised(
    pipe: HummingbirdPipeline, latents: torch.Tensor, captions: list[str], fps: float, seed: int
) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    count, scheduler = len(latents), pipe.scheduler
    strata = (torch.randperm(count, generator=generator) + 0.5) / count
    timesteps = (strata * scheduler.config.num_train_timesteps).long()
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: latents,
        "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
    }
    with torch.no_grad():
        prompt_embeds, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
    return Calibration(
        noisy=scheduler.add_noise(latents, noise, timesteps),
        timesteps=timesteps,
        target=targets[scheduler.config.prediction_type](),
        prompt_embeds=prompt_embeds,
        fps=fps,
        guidance_scale=float(pipe.default_call["guidance_scale"]),
    )


def _rendered(pipe: HummingbirdPipeline, num_clips: int, seed: int) -> tuple[torch.Tensor, list[str], float]:
    call = pipe.default_call
    size = (call["height"], call["width"])
    if size != (world.IMAGE_SIZE, world.IMAGE_SIZE):
        raise ValueError(
            f"data: {MOVING_SHAPES} has {world.IMAGE_SIZE}x{world.IMAGE_SIZE} pixels, this model makes "
            f"{size[0]}x{size[1]}; give --data a folder of videos with captions"
        )
    rng = np.random.default_rng(seed)
    items = world.random_attributes(num_clips, rng)
    captions = [item.random_caption(rng) for item in items]
    clips = world.render_clips(items, rng, num_frames=int(call["num_frames"]))
    return _encode(pipe, clips), captions, world.FPS * call["num_frames"] / world.NUM_FRAMES


def _decoded(
    pipe: HummingbirdPipeline, folder: Path, num_clips: int
) -> tuple[torch.Tensor, list[str], float]:
    call = pipe.default_call
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _VIDEO_SUFFIXES)
    latents, captions = [], []
    for path in paths:
        text = path.with_suffix(".txt")
        if not text.is_file():
            raise FileNotFoundError(f"data: {path} has no caption, expected one in {text}")
        frames = _first_frames(path, call)
        if frames is not None:
            latents.append(_encode(pipe, torch.from_numpy(frames)[None]))
            captions.append(text.read_text(encoding="utf-8").strip())
        if len(latents) == num_clips:
            break
    if not latents:
        raise ValueError(
            f"data: {folder} has {len(paths)} videos ({', '.join(_VIDEO_SUFFIXES)}), none of them with "
            f"{call['num_frames']} frames at {call['fps']} per second; give longer ones"
        )
    return torch.cat(latents), captions, float(call["fps"])


def _first_frames(path: Path, call: dict[str, Any]) -> np.ndarray | None:
    """The model's number of frames at its rate, scaled and cut to its size; None where too short."""
    images: list[np.ndarray] = []
    with closing(iter_frames(path)) as frames:
        for frame in frames:
            if frame.time_s * call["fps"] >= len(images) - 1e-3:
                scale = max(call["height"] / frame.height, call["width"] / frame.width)
                width, height = math.ceil(frame.width * scale), math.ceil(frame.height * scale)
                top, left = (height - call["height"]) // 2, (width - call["width"]) // 2
                image = frame.rgb(size=(width, height))
                images.append(image[top : top + call["height"], left : left + call["width"]])
            if len(images) == call["num_frames"]:
                return np.stack(images)
    return None


def _stored(pipe: HummingbirdPipeline, path: Path, num_clips: int) -> tuple[torch.Tensor, list[str], float]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "latents" not in file.keys() or not {"captions", "fps"} <= set(metadata):  # noqa: SIM118
            raise ValueError(
                f"data: {path} has {sorted(file.keys())} and metadata {sorted(metadata)}, expected the "
                "tensor latents and metadata captions and fps"
            )
        latents = file.get_slice("latents")[:num_clips].float().transpose(1, 2)  # (N, C, F, h, w)
    captions = json.loads(metadata["captions"])[:num_clips]
    if latents.ndim != 5 or latents.shape[1] != pipe.unet.config.in_channels or len(captions) != len(latents):
        raise ValueError(
            f"data: {path} has latents of shape {tuple(latents.transpose(1, 2).shape)} and {len(captions)} "
            f"captions, expected (clips, frames, {pipe.unet.config.in_channels}, height, width) and one each"
        )
    return latents, captions, float(metadata["fps"])


@torch.no_grad()
def _encode(pipe: HummingbirdPipeline, clips: torch.Tensor) -> torch.Tensor:
    """Scaled latents (N, C, F, h, w) in float32, on the CPU, of uint8 RGB clips (N, F, H, W, 3)."""
    vae = pipe.vae
    shift = vae.config.shift_factor or 0.0
    encoded = []
    for clip in clips:  # one at a time, so that memory does not grow with their number
        pixels = clip.movedim(-1, 1).float() / 127.5 - 1.0
        mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        encoded.append(((mode - shift) * vae.config.scaling_factor).cpu())
    return torch.stack(encoded).transpose(1, 2)
