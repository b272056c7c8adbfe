"""Basics: each threshold on a clip that breaks it alone, borders on drawn bars, and what must not be taken
for bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.clip import Clip, ClipSpec, Crop, Drop, Keep
from data_pipeline.stages.basics import BasicsConfig, find_borders
from hummingbird.video_io import iter_frames, write_video
from tests.data_pipeline.test_shots import scene

Make = Callable[..., Clip]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A clip with given frames, through a real file."""

    def clip(images: np.ndarray, fps: float = 12.0) -> Clip:
        path = write_video(images, tmp_path / "clip.mp4", fps=fps)
        count = sum(1 for _ in iter_frames(path))
        spec = ClipSpec(
            clip_id="clip",
            source_id="clip.mp4",
            path=path,
            start_s=0.0,
            end_s=count / fps,
            num_frames=count,
            fps=fps,
            width=images.shape[2],
            height=images.shape[1],
        )
        return Clip(spec, BasicsConfig().views)

    return clip


SMALL = BasicsConfig(min_short_side=64)


def test_ordinary_clip_is_kept_without_a_crop(make: Make) -> None:
    verdict = SMALL.process(make(scene(0, 24)))
    assert isinstance(verdict, Keep)
    assert verdict.crop is None
    assert verdict.scores["basics_border"] == 0.0
    assert 0.2 < verdict.scores["basics_brightness"] < 0.8


@pytest.mark.parametrize(
    ("reason", "images", "fps", "settings"),
    [
        ("too short", scene(0, 10), 12.0, SMALL),
        ("too long", scene(0, 24), 12.0, BasicsConfig(min_short_side=64, max_duration_s=1.5)),
        ("too few frames", scene(0, 7), 7.0, SMALL),
        ("frame rate too low", scene(0, 12), 5.0, SMALL),
        ("frame rate too high", scene(0, 80), 60.0, BasicsConfig(min_short_side=64, max_fps=50.0)),
        ("too small", scene(0, 24), 12.0, BasicsConfig()),
        ("too narrow", scene(0, 24)[:, :, 60:92], 12.0, BasicsConfig(min_short_side=16, borders="keep")),
        ("too wide", scene(0, 24)[:, 20:66], 12.0, BasicsConfig(min_short_side=16)),
        ("near-black", scene(0, 24) // 12, 12.0, SMALL),
        ("near-white", 255 - scene(0, 24) // 25, 12.0, SMALL),
        ("low contrast", 120 + scene(0, 24) // 12, 12.0, SMALL),
        ("frozen", np.repeat(scene(0, 1), 24, axis=0), 12.0, SMALL),
    ],
)
def test_each_reason(reason: str, images: np.ndarray, fps: float, settings: BasicsConfig, make: Make) -> None:
    verdict = settings.process(make(images, fps))
    assert isinstance(verdict, Drop)
    assert verdict.reason == f"basics: {reason}"
    assert "is below" in verdict.detail or "is above" in verdict.detail


def barred(images: np.ndarray, top: int, bottom: int, left: int, right: int, level: int = 0) -> np.ndarray:
    return np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=level)


@pytest.mark.parametrize("level", [0, 16, 255])
@pytest.mark.parametrize(
    "bars", [(12, 12, 0, 0), (0, 0, 30, 30), (10, 14, 0, 0), (8, 8, 20, 20), (0, 16, 0, 0)]
)
def test_bars_are_cropped_through_compression(
    bars: tuple[int, int, int, int], level: int, make: Make
) -> None:
    images = barred(scene(1, 24), *bars, level)
    verdict = SMALL.process(make(images))
    assert isinstance(verdict, Keep)
    assert verdict.crop is not None
    top, bottom, left, right = bars
    crop = verdict.crop
    ends = (
        crop.top,
        images.shape[1] - crop.top - crop.height,
        crop.left,
        images.shape[2] - crop.left - crop.width,
    )
    for found, bar in zip(ends, (top, bottom, left, right), strict=True):
        assert bar <= found <= bar + 5 if bar else found <= 1
    assert crop.width % 2 == crop.height % 2 == 0


def test_bars_are_dropped_or_left_by_setting(make: Make) -> None:
    images = barred(scene(1, 24), 12, 12, 0, 0)
    dropped = BasicsConfig(min_short_side=64, borders="drop").process(make(images))
    assert isinstance(dropped, Drop)
    assert dropped.reason == "basics: borders"
    kept = BasicsConfig(min_short_side=64, borders="keep").process(make(images))
    assert isinstance(kept, Keep)
    assert kept.crop is None
    tight = BasicsConfig(min_short_side=64, max_border=0.1).process(make(images))
    assert isinstance(tight, Drop)


def test_sky_and_dark_corners_are_no_bars() -> None:
    picture = np.random.default_rng(0).integers(60, 200, (12, 90, 160)).astype(np.uint8)
    sky = picture.copy()
    sky[:, :40] = np.linspace(210, 190, 40)[:, None].astype(np.uint8)
    assert find_borders(sky, 160, 90) is None
    vignette = (picture * np.minimum(1, np.arange(90) / 40)[:, None] ** 2).astype(np.uint8)
    assert find_borders(vignette, 160, 90) is None
    moving_bar = picture.copy()
    moving_bar[:6, :10] = 0
    assert find_borders(moving_bar, 160, 90) is None


def test_crop_is_in_pixels_of_the_full_picture() -> None:
    luma = np.random.default_rng(0).integers(60, 200, (12, 90, 160)).astype(np.uint8)
    luma[:, :, :20] = luma[:, :, -20:] = 0
    assert find_borders(luma, 1600, 900) == Crop(left=220, top=0, width=1160, height=900)


@pytest.mark.slow
def test_real_clips_have_no_bars(clips_dir: Path) -> None:
    for name in (
        "flower_timelapse.mp4",
        "nasa_dark_2streams.mp4",
        "plane_tilt_badaudio.mp4",
        "bird_flight.avi",
    ):
        luma = []
        for frame in iter_frames(clips_dir / name, start_s=0.7, end_s=4.0):
            if frame.index % 10 == 0:
                luma.append(frame.rgb(short_side=256).mean(axis=2).astype(np.uint8))
        assert find_borders(np.stack(luma), 640, 360) is None, name
