"""Video files: colours, sizes, rates and frame counts survive; a failed write leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hummingbird import video_io
from hummingbird.video_io import VideoError, atomic_path, contact_sheet, read_video, to_uint8, write_video

COLORS = {"red": (225, 40, 40), "green": (40, 180, 60), "blue": (50, 90, 240), "gray": (128, 128, 128)}


def flat(color: tuple[int, int, int], frames: int = 6, height: int = 64, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (frames, height, width, 3)).copy()


def moving_square(frames: int = 16) -> np.ndarray:
    clip = flat((20, 28, 95), frames)
    for index in range(frames):
        clip[index, 20:40, 2 * index : 2 * index + 20] = (245, 220, 40)
    return clip


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_flat_colours_survive(tmp_path: Path, color: str, suffix: str) -> None:
    path = write_video(flat(COLORS[color]), tmp_path / f"a{suffix}", fps=8)
    clip = read_video(path)
    # The BT.601 matrix in place of BT.709 on either side would move red and green by 12 to 23.
    np.testing.assert_allclose(clip.frames[-1].mean((0, 1)), COLORS[color], atol=3)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_movement_and_frame_count_survive(tmp_path: Path, suffix: str) -> None:
    clip = moving_square()
    read = read_video(write_video(clip, tmp_path / f"a{suffix}", fps=8))
    back = read.frames
    assert read.fps == 8
    assert back.shape == clip.shape
    # Away from the edges, where 4:2:0 mixes colours of neighbours; one frame's shift moves 2 columns.
    for index in (0, 7, 15):
        inside = back[index, 24:36, 2 * index + 4 : 2 * index + 16].astype(int)
        assert np.abs(inside - (245, 220, 40)).max() <= 14


def test_mp4_is_h264_420_with_bt709_tags(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_video(moving_square(), tmp_path / "a.mp4", fps=8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            1,
            1,
            1,
            1,
        )
        assert container.streams.video[0].duration * container.streams.video[0].time_base == 2


def test_fractional_rate(tmp_path: Path) -> None:
    clip = read_video(write_video(moving_square(), tmp_path / "a.mp4", fps=24000 / 1001))
    assert clip.fps == pytest.approx(23.976, abs=1e-3)


def test_odd_sizes_get_their_last_line_repeated(tmp_path: Path) -> None:
    clip = flat((40, 180, 60), height=33, width=47)
    assert read_video(write_video(clip, tmp_path / "a.mp4", fps=8)).frames.shape[1:3] == (34, 48)


def test_gif_plays_at_the_right_speed_with_few_colour_errors(tmp_path: Path) -> None:
    path = write_video(moving_square(), tmp_path / "a.gif", fps=8)
    with PIL.Image.open(path) as image:
        total_ms = 0
        for index in range(image.n_frames):
            image.seek(index)
            total_ms += image.info["duration"]
        assert image.n_frames == 16
        assert image.info["loop"] == 0
    assert total_ms == 2000
    assert np.abs(read_video(path).frames.astype(int) - moving_square()).max() <= 2


def test_png_is_a_contact_sheet_with_first_and_last_frame(tmp_path: Path) -> None:
    path = write_video(moving_square(), tmp_path / "a.png", fps=8)
    with PIL.Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (128 + 8, 8 * 132 + 4, 3)
    first, last = sheet[4:132, 4:132], sheet[4:132, -132:-4]
    np.testing.assert_array_equal(first[::2, ::2], moving_square()[0])
    np.testing.assert_array_equal(last[::2, ::2], moving_square()[15])


def test_contact_sheet_of_several_with_captions() -> None:
    sheet = contact_sheet([moving_square(), flat((9, 9, 9), frames=2)], ["one", "two " * 100], columns=4)
    assert sheet.size == (4 * 132 + 4, 2 * (128 + 4 + 20) + 4)
    with pytest.raises(VideoError, match="1 captions for 2 videos"):
        contact_sheet([moving_square(), moving_square()], ["one"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(flat((9, 9, 9)), tmp_path / "a.mp4", fps=8)
    before = path.read_bytes()

    def interrupt(*args: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(video_io, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_video(moving_square(), path, fps=8)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_replaces_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as partial:
        partial.write_text("x")
        assert partial.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("frames", "name", "fps", "message"),
    [
        (flat((1, 2, 3)), "a.avi", 8, r"got suffix '.avi', expected one of .mp4"),
        (flat((1, 2, 3))[0], "a.mp4", 8, r"got uint8 \(64, 64, 3\), expected uint8 \(frames"),
        (flat((1, 2, 3)).astype(np.float32), "a.mp4", 8, "got float32"),
        (flat((1, 2, 3))[:0], "a.mp4", 8, "at least one frame"),
        (flat((1, 2, 3)), "a.mp4", 0, "fps: got 0"),
        (flat((1, 2, 3)), "a.mp4", float("nan"), "fps: got nan"),
    ],
)
def test_wrong_input_is_refused(
    tmp_path: Path, frames: np.ndarray, name: str, fps: float, message: str
) -> None:
    with pytest.raises(VideoError, match=message):
        write_video(frames, tmp_path / name, fps)
    assert not list(tmp_path.iterdir())


def test_reading_is_bounded_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = write_video(moving_square(), tmp_path / "a.mp4", fps=8)
    with pytest.raises(VideoError, match="over 4 frames"):
        read_video(path, max_frames=4)
    with pytest.raises(VideoError, match="expected up to"):
        read_video(path, max_bytes=64 * 64 * 3 * 5)
    broken = tmp_path / "b.mp4"
    broken.write_bytes(b"not a video at all" * 100)
    with pytest.raises(VideoError, match="cannot be decoded"):
        read_video(broken)
    with pytest.raises(VideoError, match="No such file"):
        read_video(tmp_path / "none.mp4")


def test_to_uint8() -> None:
    np.testing.assert_array_equal(to_uint8(np.array([-0.1, 0, 0.5, 1, 2])), [0, 0, 128, 255, 255])
    with pytest.raises(VideoError, match="1 NaN"):
        to_uint8(np.array([np.nan, 0.5]))
