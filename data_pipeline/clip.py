"""What passes between the stages: a source, a clip of it, frames of the clip, and a stage's verdict.

A stage is a frozen settings dataclass with a ``name``, the ``views`` of the frames that it looks at,
``setup()`` (load what is slow to load, once per process) and ``process(clip) -> Keep | Drop``. Stages never
see files or codecs; a clip decodes the views of all stages in one pass when the first of them asks.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np

from hummingbird.video_io import VideoError, iter_frames

__all__ = [
    "Clip", "ClipSpec", "Crop", "Drop", "Frames", "Keep", "Remote", "Source", "Stage", "View", "clip_id",
]  # fmt: skip


def clip_id(source_id: str, index: int | None) -> str:
    """Name of a clip: readable, unique in a run, the same in every run; letters, digits, ``-``, ``_`` only.

    Args:
        source_id: the source's name.
        index: number of the clip in its source, from 0; None names the source as a whole.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(source_id).with_suffix("").as_posix()).strip("_")[
        -40:
    ]
    name = f"{readable}-{hashlib.sha256(os.fsencode(source_id)).hexdigest()[:12]}"
    return name if index is None else f"{name}-{index:04d}"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """An object in a storage, of which a source's ``path`` is the copy that tasks work on (see ``storage``).

    Attributes:
        version: its checksum, or its date; with the size it tells one content from the next.
        cache_max_bytes: size of the folder of copies.
    """

    url: str
    size_bytes: int
    version: str
    cache_max_bytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file, as the ingest stage found it.

    Attributes:
        source_id: stable name, unique in a run: the path relative to the input folder, or the row's video id.
        path: the file; None where the row points to none.
        caption: the text that came with it; None where there is none.
        error: why the row has no usable file; None where it has.
        remote: the object that has to be copied to ``path`` first; None for a file.
    """

    source_id: str
    path: Path | None
    caption: str | None = None
    error: str | None = None
    remote: Remote | None = None


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle in pixels of the displayed picture, after rotation; its top left corner is (0, 0)."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Where a clip lies; small, and safe to send between processes.

    Attributes:
        clip_id: unique in a run; letters, digits, ``-`` and ``_`` only.
        start_s: time of the first frame, in seconds from the first frame of the stream.
        end_s: time at which the next frame would begin.
        num_frames: frames that were decoded between the two.
        fps: ``num_frames / (end_s - start_s)``, measured, never a header's.
        width, height: displayed size in pixels, after rotation.
        caption: the source's.
        damage: what kept some of the source from being decoded; None where nothing did.
        remote: the source's.
    """

    clip_id: str
    source_id: str
    path: Path
    start_s: float
    end_s: float
    num_frames: int
    fps: float
    width: int
    height: int
    caption: str | None = None
    damage: str | None = None
    remote: Remote | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """A way to look at a clip: which frames, and how large.

    Give ``fps`` or ``num_frames``, not both; neither means every frame.

    Attributes:
        fps: pick the first frame at or after each multiple of 1 / fps seconds; a slower clip gives all.
        num_frames: pick this many frames at the centres of equal parts of the clip; a shorter one gives all.
        short_side: shrink until the shorter side is this many pixels (never enlarge); None keeps the size.
        max_frames: hard bound; an ``fps`` view over it is spread evenly over the clip, and a view of every
            frame takes that many consecutive frames in the middle.
    """

    fps: float | None = None
    num_frames: int | None = None
    short_side: int | None = None
    max_frames: int = 256


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Decoded frames of one view.

    Attributes:
        images: ``(n, H, W, 3)`` uint8 RGB.
        times_s: ``(n,)`` seconds from the start of the clip.
    """

    images: np.ndarray
    times_s: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The stage has nothing against the clip.

    Attributes:
        scores: what it measured, by the manifest's names; finite numbers.
        crop: the part of the picture to keep, in pixels of the displayed picture.
        fingerprint: perceptual hashes for the search of near-duplicates, one hexadecimal word per frame.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    crop: Crop | None = None
    fingerprint: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The stage rejects the clip.

    Attributes:
        reason: short name that rows are counted by, e.g. ``motion: static``.
        detail: the measured value and the threshold.
        scores: what it measured on the way, kept in the manifest.
    """

    reason: str
    detail: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """What every per-clip stage offers; see the module's docstring."""

    @property
    def name(self) -> str: ...

    @property
    def views(self) -> tuple[View, ...]: ...

    def setup(self) -> None: ...

    def process(self, clip: Clip) -> Keep | Drop: ...


