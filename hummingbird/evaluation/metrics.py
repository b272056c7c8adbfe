"""Figures of any video that need no network: flicker, motion, drift of colours, sharpness, repeated frames.

Pictures are shrunk to a shorter side of 256 pixels, so that sizes compare; flow is measured on pictures of
just that size. Times are those of the frames. Each metric has its definition in ``METRICS``, and
docs/evaluation.md says what it does not tell. A metric that a video is too short for is None, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hummingbird.video_io import VideoError, iter_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "METRICS",
    "Metric",
    "brightness_flicker",
    "dis_flow",
    "luma_of",
    "measure_frames",
    "measure_video",
    "saturation_of",
    "sharpness_of",
]

SHORT_SIDE = 256
MAX_FRAMES = 1024
_MIN_SIDE = 16  # OpenCV's flow and a Laplacian need some room
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # Rec. 709
_FPS = 8.0
"""Motion is given per 1/8 s, as data_pipeline's is and as models of this family make frames."""
_TOP_SHARE = 0.05
_BLOCK, _SAME = 16, 1.0
"""A frame repeats the one before where no block of so many pixels a side differs by more grey levels (of 255)
in the mean."""
_END_SHARE = 0.25
"""Drift is measured between the first and the last frames, so large a share each."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a figure is.

    Attributes:
        title: for people.
        definition: how it is computed.
        low, high: its range; infinity where it has no end.
        better: "low", "high", or empty where neither is better by itself.
        min_frames: shorter videos have none.
        reference: where it comes from.
    """

    title: str
    definition: str
    low: float
    high: float
    better: str
    min_frames: int
    reference: str


_VBENCH = "VBench (Huang et al., arXiv 2311.17982)"
_DIS = "flow: DIS (Kroeger et al., arXiv 1603.03590), OpenCV's preset FAST"

METRICS: dict[str, Metric] = {
    "flicker": Metric(
        title="Brightness flicker",
        definition="mean absolute second difference over time of the frames' mean luma; a fade has none",
        low=0.0,
        high=2.0,
        better="low",
        min_frames=3,
        reference="the discrete second derivative; luma of ITU-R BT.709",
    ),
    "frame_difference": Metric(
        title="Frame difference",
        definition="mean absolute difference of neighbouring frames over pixels and channels",
        low=0.0,
        high=1.0,
        better="",
        min_frames=2,
        reference=f"{_VBENCH}: temporal flickering is 1 minus it",
    ),
    "motion_smoothness": Metric(
        title="Motion smoothness",
        definition="1 minus the mean absolute difference of luma between each frame and the one interpolated "
        "from its two neighbours, each moved half-way along the flow between them",
        low=0.0,
        high=1.0,
        better="high",
        min_frames=3,
        reference=f"{_VBENCH}: motion smoothness, with flow in place of an interpolation network; {_DIS}",
    ),
    "dynamic_degree": Metric(
        title="Dynamic degree",
        definition="mean over neighbouring frames of the mean length of the largest 5% of the flow, in "
        "pixels of a shorter side of 256 per 1/8 s",
        low=0.0,
        high=math.inf,
        better="",
        min_frames=2,
        reference=f"{_VBENCH}: dynamic degree before its threshold, with other flow; {_DIS}",
    ),
    "motion_mean": Metric(
        title="Mean motion",
        definition="mean length of the flow between neighbouring frames, in the same unit",
        low=0.0,
        high=math.inf,
        better="",
        min_frames=2,
        reference=_DIS,
    ),
    "color_drift": Metric(
        title="Colour drift",
        definition="largest absolute difference, over red, green and blue, between the means of the last and "
        "the first quarter of the frames",
        low=0.0,
        high=1.0,
        better="low",
        min_frames=4,
        reference="the difference of means",
    ),
    "saturation_drift": Metric(
        title="Saturation drift",
        definition="mean saturation (largest minus smallest channel) of the last quarter of the frames minus "
        "that of the first",
        low=-1.0,
        high=1.0,
        better="",
        min_frames=4,
        reference="the chroma of the HSV model; the difference of means",
    ),
    "saturation": Metric(
        title="Saturation",
        definition="mean over pixels of the largest minus the smallest channel",
        low=0.0,
        high=1.0,
        better="",
        min_frames=1,
        reference="the chroma of the HSV model",
    ),
    "brightness": Metric(
        title="Brightness",
        definition="mean luma",
        low=0.0,
        high=1.0,
        better="",
        min_frames=1,
        reference="ITU-R BT.709",
    ),
    "sharpness": Metric(
        title="Sharpness",
        definition="mean absolute Laplacian (four neighbours) of the luma",
        low=0.0,
        high=4.0,
        better="",
        min_frames=1,
        reference="focus measures from the Laplacian: Pertuz et al., Pattern Recognition 46, 2013",
    ),
    "duplicate_frames": Metric(
        title="Duplicate frames",
        definition="share of frames, of those that have one before, in which no block of 16 x 16 pixels "
        "differs from that one by 1 grey level of 255 in the mean",
        low=0.0,
        high=1.0,
        better="low",
        min_frames=2,
        reference="block-wise mean absolute difference",
    ),
}
"""All metrics by name, in the order of reports."""


