"""The oracle is right on rendered clips, also blurred and noisy ones, and is not fooled by fakes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np
import pytest
import torch

from hummingbird.nano import world
from hummingbird.nano.oracle import UNCLEAR, Verdict, judge, judge_batch
from hummingbird.nano.world import ATTRIBUTES, Attributes, all_attributes, render_clips

Clips = np.ndarray
VALUES = dict(zip(ATTRIBUTES, (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), strict=True))


def draw(count: int, seed: int, num_frames: int = 16) -> tuple[list[Attributes], Clips]:
    rng = np.random.default_rng(seed)
    items = [all_attributes()[int(index)] for index in rng.permutation(2400)[:count]]
    return items, render_clips(items, rng, num_frames=num_frames).numpy()


def accuracy(clips: Clips, items: Sequence[Attributes]) -> dict[str, float]:
    hits = [verdict.matches(item) for verdict, item in zip(judge_batch(clips), items, strict=True)]
    return {name: float(np.mean([hit[name] for hit in hits])) for name in hits[0]}


def each_frame(clips: Clips, change: Callable[[np.ndarray], np.ndarray]) -> Clips:
    return np.stack([np.stack([change(frame) for frame in clip]) for clip in clips])


def with_noise(clips: Clips, sigma: float) -> Clips:
    noise = np.random.default_rng(1).normal(0.0, sigma, clips.shape)
    return np.clip(clips + noise, 0, 255).astype(np.uint8)


def with_drift(clips: Clips) -> Clips:
    shift = np.random.default_rng(2).uniform(-12, 12, (len(clips), 1, 1, 1, 3))
    return np.clip(clips + shift, 0, 255).astype(np.uint8)


def with_jpeg(clips: Clips) -> Clips:
    def pack(frame: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))

    return each_frame(clips, pack)


def with_blur(clips: Clips, sigma: float) -> Clips:
    return each_frame(clips, lambda frame: cv2.GaussianBlur(frame, (0, 0), sigma))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7], ids=["all", "every seventh"])
def test_all_combinations_are_named(every: int) -> None:
    """Seven has no factor in common with the numbers of shapes, colours, motions and backgrounds."""
    chosen = list(all_attributes())[::every]
    right = 0
    for seed, part in enumerate(np.array_split(np.arange(len(chosen)), 8)):
        items = [chosen[int(index)] for index in part]
        clips = render_clips(items, np.random.default_rng(seed))
        right += round(accuracy(clips.numpy(), items)["all"] * len(items))
    assert right / len(chosen) >= 0.99


@pytest.mark.parametrize(
    "degrade",
    [
        lambda clips: with_blur(clips, 1.0),
        lambda clips: with_blur(clips, 1.6),
        lambda clips: with_noise(clips, 12.0),
        with_drift,
        with_jpeg,
        lambda clips: clips // 16 * 16 + 8,
        lambda clips: with_jpeg(with_noise(with_drift(with_blur(clips, 1.2)), 6.0)),
    ],
    ids=["blur-1.0", "blur-1.6", "noise-12", "drift-12", "jpeg-50", "16-levels", "all-of-them"],
)
def test_mild_damage_is_forgiven(degrade: Callable[[Clips], Clips]) -> None:
    items, clips = draw(100, seed=21)
    assert accuracy(degrade(clips), items)["all"] >= 0.97


@pytest.mark.parametrize("num_frames", [8, 10, 26, 32])
def test_other_frame_counts(num_frames: int) -> None:
    items, clips = draw(100, seed=22, num_frames=num_frames)
    assert accuracy(clips, items)["all"] >= 0.99


@pytest.mark.parametrize("size", [(128, 128), (48, 48), (256, 320)])
def test_other_picture_sizes(size: tuple[int, int]) -> None:
    items, clips = draw(60, seed=23)
    height, width = size
    if width > height:  # more background at both sides, as in a wide picture
        clips = np.concatenate([clips[:, :, :, :1].repeat(8, 3), clips, clips[:, :, :, -1:].repeat(8, 3)], 3)
    larger = each_frame(clips, lambda frame: cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
    assert accuracy(larger, items)["all"] >= 0.97


def test_floats_and_tensors_are_judged_like_bytes() -> None:
    items, clips = draw(4, seed=24)
    expected = judge_batch(clips)
    assert judge_batch(torch.from_numpy(clips)) == expected
    assert judge_batch(torch.from_numpy(clips).float() / 255.0) == expected
    halved = (torch.from_numpy(clips[:1]) / 255.0).to(torch.bfloat16)
    assert judge(halved[0]).measurements == judge(halved[0].float()).measurements
    assert [judge(clip) for clip in clips] == expected
    assert all(verdict.matches(item)["all"] for verdict, item in zip(expected, items, strict=True))


def test_verdict_is_the_same_alone_and_in_a_batch_and_every_time() -> None:
    _, clips = draw(6, seed=25)
    assert judge_batch(clips) == judge_batch(clips[::-1])[::-1]


# -------------------------------------------------------------------------------------------- fakes

ITEMS, CLIPS = draw(80, seed=31)


@cache
def twins(attribute: str, seed: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of clips from the same random draws that ask for the same, but for one attribute."""
    rng = np.random.default_rng(seed)
    pairs = []
    for item in ITEMS:
        others = [value for value in VALUES[attribute] if value != getattr(item, attribute)]
        twin = dataclasses.replace(item, **{attribute: others[int(rng.integers(len(others)))]})
        draws = int(rng.integers(2**31))
        both = [render_clips([one], np.random.default_rng(draws)).numpy()[0] for one in (item, twin)]
        pairs.append((both[0], both[1]))
    return pairs


