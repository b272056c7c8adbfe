"""The debug recipes, trained once for all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hummingbird.config import load_config
from train import nano
from train.decoder import DecoderConfig, train_decoder
from train.loop import LoopConfig
from train.reward_task import NanoRewardConfig, train_reward
from train.stage1 import Stage1Config, train_stage1
from train.stage2 import Stage2Config, train_stage2
from train.teacher import TeacherConfig, train_teacher

DEBUG = Path(__file__).resolve().parents[2] / "configs" / "debug"
STAGES = ("teacher_spatial", "teacher_motion", "teacher")
RECIPES: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "vae": (nano.AutoencoderConfig, nano.train_autoencoder),
    "text": (nano.TextTowerConfig, nano.train_text_tower),
    "decoder": (DecoderConfig, train_decoder),
    "reward_image": (NanoRewardConfig, train_reward),
    "reward_video": (NanoRewardConfig, train_reward),
    **{stage: (TeacherConfig, train_teacher) for stage in STAGES},
    "stage1": (Stage1Config, train_stage1),
    "stage2": (Stage2Config, train_stage2),
    "stage2_eight": (Stage2Config, train_stage2),
}


def config_file(name: str) -> str:
    return f"{name}.yaml" if name in ("stage1", "stage2") else f"nano_{name}.yaml"


def recipe(name: str, parts: Path, output: Path, *overrides: str) -> Any:
    """A debug recipe's settings: what it needs is read from ``parts``, what it makes goes to ``output``."""
    flags = ["--loop.output", str(output)]
    if name in STAGES:
        flags += ["--vae", str(parts / "vae/model"), "--text", str(parts / "text/model")]
        flags += ["--latents", str(parts / "latents.safetensors")]
    if name == "decoder":
        flags += ["--vae", str(parts / "vae/model"), "--latents", str(parts / "latents.safetensors")]
    if name in STAGES[1:]:
        flags += ["--loop.init-from", str(parts / STAGES[STAGES.index(name) - 1] / "model")]
    if name == "stage1":  # four clips at once instead of one after the other
        flags += ["--teacher", str(parts / "teacher/model"), "--loop.batch-size", "4"]
        flags += ["--latents", str(parts / "latents.safetensors")]
    if name in ("stage2", "stage2_eight"):
        student = parts / ("stage1" if name == "stage2" else "stage2") / "model"
        flags += ["--teacher", str(parts / "teacher/model"), "--student.model", str(student)]
        flags += ["--rewards.0.checkpoint", str(parts / "reward_image/model")]
        flags += ["--rewards.1.checkpoint", str(parts / "reward_video/model")]
        flags += ["--latents", str(parts / "latents.safetensors"), "--loop.batch-size", "4"]
        config = load_config(Stage2Config, DEBUG / config_file(name), [*flags, *overrides])
        return replace(config, layout=())  # one batch a step, which takes all losses
    return load_config(RECIPES[name][0], DEBUG / config_file(name), [*flags, *overrides])


def train(name: str, parts: Path, output: Path, *overrides: str) -> LoopConfig:
    config = recipe(name, parts, output, *overrides)
    RECIPES[name][1](config)
    loop: LoopConfig = config.loop
    return loop


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts of a tiny nano, each trained without a break."""
    folder = tmp_path_factory.mktemp("nano")
    for name in ("vae", "text", "reward_image", "reward_video"):
        train(name, folder, folder / name)
    flags = ["--vae", str(folder / "vae/model"), "--output", str(folder / "latents.safetensors")]
    nano.write_latents(load_config(nano.LatentsConfig, DEBUG / "nano_latents.yaml", flags))
    for name in ("decoder", *STAGES, "stage1", "stage2", "stage2_eight"):
        train(name, folder, folder / name)
    return folder
