"""Shots on drawn scenes with known cuts, and on the real clips."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.clip import Source
from data_pipeline.stages.shots import ShotDetector, ShotsConfig
from hummingbird.video_io import VideoError, write_video

SIZE = (160, 90)


def scene(seed: int, num_frames: int, speed: float = 1.0, zoom: float = 1.0) -> np.ndarray:
    """A pan, or a zoom, over a drawn scene of blocks and discs: ``(num_frames, 90, 160, 3)``."""
    rng = np.random.default_rng(seed)
    width, height = 3 * SIZE[0], 2 * SIZE[1]
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = rng.integers(20, 236, 3)
    for _ in range(120):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        corner = (int(rng.integers(width)), int(rng.integers(height)))
        if rng.random() < 0.5:
            cv2.circle(canvas, corner, int(rng.integers(4, 24)), colour, -1, cv2.LINE_AA)
        else:
            end = (corner[0] + int(rng.integers(8, 50)), corner[1] + int(rng.integers(8, 30)))
            cv2.rectangle(canvas, corner, end, colour, -1)
    frames = []
    for index in range(num_frames):
        scale = zoom**index
        left, top = (width - SIZE[0] / scale) / 2 - 60 + speed * index, (height - SIZE[1] / scale) / 2
        matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
        frames.append(
            cv2.warpAffine(canvas, matrix, SIZE, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(frames)


def shots(images: np.ndarray, fps: float = 25.0, times_s: np.ndarray | None = None) -> list[tuple[int, int]]:
    detector = ShotDetector(ShotsConfig(short_side=90))
    for index, image in enumerate(images):
        detector.push(index / fps if times_s is None else float(times_s[index]), image)
    return detector.shots()


def test_hard_cuts_between_short_shots() -> None:
    lengths = (25, 8, 8, 40, 9)
    images = np.concatenate([scene(seed, length) for seed, length in enumerate(lengths)])
    edges = np.cumsum((0, *lengths)).tolist()
    assert shots(images) == list(itertools.pairwise(edges))


def test_cuts_at_ten_frames_a_second() -> None:
    images = np.concatenate([scene(seed, length, speed=2.0) for seed, length in enumerate((3, 3, 10, 3))])
    assert shots(images, fps=10.0) == [(0, 3), (3, 6), (6, 16), (16, 19)]


def test_cut_between_dim_scenes() -> None:
    images = np.concatenate([scene(seed, 30) // 5 for seed in (0, 1)])
    assert shots(images) == [(0, 30), (30, 60)]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("pan", scene(0, 50, speed=3.0)),
        ("fast pan", scene(0, 20, speed=14.0)),
        ("zoom", scene(0, 40, zoom=1.02)),
        ("still", np.repeat(scene(0, 1), 30, axis=0)),
        (
            "lens switch",
            np.concatenate([scene(0, 20), scene(0, 1, zoom=1.0), scene(0, 21, zoom=1.03)[20:], scene(0, 20)]),
        ),
        ("dropped frames", np.delete(scene(0, 50, speed=2.0), range(20, 28), axis=0)),
    ],
)
def test_one_take_stays_one_shot(name: str, images: np.ndarray) -> None:
    assert shots(images) == [(0, len(images))], name


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("level", [0, 255])
def test_flashes_and_blinks_are_no_cuts(length: int, level: int) -> None:
    images = scene(0, 60).copy()
    images[30 : 30 + length] = (0.1 * images[30 : 30 + length] + 0.9 * level).astype(np.uint8)
    assert shots(images) == [(0, 60)]


def test_black_between_shots_belongs_to_none() -> None:
    first, second = scene(0, 40).astype(float), scene(1, 40).astype(float)
    first[-15:] *= np.linspace(1.0, 0.0, 15)[:, None, None, None]
    second[:15] *= np.linspace(0.0, 1.0, 15)[:, None, None, None]
    black = np.zeros((12, *first.shape[1:]))
    (begin, out), (back, end) = shots(np.concatenate([first, black, second]).astype(np.uint8))
    assert (begin, end) == (0, 92)
    assert 36 <= out <= 40
    assert 52 <= back <= 56


def test_leading_black_is_cut_off_and_all_black_is_one_shot() -> None:
    black = np.zeros((10, SIZE[1], SIZE[0], 3), np.uint8)
    assert shots(np.concatenate([black, scene(0, 30)])) == [(10, 40)]
    assert shots(black) == [(0, 10)]


def test_dissolve_belongs_to_neither_shot() -> None:
    first, second = scene(0, 50, speed=0.2).astype(float), scene(1, 50, speed=0.2).astype(float)
    weight = np.linspace(0.0, 1.0, 15)[:, None, None, None]
    mixed = (1 - weight) * first[-15:] + weight * second[:15]
    found = shots(np.concatenate([first[:-15], mixed, second[15:]]).astype(np.uint8))
    assert len(found) == 2
    assert 30 <= found[0][1] <= 38
    assert 47 <= found[1][0] <= 55


def test_variable_rate_gives_real_times(tmp_path: Path) -> None:
    """Frames count; the clips' times are the file's, which is written with a gap of 0.4 s."""
    import av

    images = np.concatenate([scene(0, 30), scene(1, 30)])
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index + (10 if index >= 20 else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = Source(source_id="a/vfr.mkv", path=tmp_path / "vfr.mkv", caption="two scenes")
    first, second = ShotsConfig(short_side=90).split(source)
    assert (first.num_frames, second.num_frames) == (30, 30)
    assert first.end_s == pytest.approx(1.6, abs=2e-3) == second.start_s
    assert second.end_s == pytest.approx(2.8, abs=2e-3)
    assert first.fps == pytest.approx(30 / 1.6, rel=1e-2)
    assert (first.caption, first.width, first.height) == ("two scenes", *SIZE)
    assert first.clip_id != second.clip_id


@pytest.mark.parametrize(("max_s", "lengths"), [(10.0, [60]), (1.0, [20, 20, 20]), (1.6, [30, 30])])
def test_long_shots_are_cut_into_equal_clips(max_s: float, lengths: list[int], tmp_path: Path) -> None:
    path = write_video(scene(0, 60), tmp_path / "long.mp4", fps=20)
    specs = ShotsConfig(short_side=90, max_clip_s=max_s).split(Source(source_id="long.mp4", path=path))
    assert [spec.num_frames for spec in specs] == lengths
    assert [spec.start_s for spec in specs[1:]] == [spec.end_s for spec in specs[:-1]]


def test_source_without_a_file_says_why() -> None:
    with pytest.raises(VideoError, match="dead link"):
        ShotsConfig().split(Source(source_id="7", path=None, error="dead link"))


TRUTH = {
    "bbb_open_480p.mp4": [285, 378, 553],
    "bbb_vfr_360p.mp4": [44, 137],
    "nasa_dark_2streams.mp4": [202],
    "bird_flight.avi": [],
    "flower_truncated.mp4": [],
    "friday_office_talk.mp4": [],
    "highway_drive.mp4": [],
    "phone_dog_rot180.mp4": [],
    "plane_tilt_badaudio.mp4": [],
    "sign_walk.mkv": [],
    "phone_zoom_in_out.mp4": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTH)
def test_real_clips(name: str, clips_dir: Path) -> None:
    """Hard cuts to the frame; the lens switches of the phone clip show one scene and are none."""
    specs = ShotsConfig(max_clip_s=1e3).split(Source(source_id=name, path=clips_dir / name))
    hard = [b for a, b in itertools.pairwise(specs) if b.start_s - a.end_s < 1e-6]
    rate = 24.0 if name.startswith("bbb") else 25.0
    assert [round(spec.start_s * rate) for spec in hard] == pytest.approx(TRUTH[name], abs=1)
