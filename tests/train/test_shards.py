"""Curated shards in, latents and a training run out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file

from data_pipeline.stages.write import Sample, write_shard
from hummingbird import HummingbirdPipeline
from hummingbird.config import load_config
from hummingbird.manifest import ClipRecord, write_manifest
from hummingbird.nano import world
from hummingbird.video_io import write_clip
from tests.train.conftest import DEBUG, recipe
from train import nano
from train.buckets import BucketedClips, audit
from train.dataset import CaptionedLatents
from train.precompute import PrecomputeConfig, precompute
from train.shards import encode_shards, read_shards
from train.teacher import train_teacher

NUM_CLIPS = 5


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of rendered clips, the last clip too short to train on, and one row that was dropped."""
    folder = tmp_path_factory.mktemp("curated")
    rng = np.random.default_rng(0)
    items = world.random_attributes(NUM_CLIPS, rng)
    clips = world.render_clips(items, rng).numpy()
    records, samples = (
        [ClipRecord(clip_id="x", source="x.mp4", status="dropped", reason="motion: static")],
        [],
    )
    for index, (clip, item) in enumerate(zip(clips, items, strict=True)):
        path = folder / "work" / f"c{index}.mp4"
        write_clip(clip[:8] if index == NUM_CLIPS - 1 else clip, path, 8.0, crf=10)
        samples.append(Sample(clip_id=f"c{index}", video=path, caption=item.prompt, metadata={}))
        record = ClipRecord(
            clip_id=f"c{index}",
            source=f"{index}.mp4",
            status="kept",
            caption=item.prompt,
            shard=f"shards/{index // 3:06d}.tar",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        records.append(record)
    write_shard(samples[:3], folder / "shards/000000.tar")
    write_shard(samples[3:], folder / "shards/000001.tar")
    write_manifest(records, folder / "manifest.parquet")
    return folder


def test_every_kept_clip_comes_back_in_order(curated: Path) -> None:
    found = list(read_shards(curated))
    assert [clip.record.clip_id for clip in found] == [f"c{index}" for index in range(NUM_CLIPS)]
    assert [clip.video.frames.shape for clip in found[-2:]] == [(16, 64, 64, 3), (8, 64, 64, 3)]
    assert {clip.video.fps for clip in found} == {8.0}


def test_latents_are_those_of_the_frames_and_carry_captions(
    curated: Path, parts: Path, tmp_path: Path
) -> None:
    vae = AutoencoderKL.from_pretrained(parts / "vae/model").eval()
    path = tmp_path / "latents.safetensors"
    encode_shards(vae, curated, 16, path)
    with safe_open(path, "pt") as file:
        latents, metadata = file.get_tensor("latents"), file.metadata()
    clips = list(read_shards(curated))[:4]
    assert json.loads(metadata["captions"]) == [clip.record.caption for clip in clips]
    assert latents.shape[:2] == (4, 16)
    pixels = torch.from_numpy(clips[2].video.frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()
    expected = (expected - vae.config.shift_factor) * vae.config.scaling_factor
    assert (latents[2].float() - expected).abs().max() < 0.1  # encoded in bfloat16
    data = CaptionedLatents(path, 3, seed=0, num_frames=8, caption_dropout=0.0)
    batch = data.batch(7)
    assert batch["latents"].shape == (3, latents.shape[2], 8, *latents.shape[3:])
    assert batch["fps"] == 8.0
    again = data.batch(7)
    assert torch.equal(batch["latents"], again["latents"])
    assert batch["captions"] == again["captions"]
    rows = [json.loads(metadata["captions"]).index(caption) for caption in batch["captions"]]
    for row, clip in zip(rows, batch["latents"], strict=True):
        windows = [latents[row, start : start + 8].float().transpose(0, 1) for start in range(9)]
        assert any(torch.equal(clip, window) for window in windows)
    empty = CaptionedLatents(path, 64, seed=0, num_frames=16, caption_dropout=1.0).batch(0)
    assert set(empty["captions"]) == {""}


def test_the_teacher_trains_on_curated_shards(curated: Path, parts: Path, tmp_path: Path) -> None:
    flags = ["--vae", str(parts / "vae/model"), "--output", str(tmp_path / "shards.safetensors")]
    config = load_config(nano.LatentsConfig, DEBUG / "nano_latents.yaml", [*flags, "--shards", str(curated)])
    nano.write_latents(config)
    settings = recipe("teacher", parts, tmp_path / "run", "--latents", str(tmp_path / "shards.safetensors"))
    train_teacher(settings)
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in metrics if "loss" in row)
    assert (tmp_path / "run/model/model_index.json").is_file()


def test_shards_are_encoded_once_and_become_batches(curated: Path, parts: Path, tmp_path: Path) -> None:
    """Videos and captions, each clip once or left out with its reason."""
    output = tmp_path / "latents"
    config = PrecomputeConfig(
        source=str(curated), output=str(output), model=str(parts / "teacher/model"), clips_per_file=3
    )
    precompute(config)
    assert audit(output) == [
        "16x64x64-8fps: 4 clips",
        f"left out: 1 (reasons in {output}/skipped.jsonl)",
    ]
    (skipped,) = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert skipped["clip_id"] == "c4"
    tensors = load_file(output / "16x64x64-8fps/000000.safetensors")
    pipe = HummingbirdPipeline.from_pretrained(parts / "teacher/model")
    clip = list(read_shards(curated))[1]
    embeds = pipe.encode_prompt([clip.record.caption], do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(tensors["prompt_embeds"][1].float(), embeds[0], atol=2e-3, rtol=1e-3)
    batch = BucketedClips(output, 2, 0, 0.0).batch(3)
    assert batch["latents"].shape == (2, tensors["latents"].shape[2], 16, 8, 8)


def test_what_does_not_fit_is_refused(curated: Path, parts: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(parts / "vae/model").eval()
    with pytest.raises(ValueError, match="no clip of 17 frames or more; lower num_frames"):
        encode_shards(vae, curated, 17, tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"manifest\.parquet"):
        list(read_shards(tmp_path))
    records = [
        ClipRecord(clip_id="c0", source="0.mp4", status="kept", shard="shards/000000.tar", sha256="0" * 64)
    ]
    other = tmp_path / "other"
    (other / "shards").mkdir(parents=True)
    (other / "shards/000000.tar").write_bytes((curated / "shards/000000.tar").read_bytes())
    write_manifest(records, other / "manifest.parquet")
    with pytest.raises(ValueError, match=r"c0\.mp4: sha256 differs"):
        list(read_shards(other))
    write_manifest([dataclasses.replace(records[0], clip_id="c9")], other / "manifest.parquet")
    with pytest.raises(ValueError, match=r"1 clips of the manifest are missing, e\.g\. c9\.mp4"):
        list(read_shards(other))
    write_manifest([dataclasses.replace(records[0], shard="../x.tar")], other / "manifest.parquet")
    with pytest.raises(ValueError, match="lies outside of the folder"):
        list(read_shards(other))


def test_training_data_needs_a_source() -> None:
    with pytest.raises(ValueError, match="num_clips: expected a number"):
        nano.LatentsConfig(vae="v", output="o")
