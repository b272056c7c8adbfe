"""Training data as pure functions of a batch index."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from hummingbird.nano import world
from hummingbird.video_io import atomic_path

_FRAMES_AT_ONCE = 32
"""Frames that an autoencoder encodes together: of more, a CPU's caches hold too little (docs/log.md)."""


def to_model_range(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1.0


class MovingShapesFrames:
    """Single frames of rendered clips: ``{"pixels": (B, 3, 64, 64) in [-1, 1]}``."""

    def __init__(self, batch_size: int, seed: int, frames_per_clip: int = 4) -> None:
        if batch_size % frames_per_clip:
            raise ValueError(f"batch_size: got {batch_size}, expected a multiple of {frames_per_clip}")
        self.batch_size, self.seed, self.frames_per_clip = batch_size, seed, frames_per_clip

    def batch(self, index: int) -> dict[str, Tensor]:
        """Frames drawn without replacement from fresh clips."""
        rng = np.random.default_rng((self.seed, index))
        count = self.batch_size // self.frames_per_clip
        clips = world.render_clips(world.random_attributes(count, rng), rng)
        picks = np.stack([rng.permutation(world.NUM_FRAMES)[: self.frames_per_clip] for _ in range(count)])
        frames = clips[torch.arange(count)[:, None], torch.from_numpy(picks)].flatten(0, 1)
        return {"pixels": to_model_range(frames)}


class MovingShapesCaptions:
    """Captions of seen combinations: ``{"captions": B strings, "indices": (B, 4) int64}``."""

    _FILLERS = re.compile(r"\b(a|an|the|is|on|over|video|of|to|and|in|from|background)\b|,")

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed

    def batch(self, index: int) -> dict[str, Any]:
        """Random templates and synonyms; words that carry no attribute are sometimes left out or unknown."""
        rng = np.random.default_rng((self.seed, index))
        items = world.random_attributes(self.batch_size, rng)
        captions = [item.random_caption(rng) for item in items]
        for i in np.flatnonzero(rng.uniform(size=len(captions)) < 0.3):
            captions[i] = self._FILLERS.sub(lambda m: str(rng.choice([m[0], "", "some"])), captions[i])
        return {"captions": captions, "indices": torch.tensor([item.indices for item in items])}


def encode_frames(vae: AutoencoderKL, clips: Tensor) -> Tensor:
    """Scaled latents of clips, on the CPU.

    Args:
        vae: frozen.
        clips: uint8 RGB (N, F, H, W, 3).

    Returns:
        float16 (N, F, C, h, w).
    """
    device = next(vae.parameters()).device
    pixels = to_model_range(clips).flatten(0, 1)
    # Not every CPU has instructions for bfloat16, and without them it takes many times longer.
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        modes = [
            vae.encode(part.to(device)).latent_dist.mode().float() for part in pixels.split(_FRAMES_AT_ONCE)
        ]
    shift = vae.config.shift_factor or 0.0  # autoencoders of the SD family have none
    latents = ((torch.cat(modes) - shift) * vae.config.scaling_factor).half().cpu()
    return latents.contiguous().unflatten(0, clips.shape[:2])


def encode_clips(vae: AutoencoderKL, num_clips: int, seed: int, path: Path, batch_size: int = 16) -> None:
    """Renders seen clips and writes their scaled latents.

    Args:
        vae: frozen.
        num_clips: N.
        seed: of the world's generator.
        path: ``.safetensors`` with ``latents`` float16 (N, F, C, h, w) and ``attributes`` uint8 (N, 4).
        batch_size: clips at a time.
    """
    rng = np.random.default_rng(seed)
    latents, attributes = [], []
    for start in tqdm(range(0, num_clips, batch_size), desc="encode clips", mininterval=5.0):
        items = world.random_attributes(min(batch_size, num_clips - start), rng)
        latents.append(encode_frames(vae, world.render_clips(items, rng)))
        attributes += [item.indices for item in items]
    tensors = {"latents": torch.cat(latents), "attributes": torch.tensor(attributes, dtype=torch.uint8)}
    with atomic_path(path) as part:
        save_file(tensors, part)


class MovingShapesLatents:
    """Fresh clips of the moving-shapes world, rendered and encoded as they are asked for.

    Args:
        vae: frozen; batches are encoded where it is.
        batch_size: B.
        seed: draws clips, captions and what is left out.
        num_frames: F, of the whole clip at the rate that this makes.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
    """

    def __init__(
        self, vae: AutoencoderKL, batch_size: int, seed: int, num_frames: int, caption_dropout: float = 0.1
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.batch_size, self.seed, self.num_frames = batch_size, seed, num_frames
        self.caption_dropout = caption_dropout

    def batch(self, index: int) -> dict[str, Any]:
        """As ``LatentClips.batch``."""
        rng = np.random.default_rng((self.seed, index))
        items = world.random_attributes(self.batch_size, rng)
        latents = encode_frames(self.vae, world.render_clips(items, rng, num_frames=self.num_frames))
        captions = [
            "" if rng.uniform() < self.caption_dropout else item.random_caption(rng) for item in items
        ]
        return {
            "latents": latents.float().transpose(1, 2),
            "captions": captions,
            "attributes": items,
            "fps": world.FPS * self.num_frames / world.NUM_FRAMES,
        }


class LatentClips:
    """Encoded clips with captions: ``{"latents": (B, C, F, h, w), "captions", "attributes", "fps"}``.

    Args:
        path: what ``encode_clips`` wrote.
        batch_size: B.
        seed: draws clips, captions and reversals.
        num_frames: F: 16 whole clips; 8 every second frame at half the rate; 1 a random frame.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        reverse: share of clips played backwards with the caption of the opposite motion, where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``num_frames`` does not divide a clip, or the file holds something else.
    """

    def __init__(
        self,
        path: Path,
        batch_size: int,
        seed: int,
        num_frames: int,
        caption_dropout: float = 0.1,
        reverse: float = 0.5,
    ) -> None:
        if num_frames < 1 or world.NUM_FRAMES % num_frames:
            raise ValueError(f"num_frames: got {num_frames}, expected a divisor of {world.NUM_FRAMES}")
        if not path.is_file():
            raise FileNotFoundError(
                f"latents: no file {path}; make it with "
                "`python train/nano.py latents configs/train/nano_latents.yaml`"
            )
        tensors = load_file(path)
        if set(tensors) != {"latents", "attributes"} or tensors["latents"].shape[1] != world.NUM_FRAMES:
            raise ValueError(
                f"latents: {path} does not hold encoded clips of {world.NUM_FRAMES} frames; make it "
                "again with `python train/nano.py latents`"
            )
        self.latents, self.indices = tensors["latents"], tensors["attributes"].tolist()
        self.batch_size, self.seed, self.num_frames = batch_size, seed, num_frames
        self.caption_dropout, self.reverse = caption_dropout, reverse
        names = {a.indices: a for a in world.all_attributes()}
        self.attributes = [names[tuple(row)] for row in self.indices]

    def batch(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        stride = world.NUM_FRAMES // self.num_frames
        latents, items = [], []
        ids = rng.integers(len(self.latents), size=self.batch_size).tolist()
        for row in ids:
            clip, item = self.latents[row], self.attributes[row]
            frames = np.arange(int(rng.integers(stride)), world.NUM_FRAMES, stride)
            opposite = _reversed(item) if rng.uniform() < self.reverse else None
            if opposite is not None:
                frames, item = frames[::-1].copy(), opposite
            latents.append(clip[torch.from_numpy(frames)])
            items.append(item)
        captions = [
            "" if rng.uniform() < self.caption_dropout else item.random_caption(rng) for item in items
        ]
        return {
            "latents": torch.stack(latents).float().transpose(1, 2),
            "captions": captions,
            "attributes": items,
            "fps": world.FPS / stride,
            "ids": ids,
        }


class CaptionedLatents:
    """Encoded clips of curated shards: ``{"latents": (B, C, F, h, w), "captions", "fps"}``.

    Args:
        path: what ``train.shards.encode_shards`` wrote.
        batch_size: B.
        seed: draws clips, their frames and the captions left out.
        num_frames: F consecutive frames from a random start, up to those of a stored clip.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``num_frames`` does not fit, or the file holds something else.
    """

    def __init__(
        self, path: Path, batch_size: int, seed: int, num_frames: int, caption_dropout: float = 0.1
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"latents: no file {path}; make it with `python train/nano.py latents`")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if set(file.keys()) != {"latents"} or not {"captions", "fps"} <= set(metadata):
                raise ValueError(f"latents: {path} does not hold encoded shards; make it again")
            self.latents = file.get_tensor("latents")
        if not 1 <= num_frames <= self.latents.shape[1]:
            raise ValueError(f"num_frames: got {num_frames}, expected 1 to {self.latents.shape[1]}")
        self.captions: list[str] = json.loads(metadata["captions"])
        self.fps = float(metadata["fps"])
        self.batch_size, self.seed, self.num_frames = batch_size, seed, num_frames
        self.caption_dropout = caption_dropout

    def batch(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        rows = rng.integers(len(self.latents), size=self.batch_size)
        starts = rng.integers(self.latents.shape[1] - self.num_frames + 1, size=self.batch_size)
        latents = [
            self.latents[row, start : start + self.num_frames]
            for row, start in zip(rows, starts, strict=True)
        ]
        dropped = rng.uniform(size=self.batch_size) < self.caption_dropout
        captions = ["" if drop else self.captions[row] for row, drop in zip(rows, dropped, strict=True)]
        return {
            "latents": torch.stack(latents).float().transpose(1, 2),
            "captions": captions,
            "fps": self.fps,
            "ids": rows.tolist(),
        }


def open_latents(
    path: Path, batch_size: int, seed: int, num_frames: int, caption_dropout: float
) -> LatentClips | CaptionedLatents:
    """Encoded clips of the moving-shapes world or of anything else, by what the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"latents: no file {path}; make it with `python train/nano.py latents "
            "configs/train/nano_latents.yaml`"
        )
    with safe_open(path, "pt") as file:
        of_the_world = "attributes" in file.keys()  # noqa: SIM118 (not a dict)
    data_class = LatentClips if of_the_world else CaptionedLatents
    return data_class(path, batch_size, seed, num_frames, caption_dropout)


def _reversed(item: world.Attributes) -> world.Attributes | None:
    """What the clip shows when played backwards; None where no caption says it or the triple is unseen."""
    motion = world.REVERSED_MOTION.get(item.motion)
    if motion is None:
        return None
    opposite = world.Attributes(shape=item.shape, color=item.color, motion=motion, background=item.background)
    return None if opposite.is_unseen else opposite
