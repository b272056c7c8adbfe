"""Blocks of the spatio-temporal U-Net.

Two layouts meet here. Spatial layers see frames ``(B*F, C, H, W)``; temporal layers see videos
``(B, C, F, H, W)``. With channels-last memory both are views of the same bytes (frames, rows, columns,
channels), so that going from one to the other copies nothing; so is the token layout ``(B*F, H*W, C)``.
Only temporal attention reorders memory, once on its way in; the way out is fused with the residual sum.

Group norms are per frame in spatial layers and joint over F, H, W in temporal ones. torch's group norm
sums in float32 whatever the dtype of its input, so half precision needs no cast around it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import nn
from torch.nn import functional as F

RESIDUAL_NORM_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6
# most keys for which plain attention is the faster one on a CPU, from benchmarks/blocks_cpu.py
_PLAIN_MAX_KEYS = 32
_PLAIN_MAX_KEYS_HALF = 256


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that the branch it ends starts as a no-op."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def frames_to_video(hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
    """View ``(B*F, C, H, W)`` as ``(B, C, F, H, W)``; never copies."""
    return hidden_states.unflatten(0, (-1, num_frames)).transpose(1, 2)


def video_to_frames(hidden_states: torch.Tensor) -> torch.Tensor:
    """Give ``(B, C, F, H, W)`` as ``(B*F, C, H, W)``; a view when the memory is channels-last."""
    return hidden_states.transpose(1, 2).flatten(0, 1)


class GroupNorm(nn.GroupNorm):
    """Group norm with float32 sums, in the input's dtype.

    torch's kernels sum in float32 by themselves. On a CPU its half-precision kernel for channels-last
    memory is ten times slower than the float32 one, so the input is cast there, as the original does.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise ``(N, C, ...)``, any rank, any dtype."""
        dtype = hidden_states.dtype
        if dtype == torch.float32 or hidden_states.device.type != "cpu":
            return super().forward(hidden_states)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(hidden_states.float(), self.num_groups, weight, bias, self.eps).to(dtype)


class PointwiseConv1d(nn.Conv1d):
    """A kernel-1 convolution of ``(N, C, L)``, computed as a matrix product over C.

    Keeps the parameter shapes of a ``Conv1d`` while working on a transposed token tensor without a copy.
    Built with the arguments of ``Conv1d``, because peft makes its low-rank layers from the class.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, L)`` to ``(N, out_channels, L)``."""
        return F.linear(hidden_states.transpose(1, 2), self.weight[:, :, 0], self.bias).transpose(1, 2)


class TemporalConv3d(nn.Conv3d):
    """A 3x1x1 convolution over frames with the parameters of a ``Conv3d`` (``[o, i, 3, 1, 1]``).

    Computed as a 3x1 convolution of the (F, H*W) plane: the same sums by the faster two-dimensional
    kernels (``benchmarks/blocks_cpu.py``). Built with the arguments of ``Conv3d``, because peft makes its
    low-rank layers from the class; kernel and padding must be 1 and 0 in height and width.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, F, H, W)`` to ``(B, out_channels, F, H, W)``."""
        plane = hidden_states.flatten(3)  # (B, C, F, H*W)
        padding = (int(self.padding[0]), 0)
        plane = F.conv2d(plane, self.weight.squeeze(-1), self.bias, padding=padding)
        return plane.unflatten(3, hidden_states.shape[3:])


class TemporalConvBlock(nn.Module):
    """Four convolutions over frames with a residual sum; joint group norms."""

    def __init__(self, channels: int, norm_num_groups: int, dropout: float) -> None:
        super().__init__()

        def stage(*extra: nn.Module) -> nn.Sequential:
            norm = GroupNorm(norm_num_groups, channels, eps=RESIDUAL_NORM_EPS)
            conv = TemporalConv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            return nn.Sequential(norm, nn.SiLU(), *extra, conv)

        self.conv1 = stage()
        self.conv2 = stage(nn.Dropout(dropout))
        self.conv3 = stage(nn.Dropout(dropout))
        self.conv4 = stage(nn.Dropout(dropout))
        zero_init(self.conv4[-1])

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Map frames ``(B*F, C, H, W)`` to the same shape."""
        video = frames_to_video(hidden_states, num_frames)
        video = video + self.conv4(self.conv3(self.conv2(self.conv1(video))))
        return video_to_frames(video)


