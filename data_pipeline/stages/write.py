"""Write: a kept clip becomes a small H.264 file that training decodes fast, and files become shards.

The same clip and settings give the same bytes, so an interrupted run can be compared with an unbroken one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from data_pipeline.clip import ClipSpec, Crop
from hummingbird.config import config_dataclass
from hummingbird.video_io import (
    TimedFrame,
    VideoError,
    atomic_path,
    iter_frames,
    read_clip_frames,
    write_clip,
)

__all__ = ["EncodedClip", "Sample", "WriteConfig", "encode_clip", "write_shard"]

_EPSILON_S = 1e-6
_VERIFY_CHUNK = 64
_MAX_DECODER_DIFFERENCE = 4.0
"""Mean difference, of 255, up to which two decoders show the same frame: they round colours differently."""
_COARSE = 8
"""Decoders are compared by means over squares of this side: they enlarge the chroma planes differently."""


@config_dataclass
class WriteConfig:
    """How kept clips are written.

    Attributes:
        width, height: pixels of the written clips; pictures are scaled to cover this and cut at the centre.
        fps: frames per second of the written clips, exactly constant; frames are repeated or left out for it.
        crf: x264's quality: 18 is close to invisible, each 6 more halve the file.
        clips_per_shard: samples in one ``.tar``.
    """

    width: Annotated[int, Field(ge=16, le=4096, multiple_of=2)] = 512
    height: Annotated[int, Field(ge=16, le=4096, multiple_of=2)] = 320
    fps: Annotated[float, Field(gt=0, le=120)] = 24.0
    crf: Annotated[int, Field(ge=0, le=40)] = 18
    clips_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 1000


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """A written clip.

    Attributes:
        sha256: of the file, hexadecimal.
        num_frames: in the file, counted by decoding it.
        fps: frames per second, exact.
    """

    path: Path
    sha256: str
    size_bytes: int
    num_frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a shard.

    Attributes:
        clip_id: name of its files in the tar; letters, digits, ``-`` and ``_``.
        video: the encoded clip.
        caption: its text; may be empty.
        metadata: what goes into the ``.json``; finite numbers, text, lists, mappings.
    """

    clip_id: str
    video: Path
    caption: str
    metadata: Mapping[str, Any]


def encode_clip(spec: ClipSpec, crop: Crop | None, settings: WriteConfig, to: Path) -> EncodedClip:
    """Re-encode a clip and verify the file by decoding it with both decoders that training may use.

    Args:
        spec: where the clip lies.
        crop: part of the displayed picture to keep; None keeps all.
        settings: size, rate and quality.
        to: ``.mp4`` file, replaced in one step.

    Raises:
        VideoError: the source no longer gives the frames that were scored, or the file is not as written.
        OSError: the file cannot be written.
    """
    with atomic_path(to) as partial:
        count = write_clip(_images(spec, crop, settings), partial, settings.fps, crf=settings.crf)
        _verify(partial, count, settings)
        data = partial.read_bytes()
    return EncodedClip(
        path=to,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        num_frames=count,
        fps=settings.fps,
        width=settings.width,
        height=settings.height,
    )


def _images(spec: ClipSpec, crop: Crop | None, settings: WriteConfig) -> Iterator[np.ndarray]:
    """The clip's pictures at the written size and rate, ``(H, W, 3)`` uint8 RGB."""
    crop = crop or Crop(left=0, top=0, width=spec.width, height=spec.height)
    width, height = settings.width, settings.height
    scale = max(width / crop.width, height / crop.height)
    whole = max(width, round(spec.width * scale)), max(height, round(spec.height * scale))
    left = round((crop.left + crop.width / 2) * scale - width / 2)
    top = round((crop.top + crop.height / 2) * scale - height / 2)
    left, top = min(max(left, 0), whole[0] - width), min(max(top, 0), whole[1] - height)
    shown: TimedFrame | None = None
    image = np.empty(0)
    for frame in _at_constant_rate(spec, settings.fps):
        if frame is not shown:
            image = frame.rgb(size=whole)[top : top + height, left : left + width]
            shown = frame
        yield image


