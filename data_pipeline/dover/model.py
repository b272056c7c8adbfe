"""DOVER: two backbones, two heads, and how their scores become one.

Wu et al., Exploring Video Quality Assessment on User Generated Contents from Aesthetic and Technical
Perspectives, ICCV 2023, arXiv 2211.04894. Published checkpoints are for non-commercial use only (S-Lab
License 1.0); they are the user's to get, and none is part of this project.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_pipeline.dover.convnext import ConvNeXt3D
from data_pipeline.dover.sampling import normalise
from data_pipeline.dover.swin import SwinTransformer3D
from data_pipeline.judges.tensors import read_tensors

__all__ = [
    "CONFIGS",
    "LICENCE",
    "Dover",
    "DoverError",
    "DoverName",
    "DoverScores",
    "QualityHead",
    "fuse",
    "load_dover",
]

DoverName = Literal["dover", "dover-mobile"]

LICENCE = (
    "DOVER's published weights are for non-commercial use only (S-Lab License 1.0); "
    "so are scores made with them for a data set"
)

_FEMTO = {"dims": (48, 96, 192, 384), "depths": (2, 2, 6, 2), "variant": "v2+GRN"}
CONFIGS: dict[DoverName, dict[str, Any]] = {
    "dover": {
        "technical_backbone": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        "aesthetic_backbone": {"dims": (96, 192, 384, 768), "depths": (3, 3, 9, 3)},
        "head": {"in_channels": 768, "hidden_channels": 64},
    },
    "dover-mobile": {
        "technical_backbone": _FEMTO,
        "aesthetic_backbone": _FEMTO,
        "head": {"in_channels": 384, "hidden_channels": 32},
    },
}
"""Of the published checkpoints."""

_BRANCHES = ("technical", "aesthetic")
_MAX_BYTES = 2**30
_INDEX = ".relative_position_index"


class DoverError(ValueError):
    """A checkpoint that is no DOVER, or frames that have no score; the message is one line."""


class QualityHead(nn.Module):
    """A score at every place of a feature map ``(B, C, T, H, W)``."""

    def __init__(self, in_channels: int, hidden_channels: int = 64) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(in_channels, hidden_channels, 1)
        self.fc_last = nn.Conv3d(hidden_channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_last(F.gelu(self.fc_hid(x)))


def _backbone(config: Mapping[str, Any]) -> nn.Module:
    """The backbone that a configuration is of: ``embed_dim`` is Swin's, ``dims`` is ConvNeXt's."""
    return SwinTransformer3D(**config) if "embed_dim" in config else ConvNeXt3D(**config)


class Dover(nn.Module):
    """Both branches.

    Args:
        technical_backbone, aesthetic_backbone: arguments of ``SwinTransformer3D`` or ``ConvNeXt3D``.
        head: arguments of ``QualityHead``, for both.
    """

    def __init__(
        self,
        technical_backbone: Mapping[str, Any],
        aesthetic_backbone: Mapping[str, Any],
        head: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.technical_backbone = _backbone(technical_backbone)
        self.aesthetic_backbone = _backbone(aesthetic_backbone)
        self.technical_head = QualityHead(**head)
        self.aesthetic_head = QualityHead(**head)

    def forward(self, views: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Maps of scores.

        Args:
            views: ``technical`` and ``aesthetic``, each ``(num_clips, 3, T, H, W)`` uint8 RGB; either may
                be absent.

        Returns:
            By the same names, ``(num_clips, 1, T', H', W')`` float32.
        """
        maps = {}
        for name in _BRANCHES:
            if name in views:
                backbone, head = getattr(self, f"{name}_backbone"), getattr(self, f"{name}_head")
                maps[name] = head(backbone(normalise(views[name])))
        return maps

    @torch.inference_mode()
    def score(self, views: Mapping[str, torch.Tensor]) -> DoverScores:
        """Scores of one clip, from both views.

        Raises:
            DoverError: a score is not a finite number.
        """
        raw = {name: float(found.mean()) for name, found in self(views).items()}
        if not all(np.isfinite(value) for value in raw.values()):
            raise DoverError(f"DOVER: scores are {raw}, expected finite numbers; look at the checkpoint")
        return DoverScores(**{name: float(value) for name, value in fuse(**raw).items()})


