"""RAFT optical flow from a checkpoint, and the two rules of VBench that are defined on its flow.

The network is torchvision's ``raft_large`` (Teed and Deng, arXiv 2003.12039). Its own state dicts load, and
so do the original authors' files (``raft-things.pth``), whose names differ.

VBench (arXiv 2311.17982) calls a clip static, or dynamic, by the largest few per cent of the flow of its
pairs. The rules are kept with their rounding, so that decisions agree with published ones.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

__all__ = ["RaftFlow", "farneback_score", "is_dynamic", "is_static", "to_torchvision", "top_share_mean"]

_RENAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"\.(layer\d\.\d)\.conv(\d)\.", r".\1.convnormrelu\2.0."),
    (r"\.(layer\d\.\d)\.norm([12])\.", r".\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)
"""Original name -> torchvision's; applied in turn."""

_NUM_ITERATIONS = 20


def to_torchvision(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the entries of an original RAFT file; torchvision's own names stay as they are."""
    renamed: dict[str, Any] = {}
    for name, value in state_dict.items():
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        # Original files hold the shortcut's norm twice: as norm3 and as downsample.1.
        if ".norm3." not in new:
            renamed[new] = value
    return renamed


class RaftFlow:
    """Flow between two pictures by RAFT, on the CPU, or on a GPU where there is one.

    Args:
        checkpoint: state dict, ``.pth``/``.pt`` (tensors only; no code in it is run) or ``.safetensors``.

    Raises:
        ValueError: the file does not hold this network's weights.
        OSError: it cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from torchvision.models.optical_flow import raft_large

        state_dict = to_torchvision(_read(checkpoint))
        self._network = raft_large(weights=None, progress=False)
        wanted = {name for name in self._network.state_dict() if not name.endswith("num_batches_tracked")}
        given = {name for name in state_dict if not name.endswith("num_batches_tracked")}
        if wanted != given:
            raise ValueError(
                f"{checkpoint}: is not RAFT (large): {len(wanted - given)} names missing, e.g. "
                f"{min(wanted - given, default='none')}, {len(given - wanted)} unknown, e.g. "
                f"{min(given - wanted, default='none')}; expected raft-things.pth or torchvision's raft_large"
            )
        self._network.load_state_dict(state_dict, strict=False)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network.eval().requires_grad_(False).to(self._device)

    def padded(self, a: np.ndarray, b: np.ndarray, num_iterations: int = _NUM_ITERATIONS) -> np.ndarray:
        """Flow of the pictures padded to multiples of 8 by their edges, as VBench scores it.

        Args:
            a, b: ``(H, W, 3)`` uint8 RGB.

        Returns:
            ``(H', W', 2)`` float32, x and y in pixels.
        """
        import torch

        rows, columns = _padding(a.shape[0]), _padding(a.shape[1])
        pair = [np.pad(image, (rows, columns, (0, 0)), mode="edge") for image in (a, b)]
        frames = torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2).to(self._device, torch.float32)
        with torch.inference_mode():
            frames = 2 * (frames / 255) - 1
            flows = self._network(frames[:1], frames[1:], num_flow_updates=num_iterations)
        return flows[-1][0].permute(1, 2, 0).cpu().numpy()

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Flow at every pixel of ``a``: ``(H, W, 2)`` float32."""
        height, width = a.shape[:2]
        top, left = _padding(height)[0], _padding(width)[0]
        return self.padded(a, b)[top : top + height, left : left + width]


def _padding(size: int) -> tuple[int, int]:
    missing = -size % 8
    return missing // 2, missing - missing // 2


def _read(path: Path) -> Mapping[str, Any]:
    import pickle

    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: cannot be read as tensors ({reason}); expected a RAFT state dict"
        ) from error
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{path}: holds a {type(state_dict).__name__}, expected a RAFT state dict")
    return state_dict


def top_share_mean(flow: np.ndarray, share: float) -> float:
    """Mean length of the largest ``share`` of a flow ``(H, W, 2)``."""
    length = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    return float(np.sort(length)[-int(length.size * share) :].mean())


def is_static(pair_scores: Sequence[float], wrap_scores: Sequence[float], height: int, width: int) -> bool:
    """VBench's static filter.

    Args:
        pair_scores: ``top_share_mean(flow, 0.02)`` of consecutive frames.
        wrap_scores: the same of (first, last) and (last, first).
        height, width: of the frames in pixels.
    """
    limit = 3.0 * min(height, width) / 256
    count = round(2 * (len(pair_scores) + 1) / 16)
    if sum(score > limit for score in pair_scores) > count:
        return False
    return not any(score > limit * count * 2 for score in wrap_scores)


def is_dynamic(
    pair_scores: Sequence[float], height: int, width: int, fps: float, *, slow_rates_need_more: bool = True
) -> bool:
    """VBench's dynamic degree of a clip.

    Args:
        pair_scores: ``top_share_mean(flow, 0.05)`` of consecutive frames, after every ``max(1, round(fps /
            8))``-th frame was taken.
        height, width: of the frames in pixels.
        fps: of the clip.
        slow_rates_need_more: scale the limit by 8 / fps below 8 frames/s, as Hummingbird's filter does;
            VBench does not.
    """
    limit = 6.0 * min(height, width) / 256
    if slow_rates_need_more:
        limit *= max(1.0, 8.0 / fps)
    return bool(pair_scores) and sum(score > limit for score in pair_scores) >= round(
        4 * (len(pair_scores) + 1) / 16
    )


def farneback_score(frames: np.ndarray) -> float:
    """Mean length of Farneback's flow over all pixels and pairs of ``(n, H, W, 3)`` uint8 RGB."""
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in frames]
    lengths = []
    for a, b in itertools.pairwise(grey):
        start = np.zeros((*a.shape, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 3, 15, 3, 5, 1.2, 0)
        lengths.append(np.hypot(flow[..., 0], flow[..., 1]).mean())
    return float(np.mean(lengths))
