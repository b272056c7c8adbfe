"""The moving-shapes world: a prompt fully determines what must be seen.

One shape of a given colour moves in a given way over a given background. Clips are rendered from
signed distances, so edges are anti-aliased and every position is exact. All draws come from a numpy
generator: the same seed gives the same bytes.

Everything here works on batches; one core renders several hundred clips a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

IMAGE_SIZE = 64
NUM_FRAMES = 16
FPS = 8

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
MOTIONS = ("right", "left", "up", "down", "upright", "downleft", "grow", "shrink", "bounce", "orbit")
BACKGROUNDS = ("black", "white", "gray", "navy", "brown", "teal")
ATTRIBUTES = ("shape", "color", "motion", "background")

COLOR_RGB = np.array(
    [
        [225, 40, 40], [40, 180, 60], [50, 90, 240], [245, 220, 40],
        [150, 50, 200], [250, 135, 25], [40, 215, 225], [250, 140, 195],
    ],
    dtype=np.float32,
)  # fmt: skip
BACKGROUND_RGB = np.array(
    [[15, 15, 15], [242, 242, 242], [128, 128, 128], [20, 28, 95], [105, 65, 35], [10, 95, 95]],
    dtype=np.float32,
)

_SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
}
# The first phrase of each motion is the canonical one, used for evaluation.
_MOTION_PHRASES = {
    "right": ("moving right", "moving from left to right", "sliding to the right"),
    "left": ("moving left", "moving from right to left", "sliding to the left"),
    "up": ("moving up", "rising upwards", "going up"),
    "down": ("moving down", "falling downwards", "going down"),
    "upright": ("moving diagonally up", "climbing diagonally to the upper right"),
    "downleft": ("moving diagonally down", "descending diagonally to the lower left"),
    "grow": ("growing", "getting bigger", "expanding"),
    "shrink": ("shrinking", "getting smaller"),
    "bounce": ("bouncing", "bouncing up and down", "jumping up and down"),
    "orbit": ("circling around", "moving in circles", "orbiting"),
}
_TEMPLATES = (
    "a {color} {shape} {motion} on a {background} background",
    "a {color} {shape} is {motion} over a {background} background",
    "{color} {shape} {motion}, {background} background",
    "a video of a {color} {shape} {motion} on {background}",
    "on a {background} background, a {color} {shape} is {motion}",
)
# What a clip becomes when it is played backwards; bounce and orbit do not map onto another caption.
REVERSED_MOTION = {
    "right": "left", "left": "right", "up": "down", "down": "up", "upright": "downleft",
    "downleft": "upright", "grow": "shrink", "shrink": "grow",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """What a prompt of the world asks for; each field is one of the module's value tuples."""

    shape: str
    color: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for name, values in zip(ATTRIBUTES, (SHAPES, COLORS, MOTIONS, BACKGROUNDS), strict=True):
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(values)}")

    @property
    def indices(self) -> tuple[int, int, int, int]:
        """(shape, color, motion, background) as positions in the value tuples."""
        return (
            SHAPES.index(self.shape),
            COLORS.index(self.color),
            MOTIONS.index(self.motion),
            BACKGROUNDS.index(self.background),
        )

    @property
    def is_unseen(self) -> bool:
        """True for the (shape, color, motion) triples that are never trained on."""
        shape, color, motion, _ = self.indices
        return (7 * shape + 3 * color + 5 * motion) % 12 == 0

    @property
    def prompt(self) -> str:
        """The canonical caption."""
        return _TEMPLATES[0].format(
            color=self.color,
            shape=self.shape,
            motion=_MOTION_PHRASES[self.motion][0],
            background=self.background,
        )

    def random_caption(self, rng: np.random.Generator) -> str:
        """A caption with a random template and random synonyms."""

        def pick(options: Sequence[str]) -> str:
            return options[int(rng.integers(len(options)))]

        return pick(_TEMPLATES).format(
            color=self.color,
            shape=pick(_SHAPE_WORDS[self.shape]),
            motion=pick(_MOTION_PHRASES[self.motion]),
            background=self.background,
        )


