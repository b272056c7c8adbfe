"""Every reward is number for number the original: pixels, features, scores, gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hummingbird.rewards import InternVideo2Reward
from hummingbird.rewards.base import Reward
from tests.golden_files import max_abs_difference
from tests.rewards.goldens import CLASSES, golden, golden_reward

pytestmark = pytest.mark.golden

FEATURES, SCORES = 1e-5, 2e-6
IMAGE_CASES = [*(("hpsv2", case) for case in range(4)), *(("pickscore", case) for case in range(2))]


def with_preprocessing(reward: Reward, **changes: Any) -> Reward:
    return type(reward)(reward.network, replace(reward.preprocessing, **changes))


def assert_gradient(frames: Tensor, sampled: Tensor, norm: Tensor) -> None:
    assert frames.grad is not None
    gradient = frames.grad[..., ::16, ::16].reshape(sampled.shape)
    assert max_abs_difference(gradient, sampled) < 1e-5 * sampled.abs().max()
    torch.testing.assert_close(frames.grad.norm(), norm[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "case"), IMAGE_CASES)
def test_image_reward(name: str, case: int) -> None:
    config, _, inputs, outputs = golden(name)
    reward = golden_reward(name)
    expected = {
        key.removeprefix(f"case{case}."): value
        for key, value in outputs.items()
        if key.startswith(f"case{case}.")
    }
    frames = (inputs[f"case{case}.images_u8"].float() / 255.0)[:, None].requires_grad_()
    prompts = config["prompts"][: len(frames)]

    pixels = reward.pixel_values(frames)[:, 0]
    assert pixels.shape[-2:] == (224, 224)
    assert max_abs_difference(pixels[..., ::4, ::4], expected["pixel_values_sub4"]) < FEATURES
    scores = reward(frames, prompts)
    assert scores.dtype == torch.float32
    assert max_abs_difference(scores, expected["score"]) < SCORES
    logits = scores * reward.network.logit_scale.exp()
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=3e-5)
    scores.sum().backward()
    assert_gradient(frames, expected["input_grad_sub"], expected["input_grad_norm"])

    without = with_preprocessing(reward, antialias=False)(frames, prompts)
    assert max_abs_difference(without, expected["score_no_antialias"]) < SCORES
    if name == "hpsv2":
        features = F.normalize(reward.embed_frames(frames)[:, 0], dim=-1)
        assert max_abs_difference(features, expected["image_features"]) < FEATURES
    else:
        tokens = reward.tokenize(prompts)["input_ids"]
        assert torch.equal(tokens.int(), outputs[f"case{case}.input_ids"])
        assert max_abs_difference(reward.embed_prompts(prompts), expected["text_features_raw"]) < FEATURES


def test_hpsv2_text() -> None:
    config, _, _, outputs = golden("hpsv2")
    reward = golden_reward("hpsv2")
    assert torch.equal(reward.tokenize(config["prompts"])["input_ids"].int(), outputs["tokens"])
    features = F.normalize(reward.embed_prompts(config["prompts"]), dim=-1)
    assert max_abs_difference(features, outputs["text_features"]) < FEATURES


def test_one_option_of_preprocessing_wrong_is_seen() -> None:
    """The tolerance tells the variants apart."""
    for name in ("hpsv2", "pickscore"):
        config, _, inputs, outputs = golden(name)
        frames = (inputs["case0.images_u8"].float() / 255.0)[:, None]
        reward = golden_reward(name)
        other = "stretch" if name == "hpsv2" else "letterbox"
        changes: list[dict[str, Any]] = [{"antialias": False}, {"resize": other}, {"mean": (0.5, 0.5, 0.5)}]
        for change in changes:
            scores = with_preprocessing(reward, **change)(frames, config["prompts"][: len(frames)])
            assert max_abs_difference(scores, outputs["case0.score"]) > 100 * SCORES, change


def test_viclip() -> None:
    config, _, inputs, outputs = golden("viclip")
    reward = golden_reward("viclip")
    frames = (inputs["video_u8"].float() / 255.0).requires_grad_()
    assert torch.equal(reward.tokenize(config["prompts"])["input_ids"].int(), outputs["tokens"])
    text = reward.embed_prompts(config["prompts"])
    assert max_abs_difference(text, outputs["text_features_raw"]) < FEATURES
    pixels = reward.pixel_values(frames)
    assert max_abs_difference(pixels[:, 3, :, ::2, ::2], outputs["pixel_values_frame3_sub2"]) < FEATURES
    features = reward.embed_frames(frames)
    assert max_abs_difference(features, outputs["vision_features_raw"]) < FEATURES
    score = reward(frames, config["prompts"])
    assert max_abs_difference(score, outputs["score"]) < SCORES
    score.sum().backward()
    assert_gradient(frames, outputs["input_grad_sub"], outputs["input_grad_norm"])


def test_viclip_draws_the_originals_random_crop() -> None:
    config, _, inputs, outputs = golden("viclip")
    reward = with_preprocessing(golden_reward("viclip"), crop="random")
    frames = inputs["video_u8"].float() / 255.0
    score = reward(frames, config["prompts"], generator=torch.Generator().manual_seed(301))
    assert max_abs_difference(score, outputs["score"]) < SCORES
    other = reward(frames, config["prompts"], generator=torch.Generator().manual_seed(302))
    assert max_abs_difference(other, outputs["score"]) > 100 * SCORES


def test_internvideo2() -> None:
    _, _, inputs, outputs = golden("internvideo2")
    reward = golden_reward("internvideo2")
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    vision = reward.network.vision_encoder
    assert torch.equal(vision.pos_embed[:, ::8], outputs["pos_embed_8f_sub"])
    text = reward.network.text_encoder["bert"](**tokens).last_hidden_state
    assert max_abs_difference(text, outputs["text_last_hidden"]) < FEATURES
    embeds = reward.embed_tokens(**tokens)
    assert max_abs_difference(embeds, outputs["text_proj"]) < FEATURES

    frames = (inputs["video_u8"].float() / 255.0).requires_grad_()
    pixels = reward.pixel_values(frames)
    assert max_abs_difference(pixels[:, 3, :, ::2, ::2], outputs["pixel_values_frame3_sub2"]) < FEATURES
    assert max_abs_difference(vision.tokens(pixels)[:, ::16], outputs["vision_tokens_sub"]) < FEATURES
    assert max_abs_difference(vision(pixels), outputs["vision_pooled"]) < FEATURES
    assert max_abs_difference(vision(pixels[:, :1]), outputs["image_mode_pooled"]) < FEATURES
    assert max_abs_difference(reward.embed_frames(frames), outputs["vision_proj"]) < FEATURES
    score = reward(frames, prompt_embeds=embeds)
    assert max_abs_difference(score, outputs["score"]) < SCORES
    score.sum().backward()
    assert_gradient(frames, outputs["input_grad_sub"], outputs["input_grad_norm"])


def test_internvideo2_of_the_half_precision_path_is_told_apart() -> None:
    config, state_dict, inputs, outputs = golden("internvideo2")
    reward = InternVideo2Reward.from_config(config, state_dict, activation="gelu_tanh")
    frames = inputs["video_u8"].float() / 255.0
    embeds = reward.embed_tokens(inputs["input_ids"], inputs["attention_mask"])
    difference = max_abs_difference(reward(frames, prompt_embeds=embeds), outputs["score"])
    assert SCORES < difference < 1e-3


def test_every_class_has_its_name() -> None:
    assert {name: cls.name for name, cls in CLASSES.items()} == {name: name for name in CLASSES}
