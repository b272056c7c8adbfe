"""Rewards of the moving-shapes world: small contrastive models of frames and of clips, trained by us.

Their checkpoint is a folder with ``config.json`` and ``model.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn

from hummingbird.checkpoints.key_map import Recipe
from hummingbird.nano import resolve
from hummingbird.rewards.base import ImageReward, VideoReward
from hummingbird.rewards.hpsv2 import build_clip
from hummingbird.rewards.preprocess import Preprocessing, Triple
from hummingbird.rewards.weights import as_recipes, load_network

Kind = Literal["image", "video"]

_CENTRE: Triple = (0.5, 0.5, 0.5)


def nano_preprocessing(image_size: int) -> Preprocessing:
    """Frames as a nano network of this input size sees them."""
    return Preprocessing(size=image_size, resize="stretch", mean=_CENTRE, std=_CENTRE)


def nano_tokenizer() -> Any:
    """The word-level tokenizer of the embedded model."""
    from transformers import PreTrainedTokenizerFast

    folder = resolve("nano-teacher")
    assert folder is not None  # an embedded name
    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)


class FrameStack(nn.Module):
    """A clip into one vector: convolutions on each frame, then attention over frames.

    The last feature map is flattened, not averaged, so that a frame's vector tells where things are; how that
    changes over frames is the motion. Frames are flattened as well: averaged over them, left and right or
    growing and shrinking differ in nothing but small embeddings of positions, and are not told apart.

    Args:
        image_size: Side of a frame in pixels.
        channels: Of the convolutions, each of which halves the side.
        width: Of a frame's vector.
        layers: Of the attention over frames.
        heads: Of the attention over frames.
        num_frames: F.
        embed_dim: Of the result.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: Sequence[int],
        width: int,
        layers: int,
        heads: int,
        num_frames: int,
        embed_dim: int,
    ) -> None:
        from open_clip.transformer import LayerNorm, Transformer

        super().__init__()
        stages: list[nn.Module] = []
        for before, after in zip((3, *channels[:-1]), channels, strict=True):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        side = image_size // 2 ** len(channels)
        self.frame_encoder = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(side * side * channels[-1], width)
        )
        self.positional_embedding = nn.Parameter(torch.randn(num_frames, width) * width**-0.5)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(num_frames * width, embed_dim) * (num_frames * width) ** -0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, 3, H, W) -> (B, embed_dim)."""
        vectors = self.frame_encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        hidden = self.transformer(vectors + self.positional_embedding)
        return self.ln_post(hidden).flatten(1) @ self.proj


class VideoCLIP(nn.Module):
    """``FrameStack`` beside open_clip's text tower, with the methods of open_clip's CLIP.

    Args:
        config: ``embed_dim``, ``vision_cfg`` for ``FrameStack`` and ``text_cfg`` as open_clip's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from open_clip.transformer import TextTransformer

        super().__init__()
        self.num_frames = config["vision_cfg"]["num_frames"]
        self.visual = FrameStack(**config["vision_cfg"], embed_dim=config["embed_dim"])
        self.text = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"])
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode_image(self, frames: Tensor) -> Tensor:
        """(B, F, 3, H, W) -> (B, D)."""
        return self.visual(frames)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""
        return self.text(input_ids)

    def forward(self, frames: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features of clips and of texts, and the factor of their cosines."""
        clips = F.normalize(self.encode_image(frames), dim=-1)
        texts = F.normalize(self.encode_text(input_ids), dim=-1)
        return clips, texts, self.logit_scale.exp()


def build_nano_network(kind: Kind, model_config: Mapping[str, Any]) -> nn.Module:
    """A network with random weights from torch's global generator: open_clip's CLIP, or ``VideoCLIP``."""
    return build_clip(model_config) if kind == "image" else VideoCLIP(model_config)


class _NanoText:
    """The text side, which both share."""

    network: Any

    @cached_property
    def _tokenizer(self) -> Any:
        return nano_tokenizer()

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Words of the world; all others are ``<unk>``."""
        return {"input_ids": tokenize_prompts(self._tokenizer, prompts)}

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.network.encode_text(input_ids)


def tokenize_prompts(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, L), padded to the tokenizer's length."""
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids


class NanoImageReward(_NanoText, ImageReward):
    """Whether frames show the shape, colour and background of the prompt. Blind to motion."""

    name = "nano-image"

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self.network.encode_image(pixels)


class NanoVideoReward(_NanoText, VideoReward):
    """Whether a clip shows the motion (and the rest) of the prompt."""

    name = "nano-video"
    has_image_mode = False

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        clip: Any = network
        super().__init__(network, preprocessing, clip.num_frames)

    def _video_features(self, pixels: Tensor) -> Tensor:
        return self.network.encode_image(pixels)


def nano_reward_from_config(
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor | Recipe],
    *,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype = torch.float32,
) -> NanoImageReward | NanoVideoReward:
    """Build from a configuration and weights.

    Args:
        config: ``{"kind": "image" | "video", "model": ...}``.
        state_dict: The weights, any floating type.
        preprocessing: In place of ``nano_preprocessing``.
        dtype: Of the weights.

    Raises:
        CheckpointError: Where the two do not fit.
        ValueError: An unknown kind.
    """
    kind = config["kind"]
    if kind not in ("image", "video"):
        raise ValueError(f"kind: got {kind!r}, expected image or video")
    with init_empty_weights(include_buffers=False):
        network = build_nano_network(kind, config["model"])
    cls = NanoImageReward if kind == "image" else NanoVideoReward
    load_network(network, as_recipes(state_dict), name=cls.name, dtype=dtype)
    size = config["model"]["vision_cfg"]["image_size"]
    return cls(network, preprocessing or nano_preprocessing(size))


