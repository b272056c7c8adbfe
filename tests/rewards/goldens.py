"""Recorded rewards: the copies in tests/goldens first, then the full set in the sibling folder."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from hummingbird.rewards import HPSv2Reward, InternVideo2Reward, PickScoreReward, ViCLIPReward

TESTS = Path(__file__).parents[1]
FOLDERS = (
    TESTS / "goldens" / "rewards",
    TESTS.parents[1] / "shared" / "reference" / "rewards" / "visible",
)
CLASSES: dict[str, Any] = {
    "hpsv2": HPSv2Reward,
    "pickscore": PickScoreReward,
    "viclip": ViCLIPReward,
    "internvideo2": InternVideo2Reward,
}


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Config, state dict, inputs and outputs; skips the test where there are none."""
    for folder in FOLDERS:
        if (folder / name / "config.json").is_file():
            config = json.loads((folder / name / "config.json").read_text())
            parts = [
                load_file(folder / name / f"{part}.safetensors")
                for part in ("state_dict", "inputs", "outputs")
            ]
            return config, parts[0], parts[1], parts[2]
    pytest.skip(f"reference folder {name} is neither in tests/goldens nor in ../shared")


@cache
def golden_reward(name: str) -> Any:
    config, state_dict, _, _ = golden(name)
    return CLASSES[name].from_config(config, state_dict)


def key_shapes(name: str) -> dict[str, list[int]]:
    """Names and shapes of the public checkpoint; rows are [name with {}, shape, first, last + 1]."""
    shapes: dict[str, list[int]] = {}
    for pattern, shape, *bounds in json.loads((TESTS / "goldens/rewards/keys.json").read_text())[name]:
        for index in range(*bounds) if bounds else (None,):
            shapes[pattern.replace("{}", str(index))] = shape
    return shapes
