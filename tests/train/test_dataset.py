"""Data is a pure function of a batch index, and unseen combinations stay unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from hummingbird.nano import world
from train.dataset import (
    LatentClips,
    MovingShapesCaptions,
    MovingShapesFrames,
    encode_frames,
    to_model_range,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every seen combination once; latent value = frame number."""
    items = [a for a in world.all_attributes() if not a.is_unseen]
    numbers = torch.arange(world.NUM_FRAMES, dtype=torch.float16).view(1, -1, 1, 1, 1)
    latents = numbers.expand(len(items), -1, 2, 1, 1).contiguous()
    path = tmp_path_factory.mktemp("clips") / "latents.safetensors"
    indices = torch.tensor([a.indices for a in items], dtype=torch.uint8)
    save_file({"latents": latents, "attributes": indices}, path)
    return path


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)


def test_batches_depend_on_their_index_alone(clips: Path) -> None:
    makers = (
        lambda: MovingShapesFrames(8, seed=3),
        lambda: MovingShapesCaptions(32, seed=3),
        lambda: LatentClips(clips, 16, seed=3, num_frames=4),
    )
    for make in makers:
        one, other = make(), make()
        other.batch(0)
        a, b = one.batch(7), other.batch(7)
        assert a.keys() == b.keys()
        assert all(same(a[key], b[key]) for key in a)
        different = one.batch(8)
        assert not all(same(a[key], different[key]) for key in a)


def test_frames_are_pixels_in_the_models_range() -> None:
    pixels = MovingShapesFrames(8, seed=0).batch(0)["pixels"]
    assert pixels.shape == (8, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert -1.0 <= float(pixels.min()) < 0.0 < float(pixels.max()) <= 1.0
    ends = to_model_range(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3))
    assert ends.flatten().tolist() == [-1.0, 1.0] * 3
    with pytest.raises(ValueError, match="batch_size: got 6, expected a multiple of 4"):
        MovingShapesFrames(6, seed=0)


def test_captions_are_never_of_unseen_combinations_and_say_what_they_should() -> None:
    data = MovingShapesCaptions(256, seed=0)
    canonical = 0
    for index in range(4):
        batch = data.batch(index)
        for caption, row in zip(batch["captions"], batch["indices"].tolist(), strict=True):
            names = zip((world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), row, strict=True)
            item = world.Attributes(**dict(zip(world.ATTRIBUTES, (v[i] for v, i in names), strict=True)))
            assert not item.is_unseen
            read = world.parse_caption(caption)
            canonical += read is not None
            assert read in (None, item)
            assert item.color in caption
            assert item.background in caption
    assert 0.6 < canonical / 1024 < 0.8  # the other 30% have words left out or unknown


def test_clips_keep_unseen_combinations_out_when_they_are_reversed(clips: Path) -> None:
    data = LatentClips(clips, 512, seed=0, num_frames=16, reverse=1.0)
    kept = set()
    for index in range(6):
        batch = data.batch(index)
        for latents, item in zip(batch["latents"], batch["attributes"], strict=True):
            assert not item.is_unseen
            is_reversed = bool(latents[0, 0] > latents[0, -1])
            if not is_reversed:
                kept.add(item.motion)
                opposite = world.REVERSED_MOTION.get(item.motion)
                if opposite is not None:  # then what it would become is an unseen triple
                    fields = {name: getattr(item, name) for name in world.ATTRIBUTES}
                    assert world.Attributes(**{**fields, "motion": opposite}).is_unseen
    assert {"bounce", "orbit"} < kept


def test_a_reversed_clip_has_the_caption_of_the_opposite_motion(clips: Path) -> None:
    """Forward and reversed data of one seed differ in motion only, and exactly where time runs backwards."""
    count = 0
    forward = LatentClips(clips, 256, seed=1, num_frames=16, caption_dropout=0.0, reverse=0.0)
    backward = LatentClips(clips, 256, seed=1, num_frames=16, caption_dropout=0.0, reverse=1.0)
    a, b = forward.batch(0), backward.batch(0)
    for index, (before, after) in enumerate(zip(a["attributes"], b["attributes"], strict=True)):
        assert world.parse_caption(a["captions"][index]) == before
        assert world.parse_caption(b["captions"][index]) == after
        if torch.equal(a["latents"][index], b["latents"][index]):
            assert before == after
            continue
        count += 1
        assert torch.equal(a["latents"][index].flip(1), b["latents"][index])
        assert after.motion == world.REVERSED_MOTION[before.motion]
        assert (after.shape, after.color, after.background) == (before.shape, before.color, before.background)
    assert 100 < count < 256


