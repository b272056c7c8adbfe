"""Damage on purpose: the same seed is the same damage, and more strength is more of it."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.vqa.degrade import DEGRADATIONS, Shot, degrade, through_codec
from data_pipeline.vqa.scenes import procedural_shot

SHORTENING = ("frame_drops",)


@pytest.fixture(scope="module")
def shot() -> Shot:
    made = procedural_shot(12, seed=4)
    return Shot(frames=np.ascontiguousarray(made.frames[:, :160, :192]), times_s=made.times_s)


def difference(first: Shot, second: Shot) -> float:
    return float(np.abs(first.frames.astype(np.int16) - second.frames.astype(np.int16)).mean())


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_same_seed_same_damage_and_the_input_is_left_alone(name: str, shot: Shot) -> None:
    before = shot.frames.copy()
    first, second = degrade(name, shot, 0.6, seed=3), degrade(name, shot, 0.6, seed=3)
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.times_s, second.times_s)
    np.testing.assert_array_equal(shot.frames, before)
    assert len(first.frames) == len(first.times_s)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name not in SHORTENING])
def test_more_strength_is_more_difference(name: str, seed: int, shot: Shot) -> None:
    damaged = [degrade(name, shot, strength, seed) for strength in (0.05, 0.5, 1.0)]
    assert all(after.frames.shape == shot.frames.shape for after in damaged)
    assert all(after.frames.dtype == np.uint8 for after in damaged)
    differences = [difference(after, shot) for after in damaged]
    assert 0 < differences[0] < differences[1] < differences[2]


@pytest.mark.parametrize("seed", range(8))
def test_frame_drops_repeat_or_lose_ever_more_frames(seed: int, shot: Shot) -> None:
    lost = []
    for strength in (0.05, 0.5, 1.0):
        after = degrade("frame_drops", shot, strength, seed)
        assert (np.diff(after.times_s) > 0).all()
        lost.append(len(shot.frames) - len({frame.tobytes() for frame in after.frames}))
    assert 0 < lost[0] < lost[1] < lost[2]


def test_seeds_differ_in_their_variant(shot: Shot) -> None:
    variants = {degrade("blur", shot, 0.5, seed).frames.tobytes() for seed in range(12)}
    assert len(variants) >= 5


def test_a_codec_at_high_quality_changes_little_and_keeps_the_frames_in_order(shot: Shot) -> None:
    after = through_codec(shot.frames, "libx264", {"crf": "8", "preset": "veryfast"})
    assert after.shape == shot.frames.shape
    errors = [
        [np.abs(a.astype(np.int16) - b.astype(np.int16)).mean() for b in shot.frames[::5]] for a in after[::5]
    ]
    assert [int(np.argmin(row)) for row in errors] == list(range(len(errors)))


def test_wrong_names_and_strengths_are_refused(shot: Shot) -> None:
    with pytest.raises(ValueError, match="'fog', expected one of blur, noise"):
        degrade("fog", shot, 0.5, 0)
    with pytest.raises(ValueError, match=r"strength: got 1\.5, expected a number in \[0, 1\]"):
        degrade("blur", shot, 1.5, 0)
