"""Damage on purpose: the degradations that ``nano-vqa`` learns to rank, each in many variants.

``degrade(name, shot, strength, seed)`` draws the variant (kernel, codec, amplitude law, ...) from ``seed``
alone, so that calls which differ in ``strength`` only are one ladder: the same damage, more of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import cv2
import numpy as np
import PIL.Image
from av.video.reformatter import Interpolation

_SAME_BYTES = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)
"""Without these the scaler's result depends on where in memory a picture lies."""

__all__ = ["DEGRADATIONS", "Shot", "degrade", "through_codec"]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A clip in memory.

    Attributes:
        frames: ``(n, H, W, 3)`` uint8 RGB; even height and width.
        times_s: ``(n,)`` seconds, increasing.
    """

    frames: np.ndarray
    times_s: np.ndarray


def degrade(name: str, shot: Shot, strength: float, seed: int) -> Shot:
    """Damage a clip.

    Args:
        name: one of ``DEGRADATIONS``.
        shot: what to damage; left as it is.
        strength: in [0, 1]: 0 is barely visible, 1 is ruin.
        seed: chooses the variant and every random number in it.

    Raises:
        ValueError: unknown name, or strength outside [0, 1].
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"degradation: got {name!r}, expected one of {', '.join(DEGRADATIONS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: got {strength}, expected a number in [0, 1]")
    return DEGRADATIONS[name](shot, strength, np.random.default_rng(seed))


