"""Video files in and out: the only place that touches codecs.

Everything goes through PyAV, whose wheels carry FFmpeg's libraries, so no ``ffmpeg`` program is needed.
Frames are ``uint8`` RGB arrays ``(F, H, W, 3)``.

``iter_frames``, ``probe_video`` and ``read_video`` show what a player shows: the main video stream, turned
and mirrored by its display matrix, with square pixels, interlaced pictures reduced to their first field.
Counts, durations and rates of headers are not believed: times come from the timestamps of decoded frames.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import tempfile
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import av
    import PIL.Image
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

__all__ = [
    "CLIP_GROUP",
    "SUFFIXES",
    "FrameIterator",
    "TimedFrame",
    "VideoClip",
    "VideoError",
    "VideoInfo",
    "atomic_path",
    "contact_sheet",
    "find_encoder",
    "iter_frames",
    "probe_video",
    "read_clip_frames",
    "read_video",
    "to_uint8",
    "write_clip",
    "write_video",
]

SUFFIXES = (".mp4", ".webm", ".gif", ".png")

_ENCODERS = {
    ".mp4": {"libx264": {"crf": "16", "preset": "medium"}, "libopenh264": {"b": "8000000"}},
    ".webm": {"libvpx-vp9": {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}},
}
"""Suffix -> encoders in order of preference, with settings at which a viewer sees no loss."""

CLIP_GROUP = 16
"""Frames from one key frame to the next in files of ``write_clip``."""

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
    encoder = find_encoder(suffix)
    if encoder is None:
        wanted = " or ".join(_ENCODERS[suffix])
        raise VideoError(f"{suffix}: this PyAV has no encoder ({wanted}); reinstall av, or write a .gif")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with _encoder(path, fps, frames.shape[2], frames.shape[1], encoder, _ENCODERS[suffix][encoder]) as encode:
        for image in frames:
            encode(image)


@contextmanager
def _encoder(
    path: Path, fps: float, width: int, height: int, codec: str, codec_options: dict[str, str]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that appends a ``(height, width, 3)`` uint8 RGB image to a 4:2:0, BT.709 file."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    container_format = path.suffix.lower().removeprefix(".")
    # "bitexact" leaves out the date and the name of the muxer: the same frames give the same file.
    options = {"fflags": "+bitexact"}
    if container_format == "mp4":
        options["movflags"] = "+faststart"
    with av.open(str(path), "w", format=container_format, options=options) as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=dict(codec_options)))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        scaler = VideoReformatter()

        def encode(image: np.ndarray) -> None:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            yuv = scaler.reformat(
                rgb,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            container.mux(stream.encode(yuv))

        yield encode
        container.mux(stream.encode(None))


def write_clip(images: Iterable[np.ndarray], path: str | os.PathLike[str], fps: float, *, crf: int) -> int:
    """Write an H.264 file for training: closed groups of ``CLIP_GROUP`` frames at an exactly constant rate.

    One thread and no metadata: the same images give the same bytes. Memory does not grow with the length.

    Args:
        images: ``(H, W, 3)`` uint8 RGB, all of one size with even sides; at least one.
        path: ``.mp4`` file, replaced in one step at the end.
        fps: frames per second, in (0, 1000].
        crf: x264's constant rate factor, 0 (lossless) to 51.

    Returns:
        The number of frames written.

    Raises:
        VideoError: no images, odd or changing sizes, wrong type, or PyAV has no x264.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if find_encoder(".mp4") != "libx264":
        raise VideoError("this PyAV has no libx264, which writes clips; reinstall av")
    images = iter(images)
    first = next(images, None)
    if first is None:
        raise VideoError(f"{path}: got no frames, expected at least one")
    _check(first[None], path, fps)
    height, width = first.shape[:2]
    if height % 2 or width % 2 or path.suffix != ".mp4":
        raise VideoError(f"{path}: got {width}x{height}, expected even sides and a name ending in .mp4")
    x264 = f"keyint={CLIP_GROUP}:min-keyint={CLIP_GROUP}:scenecut=0:open-gop=0:threads=1:lookahead-threads=1"
    # Without the last one x264's assembler reads memory that nobody wrote, where a side is no multiple of 16.
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": f"{x264}:cpu-independent=1"}
    count = 0
    with atomic_path(path) as partial, _encoder(partial, fps, width, height, "libx264", options) as encode:
        for image in itertools.chain([first], images):
            if image.shape != first.shape or image.dtype != np.uint8:
                raise VideoError(f"{path}: got a frame {image.dtype} {image.shape} after {first.shape}")
            encode(image)
            count += 1
    return count


