"""Trains the rewards of the moving-shapes world: contrastive models of frames or clips and captions."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from hummingbird.config import ConfigError, config_dataclass
from hummingbird.nano import world
from hummingbird.rewards.frame_selection import FrameSelection
from hummingbird.rewards.nano import (
    Kind,
    build_nano_network,
    check_nano_model,
    nano_preprocessing,
    nano_tokenizer,
    tokenize_prompts,
)
from hummingbird.rewards.preprocess import preprocess
from train.loop import Batch, Count, LoopConfig, run

VISIBLE: dict[Kind, tuple[str, ...]] = {
    "image": ("shape", "color", "background"),
    "video": world.ATTRIBUTES,
}
"""What a frame, or a clip, tells."""
NUM_DISTRACTORS = 16
_STATISTICS_SEED, _STATISTICS_BATCHES = 2_000_000, 8
_MAX_LOGIT_SCALE = 100.0
_VALUES = dict(
    zip(world.ATTRIBUTES, (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), strict=True)
)


@config_dataclass
class NanoRewardConfig:
    """A contrastive model of frames or clips; open_clip's CLIP for frames."""

    loop: LoopConfig
    kind: Kind
    embed_dim: Count = 64
    image_size: Count = world.IMAGE_SIZE
    """Side that frames are shrunk to."""
    width: Count = 16
    """Of the vision tower. Of ``image``, that of open_clip's residual network after its stem."""
    layers: Count = 1
    """Of the vision tower: residual blocks of each of four stages, or attention over the frames of a clip."""
    heads: Count = 8
    """Of the vision tower's attention; of ``image``, that which pools."""
    channels: tuple[int, ...] = (32, 64, 64, 64)
    """Of ``video``: one per convolution, each a multiple of 4."""
    num_frames: Annotated[int, Field(ge=1, le=world.NUM_FRAMES)] = 8
    """Of ``video``."""
    text_width: Count = 64
    text_layers: Count = 2
    text_heads: Count = 4
    noise: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest deviation of the noise on frames, which generated videos have and rendered ones do not."""
    num_test_clips: Count = 256
    """Of the retrieval figures; half of them unseen combinations."""


def model_config(config: NanoRewardConfig, tokenizer: Any) -> dict[str, Any]:
    """What ``build_nano_network`` takes."""
    text = {
        "context_length": tokenizer.model_max_length,
        "vocab_size": len(tokenizer),
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
        "pad_id": tokenizer.pad_token_id,
        "eos_id": tokenizer.eos_token_id,
        "pool_type": "eos",
    }
    vision: dict[str, Any]
    if config.kind == "image":
        vision = {
            "image_size": config.image_size,
            "width": config.width,
            "layers": [config.layers] * 4,
            "head_width": config.width * 32 // config.heads,
        }
    else:
        vision = {
            "image_size": config.image_size,
            "channels": list(config.channels),
            "width": config.width,
            "layers": config.layers,
            "heads": config.heads,
            "num_frames": config.num_frames,
        }
    return {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}


def frame_selection(config: NanoRewardConfig) -> FrameSelection:
    """One random frame of each clip, or evenly spaced ones, as the rewards are used."""
    if config.kind == "image":
        return FrameSelection(rule="random", count=1)
    return FrameSelection(rule="strided", count=config.num_frames)


class MovingShapesPairs:
    """Clips with right captions and wrong ones: ``{"frames", "captions", "indices"}``.

    ``frames`` is float32 (B, F, 3, 64, 64) in [0, 1]. ``captions`` are the B right ones and then, for every
    clip and every attribute that can be seen, one that is wrong in this attribute alone. ``indices`` is
    int64 (captions, 4). Only seen combinations are named: a caption that were always wrong would be learned
    as wrong.

    Args:
        kind: Frames or clips.
        selection: Which frames of a clip.
        batch_size: B.
        seed: Of all draws.
    """

    def __init__(self, kind: Kind, selection: FrameSelection, batch_size: int, seed: int) -> None:
        self.kind, self.selection = kind, selection
        self.batch_size, self.seed = batch_size, seed

    def batch(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        items = world.random_attributes(self.batch_size, rng)
        frames = render_frames(items, self.selection, rng)
        named = [
            *items,
            *(
                with_wrong_value(item, name, rng, unseen=False)
                for item in items
                for name in VISIBLE[self.kind]
            ),
        ]
        return {
            "frames": frames,
            "captions": [item.random_caption(rng) for item in named],
            "indices": torch.tensor([item.indices for item in named]),
        }


def render_frames(
    items: Sequence[world.Attributes], selection: FrameSelection, rng: np.random.Generator
) -> Tensor:
    """Clips as a reward is given them: float32 (B, F, 3, 64, 64) in [0, 1]; each with picks of its own."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    picks = np.array([selection.indices(world.NUM_FRAMES, generator) for _ in items])
    clips = world.render_clips(items, rng, frame_indices=picks)  # (B, F, H, W, 3)
    return clips.movedim(-1, 2).float() / 255.0