def motion_phrase(motion: str) -> str:
    """The canonical words for a motion: ``upright`` is "moving diagonally up"."""
    return _MOTION_PHRASES[motion][0]


def all_captions() -> Iterator[tuple[str, Attributes]]:
    """Every caption the world can produce, canonical ones included (about 10^5)."""
    for attributes in all_attributes():
        for template in _TEMPLATES:
            for shape in _SHAPE_WORDS[attributes.shape]:
                for motion in _MOTION_PHRASES[attributes.motion]:
                    caption = template.format(
                        color=attributes.color, shape=shape, motion=motion, background=attributes.background
                    )
                    yield caption, attributes


@cache
def all_attributes() -> tuple[Attributes, ...]:
    """All 2,400 combinations, shape slowest, background fastest."""
    return tuple(
        Attributes(shape=shape, color=color, motion=motion, background=background)
        for shape in SHAPES
        for color in COLORS
        for motion in MOTIONS
        for background in BACKGROUNDS
    )


def vocabulary() -> tuple[str, ...]:
    """Every word (and the comma) that a caption can hold, sorted."""
    texts = list(_TEMPLATES)
    for phrases in (*_SHAPE_WORDS.values(), *_MOTION_PHRASES.values()):
        texts.extend(phrases)
    words = {token for text in texts for token in re.findall(r"\{?\w+\}?|,", text) if "{" not in token}
    return tuple(sorted(words | set(COLORS) | set(BACKGROUNDS)))


def parse_caption(caption: str) -> Attributes | None:
    """Reads a caption of the world back; None when it is not one (other words, or a part missing)."""
    text = re.sub(r"\s+", " ", caption.lower()).strip().rstrip(".")
    return _caption_table().get(text)


@cache
def _caption_table() -> dict[str, Attributes]:
    return dict(all_captions())


def evaluation_prompts(num_prompts: int, seed: int = 0) -> list[Attributes]:
    """Draws prompts for evaluation: the first half from seen, the second from unseen triples.

    Args:
        num_prompts: how many, at least 1; an odd one goes to the seen half.
        seed: of the numpy generator that draws them.
    """
    if num_prompts < 1:
        raise ValueError(f"num_prompts: got {num_prompts}, expected at least 1")
    rng = np.random.default_rng(seed)
    seen = [a for a in all_attributes() if not a.is_unseen]
    unseen = [a for a in all_attributes() if a.is_unseen]
    num_unseen = num_prompts // 2

    def draw(pool: list[Attributes], count: int) -> list[Attributes]:
        # Without replacement while the pool lasts, so that few prompts cover much of it.
        rounds = [rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))]
        return [pool[int(i)] for order in rounds for i in order][:count]

    return draw(seen, num_prompts - num_unseen) + draw(unseen, num_unseen)


def random_attributes(count: int, rng: np.random.Generator, *, unseen: bool = False) -> list[Attributes]:
    """Draws attributes uniformly from the seen combinations (or the unseen ones)."""
    pool = [a for a in all_attributes() if a.is_unseen == unseen]
    return [pool[int(i)] for i in rng.integers(len(pool), size=count)]


# ---------------------------------------------------------------------------------------- rendering

# Furthest reach of each shape from its centre, in radii: left/right, up, down.
_EXTENT = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.886, 0.886, 0.886),
    "triangle": (1.5 * 0.8661, 1.5, 0.75),
    "star": (1.42 * 0.9511, 1.42, 1.42 * 0.8091),
    "cross": (1.12, 1.12, 1.12),
}
_MARGIN_PX = 1.0