def through_codec(
    frames: np.ndarray, codec: str, options: dict[str, str], quantizer: int | None = None
) -> np.ndarray:
    """Encode and decode in memory; the same frames give the same result each time.

    Args:
        frames: ``(n, H, W, 3)`` uint8 RGB, even sizes.
        codec: FFmpeg's name of an encoder.
        options: the encoder's own options.
        quantizer: constant quantizer, 2 to 31, for encoders that have no quality option of their own.

    Raises:
        av.error.FFmpegError: the encoder refuses.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=Fraction(25)))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        # Without it x264's assembler reads memory that nobody wrote, at sizes that its blocks do not fill.
        repeatable = {"x264-params": "cpu-independent=1"} if codec == "libx264" else {}
        stream.codec_context.options = options | repeatable
        if quantizer is not None:
            stream.codec_context.qmin = stream.codec_context.qmax = quantizer
        for image in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(rgb.reformat(format=stream.pix_fmt, interpolation=_SAME_BYTES)))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with cast(av.container.InputContainer, av.open(buffer)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = [
            frame.reformat(format="rgb24", interpolation=_SAME_BYTES).to_ndarray()
            for frame in container.decode(video=0)
        ]
    return np.stack(decoded)


def _between(low: float, high: float, strength: float) -> float:
    """Geometric interpolation: equal steps of strength are equal ratios."""
    return low * (high / low) ** strength


def _choose(generator: np.random.Generator, *names: str) -> str:
    return names[int(generator.integers(len(names)))]


def _picture_scale(frames: np.ndarray) -> float:
    """Sizes in pixels below are meant for a shorter side of 360; larger pictures get proportionally more."""
    return max(0.7, min(frames.shape[1:3]) / 360)


def _with_frames(shot: Shot, frames: np.ndarray) -> Shot:
    return Shot(frames=frames, times_s=shot.times_s)


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _blur(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "gaussian", "gaussian", "box", "disk", "motion", "median")
    angle = generator.uniform(0, np.pi)
    sigma = _between(0.45, 5.0, strength) * _picture_scale(shot.frames)
    if kind == "median":
        size = min(31, 2 * int(np.ceil(sigma * 1.2)) + 1)
        return _with_frames(shot, np.stack([cv2.medianBlur(image, size) for image in shot.frames]))
    radius = int(np.ceil(sigma * 3))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    if kind == "gaussian":
        kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    elif kind == "box":
        half = sigma * np.sqrt(3)
        kernel = np.clip(half + 0.5 - np.abs(x), 0, 1) * np.clip(half + 0.5 - np.abs(y), 0, 1)
    elif kind == "disk":
        kernel = np.clip(2 * sigma + 0.5 - np.hypot(x, y), 0, 1)
    else:
        along = x * np.cos(angle) + y * np.sin(angle)
        across = -x * np.sin(angle) + y * np.cos(angle)
        kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(2.5 * sigma + 0.5 - np.abs(along), 0, 1)
    kernel = kernel / kernel.sum()
    return _with_frames(shot, np.stack([cv2.filter2D(image, -1, kernel) for image in shot.frames]))


def _noise(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "rgb", "rgb", "luma", "poisson", "impulses", "speckle", "grain", "fixed")
    sigma = _between(1.5, 50, strength)
    share = _between(0.0007, 0.2, strength)
    height, width = shot.frames.shape[1:3]
    # One field per clip, and each frame its own cut of it: drawing is what takes the time.
    channels = 1 if kind in ("luma", "impulses", "grain") else 3
    field: np.ndarray = generator.standard_normal((height + 64, width + 64, channels), np.float32)
    if kind == "grain":
        field = cv2.GaussianBlur(field, (0, 0), 0.8)[:, :, None]
        field = field / field.std()
    shifts = generator.integers(0, 65, (len(shot.frames), 2))
    limit = np.quantile(np.abs(field[::4, ::4]), 1 - share)
    frames = np.empty_like(shot.frames)
    for index, image in enumerate(shot.frames):
        top, left = (0, 0) if kind == "fixed" else shifts[index]
        drawn = field[top : top + height, left : left + width]
        values = image.astype(np.float32)
        if kind == "impulses":
            values = np.where(drawn > limit, 255, np.where(drawn < -limit, 0, values))
        elif kind == "poisson":
            values += sigma * np.sqrt(values / 128) * drawn
        elif kind == "speckle":
            values *= 1 + sigma / 110 * drawn
        else:
            values += sigma * drawn
        frames[index] = _clip(values)
    return _with_frames(shot, frames)


def _compression(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "libx264", "libx264", "libx264", "libx264", "libx265", "libvpx")
    preset = _choose(generator, "ultrafast", "superfast", "veryfast", "veryfast", "medium")
    keyframes = str(int(generator.integers(8, 60)))
    if kind == "libvpx":
        rate = {
            "qmin": "4",
            "qmax": "63",
            "crf": str(round(10 + 53 * strength)),
            "b": "4000000",
            "cpu-used": "8",
        }
        return _with_frames(
            shot, through_codec(shot.frames, kind, {**rate, "g": keyframes, "deadline": "realtime"})
        )
    options = {"crf": str(round(20 + 31 * strength)), "preset": preset, "g": keyframes}
    if kind == "libx265":
        options |= {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}
    return _with_frames(shot, through_codec(shot.frames, kind, options))


def _blocks(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "jpeg", "jpeg", "jpeg_shifted", "mpeg2video", "mpeg4", "mjpeg", "mosaic")
    offset_y, offset_x = (int(value) for value in generator.integers(1, 8, 2))
    if kind in ("mpeg2video", "mpeg4", "mjpeg"):
        quantizer = round(_between(3, 31, strength))
        return _with_frames(shot, through_codec(shot.frames, kind, {"g": "12"}, quantizer))
    frames = np.empty_like(shot.frames)
    height, width = shot.frames.shape[1:3]
    if kind == "mosaic":
        size = 8 * int(generator.integers(1, 3))
        rows, columns = -(-height // size), -(-width // size)
        for index, image in enumerate(shot.frames):
            means = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
            coarse = np.repeat(np.repeat(means, size, axis=0), size, axis=1)[:height, :width]
            lost = generator.random((rows, columns)) < _between(0.004, 0.6, strength)
            mask = np.repeat(np.repeat(lost, size, axis=0), size, axis=1)[:height, :width]
            frames[index] = np.where(mask[:, :, None], coarse, image)
        return _with_frames(shot, frames)
    top, left = (offset_y, offset_x) if kind == "jpeg_shifted" else (0, 0)
    quality, subsampling = round(_between(75, 3, strength)), 2 * int(offset_x > 2)  # 4:2:0 or 4:4:4
    for index, image in enumerate(shot.frames):
        padded = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REPLICATE)
        buffer = io.BytesIO()
        PIL.Image.fromarray(padded).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        frames[index] = np.asarray(PIL.Image.open(buffer))[top:, left:]
    return _with_frames(shot, frames)


def _through_table(shot: Shot, table: np.ndarray) -> Shot:
    """Send every channel value through a table of 256 floats in [0, 1]."""
    return _with_frames(shot, cv2.LUT(shot.frames, _clip(table * 255)).reshape(shot.frames.shape))


def _overexposure(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "gain", "gain", "stops", "offset", "gamma")
    levels = np.arange(256) / 255
    if kind == "gain":
        return _through_table(shot, levels * _between(1.15, 4.5, strength))
    if kind == "stops":
        return _through_table(shot, np.minimum(levels**2.2 * _between(1.25, 16, strength), 1) ** (1 / 2.2))
    if kind == "offset":
        return _through_table(shot, levels + _between(0.06, 0.65, strength))
    return _through_table(shot, levels ** (1 / _between(1.15, 4.5, strength)))


def _underexposure(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "gain", "gain", "stops", "offset", "gamma")
    levels = np.arange(256) / 255
    if kind == "gain":
        return _through_table(shot, levels / _between(1.15, 9, strength))
    if kind == "stops":
        return _through_table(shot, (levels**2.2 / _between(1.25, 80, strength)) ** (1 / 2.2))
    if kind == "offset":
        return _through_table(shot, levels - _between(0.06, 0.6, strength))
    return _through_table(shot, levels ** _between(1.15, 4.5, strength))


def _banding(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "round", "round", "floor", "luma", "centre")
    num_levels = _between(90, 2.6, strength)
    levels = np.arange(256) / 255
    step = 1 / (num_levels - 1)
    if kind in ("floor", "centre"):
        lower = np.floor(levels * num_levels * 0.9999)
        table = lower / num_levels if kind == "floor" else (lower + 0.5) / num_levels
    else:
        table = np.rint(levels / step) * step
    if kind != "luma":
        return _through_table(shot, table)
    frames = np.empty_like(shot.frames)
    for index, image in enumerate(shot.frames):
        luma, red, blue = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
        planes = [cv2.LUT(luma, _clip(table * 255)), red, blue]
        frames[index] = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2RGB)
    return _with_frames(shot, frames)


_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}


def _upscaling(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    down = _INTERPOLATIONS[_choose(generator, "area", "area", "linear", "cubic", "lanczos", "nearest")]
    up = _INTERPOLATIONS[_choose(generator, "linear", "linear", "cubic", "cubic", "lanczos", "nearest")]
    factor = _between(1.2, 8.0, strength)
    height, width = shot.frames.shape[1:3]
    size = max(4, round(width / factor)), max(4, round(height / factor))
    return _with_frames(
        shot,
        np.stack(
            [
                cv2.resize(cv2.resize(image, size, interpolation=down), (width, height), interpolation=up)
                for image in shot.frames
            ]
        ),
    )


def _frame_drops(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    """Frames lost: the last one is held (at random, periodically, or in a long freeze), or a gap is left."""
    kind = _choose(generator, "hold", "hold", "periodic", "freeze", "gap", "jump")
    count = len(shot.frames)
    phase = generator.random()
    order = generator.permutation(np.arange(1, count - 1))
    num_lost = max(1, round((count - 2) * _between(0.05, 0.75, strength)))
    lost = np.zeros(count, bool)
    if kind == "periodic":
        share = max(_between(0.05, 0.8, strength), 1.001 / (count - 1))
        places = np.floor((np.arange(count) + phase) * share)
        lost[1:] = np.diff(places) >= 1
    elif kind == "freeze":
        length = max(1, min(num_lost, count // 2 if strength < 0.8 else num_lost))
        first = 1 + int(phase * max(1, count - 1 - length))
        lost[first : first + length] = True
    else:
        lost[order[:num_lost]] = True
    if kind == "gap":
        return Shot(frames=shot.frames[~lost], times_s=shot.times_s[~lost])
    if kind == "jump":
        kept = shot.frames[~lost]
        return Shot(frames=kept, times_s=shot.times_s[: len(kept)])
    held = np.maximum.accumulate(np.where(lost, 0, np.arange(count)))
    return _with_frames(shot, shot.frames[held])


def _shake(shot: Shot, strength: float, generator: np.random.Generator) -> Shot:
    kind = _choose(generator, "shift", "shift", "whole", "roll", "rotate", "sway")
    border = {"mirror": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE, "black": cv2.BORDER_CONSTANT}[
        _choose(generator, "mirror", "edge", "black")
    ]
    crop = bool(generator.random() < 0.4)
    height, width = shot.frames.shape[1:3]
    amplitude = _between(0.0025, 0.05, strength) * min(height, width)
    moves = generator.standard_normal((len(shot.frames), 2))
    if generator.random() < 0.3:
        moves = np.sign(moves) * np.sqrt(np.abs(moves))
    if kind == "sway":
        ticks = np.arange(len(shot.frames))[:, None] * generator.uniform(0.8, 2.2, 2) + generator.uniform(
            0, 6, 2
        )
        moves = 1.4 * np.sin(ticks) + 0.4 * moves
    turns = generator.standard_normal(len(shot.frames)) * (1.0 if kind == "rotate" else 0.0)
    moves, angles = moves * amplitude, turns * amplitude / min(height, width) * 60
    margin = 1 + (2.5 * amplitude / min(height, width) * 2 if crop else 0)
    frames = np.empty_like(shot.frames)
    for index, image in enumerate(shot.frames):
        move_x, move_y = (float(value) for value in moves[index])
        if kind == "roll":
            frames[index] = np.roll(image, (round(move_y), round(move_x)), axis=(0, 1))
            continue
        if kind == "whole":
            move_x, move_y = round(move_x), round(move_y)
        scale = 1.0 if kind == "whole" else margin
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(angles[index]), scale)
        matrix[:, 2] += np.array([move_x, move_y])
        frames[index] = cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=border
        )
    return _with_frames(shot, frames)


DEGRADATIONS: dict[str, Callable[[Shot, float, np.random.Generator], Shot]] = {
    "blur": _blur,
    "noise": _noise,
    "compression": _compression,
    "blocks": _blocks,
    "overexposure": _overexposure,
    "underexposure": _underexposure,
    "banding": _banding,
    "upscaling": _upscaling,
    "frame_drops": _frame_drops,
    "shake": _shake,
}