def read_clip_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> np.ndarray:
    """Decode some frames of a file that ``write_clip`` made, by their number, without a pass over all others.

    Only for such files: the decoder (decord) seeks by number, which is exact where groups are closed and the
    rate is constant. Its reader decodes ahead for as long as it lives, so it is released before this returns.

    Args:
        path: a clip of a shard.
        indices: numbers of frames, from 0; any order, repeats allowed.

    Returns:
        ``(len(indices), H, W, 3)`` uint8 RGB.

    Raises:
        VideoError: the file cannot be read, or has no frame of that number.
    """
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        try:
            if indices and not 0 <= min(indices) <= max(indices) < len(reader):
                raise VideoError(
                    f"{path}: got frames {min(indices)} to {max(indices)}, expected 0 to {len(reader) - 1}"
                )
            batch: np.ndarray = reader.get_batch(list(indices)).asnumpy()
        finally:
            del reader
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: cannot be decoded ({' '.join(str(error).split())[:200]})") from error
    return batch


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


MAX_PIXELS = 35_651_584
"""Largest picture that is decoded: the limit of HEVC level 6.2, 8192x4352. A header can claim far more."""

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,gif,apng,nut,rm,wtv,mxf,dv,gxf,"
    "yuv4mpegpipe,h263,h264,hevc,vvc,av1,obu,m4v,mjpeg,vc1,dirac"
)
"""Demuxers that may open a file. Playlists (HLS, concat) are left out: they name other files and hosts."""

