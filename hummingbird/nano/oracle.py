"""Names the shape, colour, motion and background of a clip of the moving-shapes world, from its frames alone.

The judge never sees the prompt. It segments the one object against a background that may fade vertically,
compares the outline with the five forms, and regresses the object's path on the ten motions. It answers as
a person would: blur, noise and colour drift that leave a clip readable are forgiven; what a clip does not
clearly show is *unclear*, attribute by attribute. So a still has no motion but keeps its other names, a
shape that changes colour has no colour, and of several objects, of one that comes and goes, and of noise
nothing is named but perhaps the background.

    verdict = judge(frames)                 # uint8 (F, H, W, 3)
    verdict.shape, verdict.color, verdict.motion, verdict.background, verdict.reason

Lengths are in pixels of a picture whose shorter side is 64; other sizes are rescaled first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hummingbird.nano.world import (
    ATTRIBUTES,
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOR_RGB,
    COLORS,
    SHAPES,
    Attributes,
)

__all__ = ["UNCLEAR", "Measurements", "Verdict", "judge", "judge_batch"]

UNCLEAR = "unclear"

Floats = NDArray[np.float32]

_SIDE = 64  # shorter side after rescaling; every limit below is in its pixels
_MIN_MOTION_FRAMES = 6

# Background and segmentation, in units of 8-bit RGB distance.
_MIN_CONTRAST = 45.0  # an object nearer to the background than this is not seen
_MASK_DISTANCE = 35.0
_MAX_BACKGROUND_DISTANCE = 48.0
_MAX_BACKGROUND_SPREAD = 22.0
_MAX_BACKGROUND_DRIFT = 32.0
_MAX_BACKGROUND_SLOPE = 95.0
_MAX_CLUTTER = 0.5  # share of pixels that are not background
_MIN_AREA = 30.0
_MAX_AREA_SHARE = 0.6
_MIN_EXTRA_AREA = 12
_MAX_EXTRA = 0.15  # area of everything else over the object's

# Colour of the object.
_MAX_COLOR_DISTANCE = 62.0
_MIN_COLOR_MARGIN = 6.0
_MAX_COLOR_WANDER = 45.0  # of single frames from the clip's colour
_IMPURE_DISTANCE = 55.0
_MAX_IMPURE = 0.12
_MAX_FRAME_IMPURE = 0.25

# Form.
_PATCH = 40
_PATCH_REACH = 1.9  # half width of the compared window, in radii of the disc of the same area
_MIN_FORM_SCORE = 0.94
_MIN_FRAME_FORM_SCORE = 0.90
_MIN_FORM_MARGIN = 0.015
_MAX_FORM_DOUBT = 0.02  # by how much another form may win in a frame that does not count as different
_MAX_END_DOUBT = 0.035  # the same for the first and the last quarter
_MIN_FORM_RADIUS = 7.0  # smaller ones do not vote on whether the form stays

# Motion.
_MIN_TRAVEL = 8.0
_MAX_ANGLE_DEG = 21.0
_MIN_SCALE_RATIO = 1.6
_MAX_STEADY_RATIO = 1.4
_MAX_SIZE_RIPPLE = 0.16
_MAX_OTHER_TRAVEL = 8.0
_MIN_HOP = 8.0
_ORBIT_RADIUS = (6.0, 13.0)
_MAX_RESIDUAL = 1.6
_MAX_JUMP = 5.0
_MAX_STEP_CHANGE = 4.5  # of one step between frames from the mean step, where the pace is even


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What the verdict rests on; NaN or empty where nothing could be measured."""

    color_rgb: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    background_rgb: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    background_spread: float = math.nan
    """How far background pixels lie from the fitted background (8-bit RGB distance, root mean square)."""
    shape_scores: dict[str, float] = field(default_factory=dict)
    """Correlation of the outline with each form, in [-1, 1]."""
    centers: tuple[tuple[float, float], ...] = ()
    """(x, y) of the object in each frame, in pixels of a 64-pixel picture."""
    radii: tuple[float, ...] = ()
    """Radius of the disc of the same area in each frame."""
    motion_fit: dict[str, float] = field(default_factory=dict)
    """Travel, direction, scale ratio, hop, orbit radius and the residuals of those fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is seen in a clip. Each attribute is one of the world's values or ``"unclear"``."""

    shape: str = UNCLEAR
    color: str = UNCLEAR
    motion: str = UNCLEAR
    background: str = UNCLEAR
    reason: str = ""
    """Why something is unclear; empty when everything is clear."""
    measurements: Measurements = field(default_factory=Measurements, compare=False, repr=False)

    @property
    def is_clear(self) -> bool:
        """True when all four attributes have a name."""
        return all(getattr(self, name) != UNCLEAR for name in ATTRIBUTES)

    def matches(self, attributes: Attributes) -> dict[str, bool]:
        """Which attributes are as asked for; ``"all"`` is true where the four are."""
        hits = {name: getattr(self, name) == getattr(attributes, name) for name in ATTRIBUTES}
        return {**hits, "all": all(hits.values())}