# --- parts, which train/guards.py uses as well -------------------------------------------------------------


def luma_of(frames: np.ndarray) -> np.ndarray:
    """Luma of pictures.

    Args:
        frames: ``(..., 3)`` floating point RGB in [0, 1].

    Returns:
        ``(...)`` float32 in [0, 1].
    """
    return frames @ _LUMA


def saturation_of(frames: np.ndarray) -> np.ndarray:
    """Mean saturation of each picture: ``(..., H, W, 3)`` RGB in [0, 1] -> ``(...)`` in [0, 1]."""
    return (frames.max(axis=-1) - frames.min(axis=-1)).mean(axis=(-2, -1))


def sharpness_of(luma: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian of each picture: ``(..., H, W)`` in [0, 1] -> ``(...)`` in [0, 4]."""
    laplacian = (
        luma[..., 2:, 1:-1]
        + luma[..., :-2, 1:-1]
        + luma[..., 1:-1, 2:]
        + luma[..., 1:-1, :-2]
        - 4.0 * luma[..., 1:-1, 1:-1]
    )
    return np.abs(laplacian).mean(axis=(-2, -1))


def brightness_flicker(curves: np.ndarray) -> np.ndarray:
    """Mean absolute second difference over time: ``(..., F)`` -> ``(...)``; 0 of fewer than three frames."""
    if curves.shape[-1] < 3:
        return np.zeros(curves.shape[:-1])
    return np.abs(np.diff(curves, n=2, axis=-1)).mean(axis=-1)


def dis_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Dense optical flow, the same on every machine.

    Args:
        before, after: ``(H, W)`` uint8, at least 16 pixels high and wide.

    Returns:
        ``(H, W, 2)`` float32: how far each pixel of the first moved, x and y, in pixels.

    Reference:
        Kroeger et al., Fast Optical Flow using Dense Inverse Search, arXiv 1603.03590.
    """
    import cv2

    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    with _one_thread():
        return method.calc(before, after, None)


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV splits the picture among threads: with one, figures do not depend on the machine."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


# --- a video -----------------------------------------------------------------------------------------------


def measure_video(
    path: str | Path, *, start_s: float = 0.0, end_s: float | None = None
) -> dict[str, float | None]:
    """Measures a video file.

    Args:
        path: anything that ``iter_frames`` reads.
        start_s, end_s: the part of it that is measured.

    Returns:
        A figure for each of ``METRICS``, None where the video is too short for it.

    Raises:
        hummingbird.video_io.VideoError: the file cannot be read, is damaged, too long or too small: there is
            no figure for half a video.
    """
    images: list[np.ndarray] = []
    times_s: list[float] = []
    frames = iter_frames(path, start_s=start_s, end_s=end_s)
    with closing(frames):
        for frame in frames:
            if len(images) == MAX_FRAMES:
                raise VideoError(f"{path}: over {MAX_FRAMES} frames; cut it first")
            images.append(frame.rgb(SHORT_SIDE))
            times_s.append(frame.time_s)
        if frames.damage:
            raise VideoError(f"{path}: damaged: {frames.damage}")
    if not images:
        raise VideoError(f"{path}: no frames from {start_s} to {end_s} s")
    return measure_frames(images, times_s)


def measure_frames(images: Sequence[np.ndarray], times_s: Sequence[float]) -> dict[str, float | None]:
    """Measures decoded frames.

    Args:
        images: ``(H, W, 3)`` uint8 RGB each, all of one size, at least 16 pixels high and wide.
        times_s: when each is shown; increasing.

    Raises:
        VideoError: pictures that are too small.
    """
    import cv2

    height, width = images[0].shape[:2]
    if min(height, width) < _MIN_SIDE:
        raise VideoError(f"got frames of {width}x{height}, expected at least {_MIN_SIDE}x{_MIN_SIDE} pixels")
    scale = SHORT_SIDE / min(height, width)
    size = (max(_MIN_SIDE, round(width * scale)), max(_MIN_SIDE, round(height * scale)))
    colors, saturations, sharpnesses, grays, differences = [], [], [], [], []
    before: np.ndarray | None = None
    with _one_thread():
        for image in images:
            pixels = image.astype(np.float32) / 255.0
            luma = luma_of(pixels)
            colors.append(pixels.mean(axis=(0, 1), dtype=np.float64))
            saturations.append(float(saturation_of(pixels)))
            sharpnesses.append(float(sharpness_of(luma)))
            gray: Any = (luma * 255.0).round().astype(np.uint8)
            if (width, height) != size:
                gray = cv2.resize(gray, size, interpolation=cv2.INTER_CUBIC)
            grays.append(gray)
            if before is not None:
                differences.append(float(np.abs(pixels - before).mean()))
            before = pixels
    gaps_s = np.maximum(np.diff(times_s), 1e-3)
    lengths = [
        np.linalg.norm(dis_flow(a, b), axis=-1) * (SHORT_SIDE / min(size) / (_FPS * gap_s))
        for (a, b), gap_s in zip(pairwise(grays), gaps_s, strict=True)
    ]
    curve = np.array(colors) @ _LUMA.astype(np.float64)
    ends = max(1, round(_END_SHARE * len(images)))
    color_change = np.mean(colors[-ends:], axis=0) - np.mean(colors[:ends], axis=0)
    values = {
        "flicker": lambda: brightness_flicker(curve),
        "frame_difference": lambda: np.mean(differences),
        "motion_smoothness": lambda: _smoothness(grays),
        "dynamic_degree": lambda: np.mean([_top_mean(length) for length in lengths]),
        "motion_mean": lambda: np.mean([length.mean() for length in lengths]),
        "color_drift": lambda: np.abs(color_change).max(),
        "saturation_drift": lambda: np.mean(saturations[-ends:]) - np.mean(saturations[:ends]),
        "saturation": lambda: np.mean(saturations),
        "brightness": lambda: curve.mean(),
        "sharpness": lambda: np.mean(sharpnesses),
        "duplicate_frames": lambda: np.mean([_is_repeated(a, b) for a, b in pairwise(grays)]),
    }
    return {
        name: round(float(values[name]()), 6) if len(images) >= metric.min_frames else None
        for name, metric in METRICS.items()
    }


def _top_mean(lengths: np.ndarray) -> float:
    count = max(1, round(_TOP_SHARE * lengths.size))
    return float(np.partition(lengths, -count, axis=None)[-count:].mean())


def _is_repeated(before: np.ndarray, after: np.ndarray) -> bool:
    difference = np.abs(before.astype(np.float32) - after)
    rows, columns = (size // _BLOCK * _BLOCK for size in difference.shape)
    blocks = difference[:rows, :columns].reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    return bool(blocks.mean(axis=(1, 3)).max() < _SAME)


def _smoothness(grays: Sequence[np.ndarray]) -> float:
    """1 minus the error of frames interpolated from their neighbours."""
    import cv2

    rows, columns = np.mgrid[: grays[0].shape[0], : grays[0].shape[1]].astype(np.float32)
    errors = []
    for before, middle, after in zip(grays, grays[1:], grays[2:], strict=False):
        guess = np.zeros(middle.shape, np.float32)
        for source, target in ((before, after), (after, before)):
            half = 0.5 * dis_flow(source, target)
            moved = cv2.remap(
                source.astype(np.float32),
                columns - half[..., 0],
                rows - half[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            guess += 0.5 * moved
        errors.append(float(np.abs(guess - middle).mean()) / 255.0)
    return 1.0 - float(np.mean(errors))
