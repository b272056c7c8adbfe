"""Motion: how much moves, and how the camera does.

Dense optical flow between pictures 1/8 s apart; then, per pair, the similarity (shift, turn, zoom) that most
of the picture agrees on, which is taken for the camera. All lengths are pixels of a picture whose shorter
side is 256, per 1/8 s, whatever the clip's own size and rate: flow is scaled by both.

A smooth pan and a shaking hand have the same mean flow. What tells them apart is ``motion_jitter``: how much
the camera's translation changes from one pair to the next.

A dolly zoom (the camera recedes while the lens zooms in, or the reverse) scales the background while the
subject in the middle keeps its size. So the zoom is measured in rings around the centre: one that jumps from
about nothing to the same value in all outer rings is a dolly zoom. A plain zoom is alike in all rings. A
camera that moves forward makes near things grow faster, but the far ones in the middle grow as well.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pydantic

from data_pipeline.clip import Clip, Drop, Frames, Keep, View
from hummingbird.config import config_dataclass

__all__ = [
    "MotionConfig",
    "PairMotion",
    "dis_flow",
    "dolly_zoom",
    "measure",
    "measure_pair",
    "ring_zooms",
    "shared_zoom",
]

FlowMethod = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two ``(H, W, 3)`` uint8 RGB pictures -> ``(H, W, 2)`` float32: how far each pixel of the first moved, x and
y."""

_FPS = 8.0
_SHORT_SIDE = 256
_GRID = 8
"""The camera is fitted to one vector in each block of so many pixels a side."""

_STATIC_PX = 0.3
_MIN_TEXTURE = 4.0
"""Blocks whose mean gradient is below this (grey levels per pixel) say nothing about the camera: clear
sky."""

_MIN_POINTS = 48
_MIN_CAMERA_SHARE = 0.25
"""A camera is believed when so many textured blocks, and this share of them, agree on it."""

_ZOOM_STEP = 2
"""Zooms are slow: they are measured over so many pictures, where it moves things by pixels and not by
fractions."""

_RINGS = (0.0, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.45)
"""Borders of the rings, as shares of the way from the centre to the middle of the picture's sides."""

_MIN_RING_POINTS = 12
_MIN_RINGS, _OUTLYING = 3, 0.15
"""A zoom is seen in so many rings at least, all but this share of them."""

_NUM_INNER, _NUM_OUTER = 2, 3
_MAX_INNER, _MAX_OUTER_SPREAD, _MIN_JUMP = 0.3, 0.6, 0.4
"""As shares of the outer rings' zoom: at most so much in the middle, so much between the outer rings; at
least so much of the rise between two neighbours."""


@dataclass(frozen=True, kw_only=True)
class PairMotion:
    """One pair of pictures; lengths in pixels of a short side of 256, per 1/8 s.

    Attributes:
        mean, top5: mean flow, and the mean of its largest 5%.
        static: share of pixels that move less than 0.3 px.
        translation: ``(2,)`` of the camera, at the centre of the picture; None where no camera was found.
        residual: mean flow that is left when the camera's is taken away.
    """

    mean: float
    top5: float
    static: float
    translation: np.ndarray | None
    residual: float


@config_dataclass
class MotionConfig:
    """Thresholds on motion, in pixels of a short side of 256 per 1/8 s; null turns one off.

    Attributes:
        min_mean: less mean flow is a still picture.
        max_mean: more is too fast to learn from.
        max_jitter: more mean change of the camera's translation is hand shake.
        max_zoom: more zoom per 1/8 s, either way, as a fraction.
        max_dolly: more difference in zoom between background and subject, as a fraction.
        raft_checkpoint: state dict of RAFT; its flow then replaces OpenCV's DIS.
    """

    min_mean: float | None = 0.3
    max_mean: float | None = 30.0
    max_jitter: float | None = 5.0
    max_zoom: float | None = 0.015
    max_dolly: Annotated[float, pydantic.Field(gt=0.0)] | None = 0.003
    raft_checkpoint: Path | None = None

    @property
    def name(self) -> str:
        return "motion"

    @property
    def views(self) -> tuple[View, ...]:
        return (View(fps=_FPS, short_side=_SHORT_SIDE),)

    def setup(self) -> None:
        _flow_method(self.raft_checkpoint)

    def process(self, clip: Clip) -> Keep | Drop:
        frames = clip.frames(self.views[0])
        if len(frames.images) < 2:
            return Drop(
                reason="motion: too few frames", detail=f"got {len(frames.images)}, expected 2 or more"
            )
        scores = measure(frames, _flow_method(self.raft_checkpoint))
        for reason, name, limit, sign in (
            ("motion: static", "motion_mean", self.min_mean, -1),
            ("motion: too fast", "motion_mean", self.max_mean, 1),
            ("motion: dolly zoom", "motion_dolly", self.max_dolly, 1),
            ("motion: zoom", "motion_zoom", self.max_zoom, 1),
            ("motion: jitter", "motion_jitter", self.max_jitter, 1),
        ):
            if limit is not None and sign * scores[name] > sign * limit:
                side = "above" if sign > 0 else "below"
                return Drop(
                    reason=reason, detail=f"{name} {scores[name]:.4g} is {side} {limit:g}", scores=scores
                )
        return Keep(scores=scores)