def judge_batch(frames: Tensor | NDArray[Any]) -> list[Verdict]:
    """Judges several clips, each on its own.

    Args:
        frames: (B, F, H, W, 3) RGB, uint8 or floating point in [0, 1].
    """
    if frames.ndim != 5:
        raise ValueError(f"frames: got shape {tuple(frames.shape)}, expected (B, F, H, W, 3)")
    return [judge(clip) for clip in frames]


def judge(frames: Tensor | NDArray[Any]) -> Verdict:
    """Names the four attributes of one clip.

    Args:
        frames: (F, H, W, 3) RGB, uint8 or floating point in [0, 1]. With fewer than six frames the motion is
            always unclear; the rest can still be named.

    Raises:
        ValueError: other axes, element type or range.
    """
    video = _planes(frames)
    backdrop = _fit_background(video)
    background, problem = _name_background(backdrop)
    rgb = _triple(backdrop.top)
    if backdrop.is_noise:
        seen = Measurements(background_rgb=rgb, background_spread=backdrop.spread)
        return Verdict(reason=problem, measurements=seen)
    objects = _segment(video, backdrop)
    if isinstance(objects, str):
        seen = Measurements(background_rgb=rgb, background_spread=backdrop.spread)
        return Verdict(background=background, reason=_join(problem, objects), measurements=seen)

    color, color_problem = _name_color(objects)
    shape, shape_problem, scores = _name_shape(objects)
    motion, motion_problem, fit = _name_motion(objects.centers, objects.radii)
    measurements = Measurements(
        color_rgb=_triple(np.median(objects.colors, axis=0)),
        background_rgb=rgb,
        background_spread=backdrop.spread,
        shape_scores={name: round(float(score), 4) for name, score in zip(SHAPES, scores, strict=True)},
        centers=tuple((round(float(x), 2), round(float(y), 2)) for x, y in objects.centers),
        radii=tuple(round(float(r), 2) for r in objects.radii),
        motion_fit={name: round(value, 3) for name, value in fit.items()},
    )
    return Verdict(
        shape=shape,
        color=color,
        motion=motion,
        background=background,
        reason=_join(problem, color_problem, shape_problem, motion_problem),
        measurements=measurements,
    )


def _join(*problems: str) -> str:
    return "; ".join(dict.fromkeys(problem for problem in problems if problem))


def _triple(rgb: Floats) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 1) for value in rgb)
    return red, green, blue


def _planes(frames: Tensor | NDArray[Any]) -> Floats:
    """Frames as float32 (3, F, h, w) in [0, 255], the shorter side 64."""
    if isinstance(frames, Tensor):
        frames = frames.detach().cpu()
        array = (frames.float() if frames.is_floating_point() else frames).numpy()  # numpy has no bfloat16
    else:
        array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"frames: got shape {array.shape}, expected (F, H, W, 3)")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"frames: got {array.dtype}, expected uint8 or floating point in [0, 1]")
        if not np.isfinite(array).all() or array.min() < -1e-3 or array.max() > 1.0 + 1e-3:
            raise ValueError("frames: got values outside [0, 1] or not finite; scale them, or pass uint8")
        array = array.astype(np.float32) * 255.0
    height, width = array.shape[1:3]
    if min(height, width) != _SIDE:
        ratio = _SIDE / min(height, width)
        size = (max(_SIDE, round(width * ratio)), max(_SIDE, round(height * ratio)))
        method = cv2.INTER_AREA if ratio < 1.0 else cv2.INTER_LINEAR
        array = np.stack([cv2.resize(frame, size, interpolation=method) for frame in array])
    # A touch of blur costs an edge nothing and takes two thirds of pixel noise away.
    array = np.stack([cv2.GaussianBlur(frame, (3, 3), 0.8) for frame in array])
    return np.ascontiguousarray(array.transpose(3, 0, 1, 2), dtype=np.float32)


