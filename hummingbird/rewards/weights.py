"""Reward checkpoints to networks: safely read, every key accounted for, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hummingbird.checkpoints.key_map import KeyReport, Recipe, Source, fill, map_keys, recipe_of
from hummingbird.checkpoints.tensor_file import CheckpointError, open_tensor_file

_FILES = ("model.safetensors", "pytorch_model.bin")


def open_weights(path: Path | str) -> dict[str, Recipe]:
    """Open a checkpoint without running anything that it holds.

    Nesting under ``state_dict``, ``model`` or ``module`` (DeepSpeed) is unpacked, and a ``module.`` before
    every key (DataParallel) taken off.

    Args:
        path: A file, or a folder with one of the files that transformers writes.

    Raises:
        FileNotFoundError: Where there is no such file.
        CheckpointError: Where the file is broken or refused.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"checkpoint: no {' or '.join(_FILES)} in {path}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")
    opened = open_tensor_file(path)
    if opened.layout != "state_dict":
        raise CheckpointError(f"{path}: holds a {opened.layout}, expected a state dict (names and tensors)")
    recipes = {
        name: Recipe(shape=tensor.shape, dtype=tensor.dtype, load=tensor.load)
        for name, tensor in opened.tensors.items()
    }
    return strip_prefix(recipes, "module.")


def strip_prefix(recipes: Mapping[str, Recipe], prefix: str) -> dict[str, Recipe]:
    """Take ``prefix`` off where every key has it; the same keys otherwise."""
    if not all(key.startswith(prefix) for key in recipes):
        return dict(recipes)
    return {key.removeprefix(prefix): recipe for key, recipe in recipes.items()}


def as_recipes(state_dict: Mapping[str, Tensor | Recipe]) -> dict[str, Recipe]:
    """Tensors in memory or recipes, as recipes."""
    return {
        key: value if isinstance(value, Recipe) else recipe_of(value) for key, value in state_dict.items()
    }


def load_network(
    network: nn.Module,
    stored: Mapping[str, Recipe],
    *,
    name: str,
    unused: str = "",
    allow_unknown: bool = False,
    dtype: torch.dtype = torch.float32,
) -> KeyReport:
    """Fill a network whose parameters are on the meta device.

    Args:
        network: Receives the weights.
        stored: The checkpoint's tensors.
        name: Of the reward, for messages.
        unused: Regular expression of the keys (whole) that are known to have no effect; they may be absent.
        allow_unknown: Whether the checkpoint may hold more; only for families whose files are known to.
        dtype: Of the weights.

    Returns:
        What was left out; ``unexpected`` is empty unless allowed.

    Raises:
        CheckpointError: Where a key is missing, over or of another shape; the message names them.
    """
    sources = {key: Source(key) for key in network.state_dict()}
    ignored = {key for key in stored if unused and re.fullmatch(unused, key)}
    recipes, report = map_keys(network, sources, stored, ignored=ignored)
    reshaped = tuple(entry.replace(" -> ", ", expected ") for entry in report.reshaped)
    problems = KeyReport(
        missing=report.missing,
        unexpected=() if allow_unknown else report.unexpected,
        mismatched=(*report.mismatched, *reshaped),
    ).problems
    if problems:
        raise CheckpointError(
            f"{name}: the checkpoint does not fit ({problems}); check that it is the file of this reward and "
            "that its configuration is the one given"
        )
    fill(network, recipes, dtype)
    return report
