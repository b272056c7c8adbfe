"""What ``nano-vqa`` learns on, before any damage: pieces of real clips, and procedural scenes.

Both are functions of a seed. Real pieces are resized, cropped, mirrored, reversed and thinned out at
random; one in six is a single picture under a slow synthetic camera move, so that content and motion do not
go together. Procedural scenes are textures (fractal noise, dead leaves, gradients, patterns with writing)
under a smooth camera, with objects moving over them.

References: dead leaves, Lee, Mumford and Huang, IJCV 2001; 1/f spectra of natural pictures, Field, JOSA A
1987.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_pipeline.vqa.degrade import Shot
from hummingbird.config import config_dataclass
from hummingbird.video_io import VideoError, iter_frames

__all__ = ["RealSource", "procedural_shot", "real_shot", "varied"]


@config_dataclass
class RealSource:
    """One real video and the parts of it without cuts.

    Attributes:
        file: name in the folder of clips.
        group: files of the same film or take share a group; groups are never split between training and test.
        spans_s: ``(start, end)`` in seconds of each part to use.
    """

    file: str
    group: str
    spans_s: tuple[tuple[float, float], ...]


def real_shot(clips: Path, source: RealSource, num_frames: int, seed: int) -> Shot:
    """A random piece of a real clip.

    Args:
        clips: the folder of clips.
        source: which of them.
        num_frames: length wanted; short sources are played forwards and backwards until it is reached.
        seed: chooses everything else.

    Raises:
        VideoError: the file cannot be read, or has no frame in the chosen part.
    """
    generator = np.random.default_rng(seed)
    lengths = np.array([end - start for start, end in source.spans_s])
    span_start, span_end = source.spans_s[int(generator.choice(len(lengths), p=lengths / lengths.sum()))]
    stride = 2 if generator.random() < 0.25 else 1
    start_s = span_start + generator.random() * max(
        0.0, (span_end - span_start) - 0.5 - num_frames * stride / 24
    )
    size: tuple[int, int] | None = None
    images: list[np.ndarray] = []
    for frame in iter_frames(clips / source.file, start_s=start_s, end_s=span_end):
        if frame.index % stride:
            continue
        image = frame.rgb()
        if size is None:
            short_side = min(image.shape[:2])
            wanted = short_side if generator.random() < 0.35 else generator.uniform(160, min(short_side, 440))
            wanted = min(wanted, 480)
            size = round(image.shape[1] * wanted / short_side), round(image.shape[0] * wanted / short_side)
            resize = cv2.INTER_AREA if generator.random() < 0.7 else cv2.INTER_CUBIC
        if size != (image.shape[1], image.shape[0]):
            image = cv2.resize(image, size, interpolation=resize)
        images.append(image)
        if len(images) == num_frames:
            break
    if not images:
        raise VideoError(f"{clips / source.file}: no frame from {start_s:.2f} to {span_end:.2f} s")
    if generator.random() < 1 / 6:
        images = _moved_still(images[0], num_frames, generator)
    # Too few: forwards and backwards, without showing the turning points twice.
    there_and_back = [*range(len(images)), *range(len(images) - 2, 0, -1)]
    order = [there_and_back[index % len(there_and_back)] for index in range(num_frames)]
    frames = _cropped(np.stack([images[index] for index in order]), generator)
    if generator.random() < 0.5:
        frames = frames[:, :, ::-1]
    if generator.random() < 0.3:
        frames = frames[::-1]
    if generator.random() < 0.1:
        luma = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in frames])
        frames = np.repeat(luma[..., None], 3, axis=3)
    return Shot(frames=np.ascontiguousarray(frames), times_s=np.arange(num_frames) / 25)


def _cropped(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random part, of even size: most of the picture, or a small piece of it that may be all sky."""
    height, width = frames.shape[1:3]
    smallest = 0.4 if generator.random() < 0.4 else 0.75
    new_height = max(96, int(height * generator.uniform(smallest, 1)) // 2 * 2)
    new_width = max(96, int(min(width, 640) * generator.uniform(smallest, 1)) // 2 * 2)
    top = int(generator.integers(height - new_height + 1))
    left = int(generator.integers(width - new_width + 1))
    return frames[:, top : top + new_height, left : left + new_width]


def _moved_still(image: np.ndarray, num_frames: int, generator: np.random.Generator) -> list[np.ndarray]:
    height, width = image.shape[:2]
    return [
        cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        for matrix in _camera(num_frames, width / 2, height / 2, 1.12, 0.05 * min(height, width), generator)
    ]


def _camera(
    num_frames: int,
    centre_x: float,
    centre_y: float,
    zoom: float,
    reach: float,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """Affine matrices of a smooth camera: a pan of up to ``reach`` pixels either way, with a slow zoom."""
    time = np.linspace(-1, 1, num_frames)
    angle = generator.uniform(0, 2 * np.pi)
    along = generator.choice([0.0, 0.3, 1.0]) * reach * (time + generator.uniform(-0.3, 0.3) * (time**2 - 1))
    zooms = zoom * np.exp(generator.choice([0.0, 0.0, 0.06]) * generator.uniform(-1, 1) * time)
    matrices = []
    for offset, factor in zip(along, zooms, strict=True):
        matrix = cv2.getRotationMatrix2D((centre_x, centre_y), 0.0, float(factor))
        matrix[:, 2] += offset * np.cos(angle), offset * np.sin(angle)
        matrices.append(matrix)
    return matrices


def varied(shot: Shot, seed: int) -> Shot:
    """The shot as another camera might have taken it: other tones, a softer lens, a noisier sensor.

    Rankings are learned from many starting points this way, and not from immaculate pictures only.
    """
    generator = np.random.default_rng(seed)
    levels = np.arange(256) / 255
    if generator.random() < 0.5:
        levels = levels**2 ** generator.uniform(-0.7, 0.9)
    if generator.random() < 0.4:
        contrast = generator.uniform(0.35, 1.0)
        levels = levels * contrast + generator.uniform(0, 1 - contrast)
    table = (levels * 255).round().astype(np.uint8)
    softness = generator.uniform(0.3, 1.4) if generator.random() < 0.35 else 0.0
    noise = generator.uniform(0.5, 5.0) if generator.random() < 0.35 else 0.0
    saturation = generator.uniform(0.0, 1.3) if generator.random() < 0.3 else 1.0
    frames = np.empty_like(shot.frames)
    for index, frame in enumerate(shot.frames):
        image = cv2.GaussianBlur(frame, (0, 0), softness) if softness else frame
        image = cv2.LUT(image, table).astype(np.float32)
        grey = image.mean(axis=2, keepdims=True)
        image = grey + saturation * (image - grey)
        if noise:
            image += noise * generator.standard_normal(image.shape, np.float32)
        frames[index] = np.clip(np.rint(image), 0, 255)
    return Shot(frames=frames, times_s=shot.times_s)


def procedural_shot(num_frames: int, seed: int) -> Shot:
    """A procedural scene of ``num_frames`` frames."""
    generator = np.random.default_rng(seed)
    height = int(generator.integers(90, 200)) * 2
    width = int(height * generator.uniform(0.8, 1.8)) // 2 * 2
    background = _texture(height, width, generator)
    matrices = _camera(num_frames, width / 2, height / 2, 1.15, 0.06 * min(height, width), generator)
    objects = [
        _moving_object(height, width, num_frames, generator) for _ in range(int(generator.integers(0, 5)))
    ]
    softness = generator.choice([0.0, 0.0, 0.4, 0.6])
    noise = generator.choice([0.0, 0.5, 1.0, 1.5])
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for index, matrix in enumerate(matrices):
        image = cv2.warpAffine(
            background, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        for texture, mask, places in objects:
            shift = np.array([[1, 0, places[index, 0]], [0, 1, places[index, 1]]])
            alpha = cv2.warpAffine(mask, shift, (width, height), flags=cv2.INTER_LINEAR)[:, :, None]
            moved = cv2.warpAffine(texture, shift, (width, height), flags=cv2.INTER_CUBIC)
            image = image * (1 - alpha) + moved * alpha
        if softness:
            image = cv2.GaussianBlur(image, (0, 0), softness)
        image = image + noise * generator.standard_normal(image.shape, np.float32)
        frames[index] = np.clip(np.rint(image), 0, 255)
    return Shot(frames=frames, times_s=np.arange(num_frames) / 25)


def _moving_object(
    height: int, width: int, num_frames: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A textured polygon: its picture, its soft mask, and its place ``(n, 2)`` in each frame."""
    radius = min(height, width) * generator.uniform(0.08, 0.3)
    corners = int(generator.choice([3, 4, 5, 30]))
    angles = (
        np.sort(generator.uniform(0, 2 * np.pi, corners)) if corners < 30 else np.linspace(0, 2 * np.pi, 30)
    )
    centre = np.array([width, height]) * generator.uniform(0.1, 0.9, 2)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    time = np.linspace(-1, 1, num_frames)[:, None]
    direction = generator.uniform(-1, 1, 2) * min(height, width) * generator.choice([0.02, 0.1, 0.3])
    places = direction * time + generator.choice([0.0, 0.05]) * min(height, width) * np.sin(
        time * generator.uniform(1, 6, 2)
    )
    return _texture(height, width, generator), mask.astype(np.float32) / 255, places


def _texture(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """``(H, W, 3)`` float32 in [0, 255]."""
    kind = int(generator.integers(5))
    if kind == 0:
        image = _fractal(height, width, generator)
    elif kind == 1:
        image = _dead_leaves(height, width, generator)
    elif kind == 2:
        image = _gradient(height, width, generator)
    elif kind == 3:
        image = _pattern(height, width, generator)
    else:
        blend = cv2.GaussianBlur(generator.random((height, width), np.float32), (0, 0), 40)
        mask = (blend > np.median(blend)).astype(np.float32)[:, :, None]
        image = mask * _gradient(height, width, generator) + (1 - mask) * _dead_leaves(
            height, width, generator
        )
    low, high = np.percentile(image, (1, 99))
    dark = generator.uniform(0, 70)
    bright = generator.uniform(150, 250)
    return np.clip((image - low) / (high - low + 1e-3) * (bright - dark) + dark, 0, 255).astype(np.float32)


def _fractal(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    size = 1 << (max(height, width) - 1).bit_length()
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    planes = []
    slope = generator.uniform(0.9, 1.9)
    for _ in range(2):
        spectrum = np.fft.rfft2(generator.standard_normal((size, size))) / frequency**slope
        plane = np.fft.irfft2(spectrum, s=(size, size))[:height, :width]
        planes.append((plane - plane.mean()) / plane.std())
    colours = generator.uniform(-1, 1, (2, 3))
    return planes[0][..., None] * (1 + 0.3 * colours[0]) + planes[1][..., None] * 0.4 * colours[1]


def _dead_leaves(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    image = np.full((height, width, 3), 0.5, np.float32)
    smallest, largest = generator.uniform(2, 8), min(height, width) * 0.3
    for _ in range(int(generator.integers(150, 900))):
        # Radii with density r^-3, the law under which such pictures look alike at all scales.
        radius = (smallest**-2 + generator.random() * (largest**-2 - smallest**-2)) ** -0.5
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        colour = tuple(float(value) for value in generator.random(3) * 0.5 + generator.random() * 0.5)
        if generator.random() < 0.5:
            cv2.circle(image, (round(x * 16), round(y * 16)), round(radius * 16), colour, -1, cv2.LINE_AA, 4)
        else:
            angle, long = generator.uniform(0, 180), radius * generator.uniform(0.5, 2)
            box = cv2.boxPoints(((x, y), (2 * radius, 2 * long), angle))
            cv2.fillPoly(image, [np.rint(box * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
    texture = _fractal(height, width, generator)
    return image + generator.choice([0.0, 0.03, 0.08]) * texture


def _gradient(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    angle = generator.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    if generator.random() < 0.5:
        ramp = np.hypot(x - generator.uniform(0, 1), y - generator.uniform(0, 1))
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    first, second = generator.random(3), generator.random(3)
    return first + (second - first) * ramp[..., None]


def _pattern(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    image = np.asarray(_gradient(height, width, generator), np.float32) * 0.4 + 0.3
    if generator.random() < 0.5:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        angle, period = generator.uniform(0, np.pi), generator.uniform(6, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        image += (0.3 * np.clip(wave * generator.uniform(1, 6), -1, 1))[..., None]
    letters = "".join(chr(int(code)) for code in generator.integers(48, 123, 40))
    for row in range(int(generator.integers(2, 12))):
        colour = generator.random(3)
        size = generator.uniform(0.3, 1.5)
        place = (int(generator.integers(-20, width // 2)), round((row + 1) * height / 10))
        ink = np.zeros((height, width), np.uint8)
        cv2.putText(ink, letters[row:], place, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1, cv2.LINE_AA)
        image += (ink / np.float32(255))[..., None] * (colour - image)
    return image