# --------------------------------------------------------------------------------------- background


@dataclass(frozen=True, kw_only=True, slots=True)
class _Backdrop:
    rows: Floats  # (3, h): the fitted colour of each row
    spread: float
    drift: float
    clutter: float

    @property
    def top(self) -> Floats:
        return self.rows[:, :4].mean(axis=1)

    @property
    def is_noise(self) -> bool:
        return self.spread > _MAX_BACKGROUND_SPREAD or self.clutter > _MAX_CLUTTER


def _fit_background(video: Floats) -> _Backdrop:
    """A straight vertical fade per channel: first through the side columns, then through all that is near."""
    _, _, height, _ = video.shape
    sides = np.concatenate([video[..., :3], video[..., -3:]], axis=-1)  # (3, F, h, 6)
    medians = np.median(sides.transpose(0, 2, 1, 3).reshape(3, height, -1), axis=-1)
    rows = _fit_line(medians, np.ones(height, dtype=np.float32))
    for limit in (60.0, 40.0):
        near = _squared_distance(video, rows) < limit * limit  # (F, h, w)
        count = near.sum(axis=(0, 2), dtype=np.float32)
        if count.sum() < 0.05 * near.size:
            return _Backdrop(rows=rows, spread=math.inf, drift=math.inf, clutter=1.0)
        means = np.einsum("cfhw,fhw->ch", video, near.astype(np.float32)) / np.maximum(count, 1.0)
        rows = _fit_line(means, count)

    squared = _squared_distance(video, rows)
    near = squared < 40.0 * 40.0
    weight = near.astype(np.float32)
    # The side columns of single frames tell whether the background changes on the way.
    offsets = np.median((sides - rows[:, None, :, None]).reshape(3, video.shape[1], -1), axis=-1)  # (3, F)
    spread = math.sqrt(float((squared * weight).sum() / weight.sum()))
    return _Backdrop(
        rows=rows,
        spread=spread,
        drift=float(np.linalg.norm(offsets, axis=0).max()),
        clutter=1.0 - float(weight.mean()),
    )


def _fit_line(values: Floats, weights: Floats) -> Floats:
    """Weighted straight line through (3, h) values, with rows far from it discounted twice."""
    height = values.shape[1]
    basis = np.stack([np.ones(height), np.linspace(-1.0, 1.0, height)], axis=1)
    weight = weights.astype(np.float64)
    line = values.astype(np.float64)
    for _ in range(3):
        normal = basis.T @ (weight[:, None] * basis) + 1e-6 * np.eye(2)
        line = (basis @ np.linalg.solve(normal, basis.T @ (weight[:, None] * values.T))).T
        error = np.linalg.norm(values - line, axis=0)
        weight = weights / (1.0 + (error / 6.0) ** 2)
    return line.astype(np.float32)


def _squared_distance(video: Floats, rows: Floats) -> Floats:
    total = np.zeros(video.shape[1:], dtype=np.float32)
    for plane, row in zip(video, rows, strict=True):
        difference = plane - row[:, None]
        difference *= difference
        total += difference
    return total


def _name_background(backdrop: _Backdrop) -> tuple[str, str]:
    if backdrop.is_noise:
        return UNCLEAR, "background: no plain background"
    if backdrop.drift > _MAX_BACKGROUND_DRIFT:
        return UNCLEAR, f"background: changes on the way (by {backdrop.drift:.0f})"
    slope = float(np.linalg.norm(backdrop.rows[:, -1] - backdrop.rows[:, 0]))
    if slope > _MAX_BACKGROUND_SLOPE:
        return UNCLEAR, f"background: fades by {slope:.0f}, more than one colour"
    return _nearest(backdrop.top, BACKGROUND_RGB, BACKGROUNDS, "background", _MAX_BACKGROUND_DISTANCE)


def _nearest(rgb: Floats, palette: Floats, names: Sequence[str], what: str, limit: float) -> tuple[str, str]:
    distances = np.linalg.norm(palette - rgb, axis=1)
    first, second = np.argsort(distances)[:2]
    if distances[first] > limit or distances[second] - distances[first] < _MIN_COLOR_MARGIN:
        shown = ",".join(f"{value:.0f}" for value in rgb)
        return UNCLEAR, f"{what}: {shown} is {distances[first]:.0f} from {names[first]}, the nearest name"
    return names[first], ""


