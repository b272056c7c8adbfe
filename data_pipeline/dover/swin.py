"""The technical backbone of DOVER: a Swin-3D whose position bias knows fragments.

Shifted windows in space and time are Liu et al., Video Swin Transformer, arXiv 2106.13230. The gated relative
position bias is Wu et al., FAST-VQA, arXiv 2207.02595, section 3.3: tokens of one fragment get one table of
biases, tokens of different fragments another.

Names and shapes of the state dict are those of published checkpoints. So are three peculiarities, without
which their weights give other scores:

* the gate between the two tables is the distance in fragments, an integer, and not 0 or 1;
* padded positions are attended to like any others;
* a window that is shrunken to a small input reads the first entries of the full window's index of biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

__all__ = ["SwinTransformer3D", "relative_position_index"]

Size = tuple[int, int, int]
"""Frames, rows, columns."""

_MASKED = -100.0


def relative_position_index(window_size: Size) -> torch.Tensor:
    """Row of the bias table for every pair of positions in a window: ``(N, N)`` int64, N positions."""
    axes = [torch.arange(size) for size in window_size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, N)
    offsets = places[:, :, None] - places[:, None, :]  # (3, N, N)
    _, rows, columns = window_size
    frames = offsets[0] + window_size[0] - 1
    down, right = offsets[1] + rows - 1, offsets[2] + columns - 1
    return (frames * (2 * rows - 1) + down) * (2 * columns - 1) + right


def _shrunken(size: Size, window_size: Size, shift: Size) -> tuple[Size, Size]:
    """Window and shift for an input of ``size``: no larger than it, and not shifted where one covers it."""
    fits = [length <= window for length, window in zip(size, window_size, strict=True)]
    window = tuple(s if fit else w for s, w, fit in zip(size, window_size, fits, strict=True))
    moved = tuple(0 if fit else m for m, fit in zip(shift, fits, strict=True))
    return (window[0], window[1], window[2]), (moved[0], moved[1], moved[2])


def _to_windows(x: torch.Tensor, window: Size) -> torch.Tensor:
    """``(B, D, H, W, C)`` -> ``(B, number of windows, N, C)``."""
    d, h, w = window
    return rearrange(x, "b (nd d) (nh h) (nw w) c -> b (nd nh nw) (d h w) c", d=d, h=h, w=w)


def _from_windows(x: torch.Tensor, window: Size, padded: Size) -> torch.Tensor:
    """The inverse of ``_to_windows``."""
    d, h, w = window
    nd, nh, nw = (size // length for size, length in zip(padded, window, strict=True))
    return rearrange(
        x, "b (nd nh nw) (d h w) c -> b (nd d) (nh h) (nw w) c", nd=nd, nh=nh, nw=nw, d=d, h=h, w=w
    )


def _shift_mask(padded: Size, window: Size, shift: Size, device: torch.device) -> torch.Tensor:
    """``(number of windows, N, N)``: -100 between positions that only the cyclic shift brought together."""
    regions = torch.zeros(padded, device=device)
    for axis in range(3):
        place = torch.arange(padded[axis], device=device)
        edge = padded[axis] - window[axis]
        region = (
            (place >= edge).long() + (place >= padded[axis] - shift[axis]).long()
            if shift[axis]
            else 0 * place
        )
        shape = [1, 1, 1]
        shape[axis] = -1
        regions = regions * 3 + region.view(shape)
    labels = _to_windows(regions[None, ..., None], window)[0, ..., 0]  # (windows, N)
    return torch.where(labels[:, :, None] == labels[:, None, :], 0.0, _MASKED)


def _fragment_distance(padded: Size, window: Size, shift: Size, device: torch.device) -> torch.Tensor:
    """``(number of windows, N, N)``: rows plus columns of fragments between two positions.

    The picture is taken for a grid of as many fragments as the window has rows and columns, whatever the
    number of crops that it was made of.
    """
    _, rows, columns = window
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    labels = F.interpolate(grid[None].float().to(device), size=padded[1:], mode="nearest")[0]  # (2, H, W)
    labels = labels[:, None].expand(-1, padded[0], -1, -1)
    labels = torch.roll(labels, [-s for s in shift], dims=(1, 2, 3))
    cells = _to_windows(labels.permute(1, 2, 3, 0)[None], window)[0]  # (windows, N, 2)
    return (cells[:, :, None] - cells[:, None, :]).abs().sum(dim=-1)


class WindowAttention3D(nn.Module):
    """Attention within windows of ``(B, windows, N, C)`` tokens."""

    relative_position_index: torch.Tensor

    def __init__(self, dim: int, window_size: Size, num_heads: int, qkv_bias: bool, frag_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        table = [2 * size - 1 for size in window_size]
        entries = table[0] * table[1] * table[2]
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, num_heads))
        self.fragment_position_bias_table = (
            nn.Parameter(torch.zeros(entries, num_heads)) if frag_bias else None
        )
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def _bias(self, distance: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``(windows or 1, heads, N, N)``, to be added to the logits."""
        num_tokens = distance.shape[-1]
        index = self.relative_position_index[:num_tokens, :num_tokens]
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]
        if self.fragment_position_bias_table is not None:
            fragment = self.fragment_position_bias_table[index].permute(2, 0, 1)[None]
            gate = distance[:, None].to(bias.dtype)
            bias = bias * gate + fragment * (1 - gate)
        return bias if mask is None else bias + mask[:, None].to(bias.dtype)

    def forward(self, x: torch.Tensor, distance: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend.

        Args:
            x: ``(B, windows, N, C)``.
            distance: of ``_fragment_distance``.
            mask: of ``_shift_mask``; None where nothing is shifted.
        """
        q, k, v = rearrange(self.qkv(x), "b w n (t h d) -> t b w h n d", t=3, h=self.num_heads)
        bias = self._bias(distance, mask).expand(x.shape[1], -1, -1, -1)
        # One clip at a time: the biases of all windows are by far the largest tensor, and are shared.
        mixed = [F.scaled_dot_product_attention(*qkv, attn_mask=bias) for qkv in zip(q, k, v, strict=True)]
        return self.proj(rearrange(torch.stack(mixed), "b w h n d -> b w n (h d)"))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock3D(nn.Module):
    """Norm, window attention, norm, MLP, each around a shortcut, on ``(B, D, H, W, C)``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: Size,
        shift: Size,
        mlp_ratio: float,
        qkv_bias: bool,
        frag_bias: bool,
    ) -> None:
        super().__init__()
        self.window_size, self.shift = window_size, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention3D(dim, window_size, num_heads, qkv_bias, frag_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        frames, rows, columns = x.shape[1:4]
        window, shift = _shrunken((frames, rows, columns), self.window_size, self.shift)
        missing = [-size % length for size, length in zip((frames, rows, columns), window, strict=True)]
        x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        padded = (x.shape[1], x.shape[2], x.shape[3])
        x = torch.roll(x, [-s for s in shift], dims=(1, 2, 3))
        mask = _shift_mask(padded, window, shift, x.device) if any(shift) else None
        distance = _fragment_distance(padded, window, shift, x.device)
        x = _from_windows(self.attn(_to_windows(x, window), distance, mask), window, padded)
        return torch.roll(x, shift, dims=(1, 2, 3))[:, :frames, :rows, :columns]


class PatchMerging(nn.Module):
    """Half the rows and columns, twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        # Checkpoints have the four in the order top left, bottom left, top right, bottom right.
        x = rearrange(x, "b d (h row) (w column) c -> b d h w (column row c)", row=2, column=2)
        return self.reduction(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, blocks: Sequence[SwinBlock3D], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _PatchEmbed3D(nn.Module):
    def __init__(self, in_chans: int, embed_dim: int, patch_size: Size, patch_norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if patch_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, T, H, W)`` -> ``(B, D, H', W', C')``; sizes that do not divide are padded at the end."""
        missing = [-size % patch for size, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        x = self.proj(F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))).permute(0, 2, 3, 4, 1)
        return x if self.norm is None else self.norm(x)