_NOT_THE_FILM = 0x0400 | 0x0800 | 0x80000 | 0x100000
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC, TIMED_THUMBNAILS, DEPENDENT, STILL_IMAGE: pictures, not the video."""

_EPSILON_S = 1e-6
_SEEK_FROM_S = 2.0
"""A clip that begins earlier is reached by decoding from the start."""
_MAX_GAP_S = 60.0
"""A longer step between timestamps is a clock that was set anew (joined recordings), not a still picture."""
_MAX_STEP_BACK_S = 1.0
"""Timestamps that go back by less are badly written; by more, the clock was set anew."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file says about its main video stream, checked by decoding one frame.

    Attributes:
        width, height: of the displayed picture in pixels: after rotation, with square pixels.
        rotation: degrees by which the display matrix turns the picture, counterclockwise, in [-180, 180].
        fps: the header's average frame rate; 0 where it has none. Informative only.
        duration_s: the header's duration; None where it has none. Informative only.
        codec: FFmpeg's name of the decoder's codec, e.g. ``h264``.
        pix_fmt: FFmpeg's name of the decoded pixel format, e.g. ``yuv420p10le``.
        container: FFmpeg's name of the container format, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``.
        num_video_streams: video streams in the file, covers and thumbnails included.
        stream_index: index, among all streams of the file, of the one that is read.
    """

    width: int
    height: int
    rotation: int
    fps: float
    duration_s: float | None
    codec: str
    pix_fmt: str
    container: str
    num_video_streams: int
    stream_index: int


class TimedFrame:
    """One decoded frame; it becomes RGB only when asked.

    A frame keeps its decoder's buffer alive: take ``rgb`` and let it go before the next ones pile up.

    Attributes:
        time_s: seconds from the first displayed frame of the stream.
        index: 0 for the first frame of this iteration.
        width, height: of the displayed picture in pixels, the same for all frames of a stream.
    """

    __slots__ = ("_display", "_frame", "index", "time_s")

    def __init__(self, frame: av.VideoFrame, display: _Display, time_s: float, index: int) -> None:
        self._frame = frame
        self._display = display
        self.time_s = time_s
        self.index = index

    @property
    def width(self) -> int:
        return self._display.width

    @property
    def height(self) -> int:
        return self._display.height

    def rgb(self, short_side: int | None = None, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """The displayed picture as ``(H, W, 3)`` uint8 RGB.

        Args:
            short_side: shrink until the shorter side is this many pixels, by means over areas; never enlarge.
            size: instead, (width, height) in pixels whatever the aspect ratio, by a cubic filter that grows
                wider where it shrinks.

        Raises:
            VideoError: FFmpeg cannot convert this pixel format, or ``size`` exceeds ``MAX_PIXELS``.
        """
        from av.video.reformatter import Interpolation

        width, height = size or (self.width, self.height)
        if width * height > MAX_PIXELS:
            raise VideoError(f"size: got {width}x{height}, expected at most {MAX_PIXELS} pixels")
        if size is None and short_side is not None and short_side < min(width, height):
            scale = short_side / min(width, height)
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
            return self._display.rgb(self._frame, width, height, Interpolation.AREA)
        return self._display.rgb(self._frame, width, height, Interpolation.BICUBIC)


class _Display:
    """How the coded pictures of one stream become displayed ones; fixed by the stream's first frame.

    A stream that changes its coded size later is scaled to the displayed size of its first frame.
    """

    def __init__(self, frame: av.VideoFrame, pixel_aspect: Fraction | None) -> None:
        from av.sidedata.sidedata import Type as SideDataType

        # A display matrix (a b u; c d v; x y w) maps x to a*x + c*y and y to b*x + d*y (ISO 14496-12, 6.2.2).
        # Only the eight orientations are followed; a free angle is taken for the nearest of them.
        a, b, c, d = 1, 0, 0, 1
        matrix = cast("Any", frame.side_data).get(SideDataType.DISPLAYMATRIX)
        if matrix is not None and matrix.buffer_size == 36:
            a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
        self.rotation = frame.rotation
        self._transposed = abs(c) > abs(a)
        self._mirrored = (c if self._transposed else a) < 0
        self._upside_down = (b if self._transposed else d) < 0
        width, height = frame.width, frame.height
        if pixel_aspect is not None and Fraction(1, 8) <= pixel_aspect <= 8:
            width = max(1, round(width * pixel_aspect))
        if width * height > MAX_PIXELS:
            raise VideoError(f"got a picture of {width}x{height}, expected at most {MAX_PIXELS} pixels")
        self.width, self.height = (height, width) if self._transposed else (width, height)
        self._scalers: dict[tuple[int, int], VideoReformatter] = {}

    def rgb(self, frame: av.VideoFrame, width: int, height: int, filters: int) -> np.ndarray:
        import av

        if self._transposed:
            width, height = height, width
        try:
            if frame.interlaced_frame and frame.height >= 4:
                image = _first_field(self._scale(frame, frame.width, frame.height, filters))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            image = self._scale(frame, width, height, filters)
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(f"cannot convert {frame.format.name} pictures to RGB ({error})") from error
        if self._transposed:
            image = image.swapaxes(0, 1)
        if self._mirrored:
            image = image[:, ::-1]
        if self._upside_down:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def _scale(self, frame: av.VideoFrame, width: int, height: int, filters: int) -> np.ndarray:
        """``(height, width, 3)`` uint8 RGB of the coded picture, the same bytes on any processor."""
        from av.video.reformatter import Interpolation, VideoReformatter

        # A scaler is set up anew at each change of size: one for each size in use.
        scaler = self._scalers.setdefault((width, height), VideoReformatter())
        filters = int(filters | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)
        return scaler.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=_color_matrix(frame),
            interpolation=filters,
            threads=1,
        ).to_ndarray()


def _color_matrix(frame: av.VideoFrame) -> int:
    """The frame's own YCbCr matrix, or the one that goes with its height where it names none."""
    from av.video.reformatter import Colorspace

    # Numbers of ITU-T H.273; those of BT.601 (5, 6), RGB (0) and of what FFmpeg cannot convert are left out.
    named = {
        _BT709: Colorspace.ITU709,
        4: Colorspace.FCC,
        7: Colorspace.SMPTE240M,
        9: Colorspace.BT2020,
        10: Colorspace.BT2020,
    }
    if frame.colorspace == _UNSPECIFIED:
        return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    return named.get(int(frame.colorspace), Colorspace.ITU601)


