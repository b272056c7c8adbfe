"""InternVideo2-Stage2-1B: a one-billion-parameter video tower beside the lower part of BERT-large.

Reference:
    Wang et al., arXiv 2403.15377. The checkpoint is ``InternVideo2-stage2_1b-224p-f4.pt``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
from hummingbird.rewards.weights import as_recipes, load_network, strip_prefix

MlpActivation = Literal["gelu", "gelu_tanh"]

INTERNVIDEO2_CONFIG: dict[str, Any] = {
    "vision": {
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 16,
        "mlp_ratio": 48 / 11,
        "clip_embed_dim": 768,
        "attn_pool_num_heads": 16,
        "patch_size": 14,
        "img_size": 224,
        "num_frames": 8,
    },
    "text": {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "fusion_layer": 19,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
    },
    "embed_dim": 512,
}
INTERNVIDEO2_PREPROCESSING = Preprocessing(resize="short_side", mean=IMAGENET_MEAN, std=IMAGENET_STD)
_MAX_TOKENS = 40
_MAX_VOCABULARY_BYTES = 2**22
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_FIXED = {"in_chans": 3, "tubelet_size": 1, "qk_normalization": True, "sep_image_video_pos_embed": True}
_UNUSED = (
    r"vision_encoder\.((final_)?clip_decoder\..*|clip_(img_)?pos_embed)"
    r"|text_encoder\.(bert\.embeddings\.position_ids|bert\.pooler\..*|cls\..*)|temp|itm_head\..*"
)


class InternVideo2Attention(nn.Module):
    """Self-attention whose queries and keys are normalised over all heads together."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = nn.RMSNorm(width, eps=1e-6)
        self.k_norm = nn.RMSNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        heads = [
            rearrange(x, "b l (n d) -> b n l d", n=self.num_heads)
            for x in (self.q_norm(query), self.k_norm(key), value)
        ]
        return self.proj(rearrange(F.scaled_dot_product_attention(*heads), "b n l d -> b l (n d)"))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden_width: int, activation: MlpActivation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.act = nn.GELU(approximate="tanh" if activation == "gelu_tanh" else "none")
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden)))


class InternVideo2Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(
        self, width: int, num_heads: int, hidden_width: int, qkv_bias: bool, activation: MlpActivation
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = InternVideo2Attention(width, num_heads, qkv_bias)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, hidden_width, activation)
        self.ls2 = _LayerScale(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.ls1(self.attn(self.norm1(hidden)))
        return hidden + self.ls2(self.mlp(self.norm2(hidden)))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        kernel = (1, patch_size, patch_size)
        self.proj = nn.Conv3d(3, width, kernel, stride=kernel)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, 3, H, W) -> (B, F * patches, C)."""
        patches = self.proj(rearrange(frames, "b f c h w -> b c f h w"))
        return rearrange(patches, "b c f h w -> b (f h w) c")


class _CrossAttention(nn.Module):
    """Attention whose biases are stored apart from the maps that they belong to."""

    def __init__(self, width: int, num_heads: int, out_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.k_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, out_width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        maps = (self.q(query) + self.q_bias, self.k(key) + self.k_bias, self.v(value) + self.v_bias)
        heads = [rearrange(x, "b l (n d) -> b n l d", n=self.num_heads) for x in maps]
        return self.proj(rearrange(F.scaled_dot_product_attention(*heads), "b n l d -> b l (n d)"))


class AttentionPool(nn.Module):
    """All tokens into one: they are attended to by their mean."""

    def __init__(self, width: int, num_heads: int, out_width: int) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(width, eps=1e-5)
        self.norm1_k = nn.LayerNorm(width, eps=1e-5)
        self.norm1_v = nn.LayerNorm(width, eps=1e-5)
        self.cross_attn = _CrossAttention(width, num_heads, out_width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, C) -> (B, D)."""
        query = self.norm1_q(hidden.mean(dim=1, keepdim=True))
        return self.cross_attn(query, self.norm1_k(hidden), self.norm1_v(hidden))[:, 0]