def empty(clip: np.ndarray) -> np.ndarray:
    """The clip's background without its shape."""
    sides = clip[:, :, [0, 63]].transpose(1, 0, 2, 3).reshape(64, -1, 3)
    row = np.median(sides, axis=1).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], clip.shape).copy()


def unclear_share(clips: Sequence[np.ndarray], attribute: str) -> float:
    return float(np.mean([getattr(judge(clip), attribute) == UNCLEAR for clip in clips]))


def assert_never_clear(clips: Sequence[np.ndarray], at_most: float = 0.0) -> list[Verdict]:
    verdicts = [judge(clip) for clip in clips]
    assert np.mean([verdict.is_clear for verdict in verdicts]) <= at_most
    assert all(verdict.reason for verdict in verdicts if not verdict.is_clear)
    return verdicts


def test_a_still_has_no_motion_but_keeps_its_other_names() -> None:
    stills = [clip[5:6].repeat(16, axis=0) for clip in CLIPS]
    for verdict, item in zip(assert_never_clear(stills), ITEMS, strict=True):
        assert verdict.motion == UNCLEAR
        assert "stands still" in verdict.reason
        assert verdict.matches(item)["shape"]
        assert verdict.matches(item)["color"]


def test_single_frames_are_named_but_for_their_motion() -> None:
    verdicts = [judge(clip[8:9]) for clip in CLIPS]
    assert all(verdict.motion == UNCLEAR for verdict in verdicts)
    for name in ("shape", "color", "background"):
        hits = [
            getattr(verdict, name) == getattr(item, name)
            for verdict, item in zip(verdicts, ITEMS, strict=True)
        ]
        assert np.mean(hits) >= 0.99


@pytest.mark.parametrize("attribute", ["shape", "color", "background"])
@pytest.mark.parametrize("how", ["half-way", "late", "fade", "flicker"])
def test_what_changes_on_the_way_is_unclear(attribute: str, how: str) -> None:
    fakes = []
    for first, second in twins(attribute):
        weight = {
            "half-way": np.arange(16) >= 8,
            "late": np.arange(16) >= 11,
            "fade": np.linspace(0, 1, 16),
            "flicker": np.arange(16) % 2,
        }[how][:, None, None, None]
        fakes.append((first * (1.0 - weight) + second * weight).astype(np.uint8))
    # A shape that has shrunk to a few pixels may change unseen; neighbouring dark backgrounds may fade so.
    assert_never_clear(fakes, at_most=0.03)
    assert unclear_share(fakes, attribute) >= 0.97


def test_two_clips_one_after_the_other() -> None:
    fakes = [np.concatenate([CLIPS[i][:8], CLIPS[i - 1][8:]]) for i in range(len(CLIPS))]
    assert_never_clear(fakes)


@pytest.mark.parametrize("axis", [1, 2])
def test_two_clips_side_by_side(axis: int) -> None:
    fakes = []
    for index in range(len(CLIPS)):
        fake = CLIPS[index].copy()
        half = (slice(None),) * axis + (slice(32, None),)
        fake[half] = CLIPS[index - 1][half]
        fakes.append(fake)
    assert_never_clear(fakes, at_most=0.02)


@pytest.mark.parametrize("same_color", [True, False])
def test_two_shapes_apart(same_color: bool) -> None:
    fakes = []
    for index, (clip, item) in enumerate(zip(CLIPS, ITEMS, strict=True)):
        other_color = item.color if same_color else world.COLORS[item.indices[1] - 1]
        other = dataclasses.replace(ITEMS[index - 1], color=other_color, background=item.background)
        second = render_clips([other], np.random.default_rng(index)).numpy()[0]
        fake = empty(clip)
        for source, left in ((clip, 0), (second, 32)):
            small = each_frame(
                source[None], lambda frame: cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA)
            )
            fake[:, 16:48, left : left + 32] = small[0]
        fakes.append(fake)
    for verdict in assert_never_clear(fakes):
        assert (verdict.shape, verdict.motion) == (UNCLEAR, UNCLEAR)