def with_wrong_value(
    item: world.Attributes, name: str, rng: np.random.Generator, *, unseen: bool = True
) -> world.Attributes:
    """The same request with another value of one attribute.

    Args:
        item: The right one.
        name: The attribute.
        rng: Draws the value.
        unseen: Whether the result may be a combination that is never trained on.
    """
    options = [replace(item, **{name: value}) for value in _VALUES[name] if value != getattr(item, name)]
    allowed = [option for option in options if unseen or not option.is_unseen]
    return allowed[int(rng.integers(len(allowed)))]


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, image_labels: Tensor, text_labels: Tensor
) -> Tensor:
    """Cross-entropy both ways, where everything of the same label is right.

    Args:
        images: (B, D), normalised.
        texts: (B + N, D), normalised; the first B belong to the images, the others are further wrong ones.
        scale: Factor of the cosines.
        image_labels: (B,) integers.
        text_labels: (B + N,) integers.

    Reference:
        Yang et al., arXiv 2204.03610; the further wrong captions: Yuksekgonul et al., arXiv 2210.01936.
    """
    logits = scale.clamp(max=_MAX_LOGIT_SCALE) * images @ texts.T
    is_right = (image_labels[:, None] == text_labels[None]).float()
    to_text = F.cross_entropy(logits, is_right / is_right.sum(dim=1, keepdim=True))
    count = len(images)
    back = is_right[:, :count].T
    to_image = F.cross_entropy(logits[:, :count].T, back / back.sum(dim=1, keepdim=True))
    return (to_text + to_image) / 2


