"""Convolutions with fewer multiplications, for inference in float32 on a CPU.

A 3x3 convolution of 4x4 outputs at once needs 36 multiplications per pair of channels instead of 144, one of
2x2 outputs 16 instead of 36, and three taps over four frames 6 instead of 12. Inputs and outputs pass through
small fixed matrices; the multiplications are one batch of matrix products over channels. What it gains, layer
by layer: ``benchmarks/unet_commits.py`` and docs/inference.md.

``enable`` puts the layers below in the place of a network's own and shares their parameters, so that names,
checkpoints and LoRA see no difference. They compute as their base class wherever the trick does not apply:
while gradients are recorded, on other devices, in other types, while a graph is exported, for small sizes.

Transformed weights are kept: 4 times the memory of a 3x3 layer at large sizes, 1.8 times at small ones, and
twice that of three taps. They are made when a size is first used, and made anew when weights were changed.

Reference:
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308. That points decide
    about the error: Barabasz et al., arXiv 1803.10986; those below were found by trying and keep it as small
    as that of the plain sum (tests).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hummingbird.models.blocks import TemporalConv3d

__all__ = ["MIN_CHANNELS", "WinogradConv2d", "WinogradTemporalConv3d", "disable", "enable"]

MIN_CHANNELS = 128
"""Narrowest layer, on either side, that gains; transforms cost more than they save below."""
TAPS = 3
_TILES = (2, 4)
"""Outputs computed at once, per axis."""
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
"""Interpolation points, one more at infinity. For tiles of 4 these halve the error of 0, 1, -1, 2, -2."""
# Time that does not depend on the number of outputs, in rows of a matrix product: reading the weights, and
# for the plain convolution also bringing them into the order of its kernel, at every call (one Zen 3 core).
_ROWS_FOR_WEIGHTS = 64
_ROWS_FOR_REORDERING = 192
_MAX_TILES = 512
"""Tiles transformed at once: bounds memory for pictures (36 x 512 x 1280 floats are 94 MB)."""
_SAMPLES = 64


def _matrices(tile: int, axes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transforms of inputs, weights and outputs for ``tile ** axes`` outputs of a 3-tap correlation.

    Returns:
        Float64 ``(n**axes, n**axes)``, ``(n**axes, 3**axes)`` and ``(tile**axes, n**axes)``, n = tile + 2.
    """
    points = torch.tensor(_POINTS[tile], dtype=torch.float64)
    size = tile + TAPS - 1

    def evaluate(terms: int) -> torch.Tensor:
        finite = points[:, None] ** torch.arange(terms, dtype=torch.float64)
        infinity = F.one_hot(torch.tensor([terms - 1]), terms).double()
        return torch.cat([finite, infinity])  # (n, terms)

    # Cook-Toom: evaluate, multiply, interpolate; transposed, so that it correlates instead of convolving
    inputs, weights, outputs = torch.linalg.inv(evaluate(size)).T, evaluate(TAPS), evaluate(tile).T
    if axes == 2:
        inputs, weights, outputs = (torch.kron(m, m) for m in (inputs, weights, outputs))
    return inputs.contiguous(), weights.contiguous(), outputs.contiguous()


def _best_tile(tiles: dict[int, int], outputs: int, axes: int) -> int | None:
    """The tile size with the least work, None for the plain convolution.

    Args:
        tiles: number of tiles by their size.
        outputs: number of outputs per channel.
        axes: of the convolution.
    """
    work = {tile: (tile + TAPS - 1) ** axes * (tiles[tile] + _ROWS_FOR_WEIGHTS) for tile in _TILES}
    tile = min(work, key=work.__getitem__)
    return tile if work[tile] < TAPS**axes * (outputs + _ROWS_FOR_REORDERING) else None


