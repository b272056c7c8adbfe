"""Metrics have the values that arithmetic gives them, and those recorded on real clips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hummingbird.evaluation.metrics import METRICS, measure_frames, measure_video
from hummingbird.video_io import VideoError, write_video

CLIPS = Path(__file__).parents[3] / "shared" / "clips"
GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "metrics" / "clips.json").read_text())
FLOW = ("motion_smoothness", "dynamic_degree", "motion_mean")


def measure(frames: np.ndarray, fps: float = 8.0) -> dict[str, float | None]:
    return measure_frames(list(frames), [index / fps for index in range(len(frames))])


def grey(levels: list[int], side: int = 32) -> np.ndarray:
    """A picture of one grey for each level."""
    return np.broadcast_to(
        np.array(levels, np.uint8)[:, None, None, None], (len(levels), side, side, 3)
    ).copy()


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Smooth random blobs, which flow can follow: (side, side) in [0, 255]."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), 4.0)[side:-side, side:-side]  # wraps around
    return (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255.0


def panned(step_px: int, num_frames: int = 6, side: int = 256) -> np.ndarray:
    pattern = texture(side)
    moved = [np.roll(pattern, index * step_px, axis=1) for index in range(num_frames)]
    return np.stack(moved)[..., None].repeat(3, axis=-1).astype(np.uint8)


def test_a_still_picture() -> None:
    values = measure(grey([102] * 8))
    expected = dict.fromkeys(METRICS, 0.0)
    expected |= {"motion_smoothness": 1.0, "brightness": 0.4, "duplicate_frames": 1.0}
    assert values == pytest.approx(expected, abs=1e-6)


def test_flicker_is_the_second_difference_of_brightness_and_a_fade_has_none() -> None:
    blinking = measure(grey([102, 153] * 4))
    assert blinking["flicker"] == pytest.approx(2 * 51 / 255, abs=1e-6)
    assert blinking["frame_difference"] == pytest.approx(51 / 255, abs=1e-6)
    assert blinking["duplicate_frames"] == 0.0
    fading = measure(grey(list(range(40, 200, 20))))
    assert fading["flicker"] == pytest.approx(0.0, abs=1e-6)
    assert fading["frame_difference"] == pytest.approx(20 / 255, abs=1e-6)
    assert fading["color_drift"] == pytest.approx((170 - 50) / 255, abs=1e-6)


def test_drift_compares_the_last_with_the_first_quarter() -> None:
    frames = grey([128] * 8)
    frames[6:, ..., 2] = 77  # less blue at the end
    values = measure(frames)
    assert values["color_drift"] == pytest.approx(51 / 255, abs=1e-6)
    assert values["saturation_drift"] == pytest.approx(51 / 255, abs=1e-6)
    assert values["saturation"] == pytest.approx(51 / 255 / 4, abs=1e-6)
    assert measure(frames[::-1])["saturation_drift"] == pytest.approx(-51 / 255, abs=1e-6)
    assert measure(frames[::-1])["color_drift"] == pytest.approx(51 / 255, abs=1e-6)


def test_sharpness_of_a_chessboard_is_the_most_there_is() -> None:
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert measure(np.stack([board] * 2)[..., None].repeat(3, axis=-1))["sharpness"] == pytest.approx(4.0)


def test_every_second_frame_repeated() -> None:
    frames = panned(5).repeat(2, axis=0)
    assert measure(frames)["duplicate_frames"] == pytest.approx(6 / 11, abs=1e-6)
    assert measure(panned(5))["duplicate_frames"] == 0.0


@pytest.mark.parametrize("step_px", [3, 6])
def test_a_pan_has_the_flow_that_it_was_made_with(step_px: int) -> None:
    values = measure(panned(step_px))
    # What leaves the picture at one side comes in at the other, where flow fails: the mean, not the top.
    assert values["motion_mean"] == pytest.approx(step_px, rel=0.1)
    assert measure(panned(step_px), fps=16.0)["motion_mean"] == pytest.approx(2 * step_px, rel=0.1)
    assert values["motion_smoothness"] is not None
    assert values["motion_smoothness"] > 0.98


def test_motion_counts_in_shares_of_the_picture() -> None:
    small = measure(panned(3, side=128))
    assert small["motion_mean"] == pytest.approx(6.0, rel=0.1)


def test_shuffled_frames_are_not_smooth() -> None:
    frames = panned(6)
    even, uneven = (
        measure(frames)["motion_smoothness"],
        measure(frames[[0, 4, 1, 5, 2, 3]])["motion_smoothness"],
    )
    assert even is not None
    assert uneven is not None
    assert 1 - uneven > 5 * (1 - even)


def test_what_a_short_video_does_not_have_is_none() -> None:
    for count in (1, 2, 3):
        values = measure(grey([10, 60, 90][:count]))
        missing = {name for name, value in values.items() if value is None}
        assert missing == {name for name, metric in METRICS.items() if metric.min_frames > count}
        assert all(math.isfinite(value) for value in values.values() if value is not None)


def test_values_stay_in_their_range_on_noise() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    for name, value in measure(frames).items():
        assert value is not None
        assert METRICS[name].low <= value <= METRICS[name].high


def test_videos_that_cannot_be_measured_say_why(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="got frames of 8x8, expected at least 16x16"):
        measure(grey([1, 2], side=8))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 100)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        measure_video(broken)
    clip = write_video(grey([10] * 4), tmp_path / "clip.mp4", 8)
    with pytest.raises(VideoError, match="no frames from 9"):
        measure_video(clip, start_s=9.0)


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in GOLDENS if name != "about"])
def test_values_on_real_clips(name: str) -> None:
    if not (CLIPS / name).is_file():
        pytest.skip("the clips are not beside this checkout")
    values = measure_video(CLIPS / name, end_s=GOLDENS["about"]["end_s"])
    for metric, recorded in GOLDENS[name].items():
        # Another release of OpenCV or FFmpeg rounds otherwise; flow follows it further.
        tolerance = {"rel": 0.02 if metric in FLOW else 2e-3, "abs": 2e-4}
        assert values[metric] == pytest.approx(recorded, **tolerance), metric


@pytest.mark.golden
def test_a_truncated_clip_is_damaged() -> None:
    if not (CLIPS / "flower_truncated.mp4").is_file():
        pytest.skip("the clips are not beside this checkout")
    with pytest.raises(VideoError, match="damaged"):
        measure_video(CLIPS / "flower_truncated.mp4", start_s=2.5)