class ResBlock(nn.Module):
    """Two convolutions with the embedding added in between, then convolutions over frames."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        norm_num_groups: int,
        dropout: float,
        temporal_conv: bool,
        temporal_conv_dropout: float,
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(norm_num_groups, in_channels, eps=RESIDUAL_NORM_EPS),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_dim, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(norm_num_groups, out_channels, eps=RESIDUAL_NORM_EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.temopral_conv = (  # misspelt in every published checkpoint
            TemporalConvBlock(out_channels, norm_num_groups, temporal_conv_dropout) if temporal_conv else None
        )

    def forward(
        self, hidden_states: torch.Tensor, emb: torch.Tensor, num_frames: int, temporal: bool = True
    ) -> torch.Tensor:
        """Map frames ``(B*F, in, H, W)`` to ``(B*F, out, H, W)``.

        Args:
            hidden_states: frames.
            emb: embedding ``(B, 1, E)``, or ``(B, F, E)`` where frames differ.
            num_frames: F.
            temporal: False leaves the convolutions over frames out.
        """
        residual = self.skip_connection(hidden_states)
        hidden_states = self.in_layers(hidden_states)
        hidden_states = hidden_states.unflatten(0, (-1, num_frames)) + self.emb_layers(emb)[..., None, None]
        hidden_states = residual + self.out_layers(hidden_states.flatten(0, 1))
        if temporal and self.temopral_conv is not None:
            hidden_states = self.temopral_conv(hidden_states, num_frames)
        return hidden_states


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(B*F, C, H, W)`` to ``(B*F, C, H/2, W/2)``."""
        return self.op(hidden_states)


class Upsample(nn.Module):
    """Double height and width by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(B*F, C, H, W)`` to ``(B*F, C, 2H, 2W)``."""
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute ``softmax(Q K^T / sqrt(d)) V`` of ``(N, L, heads, d)`` by two matrix products.

    Reference:
        Vaswani et al., "Attention Is All You Need", equation 1, arXiv 1706.03762.
    """
    batch, length, heads, dim = query.shape
    q, k, v = (x.transpose(1, 2).reshape(batch * heads, x.shape[1], dim) for x in (query, key, value))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=dim**-0.5)
    output = torch.bmm(scores.softmax(dim=-1), v)  # (N*heads, L, d)
    return output.view(batch, heads, length, dim).transpose(1, 2)


def _prefers_plain_attention(key: torch.Tensor) -> bool:
    """Whether two matrix products beat torch's fused kernel, which is slow for few keys on a CPU."""
    if key.device.type != "cpu":
        return False
    return key.shape[1] <= (_PLAIN_MAX_KEYS if key.dtype == torch.float32 else _PLAIN_MAX_KEYS_HALF)


class AttnProcessor:
    """Attention through diffusers' dispatcher.

    ``set_attention_backend``, or the ``attention_backend`` context manager, chooses the kernel. Under the
    backend "native", the default, short sequences on a CPU take the same formula by matrix products.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from ``(N, Lq, C)`` to itself, or to ``(N, Lk, context_dim)``; no mask."""
        query, key, value = (  # (N, Lq or Lk, heads, head_dim)
            x.unflatten(2, (attn.heads, -1)) for x in attn.project(hidden_states, encoder_hidden_states)
        )
        backend = self._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        if backend == AttentionBackendName.NATIVE and _prefers_plain_attention(key):
            output = plain_attention(query, key, value)
        else:
            output = dispatch_attention_fn(
                query, key, value, backend=backend, parallel_config=self._parallel_config
            )
        return attn.to_out[1](attn.to_out[0](output.flatten(2, 3)))