class SwinTransformer3D(nn.Module):
    """Swin-3D-T by default; the arguments have the names of the published configuration.

    Args:
        embed_dim: channels of the first layer; each further one has twice as many.
        depths: blocks in each layer; every second one has shifted windows.
        num_heads: of each layer.
        window_size: frames, rows, columns, in tokens.
        frag_biases: which layers have the second table of biases.
        patch_size: frames, rows, columns of a token, in pixels.
        mlp_ratio: hidden channels of the MLPs over channels.
        qkv_bias, patch_norm, in_chans: as they say.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] = (8, 7, 7),
        frag_biases: Sequence[bool] = (True, True, True, False),
        patch_size: Sequence[int] = (2, 4, 4),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        window: Size = (window_size[0], window_size[1], window_size[2])
        half: Size = (window[0] // 2, window[1] // 2, window[2] // 2)
        patch: Size = (patch_size[0], patch_size[1], patch_size[2])
        self.patch_embed = _PatchEmbed3D(in_chans, embed_dim, patch, patch_norm)
        self.layers = nn.ModuleList()
        for number, (depth, heads, frag_bias) in enumerate(zip(depths, num_heads, frag_biases, strict=True)):
            dim = embed_dim * 2**number
            blocks = [
                SwinBlock3D(
                    dim,
                    heads,
                    window_size=window,
                    shift=half if index % 2 else (0, 0, 0),
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    frag_bias=frag_bias,
                )
                for index in range(depth)
            ]
            self.layers.append(_Layer(blocks, PatchMerging(dim) if number < len(depths) - 1 else None))
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of normalised frames.

        Args:
            x: ``(B, 3, T, H, W)``; any size.

        Returns:
            ``(B, C, T / 2, H / 32, W / 32)`` for the default configuration, each rounded up.
        """
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).permute(0, 4, 1, 2, 3)