def test_two_shapes_over_each_other() -> None:
    fakes, items = [], []
    for index, (clip, item) in enumerate(zip(CLIPS, ITEMS, strict=True)):
        other = dataclasses.replace(ITEMS[index - 1], background=item.background)
        if other.color == item.color or other.shape == item.shape:
            continue
        second = render_clips([other], np.random.default_rng(index)).numpy()[0]
        covers = np.abs(second.astype(int) - empty(second)).sum(-1, keepdims=True) > 60
        fake = np.where(covers, second, clip)
        shown = (np.abs(fake.astype(int) - second).sum(-1) > 60).sum((1, 2))
        if (shown > 0.3 * covers.sum((1, 2, 3))).sum() >= 8:  # the lower one can be seen for half of the time
            fakes.append(fake)
            items.append(item)
    assert len(fakes) > 20
    verdicts = assert_never_clear(fakes, at_most=0.1)
    assert (
        np.mean([verdict.matches(item)["all"] for verdict, item in zip(verdicts, items, strict=True)]) <= 0.03
    )


def noise(seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.integers(0, 256, (16, 64, 64, 3)).astype(np.uint8)
    if kind == "gaussian":
        return np.clip(rng.normal(128, 50, (16, 64, 64, 3)), 0, 255).astype(np.uint8)
    cells = rng.integers(0, 256, (16 if kind == "clouds" else 1, 8, 8, 3)).astype(np.uint8)
    big = np.stack([cv2.resize(cell, (64, 64), interpolation=cv2.INTER_CUBIC) for cell in cells])
    return np.broadcast_to(big, (16, 64, 64, 3))


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "clouds", "still clouds"])
def test_noise_has_no_names(kind: str) -> None:
    for seed in range(12):
        verdict = judge(noise(seed, kind))
        assert [getattr(verdict, name) for name in ATTRIBUTES] == [UNCLEAR] * 4


def test_an_empty_background_is_named_and_nothing_else() -> None:
    for clip, item in zip(CLIPS, ITEMS, strict=True):
        verdict = judge(empty(clip))
        assert (verdict.shape, verdict.color, verdict.motion) == (UNCLEAR,) * 3
        assert verdict.background == item.background


@pytest.mark.parametrize(
    "gone",
    [np.arange(16) >= 8, np.arange(16) < 4, np.arange(16) % 3 == 2, np.arange(16) == 9],
    ids=["second half", "first quarter", "every third", "one frame"],
)
def test_a_shape_that_is_not_always_there(gone: np.ndarray) -> None:
    fakes = [np.where(gone[:, None, None, None], empty(clip), clip) for clip in CLIPS]
    for verdict in assert_never_clear(fakes):
        assert (verdict.shape, verdict.motion) == (UNCLEAR, UNCLEAR)


def test_shuffled_frames_have_no_motion() -> None:
    rng = np.random.default_rng(7)
    assert unclear_share([clip[rng.permutation(16)] for clip in CLIPS], "motion") == 1.0


def test_a_shape_that_jumps_has_no_motion() -> None:
    rng = np.random.default_rng(8)
    jumps = rng.integers(-9, 10, (len(CLIPS), 16, 2))
    fakes = [
        np.stack([np.roll(frame, tuple(jump), (0, 1)) for frame, jump in zip(clip, steps, strict=True)])
        for clip, steps in zip(CLIPS, jumps, strict=True)
    ]
    assert unclear_share(fakes, "motion") >= 0.98
    once = [np.concatenate([clip[:8], np.roll(clip[8:], 14, axis=2)]) for clip in CLIPS]
    assert unclear_share(once, "motion") >= 0.98


def motions_of(clips: Sequence[np.ndarray]) -> dict[str, Counter[str]]:
    seen: dict[str, Counter[str]] = {motion: Counter() for motion in world.MOTIONS}
    for clip, item in zip(clips, ITEMS, strict=True):
        seen[item.motion][judge(clip).motion] += 1
    return seen


def test_played_backwards_a_motion_is_its_opposite_and_an_orbit_is_none() -> None:
    seen = motions_of([clip[::-1] for clip in CLIPS])
    for motion, opposite in world.REVERSED_MOTION.items():
        assert set(seen[motion]) == {opposite}
    assert set(seen["bounce"]) == {"bounce"}
    assert set(seen["orbit"]) == {UNCLEAR}