class Attention(nn.Module, AttentionModuleMixin):
    """Multi-head attention without biases on queries, keys and values.

    Args:
        dim: width of the queries' tokens.
        heads: number of heads.
        head_dim: channels per head.
        context_dim: width of the attended tokens, None for self-attention.
    """

    _default_processor_cls = AttnProcessor
    _available_processors: ClassVar[list[type]] = [AttnProcessor]
    use_bias = False  # of the fused projections, which diffusers' mixin makes
    processor: AttnProcessor
    to_qkv: nn.Linear
    to_kv: nn.Linear

    def __init__(
        self, dim: int, heads: int, head_dim: int, context_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner_dim = heads * head_dim
        self.heads = heads
        self.is_cross_attention = context_dim is not None
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(dim if context_dim is None else context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(dim if context_dim is None else context_dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim), nn.Dropout(dropout)])
        self.processor = AttnProcessor()

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map ``(N, L, dim)`` to the same shape."""
        return self.processor(self, hidden_states, encoder_hidden_states)

    def project(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return queries ``(N, Lq, heads * head_dim)``, keys and values, by fused layers if there are any."""
        if self.fused_projections and not self.is_cross_attention:
            return self.to_qkv(hidden_states).chunk(3, dim=2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if self.fused_projections:
            return self.to_q(hidden_states), *self.to_kv(context).chunk(2, dim=2)
        return self.to_q(hidden_states), self.to_k(context), self.to_v(context)


class GEGLU(nn.Module):
    """``value * GELU(gate)`` of one projection (Shazeer, arXiv 2002.05202), with the exact GELU."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(..., dim)`` to ``(..., inner_dim)``."""
        value, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated two-layer perceptron, four times as wide inside."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(..., dim)`` to the same shape."""
        return self.net(hidden_states)


class BasicTransformerBlock(nn.Module):
    """Self-attention, second attention, feed-forward; each on a layer norm and added.

    The second attention looks at the text in spatial layers (``context_dim`` given) and at the sequence
    itself in temporal ones.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None, dropout: float) -> None:
        super().__init__()
        self.attn1 = Attention(dim, heads, head_dim, dropout=dropout)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = Attention(dim, heads, head_dim, context_dim, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map tokens ``(B*F, L, dim)`` to the same shape.

        With text ``(B, Lt, context_dim)`` the frames of one video are folded into one long query
        sequence: keys and values are computed once per video, not once per frame.
        """
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        query = self.norm2(hidden_states)
        if encoder_hidden_states is None:
            attended = self.attn2(query)
        else:
            folded = query.reshape(encoder_hidden_states.shape[0], -1, query.shape[-1])  # (B, F*L, dim)
            attended = self.attn2(folded, encoder_hidden_states).view_as(query)
        hidden_states = hidden_states + attended
        return hidden_states + self.ff(self.norm3(hidden_states))


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of each frame, attending to the text."""

    def __init__(
        self,
        channels: int,
        head_dim: int,
        context_dim: int,
        depth: int,
        norm_num_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        self.norm = GroupNorm(norm_num_groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, head_dim, context_dim, dropout) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """Map frames ``(B*F, C, H, W)`` to the same shape, given text ``(B, L, context_dim)``."""
        height, width = hidden_states.shape[2:]
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2)  # (B*F, H*W, C)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states)
        tokens = self.proj_out(tokens)
        return hidden_states + tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class TemporalTransformer(nn.Module):
    """Transformer over the frames of each pixel; self-attention only, no positions.

    Args:
        channels: width of the video.
        heads: number of heads.
        head_dim: channels per head.
        pointwise_conv: project in and out by kernel-1 convolutions instead of linear layers; only the
            names' shapes in checkpoints differ.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        depth: int,
        norm_num_groups: int,
        dropout: float,
        pointwise_conv: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = heads * head_dim
        self.norm = GroupNorm(norm_num_groups, channels, eps=TRANSFORMER_NORM_EPS)

        def projection(in_width: int, out_width: int) -> nn.Module:
            if pointwise_conv:
                return PointwiseConv1d(in_width, out_width, kernel_size=1)
            return nn.Linear(in_width, out_width)

        self.pointwise_conv = pointwise_conv
        self.proj_in = projection(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner_dim, heads, head_dim, None, dropout) for _ in range(depth)
        )
        self.proj_out = zero_init(projection(inner_dim, channels))

    def _project(self, projection: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if self.pointwise_conv:
            return projection(tokens.transpose(1, 2)).transpose(1, 2)
        return projection(tokens)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Map frames ``(B*F, C, H, W)`` to the same shape."""
        height, width = hidden_states.shape[2:]
        video = self.norm(frames_to_video(hidden_states, num_frames))  # (B, C, F, H, W)
        tokens = video.permute(0, 3, 4, 2, 1).flatten(0, 2).contiguous()  # (B*H*W, F, C)
        # without the copy one video's tokens would be a view, and the projection a batch of small products
        tokens = self._project(self.proj_in, tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        tokens = self._project(self.proj_out, tokens)
        update = tokens.unflatten(0, (-1, height, width)).permute(0, 3, 4, 1, 2)  # (B, F, C, H, W)
        return (hidden_states.unflatten(0, (-1, num_frames)) + update).flatten(0, 1)


class PassThrough(nn.Module):
    """Stands where a layer was pruned, so that the others keep their numbers."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return hidden_states
