"""The quality model: what its features measure, its files, its training, what the embedded weights know."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_pipeline.vqa.degrade import DEGRADATIONS, Shot, degrade
from data_pipeline.vqa.features import VqaError, clip_features
from data_pipeline.vqa.model import WEIGHTS, NanoVqa, load_nano_vqa, save_nano_vqa
from data_pipeline.vqa.scenes import procedural_shot
from data_pipeline.vqa.train import TrainConfig, main, shot_features, spearman
from hummingbird.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TWIN = ROOT / "configs/debug/vqa_nano.yaml"


@pytest.fixture(scope="module")
def scene() -> Shot:
    return procedural_shot(30, seed=2)


def with_frames(shot: Shot, frames: np.ndarray) -> Shot:
    return Shot(frames=np.ascontiguousarray(frames), times_s=shot.times_s[: len(frames)])


def test_features_of_odd_clips_are_finite() -> None:
    names = None
    for frames in (
        np.zeros((3, 48, 64, 3), np.uint8),
        np.full((2, 700, 1300, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (1, 33, 57, 3), np.uint8),
    ):
        features = shot_features(Shot(frames=frames, times_s=np.arange(len(frames)) / 25))
        assert np.isfinite(list(features.values())).all()
        assert names in (None, list(features))
        names = list(features)


def test_frames_too_small_to_measure_are_refused() -> None:
    frames = np.zeros((2, 20, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="64x20 pixels, expected at least 32 either way"):
        clip_features(frames, frames, np.arange(2.0))


def test_features_answer_to_what_they_are_named_after(scene: Shot) -> None:
    clean = shot_features(scene)
    blurred = shot_features(
        with_frames(scene, np.stack([cv2.GaussianBlur(f, (0, 0), 2) for f in scene.frames]))
    )
    assert blurred["scale0_reblur"] < clean["scale0_reblur"] - 0.1
    assert blurred["spectrum_steepest"] < clean["spectrum_steepest"]
    noise = np.random.default_rng(0).normal(0, 10, scene.frames.shape)
    noisy = shot_features(with_frames(scene, np.clip(scene.frames + noise, 0, 255).astype(np.uint8)))
    assert noisy["noise_smooth"] > clean["noise_smooth"] + 0.5
    grid = scene.frames.copy()
    grid[:, 5::8] = np.clip(grid[:, 5::8].astype(int) + 12, 0, 255)  # lines 8 apart, off the usual grid
    assert shot_features(with_frames(scene, grid))["period8_order1"] > clean["period8_order1"] + 1


@pytest.mark.parametrize("num_repeated", [3, 9])
def test_repeated_frames_are_counted(num_repeated: int, scene: Shot) -> None:
    moving = np.stack([np.roll(scene.frames[0], 2 * index, axis=1) for index in range(31)])
    order = np.arange(31)
    order[2 : 2 + 2 * num_repeated : 2] -= 1
    repeated = Shot(frames=moving[order], times_s=np.arange(31) / 25)
    assert shot_features(repeated)["repeated_exact"] == pytest.approx(num_repeated / 30)


@pytest.mark.parametrize("pixels", [1, 3])
def test_shake_is_measured_and_a_pan_is_not_shake(pixels: int, scene: Shot) -> None:
    still = scene.frames[0]
    pan = np.stack([np.roll(still, index * pixels, axis=1) for index in range(24)])
    moves = np.random.default_rng(0).choice([-pixels, pixels], 24)
    shaken = np.stack([np.roll(still, move, axis=1) for move in moves])
    times = np.arange(24) / 25
    of_pan = shot_features(Shot(frames=pan, times_s=times))
    of_shake = shot_features(Shot(frames=shaken, times_s=times))
    hundredths = 100 * pixels / min(still.shape[:2])
    assert np.exp(of_pan["shift"]) - 0.05 == pytest.approx(hundredths, rel=0.15)
    assert of_shake["shift_jitter_mean"] > of_pan["shift_jitter_mean"] + 1


def test_a_model_is_the_same_after_saving(tmp_path: Path) -> None:
    model = NanoVqa(("a", "b"), ("blur", "noise")).eval()
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(1))
    model.feature_mean.copy_(torch.tensor([1.0, 2.0]))
    save_nano_vqa(model, tmp_path)
    loaded = load_nano_vqa(tmp_path)
    assert loaded.score({"b": 0.5, "a": -1.0}) == model.score({"a": -1.0, "b": 0.5})
    assert loaded.score({"a": 0.5, "b": -1.0}) != model.score({"a": -1.0, "b": 0.5})


def test_scores_need_the_right_finite_features() -> None:
    model = NanoVqa(("a", "b"), ("blur",))
    with pytest.raises(VqaError, match="features: b, c on one side only"):
        model.score({"a": 0.0, "c": 0.0})
    with pytest.raises(VqaError, match="features: b not finite"):
        model.score({"a": 0.0, "b": float("nan")})


def test_unreadable_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(VqaError, match="not a nano-vqa model"):
        load_nano_vqa(tmp_path)
    save_nano_vqa(NanoVqa(("a",), ("blur",)), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(VqaError, match="not a nano-vqa model"):
        load_nano_vqa(tmp_path)


def test_spearman_is_scipys() -> None:
    scores = np.array(
        [[0.9, 0.8, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.2, 0.1], [1.0, 1.0, 1.0, 1.0]]
    )
    # The third by hand: ranks 3.5, 3.5, 2, 1 against 4, 3, 2, 1.
    np.testing.assert_allclose(spearman(scores), [1.0, -1.0, 4.5 / np.sqrt(4.5 * 5.0), 0.0])


def train(tmp_path: Path, *words: str) -> Path:
    """Train the twin; the folder of the weights."""
    folders = ["--output", str(tmp_path / "run"), "--weights", str(tmp_path / "model")]
    assert main([str(TWIN), *folders, *words]) == 0
    return tmp_path / "model"


def test_training_writes_a_model_and_reuses_its_features(tmp_path: Path) -> None:
    words = ("--num-procedural", "1")
    model = load_nano_vqa(train(tmp_path, *words))
    assert model.feature_names == load_nano_vqa().feature_names
    assert model.damage_names == tuple(DEGRADATIONS)
    assert model.weight.abs().sum() > 0
    features = tmp_path / "run/features.npz"
    made, first = features.stat().st_mtime_ns, (tmp_path / "model/model.safetensors").read_bytes()
    train(tmp_path, *words)
    assert features.stat().st_mtime_ns == made
    assert (tmp_path / "model/model.safetensors").read_bytes() == first
    assert set(json.loads((tmp_path / "run/report.json").read_text())["training"]) == {*DEGRADATIONS, "all"}


@pytest.mark.slow
def test_training_repeats_to_the_bit_with_any_number_of_workers(tmp_path: Path) -> None:
    folders = [train(tmp_path / number, "--workers", number) for number in ("1", "2")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_mistaken_settings_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TWIN), "--output", str(tmp_path), "--held-out", "nobody"]) == 2
    assert main([str(tmp_path / "none.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "held_out: nobody unknown" in lines[0]
    assert "none.yaml" in lines[1]


def test_the_published_recipe_holds_out_sources_and_loads() -> None:
    cfg = load_config(TrainConfig, ROOT / "configs/data/nano_vqa.yaml")
    assert len(cfg.held_out) == 4
    assert set(cfg.held_out) < {source.group for source in cfg.sources}


def test_the_embedded_model_is_small_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 5_000_000
    assert "configs/data/nano_vqa.yaml" in (WEIGHTS / "README.md").read_text()


def test_the_embedded_model_ranks_scenes_that_it_never_saw() -> None:
    model = load_nano_vqa()
    correlations, right = [], []
    for seed in (1001, 1002, 1003):  # training draws its seeds from 2^31
        scene = procedural_shot(24, seed)
        short = with_frames(scene, scene.frames[:8])
        for name in DEGRADATIONS:
            shot = scene if name in ("frame_drops", "shake") else short
            damaged = [degrade(name, shot, strength, seed) for strength in (0.25, 0.5, 0.75, 1.0)]
            scores = [model.score(shot_features(each)) for each in (shot, *damaged)]
            correlations.append(float(spearman(np.array([scores]))[0]))
            right += [scores[0] > scores[-1], scores[0] > scores[-2]]
    assert np.mean(correlations) >= 0.85
    assert np.mean(right) >= 0.95