def measure(frames: Frames, flow_method: FlowMethod) -> dict[str, float]:
    """The motion scores of a clip.

    Jitter is a mean over the pairs in which a camera was found, and 0 where that is less than half of them;
    ``motion_camera`` is the share of pairs with a camera. Zooms are measured over 1/4 s.
    """
    images = [np.ascontiguousarray(image) for image in frames.images]
    scale = _SHORT_SIDE / min(images[0].shape[:2])
    pairs = [
        measure_pair(flow_method(images[index], images[index + 1]), images[index], scale, gap_s)
        for index, gap_s in enumerate(np.diff(frames.times_s))
    ]
    cameras = [pair.translation for pair in pairs]
    changes = [
        float(np.hypot(*(b - a))) for a, b in itertools.pairwise(cameras) if a is not None and b is not None
    ]
    profiles = [
        ring_zooms(flow_method(images[index], images[index + _ZOOM_STEP]), images[index], scale, gap_s)
        for index, gap_s in enumerate(frames.times_s[_ZOOM_STEP:] - frames.times_s[:-_ZOOM_STEP])
        if index % _ZOOM_STEP == 0
    ]
    return {
        "motion_mean": float(np.mean([pair.mean for pair in pairs])),
        "motion_top5": float(np.mean([pair.top5 for pair in pairs])),
        "motion_static": float(np.mean([pair.static for pair in pairs])),
        "motion_residual": float(np.mean([pair.residual for pair in pairs])),
        "motion_camera": float(np.mean([camera is not None for camera in cameras])),
        "motion_jitter": _mean_of_most(changes, len(pairs) - 1),
        "motion_zoom": float(np.mean([shared_zoom(profile) for profile in profiles])) if profiles else 0.0,
        "motion_dolly": dolly_zoom(np.array(profiles)),
    }


def _mean_of_most(values: list[float], possible: int) -> float:
    return float(np.mean(values)) if values and len(values) >= 0.5 * possible else 0.0


def measure_pair(flow: np.ndarray, image: np.ndarray, scale: float, gap_s: float) -> PairMotion:
    """Measure one pair.

    Args:
        flow: ``(H, W, 2)`` pixels.
        image: ``(H, W, 3)`` uint8 RGB, the first of the two.
        scale: 256 over the picture's shorter side.
        gap_s: time between the two.
    """
    rate = 1.0 / (_FPS * gap_s)
    length = np.hypot(flow[..., 0], flow[..., 1]) * (scale * rate)
    count = max(1, round(0.05 * length.size))
    points, vectors = _textured(flow, image, scale)
    camera, inliers = _similarity(points, vectors)
    share = float(inliers.mean()) if len(inliers) else 0.0
    if share < _MIN_CAMERA_SHARE:
        camera = np.zeros((2, 3))
    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]]
    everywhere = _centred(columns, rows, image, scale)
    left = flow.reshape(-1, 2) * scale - _moved(everywhere, camera)
    return PairMotion(
        mean=float(length.mean()),
        top5=float(np.partition(length, -count, axis=None)[-count:].mean()),
        static=float((length < _STATIC_PX).mean()),
        translation=rate * camera[:, 2] if share >= _MIN_CAMERA_SHARE else None,
        residual=float(np.hypot(left[:, 0], left[:, 1]).mean() * rate),
    )


def ring_zooms(flow: np.ndarray, image: np.ndarray, scale: float, gap_s: float) -> np.ndarray:
    """Zoom per 1/8 s in each ring around the centre, NaN where a ring has too little texture.

    Args:
        flow, image, scale, gap_s: as for ``measure_pair``.
    """
    points, vectors = _textured(flow, image, scale)
    half = np.array([image.shape[1], image.shape[0]]) * (scale / 2)
    radius = np.hypot(*(points / half).T)
    zooms = np.full(len(_RINGS) - 1, np.nan)
    for ring, (inner, outer) in enumerate(itertools.pairwise(_RINGS)):
        chosen = (radius >= inner) & (radius < outer)
        model, agree = _similarity(points[chosen], vectors[chosen], _MIN_RING_POINTS)
        if agree.any():
            zooms[ring] = _zoom(model) / (_FPS * gap_s)
    return zooms