@dataclass(frozen=True)
class _Form:
    """What one layer needs for one tile size.

    Args:
        tile: outputs computed at once, per axis.
        inputs: their transform ``(n**axes, n**axes)``, n = tile + 2.
        weights: transformed, ``(n**axes, in, out)``.
        outputs: their transform ``(tile**axes, n**axes)``.
    """

    tile: int
    inputs: torch.Tensor
    weights: torch.Tensor
    outputs: torch.Tensor

    def apply(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches ``(n**axes, tiles * in)`` to ``(tile**axes, tiles * out)``."""
        transformed = (self.inputs @ patches).view(len(self.weights), -1, self.weights.shape[1])
        return self.outputs @ torch.bmm(transformed, self.weights).flatten(1)


class _Forms:
    """Transformed weights of one layer by tile size, as long as the layer keeps its own."""

    def __init__(self) -> None:
        self._by_tile: dict[int, _Form] = {}
        self._made_of: tuple[int, int, torch.Tensor] | None = None

    def get(self, weight: torch.Tensor, tile: int | None) -> _Form | None:
        """Return what a tile needs; None for no tile, and in a graph compiled before an eager call."""
        if tile is None:
            return None
        if torch.compiler.is_compiling():
            return self._by_tile.get(tile)
        # in-place changes through .data, as LoRA's merging makes, leave no trace but the values
        flat = weight.detach().flatten()
        samples = flat[:: max(1, len(flat) // _SAMPLES)]
        version = 0 if weight.is_inference() else weight._version
        last = self._made_of
        if last is None or last[:2] != (weight.data_ptr(), version) or not torch.equal(last[2], samples):
            self._by_tile.clear()
            self._made_of = (weight.data_ptr(), version, samples.clone())
        if tile not in self._by_tile:
            taps = weight.detach().flatten(2)  # (out, in, 3**axes)
            axes = 1 if taps.shape[2] == TAPS else 2
            inputs, transform, outputs = (matrix.float() for matrix in _matrices(tile, axes))
            product = transform @ taps.permute(2, 1, 0).reshape(TAPS**axes, -1)
            weights = product.view(-1, taps.shape[1], taps.shape[0])
            self._by_tile[tile] = _Form(tile, inputs, weights, outputs)
        return self._by_tile[tile]


def _applies(layer: nn.Conv2d | nn.Conv3d, inputs: torch.Tensor) -> bool:
    """Whether a call is inference in float32 on a CPU that is not being exported."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled("cpu")
        and inputs.device.type == layer.weight.device.type == "cpu"
        and inputs.dtype == layer.weight.dtype == torch.float32
    )


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution with padding 1 that multiplies less where it can."""

    _winograd: _Forms

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        number, _, height, width = input.shape
        grids = {tile: (-(-height // tile), -(-width // tile)) for tile in _TILES}
        tiles = {tile: number * rows * columns for tile, (rows, columns) in grids.items()}
        tile = _best_tile(tiles, number * height * width, 2) if _applies(self, input) else None
        form = self._winograd.get(self.weight, tile)
        if form is None:
            return super().forward(input)
        tile, size = form.tile, form.tile + TAPS - 1
        rows, columns = grids[tile]
        edge = (0, 0, 1, columns * tile + 1 - width, 1, rows * tile + 1 - height)
        padded = F.pad(input.permute(0, 2, 3, 1), edge)
        patches = padded.unfold(1, size, tile).unfold(2, size, tile)  # (N, rows, columns, in, n, n)
        result = input.new_empty(number, rows, tile, columns, tile, self.out_channels)
        for frames, lines in _pieces(number, rows, columns):
            piece = patches[frames, lines]
            several = piece.permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)
            product = (
                form.apply(several)
                .view(tile, tile, *piece.shape[:3], self.out_channels)
                .permute(2, 3, 0, 4, 1, 5)
            )
            result[frames, lines] = product if self.bias is None else product + self.bias
        result = result.flatten(3, 4).flatten(1, 2)  # (N, rows * tile, columns * tile, out)
        return result[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _pieces(number: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``number`` pictures of ``rows x columns`` tiles into pieces of about ``_MAX_TILES`` at most."""
    lines = min(rows, max(1, _MAX_TILES // columns))
    frames = max(1, _MAX_TILES // (rows * columns)) if lines == rows else 1
    for first in range(0, number, frames):
        for top in range(0, rows, lines):
            yield slice(first, first + frames), slice(top, top + lines)


class WinogradTemporalConv3d(TemporalConv3d):
    """A 3x1x1 convolution with padding 1 over frames that multiplies less where it can."""

    _winograd: _Forms

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, F, H, W)`` to ``(B, out_channels, F, H, W)``."""
        videos, _, frames, height, width = hidden_states.shape
        groups = {tile: -(-frames // tile) for tile in _TILES}
        pixels = videos * height * width
        tiles = {tile: pixels * count for tile, count in groups.items()}
        tile = _best_tile(tiles, pixels * frames, 1) if _applies(self, hidden_states) else None
        form = self._winograd.get(self.weight, tile)
        if form is None:
            return super().forward(hidden_states)
        tile, size = form.tile, form.tile + TAPS - 1
        edge = (0, 0, 0, 0, 0, 0, 1, groups[tile] * tile + 1 - frames)
        padded = F.pad(hidden_states.permute(0, 2, 3, 4, 1), edge)  # (B, F + 2 and more, H, W, in)
        patches = padded.unfold(1, size, tile)  # (B, groups, H, W, in, n)
        product = form.apply(patches.permute(5, 0, 1, 2, 3, 4).reshape(size, -1))
        product = product.view(tile, videos, groups[tile], height, width, self.out_channels)
        product = product.permute(1, 2, 0, 3, 4, 5)
        result = (
            (product if self.bias is None else product + self.bias).contiguous().flatten(1, 2)[:, :frames]
        )
        return result.permute(0, 4, 1, 2, 3)


def _replacement(layer: nn.Module) -> type[nn.Conv2d] | type[nn.Conv3d] | None:
    """The class for a layer, None where it stays as it is."""
    if (
        not isinstance(layer, (nn.Conv2d, nn.Conv3d))
        or min(layer.in_channels, layer.out_channels) < MIN_CHANNELS
    ):
        return None
    plain = (
        layer.groups == 1
        and set(layer.stride) == set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
    )
    if plain and type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) and layer.padding in (1, (1, 1)):
        return WinogradConv2d
    if (
        plain
        and type(layer) is TemporalConv3d
        and layer.kernel_size == (3, 1, 1)
        and layer.padding == (1, 0, 0)
    ):
        return WinogradTemporalConv3d
    return None


def enable(network: nn.Module) -> int:
    """Put fast convolutions in the place of a network's wide ones; they share its parameters.

    For ``torch.compile`` call the network once before, at the size that is wanted: graphs use the transformed
    weights that they find.

    Returns:
        How many layers were replaced.
    """
    return _replace(network, _replacement, _Forms)


def disable(network: nn.Module) -> int:
    """Put plain convolutions back and forget the transformed weights; returns how many."""
    plain = {WinogradConv2d: nn.Conv2d, WinogradTemporalConv3d: TemporalConv3d}
    return _replace(network, lambda layer: plain.get(type(layer)), None)


def _replace(network: nn.Module, choose: Any, weights: type[_Forms] | None) -> int:
    count = 0
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            cls = choose(layer)
            if cls is None:
                continue
            other = cls.__new__(cls)
            other.__dict__.update(layer.__dict__)  # parameters and hooks included
            other.__dict__.pop("_winograd", None)
            if weights is not None:
                other._winograd = weights()
            setattr(parent, name, other)
            count += 1
    return count
