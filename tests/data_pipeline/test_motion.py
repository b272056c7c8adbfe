"""Motion on drawn camera moves whose flow is known, and what must not change it: size, rate, chance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.clip import Clip, ClipSpec, Drop, Frames, Keep
from data_pipeline.stages.motion import MotionConfig, dis_flow, measure
from hummingbird.video_io import write_video

SIZE = (455, 256)


def textured(seed: int, width: int = 1000, height: int = 700) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(
            rng.uniform(0, 255, (height // step, width // step, 3)).astype(np.float32), (width, height)
        )
        for step in (6, 14, 40)
    ]
    return (sum(layers) / len(layers)).clip(0, 255).astype(np.uint8)


def film(moves: list[tuple[float, float, float]], seed: int = 0) -> np.ndarray:
    """A camera over a texture: shift x, y in pixels and scale, for each frame."""
    canvas = textured(seed)
    frames = []
    for x, y, scale in moves:
        matrix = np.array(
            [
                [scale, 0, SIZE[0] / 2 - scale * (500 - x / scale)],
                [0, scale, SIZE[1] / 2 - scale * (350 - y / scale)],
            ]
        )
        frames.append(
            cv2.warpAffine(canvas, matrix, SIZE, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(frames)


def scores(images: np.ndarray, fps: float = 8.0) -> dict[str, float]:
    return measure(Frames(images=images, times_s=np.arange(len(images)) / fps), dis_flow())


def pan(speed: float, count: int = 12) -> list[tuple[float, float, float]]:
    return [(speed * index, 0.0, 1.0) for index in range(count)]


def shaken(size: float, count: int = 12, seed: int = 0) -> list[tuple[float, float, float]]:
    places = np.random.default_rng(seed).normal(0, size, (count, 2))
    return [(x, y, 1.0) for x, y in places.tolist()]


def zoomed(rate: float, count: int = 12) -> list[tuple[float, float, float]]:
    return [(0.0, 0.0, 1.2 * (1 + rate) ** index) for index in range(count)]


def test_pan_has_its_speed_and_no_jitter() -> None:
    found = scores(film(pan(6.0)))
    assert found["motion_mean"] == pytest.approx(6.0, rel=0.05)
    assert found["motion_jitter"] < 0.3
    assert found["motion_residual"] < 0.3
    assert found["motion_zoom"] < 0.001
    assert found["motion_camera"] == 1.0


def test_jitter_tells_shake_from_pan_where_mean_flow_cannot() -> None:
    smooth, shaky = scores(film(pan(10.0))), scores(film(shaken(6.0)))
    assert smooth["motion_mean"] == pytest.approx(shaky["motion_mean"], rel=0.3)
    assert shaky["motion_jitter"] > 10
    assert smooth["motion_jitter"] < 0.5


@pytest.mark.parametrize("rate", [0.02, 0.005, -0.01])
def test_zoom_rate(rate: float) -> None:
    found = scores(film(zoomed(rate)))
    assert found["motion_zoom"] == pytest.approx(abs(rate), rel=0.1)
    assert found["motion_dolly"] == 0.0


def test_object_before_a_still_camera_is_residual() -> None:
    images = film(pan(0.0))
    patch = textured(9)[:80, :100]
    for index in range(len(images)):
        images[index, 100:180, 40 + 8 * index : 140 + 8 * index] = patch
    found = scores(images)
    assert found["motion_static"] > 0.7
    assert found["motion_jitter"] < 0.1
    assert found["motion_residual"] == pytest.approx(found["motion_mean"], rel=0.1)
    assert found["motion_top5"] == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("rate", [0.02, 0.01, -0.01, -0.02])
@pytest.mark.parametrize("radius", [70, 100])
def test_dolly_zoom(rate: float, radius: int) -> None:
    """The background zooms, the subject in the middle keeps its size; with it, or alone, it is another
    thing."""
    background, subject = film(zoomed(rate)), film(pan(0.0), seed=5)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    inside = np.hypot(rows - SIZE[1] / 2, columns - SIZE[0] / 2) < radius
    dolly = np.where(inside[None, :, :, None], subject, background)
    assert scores(dolly)["motion_dolly"] == pytest.approx(abs(rate), rel=0.3)
    still_background = np.where(inside[None, :, :, None], background, subject)
    assert scores(still_background)["motion_dolly"] == 0.0


def test_half_the_size_and_twice_the_rate_give_nearly_the_same() -> None:
    moves = [(5 * t + 3 * np.sin(2 * t), 2 * np.cos(t), 1.15 * 1.004**t) for t in np.arange(0, 12, 0.5)]
    images = film(moves)
    half = np.stack(
        [cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in images]
    )
    base = scores(images[::2])
    for other in (scores(half[::2]), scores(images[::3], fps=16 / 3)):
        assert other["motion_mean"] == pytest.approx(base["motion_mean"], rel=0.1)
        assert other["motion_zoom"] == pytest.approx(base["motion_zoom"], rel=0.15)
    assert scores(half[::2])["motion_jitter"] == pytest.approx(base["motion_jitter"], rel=0.1)


def test_same_scores_every_time() -> None:
    images = film(shaken(4.0, 6))
    cv2.setRNGSeed(123)
    assert scores(images) == scores(images)


def clip_of(images: np.ndarray, fps: float, folder: Path) -> Clip:
    path = write_video(images, folder / "clip.mp4", fps=fps)
    spec = ClipSpec(
        clip_id="clip",
        source_id="clip.mp4",
        path=path,
        start_s=0.0,
        end_s=len(images) / fps,
        num_frames=len(images),
        fps=fps,
        width=SIZE[0] + SIZE[0] % 2,
        height=SIZE[1],
    )
    return Clip(spec, MotionConfig().views)


@pytest.mark.parametrize(
    ("reason", "moves"),
    [
        ("static", pan(0.0)),
        ("too fast", pan(40.0, 8)),
        ("zoom", zoomed(0.03)),
        ("jitter", shaken(8.0)),
        ("", pan(5.0)),
    ],
)
def test_filters(reason: str, moves: list[tuple[float, float, float]], tmp_path: Path) -> None:
    settings = MotionConfig()
    settings.setup()
    verdict = settings.process(clip_of(film(moves), 8.0, tmp_path))
    if reason:
        assert isinstance(verdict, Drop)
        assert verdict.reason == f"motion: {reason}"
    else:
        assert isinstance(verdict, Keep)
    assert all(np.isfinite(list(verdict.scores.values())))


def test_twice_the_frames_in_the_file_give_nearly_the_same(tmp_path: Path) -> None:
    moves = [(4.0 * t, 2 * np.sin(t), 1.0) for t in np.arange(0, 12, 0.25)]
    images = film(moves)
    fast = MotionConfig().process(clip_of(images, 32.0, tmp_path)).scores
    slow = MotionConfig().process(clip_of(images[::2], 16.0, tmp_path)).scores
    for name, value in slow.items():
        assert fast[name] == pytest.approx(value, rel=0.1, abs=0.02), name


def test_thresholds_can_be_turned_off(tmp_path: Path) -> None:
    settings = MotionConfig(min_mean=None)
    assert isinstance(settings.process(clip_of(film(pan(0.0)), 8.0, tmp_path)), Keep)


def test_one_frame_is_refused(tmp_path: Path) -> None:
    verdict = MotionConfig().process(clip_of(film(pan(0.0, 1)), 8.0, tmp_path))
    assert isinstance(verdict, Drop)
    assert verdict.reason == "motion: too few frames"
