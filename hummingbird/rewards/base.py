"""What all rewards share: a frozen network that scores frames against prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hummingbird.rewards.frame_selection import IMAGE_FRAMES, VIDEO_FRAMES, FrameSelection
from hummingbird.rewards.preprocess import Preprocessing, preprocess

_SLACK = 1e-3
"""How far frames may leave [0, 1] by rounding."""


class Reward(nn.Module):
    """Frames ``(B, F, 3, H, W)`` in [0, 1] and prompts to scores ``(B,)``: higher is better.

    The score is the cosine of two embeddings, float32, differentiable in the frames. The network is frozen
    and stays in eval mode whatever ``train`` is called with. Nothing is cached: who scores the same prompts
    again keeps ``embed_prompts`` and gives ``prompt_embeds``.

    Args:
        network: What embeds; it is frozen here.
        preprocessing: How frames reach it.

    Attributes:
        name: As ``load_reward`` knows it.
        frame_selection: Which frames of a video to decode for it, as its original does.
        unused_keys: Keys of the checkpoint that were recognised and have no effect on the score.
        unknown_keys: Keys of the checkpoint that nothing is known about, where its family allows them.
    """

    name: ClassVar[str] = ""
    frame_selection: FrameSelection = IMAGE_FRAMES

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False)
        self.preprocessing = preprocessing
        self.unused_keys: tuple[str, ...] = ()
        self.unknown_keys: tuple[str, ...] = ()
        self.eval()

    def train(self, mode: bool = True) -> Reward:
        """Keep dropout and masking off: a reward is never trained by what uses it."""
        return super().train(False)

    def forward(
        self,
        frames: Tensor,
        prompts: Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Score videos or images.

        Args:
            frames: (B, F, 3, H, W) in [0, 1], RGB, any floating type. A value that is no number makes the
                score none.
            prompts: B of them, or one for all.
            prompt_embeds: Instead of prompts, what ``embed_prompts`` or ``embed_tokens`` returned:
                (B, D) or (1, D).
            generator: Draws a random crop and the frames of a video reward; torch's global one where left
                out.

        Returns:
            float32 (B,), in [-1, 1].

        Raises:
            ValueError: Input of another shape, type, range or number.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.numel() == 0:
            raise ValueError(f"frames: got shape {tuple(frames.shape)}, expected (B, F, 3, H, W)")
        if not frames.is_floating_point():
            raise ValueError(f"frames: got {frames.dtype}, expected floating numbers in [0, 1]")
        low, high = (0.0, 1.0) if frames.is_meta else (float(x) for x in frames.detach().aminmax())
        if low < -_SLACK or high > 1.0 + _SLACK:  # neither holds for what is no number
            raise ValueError(f"frames: got values from {low:.3g} to {high:.3g}, expected [0, 1]; scale them")
        if (prompts is None) == (prompt_embeds is None):
            raise ValueError("prompts, prompt_embeds: expected one of the two")
        if prompts is not None:
            prompt_embeds = self.embed_prompts(prompts)
        assert prompt_embeds is not None
        if len(prompt_embeds) not in (1, len(frames)):
            raise ValueError(
                f"prompts: got {len(prompt_embeds)} for {len(frames)} videos, expected one each or one"
            )
        return self._score(frames, F.normalize(prompt_embeds.float(), dim=-1), generator)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Features of prompts (B, D), float32, not normalised, without gradients.

        Raises:
            ValueError: No prompt.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise ValueError("prompts: got none, expected at least one")
        return self.embed_tokens(**self.tokenize(prompts))

    @torch.no_grad()
    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features of tokens.

        Args:
            input_ids: (B, L) integers.
            attention_mask: (B, L), 1 for tokens and 0 for padding, where the network reads one.

        Returns:
            float32 (B, D), not normalised.
        """
        device = self._parameter.device
        mask = None if attention_mask is None else attention_mask.to(device)
        return self._text_features(input_ids.to(device).long(), mask).float()

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens of prompts, as arguments of ``embed_tokens``."""
        raise NotImplementedError

    def pixel_values(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the network sees: float32 (B, F, 3, size, size)."""
        return preprocess(frames.to(self._parameter.device), self.preprocessing, generator)

    def _score(self, frames: Tensor, prompt_embeds: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    @property
    def _parameter(self) -> Tensor:
        return next(self.network.parameters())


class ImageReward(Reward):
    """A reward of single frames; a video's score is the mean over the frames that it is given."""

    frame_selection = IMAGE_FRAMES

    def embed_frames(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Features of frames: (B, F, 3, H, W) -> float32 (B, F, D), not normalised."""
        pixels = self.pixel_values(frames, generator).to(self._parameter.dtype)
        return self._image_features(pixels.flatten(0, 1)).float().unflatten(0, frames.shape[:2])

    def _score(self, frames: Tensor, prompt_embeds: Tensor, generator: torch.Generator | None) -> Tensor:
        features = F.normalize(self.embed_frames(frames, generator), dim=-1)
        return (features * prompt_embeds[:, None]).sum(dim=-1).mean(dim=1)

    def _image_features(self, pixels: Tensor) -> Tensor:
        """(N, 3, size, size) -> (N, D)."""
        raise NotImplementedError


class VideoReward(Reward):
    """A reward of clips of ``num_frames`` frames, or of one frame where the network has an image mode.

    Of longer videos, ``frame_selection`` picks that many in each call.

    Args:
        network: As for ``Reward``.
        preprocessing: As for ``Reward``.
        num_frames: What the network reads.
    """

    has_image_mode: bool = True

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, num_frames: int) -> None:
        super().__init__(network, preprocessing)
        self.num_frames = num_frames
        self.frame_selection = replace(VIDEO_FRAMES, count=num_frames)

    def embed_frames(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Features of clips: (B, F, 3, H, W) -> float32 (B, D), not normalised."""
        given = frames.shape[1]
        if given != self.num_frames and not (given == 1 and self.has_image_mode):
            if given < self.num_frames:
                raise ValueError(
                    f"{self.name}: got {given} frames, expected "
                    f"{'1 or ' if self.has_image_mode else ''}at least {self.num_frames}"
                )
            frames = frames[:, self.frame_selection.indices(given, generator)]
        pixels = self.pixel_values(frames, generator).to(self._parameter.dtype)
        return self._video_features(pixels).float()

    def _score(self, frames: Tensor, prompt_embeds: Tensor, generator: torch.Generator | None) -> Tensor:
        features = F.normalize(self.embed_frames(frames, generator), dim=-1)
        return (features * prompt_embeds).sum(dim=-1)

    def _video_features(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, size, size) -> (B, D)."""
        raise NotImplementedError
