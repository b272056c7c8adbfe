"""What DOVER looks at: which frames of a clip, and which pixels of them.

Two views. The technical one is made of *fragments* (Wu et al., FAST-VQA, arXiv 2207.02595, section 3.1): a
grid of small crops at native resolution, set side by side, so that noise and blur are seen as they are. The
aesthetic one is the whole picture, squashed.

The published sampling has oddities; ``compatible=True`` keeps the two that change what is looked at:

* a clip with fewer frames than the aesthetic view takes (32) is looked at as its first frame, over and over.
  Otherwise the frames are spread over the clip, some taken more than once;
* a picture smaller than the fragments together is enlarged, but the grid is laid out by its size before, so
  crops overlap and the lower right part is never seen. Otherwise the grid covers the enlarged picture.

Others are always kept, because weights were trained with them and they blind nobody: short clips start over
in the technical view, and the last possible place of a crop in its cell is never drawn.

Every draw takes a generator: NumPy's for times, torch's for places, in the order of the published code, so
that equally seeded generators pick the same frames and crops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "MEAN",
    "STD",
    "FragmentGrid",
    "FrameSampler",
    "Offsets",
    "Squash",
    "View",
    "draw_frames",
    "normalise",
    "sample_views",
    "standard_views",
]

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of RGB in 0 to 255."""

Offsets = tuple[torch.Tensor, torch.Tensor]
"""Where crops begin in their cells: rows and columns, each ``(fragments_h, fragments_w, T / aligned)``."""


def normalise(video: torch.Tensor) -> torch.Tensor:
    """``(..., 3, T, H, W)`` uint8 RGB to float32 with about zero mean and unit spread."""
    mean, std = (torch.tensor(values, device=video.device).view(3, 1, 1, 1) for values in (MEAN, STD))
    return (video.float() - mean) / std


@dataclass(frozen=True, kw_only=True)
class FrameSampler:
    """Picks frames: a run of ``fsize_t`` frames in each of ``fragments_t`` equal parts of the clip.

    Attributes:
        fsize_t: frames in a run.
        fragments_t: parts.
        frame_interval: step within a run.
        num_clips: how often the whole is done, with new draws.
    """

    fsize_t: int
    fragments_t: int
    frame_interval: int = 1
    num_clips: int = 1

    def indices(
        self,
        num_frames: int,
        rng: np.random.Generator | np.random.RandomState,
        *,
        compatible: bool = False,
        offsets: np.ndarray | None = None,
    ) -> np.ndarray:
        """Indices of the frames, ``(num_clips * fragments_t * fsize_t,)``.

        Args:
            num_frames: of the clip.
            rng: draws where in its part each run begins; nothing is drawn where runs fill their parts.
            compatible: see the module.
            offsets: ``(num_clips, fragments_t)``, taken instead of drawing.
        """
        part = num_frames // self.fragments_t
        starts = np.arange(self.fragments_t) * part
        if part == 0 and not compatible:
            starts = np.arange(self.fragments_t) * num_frames // self.fragments_t
        slack = part - self.fsize_t * self.frame_interval
        run = np.arange(self.fsize_t) * self.frame_interval
        clips = []
        for clip in range(self.num_clips):
            begin = starts
            if offsets is not None:
                begin = starts + np.asarray(offsets)[clip]
            elif slack > 0:
                begin = starts + _draw(rng, slack, self.fragments_t)
            clips.append(begin[:, None] + run)
        return np.stack(clips).reshape(-1) % num_frames


def _draw(rng: np.random.Generator | np.random.RandomState, high: int, size: int) -> np.ndarray:
    draw = rng.integers if isinstance(rng, np.random.Generator) else rng.randint
    return np.asarray(draw(0, high, size=size))


