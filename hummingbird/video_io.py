"""Video files in and out: the only place that touches codecs.

Everything goes through PyAV, whose wheels carry FFmpeg's libraries, so no ``ffmpeg`` program is needed.
Frames are ``uint8`` RGB arrays ``(F, H, W, 3)``.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import av
    import PIL.Image

__all__ = [
    "SUFFIXES",
    "VideoClip",
    "VideoError",
    "atomic_path",
    "contact_sheet",
    "find_encoder",
    "read_video",
    "to_uint8",
    "write_video",
]

SUFFIXES = (".mp4", ".webm", ".gif", ".png")

_ENCODERS = {
    ".mp4": {"libx264": {"crf": "16", "preset": "medium"}, "libopenh264": {"b": "8000000"}},
    ".webm": {"libvpx-vp9": {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}},
}
"""Suffix -> encoders in order of preference, with settings at which a viewer sees no loss."""

_BT709 = 1  # ITU-T H.273: primaries, transfer and matrix all give BT.709 this number
_LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG: luma 16 to 235
_UNSPECIFIED = 2  # ITU-T H.273
_HD_HEIGHT = 720
"""From this height on a file without a colour matrix is taken for BT.709, below for BT.601, as players do."""


class VideoError(ValueError):
    """A video that cannot be read or written; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Decoded frames with their rate.

    Attributes:
        frames: ``(F, H, W, 3)`` uint8 RGB.
        fps: average frame rate in frames per second; 0 where the file does not say.
    """

    frames: np.ndarray
    fps: float


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` which becomes ``path`` in one step when the block ends well.

    After an error or Ctrl-C the temporary file is gone and whatever stood at ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Round floats in [0, 1] to uint8 in [0, 255].

    Args:
        frames: any shape, floating point; values outside [0, 1] are clipped.

    Raises:
        VideoError: a value is NaN or infinite.
    """
    if not np.isfinite(frames).all():
        bad = int((~np.isfinite(frames)).sum())
        raise VideoError(f"frames have {bad} NaN or infinite values, expected [0, 1]; try --dtype float32")
    return (np.clip(frames, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def _check(frames: np.ndarray, path: Path, fps: float) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{path}: got suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise VideoError(
            f"frames: got {frames.dtype} {frames.shape}, expected uint8 (frames, height, width, 3)"
        )
    if min(frames.shape) == 0:
        raise VideoError(
            f"frames: got shape {frames.shape}, expected at least one frame of at least one pixel"
        )
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise VideoError(f"fps: got {fps}, expected a number above 0 and up to 1000")


def write_video(frames: np.ndarray, path: str | os.PathLike[str], fps: float) -> Path:
    """Write a video; the suffix of ``path`` chooses the format.

    ``.mp4`` is H.264 and ``.webm`` VP9, both 4:2:0 with BT.709 tags; ``.gif`` has one palette for all frames;
    ``.png`` is a contact sheet. 4:2:0 needs even sizes: an odd height or width has its last line repeated.

    Args:
        frames: ``(F, H, W, 3)`` uint8 RGB.
        path: file to write; missing folders are made, an existing file is replaced in one step at the end.
        fps: frames per second, in (0, 1000]; GIF counts in 1/100 s and players slow down anything above 50.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        VideoError: wrong shape, dtype, rate or suffix, or PyAV has no encoder for it.
        OSError: the file cannot be written (no space, no permission).
    """
    path = Path(path)
    _check(frames, path, fps)
    suffix = path.suffix.lower()
    with atomic_path(path) as partial:
        if suffix == ".gif":
            _write_gif(frames, partial, fps)
        elif suffix == ".png":
            contact_sheet([frames]).save(partial)
        else:
            _encode(frames, partial, fps, suffix)
    return path


def find_encoder(suffix: str) -> str | None:
    """Name of the encoder that ``write_video`` uses for ``.mp4`` or ``.webm``; None where PyAV has none."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    for name in _ENCODERS[suffix]:
        try:
            Codec(name, "w")
        except UnknownCodecError:
            continue
        return name
    return None


def _encode(frames: np.ndarray, path: Path, fps: float, suffix: str) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    encoder = find_encoder(suffix)
    if encoder is None:
        wanted = " or ".join(_ENCODERS[suffix])
        raise VideoError(f"{suffix}: this PyAV has no encoder ({wanted}); reinstall av, or write a .gif")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    container_format = suffix.removeprefix(".")
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    with av.open(str(path), "w", format=container_format, options=options) as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream = cast(
            av.VideoStream, container.add_stream(encoder, rate=rate, options=dict(_ENCODERS[suffix][encoder]))
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for image in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            yuv = rgb.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(yuv))
        container.mux(stream.encode(None))


def _write_gif(frames: np.ndarray, path: Path, fps: float) -> None:
    import PIL.Image

    # One palette for the whole clip: a palette per frame makes flat areas flicker.
    sampled = frames[:: max(1, len(frames) // 32)]
    montage = PIL.Image.fromarray(sampled.reshape(-1, frames.shape[2], 3))
    palette = montage.quantize(256, method=PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
    images = [
        PIL.Image.fromarray(image).quantize(palette=palette, dither=PIL.Image.Dither.NONE) for image in frames
    ]
    ends_ms = [10 * round(100 * (index + 1) / fps) for index in range(len(images))]
    durations_ms = [max(20, end - start) for start, end in zip([0, *ends_ms[:-1]], ends_ms, strict=True)]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations_ms,
        loop=0,
        optimize=False,
    )


def read_video(
    path: str | os.PathLike[str], *, max_frames: int = 4096, max_bytes: int = 4 * 1024**3
) -> VideoClip:
    """Decode the first video stream of a file into memory.

    Args:
        path: any container and codec that FFmpeg reads.
        max_frames: more frames than this are refused, not cut off.
        max_bytes: bound on the decoded size in bytes.

    Raises:
        VideoError: the file cannot be decoded, has no video, changes size on the way, or exceeds a bound.
    """
    import av

    path = Path(path)
    images: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0)
            for frame in container.decode(stream):
                if (
                    len(images) >= max_frames
                    or (len(images) + 1) * frame.width * frame.height * 3 > max_bytes
                ):
                    raise VideoError(
                        f"{path}: over {len(images)} frames of {frame.width}x{frame.height}, expected up to "
                        f"{max_frames} frames and {max_bytes} bytes; cut it first or raise the limit"
                    )
                image = _to_rgb(frame)
                if images and image.shape != images[0].shape:
                    raise VideoError(
                        f"{path}: frame size changes from {images[0].shape[:2]} to {image.shape[:2]}"
                    )
                images.append(image)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded ({error.strerror})") from error
    if not images:
        raise VideoError(f"{path}: holds no frame that can be decoded")
    return VideoClip(frames=np.stack(images), fps=fps)


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB by the frame's own colour matrix, or by its height where it names none."""
    from av.video.reformatter import Colorspace

    matrix = int(frame.colorspace)
    if matrix == _BT709 or (matrix == _UNSPECIFIED and frame.height >= _HD_HEIGHT):
        source = Colorspace.ITU709
    else:
        source = Colorspace.ITU601
    return frame.reformat(format="rgb24", src_colorspace=source).to_ndarray()


def contact_sheet(
    videos: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int = 8,
    min_tile: int = 128,
) -> PIL.Image.Image:
    """Lay videos out as one picture: a row each, with frames evenly spaced in time from first to last.

    Args:
        videos: arrays ``(F, H, W, 3)``, uint8 RGB; sizes may differ.
        captions: one line of text per video, written above its row; longer ones are cut.
        columns: frames shown of each video, at least 1; a shorter video shows all that it has.
        min_tile: smaller frames are enlarged by whole factors until they are this many pixels wide.

    Raises:
        VideoError: no videos, or captions that do not match them in number.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    if not videos or columns < 1:
        raise VideoError(
            f"contact sheet: got {len(videos)} videos in {columns} columns, expected at least one of each"
        )
    if captions is not None and len(captions) != len(videos):
        raise VideoError(
            f"contact sheet: got {len(captions)} captions for {len(videos)} videos, expected one each"
        )
    gap = 4
    font = PIL.ImageFont.load_default(size=14)
    caption_height = 20 if captions is not None else 0
    rows = []
    for video in videos:
        picked = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
        scale = max(1, math.ceil(min_tile / video.shape[2]))
        rows.append(video[picked].repeat(scale, axis=1).repeat(scale, axis=2))
    width = max(len(row) * (row.shape[2] + gap) for row in rows) + gap
    height = sum(row.shape[1] + gap + caption_height for row in rows) + gap
    sheet = PIL.Image.new("RGB", (width, height), (245, 245, 245))
    draw = PIL.ImageDraw.Draw(sheet)
    top = gap
    for index, row in enumerate(rows):
        if captions is not None:
            text = " ".join(captions[index].split())
            while text and draw.textlength(text, font=font) > width - 2 * gap:
                text = text[:-1]
            draw.text((gap, top), text, fill=(20, 20, 20), font=font)
            top += caption_height
        for column, image in enumerate(row):
            sheet.paste(PIL.Image.fromarray(image), (gap + column * (row.shape[2] + gap), top))
        top += row.shape[1] + gap
    return sheet