def _first_field(image: np.ndarray) -> np.ndarray:
    """Replace every second row by the mean of its neighbours: only the rows of one instant stay."""
    image = image.copy()
    above, below = image[:-2:2].astype(np.uint16), image[2::2]
    image[1:-1:2] = ((above + below + 1) // 2).astype(np.uint8)
    if len(image) % 2 == 0:
        image[-1] = image[-2]
    return image


class _Clock:
    """Turns timestamps into ticks since the first frame that always increase.

    Where the packets' timestamps are in order, frames that are not come from a decoder that lost its way in
    damaged data. Elsewhere missing timestamps and clocks that were set anew are bridged by the header's rate.

    Attributes:
        time_base: seconds per tick.
        zero: timestamp of the stream's first frame: of the first that is timed, unless it is set before.
        was_set_anew: a break was bridged.
    """

    def __init__(self, time_base: Fraction, fps: float, is_regular: Callable[[], bool]) -> None:
        self.time_base = time_base
        self.zero: int | None = None
        self.was_set_anew = False
        self._is_regular = is_regular
        self._step = max(1, round(1 / ((fps if 0.1 <= fps <= 1000 else 25.0) * time_base)))
        self._max_gap = round(_MAX_GAP_S / time_base)
        self._max_back = round(_MAX_STEP_BACK_S / time_base)
        self._last: int | None = None

    def time_s(self, pts: int | None) -> float | None:
        """Seconds since the first frame; None for a frame that is out of order and better left out."""
        following = 0 if self._last is None else self._last + self._step
        if pts is None:
            ticks = following
        elif self.zero is None:
            ticks, self.zero = following, pts - following
        else:
            ticks = pts - self.zero
            if self._last is not None and not self._last < ticks <= self._last + self._max_gap:
                if self._is_regular():
                    if ticks <= self._last:
                        return None
                elif self._last - self._max_back <= ticks <= self._last:
                    ticks = self._last + 1
                else:
                    ticks, self.zero, self.was_set_anew = following, pts - following, True
        self._last = ticks
        return float(ticks * self.time_base)


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    """Turn what PyAV raises into one ``VideoError`` that names the file."""
    import av

    try:
        yield
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    # Beside FFmpeg's own errors PyAV lets these through when a header holds nonsense.
    except (av.error.FFmpegError, OSError, ValueError, OverflowError, ZeroDivisionError, IndexError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: cannot be decoded ({reason})") from error


def _open_container(path: Path) -> InputContainer:
    import av

    limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    # The prefix keeps a file called "concat:a|b" or "http:..." a file.
    return av.open(f"file:{os.path.abspath(path)}", container_options=limits, metadata_errors="replace")


def _time_base(stream: av.VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 1000)


def _main_stream(container: InputContainer) -> av.VideoStream:
    """The stream that a player shows first.

    Covers and thumbnails are no candidates, nor what has no decoder. Of the others: those marked as default
    if any is; not those that announce under a quarter of the frames of the longest (previews); then first.
    """
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    streams = [stream for stream in streams if not stream.disposition.value & _NOT_THE_FILM]
    if not streams:
        if not container.streams.video:
            raise VideoError("has no video stream")
        raise VideoError("has no video stream that can be decoded, only pictures or unknown codecs")
    streams = [stream for stream in streams if stream.disposition.value & 1] or streams
    most = max(stream.frames for stream in streams)
    stream = next(stream for stream in streams if 4 * stream.frames >= most)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise VideoError(f"declares pictures of {width}x{height}, expected at most {MAX_PIXELS} pixels")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    # One thread: the same result on any machine, little memory; workers are processes.
    stream.codec_context.thread_count = 1
    return stream


@functools.lru_cache(maxsize=64)
def _has_regular_clock(path: Path, size_bytes: int, modified_ns: int, stream_index: int) -> bool:
    """Whether timestamps alone tell where a frame lies: each frame has its own, no two alike, never set anew.

    Only then does a frame that was reached by seeking get the time that a pass from the start gives it. Reads
    the packets of the whole file without decoding them, once per file and process.
    """
    import av

    times, positions = array("q"), array("q")
    with _open_container(path) as container:
        stream = cast("av.VideoStream", container.streams[stream_index])
        # AVI knows only the order of decoding, and where several frames share a packet of an MPEG stream only
        # the first has a timestamp; FFmpeg guesses the others from what it has read before.
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            return False
        guesses = container.format.name in ("mpeg", "mpegts")
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.pts is None:
                    return False
                times.append(packet.pts)
                positions.append(-1 if packet.pos is None else packet.pos)
        except av.error.FFmpegError:
            pass  # a truncated file: what there is counts
        max_gap = int(_MAX_GAP_S / _time_base(stream))
    if guesses and (-1 in positions or len(np.unique(positions)) < len(positions)):
        return False
    steps = np.diff(np.sort(times))
    return bool((steps > 0).all() and (steps <= max_gap).all())


class FrameIterator(Iterator[TimedFrame]):
    """What ``iter_frames`` returns: frames in the order of display, and what was found out on the way.

    Attributes:
        path: the file.
        info: of the stream, from its header and its first frame.
    """

    def __init__(self, path: Path, start_s: float, end_s: float | None) -> None:
        self.path = path
        self._start_s = start_s
        self._end_s = math.inf if end_s is None else end_s
        self._num_faults = 0
        self._first_fault = ""
        self._ends_early = ""
        with _video_errors(path):
            self._container = _open_container(path)
            try:
                self._begin()
            except BaseException:
                self._container.close()
                raise
        self._frames = self._timed()

    @property
    def damage(self) -> str | None:
        """What kept some of the stream from being decoded, as far as it was read; None where nothing did."""
        parts = []
        if self._num_faults:
            parts.append(f"{self._num_faults} faults, the first: {self._first_fault}")
        if self._ends_early:
            parts.append(self._ends_early)
        return "; ".join(parts) or None

    def __next__(self) -> TimedFrame:
        return next(self._frames)

    def close(self) -> None:
        """Release the file before the end is reached."""
        self._frames.close()
        self._container.close()

    def _begin(self) -> None:
        self._stream = stream = _main_stream(self._container)
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            because = f" ({self.damage})" if self.damage else ""
            raise VideoError(f"holds no frame that can be decoded{because}")
        self._first = first
        self._display = _Display(first, stream.sample_aspect_ratio)
        duration_s = None if self._container.duration is None else self._container.duration / 1e6
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        self.info = VideoInfo(
            width=self._display.width,
            height=self._display.height,
            rotation=self._display.rotation,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            duration_s=duration_s,
            codec=stream.codec_context.codec.canonical_name,
            pix_fmt=first.format.name,
            container=self._container.format.name,
            num_video_streams=len(self._container.streams.video),
            stream_index=stream.index,
        )

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames from where the container stands; a packet that does not decode is counted and skipped."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self._note_fault(error.strerror or type(error).__name__)
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                self._note_fault(error.strerror or type(error).__name__)
                continue
            yield from frames

    def _note_fault(self, what: str) -> None:
        self._first_fault = self._first_fault or what
        self._num_faults += 1

    def _timed(self) -> Generator[TimedFrame, None, None]:
        """Frames of the wanted span, in the order of display."""
        clock = _Clock(_time_base(self._stream), self.info.fps, self._has_regular_clock)
        index, last_s = 0, 0.0
        try:
            with _video_errors(self.path):
                for frame in self._seek(clock):
                    time_s = clock.time_s(frame.pts)
                    if time_s is None:
                        self._note_fault("a frame out of order")
                        continue
                    last_s = time_s
                    if time_s >= self._end_s - _EPSILON_S:
                        return
                    if time_s >= self._start_s - _EPSILON_S:
                        yield TimedFrame(frame, self._display, time_s, index)
                        index += 1
                if self._stream.duration is not None and not clock.was_set_anew:
                    declared_s = float(self._stream.duration * clock.time_base)
                    if last_s < 0.95 * declared_s - 1.0:
                        self._ends_early = f"ends at {last_s:.2f} s where the header says {declared_s:.2f} s"
        finally:
            self._container.close()

    def _seek(self, clock: _Clock) -> Iterator[av.VideoFrame]:
        """Frames from the last key frame at or before the wanted start, or from the first frame of all."""
        import av

        first_pts = self._first.pts
        if self._start_s < _SEEK_FROM_S or first_pts is None or not self._has_regular_clock():
            return itertools.chain([self._first], self._decoded)
        ticks_per_s = 1 / _time_base(self._stream)
        wanted = first_pts + math.ceil((self._start_s - _EPSILON_S) * ticks_per_s)
        back = 0
        while wanted - back > first_pts:
            try:
                self._container.seek(wanted - back, stream=self._stream)
            except av.error.FFmpegError:
                break
            frames = self._decode()
            # What is shown before the key frame may refer to pictures that were jumped over (open groups).
            for frame in frames:
                if frame.pts is None or frame.pts > wanted:
                    break
                if frame.key_frame:
                    clock.zero = first_pts
                    self._num_faults = 0
                    return itertools.chain([frame], frames)
            # Some containers seek by decoding time, or not precisely, and land too late: try further back.
            back = max(2 * back, math.ceil(ticks_per_s))
        self._container.close()
        self._container = _open_container(self.path)
        self._stream = _main_stream(self._container)
        return self._decode()

    def _has_regular_clock(self) -> bool:
        status = self.path.stat()
        return _has_regular_clock(self.path, status.st_size, status.st_mtime_ns, self.info.stream_index)


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Say what a file holds, by its header and by decoding its first frame.

    Raises:
        VideoError: the file cannot be read, has no video, or its first frame does not decode.
    """
    frames = iter_frames(path)
    frames.close()
    return frames.info


def iter_frames(
    path: str | os.PathLike[str], *, start_s: float = 0.0, end_s: float | None = None
) -> FrameIterator:
    """Decode the main video stream of a file frame by frame, in constant memory.

    Gives the frames with ``start_s <= time_s < end_s`` (to a microsecond), the same ones whether it seeks or
    not. A damaged or truncated file gives what decodes and then ends; the iterator's ``damage`` says so.

    Args:
        path: any of the usual containers and codecs; playlists and pictures are not read.
        start_s: seconds from the first displayed frame of the stream.
        end_s: None is the end of the stream.

    Raises:
        VideoError: the file cannot be read, has no video, exceeds ``MAX_PIXELS``, or not one frame decodes.
    """
    return FrameIterator(Path(path), start_s, end_s)


def read_video(
    path: str | os.PathLike[str], *, max_frames: int = 4096, max_bytes: int = 4 * 1024**3
) -> VideoClip:
    """Decode the main video stream of a file into memory.

    Args:
        path: any container and codec that FFmpeg reads.
        max_frames: more frames than this are refused, not cut off.
        max_bytes: bound on the decoded size in bytes.

    Raises:
        VideoError: the file cannot be decoded, has no video, or exceeds a bound.
    """
    images: list[np.ndarray] = []
    frames = iter_frames(path)
    with closing(frames):
        for frame in frames:
            if len(images) >= max_frames or (len(images) + 1) * frame.width * frame.height * 3 > max_bytes:
                raise VideoError(
                    f"{path}: over {len(images)} frames of {frame.width}x{frame.height}, expected up to "
                    f"{max_frames} frames and {max_bytes} bytes; cut it first or raise the limit"
                )
            images.append(frame.rgb())
    return VideoClip(frames=np.stack(images), fps=frames.info.fps)


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
