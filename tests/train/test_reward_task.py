"""Training of the nano rewards: pairs, the loss, the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hummingbird.config import ConfigError, load_config
from hummingbird.nano import world
from hummingbird.rewards import load_reward
from hummingbird.rewards.nano import Kind, read_nano_config
from tests.train.conftest import DEBUG
from train.reward_task import (
    VISIBLE,
    MovingShapesPairs,
    NanoRewardConfig,
    build_task,
    contrastive_loss,
    frame_selection,
    model_config,
    retrieval_accuracy,
)

KINDS: tuple[Kind, ...] = ("image", "video")


def settings(kind: Kind, *flags: str) -> NanoRewardConfig:
    return load_config(NanoRewardConfig, DEBUG / f"nano_reward_{kind}.yaml", list(flags))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_depend_on_the_index_alone_and_wrong_captions_are_wrong_in_one_thing(kind: Kind) -> None:
    selection = frame_selection(settings(kind))
    first, again = (MovingShapesPairs(kind, selection, 6, seed=3).batch(5) for _ in range(2))
    assert torch.equal(first["frames"], again["frames"])
    assert first["captions"] == again["captions"]
    assert first["frames"].shape == (6, 1 if kind == "image" else 8, 3, 64, 64)
    assert 0 <= first["frames"].min() < first["frames"].max() <= 1
    names = VISIBLE[kind]
    assert len(first["captions"]) == len(first["indices"]) == 6 * (1 + len(names))
    for caption, indices in zip(first["captions"], first["indices"].tolist(), strict=True):
        item = world.parse_caption(caption)
        assert item is not None
        assert item.indices == tuple(indices)
        assert not item.is_unseen
    right, wrong = first["indices"][:6], first["indices"][6:].view(6, len(names), 4)
    for column, name in enumerate(names):
        differs = (wrong[:, column] != right).tolist()
        assert differs == [[attribute == name for attribute in world.ATTRIBUTES]] * 6


def test_frames_of_a_pair_show_what_its_caption_says() -> None:
    batch = MovingShapesPairs("image", frame_selection(settings("image")), 32, seed=0).batch(0)
    corner = batch["frames"][:, 0, :, 0, 0] * 255
    base = torch.from_numpy(world.BACKGROUND_RGB)[batch["indices"][:32, 3]]
    assert (corner - base).abs().max() < 10


def test_loss_of_right_and_of_blind_features() -> None:
    labels = torch.tensor([0, 1, 2, 0, 3])  # the fourth text is right for the first image, too
    features = F.one_hot(labels, 4).float()
    scale = torch.tensor(100.0)
    perfect = contrastive_loss(features[:3], features, scale, labels[:3], labels)
    # The first image has two right captions, whose entropy is what remains.
    assert perfect == pytest.approx(np.log(2) / 3 / 2, abs=1e-5)
    blind = torch.ones(5, 4) / 2
    loss = contrastive_loss(blind[:3], blind, scale, labels[:3], labels)
    assert loss == pytest.approx((np.log(5) + np.log(3)) / 2, abs=1e-5)
    assert contrastive_loss(features[:3], features, 2 * scale, labels[:3], labels) == perfect  # clamped


class Telepath:
    """Reads captions, and is told which of the attributes every clip shows."""

    def __init__(self, clips: list[world.Attributes], known: tuple[str, ...]) -> None:
        self.clips, self.known = iter(clips), known
        self.captions: list[str] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def code(self, item: world.Attributes) -> Tensor:
        sizes = (len(world.SHAPES), len(world.COLORS), len(world.MOTIONS), len(world.BACKGROUNDS))
        parts = [F.one_hot(torch.tensor(i), n).float() for i, n in zip(item.indices, sizes, strict=True)]
        return torch.cat([p * (n in self.known) for p, n in zip(parts, world.ATTRIBUTES, strict=True)])

    def encode_image(self, pixels: Tensor) -> Tensor:
        return torch.stack([self.code(next(self.clips)) for _ in pixels])

    def encode_text(self, captions: Tensor) -> Tensor:
        items = [world.parse_caption(caption) for caption in self.captions]
        return torch.stack([self.code(item) for item in items if item is not None])


@pytest.mark.parametrize("known", [world.ATTRIBUTES, ("shape", "motion", "background")])
def test_retrieval_figures(known: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What knows everything is always right; what is blind to colour ties there, which is not right."""
    config = settings("video", "--num-test-clips", "40")
    network = Telepath(world.evaluation_prompts(40, 0), known)

    def keep(tokenizer: object, captions: list[str]) -> Tensor:
        network.captions = captions
        return torch.zeros(len(captions), 1)

    monkeypatch.setattr("train.reward_task.tokenize_prompts", keep)
    figures = retrieval_accuracy(network, None, config)
    assert figures == {f"retrieval_{name}": float(name in known) for name in world.ATTRIBUTES}