def shared_zoom(profile: np.ndarray) -> float:
    """The zoom that nearly all rings have in common, without its sign; 0 where they disagree on the sign.

    A camera that moves forward counts by how much the far things grow, which a lens would make grow alike.

    Args:
        profile: of ``ring_zooms``.
    """
    zooms = profile[np.isfinite(profile)]
    if len(zooms) < _MIN_RINGS:
        return 0.0
    low, high = np.quantile(zooms, (_OUTLYING, 1.0 - _OUTLYING))
    return float(max(low, -high, 0.0))


def dolly_zoom(profiles: np.ndarray) -> float:
    """Zoom of the surroundings less that of the middle, where the two differ as in a dolly zoom, else 0.

    Args:
        profiles: ``(pairs, rings)``, of ``ring_zooms``.
    """
    if not len(profiles):
        return 0.0
    seen = np.isfinite(profiles).sum(axis=0) >= 0.5 * len(profiles)
    inner, outer = seen[:_NUM_INNER], seen[-_NUM_OUTER:]
    if not inner.any() or outer.sum() < 2:
        return 0.0
    zooms = np.nanmedian(profiles[:, seen], axis=0)
    surroundings = zooms[-int(outer.sum()) :]
    # A subject may grow in one part (an opening mouth); it keeps its size if one of the inner rings does.
    middle = float(min(zooms[: int(inner.sum())], key=abs))
    around = float(np.median(surroundings))
    jump = float(np.abs(np.diff(zooms)).max())
    if (
        abs(middle) > _MAX_INNER * abs(around)
        or np.ptp(surroundings) > _MAX_OUTER_SPREAD * abs(around)
        or jump < _MIN_JUMP * abs(around - middle)
    ):
        return 0.0
    return abs(around - middle)


def dis_flow() -> FlowMethod:
    """Dense inverse search (Kroeger et al., arXiv 1603.03590), OpenCV's."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (a, b)]
        return dis.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))

    return flow


@functools.lru_cache(maxsize=1)
def _flow_method(raft_checkpoint: Path | None) -> FlowMethod:
    if raft_checkpoint is not None:
        from data_pipeline.stages.raft import RaftFlow

        return RaftFlow(raft_checkpoint)
    return dis_flow()


def _centred(columns: np.ndarray, rows: np.ndarray, image: np.ndarray, scale: float) -> np.ndarray:
    """``(n, 2)`` places x, y from the middle of the picture."""
    middle = np.array([image.shape[1] / 2, image.shape[0] / 2])
    return ((np.stack([columns.ravel(), rows.ravel()], -1) - middle) * scale).astype(np.float32)


def _textured(flow: np.ndarray, image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the blocks that have texture, and the flow there."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gradient = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8
    step = max(1, round(_GRID / scale))
    texture = cv2.blur(gradient, (step, step))
    rows, columns = np.mgrid[step // 2 : flow.shape[0] : step, step // 2 : flow.shape[1] : step]
    usable = texture[rows, columns] >= _MIN_TEXTURE
    return _centred(columns[usable], rows[usable], image, scale), flow[rows, columns][usable] * scale


def _similarity(
    points: np.ndarray, vectors: np.ndarray, min_points: int = _MIN_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """The ``(2, 3)`` change of place that most points agree on to a pixel, and which do; none where too few
    do."""
    none = np.zeros((2, 3)), np.zeros(len(points), bool)
    if len(points) < min_points:
        return none
    cv2.setRNGSeed(0)  # RANSAC draws from it: the same clip must get the same scores
    model, inliers = cv2.estimateAffinePartial2D(
        points, points + vectors, ransacReprojThreshold=1.0, maxIters=500, confidence=0.999
    )
    if model is None or inliers.sum() < min_points:
        return none
    return model - np.eye(2, 3), inliers.ravel() > 0


def _moved(points: np.ndarray, change: np.ndarray) -> np.ndarray:
    return points @ change[:, :2].T + change[:, 2]


def _zoom(change: np.ndarray) -> float:
    return float(np.hypot(1.0 + change[0, 0], change[1, 0]) - 1.0)
