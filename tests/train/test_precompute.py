"""Videos in, checked and bucketed latents out; killed and resumed; trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hummingbird import HummingbirdPipeline
from hummingbird.nano import world
from hummingbird.video_io import VideoClip, write_clip
from tests.train.conftest import train
from train import precompute as module
from train.buckets import Bucket, BucketedClips, audit
from train.precompute import PrecomputeConfig, choose_bucket, fit, main, precompute

SQUARE = Bucket(num_frames=8, fps=4.0, height=64, width=64)
WIDE = Bucket(num_frames=4, fps=4.0, height=32, width=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OpenVid-style table: five good videos, a wide one, and four rows that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    items = world.random_attributes(6, rng)
    clips = world.render_clips(items, rng).numpy()
    rows = []
    for index, (clip, item) in enumerate(zip(clips, items, strict=True)):
        frames = clip[:, 16:48] if index == 5 else clip
        write_clip(frames, folder / f"{index}.mp4", 8.0, crf=10)
        rows.append((f"{index}.mp4", item.prompt))
    write_clip(clips[0, :3], folder / "short.mp4", 8.0, crf=10)
    (folder / "broken.mp4").write_bytes(b"no video")
    rows += [("short.mp4", "short"), ("broken.mp4", "broken"), ("../secret.mp4", "x"), ("none.mp4", "gone")]
    with (folder / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption"), *rows])
    return folder / "videos.csv"


def settings(parts: Path, source: Path, output: Path) -> PrecomputeConfig:
    return PrecomputeConfig(
        source=str(source),
        output=str(output),
        model=str(parts / "teacher/model"),
        buckets=(SQUARE, WIDE),
        clips_per_file=2,
    )


@pytest.fixture(scope="module")
def encoded(parts: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precompute(settings(parts, source, tmp_path_factory.mktemp("encoded") / "latents"))


def test_every_row_is_encoded_or_left_out_with_a_reason(encoded: Path) -> None:
    assert audit(encoded) == [
        "4x32x64-4fps: 1 clips",
        "8x64x64-4fps: 5 clips",
        f"left out: 4 (reasons in {encoded}/skipped.jsonl)",
    ]
    skipped = [json.loads(line) for line in (encoded / "skipped.jsonl").read_text().splitlines()]
    reasons = {line["clip_id"]: line["reason"] for line in skipped}
    assert reasons["8:short.mp4"] == "too short or too slow for every bucket"
    assert reasons["9:broken.mp4"].startswith("unreadable: ")
    assert reasons["10:../secret.mp4"] == "path: lies outside of the folder"
    assert reasons["11:none.mp4"].startswith("unreadable: ")


def test_latents_and_embeddings_are_those_of_the_model(encoded: Path, parts: Path, source: Path) -> None:
    from hummingbird.video_io import read_video

    tensors = load_file(encoded / "8x64x64-4fps/000000.safetensors")
    assert tensors["latents"].shape == (2, 8, 2, 8, 8)
    pipe = HummingbirdPipeline.from_pretrained(parts / "teacher/model")
    frames = read_video(source.parent / "1.mp4").frames[::2]  # 8 frames a second become 4
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mode()
        config = pipe.vae.config
        expected = (expected - config.shift_factor) * config.scaling_factor
        caption = list(csv.DictReader(source.open()))[1]["caption"]
        embeds = pipe.encode_prompt([caption], do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(tensors["latents"][1].float(), expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(tensors["prompt_embeds"][1].float(), embeds[0], atol=2e-3, rtol=1e-3)


def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    encoded: Path, parts: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(parts, source, tmp_path / "latents")
    calls: list[str] = []
    original = module._open

    def stop(folder: Path, name: str) -> tuple[VideoClip | None, str]:
        calls.append(name)
        if name == "3.mp4" and calls.count(name) == 1:
            raise KeyboardInterrupt
        return original(folder, name)

    monkeypatch.setattr(module, "_open", stop)
    with pytest.raises(KeyboardInterrupt):
        precompute(config)
    with pytest.raises(FileNotFoundError, match="holds no finished encoding"):
        BucketedClips(tmp_path / "latents", 2, seed=0)
    precompute(config)
    assert calls.count("0.mp4") == calls.count("1.mp4") == 1  # were on disk
    sums = [json.loads((folder / "checksums.json").read_text()) for folder in (encoded, tmp_path / "latents")]
    assert sums[0] == sums[1]
    count = len(calls)
    precompute(config)
    assert len(calls) == count  # nothing is left to do


def test_batches_are_functions_of_their_number_and_of_one_bucket(encoded: Path) -> None:
    data = BucketedClips(encoded, 3, seed=0, caption_dropout=0.3)
    batches = [data.batch(index) for index in range(40)]
    shapes = {tuple(batch["latents"].shape) for batch in batches}
    assert shapes == {(3, 2, 8, 8, 8), (3, 2, 4, 4, 8)}
    again = BucketedClips(encoded, 3, seed=0, caption_dropout=0.3).batch(17)
    assert torch.equal(again["latents"], batches[17]["latents"])
    assert again["ids"] == batches[17]["ids"]
    assert {batch["fps"] for batch in batches} == {4.0}
    empty = [
        bool(torch.equal(row, data.empty.float())) for batch in batches for row in batch["prompt_embeds"]
    ]
    assert 0.15 < np.mean(empty) < 0.45


def test_a_damaged_file_is_found_before_the_first_step(
    parts: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = precompute(settings(parts, source, tmp_path / "latents"))
    file = folder / "8x64x64-4fps/000001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="missing or not what was written"):
        BucketedClips(folder, 2, seed=0)


def test_stage_1_trains_on_buckets_and_needs_no_text_encoder(
    encoded: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--latents", str(encoded), "--loop.max-steps", "2", "--num-sample-prompts", "0"]
    flags += ["--loop.guard.action", "off"]
    train("stage1", parts, tmp_path, *flags)
    assert "data: 8x64x64-4fps: 5 clips" in capsys.readouterr().err
    assert (tmp_path / "model/unet").is_dir()


def test_sizes_that_the_network_cannot_halve_are_found_first(encoded: Path) -> None:
    data = BucketedClips(encoded, 2, seed=0)
    data.check_sizes(4)
    with pytest.raises(ValueError, match="bucket 4x32x64-4fps has 4x8 latents, expected multiples of 8"):
        data.check_sizes(8)


def clip(frames: int, fps: float, height: int, width: int) -> VideoClip:
    return VideoClip(frames=np.zeros((frames, height, width, 3), np.uint8), fps=fps)


def test_buckets_are_chosen_by_length_rate_and_shape() -> None:
    long = Bucket(num_frames=16, fps=4.0, height=64, width=64)
    buckets = (SQUARE, WIDE, long)
    assert choose_bucket(clip(16, 8.0, 64, 64), buckets) == SQUARE  # two seconds
    assert choose_bucket(clip(32, 8.0, 64, 64), buckets) == long
    assert choose_bucket(clip(32, 8.0, 90, 160), buckets) == WIDE
    assert choose_bucket(clip(3, 8.0, 64, 64), buckets) is None
    assert choose_bucket(clip(16, 2.0, 64, 64), buckets) is None  # frames are not made up


def test_frames_are_covered_and_cut_around_the_centre() -> None:
    picture = np.zeros((8, 40, 100, 3), np.uint8)
    picture[:, :, 48:52] = 255
    fitted = fit(VideoClip(frames=picture, fps=4.0), Bucket(num_frames=4, fps=4.0, height=40, width=40))
    assert fitted.shape == (4, 40, 40, 3)
    columns = fitted[0, 0, :, 0]
    assert columns[18:22].min() == 255
    assert columns[:16].max() == 0


def test_wrong_sources_and_settings_are_one_line(
    parts: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"source: {source}\noutput: {tmp_path}/out\nmodel: {parts}/teacher/model\n")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    for flags, status, text in (
        (["--source", str(tmp_path / "none")], 1, "source: no "),
        (["--source", str(tmp_path / "odd.csv")], 1, "expected exactly one of path, video"),
    ):
        assert main([str(file), *flags]) == status
        assert text in capsys.readouterr().err
    assert main([str(file)]) == 0
    assert "16x64x64-8fps: 6 clips" in capsys.readouterr().out
    file.write_text(file.read_text() + "buckets:\n  - {num_frames: 8, fps: 8.0, height: 60, width: 64}\n")
    assert main([str(file), "--output", str(tmp_path / "other")]) == 2
    assert "divisible by 8" in capsys.readouterr().err
    file.write_text(file.read_text().replace("height: 60", "height: 64"))
    assert main([str(file)]) == 2
    assert "give another folder" in capsys.readouterr().err