@dataclass(frozen=True, kw_only=True)
class DoverScores:
    """Scores in (0, 1), higher is better."""

    technical: float
    aesthetic: float
    overall: float


def fuse(*, technical: Any, aesthetic: Any) -> dict[str, np.ndarray]:
    """Fused scores from the raw scores of the branches.

    By name only: of the two published scripts one hands over the aesthetic score first and one the technical
    one.

    Args:
        technical, aesthetic: numbers or arrays of one shape.

    Returns:
        ``technical``, ``aesthetic`` and ``overall`` in (0, 1), float64.
    """
    t = (np.asarray(technical, np.float64) - 0.1107) / 0.07355
    a = (np.asarray(aesthetic, np.float64) + 0.08285) / 0.03774
    return {"technical": _sigmoid(t), "aesthetic": _sigmoid(a), "overall": _sigmoid(0.6104 * t + 0.3896 * a)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def load_dover(checkpoint: Path, name: DoverName, config: Mapping[str, Any] | None = None) -> Dover:
    """Read a checkpoint, ``DOVER.pth`` or ``DOVER-Mobile.pth``; no code in it is run.

    Args:
        checkpoint: tensors by name, flat or under ``state_dict``; ``.pth``, ``.pt`` or ``.safetensors``.
        name: which of the two.
        config: arguments of ``Dover``, for other sizes than the published ones.

    Raises:
        DoverError: the file does not hold these weights.
        OSError: it cannot be read.
    """
    try:
        found = read_tensors(checkpoint, max_bytes=_MAX_BYTES)
    except ValueError as error:
        raise DoverError(str(error)) from error
    model = Dover(**(CONFIGS[name] if config is None else config))
    model.load_state_dict(_checked(found, model.state_dict(), f"{checkpoint}: is not {name}"))
    logging.getLogger(__name__).warning("%s: %s", checkpoint, LICENCE)
    return model.eval().requires_grad_(False)


def _checked(
    found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], who: str
) -> dict[str, torch.Tensor]:
    """The tensors of a file, complete, after everything about them was compared with the model's own."""
    # The index follows from the window, and nothing uses the classifier: files may be without either.
    optional = {name for name in own if name.endswith(_INDEX) or "_backbone.head." in name}
    missing, unknown = own.keys() - found.keys() - optional, found.keys() - own.keys()
    unknown = {name for name in unknown if "_backbone.head." not in name}
    if missing or unknown:
        heads = " (the file has heads only; merge them into a full checkpoint)" if _heads_only(found) else ""
        raise DoverError(
            f"{who}: {len(missing)} names missing, e.g. {min(missing, default='none')}, "
            f"{len(unknown)} unknown, e.g. {min(unknown, default='none')}{heads}; expected a published "
            "checkpoint of it"
        )
    tensors = {}
    for name, tensor in own.items():
        given = found.get(name, tensor)
        if given.shape != tensor.shape:
            raise DoverError(f"{who}: {name} is {tuple(given.shape)}, expected {tuple(tensor.shape)}")
        if name.endswith(_INDEX):
            if not torch.equal(given.long(), tensor):
                raise DoverError(f"{who}: {name} is not that of a window of this size")
        elif not given.is_floating_point() or not torch.isfinite(given).all():
            raise DoverError(f"{who}: {name} holds no finite numbers ({given.dtype})")
        tensors[name] = given.to(tensor.dtype)
    return tensors


def _heads_only(found: Mapping[str, torch.Tensor]) -> bool:
    return bool(found) and all(name.split(".")[0].endswith("_head") for name in found)
