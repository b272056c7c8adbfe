"""Small pictures of clips for people to look at: four frames of each, from a shard or from the source.

The files may be gone, changed, damaged or hostile. Each is decoded in a worker process, which may die or
hang; whatever goes wrong becomes the words that stand in the picture's place.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from data_pipeline.engine import Failure, Pool, Task
from hummingbird.video_io import TimedFrame, VideoError, iter_frames

__all__ = ["Look", "draw", "draw_all"]

_NUM_FRAMES = 4
_WIDTH = 384
"""Of a picture, in pixels: two landscape frames or four upright ones side by side."""

_MAX_ASPECT = 4.0
_MAX_SPAN_S = 20.0
"""Longer clips are shown by their first seconds."""

_QUALITY = 72
_TIMEOUT_S = 60.0
_MAX_MEMBER_BYTES = 512 * 1024**2
_MAX_MEMBERS = 400_000


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a clip can be seen.

    Attributes:
        path: a video, or a shard.
        member: name of the video in the shard; empty for a video.
        start_s, end_s: span in the video, seconds from its first frame.
    """

    path: Path
    start_s: float
    end_s: float
    member: str = ""


def draw_all(looks: Mapping[int, Look]) -> dict[int, bytes | str]:
    """JPEG files of clips, or a line that says why there is none.

    Args:
        looks: by any number, under which the result is handed back.

    Raises:
        EngineError: no worker process can be started.
    """
    if not looks:
        return {}
    with tempfile.TemporaryDirectory() as folder, Pool(len(os.sched_getaffinity(0))) as pool:
        scratch = {number: Path(folder) / f"{number}.mp4" for number in looks}
        tasks = (
            Task(key=str(number), arguments=(looks[number], scratch[number])) for number in sorted(looks)
        )
        pictures: dict[int, bytes | str] = {}
        for key, outcome in pool.run(draw, tasks, timeout_s=_TIMEOUT_S):
            number = int(key)
            if isinstance(outcome, Failure):
                # The same message wherever the files lie this time.
                message = outcome.message.replace(str(scratch[number]), looks[number].member)
                outcome = f"no picture: {message.replace(str(looks[number].path), looks[number].path.name)}"
            pictures[number] = outcome
    return pictures


def draw(look: Look, scratch: Path) -> bytes:
    """A JPEG of the frames in the middle of each quarter of a clip.

    Args:
        look: the clip.
        scratch: where a shard's video is put for the time being.

    Raises:
        VideoError: no frame decodes, or the shard does not hold the clip.
        OSError, tarfile.TarError: the file cannot be read.
    """
    path = look.path
    try:
        if look.member:
            _extract(look.path, look.member, scratch)
            path = scratch
        frames = _frames(path, look.start_s, min(look.end_s, look.start_s + _MAX_SPAN_S))
    finally:
        scratch.unlink(missing_ok=True)
    file = io.BytesIO()
    PIL.Image.fromarray(_mosaic(frames)).save(file, format="JPEG", quality=_QUALITY, subsampling="4:2:0")
    return file.getvalue()


def _extract(shard: Path, member: str, to: Path) -> None:
    with tarfile.open(shard, "r:") as tar:
        for info in _bounded(tar):
            if info.name == member and info.isfile():
                if info.size > _MAX_MEMBER_BYTES:
                    raise VideoError(f"{member}: got {info.size} bytes, expected {_MAX_MEMBER_BYTES} at most")
                source = tar.extractfile(info)
                assert source is not None  # it is a file
                with source, to.open("wb") as file:
                    shutil.copyfileobj(source, file)
                return
    raise VideoError(f"{shard.name} has no {member}")


def _bounded(members: Iterable[tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    for _, member in zip(range(_MAX_MEMBERS), members, strict=False):
        yield member


def _frames(path: Path, start_s: float, end_s: float) -> list[np.ndarray]:
    """``_NUM_FRAMES`` small pictures: what is on the screen in the middle of each equal part of a span."""
    step_s = (end_s - start_s) / _NUM_FRAMES
    wanted = [start_s + (index + 0.5) * step_s for index in range(_NUM_FRAMES)]
    images: list[np.ndarray] = []

    def take(frame: TimedFrame, until_s: float) -> None:
        while len(images) < _NUM_FRAMES and wanted[len(images)] < until_s - 1e-6:
            images.append(frame.rgb(size=_tile(frame.width, frame.height)))

    shown: TimedFrame | None = None
    with closing(iter_frames(path, start_s=start_s, end_s=end_s)) as frames:
        for frame in frames:
            if shown is not None:
                take(shown, frame.time_s)
            shown = frame
    if shown is None:
        raise VideoError(f"no frame decodes from {start_s:.2f} to {end_s:.2f} s")
    take(shown, math.inf)
    return images


def _tile(width: int, height: int) -> tuple[int, int]:
    """Size of one frame in the picture; very long shapes are squeezed."""
    columns = 2 if width >= height else 4
    tile_width = _WIDTH // columns
    aspect = min(max(width / height, 1 / _MAX_ASPECT), _MAX_ASPECT)
    return tile_width, max(2, round(tile_width / aspect))


def _mosaic(frames: list[np.ndarray]) -> np.ndarray:
    """Frames in the order of reading, two or four in a row; ``(H, W, 3)`` uint8."""
    columns = _WIDTH // frames[0].shape[1]
    rows = [frames[first : first + columns] for first in range(0, len(frames), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
