"""From frames in [0, 1] to what a reward's network was trained on, differentiable all the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How frames become the square input of a network. Every reward has its original's values as default.

    Args:
        size: Side of the square, in pixels, at least 1.
        resize: "letterbox" scales the long side to ``size`` and pads with black before the normalisation;
            "stretch" scales both sides to ``size`` and does not keep the aspect ratio; "short_side" scales
            the short side to ``size`` and crops.
        crop: Of "short_side": "random" draws one place for all frames and videos of a call, "center" takes
            the middle, a pair is (top, left) in pixels of the resized frame.
        antialias: Whether shrinking filters first. torchvision did not for tensors before 0.17 and does
            since; scores move by up to 0.01.
        mean: Of the normalisation, per channel R, G, B, for values in [0, 1].
        std: Likewise.

    Raises:
        ValueError: A value out of its range.
    """

    size: int = 224
    resize: Literal["letterbox", "stretch", "short_side"] = "letterbox"
    crop: Literal["random", "center"] | tuple[int, int] = "random"
    antialias: bool = True
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: got {self.size}, expected at least 1")
        if self.resize not in ("letterbox", "stretch", "short_side"):
            raise ValueError(f"resize: got {self.resize!r}, expected letterbox, stretch or short_side")
        if self.crop not in ("random", "center") and (isinstance(self.crop, str) or len(self.crop) != 2):
            raise ValueError(f"crop: got {self.crop!r}, expected random, center or (top, left)")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean, std: got {self.mean}, {self.std}, expected three numbers each, std over 0"
            )


def preprocess(frames: Tensor, options: Preprocessing, generator: torch.Generator | None = None) -> Tensor:
    """Resize, pad or crop, normalise. Bicubic overshoot is not clamped, as in the originals.

    Args:
        frames: (..., 3, H, W) in [0, 1], any floating type.
        options: How.
        generator: Draws the random crop, first top and then left; torch's global one where left out.

    Returns:
        float32 (..., 3, size, size).

    Raises:
        ValueError: Where a fixed crop does not lie within the resized frame.
    """
    leading, size = frames.shape[:-3], options.size
    images = frames.reshape(-1, *frames.shape[-3:]).float()
    if options.resize == "letterbox":
        images = _letterbox(images, options)
    elif options.resize == "stretch":
        images = _resize(images, size, size, options.antialias)
    else:
        height, width = images.shape[-2:]
        scale = size / min(height, width)
        images = _resize(images, round(height * scale), round(width * scale), options.antialias)
        top, left = _crop_place(images.shape[-2] - size, images.shape[-1] - size, options.crop, generator)
        images = images[..., top : top + size, left : left + size]
    mean = torch.tensor(options.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(options.std, device=images.device).view(3, 1, 1)
    return ((images - mean) / std).reshape(*leading, 3, size, size)


def _resize(images: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(
        images, size=(height, width), mode="bicubic", align_corners=False, antialias=antialias
    )


def _letterbox(images: Tensor, options: Preprocessing) -> Tensor:
    """The original pads only what it has resized, and fails on other frames that are not square."""
    height, width = images.shape[-2:]
    scale = options.size / max(height, width)
    images = _resize(images, max(1, round(height * scale)), max(1, round(width * scale)), options.antialias)
    missing_y, missing_x = options.size - images.shape[-2], options.size - images.shape[-1]
    top, left = missing_y // 2, missing_x // 2
    return F.pad(images, (left, missing_x - left, top, missing_y - top))


def _crop_place(
    spare_y: int,
    spare_x: int,
    crop: Literal["random", "center"] | Sequence[int],
    generator: torch.Generator | None,
) -> tuple[int, int]:
    """Top and left of the crop; the draws are those of torchvision's RandomCrop."""
    if spare_y == 0 and spare_x == 0:
        return 0, 0
    if crop == "center":
        return round(spare_y / 2), round(spare_x / 2)
    if crop == "random":
        device = generator.device if generator is not None else None
        top, left = (
            int(torch.randint(0, spare + 1, (1,), generator=generator, device=device))
            for spare in (spare_y, spare_x)
        )
        return top, left
    assert not isinstance(crop, str)  # checked by Preprocessing
    top, left = crop
    if not (0 <= top <= spare_y and 0 <= left <= spare_x):
        raise ValueError(
            f"crop: got (top, left) = ({top}, {left}), expected at most ({spare_y}, {spare_x}) for frames of "
            "this size"
        )
    return top, left


def preprocessing_from_config(default: Preprocessing, config: Mapping[str, Any]) -> Preprocessing:
    """Replace what a configuration says about preprocessing.

    Args:
        default: The reward's own.
        config: May hold ``antialias`` (true or false; other values say nothing), ``mean`` and ``std`` or
            ``normalize_mean`` and ``normalize_std``, and ``crop_top_left``.
    """
    changes: dict[str, Any] = {}
    if isinstance(config.get("antialias"), bool):
        changes["antialias"] = config["antialias"]
    for name in ("mean", "std"):
        value = config.get(f"normalize_{name}", config.get(name))
        if value is not None:
            changes[name] = tuple(float(number) for number in value)
    if config.get("crop_top_left") is not None:
        top, left = config["crop_top_left"]
        changes["crop"] = (int(top), int(left))
    return replace(default, **changes)
