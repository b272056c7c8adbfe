"""The real rewards, made tiny, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hummingbird.rewards.base import Reward
from hummingbird.rewards.hpsv2 import HPSv2Reward, build_clip
from hummingbird.rewards.internvideo2 import InternVideo2Network, InternVideo2Reward
from hummingbird.rewards.pickscore import PickScoreReward, build_clip_model
from hummingbird.rewards.viclip import ViCLIPNetwork, ViCLIPReward

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "hpsv2": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": _TEXT,
    },
    "pickscore": {
        "text_config": {
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 49408,
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 8,
            "image_size": 32,
        },
        "projection_dim": 8,
    },
    "viclip": {
        "vision": {
            "input_resolution": 32,
            "patch_size": 8,
            "width": 16,
            "layers": 2,
            "heads": 2,
            "output_dim": 8,
            "num_frames": 8,
        },
        "text": {
            "context_length": 32,
            "vocab_size": 49408,
            "transformer_width": 8,
            "transformer_heads": 2,
            "transformer_layers": 1,
            "embed_dim": 8,
        },
    },
    "internvideo2": {
        "vision": {
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "clip_embed_dim": 12,
            "attn_pool_num_heads": 2,
            "patch_size": 8,
            "img_size": 32,
            "num_frames": 8,
        },
        "text": {
            "vocab_size": 10,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 40,
            "fusion_layer": 2,
        },
        "embed_dim": 8,
    },
}
_NETWORKS: dict[str, Any] = {
    "hpsv2": build_clip,
    "pickscore": build_clip_model,
    "viclip": ViCLIPNetwork,
    "internvideo2": InternVideo2Network,
}
CLASSES: dict[str, Any] = {
    "hpsv2": HPSv2Reward,
    "pickscore": PickScoreReward,
    "viclip": ViCLIPReward,
    "internvideo2": InternVideo2Reward,
}
VOCABULARY = (
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s", "runs"]) + "\n"
)


def tiny_state_dict(name: str, seed: int = 0) -> dict[str, Tensor]:
    """All weights drawn, none left at the zeros and ones of construction."""
    network: nn.Module = _NETWORKS[name](CONFIGS[name])
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (0.3 if value.ndim > 1 else 1.0) * torch.randn(value.shape, generator=generator)
        for key, value in network.state_dict().items()
    }


def tiny_reward(name: str, **options: Any) -> Reward:
    return CLASSES[name].from_config(CONFIGS[name], tiny_state_dict(name), **options)