class NanoRewardTask:
    """A nano reward and how well it finds the right caption.

    Args:
        network: From ``build_nano_network``.
        tokenizer: Of its captions.
        config: The run's settings.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, config: NanoRewardConfig) -> None:
        self.network: Any = network
        self.tokenizer, self.config = tokenizer, config

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        frames = batch["frames"].to(device)
        count = len(frames)
        deviation = self.config.noise * torch.rand((count, 1, 1, 1, 1), generator=generator, device=device)
        noise = torch.randn(frames.shape, generator=generator, device=device)
        input_ids = tokenize_prompts(self.tokenizer, batch["captions"]).to(device)
        images, texts, scale = self.network(self._pixels(frames + deviation * noise), input_ids)
        labels = self._labels(batch["indices"].to(device))
        loss = contrastive_loss(images.float(), texts.float(), scale, labels[:count], labels)
        with torch.no_grad():
            found = labels[(images @ texts.T).argmax(dim=1)] == labels[:count]
        return {"loss": loss, "batch_accuracy": found.float().mean(), "logit_scale": scale}

    def _pixels(self, frames: Tensor) -> Tensor:
        pixels = preprocess(frames, nano_preprocessing(self.config.image_size))
        return pixels[:, 0] if self.config.kind == "image" else pixels

    def _labels(self, indices: Tensor) -> Tensor:
        """One number for all attributes that can be seen: (N, 4) -> (N,)."""
        label = torch.zeros_like(indices[:, 0])
        for column, name in enumerate(world.ATTRIBUTES):
            if name in VISIBLE[self.config.kind]:
                label = label * len(_VALUES[name]) + indices[:, column]
        return label

    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        figures = retrieval_accuracy(self._with_statistics(network), self.tokenizer, self.config)
        (folder / "retrieval.json").write_text(json.dumps(figures, indent=2) + "\n")
        return figures

    def save_model(self, network: Any, folder: Path) -> None:
        """As ``load_reward`` reads it."""
        values = {"kind": self.config.kind, "model": model_config(self.config, self.tokenizer)}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        state_dict = self._with_statistics(network).state_dict()
        state_dict = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
        save_file(state_dict, folder / "model.safetensors")

    @torch.no_grad()
    def _with_statistics(self, network: Any) -> Any:
        """The network, or a copy whose batch norms have the statistics of its own weights.

        Those counted in training are of the last weights, and what is sampled and saved are averaged ones.
        """
        if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            return network
        network = copy.deepcopy(network)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None  # of all batches alike
            norm.train()
        device = next(network.parameters()).device
        selection = frame_selection(self.config)
        data = MovingShapesPairs(self.config.kind, selection, self.config.loop.batch_size, _STATISTICS_SEED)
        for index in range(_STATISTICS_BATCHES):
            network.encode_image(self._pixels(data.batch(index)["frames"].to(device)))
        return network.eval()


@torch.no_grad()
def retrieval_accuracy(
    network: Any, tokenizer: Any, config: NanoRewardConfig, seed: int = 0
) -> dict[str, float]:
    """How often a clip's own caption scores above 16 that are wrong in one attribute alone.

    Args:
        network: In eval mode.
        tokenizer: Of its captions.
        config: For the kind, the frames and the number of clips, half of which are unseen combinations.
        seed: Of clips and captions.

    Returns:
        ``retrieval_ATTRIBUTE``, shares in [0, 1], for each attribute that can be seen; a caption's words and
        the distractors' words are drawn alike.
    """
    device = next(network.parameters()).device
    rng = np.random.default_rng((seed, 1))
    items = world.evaluation_prompts(config.num_test_clips, seed)
    frames = render_frames(items, frame_selection(config), rng).to(device)
    right: dict[str, int] = dict.fromkeys(VISIBLE[config.kind], 0)
    for start in range(0, len(items), 64):
        part = items[start : start + 64]
        pixels = preprocess(frames[start : start + 64], nano_preprocessing(config.image_size))
        features = network.encode_image(pixels[:, 0] if config.kind == "image" else pixels)
        for name in right:
            captions = [
                candidate.random_caption(rng)
                for item in part
                for candidate in (item, *(with_wrong_value(item, name, rng) for _ in range(NUM_DISTRACTORS)))
            ]
            input_ids = tokenize_prompts(tokenizer, captions).to(device)
            texts = F.normalize(network.encode_text(input_ids), dim=-1).unflatten(0, (len(part), -1))
            scores = (texts @ features[:, :, None])[..., 0]  # (clips, 17)
            right[name] += int((scores[:, :1] > scores[:, 1:]).all(dim=1).sum())  # a tie is not found
    return {f"retrieval_{name}": count / len(items) for name, count in right.items()}


def build_task(config: NanoRewardConfig) -> NanoRewardTask:
    """The task with random weights from torch's global generator.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    if config.width % config.heads or config.text_width % config.text_heads:
        raise ConfigError("width, text_width: expected multiples of heads and text_heads")
    halvings = 5 if config.kind == "image" else len(config.channels)
    if config.image_size % 2**halvings:
        raise ConfigError(
            f"image_size: got {config.image_size}, expected a multiple of {2**halvings}, because the network "
            f"halves it {halvings} times"
        )
    if config.kind == "video" and any(channels < 4 or channels % 4 for channels in config.channels):
        raise ConfigError(f"channels: got {config.channels}, expected multiples of 4")
    tokenizer = nano_tokenizer()
    model = model_config(config, tokenizer)
    try:
        check_nano_model(config.kind, model)  # what could not be loaded again is not trained
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return NanoRewardTask(build_nano_network(config.kind, model), tokenizer, config)


def train_reward(config: NanoRewardConfig) -> None:
    """Trains from nothing.

    Raises:
        ConfigError: Settings that do not fit.
    """
    if config.loop.init_from is not None:
        raise ConfigError(f"loop.init_from: got {config.loop.init_from!r}, but rewards start from nothing")
    torch.manual_seed(config.loop.seed)
    task = build_task(config)
    data = MovingShapesPairs(config.kind, frame_selection(config), config.loop.batch_size, config.loop.seed)
    run(task, data, config.loop, config)