def render_clips(
    attributes: Sequence[Attributes],
    rng: np.random.Generator,
    *,
    num_frames: int = NUM_FRAMES,
    scale: int = 1,
    frame_indices: np.ndarray | None = None,
) -> Tensor:
    """Renders one clip for each element of ``attributes``.

    Args:
        attributes: what to draw, B of them.
        rng: draws radius, place, amplitude, colour jitter and gradient.
        num_frames: F, at least 1; the same motion is stretched over them.
        scale: the same clips drawn this many times as large, with edges as sharp in pixels; at least 1.
        frame_indices: (B, n) integers in [0, F): draws only these frames of each clip, as they are in the
            whole one. None draws all F.

    Returns:
        uint8 tensor (B, F or n, 64 scale, 64 scale, 3), RGB.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames: got {num_frames}, expected at least 1")
    if scale < 1:
        raise ValueError(f"scale: got {scale}, expected at least 1")
    count = len(attributes)
    tracks = np.empty((count, num_frames, 3), dtype=np.float32)  # centre x, centre y, radius
    for index, item in enumerate(attributes):
        tracks[index] = _track(item, rng, num_frames)
    if frame_indices is not None:
        tracks = np.take_along_axis(tracks, frame_indices[..., None], axis=1)
    indices = np.array([a.indices for a in attributes], dtype=np.int64).reshape(count, 4)
    color = _jitter(COLOR_RGB[indices[:, 1]], rng)
    size = IMAGE_SIZE * scale
    background = _background(_jitter(BACKGROUND_RGB[indices[:, 3]], rng), rng, size)

    video = torch.empty(count, tracks.shape[1], size, size, 3, dtype=torch.uint8)
    for shape_index, shape in enumerate(SHAPES):
        rows = np.flatnonzero(indices[:, 0] == shape_index)
        for part in np.array_split(rows, -(-len(rows) // 8)) if len(rows) else ():
            coverage = _coverage(shape, torch.from_numpy(tracks[part]), scale)[..., None]  # (b, F, H, W, 1)
            behind = torch.from_numpy(background[part])[:, None, :, None, :]  # (b, 1, H, 1, 3)
            front = torch.from_numpy(color[part])[:, None, None, None, :]
            video[torch.from_numpy(part)] = torch.lerp(behind, front, coverage).add_(0.5).to(torch.uint8)
    return video


def _track(item: Attributes, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Centre and radius of every frame: float32 (F, 3), in pixels."""
    phase = np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.zeros(1)
    radius = np.full(num_frames, rng.uniform(12.0, 16.0))
    offset = np.zeros((num_frames, 2))  # (dx, dy), y downwards
    if item.motion in ("grow", "shrink"):
        small, large = rng.uniform(5.5, 6.5), rng.uniform(17.0, 19.0)
        radius = small + (large - small) * (phase if item.motion == "grow" else 1.0 - phase)
    elif item.motion == "bounce":
        offset[:, 1] = -_fit_amplitude(item, radius[0], (0.0, 1.0), rng.uniform(14.0, 24.0)) * np.abs(
            np.sin(2.0 * np.pi * phase)
        )
    elif item.motion == "orbit":
        turn = 2.0 * np.pi * (rng.uniform() + phase * (num_frames - 1) / num_frames)
        orbit_radius = min(rng.uniform(8.0, 11.0), _fit_amplitude(item, radius[0], (1.0, 1.0), 22.0) / 2)
        # y points down, so growing angles turn clockwise on the screen.
        offset = orbit_radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    else:
        direction = {
            "right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
            "upright": (0.9, -0.9), "downleft": (-0.9, 0.9),
        }[item.motion]  # fmt: skip
        amplitude = _fit_amplitude(item, radius[0], direction, rng.uniform(16.0, 28.0))
        offset = amplitude * phase[:, None] * np.array(direction)

    side, above, below = _EXTENT[item.shape]
    reach = radius.max() if item.motion in ("grow", "shrink") else radius[0]
    # The centre's range is what keeps every frame's outline inside the picture.
    low_x, high_x = side * reach + _MARGIN_PX, IMAGE_SIZE - side * reach - _MARGIN_PX
    low_y, high_y = above * reach + _MARGIN_PX, IMAGE_SIZE - below * reach - _MARGIN_PX
    start_x = _uniform(rng, low_x - offset[:, 0].min(), high_x - offset[:, 0].max())
    start_y = _uniform(rng, low_y - offset[:, 1].min(), high_y - offset[:, 1].max())
    return np.stack([start_x + offset[:, 0], start_y + offset[:, 1], radius], axis=1).astype(np.float32)