def _at_constant_rate(spec: ClipSpec, fps: float) -> Iterator[TimedFrame]:
    """For each multiple of 1 / fps seconds in the clip the frame that is on the screen then."""
    total = max(1, math.floor((spec.end_s - spec.start_s) * fps + _EPSILON_S))
    given = decoded = 0
    shown: TimedFrame | None = None
    with closing(iter_frames(spec.path, start_s=spec.start_s, end_s=spec.end_s)) as frames:
        for frame in frames:
            decoded += 1
            while shown and given < total and spec.start_s + given / fps < frame.time_s - _EPSILON_S:
                yield shown
                given += 1
            shown = frame
        if shown is None or decoded != spec.num_frames:
            raise VideoError(
                f"{spec.path}: got {decoded} frames from {spec.start_s:.3f} to {spec.end_s:.3f} s, expected "
                f"the {spec.num_frames} that were scored; the file has changed, start the run anew"
            )
    for _ in range(given, total):
        yield shown


def _verify(path: Path, count: int, settings: WriteConfig) -> None:
    """Decode a written clip by time and by number, and compare: count, size, times and content.

    Raises:
        VideoError: the two decoders, or the file and its settings, disagree.
    """
    decoded = 0
    by_number = np.empty(0)
    with closing(iter_frames(path)) as frames:
        for decoded, frame in enumerate(frames, start=1):
            index, expected_s = decoded - 1, (decoded - 1) / settings.fps
            if index >= count or abs(frame.time_s - expected_s) > 0.01 / settings.fps:
                raise VideoError(
                    f"written frame {index} of {count} is at {frame.time_s} s, expected {expected_s}"
                )
            if index % _VERIFY_CHUNK == 0:
                by_number = read_clip_frames(path, range(index, min(index + _VERIFY_CHUNK, count)))
            image = frame.rgb()
            difference = np.abs(_coarse(image) - _coarse(by_number[index % _VERIFY_CHUNK])).mean()
            if image.shape != (settings.height, settings.width, 3) or difference > _MAX_DECODER_DIFFERENCE:
                raise VideoError(
                    f"written frame {index} is {image.shape}, in PyAV and decord {difference:.1f} apart, "
                    f"expected {settings.height}x{settings.width} and at most {_MAX_DECODER_DIFFERENCE}"
                )
    if decoded != count:
        raise VideoError(f"the written clip decodes to {decoded} frames, expected {count}")


def _coarse(image: np.ndarray) -> np.ndarray:
    size = max(1, image.shape[1] // _COARSE), max(1, image.shape[0] // _COARSE)
    return cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def write_shard(samples: Iterable[Sample], path: str | os.PathLike[str]) -> int:
    """Write samples as a WebDataset tar, sorted by clip, without dates or owners, in one step.

    Args:
        samples: each becomes ``{clip_id}.json``, ``.mp4`` and ``.txt``.
        path: ``.tar`` file; replaced at the end.

    Returns:
        The number of samples.

    Raises:
        ValueError: a clip id is not usable as a name, or comes twice; metadata holds NaN.
        OSError: a video cannot be read or the shard not be written.
    """
    ordered = sorted(samples, key=lambda sample: sample.clip_id)
    for before, sample in zip([None, *ordered], ordered, strict=False):
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", sample.clip_id):
            raise ValueError(
                f"clip id: got {sample.clip_id!r}, expected up to 200 letters, digits, '-' and '_'"
            )
        if before is not None and before.clip_id == sample.clip_id:
            raise ValueError(f"clip id: got {sample.clip_id!r} twice in one shard, expected it once")
    with atomic_path(path) as partial, tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for sample in ordered:
            metadata = json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False, allow_nan=False)
            _add(tar, f"{sample.clip_id}.json", metadata.encode())
            _add(tar, f"{sample.clip_id}.mp4", sample.video.read_bytes())
            _add(tar, f"{sample.clip_id}.txt", sample.caption.encode())
    return len(ordered)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's own defaults: no date, owner 0, mode 0644.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