def test_in_a_mirror_diagonals_and_orbits_are_unknown_motions() -> None:
    seen = motions_of([clip[:, :, ::-1] for clip in CLIPS])
    assert set(seen["right"]) == {"left"}
    assert set(seen["upright"]) == set(seen["downleft"]) == set(seen["orbit"]) == {UNCLEAR}


def moved(path: np.ndarray) -> np.ndarray:
    """A red circle of radius 12 on black whose centre follows the path (F, 2)."""
    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - path[:, :1, None], y - path[:, 1:, None]) - 12.0
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    return (np.array([15, 15, 15]) * (1 - coverage) + np.array([225, 40, 40]) * coverage).astype(np.uint8)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (lambda t: (32 + 0 * t, 32 + 4 * t), UNCLEAR),  # too short a way
        (lambda t: (24 + 16 * t, 32 + 0 * t), "right"),
        (lambda t: (24 + 16 * t, 40 - 16 * t), "upright"),
        (lambda t: (24 + 16 * t, 24 + 16 * t), UNCLEAR),  # lower right: not in the world
        (lambda t: (32 + 16 * np.abs(t - 0.5), 32 + 0 * t), UNCLEAR),  # there and back
        (lambda t: (32 + 0 * t, 46 - 20 * np.abs(np.sin(2 * np.pi * t))), "bounce"),
        (lambda t: (32 + 0 * t, 46 - 20 * np.sin(np.pi * t)), UNCLEAR),  # one hop
        (lambda t: (32 + 0 * t, 46 - 20 * np.abs(np.sin(3 * np.pi * t))), UNCLEAR),  # three
        (lambda t: (20 + 20 * np.abs(np.sin(2 * np.pi * t)), 32 + 0 * t), UNCLEAR),  # sideways
        (lambda t: (32 + 9 * np.cos(5.9 * t), 32 + 9 * np.sin(5.9 * t)), "orbit"),
        (lambda t: (32 + 9 * np.cos(5.9 * t), 32 - 9 * np.sin(5.9 * t)), UNCLEAR),  # against the clock
        (lambda t: (32 + 9 * np.cos(2.9 * t), 32 + 9 * np.sin(2.9 * t)), UNCLEAR),  # half a turn
        (lambda t: (32 + 9 * np.cos(11.8 * t), 32 + 9 * np.sin(11.8 * t)), UNCLEAR),  # two turns
        (lambda t: (32 + 3 * np.cos(5.9 * t), 32 + 3 * np.sin(5.9 * t)), UNCLEAR),  # too narrow
    ],
)
def test_paths(path: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], expected: str) -> None:
    phase = np.linspace(0, 1, 16)
    assert judge(moved(np.stack(path(phase), axis=1))).motion == expected


def test_colors_far_from_the_palette_are_unclear() -> None:
    clip = moved(np.stack([np.linspace(22, 42, 16), np.full(16, 32.0)], axis=1))
    red = np.array([225, 40, 40])
    for rgb in ([120, 120, 60], [255, 255, 255], [110, 60, 40], [128, 128, 128]):
        fake = (
            (15 + (clip.astype(float) - 15) / (red - 15) * (np.array(rgb) - 15)).clip(0, 255).astype(np.uint8)
        )
        assert judge(fake).color == UNCLEAR
        assert judge(fake).motion == "right"


def test_measurements_are_where_the_shape_is() -> None:
    path = np.stack([np.linspace(22, 42, 16), np.full(16, 30.0)], axis=1)
    seen = judge(moved(path)).measurements
    assert np.abs(np.array(seen.centers) - path).max() < 0.1
    assert np.abs(np.array(seen.radii) - 12).max() < 0.4
    assert seen.motion_fit["travel"] == pytest.approx(20, abs=0.3)
    assert max(seen.shape_scores, key=seen.shape_scores.__getitem__) == "circle"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((16, 64, 64), np.uint8), r"expected \(F, H, W, 3\)"),
        (np.zeros((16, 3, 64, 64), np.uint8), r"expected \(F, H, W, 3\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"expected \(F, H, W, 3\)"),
        (np.zeros((4, 64, 64, 3), np.int32), "expected uint8 or floating point"),
        (np.full((4, 64, 64, 3), 200.0), r"outside \[0, 1\]"),
        (np.full((4, 64, 64, 3), np.nan), r"outside \[0, 1\]"),
    ],
)
def test_frames_that_cannot_be_judged_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(frames)
    with pytest.raises(ValueError, match=r"expected \(B, F, H, W, 3\)"):
        judge_batch(frames)
