"""What a stage begins with: the pipeline that teaches, and clips encoded as it sees them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from hummingbird import HummingbirdPipeline
from hummingbird.config import ConfigError
from hummingbird.nano import world
from train.buckets import BucketedClips
from train.dataset import CaptionedLatents, LatentClips, MovingShapesLatents, open_latents

EncodedClips = LatentClips | CaptionedLatents | MovingShapesLatents | BucketedClips


def load_model(model: str, setting: str) -> HummingbirdPipeline:
    """A pipeline in float32.

    Args:
        model: an embedded name or a folder.
        setting: what the configuration calls it, for the message.

    Raises:
        FileNotFoundError: it cannot be loaded; the message says how to make one.
    """
    try:
        return HummingbirdPipeline.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{setting}: cannot load {model!r} ({' '.join(str(error).split())[:200]}); expected an embedded "
            "model, or a folder with model_index.json: train/stage1.py leaves one, and `hummingbird convert` "
            "makes one of a checkpoint"
        ) from error


def open_clips(
    latents: str | None,
    teacher: HummingbirdPipeline,
    batch_size: int,
    seed: int,
    num_frames: int,
    caption_dropout: float,
) -> EncodedClips:
    """Clips to train on.

    Args:
        latents: file of ``train/nano.py latents``, or folder of ``train/precompute.py``; None renders clips
            of the moving-shapes world as they are needed.
        teacher: whose autoencoder encoded them, or will.
        batch_size: clips per process and micro-step.
        seed: of their order.
        num_frames: per clip; a folder's buckets have their own.
        caption_dropout: share of captions left out, in [0, 1].

    Raises:
        ConfigError: clips are to be rendered for a teacher that makes another size.
        FileNotFoundError: there are none.
        ValueError: they are not this teacher's.
    """
    if latents is None:
        call, size = teacher.default_call, world.IMAGE_SIZE
        if (call["height"], call["width"]) != (size, size):
            raise ConfigError(
                f"latents: expected a file, because the moving-shapes world has {size}x{size} pixels and "
                f"this teacher makes {call['height']}x{call['width']}"
            )
        return MovingShapesLatents(teacher.vae, batch_size, seed, num_frames, caption_dropout)
    path, config = Path(latents), teacher.unet.config
    data: EncodedClips
    if path.is_dir():
        data = BucketedClips(path, batch_size, seed, caption_dropout)
        sys.stderr.write("".join(f"data: {line}\n" for line in data.report))
        channels = data.channels
        data.check_sizes(2 ** (len(config.channel_mult) - 1))
    else:
        data = open_latents(path, batch_size, seed, num_frames, caption_dropout)
        channels = data.latents.shape[2]
    if channels != config.in_channels:
        raise ValueError(
            f"latents: {latents} has {channels} channels, the teacher {config.in_channels}; encode the clips "
            "with the teacher's autoencoder"
        )
    return data
