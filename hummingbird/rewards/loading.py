"""Rewards by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hummingbird.rewards.base import Reward
from hummingbird.rewards.hpsv2 import HPSV2_CONFIG, HPSv2Reward, build_clip
from hummingbird.rewards.internvideo2 import INTERNVIDEO2_CONFIG, InternVideo2Network, InternVideo2Reward
from hummingbird.rewards.nano import (
    NanoImageReward,
    NanoVideoReward,
    build_nano_network,
    nano_preprocessing,
    nano_reward_from_config,
    read_nano_config,
)
from hummingbird.rewards.pickscore import PICKSCORE_CONFIG, PickScoreReward, build_clip_model
from hummingbird.rewards.preprocess import Preprocessing
from hummingbird.rewards.viclip import VICLIP_CONFIG, ViCLIPNetwork, ViCLIPReward
from hummingbird.rewards.weights import open_weights

REWARDS: dict[str, tuple[Callable[..., Reward], Mapping[str, Any], str]] = {
    "hpsv2": (HPSv2Reward.from_config, HPSV2_CONFIG, "HPS_v2.1_compressed.pt of xswu/HPSv2"),
    "pickscore": (PickScoreReward.from_config, PICKSCORE_CONFIG, "yuvalkirstain/PickScore_v1"),
    "viclip": (ViCLIPReward.from_config, VICLIP_CONFIG, "ViClip-InternVid-10M-FLT.pth"),
    "internvideo2": (
        InternVideo2Reward.from_config,
        INTERNVIDEO2_CONFIG,
        "InternVideo2-stage2_1b-224p-f4.pt of OpenGVLab/InternVideo2-Stage2_1B-224p-f4",
    ),
}
"""Name -> its class's ``from_config``, the public checkpoint's configuration, what to download."""
_SHELLS: dict[str, tuple[Callable[[nn.Module], Reward], Callable[[Any], nn.Module], Mapping[str, Any]]] = {
    "hpsv2": (HPSv2Reward, build_clip, HPSV2_CONFIG),
    "pickscore": (PickScoreReward, build_clip_model, PICKSCORE_CONFIG),
    "viclip": (ViCLIPReward, ViCLIPNetwork, VICLIP_CONFIG),
    "internvideo2": (InternVideo2Reward, InternVideo2Network, INTERNVIDEO2_CONFIG),
}
"""Name -> its class, what builds its network, the public checkpoint's configuration."""
_NANO = {"nano-image": "image", "nano-video": "video"}
_NANO_WEIGHTS = Path(__file__).parents[1] / "nano" / "weights"


def load_reward(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    vocabulary: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reward:
    """Load a reward from a checkpoint; nothing is downloaded, no code in the file is run.

    Args:
        name: "hpsv2", "pickscore", "viclip", "internvideo2", "nano-image" or "nano-video".
        checkpoint: The public file, or a folder with ``model.safetensors`` or ``pytorch_model.bin``; for the
            nano ones a trained folder, or nothing for the shipped weights.
        config: In place of the public checkpoint's.
        preprocessing: In place of the original's.
        vocabulary: BERT's ``vocab.txt``, which "internvideo2" needs for prompts; a file of that name beside
            the checkpoint is found.
        device: Where it goes.
        dtype: Of the weights; scores are float32.

    Raises:
        ValueError: An unknown name, or no checkpoint.
        FileNotFoundError: Where a file is not there.
        hummingbird.checkpoints.CheckpointError: Where the file is refused, broken or another model's.
    """
    options: dict[str, Any] = {"preprocessing": preprocessing, "dtype": dtype}
    if vocabulary is not None and name != "internvideo2":
        raise ValueError(f"vocabulary: {name} does not take one; leave it out")
    if name in _NANO:
        folder = _nano_folder(name, checkpoint)
        config = config or read_nano_config(folder, _NANO[name])  # type: ignore[arg-type]
        return nano_reward_from_config(config, open_weights(folder), **options).to(device)
    if name not in REWARDS:
        raise ValueError(f"reward: got {name!r}, expected one of {', '.join([*REWARDS, *_NANO])}")
    build, public_config, download = REWARDS[name]
    if checkpoint is None:
        raise ValueError(f"{name}: no checkpoint given; download {download} and give checkpoint=PATH")
    if name == "internvideo2":
        path = Path(checkpoint)
        beside = (path if path.is_dir() else path.parent) / "vocab.txt"
        options["vocabulary"] = vocabulary or (beside if beside.is_file() else None)
    return build(config or public_config, open_weights(checkpoint), **options).to(device)


def reward_shell(
    name: str, checkpoint: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> Reward:
    """Build a reward without weights, on the meta device, for counting; the public files are not read.

    Args:
        name: As ``load_reward`` takes it.
        checkpoint: Of the nano ones, a trained folder whose configuration counts.
        dtype: Of the weights.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: A nano one without its configuration.
    """
    with torch.device("meta"):
        if name in _NANO:
            kind = _NANO[name]
            config = read_nano_config(_nano_folder(name, checkpoint), kind)  # type: ignore[arg-type]
            model = config["model"]
            network = build_nano_network(kind, model)  # type: ignore[arg-type]
            preprocessing = nano_preprocessing(model["vision_cfg"]["image_size"])
            nano_class = NanoImageReward if kind == "image" else NanoVideoReward
            return nano_class(network, preprocessing).to(dtype)
        if name not in _SHELLS:
            raise ValueError(f"reward: got {name!r}, expected one of {', '.join([*_SHELLS, *_NANO])}")
        reward_class, build, public_config = _SHELLS[name]
        return reward_class(build(public_config)).to(dtype)


def _nano_folder(name: str, checkpoint: str | Path | None) -> Path:
    folder = _NANO_WEIGHTS / name if checkpoint is None else Path(checkpoint)
    if folder.is_dir():
        return folder
    part = f"reward_{_NANO[name]}"
    if checkpoint is not None:
        raise FileNotFoundError(
            f"{name}: no folder {folder}; expected one with config.json and model.safetensors"
        )
    raise FileNotFoundError(
        f"{name}: this version ships no weights for it; train them with `python train/nano.py {part} "
        f"configs/train/nano_{part}.yaml` and give checkpoint=runs/nano/{part}/model"
    )
