"""PickScore: a ViT-H/14 CLIP tuned on choices between images.

Reference:
    Kirstain et al., arXiv 2305.01569. The network is transformers' CLIPModel; the checkpoint is
    ``yuvalkirstain/PickScore_v1``.
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
from hummingbird.checkpoints.tokenizer import open_clip_tokenizer
from hummingbird.rewards.base import ImageReward
from hummingbird.rewards.preprocess import Preprocessing, preprocessing_from_config
from hummingbird.rewards.weights import as_recipes, load_network

# The end token is the highest id; 2 is how transformers spells "take the first highest id".
_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
PICKSCORE_CONFIG: dict[str, Any] = {
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 1024,
        "vocab_size": 49408,
        **_TOKEN_IDS,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
    "projection_dim": 1024,
}
PICKSCORE_PREPROCESSING = Preprocessing(resize="stretch")
_UNUSED = r"(text|vision)_model\.embeddings\.position_ids"  # of files of older versions


def build_clip_model(config: Mapping[str, Any]) -> nn.Module:
    """Build transformers' CLIPModel.

    Args:
        config: ``text_config``, ``vision_config`` and ``projection_dim`` as in its ``config.json``. Where an
            activation is not given it is exact GELU, which is what these weights were trained with.
    """
    from transformers import CLIPConfig, CLIPModel

    towers = {name: {"hidden_act": "gelu", **config[name]} for name in ("text_config", "vision_config")}
    return CLIPModel(CLIPConfig(**towers, projection_dim=config["projection_dim"]))


class PickScoreReward(ImageReward):
    """Preference score of frames, mean over frames. Frames are stretched to a square, not letterboxed."""

    name = "pickscore"

    def __init__(self, network: nn.Module, preprocessing: Preprocessing = PICKSCORE_PREPROCESSING) -> None:
        super().__init__(network, preprocessing)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Tensor | Recipe],
        *,
        preprocessing: Preprocessing | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PickScoreReward:
        """Build from a configuration and weights.

        Args:
            config: ``PICKSCORE_CONFIG`` or one like it; beside it, what ``preprocessing_from_config`` reads.
            state_dict: The checkpoint's tensors.
            preprocessing: In place of what ``config`` says.
            dtype: Of the weights.

        Raises:
            CheckpointError: Where the two do not fit.
        """
        with init_empty_weights():
            network = build_clip_model(config)
        report = load_network(network, as_recipes(state_dict), name=cls.name, unused=_UNUSED, dtype=dtype)
        default = replace(PICKSCORE_PREPROCESSING, size=config["vision_config"]["image_size"])
        reward = cls(network, preprocessing or preprocessing_from_config(default, config))
        reward.unused_keys = report.unused
        return reward

    @cached_property
    def _tokenizer(self) -> Any:
        return open_clip_tokenizer(self.network.config.text_config.max_position_embeddings)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """As the original's processor: HTML escapes stay; padded with end tokens up to the longest prompt."""
        tokenizer = self._tokenizer
        encoded = tokenizer(list(prompts), padding="longest", truncation=True, return_tensors="pt")
        is_padding = encoded.attention_mask == 0
        return {"input_ids": encoded.input_ids.masked_fill(is_padding, tokenizer.eos_token_id)}

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        # Attention is causal: padding after the end token cannot reach it.
        return self.network.get_text_features(input_ids=input_ids).pooler_output

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output
