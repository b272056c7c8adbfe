"""What every reward promises, and the options of preprocessing and of frame selection."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hummingbird.rewards import IMAGE_FRAMES, VIDEO_FRAMES, FrameSelection, Preprocessing
from hummingbird.rewards.base import Reward
from hummingbird.rewards.internvideo2 import InternVideo2Reward
from hummingbird.rewards.preprocess import preprocess, preprocessing_from_config
from tests.rewards.tiny import CONFIGS, tiny_reward, tiny_state_dict

NAMES = ("hpsv2", "pickscore", "viclip", "internvideo2")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def fixed(name: str) -> Reward:
    """Without anything random."""
    reward = tiny_reward(name)
    center = replace(reward.preprocessing, crop="center")
    return type(reward)(reward.network, center)


def embeds(reward: Reward, count: int = 2) -> Tensor:
    if reward.name == "internvideo2":
        return reward.embed_tokens(torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])[:count], torch.ones(count, 4))
    return reward.embed_prompts(["a red cat", "two dogs"][:count])


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_frozen_differentiable_and_per_video(name: str) -> None:
    reward = fixed(name)
    reward.train()
    assert not reward.training
    assert not reward.network.training
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    frames = noise(2, 8, 3, 40, 56).requires_grad_()
    prompts = embeds(reward)
    scores = reward(frames, prompt_embeds=prompts)
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    assert scores.abs().max() <= 1.0
    scores[0].backward()
    assert frames.grad is not None
    assert (frames.grad[0].flatten(1).norm(dim=1) > 0).all()  # every frame counts
    assert frames.grad[1].abs().max() == 0
    single = reward(frames[1:], prompt_embeds=prompts[1:])
    torch.testing.assert_close(single, scores[1:], rtol=0, atol=1e-6)
    swapped = reward(frames, prompt_embeds=prompts.flip(0))
    assert (swapped - scores).abs().max() > 1e-4
    one_for_all = reward(frames, prompt_embeds=prompts[:1])
    torch.testing.assert_close(one_for_all[0], scores[0], rtol=0, atol=1e-6)


def test_frames_reach_each_network_as_its_original_s_do() -> None:
    """FACTS of the originals, not of our constants."""
    clip = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    expected: dict[str, dict[str, Any]] = {
        "hpsv2": {"resize": "letterbox", **clip},
        "pickscore": {"resize": "stretch", **clip},
        "viclip": {"resize": "short_side", "crop": "random", **imagenet},
        "internvideo2": {"resize": "short_side", "crop": "random", **imagenet},
    }
    for name, values in expected.items():
        used = asdict(tiny_reward(name).preprocessing)
        assert {key: used[key] for key in values} == values
        assert used["antialias"] is True


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_give_float32_scores(name: str) -> None:
    reward = fixed(name)
    frames = noise(1, 8, 3, 32, 32)
    exact = reward(frames, prompt_embeds=embeds(reward, 1))
    half = fixed(name).to(torch.bfloat16)
    rounded = half(frames.to(torch.bfloat16), prompt_embeds=embeds(half, 1))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused_in_one_line(name: str) -> None:
    reward = fixed(name)
    frames, prompts = noise(2, 8, 3, 32, 32), embeds(reward)
    wrong: list[tuple[Tensor, dict[str, Any], str]] = [
        (frames[0], {"prompt_embeds": prompts}, r"expected \(B, F, 3, H, W\)"),
        (frames.transpose(1, 2), {"prompt_embeds": prompts}, r"expected \(B, F, 3, H, W\)"),
        ((frames * 255).byte(), {"prompt_embeds": prompts}, "torch.uint8, expected floating"),
        (frames, {}, "expected one of the two"),
        (frames, {"prompts": ["a"], "prompt_embeds": prompts}, "expected one of the two"),
        (frames[:1], {"prompt_embeds": prompts}, "got 2 for 1 videos"),
        (frames * 255, {"prompt_embeds": prompts}, r"values from .* to 255, expected \[0, 1\]"),
        (frames * 2 - 1, {"prompt_embeds": prompts}, r"values from -1 to .*, expected \[0, 1\]"),
        (frames, {"prompts": []}, "prompts: got none, expected at least one"),
    ]
    for value, arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            reward(value, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_frames_that_are_no_numbers_have_no_score(name: str) -> None:
    reward = fixed(name)
    frames = noise(2, 8, 3, 32, 32)
    frames[0, 0, 0, 0, 0] = float("nan")
    scores = reward(frames, prompt_embeds=embeds(reward))
    assert scores.isnan().tolist() == [True, False]


def test_a_prompt_alone_is_one_prompt() -> None:
    reward = fixed("hpsv2")
    assert torch.equal(reward.embed_prompts("a red cat"), reward.embed_prompts(["a red cat"]))


def test_a_video_reward_picks_as_many_frames_as_its_network_reads() -> None:
    config = copy.deepcopy(CONFIGS["internvideo2"])
    config["vision"]["num_frames"] = 4
    reward = InternVideo2Reward.from_config(config, tiny_state_dict("internvideo2"))
    assert reward.frame_selection.count == reward.num_frames == 4
    assert reward(noise(1, 16, 3, 32, 32), prompt_embeds=embeds(reward, 1)).isfinite().all()
    assert tiny_reward("internvideo2").frame_selection.count == 8


def test_the_score_of_an_image_reward_is_the_mean_over_frames() -> None:
    reward = fixed("hpsv2")
    frames, prompts = noise(1, 3, 3, 40, 40), embeds(reward, 1)
    each = torch.cat([reward(frames[:, [index]], prompt_embeds=prompts) for index in range(3)])
    torch.testing.assert_close(reward(frames, prompt_embeds=prompts), each.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("name", ["viclip", "internvideo2"])
def test_a_video_reward_picks_8_frames_and_takes_images(name: str) -> None:
    reward = fixed(name)
    prompts = embeds(reward, 1)
    video = noise(1, 26, 3, 32, 32)
    generator = torch.Generator().manual_seed(5)
    picked = VIDEO_FRAMES.indices(26, torch.Generator().manual_seed(5))
    scores = reward(video, prompt_embeds=prompts, generator=generator)
    assert torch.equal(scores, reward(video[:, picked], prompt_embeds=prompts))
    image = reward(video[:, :1], prompt_embeds=prompts)
    still = reward(video[:, :1].expand(-1, 8, -1, -1, -1), prompt_embeds=prompts)
    assert image.shape == (1,)
    assert (image - still).abs() > 1e-6  # another table of positions
    with pytest.raises(ValueError, match="got 7 frames, expected 1 or at least 8"):
        reward(video[:, :7], prompt_embeds=prompts)


@pytest.mark.parametrize("name", ["viclip", "internvideo2"])
def test_the_order_of_frames_counts(name: str) -> None:
    reward = fixed(name)
    frames, prompts = noise(1, 8, 3, 32, 32), embeds(reward, 1)
    forward, backward = (reward(x, prompt_embeds=prompts) for x in (frames, frames.flip(1)))
    assert (forward - backward).abs() > 1e-6


# --- preprocessing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(224, 190), (140, 224), (320, 512), (10, 500), (224, 224)])
def test_letterbox_keeps_the_aspect_and_pads_with_black(height: int, width: int) -> None:
    """The first two sizes crash the original."""
    options = Preprocessing(resize="letterbox")
    pixels = preprocess(torch.ones(1, 3, height, width), options)
    assert pixels.shape == (1, 3, 224, 224)
    white = (1 - torch.tensor(options.mean)) / torch.tensor(options.std)
    black = -torch.tensor(options.mean) / torch.tensor(options.std)
    scale = 224 / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (224 - rows) // 2, (224 - columns) // 2
    inside = pixels[0, :, top : top + rows, left : left + columns]
    torch.testing.assert_close(inside, white.view(3, 1, 1).expand_as(inside))
    outside = torch.ones(224, 224, dtype=torch.bool)
    outside[top : top + rows, left : left + columns] = False
    assert outside.sum() == 224 * 224 - rows * columns
    assert (pixels[0][:, outside] == black[:, None]).all()


def test_short_side_crops_always() -> None:
    """Also a frame whose short side is exactly right, at which the original fails."""
    ramp = torch.arange(300.0).expand(1, 3, 224, 300) / 300
    options = Preprocessing(resize="short_side", crop=(0, 30), mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(preprocess(ramp, options), ramp[..., 30:254])
    center = preprocess(ramp, replace(options, crop="center"))
    assert torch.equal(center, ramp[..., 38:262])
    with pytest.raises(ValueError, match=r"got \(top, left\) = \(0, 77\), expected at most \(0, 76\)"):
        preprocess(ramp, replace(options, crop=(0, 77)))


def test_a_random_crop_is_one_for_all_frames_and_follows_the_generator() -> None:
    ramp = torch.arange(300.0).expand(2, 4, 3, 224, 300) / 300
    options = Preprocessing(resize="short_side", crop="random", mean=(0, 0, 0), std=(1, 1, 1))
    places = set()
    for seed in range(20):
        first, again = (preprocess(ramp, options, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert torch.equal(first, again)
        assert (first == first[0, 0, 0, 0]).all()
        places.add(first.min().item())
    assert len(places) > 10


def test_antialias_is_a_choice() -> None:
    image = noise(1, 3, 320, 512)
    smooth, rough = (preprocess(image, Preprocessing(antialias=choice)) for choice in (True, False))
    rows = slice(50, 170)  # within the bars
    assert smooth[..., rows, :].std() < 0.8 * rough[..., rows, :].std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size: got 0"),
        ({"resize": "fit"}, "resize: got 'fit'"),
        ({"crop": "left"}, "crop: got 'left'"),
        ({"crop": (1, 2, 3)}, "crop: got"),
        ({"std": (1.0, 0.0, 1.0)}, "mean, std"),
    ],
)
def test_preprocessing_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**change)


def test_preprocessing_from_a_configuration() -> None:
    config = {
        "antialias": False,
        "normalize_mean": [0.1, 0.2, 0.3],
        "normalize_std": [1, 2, 3],
        "crop_top_left": [4, 5],
    }
    made = preprocessing_from_config(Preprocessing(resize="short_side"), config)
    assert made == Preprocessing(
        resize="short_side", antialias=False, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), crop=(4, 5)
    )
    assert preprocessing_from_config(made, {"antialias": "a remark"}) == made
    assert tiny_reward("hpsv2").preprocessing.size == CONFIGS["hpsv2"]["vision_cfg"]["image_size"]


# --- frame selection ---------------------------------------------------------------------------------------


def test_strided_frames_are_the_originals() -> None:
    """26 frames: every third, from one of the first three, eight of them."""
    seen = {tuple(VIDEO_FRAMES.indices(26, torch.Generator().manual_seed(seed))) for seed in range(30)}
    assert seen == {tuple(range(start, 26, 3))[:8] for start in range(3)}
    assert FrameSelection(rule="strided", count=8, start=1).indices(16) == list(range(1, 16, 2))
    assert VIDEO_FRAMES.indices(8) == list(range(8))
    with pytest.raises(ValueError, match="got a video of 7 frames, expected at least the 8"):
        VIDEO_FRAMES.indices(7)
    with pytest.raises(ValueError, match="start: got 2, expected below the stride 2"):
        FrameSelection(rule="strided", start=2).indices(16)


def test_random_frames_are_drawn_with_replacement() -> None:
    drawn = [IMAGE_FRAMES.indices(16, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all(len(indices) == 5 and set(indices) <= set(range(16)) for indices in drawn)
    assert {index for indices in drawn for index in indices} == set(range(16))
    assert any(len(set(indices)) < 5 for indices in drawn)
    assert FrameSelection().indices(3) == [0, 1, 2]


@pytest.mark.parametrize("change", [{"rule": "some"}, {"count": 0}, {"start": -1}, {"start": "end"}])
def test_frame_selection_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        FrameSelection(**change)
