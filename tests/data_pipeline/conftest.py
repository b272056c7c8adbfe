"""Shared by the tests of the curation: real clips where they are, tiny videos, settings of tiny runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.pipeline import PipelineConfig
from hummingbird.config import load_config
from hummingbird.video_io import write_video

ROOT = Path(__file__).resolve().parents[2]
TINY_CONFIG = ROOT / "configs" / "debug" / "data_tiny.yaml"


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Folder of real videos beside the checkout."""
    folder = ROOT.parent / "shared" / "clips"
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"no real clips at {folder}")
    return folder


def pan(seed: int, num_frames: int = 20, speed: float = 1.0) -> np.ndarray:
    """A camera that pans over a random texture: ``(F, 64, 96, 3)`` uint8; speed in pixels per frame."""
    width, height = 96, 64
    generator = np.random.default_rng(seed)
    reach = int(num_frames * speed) + 1
    coarse = generator.uniform(30, 225, (16, (width + reach) // 4, 3)).astype(np.float32)
    texture = cv2.resize(coarse, (width + reach, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    starts = (np.arange(num_frames) * speed).astype(int)
    return np.stack([texture[:, start : start + width] for start in starts]).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pans that are kept, one still picture, one file that is no video, and captions."""
    folder = tmp_path_factory.mktemp("tiny_input")
    for seed in range(6):
        write_video(pan(seed, num_frames=18 + seed), folder / f"pan{seed}.mp4", fps=12)
        (folder / f"pan{seed}.txt").write_text(f"a pan over texture {seed}\n")
    write_video(np.repeat(pan(6)[:1], 20, axis=0), folder / "sub" / "still.mp4", fps=12)
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return folder


@pytest.fixture
def tiny_config(tiny_input: Path, tmp_path: Path) -> Callable[..., PipelineConfig]:
    """Settings of a run on ``tiny_input``; further flags may be given."""

    def make(*flags: str, output: Path | None = None) -> PipelineConfig:
        places = ["--input", str(tiny_input), "--output", str(output or tmp_path / "out")]
        return load_config(PipelineConfig, TINY_CONFIG, [*places, *flags])

    return make


def results(output: Path) -> dict[str, str]:
    """sha256 of everything that a finished run promises to be the same: name -> hash."""
    files = [output / "manifest.parquet", output / "thresholds.json", *sorted((output / "shards").glob("*"))]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
