"""The distance has its closed form, and features come from the real networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hummingbird.evaluation.frechet import frechet_distance, load_features, reward_features, vae_features
from hummingbird.evaluation.sampling import video_seed
from tests.pipelines.tiny import tiny_components
from tests.rewards.tiny import tiny_reward

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6))


def test_a_shift_costs_its_squared_length() -> None:
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0, 0.25])
    assert frechet_distance(POINTS, POINTS + shift) == pytest.approx(float(shift @ shift), rel=1e-9)
    assert frechet_distance(POINTS, POINTS) == pytest.approx(0.0, abs=1e-9)


def test_spread_in_one_dimension_costs_the_squared_difference_of_deviations() -> None:
    values = RNG.normal(size=(30, 1))
    expected = (3.0 * values.std(ddof=1) - values.std(ddof=1)) ** 2 + (2.0 * values.mean()) ** 2
    assert frechet_distance(values, 3.0 * values) == pytest.approx(float(expected), rel=1e-9)


def test_covariances_that_do_not_commute() -> None:
    """Two dimensions, where tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    first, second = POINTS[:, :2], POINTS[:, 2:4] @ np.array([[1.0, 0.7], [-0.2, 0.4]])
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    product = a @ b
    root = np.sqrt(np.trace(product) + 2.0 * np.sqrt(np.linalg.det(product)))
    mean = first.mean(axis=0) - second.mean(axis=0)
    expected = mean @ mean + np.trace(a) + np.trace(b) - 2.0 * root
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(float(expected), rel=1e-9)


def test_fewer_features_than_dimensions_still_give_a_number() -> None:
    few = RNG.normal(size=(3, 40))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(few, few + 1.0) == pytest.approx(40.0, rel=1e-6)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (POINTS[:1], "two or more rows"),
        (POINTS[:, :3], "6 and 3 dimensions"),
        (np.where(POINTS > 1, np.nan, POINTS), "NaN or infinite"),
    ],
)
def test_what_has_no_distance_is_refused(second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(POINTS, second)


def test_features_of_rewards_and_of_an_autoencoder() -> None:
    frames = torch.rand(20, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    image, video = (reward_features(tiny_reward(name)) for name in ("hpsv2", "viclip"))
    assert image(frames, 0).shape == (16, 8)  # a row for each of the frames that are looked at
    assert video(frames, 0).shape == (1, 8)
    assert np.linalg.norm(image(frames, 0), axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (video(frames, 3) == video(frames, 3)).all()  # frames are drawn from the video's number
    assert video_seed(0, 3) != video_seed(0, 4)
    vae = vae_features(tiny_components()["vae"])
    row = vae(frames, 0)
    assert row.shape == (1, 2 * 4 * 16)
    assert (vae(frames[:1].repeat(5, 1, 1, 1), 0)[0, 64:] == 0).all()  # a still video does not change
    assert np.abs(row[0, 64:]).min() > 0


def test_unknown_features_are_refused() -> None:
    with pytest.raises(ValueError, match="reward: got 'inception'"):
        load_features("inception", None)
