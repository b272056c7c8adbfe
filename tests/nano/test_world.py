"""The world is as its page says; everything geometric is measured in the rendered pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hummingbird.nano import world
from hummingbird.nano.world import Attributes, all_attributes, render_clips

# Area of each form of radius 1.
UNIT_AREA = {
    "circle": np.pi,
    "square": (2 * 0.886) ** 2,
    "triangle": 0.75 * np.sqrt(3) * 1.5**2,
    "star": 5 * 1.42 * 0.62 * np.sin(np.pi / 5),
    "cross": 2 * (2 * 1.12) * (2 * 0.40) - (2 * 0.40) ** 2,
}
PHASE = np.linspace(0, 1, 16)
JITTER = 0.03 * 255 + 0.5


class Measured:
    """A third of all combinations rendered once, with centre and radius of the shape in each frame."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.attributes = [all_attributes()[int(index)] for index in rng.permutation(2400)[:800]]
        self.frames = render_clips(self.attributes, rng).numpy()
        count = len(self.frames)
        sides = self.frames[:, ::5][:, :, :, [0, 63]].transpose(0, 2, 4, 1, 3).reshape(count, 64, 3, -1)
        self.rows = np.median(sides, axis=-1).astype(np.float32)  # (B, H, 3): the background
        self.color = np.zeros((count, 3), np.float32)
        self.border = np.zeros(count)  # largest coverage of a pixel at the edge of the frame
        self.center, self.radius = np.zeros((count, 16, 2)), np.zeros((count, 16))
        grid = np.arange(64) + 0.5
        for index, clip in enumerate(self.frames):
            planes = clip.transpose(3, 0, 1, 2) - self.rows[index].T[:, None, :, None]  # (3, F, H, W)
            furthest = np.square(planes).sum(0).argmax()
            self.color[index] = clip.reshape(-1, 3)[furthest]
            span = (self.color[index] - self.rows[index]).T  # (3, H)
            coverage = sum(plane * row[:, None] for plane, row in zip(planes, span, strict=True))
            coverage /= np.square(span).sum(0)[:, None]
            area = coverage.sum(axis=(1, 2))
            self.center[index, :, 0] = coverage.sum(axis=1) @ grid / area
            self.center[index, :, 1] = coverage.sum(axis=2) @ grid / area
            self.radius[index] = np.sqrt(area / UNIT_AREA[self.attributes[index].shape])
            self.border[index] = max(coverage[:, [0, 63]].max(), coverage[:, :, [0, 63]].max())

    def where(self, *motions: str) -> np.ndarray:
        return np.array([item.motion in motions for item in self.attributes])


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured(seed=3)


def within(values: np.ndarray, low: float, high: float, slack: float) -> None:
    """All lie in the range, and they fill it."""
    assert values.min() >= low - slack
    assert values.max() <= high + slack
    assert np.ptp(values) > 0.6 * (high - low)


def test_radius_is_12_to_16_and_constant_where_nothing_grows(measured: Measured) -> None:
    radius = measured.radius[~measured.where("grow", "shrink")]
    within(radius, 12, 16, slack=0.15)
    assert np.ptp(radius, axis=1).max() < 0.2


def test_growing_and_shrinking_go_between_about_6_and_18(measured: Measured) -> None:
    grow, shrink = measured.radius[measured.where("grow")], measured.radius[measured.where("shrink")]
    for small, large in ((grow[:, 0], grow[:, -1]), (shrink[:, -1], shrink[:, 0])):
        within(small, 5.5, 6.5, slack=0.2)
        within(large, 17, 19, slack=0.2)
    assert (np.diff(grow) > 0).all()
    assert (np.diff(shrink) < 0).all()
    center = measured.center[measured.where("grow", "shrink")]
    assert np.ptp(center, axis=1).max() < 0.3


