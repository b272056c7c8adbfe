"""What ``nano-vqa`` measures of a clip: statistics of single frames and of their change.

Every feature is a plain number with a name. Most are logarithms or ratios between scales, so that they say
how a picture was treated rather than what it shows. Nothing here is learned.

References: mean-subtracted contrast-normalised (MSCN) coefficients and their neighbour products, Mittal et
al., BRISQUE, IEEE TIP 2012, eq. 1 to 7; blur by blurring again, Crete et al., SPIE 6492, 2007; noise by a
Laplacian difference mask, Immerkaer, CVIU 1996; periodic traces of resampling, Gallagher, CRV 2005; global
shift from gradients, Lucas and Kanade, IJCAI 1981.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

__all__ = ["NUM_FRAMES", "NUM_TEMPORAL_FRAMES", "TEMPORAL_SHORT_SIDE", "VqaError", "clip_features"]

NUM_FRAMES = 8
"""Full-size frames looked at per clip."""
TEMPORAL_SHORT_SIDE = 120
"""Shorter side, in pixels, of the frames whose change is measured."""
NUM_TEMPORAL_FRAMES = 128
"""Consecutive small frames looked at per clip, at most."""

_WINDOW_WIDTH, _WINDOW_HEIGHT = 512, 384
"""Larger frames are looked at through a window of this size, at a place that moves from frame to frame."""
_WINDOW_PLACES = (
    (0.5, 0.5),
    (0.15, 0.5),
    (0.85, 0.5),
    (0.5, 0.15),
    (0.5, 0.85),
    (0.2, 0.2),
    (0.8, 0.8),
    (0.5, 0.5),
)
_SMALLEST = 32
_NUM_SCALES = 3
_PERIODS = (2, 3, 4, 8, 16)
_SPECTRUM_LENGTH = 64
_SPECTRUM_BANDS = (1, 3, 5, 8, 11, 14, 17, 20, 23, 26, 29, 33)
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


class VqaError(ValueError):
    """A clip or a quality model that cannot be used; the message is one line that says why."""


def clip_features(images: np.ndarray, small_images: np.ndarray, times_s: np.ndarray) -> dict[str, float]:
    """Features of a clip by name.

    Args:
        images: ``(n, H, W, 3)`` uint8 RGB, a few full-size frames spread over the clip.
        small_images: ``(m, h, w, 3)`` uint8 RGB, consecutive frames, small.
        times_s: ``(m,)`` seconds, the times of ``small_images``.

    Raises:
        VqaError: the frames are too small to measure.
    """
    height, width = images.shape[1:3]
    if min(height, width, *small_images.shape[1:3]) < _SMALLEST:
        raise VqaError(f"frames: got {width}x{height} pixels, expected at least {_SMALLEST} either way")
    frames = [_frame_features(_window(image, index)) for index, image in enumerate(images)]
    spatial = {name: float(np.mean([frame[name] for frame in frames])) for name in frames[0]}
    return {**spatial, **_temporal_features(small_images, times_s)}


def _window(image: np.ndarray, index: int) -> np.ndarray:
    height, width = image.shape[:2]
    across, down = _WINDOW_PLACES[index % len(_WINDOW_PLACES)]
    left = round(max(0, width - _WINDOW_WIDTH) * across)
    top = round(max(0, height - _WINDOW_HEIGHT) * down)
    return np.ascontiguousarray(image[top : top + _WINDOW_HEIGHT, left : left + _WINDOW_WIDTH])


def _frame_features(rgb: np.ndarray) -> dict[str, float]:
    ycrcb = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    luma8 = np.ascontiguousarray(ycrcb[:, :, 0])
    luma = luma8.astype(np.float32)
    features = _scale_features(luma)
    features |= _noise_features(luma8, luma, ycrcb)
    features |= _period_features(luma)
    features |= _step_features(luma8)
    features |= _spectrum_features(luma)
    features |= _exposure_features(rgb, luma8)
    return features


def _log(value: float, floor: float) -> float:
    return float(np.log(max(float(value), 0.0) + floor))


def _scale_features(luma: np.ndarray) -> dict[str, float]:
    """Contrast, sharpness and MSCN statistics at full, half and quarter size, and the first two's ratios."""
    features: dict[str, float] = {}
    for scale in range(_NUM_SCALES):
        if scale:
            luma = cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        mean = cv2.GaussianBlur(luma, (7, 7), 7 / 6)
        variance = cv2.GaussianBlur(luma * luma, (7, 7), 7 / 6) - mean * mean
        deviation = np.sqrt(np.maximum(variance, 0))
        mscn = (luma - mean) / (deviation + 1)
        squared = mscn * mscn
        power = float(squared.mean()) + 1e-6
        across = float((mscn[:, :-1] * mscn[:, 1:]).mean()) / power
        down = float((mscn[:-1] * mscn[1:]).mean()) / power
        falling = float((mscn[:-1, :-1] * mscn[1:, 1:]).mean()) / power
        rising = float((mscn[:-1, 1:] * mscn[1:, :-1]).mean()) / power
        two_across = float((mscn[:, :-2] * mscn[:, 2:]).mean()) / power
        two_down = float((mscn[:-2] * mscn[2:]).mean()) / power
        step_x, step_y = cv2.absdiff(luma[:, 1:], luma[:, :-1]), cv2.absdiff(luma[1:], luma[:-1])
        gradient_x, gradient_y = float(step_x.mean()), float(step_y.mean())
        curvature = float(np.abs(cv2.Laplacian(luma, cv2.CV_32F)).mean())
        sampled = deviation[1::3, 1::3].ravel()
        low, middle, high = np.percentile(sampled, (10, 50, 95))
        prefix = f"scale{scale}_"
        features |= {
            prefix + "mscn_power": _log(power, 1e-3),
            prefix + "mscn_kurtosis": _log(float((squared * squared).mean()) / power**2, 0.1),
            prefix + "mscn_neighbours": (across + down) / 2,
            prefix + "mscn_diagonals": (falling + rising) / 2,
            prefix + "mscn_two_apart": (two_across + two_down) / 2,
            prefix + "mscn_anisotropy": abs(across - down),
            prefix + "mscn_diagonal_anisotropy": abs(falling - rising),
            prefix + "gradient": _log((gradient_x + gradient_y) / 2, 0.1),
            prefix + "gradient_anisotropy": abs(_log(gradient_x, 0.1) - _log(gradient_y, 0.1)),
            prefix + "gradient_kurtosis": _log(_kurtosis(step_x) + _kurtosis(step_y), 0.1),
            prefix + "curvature": _log(curvature, 0.1),
            prefix + "curvature_per_gradient": _log(curvature / (gradient_x + gradient_y + 0.1), 0.01),
            prefix + "deviation_low": _log(low, 0.1),
            prefix + "deviation_middle": _log(middle, 0.1),
            prefix + "deviation_high": _log(high, 0.1),
            prefix + "flat_share": _log(float((sampled < 0.5).mean()), 0.01),
            prefix + "reblur": (_reblur(luma, step_x, 1) + _reblur(luma, step_y, 0)) / 2,
        }
    for name in ("gradient", "curvature", "deviation_low", "deviation_high"):
        for scale in range(_NUM_SCALES - 1):
            ratio = features[f"scale{scale}_{name}"] - features[f"scale{scale + 1}_{name}"]
            features[f"scale{scale}_to_{scale + 1}_{name}"] = ratio
    return features