class InternVideo2Vision(nn.Module):
    """The vision tower; its module names are the checkpoint's, less those that do not reach the score.

    Args:
        embed_dim: Width C, shared by ``num_heads`` heads.
        depth: Number of blocks.
        num_heads: Of the blocks.
        mlp_ratio: Width of the MLP over ``embed_dim``, rounded down.
        clip_embed_dim: Width of the pooled feature.
        attn_pool_num_heads: Heads of the pool.
        patch_size: Side of a patch in pixels.
        img_size: Side of a frame in pixels.
        num_frames: Of a clip; the positions of a checkpoint for fewer are interpolated when it is loaded.
        qkv_bias: Whether queries, keys and values have one.
        activation: "gelu" is exact; "gelu_tanh" is what the original's fused MLP computes in half precision,
            which moves scores by about 1e-5.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        clip_embed_dim: int,
        attn_pool_num_heads: int,
        patch_size: int,
        img_size: int,
        num_frames: int,
        qkv_bias: bool = False,
        activation: MlpActivation = "gelu",
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.patches_per_frame = (img_size // patch_size) ** 2
        self.patch_embed = _PatchEmbed(embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_frames * self.patches_per_frame, embed_dim))
        self.img_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patches_per_frame, embed_dim))
        hidden_width = int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            InternVideo2Block(embed_dim, num_heads, hidden_width, qkv_bias, activation) for _ in range(depth)
        )
        self.clip_projector = AttentionPool(embed_dim, attn_pool_num_heads, clip_embed_dim)

    def tokens(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W), F of ``num_frames`` or 1 -> tokens after all blocks (B, 1 + F * N, C)."""
        patches = self.patch_embed(frames)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        hidden = hidden + (self.img_pos_embed if frames.shape[1] == 1 else self.pos_embed)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) -> pooled feature (B, clip_embed_dim)."""
        return self.clip_projector(self.tokens(frames))


class InternVideo2Network(nn.Module):
    """Both towers and their projections under the checkpoint's names."""

    def __init__(self, config: Mapping[str, Any], activation: MlpActivation = "gelu") -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        vision, text = config["vision"], dict(config["text"])
        for key, value in _FIXED.items():
            if vision.get(key, value) != value:
                raise ValueError(f"internvideo2: {key}={vision[key]!r}: only {value!r} is supported")
        names = (
            "embed_dim", "depth", "num_heads", "mlp_ratio", "clip_embed_dim", "attn_pool_num_heads",
            "patch_size", "img_size", "num_frames",
        )  # fmt: skip
        self.vision_encoder = InternVideo2Vision(
            **{name: vision[name] for name in names},
            qkv_bias=vision.get("qkv_bias", False),
            activation=activation,
        )
        self.vision_proj = nn.Linear(vision["clip_embed_dim"], config["embed_dim"])
        # The layers from the first fusion on need frames beside the text; scoring never runs them.
        text["num_hidden_layers"] = text.pop("fusion_layer")
        self.text_encoder = nn.ModuleDict({"bert": BertModel(BertConfig(**text), add_pooling_layer=False)})
        self.text_proj = nn.Linear(text["hidden_size"], config["embed_dim"])


def interpolate_frames(pos_embed: Tensor, num_frames: int, patches_per_frame: int) -> Tensor:
    """Stretch learned positions over more or fewer frames, linearly and for each place in the frame.

    Args:
        pos_embed: (1, 1 + F * patches_per_frame, C); the first entry is the class token's and stays.
        num_frames: Wanted number of frames.
        patches_per_frame: N.

    Returns:
        (1, 1 + num_frames * N, C).
    """
    token, places = pos_embed[:, :1], pos_embed[0, 1:]
    over_time = rearrange(places.float(), "(f n) c -> n c f", n=patches_per_frame)
    stretched = F.interpolate(over_time, size=num_frames, mode="linear", align_corners=False)
    return torch.cat([token, rearrange(stretched, "n c f -> 1 (f n) c").to(pos_embed.dtype)], dim=1)


