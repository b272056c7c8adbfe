"""Basics: what no model is needed for. Length, size, rate, exposure, borders, pictures that stand still."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import cv2
import numpy as np
import pydantic

from data_pipeline.clip import Clip, Crop, Drop, Keep, View
from hummingbird.config import config_dataclass

__all__ = ["BasicsConfig", "find_borders"]

_DARK, _BRIGHT = 24, 240
"""Luma below the one is near-black, above the other near-white."""

_FLAT = 2.5
"""A line of a bar has at most this standard deviation along itself, and its mean moves no more than this
between lines and frames. Clear sky and dark corners have gradients; compression leaves bars below 1."""

_EDGE = 8.0
"""Behind a bar the picture begins at once: some frame differs from the bar by this much, on average along the
line."""

_MARGIN = 2
"""Lines of the shrunken picture that are cut off beyond a bar, since resizing and compression smear its
edge."""


@config_dataclass
class BasicsConfig:
    """Thresholds; null turns one off.

    Attributes:
        min_duration_s, max_duration_s: length of the clip.
        min_frames: frames that were decoded.
        min_short_side: pixels, without borders.
        min_aspect, max_aspect: width over height, without borders.
        min_fps, max_fps: measured rate.
        max_dark, max_bright: mean share of near-black (luma below 24) and near-white (above 240) pixels.
        min_contrast: standard deviation of the luma, mean over the frames.
        min_change: largest mean difference of two neighbours among twelve frames, in grey levels; a frozen
            clip has 0.
        borders: what to do about static bars: crop the clip, drop it, or ignore them.
        min_border: a bar is at least this share of the height (top, bottom) or width (sides).
        max_border: more than this share of the picture in bars drops the clip even where they are cropped.
    """

    min_duration_s: float | None = 1.0
    max_duration_s: float | None = None
    min_frames: int | None = 8
    min_short_side: int | None = 180
    min_aspect: float | None = 0.4
    max_aspect: float | None = 2.8
    min_fps: float | None = 7.0
    max_fps: float | None = 121.0
    max_dark: float | None = 0.9
    max_bright: float | None = 0.8
    min_contrast: float | None = 8.0
    min_change: float | None = 0.25
    borders: Literal["crop", "drop", "keep"] = "crop"
    min_border: Annotated[float, pydantic.Field(gt=0.0, lt=0.5)] = 0.02
    max_border: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.6

    @property
    def name(self) -> str:
        return "basics"

    @property
    def views(self) -> tuple[View, ...]:
        return (View(num_frames=12, short_side=256),)

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, clip: Clip) -> Keep | Drop:
        spec = clip.spec
        drop = _first_outside(
            (
                "duration_s",
                spec.end_s - spec.start_s,
                self.min_duration_s,
                self.max_duration_s,
                ("too short", "too long"),
            ),
            ("frames", spec.num_frames, self.min_frames, None, ("too few frames", "")),
            ("fps", spec.fps, self.min_fps, self.max_fps, ("frame rate too low", "frame rate too high")),
        )
        if drop is not None:
            return drop
        images = clip.frames(self.views[0]).images
        luma = np.stack([cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in images])
        crop = (
            None if self.borders == "keep" else find_borders(luma, spec.width, spec.height, self.min_border)
        )
        if crop is not None:
            scale_x, scale_y = luma.shape[2] / spec.width, luma.shape[1] / spec.height
            top, left = round(crop.top * scale_y), round(crop.left * scale_x)
            inside = luma[
                :, top : top + round(crop.height * scale_y), left : left + round(crop.width * scale_x)
            ]
        else:
            crop, inside = Crop(left=0, top=0, width=spec.width, height=spec.height), luma
        scores = _exposure(inside)
        scores["basics_border"] = 1.0 - crop.width * crop.height / (spec.width * spec.height)
        border_limit = 0.0 if self.borders == "drop" else self.max_border
        drop = _first_outside(
            ("basics_border", scores["basics_border"], None, border_limit, ("", "borders")),
            ("short_side", min(crop.width, crop.height), self.min_short_side, None, ("too small", "")),
            (
                "aspect",
                crop.width / crop.height,
                self.min_aspect,
                self.max_aspect,
                ("too narrow", "too wide"),
            ),
            ("basics_dark", scores["basics_dark"], None, self.max_dark, ("", "near-black")),
            ("basics_bright", scores["basics_bright"], None, self.max_bright, ("", "near-white")),
            ("basics_contrast", scores["basics_contrast"], self.min_contrast, None, ("low contrast", "")),
            ("basics_change", scores["basics_change"], self.min_change, None, ("frozen", "")),
        )
        if drop is not None:
            return replace(drop, scores=scores)
        return Keep(scores=scores, crop=crop if scores["basics_border"] > 0 else None)


_Limit = tuple[str, float, float | None, float | None, tuple[str, str]]
"""Name, value, least, most, and the reasons for being below and above."""


def _first_outside(*limits: _Limit) -> Drop | None:
    for name, value, least, most, (below, above) in limits:
        if least is not None and value < least:
            return Drop(reason=f"basics: {below}", detail=f"{name} {value:.4g} is below {least:g}")
        if most is not None and value > most:
            return Drop(reason=f"basics: {above}", detail=f"{name} {value:.4g} is above {most:g}")
    return None


def _exposure(luma: np.ndarray) -> dict[str, float]:
    """``luma`` is ``(n, H, W)`` uint8."""
    frames = luma.astype(np.float32)
    changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2))
    return {
        "basics_brightness": float(frames.mean() / 255),
        "basics_contrast": float(frames.std(axis=(1, 2)).mean()),
        "basics_dark": float((luma < _DARK).mean()),
        "basics_bright": float((luma > _BRIGHT).mean()),
        "basics_change": float(changes.max()) if len(changes) else 0.0,
    }


def find_borders(luma: np.ndarray, width: int, height: int, min_share: float = 0.02) -> Crop | None:
    """The picture inside static bars at its sides, or None where there are none.

    Bars of one even colour are found, blurred copies of the picture and logos beside it are not.

    Args:
        luma: ``(n, H, W)`` uint8 frames spread over the clip, of any size.
        width, height: the size in pixels that the crop refers to.
        min_share: a bar is at least this share of the height or width.
    """
    frames = luma.astype(np.float32)
    # Sides first would read the ends of a letterbox's lines as picture; each direction looks at all of the
    # other.
    top, bottom = _bars(frames, min_share)
    inner = frames[:, top : frames.shape[1] - bottom]
    left, right = _bars(inner.transpose(0, 2, 1), min_share)
    if not (top or bottom):
        inner = frames[:, :, left : frames.shape[2] - right]
        top, bottom = _bars(inner, min_share)
    if not (top or bottom or left or right):
        return None
    scale_x, scale_y = width / frames.shape[2], height / frames.shape[1]
    x, y = _even_up(left * scale_x), _even_up(top * scale_y)
    return Crop(
        left=x,
        top=y,
        width=(width - x - math.ceil(right * scale_x)) // 2 * 2,
        height=(height - y - math.ceil(bottom * scale_y)) // 2 * 2,
    )


def _even_up(value: float) -> int:
    return math.ceil(value / 2) * 2


def _bars(frames: np.ndarray, min_share: float) -> tuple[int, int]:
    """Number of lines (axis 1) to cut off at the beginning and at the end."""
    return _bar(frames, min_share), _bar(frames[:, ::-1], min_share)


def _bar(frames: np.ndarray, min_share: float) -> int:
    means = frames.mean(axis=2)  # (n, lines)
    even = frames.std(axis=2).max(axis=0) < _FLAT
    same = np.abs(means - means[0, 0]).max(axis=0) < _FLAT
    lines = len(even) if (even & same).all() else int(np.argmin(even & same))
    if lines < max(2, min_share * len(even)) or lines + _MARGIN >= len(even) // 2:
        return 0
    behind = np.abs(frames[:, lines + _MARGIN] - means[0, 0]).mean(axis=1).max()
    return lines + _MARGIN if behind >= _EDGE else 0