# ------------------------------------------------------------------------------------------- object


@dataclass(frozen=True, kw_only=True, slots=True)
class _Objects:
    """The one object of every frame."""

    colors: Floats  # (F, 3)
    impure: Floats  # (F,) share of the object's pixels that are neither its colour nor a blend of it
    centers: Floats  # (F, 2)
    radii: Floats  # (F,) of the disc of the same area
    patches: Floats  # (F, _PATCH, _PATCH) coverage, centred and scaled to the same area


@dataclass(frozen=True, kw_only=True, slots=True)
class _Object:
    """The object of one frame, fields as in ``_Objects``."""

    color: Floats
    impure: float
    center: tuple[float, float]
    radius: float
    patch: Floats
    extra: float  # area of further objects over that of this one


def _segment(video: Floats, backdrop: _Backdrop) -> _Objects | str:
    """Finds the object in every frame, or says in one line why there is not exactly one."""
    num_frames = video.shape[1]
    difference = video - backdrop.rows[:, None, :, None]
    squared = np.square(difference).sum(axis=0)  # (F, h, w)
    limit = max(_MASK_DISTANCE, 3.5 * backdrop.spread)
    found = [
        _find_object(video[:, index], difference[:, index], squared[index], limit, backdrop.rows)
        for index in range(num_frames)
    ]
    objects = [item for item in found if item is not None]
    if len(objects) < num_frames:
        return f"object: none in {num_frames - len(objects)} of {num_frames} frames"
    crowded = sum(item.extra > _MAX_EXTRA for item in objects)
    if crowded > num_frames // 8:
        return f"object: several in {crowded} of {num_frames} frames"
    return _Objects(
        colors=np.stack([item.color for item in objects]),
        impure=np.array([item.impure for item in objects], dtype=np.float32),
        centers=np.array([item.center for item in objects], dtype=np.float32),
        radii=np.array([item.radius for item in objects], dtype=np.float32),
        patches=np.stack([item.patch for item in objects]),
    )