@pytest.mark.parametrize(
    ("motion", "axes"),
    [
        ("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1)),
        ("upright", (0.9, -0.9)), ("downleft", (-0.9, 0.9)),
    ],
)  # fmt: skip
def test_translation_is_straight_even_and_10_to_28_long(
    measured: Measured, motion: str, axes: tuple[float, float]
) -> None:
    center = measured.center[measured.where(motion)]
    travel = center[:, -1] - center[:, 0]
    amplitude = travel @ np.array(axes) / np.square(axes).sum()
    assert np.abs(travel - amplitude[:, None] * np.array(axes)).max() < 0.3
    assert amplitude.min() >= 10 - 0.2
    assert amplitude.max() <= 28 + 0.2
    assert np.median(amplitude) > 16
    line = center[:, :1] + travel[:, None] * PHASE[:, None]
    assert np.abs(center - line).max() < 0.3


def test_bounce_is_two_vertical_hops(measured: Measured) -> None:
    center = measured.center[measured.where("bounce")]
    hop = np.abs(np.sin(2 * np.pi * PHASE))
    height = -(center[..., 1] - center[:, :1, 1]) @ hop / (hop @ hop)
    assert height.min() >= 14 - 0.3
    assert height.max() <= 24 + 0.3
    assert np.abs(center[:, :1, 1] - height[:, None] * hop - center[..., 1]).max() < 0.4
    assert np.ptp(center[..., 0], axis=1).max() < 0.3


def test_orbit_is_one_clockwise_turn_of_radius_8_to_11(measured: Measured) -> None:
    center = measured.center[measured.where("orbit")]
    middle = center.mean(axis=1, keepdims=True)  # 16 frames are one whole turn
    offset = center - middle
    radius = np.linalg.norm(offset, axis=-1)
    within(radius, 8, 11, slack=0.2)
    # y points down, so a growing angle is clockwise on the screen.
    step = np.diff(np.unwrap(np.arctan2(offset[..., 1], offset[..., 0]), axis=1), axis=1)
    assert np.abs(step - 2 * np.pi / 16).max() < 0.05


def test_the_whole_shape_is_in_frame_in_every_frame(measured: Measured) -> None:
    # A pointed tip's anti-aliased fringe may reach the last pixel; the outline itself may not.
    assert measured.border.max() < 0.4
    assert (measured.border > 0.1).mean() < 0.1


def test_colors_are_the_palette_with_little_jitter(measured: Measured) -> None:
    indices = np.array([item.indices for item in measured.attributes])
    for palette, column, seen in (
        (world.COLOR_RGB, 1, measured.color),
        (world.BACKGROUND_RGB, 3, measured.rows[:, 0]),
    ):
        error = seen - palette[indices[:, column]]
        assert np.abs(error).max() <= JITTER
        within(error, -JITTER, JITTER, slack=0)


def test_a_third_of_the_backgrounds_fade_vertically(measured: Measured) -> None:
    change = np.abs(measured.rows[:, -1] - measured.rows[:, 0]).max(axis=1)
    assert (change > 0).mean() == pytest.approx(0.35, abs=0.05)
    assert (change[change > 0] > 5).all()


def coverage_of(frame: np.ndarray) -> np.ndarray:
    """Of a bright shape, from one channel (H, W) whose background may fade."""
    rows = frame[:, :1]
    return (frame - rows) / (frame.max() - rows)


def test_shapes_have_their_form() -> None:
    """Pixels far inside and far outside of each outline, by its formula on the page, r = 12 to 16."""
    inside = {
        "circle": [(0.7, 0.6), (-0.6, 0.7), (0, -0.9)],
        "square": [(0.75, 0.75), (-0.75, -0.75)],
        "triangle": [(0, -1.2), (1.0, 0.6), (-1.0, 0.6)],
        "star": [(0, -1.15), (1.1, -0.36), (0.68, 0.93), (-0.68, 0.93), (-1.1, -0.36)],
        "cross": [(0.97, 0), (0, 0.97), (-0.97, 0.2), (0.2, -0.97)],
    }
    outside = {
        "circle": [(0.85, 0.85), (0, 1.15)],
        "square": [(1.04, 0), (0, -1.04)],
        "triangle": [(0.75, -0.75), (-0.75, -0.75), (0, 0.95)],
        "star": [(0, 0.85), (0.6, -0.85), (-0.6, -0.85), (0.9, 0.35)],
        "cross": [(0.6, 0.6), (-0.6, 0.6), (0.6, -0.6)],
    }
    for shape in world.SHAPES:
        items = [Attributes(shape=shape, color="red", motion="right", background="black")] * 20
        frames = render_clips(items, np.random.default_rng(1)).numpy()[:, 0, :, :, 0].astype(float)
        grid = np.arange(64) + 0.5
        for frame in frames:
            coverage = coverage_of(frame)
            area = coverage.sum()
            x, y = coverage.sum(0) @ grid / area, coverage.sum(1) @ grid / area
            radius = np.sqrt(area / UNIT_AREA[shape])
            for points, expected in ((inside[shape], 1.0), (outside[shape], 0.0)):
                for dx, dy in points:
                    column, row = int(x + dx * radius), int(y + dy * radius)
                    if 0 <= column < 64 and 0 <= row < 64:
                        assert abs(coverage[row, column] - expected) < 0.2, (shape, dx, dy)


def test_edges_are_about_one_pixel_soft() -> None:
    item = Attributes(shape="circle", color="yellow", motion="right", background="black")
    frames = render_clips([item] * 10, np.random.default_rng(0)).numpy()[:, 0, :, :, 0].astype(float)
    for frame in frames:
        coverage = coverage_of(frame)
        partial = ((coverage > 0.1) & (coverage < 0.9)).sum()
        around = 2 * np.sqrt(np.pi * coverage.sum())
        assert 0.6 * around < partial < 1.6 * around


def test_same_seed_same_bytes() -> None:
    items = all_attributes()[::97]
    first, second = (render_clips(items, np.random.default_rng(5)) for _ in range(2))
    other = render_clips(items, np.random.default_rng(6))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert first.numpy().tobytes() != other.numpy().tobytes()


@pytest.mark.parametrize("num_frames", [1, 8, 26])
def test_motions_stretch_over_any_number_of_frames(num_frames: int) -> None:
    items = all_attributes()[::53]
    clips = render_clips(items, np.random.default_rng(2), num_frames=num_frames)
    assert clips.shape == (len(items), num_frames, 64, 64, 3)
    if num_frames > 1:
        usual = render_clips(items, np.random.default_rng(2))
        for clip, same, item in zip(clips, usual, items, strict=True):
            if item.motion not in ("bounce", "orbit"):  # those reach other extremes at other frame counts
                assert (clip[0] == same[0]).all()
                assert (clip[-1].int() - same[-1].int()).abs().max() <= 1


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames: got 0"):
        render_clips(all_attributes()[:1], np.random.default_rng(0), num_frames=0)


# ----------------------------------------------------------------------------------------- captions


def test_there_are_2400_combinations_and_a_twelfth_of_the_triples_is_unseen() -> None:
    items = all_attributes()
    assert len(set(items)) == len(items) == 5 * 8 * 10 * 6
    for item in items:
        shape, color, motion, _ = item.indices
        assert item.is_unseen == ((7 * shape + 3 * color + 5 * motion) % 12 == 0)
    unseen = {item.indices[:3] for item in items if item.is_unseen}
    assert 25 <= len(unseen) <= 45
    for axis, count in enumerate((5, 8, 10)):  # every value also occurs in training
        assert {item.indices[axis] for item in items if not item.is_unseen} == set(range(count))


def test_canonical_prompt() -> None:
    item = Attributes(shape="star", color="pink", motion="upright", background="navy")
    assert item.prompt == "a pink star moving diagonally up on a navy background"


def test_every_caption_is_read_back_and_belongs_to_one_combination() -> None:
    captions = dict(world.all_captions())
    assert len(captions) == sum(1 for _ in world.all_captions())
    words = set(world.vocabulary())
    for index, (caption, item) in enumerate(captions.items()):
        if index % 101 == 0:
            assert world.parse_caption(caption) == item
            assert caption == caption.lower()
            assert set(re.findall(r"\w+|,", caption)) <= words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a red circle",
        "a red circle moving right",
        "a red blob moving right on a gray background",
    ],
)
def test_other_texts_are_not_captions(text: str) -> None:
    assert world.parse_caption(text) is None