class Clip:
    """A clip on its way through the stages, in one process.

    Args:
        spec: where it lies.
        views: every view that any stage will ask for; all are decoded in one pass.

    Attributes:
        spec: as given.
        scores: what the stages before found; the engine adds to it.
        decode_s: seconds spent on decoding.
        crop: set by the basics stage; ``frames`` are cropped by it from then on.
    """

    def __init__(self, spec: ClipSpec, views: Iterable[View]) -> None:
        self.spec = spec
        self.scores: dict[str, float] = {}
        self.crop: Crop | None = None
        self.decode_s = 0.0
        self._views = tuple(dict.fromkeys(views))
        self._decoded: dict[View, Frames] | None = None

    def frames(self, view: View) -> Frames:
        """The frames of a view, decoded at the first call of any.

        Raises:
            VideoError: the file can no longer be decoded, or holds no frame in the clip's span.
        """
        if self._decoded is None:
            started = time.perf_counter()
            self._decoded = _decode(self.spec, self._views)
            self.decode_s += time.perf_counter() - started
        frames = self._decoded[view]
        if self.crop is None:
            return frames
        return Frames(images=_crop(frames.images, self.crop, self.spec), times_s=frames.times_s)

    def stream(self, indices: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Frames at full size, one at a time, decoded anew: for stages that look at more than fit in memory.

        Args:
            indices: of the frames, from 0; those beyond the clip's end do not come.

        Returns:
            Index and ``(H, W, 3)`` uint8 RGB, in order.

        Raises:
            VideoError: the file can no longer be decoded.
        """
        started, last = time.perf_counter(), max(indices)
        for index, frame in enumerate(
            iter_frames(self.spec.path, start_s=self.spec.start_s, end_s=self.spec.end_s)
        ):
            if index in indices:
                image = frame.rgb()[None]
                image = image if self.crop is None else _crop(image, self.crop, self.spec)
                self.decode_s += time.perf_counter() - started
                yield index, image[0]
                started = time.perf_counter()
            if index >= last:
                break


def _picks(view: View, times_s: Sequence[float], duration_s: float) -> set[int]:
    """Indices of the frames of a view; ``times_s`` count from the start of the clip."""
    count = len(times_s)
    if view.num_frames is not None:
        wanted = min(view.num_frames, count)
        return {min(count - 1, int((index + 0.5) * count / wanted)) for index in range(wanted)}
    if view.fps is None:
        first = max(0, (count - view.max_frames) // 2)
        return set(range(first, min(count, first + view.max_frames)))
    picked, due = [], 0
    for index, time_s in enumerate(times_s):
        if time_s * view.fps >= due - 1e-6:
            picked.append(index)
            due = int(time_s * view.fps + 1e-6) + 1
    if len(picked) > view.max_frames:
        chosen = np.linspace(0, len(picked) - 1, view.max_frames).round().astype(int)
        picked = [picked[index] for index in chosen]
    return set(picked)


def _decode(spec: ClipSpec, views: tuple[View, ...]) -> dict[View, Frames]:
    """Decode every view of a clip in one pass over the file.

    The frame times are not known beforehand (headers are not believed, rates vary), so they are taken as
    evenly spread for the choice of frames; the times reported are the real ones.
    """
    step_s = (spec.end_s - spec.start_s) / spec.num_frames
    expected = [index * step_s for index in range(spec.num_frames)]
    picks = {view: _picks(view, expected, spec.end_s - spec.start_s) for view in views}
    images: dict[View, list[np.ndarray]] = {view: [] for view in views}
    times: dict[View, list[float]] = {view: [] for view in views}
    for index, frame in enumerate(iter_frames(spec.path, start_s=spec.start_s, end_s=spec.end_s)):
        resized: dict[int | None, np.ndarray] = {}
        for view in views:
            if index in picks[view]:
                if view.short_side not in resized:
                    resized[view.short_side] = frame.rgb(short_side=view.short_side)
                images[view].append(resized[view.short_side])
                times[view].append(frame.time_s - spec.start_s)
    for view in views:
        if not images[view]:
            raise VideoError(f"{spec.path}: no frame decodes from {spec.start_s:.3f} to {spec.end_s:.3f} s")
    return {view: Frames(images=np.stack(images[view]), times_s=np.array(times[view])) for view in views}


def _crop(images: np.ndarray, crop: Crop, spec: ClipSpec) -> np.ndarray:
    """Cut a crop, given in pixels of the displayed picture, out of frames of any size."""
    scale_x, scale_y = images.shape[2] / spec.width, images.shape[1] / spec.height
    left, top = round(crop.left * scale_x), round(crop.top * scale_y)
    right, bottom = round((crop.left + crop.width) * scale_x), round((crop.top + crop.height) * scale_y)
    return images[:, top : max(bottom, top + 1), left : max(right, left + 1)]
