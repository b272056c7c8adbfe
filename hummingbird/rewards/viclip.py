"""ViCLIP-L: a video CLIP with one class token for all frames and attention over space and time at once.

Reference:
    Wang et al., InternVid, arXiv 2307.06942. The checkpoint is ``ViClip-InternVid-10M-FLT.pth``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from einops import rearrange
from torch import Tensor, nn

from hummingbird.checkpoints.key_map import Recipe
from hummingbird.rewards.base import VideoReward
from hummingbird.rewards.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    preprocessing_from_config,
)
from hummingbird.rewards.weights import as_recipes, load_network

VICLIP_CONFIG: dict[str, Any] = {
    "vision": {
        "input_resolution": 224,
        "patch_size": 14,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "output_dim": 768,
        "num_frames": 8,
    },
    "text": {
        "context_length": 32,
        "vocab_size": 49408,
        "transformer_width": 768,
        "transformer_heads": 12,
        "transformer_layers": 12,
        "embed_dim": 768,
    },
}
VICLIP_PREPROCESSING = Preprocessing(resize="short_side", mean=IMAGENET_MEAN, std=IMAGENET_STD)


class ViCLIPVision(nn.Module):
    """The vision tower; its module names are the checkpoint's.

    No token is masked: the original drops nine of ten unless told that it is tested.
    """

    def __init__(
        self,
        *,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        num_frames: int,
    ) -> None:
        from open_clip.transformer import LayerNorm, QuickGELU, Transformer

        super().__init__()
        num_patches = (input_resolution // patch_size) ** 2
        kernel = (1, patch_size, patch_size)
        self.num_frames = num_frames
        self.conv1 = nn.Conv3d(3, width, kernel, stride=kernel, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(num_patches + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, num_frames, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, output_dim))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) -> features (B, D); F is ``num_frames``, or 1 for an image."""
        patches = self.conv1(rearrange(frames, "b f c h w -> b c f h w"))
        patches = rearrange(patches, "b c f h w -> b f (h w) c")
        time: Tensor = self.temporal_positional_embedding
        if patches.shape[1] == 1:
            time = time.mean(dim=1, keepdim=True)
        patches = patches + self.positional_embedding[1:] + time[:, :, None]
        token = (self.class_embedding + self.positional_embedding[0]).expand(len(patches), 1, -1)
        hidden = self.ln_pre(torch.cat([token, patches.flatten(1, 2)], dim=1))
        return self.ln_post(self.transformer(hidden)[:, 0]) @ self.proj


class ViCLIPNetwork(nn.Module):
    """Both towers under the checkpoint's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        text = config["text"]
        self.vision_encoder = ViCLIPVision(**config["vision"])
        self.text_encoder = TextTransformer(
            context_length=text["context_length"],
            vocab_size=text["vocab_size"],
            width=text["transformer_width"],
            heads=text["transformer_heads"],
            layers=text["transformer_layers"],
            output_dim=text["embed_dim"],
            act_layer=QuickGELU,
        )
        self.temp = nn.Parameter(torch.zeros(()))


class ViCLIPReward(VideoReward):
    """Cosine between a clip of 8 frames (or an image) and its prompt."""

    name = "viclip"

    def __init__(self, network: nn.Module, preprocessing: Preprocessing = VICLIP_PREPROCESSING) -> None:
        encoder: Any = network.vision_encoder
        super().__init__(network, preprocessing, encoder.num_frames)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Tensor | Recipe],
        *,
        preprocessing: Preprocessing | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ViCLIPReward:
        """Build from a configuration and weights.

        Args:
            config: ``VICLIP_CONFIG`` or one like it; beside it, what ``preprocessing_from_config`` reads.
            state_dict: The checkpoint's tensors.
            preprocessing: In place of what ``config`` says.
            dtype: Of the weights.

        Raises:
            CheckpointError: Where the two do not fit.
        """
        with init_empty_weights():
            network = ViCLIPNetwork(config)
        load_network(network, as_recipes(state_dict), name=cls.name, dtype=dtype)
        default = replace(VICLIP_PREPROCESSING, size=config["vision"]["input_resolution"])
        return cls(network, preprocessing or preprocessing_from_config(default, config))

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=self.network.text_encoder.context_length)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": self._tokenizer(list(prompts))}

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.network.text_encoder(input_ids)

    def _video_features(self, pixels: Tensor) -> Tensor:
        return self.network.vision_encoder(pixels)