def test_reversal_is_what_the_renderer_would_draw() -> None:
    """Played backwards, a clip moves as its opposite: the shape's centre travels the other way."""
    for motion, opposite in world.REVERSED_MOTION.items():
        tracks = []
        for name in (motion, opposite):
            item = world.Attributes(shape="circle", color="red", motion=name, background="black")
            clip = world.render_clips([item], np.random.default_rng(0))[0].float()
            mask = (clip[..., 0] > 120).float()
            grid = torch.arange(64.0)
            area = mask.sum((1, 2))
            x, y = (mask.sum(1) @ grid) / area, (mask.sum(2) @ grid) / area
            tracks.append(torch.stack([x, y, area.sqrt()], 1))
        reversed_change = tracks[0][0] - tracks[0][-1]
        change = tracks[1][-1] - tracks[1][0]
        axis = int(reversed_change.abs().argmax())
        assert reversed_change[axis] * change[axis] > 9.0, motion


@pytest.mark.parametrize("num_frames", [1, 2, 4, 8, 16])
def test_fewer_frames_span_the_whole_clip_at_a_lower_rate(clips: Path, num_frames: int) -> None:
    batch = LatentClips(clips, 400, seed=0, num_frames=num_frames, reverse=0.0).batch(0)
    stride = world.NUM_FRAMES // num_frames
    assert batch["latents"].shape == (400, 2, num_frames, 1, 1)
    assert batch["latents"].dtype == torch.float32
    assert batch["fps"] == world.FPS / stride
    frames = batch["latents"][:, 0, :, 0, 0]
    assert bool((frames[:, 1:] - frames[:, :-1] == stride).all())
    assert set(frames[:, 0].tolist()) == set(range(stride))


def test_share_of_empty_captions(clips: Path) -> None:
    captions = LatentClips(clips, 2000, seed=0, num_frames=1, caption_dropout=0.1).batch(0)["captions"]
    assert 140 < captions.count("") < 260
    assert "" not in LatentClips(clips, 500, seed=0, num_frames=1, caption_dropout=0.0).batch(0)["captions"]


def test_encoded_clips_are_seen_scaled_and_shaped(parts: Path) -> None:
    tensors = load_file(parts / "latents.safetensors")
    assert tensors["latents"].shape == (24, 16, 2, 8, 8)
    assert tensors["latents"].dtype == torch.float16
    names = {a.indices: a for a in world.all_attributes()}
    assert not any(names[tuple(row)].is_unseen for row in tensors["attributes"].tolist())
    assert abs(float(tensors["latents"].float().mean())) < 0.3
    assert 0.7 < float(tensors["latents"].float().std()) < 1.4
    assert list(parts.glob("*.part*")) + list(parts.glob(".*")) == []


def test_clips_encoded_together_are_those_encoded_alone(parts: Path) -> None:
    vae = AutoencoderKL.from_pretrained(parts / "vae/model", use_safetensors=True).eval()
    rng = np.random.default_rng(5)
    clips = world.render_clips(
        world.random_attributes(3, rng), rng
    )  # 48 frames: more than are encoded at once
    alone = torch.cat([encode_frames(vae, clip[None]) for clip in clips])
    assert not torch.equal(alone[0], alone[1])
    torch.testing.assert_close(encode_frames(vae, clips), alone, rtol=0, atol=2e-3)


def test_wrong_settings_and_files_are_refused(clips: Path, tmp_path: Path) -> None:
    for num_frames in (0, -1, 3):
        with pytest.raises(ValueError, match=f"num_frames: got {num_frames}, expected a divisor of 16"):
            LatentClips(clips, 4, seed=0, num_frames=num_frames)
    with pytest.raises(FileNotFoundError, match=r"python train/nano\.py latents"):
        LatentClips(tmp_path / "none.safetensors", 4, seed=0, num_frames=16)
    save_file({"latents": torch.zeros(2, 5, 1, 1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold encoded clips of 16 frames"):
        LatentClips(tmp_path / "other.safetensors", 4, seed=0, num_frames=16)
