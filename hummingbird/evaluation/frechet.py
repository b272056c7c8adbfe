"""Frechet distances between sets of videos, over the features of a model that the user gives.

Features are of a reward (``hpsv2``, ``pickscore``: one of each frame; ``viclip``, ``internvideo2``: one of
each video; ``nano-image``, ``nano-video`` for the world) or of the autoencoder of a model (``vae``: one of
each video). Distances over different features have nothing in common but their name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hummingbird.evaluation.sampling import video_seed

if TYPE_CHECKING:
    from hummingbird.rewards.base import Reward

__all__ = ["Features", "frechet_distance", "load_features", "reward_features", "vae_features"]

Features = Callable[[torch.Tensor, int], np.ndarray]
"""Frames ``(F, 3, H, W)`` float32 in [0, 1] and the video's number -> ``(n, D)`` float64."""

_MAX_FRAMES = 16
"""Evenly spaced frames of a video that a model looks at."""
_POOLED = 4  # the autoencoder's latents are averaged to so many cells a side


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet (Wasserstein-2) distance between Gaussians fitted to two sets of features.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. It is biased: of two halves of one set it is above 0, the
    more the fewer samples there are for the features' dimensions.

    Args:
        first, second: ``(n, D)``, n at least 2.

    Returns:
        At least 0.

    Raises:
        ValueError: fewer than two features, other dimensions, or numbers that are none.

    Reference:
        Dowson and Landau, Journal of Multivariate Analysis 12, 1982; Heusel et al., arXiv 1706.08500, eq. 6;
        of videos: Unterthiner et al., arXiv 1812.01717.
    """
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"{name}: got features of shape {values.shape}, expected two or more rows")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: got features that are NaN or infinite")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features: got {first.shape[1]} and {second.shape[1]} dimensions, expected the same"
        )
    first, second = first.astype(np.float64), second.astype(np.float64)
    mean = first.mean(axis=0) - second.mean(axis=0)
    covariance1, covariance2 = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (first, second))
    # tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ covariance2 @ root).clip(min=0.0)
    distance = mean @ mean + np.trace(covariance1) + np.trace(covariance2) - 2.0 * np.sqrt(mixed).sum()
    return max(0.0, float(distance))


def load_features(name: str, source: str | None, *, device: str | torch.device = "cpu") -> Features:
    """Loads what gives features.

    Args:
        name: a reward's name, or ``vae``.
        source: its checkpoint; of ``vae`` a model.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError: there is no such thing.
    """
    if name == "vae":
        from hummingbird.runtime import load_pipeline

        return vae_features(load_pipeline(source or "nano", str(device), "float32").vae)
    from hummingbird.rewards import load_reward

    return reward_features(load_reward(name, source, device=device))


def spaced(frames: torch.Tensor, most: int = _MAX_FRAMES) -> torch.Tensor:
    """At most so many of the frames, evenly spaced from first to last."""
    if len(frames) <= most:
        return frames
    return frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]


def reward_features(reward: Reward) -> Features:
    """Normalised features of frames or videos, as the reward compares them with prompts."""
    network: Any = reward

    @torch.no_grad()
    def features(frames: torch.Tensor, index: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(video_seed(0, index))
        found = network.embed_frames(spaced(frames)[None], generator)  # (1, D) or (1, F, D)
        found = torch.nn.functional.normalize(found.flatten(0, -2), dim=-1)
        return found.cpu().numpy().astype(np.float64)

    return features


def vae_features(vae: Any) -> Features:
    """One row for a video: mean latents over 4 x 4 cells, and how much they change from frame to frame."""

    @torch.no_grad()
    def features(frames: torch.Tensor, index: int) -> np.ndarray:
        pixels = spaced(frames).to(vae.device, vae.dtype) * 2.0 - 1.0
        latents = vae.encode(pixels).latent_dist.mean.float()  # (F, C, h, w)
        cells = torch.nn.functional.adaptive_avg_pool2d(latents, _POOLED).flatten(1)
        change = cells.diff(dim=0).abs().mean(dim=0) if len(cells) > 1 else torch.zeros_like(cells[0])
        return torch.cat([cells.mean(dim=0), change])[None].cpu().numpy().astype(np.float64)

    return features