@dataclass(frozen=True, kw_only=True)
class FragmentGrid:
    """Makes a picture of crops, one from each cell of a grid.

    Attributes:
        fragments_h, fragments_w: rows and columns of the grid.
        fsize_h, fsize_w: size of a crop in pixels.
        aligned: so many frames in turn share their places.
    """

    fragments_h: int = 7
    fragments_w: int = 7
    fsize_h: int = 32
    fsize_w: int = 32
    aligned: int = 32

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what it makes."""
        return self.fragments_h * self.fsize_h, self.fragments_w * self.fsize_w

    def draw(
        self,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator,
        *,
        compatible: bool = False,
    ) -> Offsets:
        """Places of the crops in their cells: all rows first, then all columns.

        Raises:
            ValueError: ``num_frames`` is not a multiple of ``aligned``; one single frame is.
        """
        aligned = self._aligned(num_frames)
        if num_frames % aligned:
            raise ValueError(f"num_frames: got {num_frames}, expected a multiple of aligned ({aligned})")
        if not compatible:
            height, width = self._enlarged_size(height, width)
        shape = (self.fragments_h, self.fragments_w, num_frames // aligned)

        def places(slack: int) -> torch.Tensor:
            if slack <= 0:
                return torch.zeros(shape, dtype=torch.int64)
            return torch.randint(slack, shape, generator=generator)

        rows = places(height // self.fragments_h - self.fsize_h)
        return rows, places(width // self.fragments_w - self.fsize_w)

    def picture(
        self,
        image: torch.Tensor,
        position: int,
        num_frames: int,
        offsets: Offsets,
        *,
        compatible: bool = False,
    ) -> torch.Tensor:
        """Fragments of one frame.

        Args:
            image: ``(3, H, W)`` uint8.
            position: of the frame among the ``num_frames`` of the view.
            num_frames: as for ``draw``.
            offsets: of ``draw``.
            compatible: see the module.

        Returns:
            ``(3, fragments_h * fsize_h, fragments_w * fsize_w)`` uint8.
        """
        height, width = image.shape[1:]
        image = self._enlarged(image)
        if not compatible:
            height, width = image.shape[1:]
        group = position // self._aligned(num_frames)
        rows, columns = (offset[..., group].tolist() for offset in offsets)
        bands = []
        for i in range(self.fragments_h):
            crops = []
            for j in range(self.fragments_w):
                top = _origin(height, self.fragments_h, self.fsize_h, i) + rows[i][j]
                left = _origin(width, self.fragments_w, self.fsize_w, j) + columns[i][j]
                crops.append(image[:, top : top + self.fsize_h, left : left + self.fsize_w])
            bands.append(torch.cat(crops, dim=2))
        return torch.cat(bands, dim=1)

    def sample(
        self,
        video: torch.Tensor,
        generator: torch.Generator,
        *,
        compatible: bool = False,
        offsets: Offsets | None = None,
    ) -> torch.Tensor:
        """Fragments of ``(3, T, H, W)`` uint8 frames, ``(3, T, h, w)`` uint8; draws where none are given."""
        count, height, width = video.shape[1:]
        if offsets is None:
            offsets = self.draw(count, height, width, generator, compatible=compatible)
        pictures = [
            self.picture(video[:, index], index, count, offsets, compatible=compatible)
            for index in range(count)
        ]
        return torch.stack(pictures, dim=1)

    def _aligned(self, num_frames: int) -> int:
        return 1 if num_frames == 1 else self.aligned

    def _ratio(self, height: int, width: int) -> float:
        return min(height / self.size[0], width / self.size[1])

    def _enlarged_size(self, height: int, width: int) -> tuple[int, int]:
        ratio = self._ratio(height, width)
        # As torch rounds the size for a factor.
        return (height, width) if ratio >= 1 else (int(height * (1 / ratio)), int(width * (1 / ratio)))

    def _enlarged(self, image: torch.Tensor) -> torch.Tensor:
        ratio = self._ratio(*image.shape[1:])
        if ratio >= 1:
            return image
        # Channels as a batch: torch rounds differently in its kernel for pictures of three channels. Then cut
        # off, not rounded. Both as in the published code.
        larger = F.interpolate(image[:, None] / 255.0, scale_factor=1 / ratio, mode="bilinear")[:, 0]
        return (larger * 255.0).to(torch.uint8)


def _origin(length: int, parts: int, crop: int, index: int) -> int:
    return max(0, min(length // parts * index, length - crop))


@dataclass(frozen=True, kw_only=True)
class Squash:
    """Makes a picture of the whole frame, whatever its shape; bilinear, rounded to 8 bits.

    Attributes:
        size_h, size_w: of what it makes.
        antialias: smooth before shrinking. Off as in torchvision below 0.17, with which DOVER came out.
    """

    size_h: int = 224
    size_w: int = 224
    antialias: bool = False

    def picture(self, image: torch.Tensor) -> torch.Tensor:
        """``(3, H, W)`` uint8 to ``(3, size_h, size_w)`` uint8."""
        size = (self.size_h, self.size_w)
        small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=self.antialias)
        return small[0].round().to(torch.uint8)

    def sample(self, video: torch.Tensor) -> torch.Tensor:
        """``(3, T, H, W)`` uint8 to ``(3, T, size_h, size_w)`` uint8."""
        return torch.stack([self.picture(video[:, index]) for index in range(video.shape[1])], dim=1)


@dataclass(frozen=True, kw_only=True)
class View:
    """One view: frames, pixels, and in how many clips the frames are given to the network.

    Attributes:
        frames: which frames.
        pixels: which pixels.
        num_clips: the frames are cut into so many clips of equal length.
    """

    frames: FrameSampler
    pixels: FragmentGrid | Squash
    num_clips: int

    @classmethod
    def from_config(cls, values: Mapping[str, Any], *, antialias: bool = False) -> View:
        """A view from an entry of ``sample_types`` of the published configuration.

        ``num_clips`` there is the number of parts of one pass over the clip, unless ``t_frag`` gives that;
        then it is the number of passes.
        """
        length, count, interval = values["clip_len"], values["num_clips"], values["frame_interval"]
        parts = values.get("t_frag")
        frames = FrameSampler(fsize_t=length, fragments_t=count, frame_interval=interval)
        if parts is not None:
            frames = FrameSampler(
                fsize_t=length // parts, fragments_t=parts, frame_interval=interval, num_clips=count
            )
        names = ("fragments_h", "fragments_w", "fsize_h", "fsize_w", "aligned")
        pixels: FragmentGrid | Squash
        if "fragments_h" in values:
            pixels = FragmentGrid(**{name: values[name] for name in names if name in values})
        else:
            pixels = Squash(size_h=values["size_h"], size_w=values["size_w"], antialias=antialias)
        return cls(frames=frames, pixels=pixels, num_clips=values["num_clips"])


def standard_views(*, antialias: bool = False) -> dict[str, View]:
    """The views that published checkpoints of both sizes were trained with."""
    technical = {"clip_len": 32, "frame_interval": 2, "num_clips": 3, "fragments_h": 7}
    aesthetic = {
        "clip_len": 32,
        "frame_interval": 2,
        "num_clips": 1,
        "t_frag": 32,
        "size_h": 224,
        "size_w": 224,
    }
    return {
        "technical": View.from_config(technical),
        "aesthetic": View.from_config(aesthetic, antialias=antialias),
    }


def draw_frames(
    views: Mapping[str, View],
    num_frames: int,
    rng: np.random.Generator | np.random.RandomState,
    *,
    compatible: bool = False,
) -> dict[str, np.ndarray]:
    """Indices of the frames of each view, in the order of ``views``."""
    return {name: view.frames.indices(num_frames, rng, compatible=compatible) for name, view in views.items()}


def sample_views(
    images: Iterable[tuple[int, torch.Tensor]],
    views: Mapping[str, View],
    indices: Mapping[str, np.ndarray],
    generator: torch.Generator,
    *,
    compatible: bool = False,
    offsets: Offsets | None = None,
) -> dict[str, torch.Tensor]:
    """All views of a clip in one pass over its frames, holding one full-size frame at a time.

    Args:
        images: index and ``(3, H, W)`` uint8 RGB of frames, of one size; those that no view has are left.
        views: by name.
        indices: of ``draw_frames``.
        generator: draws places, once the size is known.
        compatible: see the module.
        offsets: places of the crops, taken instead of drawing.

    Returns:
        By name, ``(num_clips, 3, T / num_clips, h, w)`` uint8.

    Raises:
        ValueError: a frame that a view has did not come.
    """
    wanted: dict[int, list[tuple[str, int]]] = {}
    for name in views:
        for position, index in enumerate(indices[name].tolist()):
            wanted.setdefault(index, []).append((name, position))
    pictures: dict[str, list[torch.Tensor | None]] = {name: [None] * len(indices[name]) for name in views}
    for index, image in images:
        for name, position in wanted.pop(index, ()):
            pixels, count = views[name].pixels, len(indices[name])
            if isinstance(pixels, Squash):
                pictures[name][position] = pixels.picture(image)
                continue
            if offsets is None:
                offsets = pixels.draw(count, image.shape[1], image.shape[2], generator, compatible=compatible)
            pictures[name][position] = pixels.picture(image, position, count, offsets, compatible=compatible)
    if wanted:
        raise ValueError(
            f"frames: {len(wanted)} did not come, the first is {min(wanted)}; the clip is shorter"
        )
    return {name: _stacked(pictures[name], view.num_clips) for name, view in views.items()}


def _stacked(pictures: Sequence[torch.Tensor | None], num_clips: int) -> torch.Tensor:
    """``(num_clips, 3, T / num_clips, h, w)``."""
    found = [picture for picture in pictures if picture is not None]
    frames = torch.stack(found, dim=1)
    return torch.stack(frames.chunk(num_clips, dim=1))
