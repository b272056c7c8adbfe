"""HPSv2.1: a ViT-H/14 CLIP tuned on human preferences between images.

Reference:
    Wu et al., arXiv 2306.09341. The network is open_clip's ViT-H-14, unmodified; the checkpoint is
    ``HPS_v2.1_compressed.pt``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from hummingbird.checkpoints.key_map import Recipe
from hummingbird.rewards.base import ImageReward
from hummingbird.rewards.preprocess import Preprocessing, preprocessing_from_config
from hummingbird.rewards.weights import as_recipes, load_network, strip_prefix

HPSV2_CONFIG: dict[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
HPSV2_PREPROCESSING = Preprocessing(resize="letterbox")


def build_clip(config: Mapping[str, Any]) -> nn.Module:
    """Build open_clip's CLIP with exact GELU.

    Args:
        config: ``embed_dim``, ``vision_cfg`` and ``text_cfg`` as in open_clip's model files.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=CLIPTextCfg(**config["text_cfg"]),
    )


class HPSv2Reward(ImageReward):
    """Human preference score of frames, mean over frames."""

    name = "hpsv2"

    def __init__(self, network: nn.Module, preprocessing: Preprocessing = HPSV2_PREPROCESSING) -> None:
        super().__init__(network, preprocessing)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Tensor | Recipe],
        *,
        preprocessing: Preprocessing | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> HPSv2Reward:
        """Build from a configuration and weights.

        Args:
            config: ``HPSV2_CONFIG`` or one like it, by itself or under ``model``; beside it, what
                ``preprocessing_from_config`` reads.
            state_dict: The checkpoint's tensors, with or without ``module.`` before every key.
            preprocessing: In place of what ``config`` says.
            dtype: Of the weights.

        Raises:
            CheckpointError: Where the two do not fit.
        """
        model_config = config.get("model", config)
        with init_empty_weights():
            network = build_clip(model_config)
        stored = strip_prefix(as_recipes(state_dict), "module.")
        report = load_network(network, stored, name=cls.name, unused="attn_mask", dtype=dtype)
        default = replace(HPSV2_PREPROCESSING, size=model_config["vision_cfg"]["image_size"])
        reward = cls(network, preprocessing or preprocessing_from_config(default, config))
        reward.unused_keys = report.unused
        return reward

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=self.network.context_length)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": self._tokenizer(list(prompts))}

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.network.encode_text(input_ids)

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.network.encode_image(pixels)