def test_an_untrained_network_finds_one_in_17() -> None:
    torch.manual_seed(0)
    config = settings("image", "--num-test-clips", "200")
    task = build_task(config)
    figures = retrieval_accuracy(task.network.eval(), task.tokenizer, config)
    assert set(figures) == {"retrieval_shape", "retrieval_color", "retrieval_background"}
    assert all(value < 0.17 for value in figures.values()), figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_folder_is_a_reward(kind: Kind, parts: Path) -> None:
    folder = parts / f"reward_{kind}" / "model"
    reward = load_reward(f"nano-{kind}", folder)
    stored = load_file(folder / "model.safetensors")
    loaded = reward.network.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)
    frames = torch.rand(2, 16, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = ["a red circle moving right on a black background", "a zebra"]
    scores = reward(frames, prompts, generator=torch.Generator().manual_seed(0))
    assert scores.shape == (2,)
    scores.sum().backward()
    assert frames.grad is not None
    assert frames.grad.abs().max() > 0
    other = "video" if kind == "image" else "image"
    with pytest.raises(ValueError, match=f"is not the configuration of a nano-{other} reward"):
        load_reward(f"nano-{other}", folder)


@pytest.mark.parametrize(
    "change",
    [
        {"text_cfg": {"hf_model_name": "someone/model"}},
        {"vision_cfg": {"timm_model_name": "x"}},
        {"vision_cfg": {"width": 10**9}},
        {"vision_cfg": {"layers": 10**4}},
        {"vision_cfg": {"width": 0}},
        {"vision_cfg": {"head_width": 0}},
        {"vision_cfg": {"head_width": 7}},
        {"vision_cfg": {"layers": 1}},
        {"vision_cfg": {"layers": [1, 1, 1]}},
        {"vision_cfg": {"layers": [1, 1, 1, 99]}},
        {"vision_cfg": {"layers": [1, 1, 1, [1]]}},
        {"vision_cfg": {"image_size": 48}},
        {"vision_cfg": {"width": True}},
        {"text_cfg": {"pool_type": "last"}},
        {"embed_dim": "8"},
        {"embed_dim": 0},
    ],
)
def test_a_hostile_configuration_builds_nothing(change: dict[str, Any], parts: Path, tmp_path: Path) -> None:
    config = json.loads((parts / "reward_image/model/config.json").read_text())
    assert read_nano_config(parts / "reward_image/model", "image") == config
    for name, value in change.items():
        config["model"][name] = {**config["model"][name], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not the configuration of a nano-image reward"):
        read_nano_config(tmp_path, "image")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vision_cfg": {"num_frames": 512, "width": 4096, "heads": 1}, "embed_dim": 4096}, "num_frames"),
        ({"vision_cfg": {"image_size": 4096, "channels": [4], "width": 4096, "heads": 1}}, "image_size"),
        ({"vision_cfg": {"channels": [6]}}, "channels"),
        ({"vision_cfg": {"channels": [4] * 9}}, "channels"),
        ({"vision_cfg": {"heads": 3}}, "heads"),
        ({"vision_cfg": {"layers": 33}}, "layers"),
        ({"vision_cfg": {"num_frames": 0}}, "num_frames"),
    ],
)
def test_a_hostile_configuration_of_a_video_reward_builds_nothing(
    change: dict[str, Any], name: str, parts: Path, tmp_path: Path
) -> None:
    config = json.loads((parts / "reward_video/model/config.json").read_text())
    assert read_nano_config(parts / "reward_video/model", "video") == config
    for key, value in change.items():
        config["model"][key] = {**config["model"][key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"is not the configuration of a nano-video reward: .*{name}"):
        read_nano_config(tmp_path, "video")


def test_what_could_not_be_loaded_is_not_trained() -> None:
    with pytest.raises(ConfigError, match=r"vision_cfg\.width is missing, unknown, too large"):
        build_task(settings("image", "--width", "256"))


def test_batch_norms_are_saved_with_the_statistics_of_the_weights_beside_them(tmp_path: Path) -> None:
    """What is saved are averaged weights; statistics counted in training are of others."""
    task = build_task(settings("image"))
    for module in task.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 100.0
    before = {key: value.clone() for key, value in task.network.state_dict().items()}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        task.save_model(task.network, tmp_path / name)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(before[key], value) for key, value in task.network.state_dict().items())
    means = [value for key, value in first.items() if key.endswith("running_mean")]
    assert means
    assert all(float(mean.abs().max()) < 50.0 for mean in means)
    assert all(torch.equal(first[key], before[key]) for key in first if key.endswith("weight"))


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_nano_config(tmp_path, "image")
    for text, message in (
        ("{", "is not JSON"),
        ("[" * 60_000, "is not JSON"),
        (" " * 70_000, "is over 65536"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_nano_config(tmp_path, "image")


def test_the_recipes_are_small() -> None:
    """6 MB together, in half precision, as they are shipped."""
    total = 0
    for kind in KINDS:
        config = load_config(NanoRewardConfig, DEBUG.parent / "train" / f"nano_reward_{kind}.yaml")
        task = build_task(config)
        total += sum(2 * parameter.numel() for parameter in task.network.parameters())
        assert model_config(config, task.tokenizer)["text_cfg"]["eos_id"] == task.tokenizer.eos_token_id
    assert total < 6_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_what_is_seen_again(kind: Kind) -> None:
    torch.manual_seed(0)
    width = "8" if kind == "image" else "32"
    config = settings(kind, "--width", width, "--embed-dim", "32")
    task = build_task(config)
    batch = MovingShapesPairs(kind, frame_selection(config), 8, seed=0).batch(0)
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        losses.append(task.losses(batch, torch.Generator().manual_seed(0))["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heads", "3"], "expected multiples"),
        (["--image-size", "48"], "expected a multiple of 32"),
    ],
)
def test_sizes_that_do_not_fit(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task(settings("image", *flags))
