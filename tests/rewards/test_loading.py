"""Public layouts are loaded, nothing in them is run, and every key is accounted for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hummingbird.checkpoints import CheckpointError
from hummingbird.rewards import load_reward
from hummingbird.rewards.hpsv2 import HPSV2_CONFIG
from hummingbird.rewards.internvideo2 import INTERNVIDEO2_CONFIG, interpolate_frames
from hummingbird.rewards.pickscore import PICKSCORE_CONFIG
from hummingbird.rewards.viclip import VICLIP_CONFIG
from tests.rewards.goldens import key_shapes
from tests.rewards.tiny import CLASSES, CONFIGS, VOCABULARY, tiny_reward, tiny_state_dict

PUBLIC = {
    "hpsv2": (HPSV2_CONFIG, 686, 0),
    "pickscore": (PICKSCORE_CONFIG, 910, 0),
    "viclip": (VICLIP_CONFIG, 447, 0),
    "internvideo2": (INTERNVIDEO2_CONFIG, 1013, 161),
}
FRAMES = torch.rand(1, 8, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def score(reward: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if reward.name == "internvideo2":
        embeds = reward.embed_tokens(torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4))
        return reward(FRAMES, prompt_embeds=embeds, generator=generator)
    return reward(FRAMES, ["a red cat runs"], generator=generator)


@pytest.mark.golden
@pytest.mark.parametrize("name", PUBLIC)
def test_full_size_has_the_names_and_shapes_of_the_public_file(name: str) -> None:
    config, entries, num_unused = PUBLIC[name]
    shapes = key_shapes(name)
    assert len(shapes) == entries
    stored = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    reward = CLASSES[name].from_config(config, stored)
    assert len(reward.unused_keys) == num_unused
    assert reward.unknown_keys == ()
    assert len(reward.network.state_dict()) == entries - num_unused
    assert not any(buffer.is_meta for buffer in reward.buffers())


@pytest.mark.golden
def test_one_key_of_another_shape_or_missing_is_refused() -> None:
    shapes = key_shapes("viclip")
    for change in ("shape", "missing", "over"):
        stored = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        if change == "shape":
            stored["temp"] = torch.empty(2, device="meta")
        elif change == "missing":
            del stored["temp"]
        else:
            stored["temperature"] = torch.empty((), device="meta")
        with pytest.raises(CheckpointError, match=r"viclip: the checkpoint does not fit \(1 .*temp"):
            CLASSES["viclip"].from_config(VICLIP_CONFIG, stored)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("hpsv2", "state_dict"),
        ("hpsv2", "data parallel"),
        ("pickscore", "safetensors"),
        ("pickscore", "folder"),
        ("viclip", "model"),
        ("internvideo2", "module"),
    ],
)
def test_public_layouts(name: str, layout: str, tmp_path: Path) -> None:
    tensors = tiny_state_dict(name)
    path = tmp_path / "file.pt"
    if layout == "state_dict":
        torch.save({"epoch": 3, "name": "x", "args": argparse.Namespace(lr=1.0), "state_dict": tensors}, path)
    elif layout == "data parallel":
        torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, path)
    elif layout == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
    elif layout == "folder":
        positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        torch.save({**tensors, **positions}, tmp_path / "pytorch_model.bin")
        path = tmp_path
    else:
        extra = {"optimizer": {"state": {}}, "global_step": 7} if layout == "module" else {}
        torch.save({layout: tensors, **extra}, path)
    reward = load_reward(name, path, config=CONFIGS[name])
    torch.testing.assert_close(score(reward), score(tiny_reward(name)), rtol=0, atol=0)
    unused = ("text_model.embeddings.position_ids",) if layout == "folder" else ()
    assert reward.unused_keys == unused


def test_internvideo2_keys_beside_the_score_are_left_out() -> None:
    tensors = tiny_state_dict("internvideo2")
    beside = {
        "temp": torch.zeros(()),
        "itm_head.weight": torch.zeros(2, 16),
        "text_encoder.cls.predictions.bias": torch.zeros(30),
        "text_encoder.bert.embeddings.position_ids": torch.arange(40)[None],
        "text_encoder.bert.encoder.layer.2.crossattention.self.key.weight": torch.zeros(16, 16),
        "vision_encoder.clip_decoder.0.head.weight": torch.zeros(4, 16),
        "vision_encoder.clip_pos_embed": torch.zeros(1, 65, 16),
    }
    build = CLASSES["internvideo2"].from_config
    reward = build(CONFIGS["internvideo2"], {**tensors, **beside, "something_new": torch.zeros(1)})
    assert set(reward.unused_keys) == set(beside)
    assert reward.unknown_keys == ("something_new",)
    torch.testing.assert_close(score(reward), score(tiny_reward("internvideo2")), rtol=0, atol=0)
    del tensors["vision_encoder.cls_token"]
    with pytest.raises(CheckpointError, match=r"1 missing: vision_encoder\.cls_token"):
        build(CONFIGS["internvideo2"], tensors)


@pytest.mark.parametrize("frames", [2, 4, 8, 16])
def test_positions_of_other_clip_lengths_are_stretched(frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(1, 1 + frames * 16, 16, generator=generator)
    stretched = interpolate_frames(stored, 8, 16)
    assert stretched.shape == (1, 129, 16)
    assert torch.equal(stretched[:, 0], stored[:, 0])
    grid = stored[0, 1:].view(frames, 16, 16)
    for index, frame in enumerate(stretched[0, 1:].view(8, 16, 16)):
        place = min(max((index + 0.5) * frames / 8 - 0.5, 0.0), frames - 1.0)  # align_corners=False
        low = int(place)
        high = min(low + 1, frames - 1)
        expected = grid[low] + (place - low) * (grid[high] - grid[low])
        torch.testing.assert_close(frame, expected)
    tensors = {**tiny_state_dict("internvideo2"), "vision_encoder.pos_embed": stored}
    reward = CLASSES["internvideo2"].from_config(CONFIGS["internvideo2"], tensors)
    assert torch.equal(reward.network.vision_encoder.pos_embed, stretched)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": tiny_state_dict("hpsv2"), "x": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="mkdir"):
        load_reward("hpsv2", tmp_path / "evil.pt", config=CONFIGS["hpsv2"])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["hpsv2", "pickscore", "viclip"])
def test_another_models_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3, 3)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        load_reward(name, tmp_path / "other.pt", config=CONFIGS[name])
    assert str(caught.value).startswith(f"{name}: the checkpoint does not fit (")
    assert "1 unexpected: conv.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hps", "x"), "reward: got 'hps', expected one of hpsv2, pickscore"),
        (("hpsv2", None), "hpsv2: no checkpoint given; download HPS_v2.1_compressed.pt"),
        (("hpsv2", "no/such.pt"), "checkpoint: no file no/such.pt"),
        (("nano-image", "no/folder"), "nano-image: no folder no/folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(arguments: tuple[str, str | None], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_reward(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin in"):
        load_reward("pickscore", tmp_path)


@pytest.mark.parametrize("name", ["nano-image", "nano-video"])
def test_nano_rewards_without_weights_say_how_to_make_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hummingbird.rewards.loading._NANO_WEIGHTS", tmp_path)
    part = name.replace("nano-", "reward_")
    with pytest.raises(
        FileNotFoundError, match=rf"`python train/nano.py {part} configs/train/nano_{part}.yaml`"
    ):
        load_reward(name)


def test_bert_prompts_need_a_vocabulary(tmp_path: Path) -> None:
    torch.save({"module": tiny_state_dict("internvideo2")}, tmp_path / "file.pt")
    reward = load_reward("internvideo2", tmp_path / "file.pt", config=CONFIGS["internvideo2"])
    with pytest.raises(ValueError, match=r"vocabulary=PATH of the vocab\.txt of bert-large-uncased"):
        reward(FRAMES, ["a red cat"])
    with pytest.raises(FileNotFoundError, match="no vocabulary"):
        load_reward(
            "internvideo2", tmp_path / "file.pt", config=CONFIGS["internvideo2"], vocabulary="none.txt"
        )
    with pytest.raises(ValueError, match="hpsv2 does not take one"):
        load_reward("hpsv2", tmp_path / "file.pt", vocabulary="vocab.txt")
    (tmp_path / "vocab.txt").write_text(VOCABULARY)
    reward = load_reward("internvideo2", tmp_path / "file.pt", config=CONFIGS["internvideo2"])
    tokens = reward.tokenize(["A red cats runs", "zebra"])
    assert tokens["input_ids"].shape == (2, 40)
    assert tokens["input_ids"][0, :8].tolist() == [2, 5, 6, 7, 8, 9, 3, 0]
    assert tokens["input_ids"][1, :3].tolist() == [2, 1, 3]
    assert tokens["attention_mask"].sum(dim=1).tolist() == [7, 3]
    assert reward(FRAMES, ["a red cat"]).shape == (1,)
    for other, message in (
        (VOCABULARY.encode("utf-16"), "is not text, expected bert-large-uncased"),
        (b"a\n" * 2**21 + b"a", "is over 4194304 bytes"),
        (VOCABULARY + "dogs\n", "has 11 entries, expected the 10 of bert-large-uncased"),
        (VOCABULARY.replace("[SEP]", "sep"), r"without \[SEP\], expected"),
    ):
        (tmp_path / "vocab.txt").write_bytes(other if isinstance(other, bytes) else other.encode())
        reward = load_reward("internvideo2", tmp_path / "file.pt", config=CONFIGS["internvideo2"])
        with pytest.raises(ValueError, match=message):
            reward.tokenize(["a red cat"])