# What a configuration may hold: it comes from outside, and open_clip's has options that download networks.
_VISION_KEYS: dict[Kind, set[str]] = {
    "image": {"image_size", "width", "layers", "head_width"},
    "video": {"image_size", "channels", "width", "layers", "heads", "num_frames"},
}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "pad_id", "eos_id", "pool_type"}
_MAX_CONFIG_BYTES = 65_536
_MAX_NUMBER, _MAX_LAYERS, _MAX_CHANNELS = 4096, 32, 8
_MAX_MATRIX = 2**26


def read_nano_config(folder: Path, kind: Kind) -> dict[str, Any]:
    """Read ``config.json`` of a nano reward.

    Raises:
        FileNotFoundError: Where the folder has none.
        ValueError: Where it is not that of a reward of this kind, or its numbers are out of bounds.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"nano-{kind}: no config.json in {folder}; expected a trained reward's folder"
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(
            f"nano-{kind}: {path} is over {_MAX_CONFIG_BYTES} bytes; expected a small description"
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"nano-{kind}: {path} is not JSON: {error}") from error
    refusal = f"nano-{kind}: {path} is not the configuration of a nano-{kind} reward"
    if not isinstance(config, dict) or config.get("kind") != kind:
        raise ValueError(refusal)
    try:
        check_nano_model(kind, config.get("model"))
    except ValueError as error:
        raise ValueError(f"{refusal}: {error}") from error
    return config


def check_nano_model(kind: Kind, model: Any) -> None:
    """Refuses a description that no network of reasonable size can be built from.

    Raises:
        ValueError: A value that is missing, unknown or out of bounds; the message says which.
    """
    _require(isinstance(model, dict) and set(model) == {"embed_dim", "vision_cfg", "text_cfg"}, "model")
    vision, text = model["vision_cfg"], model["text_cfg"]
    _require(isinstance(vision, dict) and set(vision) == _VISION_KEYS[kind], "vision_cfg")
    _require(isinstance(text, dict) and set(text) == _TEXT_KEYS, "text_cfg")
    _require(text["pool_type"] == "eos", "text_cfg.pool_type")
    # A list in open_clip's `layers` asks for its residual network: blocks of each of four stages.
    list_name = "layers" if kind == "image" else "channels"
    listed = vision[list_name]
    is_list = isinstance(listed, list) and 1 <= len(listed) <= _MAX_CHANNELS
    _require(is_list, f"vision_cfg.{list_name}")
    named = {f"vision_cfg.{name}": value for name, value in vision.items() if name != list_name}
    named |= {f"text_cfg.{name}": value for name, value in text.items() if name != "pool_type"}
    named |= {f"vision_cfg.{list_name}[{index}]": value for index, value in enumerate(listed)}
    named |= {"embed_dim": model["embed_dim"]}
    for name, number in named.items():
        lowest = 0 if name in ("text_cfg.pad_id", "text_cfg.eos_id") else 1
        _require(type(number) is int and lowest <= number <= _MAX_NUMBER, name)
    _require(text["width"] % text["heads"] == 0, "text_cfg.heads")
    _require(max(text["pad_id"], text["eos_id"]) < text["vocab_size"], "text_cfg.vocab_size")
    _require(text["layers"] <= _MAX_LAYERS, "text_cfg.layers")
    size, width = vision["image_size"], vision["width"]
    if kind == "image":
        _require(len(listed) == 4 and max(listed) <= _MAX_LAYERS, "vision_cfg.layers")
        _require(width <= _MAX_NUMBER // 32, "vision_cfg.width")
        _require(width * 32 % vision["head_width"] == 0, "vision_cfg.head_width")
        _require(size % 32 == 0, "vision_cfg.image_size")
        return
    _require(vision["layers"] <= _MAX_LAYERS, "vision_cfg.layers")
    _require(width % vision["heads"] == 0, "vision_cfg.heads")
    _require(all(number % 4 == 0 for number in listed), "vision_cfg.channels")
    _require(size % 2 ** len(listed) == 0, "vision_cfg.image_size")
    side = size // 2 ** len(listed)
    _require(side * side * listed[-1] * width <= _MAX_MATRIX, "vision_cfg.image_size")
    _require(vision["num_frames"] * width * model["embed_dim"] <= _MAX_MATRIX, "vision_cfg.num_frames")


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"{name} is missing, unknown, too large, or does not fit the others")