def _find_object(
    frame: Floats, difference: Floats, squared: Floats, limit: float, rows: Floats
) -> _Object | None:
    """Measures the largest region of one frame that is not background; None where there is no such object.

    Args:
        frame: (3, h, w).
        difference: (3, h, w), the frame less the background.
        squared: (h, w), squared length of ``difference``.
        limit: length of ``difference`` from which a pixel is not background.
        rows: (3, h), the background.
    """
    mask = (squared > limit * limit).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2 or not _MIN_AREA <= areas.max() <= _MAX_AREA_SHARE * mask.size:
        return None
    main = int(areas.argmax()) + 1
    inside = labels == main
    distance = np.sqrt(squared[inside])
    strong = distance >= 0.82 * np.quantile(distance, 0.9)
    color = np.median(frame[:, inside][:, strong], axis=1)
    span = color[:, None] - rows  # (3, h)
    norm = np.square(span).sum(axis=0)  # (h,)
    contrast = math.sqrt(float(np.median(norm)))
    if contrast < _MIN_CONTRAST:
        return None
    projected = np.einsum("chw,ch->hw", difference, span) / norm[:, None]
    coverage = np.clip((projected - 0.2) / 0.6, 0.0, 1.0)
    coverage *= cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), dtype=np.uint8))
    area = float(coverage.sum())
    if area < _MIN_AREA:
        return None

    # Blends of object and background lie on the line between them; other colours lie beside or beyond it.
    nearest = np.clip(projected, 0.0, 1.15)
    off_line = squared + nearest * (nearest - 2.0 * projected) * norm[:, None]
    # Faint smudges are no second object: one counts when it is about as strong as the first.
    strength = min(0.45 * contrast, 70.0)
    extra = sum(
        int(size)
        for label, size in enumerate(areas, start=1)
        if label != main and size >= _MIN_EXTRA_AREA and squared[labels == label].mean() > strength**2
    )
    height, width = mask.shape
    x = float(coverage.sum(axis=0) @ np.arange(width)) / area
    y = float(coverage.sum(axis=1) @ np.arange(height)) / area
    radius = math.sqrt(area / math.pi)
    step = 2.0 * _PATCH_REACH * radius / _PATCH
    corner = (_PATCH - 1) / 2.0 * step
    place = np.array([[step, 0.0, x - corner], [0.0, step, y - corner]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _Object(
        color=color.astype(np.float32),
        impure=float((off_line[inside] > _IMPURE_DISTANCE**2).mean()),
        center=(x + 0.5, y + 0.5),
        radius=radius,
        patch=np.asarray(cv2.warpAffine(coverage, place, (_PATCH, _PATCH), flags=how), dtype=np.float32),
        extra=extra / float(areas[main - 1]),
    )


def _name_color(objects: _Objects) -> tuple[str, str]:
    middle = np.median(objects.colors, axis=0)
    wander = np.linalg.norm(objects.colors - middle, axis=1)
    nearest = np.linalg.norm(COLOR_RGB - objects.colors[:, None], axis=2).argmin(axis=1)
    clip_nearest = np.linalg.norm(COLOR_RGB - middle, axis=1).argmin()
    changed = (wander > _MAX_COLOR_WANDER) | ((nearest != clip_nearest) & (wander > 0.5 * _MAX_COLOR_WANDER))
    if changed.sum() > len(wander) // 8:
        return UNCLEAR, f"color: changes on the way (in {int(changed.sum())} of {len(wander)} frames)"
    mixed = int((objects.impure > _MAX_FRAME_IMPURE).sum())
    if float(np.mean(objects.impure)) > _MAX_IMPURE or mixed > len(wander) // 8:
        return UNCLEAR, f"color: {np.mean(objects.impure):.0%} of the object has another colour"
    return _nearest(middle, COLOR_RGB, COLORS, "color", _MAX_COLOR_DISTANCE)


# --------------------------------------------------------------------------------------------- form


def _outline(shape: str) -> NDArray[np.float64]:
    """Corners of a form of radius 1, y downwards: (n, 2)."""
    if shape == "square":
        return 0.886 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    if shape == "cross":
        a, b = 1.12, 0.40
        corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b)]
        return np.array([*corners, *((-x, -y) for x, y in corners)], dtype=np.float64)
    count, radii = {"circle": (90, (1.0,)), "triangle": (3, (1.5,)), "star": (10, (1.42, 0.62))}[shape]
    angles = 2.0 * np.pi * np.arange(count) / count
    reach = np.array([radii[index % len(radii)] for index in range(count)])
    return np.stack([reach * np.sin(angles), -reach * np.cos(angles)], axis=1)


@cache
def _templates() -> tuple[Floats, NDArray[np.int64]]:
    """Zero-mean unit-norm patches (T, _PATCH ** 2) of each form at several blurs and scales; their forms."""
    fine = 8 * _PATCH
    patches, owners = [], []
    for index, shape in enumerate(SHAPES):
        corners = _outline(shape)
        x, y = corners.T
        area = 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
        for scale in (0.94, 1.0, 1.06):
            unit = scale * math.sqrt(math.pi / area) / (2.0 * _PATCH_REACH) * fine
            points = np.round((corners * unit + fine / 2.0 - 0.5) * 16).astype(np.int32)
            filled = cv2.fillPoly(np.zeros((fine, fine), np.float32), [points], 1.0, shift=4)
            for blur in (0.05, 0.11, 0.18):  # sigma in radii
                soft = cv2.GaussianBlur(filled, (0, 0), blur / (2.0 * _PATCH_REACH) * fine)
                patch = cv2.resize(soft, (_PATCH, _PATCH), interpolation=cv2.INTER_AREA).ravel()
                patch = patch - patch.mean()
                patches.append(patch / np.linalg.norm(patch))
                owners.append(index)
    return np.stack(patches).astype(np.float32), np.array(owners, dtype=np.int64)