def test_random_captions_vary_and_stay_true() -> None:
    rng = np.random.default_rng(0)
    item = Attributes(shape="circle", color="red", motion="bounce", background="white")
    captions = {item.random_caption(rng) for _ in range(300)}
    assert len(captions) > 30
    assert all(world.parse_caption(caption) == item for caption in captions)


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="shape: got 'hexagon', expected one of circle"):
        Attributes(shape="hexagon", color="red", motion="up", background="white")


def test_evaluation_prompts_are_half_unseen_and_fixed_by_the_seed() -> None:
    prompts = world.evaluation_prompts(512, seed=0)
    assert [item.is_unseen for item in prompts] == [False] * 256 + [True] * 256
    assert prompts == world.evaluation_prompts(512, seed=0)
    assert prompts != world.evaluation_prompts(512, seed=1)
    assert [item.is_unseen for item in world.evaluation_prompts(3)] == [False, False, True]
    with pytest.raises(ValueError, match="num_prompts: got 0"):
        world.evaluation_prompts(0)


def test_a_larger_rendering_shows_the_same_clip_with_sharp_edges() -> None:
    items = world.random_attributes(20, np.random.default_rng(1))
    small = world.render_clips(items, np.random.default_rng(2)).float()
    large = world.render_clips(items, np.random.default_rng(2), scale=4).float()
    assert large.shape == (20, 16, 256, 256, 3)
    means = large.reshape(20, 16, 64, 4, 64, 4, 3).mean(dim=(3, 5))
    assert float((means - small).abs().mean()) < 0.6
    edge = (large[:, :, :, 1:] - large[:, :, :, :-1]).abs().amax(dim=(2, 3, 4))
    whole = (small.amax(dim=(2, 3)) - small.amin(dim=(2, 3))).amax(dim=-1)
    assert bool((edge >= 0.4 * whole).all())  # the step happens within two or three pixels
    with pytest.raises(ValueError, match="scale: got 0"):
        world.render_clips(items, np.random.default_rng(2), scale=0)
