"""Embeddings of numbers (diffusion timestep, frame rate, guidance scale, frame position)."""

from __future__ import annotations

import math

import torch
from torch import nn


def sinusoidal_embedding(values: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """Embed numbers as ``[cos | sin]`` with frequencies ``max_period ** (-i / half)``.

    Always computed in float32: a half-precision timestep near 1000 has no fraction left.

    Args:
        values: any shape ``(...)``, any dtype; timesteps in [0, 1000), frames per second, ...
        dim: width of the embedding; an odd width ends with one zero.

    Returns:
        float32 tensor ``(..., dim)``.

    Reference:
        Vaswani et al., "Attention Is All You Need", section 3.5, arXiv 1706.03762, in the cosine-first
        order of the latent-diffusion networks.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(-math.log(max_period) * exponents / half)
    angles = values.to(torch.float32)[..., None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, 1)) if dim % 2 else embedding


class FrameEmbedding(nn.Module):
    """Per-frame vector from the frame's relative position and the mean text token.

    Off in the published networks, whose temporal layers see no positions at all; a small network learns
    motion far sooner when every residual block is told which frame it works on.

    Args:
        position_dim: width of the sinusoid of the position, None to leave positions out.
        text_dim: width of a text token, None to leave the text out.
        embedding_dim: width of the network's embedding, E.
    """

    def __init__(self, position_dim: int | None, text_dim: int | None, embedding_dim: int) -> None:
        super().__init__()
        self.position_dim = position_dim
        self.pos_proj = None if position_dim is None else nn.Linear(position_dim, embedding_dim)
        self.text_proj = None if text_dim is None else nn.Linear(text_dim, embedding_dim)
        self.act = nn.SiLU()
        self.out = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, encoder_hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Compute ``out(SiLU(pos_proj(sin(1000 p)) + text_proj(mean token)))``, p = f / (F - 1).

        Args:
            encoder_hidden_states: text tokens ``(B, L, text_dim)``.
            num_frames: F; with one frame p is 0.

        Returns:
            ``(B or 1, F or 1, E)``, to be broadcast.
        """
        terms = []
        if self.pos_proj is not None and self.position_dim is not None:
            frames = torch.arange(num_frames, dtype=torch.float32, device=encoder_hidden_states.device)
            position = sinusoidal_embedding(1000.0 * frames / max(num_frames - 1, 1), self.position_dim)
            terms.append(self.pos_proj(position.to(encoder_hidden_states.dtype))[None])  # (1, F, E)
        if self.text_proj is not None:
            terms.append(self.text_proj(encoder_hidden_states.mean(dim=1, keepdim=True)))  # (B, 1, E)
        return self.out(self.act(sum(terms[1:], start=terms[0])))