def _form_scores(patches: Floats) -> Floats:
    """Best correlation with each form: (n, _PATCH, _PATCH) -> (n, 5)."""
    templates, owners = _templates()
    flat = patches.reshape(len(patches), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    scores = flat @ templates.T
    return np.stack([scores[:, owners == index].max(axis=1) for index in range(len(SHAPES))], axis=1)


def _name_shape(objects: _Objects) -> tuple[str, str, Floats]:
    num_frames = len(objects.radii)
    weight = np.clip(objects.radii - 4.0, 0.5, 8.0)  # small ones show less of their form
    weight = (weight / weight.sum()).astype(np.float32)
    # Neighbours averaged: noise of one frame is no change of form.
    patches = objects.patches
    smooth = patches if num_frames < 3 else (np.roll(patches, 1, 0) + patches + np.roll(patches, -1, 0))
    if num_frames >= 3:
        smooth[0], smooth[-1] = patches[0] + patches[1], patches[-2] + patches[-1]
    single = _form_scores(smooth)  # (F, 5)
    total = 0.5 * weight @ single + 0.5 * _form_scores(np.tensordot(weight, patches, 1)[None])[0]
    second, first = np.argsort(total)[-2:]
    scores = total.astype(np.float32)
    if total[first] < _MIN_FORM_SCORE:
        return UNCLEAR, f"shape: like none of the forms (best {SHAPES[first]} at {total[first]:.2f})", scores
    if total[first] - total[second] < _MIN_FORM_MARGIN:
        return UNCLEAR, f"shape: between {SHAPES[first]} and {SHAPES[second]}", scores
    voters = objects.radii >= min(_MIN_FORM_RADIUS, float(np.quantile(objects.radii, 0.6)))
    votes = single[voters]
    doubt = votes.max(axis=1) - votes[:, first]
    against = int(((doubt > _MAX_FORM_DOUBT) | (votes[:, first] < _MIN_FRAME_FORM_SCORE)).sum())
    if against > max(1, num_frames // 8):
        return UNCLEAR, f"shape: changes on the way ({against} of {len(votes)} frames differ)", scores
    # Small forms have no vote frame by frame, but several of them together show what they are.
    quarter = max(1, num_frames // 4)
    ends = _form_scores(np.stack([patches[:quarter].mean(axis=0), patches[-quarter:].mean(axis=0)]))
    if (ends.max(axis=1) - ends[:, first]).max() > _MAX_END_DOUBT:
        return UNCLEAR, "shape: begins or ends as another form", scores
    return SHAPES[first], "", scores


# ------------------------------------------------------------------------------------------- motion

_DIRECTIONS = {"right": 0.0, "upright": 45.0, "up": 90.0, "left": 180.0, "downleft": 225.0, "down": 270.0}


def _name_motion(centers: Floats, radii: Floats) -> tuple[str, str, dict[str, float]]:
    """Regresses the path and the size on the ten motions; none or an unsure one is unclear."""
    num_frames = len(radii)
    if num_frames < _MIN_MOTION_FRAMES:
        return UNCLEAR, f"motion: {num_frames} frames, at least {_MIN_MOTION_FRAMES} needed", {}
    phase = np.linspace(0.0, 1.0, num_frames)
    x, y = centers[:, 0].astype(np.float64), centers[:, 1].astype(np.float64)
    size = radii.astype(np.float64)

    (_, dx), x_error = _regress(x, phase)
    (_, dy), y_error = _regress(y, phase)
    (start, growth), size_error = _regress(size, phase)
    ratio = max(start + growth, 0.5) / max(start, 0.5)
    ripple = _rms(size_error) / float(size.mean())
    travel = math.hypot(dx, dy)
    straight = np.hypot(x_error, y_error)
    hop, hop_error = _fit_hops(y, phase)
    orbit, backward, orbit_error = _fit_orbit(x + 1j * y, num_frames)
    fit = {
        "travel": travel,
        "angle_deg": math.degrees(math.atan2(-dy, dx)) % 360.0,
        "line_residual": _rms(straight),
        "scale_ratio": ratio,
        "size_ripple": ripple,
        "hop": hop,
        "hop_residual": _rms(hop_error),
        "orbit_radius": orbit,
        "orbit_backward": backward,
        "orbit_residual": _rms(orbit_error),
    }
    wander = float(np.hypot(x - x.mean(), y - y.mean()).max())
    uneven = float(np.hypot(np.diff(x) - np.diff(x).mean(), np.diff(y) - np.diff(y).mean()).max())
    if max(ratio, 1.0 / ratio) >= _MIN_SCALE_RATIO:
        return *_name_scaling(ratio, size, size_error, wander, uneven), fit
    if wander < 3.0 and max(ratio, 1.0 / ratio) < 1.25:
        return UNCLEAR, "motion: stands still", fit
    if max(ratio, 1.0 / ratio) > _MAX_STEADY_RATIO or ripple > _MAX_SIZE_RIPPLE:
        return UNCLEAR, f"motion: the size wavers (ratio {ratio:.2f}, ripple {ripple:.0%})", fit

    found: dict[str, float] = {}
    if travel >= _MIN_TRAVEL and uneven <= _MAX_STEP_CHANGE and _is_close(straight, travel):
        name = _name_direction(fit["angle_deg"])
        if name:
            found[name] = _rms(straight)
    if hop >= _MIN_HOP and _is_close(hop_error, hop) and np.ptp(x) < max(4.0, 0.3 * hop):
        found["bounce"] = _rms(hop_error)
    low, high = _ORBIT_RADIUS
    if low <= orbit <= high and backward < 0.4 * orbit and _is_close(orbit_error, 2.0 * orbit):
        found["orbit"] = _rms(orbit_error)
    if not found:
        return UNCLEAR, f"motion: no known path (travel {travel:.1f}, hop {hop:.1f}, orbit {orbit:.1f})", fit
    return min(found, key=found.__getitem__), "", fit


def _name_scaling(
    ratio: float, size: NDArray[np.float64], error: NDArray[np.float64], wander: float, uneven: float
) -> tuple[str, str]:
    sign = 1.0 if ratio > 1.0 else -1.0
    explained = 1.0 - float(np.var(error)) / max(float(np.var(size)), 1e-9)
    backward = float(np.maximum(-sign * np.diff(size), 0.0).sum()) / max(float(np.ptp(size)), 1e-9)
    if explained < 0.8 or backward > 0.25:
        return UNCLEAR, f"motion: the size changes by {ratio:.2f} but not steadily"
    if wander > _MAX_OTHER_TRAVEL or uneven > _MAX_STEP_CHANGE:
        return UNCLEAR, f"motion: the size changes by {ratio:.2f} while the shape travels"
    return ("grow" if sign > 0 else "shrink"), ""


def _name_direction(angle_deg: float) -> str:
    for name, axis in _DIRECTIONS.items():
        if abs((angle_deg - axis + 180.0) % 360.0 - 180.0) <= _MAX_ANGLE_DEG:
            return name
    return ""


def _rms(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(np.mean(np.square(np.abs(values)))))


def _is_close(error: NDArray[np.float64], extent: float) -> bool:
    """Whether a fitted path of this extent explains the positions, without a jump."""
    limit = max(_MAX_RESIDUAL, 0.11 * extent)
    return _rms(error) <= limit and float(np.abs(error).max()) <= max(_MAX_JUMP, 0.25 * extent)


def _regress(
    values: NDArray[np.float64], phase: NDArray[np.float64]
) -> tuple[tuple[float, float], NDArray[np.float64]]:
    """Least-squares line over the phase: (start, change over the clip) and what is left."""
    centred = phase - phase.mean()
    slope = float(centred @ values / (centred @ centred))
    start = float(values.mean()) - slope * float(phase.mean())
    return (start, slope), values - start - slope * phase


def _fit_hops(y: NDArray[np.float64], phase: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Height of two hops ``|sin|`` in pixels (upwards positive), and what is left of y."""
    best_height, best_error = 0.0, y - y.mean()
    for shift in (-0.04, -0.02, 0.0, 0.02, 0.04):
        (_, change), error = _regress(y, np.abs(np.sin(2.0 * np.pi * (phase + shift))))
        if np.square(error).sum() < np.square(best_error).sum():
            best_height, best_error = -change, error
    return best_height, best_error


def _fit_orbit(path: NDArray[np.complex128], num_frames: int) -> tuple[float, float, NDArray[np.float64]]:
    """Radius of one clockwise turn and of one against the clock, and how far each point lies off the first.

    Args:
        path: x + iy of every frame, y downwards, so that growing angles are clockwise on the screen.
        num_frames: F; the turn closes one frame after the last.
    """
    turn = np.exp(2j * np.pi * np.arange(num_frames) / num_frames)
    basis = np.stack([np.ones_like(turn), turn, turn.conj()], axis=1)
    coefficients = np.linalg.lstsq(basis, path, rcond=None)[0]
    circle = basis[:, :2] @ coefficients[:2]
    return float(abs(coefficients[1])), float(abs(coefficients[2])), np.abs(path - circle)