def _fit_amplitude(item: Attributes, radius: float, direction: Sequence[float], wanted: float) -> float:
    """The wanted travel in pixels, reduced so that the whole shape stays in frame."""
    side, above, below = _EXTENT[item.shape]
    room_x = IMAGE_SIZE - 2 * (side * radius + _MARGIN_PX)
    room_y = IMAGE_SIZE - (above + below) * radius - 2 * _MARGIN_PX
    for step, room in zip(direction, (room_x, room_y), strict=True):
        if step:
            wanted = min(wanted, room / abs(step))
    return max(wanted, 10.0)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def _jitter(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves each channel by up to 0.03 of full scale: float32 (B, 3) in [0, 255]."""
    return np.clip(rgb + rng.uniform(-0.03, 0.03, size=rgb.shape) * 255.0, 0.0, 255.0).astype(np.float32)


def _background(base: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Rows of the background: float32 (B, size, 3). 35% fade vertically; the top row is the base colour."""
    count = base.shape[0]
    is_gradient = rng.uniform(size=count) < 0.35
    # Towards black for light bases and towards white for dark ones: never past the next base colour.
    strength = np.asarray(rng.uniform(0.08, 0.16, size=count) * is_gradient)
    target = np.where(base.mean(axis=1) > 100.0, 0.0, 255.0)
    ramp = np.linspace(0.0, 1.0, size)[None, :, None] * strength[:, None, None]
    return (base[:, None, :] * (1.0 - ramp) + target[:, None, None] * ramp).astype(np.float32)


def _coverage(shape: str, track: Tensor, scale: int) -> Tensor:
    """How much of each pixel the shape covers: (b, F, 3) -> (b, F, H, W) in [0, 1]."""
    grid = (torch.arange(IMAGE_SIZE * scale, dtype=torch.float32) + 0.5) / scale
    x = grid - track[..., 0, None]  # (b, F, W)
    y = grid - track[..., 1, None]  # (b, F, H)
    distance = _SIGNED_DISTANCE[shape](x[..., None, :], y[..., :, None], track[..., 2, None, None])
    return (0.5 - distance * scale).clamp_(0.0, 1.0)


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    half = 0.886 * radius
    return torch.maximum(x.abs() - half, y.abs() - half)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    long, wide = 1.12 * radius, 0.40 * radius
    horizontal = torch.maximum(x - long, y - wide)
    return torch.minimum(horizontal, torch.maximum(x - wide, y - long))


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Equilateral, one corner up, circumradius 1.5 r: the largest of three half-plane distances."""
    inradius = 0.75 * radius
    slanted = x.abs() * 0.8660254 - y * 0.5
    return torch.maximum(slanted, y) - inradius


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Five points, one up: fold the plane into one tenth, then one edge's half-plane distance."""
    x, up = x.abs(), -y
    for normal_x, normal_up in ((0.80901699, -0.58778525), (-0.80901699, -0.58778525)):
        # Reflect what lies beyond the mirror through the centre, 36 degrees from the tip.
        beyond = (x * normal_x + up * normal_up).clamp_(min=0.0) * 2.0
        x, up = x - beyond * normal_x, up - beyond * normal_up
    x = x.abs()
    # In the folded wedge the edge runs from the tip (0, outer) to the notch at 36 degrees.
    outer, inner = 1.42, 0.62
    edge_x, edge_up = inner * 0.58778525, inner * 0.80901699 - outer
    length = float(np.hypot(edge_x, edge_up))
    return (up - outer * radius) * (edge_x / length) - x * (edge_up / length)


_SIGNED_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
