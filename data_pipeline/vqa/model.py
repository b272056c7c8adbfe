"""The network of ``nano-vqa``: linear detectors of damage on named features."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_pipeline.vqa.features import VqaError
from hummingbird.video_io import atomic_path

__all__ = ["CLEAN_LOGIT", "WEIGHTS", "NanoVqa", "load_nano_vqa", "save_nano_vqa"]

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the embedded model."""

CLEAN_LOGIT = 3.2
"""Logit of the score of a clip without any damage."""

FORMAT = 1


class NanoVqa(torch.nn.Module):
    """Scores clips by their features.

    One linear detector per kind of damage estimates how much of it a clip has, none below zero; all of it is
    taken off the logit of a clean clip. So a picture cannot make up for its noise by being sharp. Deeper
    networks fitted the training sources better and unseen ones worse.

    Args:
        feature_names: what it expects; features are given by name, never by position.
        damage_names: the kinds of damage that it was trained on.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, feature_names: Sequence[str], damage_names: Sequence[str]) -> None:
        super().__init__()
        self.feature_names, self.damage_names = tuple(feature_names), tuple(damage_names)
        num_features, num_damages = len(self.feature_names), len(self.damage_names)
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.weight = torch.nn.Parameter(torch.zeros(num_features, num_damages))
        self.bias = torch.nn.Parameter(torch.full((num_damages,), -2.0))

    def normalised(self, features: torch.Tensor) -> torch.Tensor:
        """Features ``(..., N)`` with zero mean and unit spread, held to 4 spreads."""
        return ((features - self.feature_mean) / self.feature_std).clamp(-4, 4)

    def damage(self, normalised: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` amounts of each kind of damage, 0 and above, from ``(..., N)`` normalised features."""
        return torch.nn.functional.softplus(normalised @ self.weight + self.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(..., N)`` float32 features in the order of ``feature_names`` to ``(...)`` scores in (0, 1)."""
        return torch.sigmoid(CLEAN_LOGIT - self.damage(self.normalised(features)).sum(dim=-1))

    @torch.no_grad()
    def score(self, features: Mapping[str, float]) -> float:
        """Score of one clip in (0, 1), higher is better.

        Raises:
            VqaError: a feature is missing, unknown or not finite.
        """
        if set(features) != set(self.feature_names):
            odd = sorted(set(features) ^ set(self.feature_names))
            raise VqaError(
                f"features: {', '.join(odd[:5])} on one side only; retrain the model for these features"
            )
        bad = [name for name in self.feature_names if not math.isfinite(features[name])]
        if bad:
            raise VqaError(f"features: {', '.join(bad[:5])} not finite; the clip cannot be scored")
        row = torch.tensor([[features[name] for name in self.feature_names]], dtype=torch.float32)
        return float(self(row)[0])


def save_nano_vqa(model: NanoVqa, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``."""
    config = {
        "format": FORMAT,
        "model": "nano-vqa",
        "damage_names": list(model.damage_names),
        "feature_names": list(model.feature_names),
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as partial:
        save_file(tensors, partial)
    with atomic_path(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_nano_vqa(folder: Path = WEIGHTS) -> NanoVqa:
    """Read what ``save_nano_vqa`` wrote.

    Raises:
        VqaError: a file is missing or does not fit.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
        if config["format"] != FORMAT:
            raise VqaError(f"{folder}: got format {config['format']}, expected {FORMAT}; retrain it")
        model = NanoVqa(config["feature_names"], config["damage_names"])
        model.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise VqaError(
            f"{folder}: not a nano-vqa model ({reason}); expected config.json and model.safetensors"
        ) from error
    return model.eval()