class InternVideo2Reward(VideoReward):
    """Cosine between a clip of 8 frames (or an image) and its prompt.

    Args:
        network: The towers.
        preprocessing: How frames reach them.
        vocabulary: BERT's ``vocab.txt`` (bert-large-uncased), which prompts need; tokens do not.
    """

    name = "internvideo2"

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing = INTERNVIDEO2_PREPROCESSING,
        vocabulary: str | Path | None = None,
    ) -> None:
        encoder: Any = network.vision_encoder
        super().__init__(network, preprocessing, encoder.num_frames)
        self.vocabulary = None if vocabulary is None else Path(vocabulary)
        if self.vocabulary is not None and not self.vocabulary.is_file():
            raise FileNotFoundError(f"internvideo2: no vocabulary {vocabulary}; expected BERT's vocab.txt")

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, Tensor | Recipe],
        *,
        preprocessing: Preprocessing | None = None,
        activation: MlpActivation = "gelu",
        vocabulary: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> InternVideo2Reward:
        """Build from a configuration and weights.

        Args:
            config: ``INTERNVIDEO2_CONFIG`` or one like it; beside it, what ``preprocessing_from_config``
                reads. Options of its ``vision`` that do not reach the score are passed over.
            state_dict: The checkpoint's tensors, with or without ``module.`` before every key, positions of
                any number of frames. Keys beyond those of the score are allowed: the public file has some.
            preprocessing: In place of what ``config`` says.
            activation: Of the vision tower's MLPs; "gelu_tanh" as the original's half-precision path.
            vocabulary: BERT's ``vocab.txt``.
            dtype: Of the weights.

        Raises:
            CheckpointError: Where the two do not fit.
            ValueError: Where the configuration is not supported.
        """
        with init_empty_weights(include_buffers=False):
            network = InternVideo2Network(config, activation)
        stored = strip_prefix(as_recipes(state_dict), "module.")
        tower = network.vision_encoder
        key = "vision_encoder.pos_embed"
        if key in stored and _num_frames(stored[key].shape, tower.patches_per_frame) > 1:
            stored[key] = _stretched(stored[key], tower.num_frames, tower.patches_per_frame)
        first_fusion = config["text"]["fusion_layer"]
        layers = "|".join(str(i) for i in range(first_fusion, config["text"]["num_hidden_layers"]))
        unused = _UNUSED + (rf"|text_encoder\.bert\.encoder\.layer\.({layers})\..*" if layers else "")
        report = load_network(network, stored, name=cls.name, unused=unused, allow_unknown=True, dtype=dtype)
        default = replace(INTERNVIDEO2_PREPROCESSING, size=config["vision"]["img_size"])
        reward = cls(network, preprocessing or preprocessing_from_config(default, config), vocabulary)
        reward.unused_keys, reward.unknown_keys = report.unused, report.unexpected
        return reward

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer

        assert self.vocabulary is not None  # ``tokenize`` has looked
        if self.vocabulary.stat().st_size > _MAX_VOCABULARY_BYTES:
            raise ValueError(
                f"internvideo2: {self.vocabulary} is over {_MAX_VOCABULARY_BYTES} bytes, expected a vocab.txt"
            )
        try:
            entries = self.vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"internvideo2: {self.vocabulary} is not text, expected bert-large-uncased's vocab.txt"
            ) from error
        rows = self.network.text_encoder["bert"].embeddings.word_embeddings.num_embeddings
        missing = [token for token in _SPECIAL_TOKENS if token not in entries]
        if len(entries) != rows or missing:
            lacks = f", without {', '.join(missing)}" if missing else ""
            raise ValueError(
                f"internvideo2: {self.vocabulary} has {len(entries)} entries{lacks}, expected the {rows} of "
                "bert-large-uncased's vocab.txt"
            )
        return BertTokenizer(str(self.vocabulary), do_lower_case=True)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """As BERT's own tokenizer: lower case, 40 tokens, padded.

        Raises:
            ValueError: Where there is no vocabulary, or another network's.
        """
        if self.vocabulary is None:
            raise ValueError(
                "internvideo2: prompts need BERT's vocabulary; give vocabulary=PATH of the vocab.txt of "
                "bert-large-uncased, or put it beside the checkpoint"
            )
        encoded = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        hidden = self.network.text_encoder["bert"](input_ids=input_ids, attention_mask=attention_mask)
        return self.network.text_proj(hidden.last_hidden_state[:, 0])

    def _video_features(self, pixels: Tensor) -> Tensor:
        return self.network.vision_proj(self.network.vision_encoder(pixels))


def _num_frames(shape: Sequence[int], patches_per_frame: int) -> int:
    """How many frames stored positions are for; 0 where they do not fit frames of this size."""
    places = shape[1] - 1 if len(shape) == 3 else 0
    return places // patches_per_frame if places % patches_per_frame == 0 else 0


def _stretched(stored: Recipe, num_frames: int, patches_per_frame: int) -> Recipe:
    shape = (1, 1 + num_frames * patches_per_frame, stored.shape[2])
    if stored.shape == shape:
        return stored
    return replace(
        stored,
        shape=shape,
        load=lambda: interpolate_frames(stored.load(), num_frames, patches_per_frame),
    )