def _kurtosis(steps: np.ndarray) -> float:
    squared = steps * steps
    return float((squared * squared).mean()) / (float(squared.mean()) ** 2 + 1e-3)


def _reblur(luma: np.ndarray, steps: np.ndarray, axis: int) -> float:
    """Share of the steps along an axis that a box blur takes away; small for what is already blurred."""
    blurred = cv2.blur(luma, (9, 1) if axis == 1 else (1, 9))
    after = np.abs(np.diff(blurred, axis=axis))
    return float(np.maximum(steps - after, 0).mean()) / (float(steps.mean()) + 0.1)


def _noise_features(luma8: np.ndarray, luma: np.ndarray, ycrcb: np.ndarray) -> dict[str, float]:
    residual = np.abs(cv2.filter2D(luma, cv2.CV_32F, _NOISE_MASK))
    coarse = cv2.resize(luma, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    slope = np.abs(cv2.Sobel(coarse, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(coarse, cv2.CV_32F, 0, 1))
    local = cv2.resize(residual, (coarse.shape[1], coarse.shape[0]), interpolation=cv2.INTER_AREA)
    low, middle = np.percentile(slope, (25, 70))
    smooth, busy = local[slope <= low], local[slope >= middle]
    impulse = cv2.absdiff(luma8, cv2.medianBlur(luma8, 3))
    chroma_residual = chroma_step = chroma_deviation = 0.0
    for plane in cv2.split(ycrcb)[1:]:
        chroma_residual += float(np.abs(cv2.filter2D(plane, cv2.CV_32F, _NOISE_MASK)).mean()) / 2
        chroma_step += float(cv2.absdiff(plane[:, 1:], plane[:, :-1]).mean()) / 2
        chroma_deviation += float(cv2.meanStdDev(plane)[1][0, 0]) / 2
    return {
        "noise_mean": _log(float(residual.mean()), 0.1),
        "noise_smooth": _log(float(smooth.mean()), 0.1),
        "noise_smooth_low": _log(float(np.percentile(local, 10)), 0.1),
        "noise_busy_to_smooth": _log(float(busy.mean()), 0.1) - _log(float(smooth.mean()), 0.1),
        "noise_impulses": _log(float((impulse > 30).mean()), 1e-4),
        "noise_median_residual": _log(float(impulse.mean()), 0.05),
        "noise_chroma": _log(chroma_residual, 0.1),
        "chroma_gradient": _log(chroma_step, 0.1),
        "chroma_deviation": _log(chroma_deviation, 0.5),
    }


def _period_features(luma: np.ndarray) -> dict[str, float]:
    """Traces of block grids and of enlarging: the mean step at each column (row) against its neighbours'."""
    features: dict[str, float] = {}
    for order in (1, 2):
        contrasts: dict[int, list[float]] = {period: [] for period in _PERIODS}
        peaks = []
        for axis in (0, 1):
            steps = np.minimum(np.abs(np.diff(luma, n=order, axis=1 - axis)), 24)
            profile = steps.mean(axis=axis)
            around = cv2.blur(profile.reshape(1, -1), (17, 1)).ravel()
            relative = profile / (around + 0.05)
            for period in _PERIODS:
                usable = len(relative) // period * period
                phases = relative[:usable].reshape(-1, period).mean(axis=0)
                contrasts[period].append(float(phases.max() - phases.min()))
            power = np.abs(np.fft.rfft((relative - relative.mean()) * np.hanning(len(relative)))) ** 2
            power = power[len(power) // 12 :]
            peaks.append(_log(float(power.max() / (np.median(power) + 1e-3)), 1.0))
        for period, values in contrasts.items():
            features[f"period{period}_order{order}"] = _log(float(np.mean(values)), 0.02)
        features[f"period_peak_order{order}"] = float(np.mean(peaks))
    return features


def _step_features(luma8: np.ndarray) -> dict[str, float]:
    """Banding: shares of lone steps between flat runs, by the height of the step, and of flat places."""
    counts = np.zeros(5)
    flat = exact = 0.0
    for plane in (luma8[::2], luma8.T[::2]):
        steps = cv2.absdiff(np.ascontiguousarray(plane[:, 1:]), np.ascontiguousarray(plane[:, :-1]))
        calm = steps <= 1
        lone = calm[:, :-4] & calm[:, 1:-3] & calm[:, 3:-1] & calm[:, 4:]
        heights = steps[:, 2:-2][lone]
        bins = np.bincount(np.digitize(heights, (1, 2, 4, 8, 16)), minlength=6)[1:]
        counts += bins / steps.size / 2
        flat += float(calm.mean()) / 2
        exact += float((steps == 0).mean()) / 2
    names = ("1", "2_to_3", "4_to_7", "8_to_15", "over_15")
    features = {f"lone_step_{name}": _log(count, 1e-4) for name, count in zip(names, counts, strict=True)}
    return features | {"flat_steps": flat, "zero_steps": exact}


def _spectrum_features(luma: np.ndarray) -> dict[str, float]:
    """Mean power of rows and columns in bands of spatial frequency, against the lowest band."""
    total = np.zeros(_SPECTRUM_LENGTH // 2 + 1)
    for plane in (luma[::4], luma.T[::4]):
        usable = plane.shape[1] // _SPECTRUM_LENGTH * _SPECTRUM_LENGTH
        if not usable:
            plane = np.pad(plane, ((0, 0), (0, _SPECTRUM_LENGTH - plane.shape[1])), mode="symmetric")
            usable = _SPECTRUM_LENGTH
        segments = plane[:, :usable].reshape(-1, _SPECTRUM_LENGTH)
        segments = (segments - segments.mean(axis=1, keepdims=True)) * np.hanning(_SPECTRUM_LENGTH).astype(
            np.float32
        )
        total += (np.abs(np.fft.rfft(segments, axis=1)) ** 2).mean(axis=0)
    total /= _SPECTRUM_LENGTH
    bands = [_log(float(total[low:high].mean()), 0.5) for low, high in pairwise(_SPECTRUM_BANDS)]
    features = {f"spectrum{index}": band - bands[0] for index, band in enumerate(bands) if index}
    drops = np.diff(bands)
    return features | {"spectrum0": bands[0], "spectrum_steepest": float(drops.min())}


def _exposure_features(rgb: np.ndarray, luma8: np.ndarray) -> dict[str, float]:
    """Where the brightness lies, what is clipped, and how many of the levels between are in use."""
    histogram = _histogram(luma8)
    cumulative = np.cumsum(histogram)
    at = {share: int(np.searchsorted(cumulative, share / 100)) for share in (1, 10, 50, 90, 99)}
    features = {f"luma_percentile{share}": level / 255 for share, level in at.items()}
    top, bottom = at[99], at[1]
    mean, deviation = cv2.meanStdDev(luma8)
    planes = cv2.split(rgb)
    brightest = cv2.max(cv2.max(planes[0], planes[1]), planes[2])
    combs, used = [], []
    for plane in planes:
        levels = _histogram(plane)
        inner = levels[8:248]
        smooth = np.convolve(inner, np.full(5, 0.2), mode="same")
        combs.append(float(np.abs(inner - smooth).sum() / (inner.sum() + 0.05)))
        used.append(float((levels > 2e-4).mean()))
    return features | {
        "luma_mean": float(mean[0, 0]) / 255,
        "luma_deviation": float(deviation[0, 0]) / 128,
        "luma_range": (top - bottom) / 255,
        "white_part": float(cumulative[-1] - cumulative[249]),
        "black_part": float(cumulative[5]),
        "white_share": _log(float(cumulative[-1] - cumulative[249]), 0.003),
        "bright_share": _log(float(cumulative[-1] - cumulative[229]), 0.003),
        "black_share": _log(float(cumulative[5]), 0.003),
        "dark_share": _log(float(cumulative[25]), 0.003),
        "at_top_share": _log(float(histogram[max(0, top - 1) : top + 2].sum()), 0.003),
        "at_bottom_share": _log(float(histogram[max(0, bottom - 1) : bottom + 2].sum()), 0.003),
        "channel_white_part": float((brightest >= 250).mean()),
        "channel_white_share": _log(float((brightest >= 250).mean()), 0.003),
        "histogram_comb": float(np.mean(combs)),
        "histogram_used": float(np.mean(used)),
        "histogram_fewest_used": min(used),
    }


def _histogram(plane: np.ndarray) -> np.ndarray:
    """``(256,)`` shares of the levels of a uint8 plane."""
    return cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel() / plane.size


def _temporal_features(images: np.ndarray, times_s: np.ndarray) -> dict[str, float]:
    """Repeated, missing and shaking frames: differences and shifts between consecutive frames."""
    luma = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in images]
    if len(luma) == 1:
        luma, times_s = luma * 2, np.array([0.0, 1.0])
    differences = [cv2.absdiff(after, before) for before, after in pairwise(luma)]
    change = np.array([float(difference.mean()) for difference in differences])
    quiet = float(np.median(np.percentile([part[::4, ::4].ravel() for part in differences], 25, axis=1)))
    still = float(np.median([(part < 0.5).mean() for part in differences]))
    usual = float(np.median(change[change > 0.02])) if (change > 0.02).any() else 0.02
    ratio = np.log((change + 0.02) / (usual + 0.02))
    features = {
        "change": _log(usual, 0.05),
        "still_part": still,
        "change_quiet": _log(quiet, 0.05),
        "change_spread": float(ratio.std()),
        "change_roughness": float(np.abs(np.diff(ratio)).mean()) if len(ratio) > 1 else 0.0,
        "change_low": float(np.percentile(ratio, 10)),
        "change_high": float(np.percentile(ratio, 95)),
        "repeated_exact": float((change < 0.02).mean()),
        "repeated_share": float((ratio < np.log(0.1)).mean()),
        "repeated_nearly_share": float((ratio < np.log(0.3)).mean()),
        "jump_share": float((ratio > np.log(2.5)).mean()),
        "longest_repeat": _longest_run(ratio < np.log(0.1)) / len(ratio),
    }
    features |= _cadence_features(change, times_s)
    features |= _shift_features(luma)
    levels = np.array([float(plane.mean()) for plane in luma])
    detail = np.array([_log(float(np.abs(np.diff(plane, axis=1)).mean()), 0.1) for plane in luma])
    features["level_flicker"] = _log(_roughness(levels), 0.05)
    features["detail_flicker"] = _log(_roughness(detail), 0.003)
    return features


def _longest_run(flags: Sequence[bool] | np.ndarray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _roughness(values: np.ndarray) -> float:
    """Mean absolute second difference; 0 for fewer than three values."""
    return float(np.abs(np.diff(values, n=2)).mean()) if len(values) > 2 else 0.0


def _cadence_features(change: np.ndarray, times_s: np.ndarray) -> dict[str, float]:
    gaps = np.diff(times_s)
    usual = float(np.median(gaps)) or 1.0
    padded = np.pad(change, 4, mode="symmetric")
    local = np.median(np.lib.stride_tricks.sliding_window_view(padded, 9), axis=1)
    against_local = np.log((change + 0.02) / (local + 0.02))
    return {
        "gap_share": float((gaps > 1.7 * usual).mean()),
        "gap_excess": float(np.maximum(gaps / usual - 1.5, 0).mean()),
        "local_repeated_share": float((against_local < np.log(0.25)).mean()),
        "local_jump_share": float((against_local > np.log(2.0)).mean()),
        "local_spread": float(against_local.std()),
    }


def _shift(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> np.ndarray:
    """``(2,)`` columns and rows by which the picture moved, by least squares from coarse to fine.

    Args:
        before, after: planes of falling coarseness, each twice the size of the one before it.
    """
    shift = np.zeros(2)
    for old, new in zip(before, after, strict=True):
        height, width = old.shape
        limit = np.array([width // 3, height // 3])
        columns, rows = (int(value) for value in np.clip(np.rint(2 * shift), -limit, limit))
        first = old[max(0, -rows) : height - max(0, rows), max(0, -columns) : width - max(0, columns)]
        second = new[max(0, rows) : height - max(0, -rows), max(0, columns) : width - max(0, -columns)]
        mean, change = first + second, (second - first)[1:-1, 1:-1].ravel()
        slope_x = (mean[1:-1, 2:] - mean[1:-1, :-2]).ravel() / 4
        slope_y = (mean[2:, 1:-1] - mean[:-2, 1:-1]).ravel() / 4
        xx, yy, xy = float(slope_x @ slope_x) + 1, float(slope_y @ slope_y) + 1, float(slope_x @ slope_y)
        x, y = -float(slope_x @ change), -float(slope_y @ change)
        step = np.array([yy * x - xy * y, xx * y - xy * x]) / (xx * yy - xy * xy + 1e-6)
        shift = np.array([columns, rows]) + np.clip(step, -2, 2)
    return shift


def _shift_features(luma: Sequence[np.ndarray]) -> dict[str, float]:
    """Camera shake: how the shift of the whole picture changes from one pair of frames to the next."""
    pyramids = []
    for plane in luma:
        smooth = cv2.GaussianBlur(plane, (0, 0), 2.0)
        middle = cv2.resize(smooth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        pyramids.append((cv2.resize(middle, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), middle))
    shifts = np.array([_shift(before, after) for before, after in pairwise(pyramids)])
    shifts *= 100 / min(pyramids[0][1].shape)  # in hundredths of the shorter side
    speed = np.linalg.norm(shifts, axis=1)
    changes = np.linalg.norm(np.diff(shifts, axis=0), axis=1) if len(shifts) > 1 else np.zeros(1)
    turns = (shifts[1:] * shifts[:-1]).sum(axis=1) if len(shifts) > 1 else np.zeros(1)
    jitter = float(np.median(changes))
    return {
        "shift": _log(float(np.median(speed)), 0.05),
        "shift_jitter": _log(jitter, 0.05),
        "shift_jitter_mean": _log(float(np.minimum(changes, 20).mean()), 0.05),
        "shift_jitter_low": _log(float(np.percentile(changes, 25)), 0.05),
        "shift_jitter_to_speed": _log(jitter / (float(np.median(speed)) + 0.1), 0.05),
        "shift_turns": float((turns < 0).mean()),
    }
