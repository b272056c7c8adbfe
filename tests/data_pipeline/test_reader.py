"""The reader on real clips and on files of every kind made here: which frames, when, which way up.

Pictures made here say their own number in eight bars, so a test knows which frame it got after any codec.
"""

from __future__ import annotations

import csv
import itertools
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hummingbird.video_io import MAX_PIXELS, VideoError, iter_frames, probe_video, read_video
from tests.data_pipeline.fuzz import KINDS, make_fuzzed

BITS = 8


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """``(height, width, 3)``: bar i is bright where bit i of ``number`` is set."""
    bars = [210 if number >> bit & 1 else 40 for bit in range(BITS)]
    row = np.array(bars, np.uint8)[np.arange(width) * BITS // width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(image: np.ndarray) -> int:
    height, width = image.shape[:2]
    centers = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    rows = image[height // 4 : 3 * height // 4]
    return sum(1 << bit for bit, x in enumerate(centers) if rows[:, x - 1 : x + 1].mean() > 125)


def write(
    path: Path,
    codec: str = "libx264",
    *,
    images: Sequence[np.ndarray] | None = None,
    num_frames: int = 100,
    first: int = 0,
    size: tuple[int, int] = (96, 64),
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    setup: Callable[[Any], None] | None = None,
) -> Path:
    """Encode numbered pictures, or ``images``; ``pts`` count in 1 / fps."""
    images = images or [numbered(first + index, *size) for index in range(num_frames)]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if setup:
            setup(stream)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


OPEN = {"g": "12", "preset": "veryfast", "bf": "3", "x264-params": "open-gop=1:scenecut=0:threads=1"}
X265 = {"x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:pools=1:frame-threads=1:log-level=none"}
VP9 = {"g": "20", "deadline": "realtime", "cpu-used": "8"}
AV1 = {"g": "20", "preset": "12", "svtav1-params": "lp=1"}
BACKWARD = {"g": "12", "bf": "2"}
STEPS = np.random.default_rng(0).integers(1, 4, 100)

FILES: dict[str, dict[str, Any]] = {
    "open_groups.mp4": {"options": OPEN},
    "open_groups.mkv": {"options": OPEN},
    "open_groups.ts": {"options": OPEN},
    "late_start.ts": {"options": OPEN, "container_options": {"output_ts_offset": "3600"}},
    "clock_wraps.ts": {"options": OPEN, "container_options": {"output_ts_offset": "95442"}},
    "fragmented.mp4": {"options": OPEN, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "no_edit_list.mp4": {"options": OPEN, "container_options": {"use_editlist": "0"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=30:threads=1"}},
    "flash.flv": {"options": {"g": "12", "bf": "2", "preset": "veryfast"}},
    "hevc_10_bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": X265},
    "hevc.ts": {"codec": "libx265", "options": X265},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "no_duration.webm": {"codec": "libvpx-vp9", "options": VP9, "container_options": {"live": "1"}},
    "odd_size.webm": {"codec": "libvpx-vp9", "options": VP9, "size": (97, 63)},
    "av1.mp4": {"codec": "libsvtav1", "options": AV1},
    "av1_10_bit.mkv": {"codec": "libsvtav1", "pix_fmt": "yuv420p10le", "options": AV1},
    "prores_10_bit.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "prores_alpha.mov": {"codec": "prores_ks", "pix_fmt": "yuva444p10le"},
    "mpeg2.ts": {"codec": "mpeg2video", "options": BACKWARD},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": BACKWARD},
    "mpeg4.avi": {"codec": "mpeg4", "options": BACKWARD},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "windows.wmv": {"codec": "wmv2"},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "no_timestamps.h264": {"options": {"g": "12", "bf": "2", "preset": "veryfast"}},
    "animated.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "variable_rate.mp4": {"options": OPEN, "fps": 50, "pts": [0, *np.cumsum(STEPS).tolist()[:-1]]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_every_frame_at_its_time_from_any_start(tmp_path: Path, name: str) -> None:
    settings = FILES[name]
    path = write(tmp_path / name, **settings)
    frames = iter_frames(path)
    full = [(number_of(frame.rgb()), frame.time_s, frame.rgb(32).tobytes()) for frame in frames]
    assert [number for number, _, _ in full] == list(range(100))
    assert frames.damage is None
    fps = settings.get("fps", 25)
    expected_s = np.array(settings.get("pts", range(100))) / fps
    np.testing.assert_allclose([time_s for _, time_s, _ in full], expected_s, atol=0.0011)
    assert (frames.info.width, frames.info.height) == settings.get("size", (96, 64))
    generator = np.random.default_rng(1)
    for _ in range(12):
        start_s = full[generator.integers(100)][1] if generator.random() < 0.5 else generator.uniform(0, 4)
        end_s = start_s + generator.uniform(0, 0.5)
        part = [
            (number_of(frame.rgb()), frame.time_s, frame.rgb(32).tobytes())
            for frame in iter_frames(path, start_s=start_s, end_s=end_s)
        ]
        assert part == [frame for frame in full if start_s - 1e-6 <= frame[1] < end_s - 1e-6]


def clips(folder: Path) -> list[dict[str, str]]:
    with (folder / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_real_clips_are_read_as_their_list_says(clips_dir: Path) -> None:
    rows = clips(clips_dir)
    assert len(rows) >= 13
    for row in rows:
        frames = iter_frames(clips_dir / row["file"])
        count = sum(1 for _ in frames)
        info = frames.info
        got = (
            count,
            f"{info.width}x{info.height}",
            info.rotation,
            info.codec,
            info.pix_fmt,
            info.num_video_streams,
        )
        expected = (
            int(row["decodable_frames"]),
            row["display_WxH"],
            int(row["rotation"]),
            row["codec"],
            row["pix_fmt"],
            int(row["video_streams"]),
        )
        assert got == expected, row["file"]
        assert (frames.damage is not None) == ("truncated" in row["file"])


def fingerprints(path: Path, start_s: float = 0.0, end_s: float | None = None) -> list[tuple[float, int]]:
    return [
        (frame.time_s, zlib.crc32(frame.rgb(64))) for frame in iter_frames(path, start_s=start_s, end_s=end_s)
    ]


@pytest.mark.parametrize(
    "num_starts", [pytest.param(2, id="few"), pytest.param(40, id="many", marks=pytest.mark.slow)]
)
def test_real_clips_from_any_start(clips_dir: Path, num_starts: int) -> None:
    for row in clips(clips_dir):
        if num_starts < 10 and int(row["bytes"]) > 1_000_000:
            continue
        path = clips_dir / row["file"]
        full = fingerprints(path)
        generator = np.random.default_rng(0)
        for _ in range(num_starts):
            start_s = float(
                generator.choice([generator.uniform(0, full[-1][0]), full[generator.integers(len(full))][0]])
            )
            end_s = start_s + generator.uniform(0, 1)
            wanted = [frame for frame in full if start_s - 1e-6 <= frame[0] < end_s - 1e-6]
            assert fingerprints(path, start_s, end_s) == wanted, (row["file"], start_s, end_s)


def test_avi_with_reordered_frames_from_any_start(tmp_path: Path) -> None:
    # AVI has no time of display: the times are off by up to the reordering, yet the same from any start.
    path = write(tmp_path / "a.avi", options={"g": "12", "bf": "2", "preset": "veryfast"})
    full = fingerprints(path)
    assert len(full) == 100
    for start_s in np.random.default_rng(0).uniform(2, 4, 20):
        assert fingerprints(path, start_s) == [frame for frame in full if start_s - 1e-6 <= frame[0]]


def test_edit_list_hides_what_comes_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", options=OPEN)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # after type, version and flags, number of entries
    duration, media_time = struct.unpack(">ii", data[entry : entry + 8])
    timescale = 12800
    data[entry : entry + 8] = struct.pack(">ii", duration, media_time + 60 * timescale // 25)
    path.write_bytes(data)
    full = [(number_of(frame.rgb()), round(frame.time_s, 3)) for frame in iter_frames(path)]
    assert full == [(60 + index, round(index / 25, 3)) for index in range(40)]
    assert [number_of(frame.rgb()) for frame in iter_frames(path, start_s=1.2)] == list(range(90, 100))


def test_clocks_set_anew_and_sizes_that_change_are_bridged(tmp_path: Path) -> None:
    closed = {"g": "12", "bf": "2", "preset": "veryfast"}
    early = write(tmp_path / "a.ts", options=closed).read_bytes()
    late = {"output_ts_offset": "7000"}
    later = write(
        tmp_path / "b.ts", options=closed, first=100, container_options=late, size=(192, 128)
    ).read_bytes()
    for name, data, numbers in (
        ("forward.ts", early + later, [*range(100), *range(100, 200)]),
        ("back.ts", later + early, [*range(100, 200), *range(100)]),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        frames = list(iter_frames(path))
        assert [number_of(frame.rgb()) for frame in frames] == numbers
        assert len({(frame.width, frame.height, frame.rgb().shape) for frame in frames}) == 1
        np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(200) / 25, atol=1e-3)
        assert [number_of(frame.rgb()) for frame in iter_frames(path, start_s=6.0)] == numbers[150:]


CORNERS = np.kron(
    np.array([[[250, 30, 30], [30, 220, 30]], [[30, 30, 240], [128, 128, 128]]], np.uint8),
    np.ones((32, 48, 1), np.uint8),
)
"""Red and green above, blue and grey below: tells all eight orientations apart."""


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_stand_upright(tmp_path: Path, turns: int, mirrored: bool) -> None:
    stored = [CORNERS] * 3

    def turn(stream: Any) -> None:
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip(f"PyAV {av.__version__} writes no display matrices; 18 does")
        stream.set_display_rotation(90 * turns, hflip=mirrored)

    path = write(tmp_path / "a.mov", images=stored, setup=turn)
    shown = np.rot90(CORNERS, turns)
    shown = shown[:, ::-1] if mirrored else shown
    info = probe_video(path)
    assert (info.width, info.height) == ((64, 96) if turns % 2 else (96, 64))
    for image in (read_video(path).frames[1], next(iter_frames(path)).rgb(size=(info.width, info.height))):
        centers = image[info.height // 4 :: info.height // 2, info.width // 4 :: info.width // 2]
        wanted = shown[info.height // 4 :: info.height // 2, info.width // 4 :: info.width // 2]
        np.testing.assert_allclose(centers.astype(int), wanted, atol=12)
    small = next(iter_frames(path)).rgb(short_side=16)
    assert small.shape == ((24, 16, 3) if turns % 2 else (16, 24, 3))


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    def anamorphic(stream: Any) -> None:
        stream.sample_aspect_ratio = Fraction(16, 11)

    path = write(tmp_path / "a.mkv", num_frames=3, size=(176, 144), setup=anamorphic)
    info = probe_video(path)
    assert (info.width, info.height) == (256, 144)
    assert read_video(path).frames.shape == (3, 144, 256, 3)


def test_interlaced_pictures_show_one_instant(tmp_path: Path) -> None:
    comb = np.full((64, 96, 3), 40, np.uint8)
    comb[1::2] = 210  # as if something bright had come between the two fields
    path = write(
        tmp_path / "a.ts", "mpeg2video", images=[comb] * 5, options={"flags": "+ildct+ilme", "b": "9000000"}
    )
    for image in (next(iter_frames(path)).rgb(), next(iter_frames(path)).rgb(short_side=32)):
        assert image.mean() < 60
    progressive = write(tmp_path / "b.ts", "mpeg2video", images=[comb] * 5, options={"b": "9000000"})
    assert next(iter_frames(progressive)).rgb().mean() > 100


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("ffv1", "yuv420p"),
        ("ffv1", "yuv422p10le"),
        ("ffv1", "yuv444p"),
        ("qtrle", "argb"),
        ("ffv1", "gray"),
        ("mjpeg", "yuvj420p"),
        ("png", "rgb24"),
    ],
)
def test_flat_colours_of_every_format(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    color = (128, 128, 128) if pix_fmt == "gray" else (200, 60, 40)
    image = np.broadcast_to(np.array(color, np.uint8), (64, 96, 3)).copy()
    path = tmp_path / ("a.mkv" if codec == "ffv1" else "a.mov")
    write(path, codec, images=[image] * 3, pix_fmt=pix_fmt)
    np.testing.assert_allclose(read_video(path).frames[1].mean((0, 1)), color, atol=3)


def mux(path: Path, streams: Sequence[tuple[str, int, int, int, int]]) -> Path:
    """Streams of (codec, disposition, first number, frames, width) in one file."""
    with av.open(str(path), "w") as container:
        made: list[tuple[Any, int, int, int]] = []
        for codec, disposition, first, count, width in streams:
            stream: Any = container.add_stream(codec, rate=25, options={"g": "12"})
            stream.width, stream.height = width, width // 2
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append((stream, first, count, width))
        for index in range(max(count for _, _, count, _ in made)):
            for stream, first, count, width in made:
                if index < count:
                    image = numbered(first + index, width, width // 2)
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                    container.mux(stream.encode(frame))
        for stream, *_ in made:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "streams", "first_number"),
    [
        ("cover.mp4", [("mjpeg", 0x400, 7, 1, 512), ("libx264", 1, 0, 50, 96)], 0),
        ("cover_last.mkv", [("libx264", 1, 0, 50, 96), ("mjpeg", 0x400, 7, 1, 512)], 0),
        ("preview_first.mp4", [("libx264", 1, 200, 2, 192), ("libx264", 1, 0, 50, 96)], 0),
        ("first_of_two.mp4", [("libx264", 1, 0, 50, 96), ("libx264", 1, 100, 60, 192)], 0),
        ("default_second.mkv", [("libx264", 0, 100, 50, 192), ("libx264", 1, 0, 50, 96)], 0),
    ],
)
def test_the_main_stream_of_several(
    tmp_path: Path, name: str, streams: list[tuple[str, int, int, int, int]], first_number: int
) -> None:
    path = mux(tmp_path / name, streams)
    numbers = [number_of(frame.rgb()) for frame in iter_frames(path)]
    assert numbers == list(range(first_number, first_number + 50))
    assert probe_video(path).num_video_streams == 2


def test_truncated_files_give_what_they_have(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "a.mp4", container_options={"movflags": "faststart"}, size=(320, 192), options=OPEN
    )
    data = whole.read_bytes()
    for share in (0.5, 0.7, 0.95):
        path = tmp_path / "cut.mp4"
        path.write_bytes(data[: int(share * len(data))])
        frames = iter_frames(path)
        numbers = [number_of(frame.rgb()) for frame in frames]
        # Of the last group only pictures that do not refer to what was cut off.
        assert numbers == sorted(set(numbers))
        assert 10 <= len(numbers) < 100
        assert numbers[-1] - len(numbers) < 4
        if share < 0.7:
            assert frames.damage is not None
            assert "where the header says 4.00 s" in frames.damage


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_damage_in_the_middle_does_not_shift_the_times_behind_it(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", size=(320, 192), num_frames=200, options=OPEN)
    data = bytearray(path.read_bytes())
    data[int(0.3 * len(data)) : int(0.6 * len(data))] = bytes(int(0.6 * len(data)) - int(0.3 * len(data)))
    path.write_bytes(data)
    frames = iter_frames(path)
    full = [(number_of(frame.rgb()), frame.time_s) for frame in frames]
    assert frames.damage is not None
    assert len(full) < 200
    for number, time_s in (*full[:20], *full[-20:]):
        assert time_s == pytest.approx(number / 25, abs=1e-3)
    start_s = full[-20][1]
    assert [(number_of(frame.rgb()), frame.time_s) for frame in iter_frames(path, start_s=start_s)] == full[
        -20:
    ]


MEASURE = """
import resource, sys
from hummingbird.video_io import iter_frames
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for index, frame in enumerate(iter_frames(sys.argv[1])):
    image = frame.rgb() if index % 10 == 0 else None
    if index == 500:
        early = peak()
sum(1 for frame in iter_frames(sys.argv[1], start_s=0.9 * index / 25))
print(index + 1, peak() - early)
"""


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    short = write(tmp_path / "a.mp4", options=OPEN)
    long = tmp_path / "long.mp4"
    with av.open(str(long), "w") as output:
        stream: Any = None
        for repeat in range(200):
            with av.open(str(short)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                for packet in container.demux(video):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.pts += repeat * 100 * 512
                        packet.dts += repeat * 100 * 512
                        packet.stream = stream
                        output.mux(packet)
    command = [sys.executable, "-c", MEASURE, str(long)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    num_frames, grown_mib = map(int, done.stdout.split())
    assert num_frames == 20_000
    assert grown_mib < 16  # 20,000 frames are 350 MiB


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.mp4", None, "No such file"),
        ("empty.mp4", b"", "cannot be decoded"),
        ("text.mp4", b"this is no video at all\n" * 50, "cannot be decoded"),
        ("ansi.mp4", b"\x1b[2J\x1b[31mart\x1b[0m\r\n" * 50, "cannot be decoded"),
        (
            "list.m3u8",
            b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
            "cannot be decoded",
        ),
        ("join.mp4", b"ffconcat version 1.0\nfile 'real.mp4'\n", "cannot be decoded"),
        (
            "huge.y4m",
            b"YUV4MPEG2 W30000 H30000 F25:1 C420\nFRAME\n" + bytes(1000),
            "cannot be decoded|declares",
        ),
        ("folder.mp4", "folder", "Is a directory"),
    ],
)
def test_what_is_no_video_says_so(tmp_path: Path, name: str, data: bytes | str | None, message: str) -> None:
    write(tmp_path / "real.mp4", num_frames=3)
    path = tmp_path / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data == "folder":
        path.mkdir()
    for read in (iter_frames, probe_video, read_video):
        with pytest.raises(VideoError, match=message) as raised:
            read(path)
        assert "\n" not in str(raised.value)
        assert name in str(raised.value)


def test_a_file_without_its_index_or_without_video(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(VideoError, match="cannot be decoded"):
        probe_video(tmp_path / "headless.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe_video(tmp_path / "sound.mp4")
    cover = mux(tmp_path / "cover.mp4", [("mjpeg", 0x400, 7, 1, 512)])
    with pytest.raises(VideoError, match="only pictures"):
        probe_video(cover)


def test_pictures_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 2 & ~1
    image = np.zeros((side, side, 3), np.uint8)
    path = write(tmp_path / "a.mkv", "mjpeg", images=[image], pix_fmt="yuvj420p")
    with pytest.raises(
        VideoError, match=f"declares pictures of {side}x{side}, expected at most {MAX_PIXELS}"
    ):
        probe_video(path)


def test_names_are_files_and_never_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "real.mp4", num_frames=3).rename("concat:a|b.mp4")
    assert sum(1 for _ in iter_frames("concat:a|b.mp4")) == 3
    with pytest.raises(VideoError, match="No such file"):
        probe_video("http://127.0.0.1:9/a.mp4")


def test_files_are_released(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")

    def open_files() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    probe_video(path)
    frames = iter_frames(path)
    kept = list(itertools.islice(frames, 3))
    assert open_files() == 1
    frames.close()
    assert open_files() == 0
    assert next(frames, None) is None
    assert number_of(kept[2].rgb()) == 2  # a frame outlives its file
    list(iter_frames(path, end_s=1.0))
    list(iter_frames(path, start_s=3.0))
    with pytest.raises(VideoError):
        read_video(path, max_frames=3)
    assert open_files() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_errors_or_frames_and_never_crashes(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.mp4", options=OPEN, container_options={"movflags": "faststart"})
    outcomes = set()
    for seed in range(KINDS.index(kind), 8 * len(KINDS), len(KINDS)):
        broken = make_fuzzed(path, seed, tmp_path / "broken")
        assert broken.read_bytes() == make_fuzzed(path, seed, tmp_path / "again").read_bytes()
        try:
            times_s = [frame.time_s for frame in iter_frames(broken) if frame.rgb(16).size]
        except VideoError:
            outcomes.add("error")
        else:
            assert times_s == sorted(set(times_s))
            outcomes.add("frames")
    assert outcomes <= ({"error"} if kind in ("text", "empty", "noise") else {"error", "frames"})
    assert "frames" in outcomes or kind not in ("few_bits", "renamed", "truncated")
