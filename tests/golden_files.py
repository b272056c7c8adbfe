"""Reads reference values: the copies in tests/goldens first, then the full set in the sibling folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parent
FOLDERS = (TESTS / "goldens" / "unet", TESTS.parent.parent / "shared" / "reference" / "unet" / "visible")


def golden_path(name: str) -> Path:
    """Return the path of a file such as ``vae_tiny/inputs.safetensors``; skip the test without it."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"reference file {name} is neither in tests/goldens nor in ../shared")


def golden_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(golden_path(f"{name}.safetensors"))


def golden_config(name: str) -> dict[str, Any]:
    return json.loads(golden_path(f"{name}/config.json").read_text())


def max_abs_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.double() - right.double()).abs().max().item()
