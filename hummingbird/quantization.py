"""Storing, or also multiplying, a U-Net's matrix products in 8 bits, by torchao.

Only linear layers take part (attention and feed-forward): convolutions stay as they are. Which way pays
depends on the card; docs/inference.md says what was measured and what was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import nn

    from hummingbird.backends import BackendSettings

__all__ = ["QUANTIZATIONS", "QuantizationReport", "quantize_unet"]

QUANTIZATIONS = ("none", "int8", "int8-dynamic", "fp8", "fp8-dynamic")
"""Weights alone in 8 bits (``int8``, ``fp8``), or products in 8 bits as well (``-dynamic``)."""

_SMALLEST = 32
"""Features of a layer below which rounding it saves nothing."""
_MULTIPLE = 16
"""Features must divide by this: matrix products in 8 bits are made for such shapes."""


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What became of a network.

    Args:
        how: one of ``QUANTIZATIONS``.
        num_layers: linear layers that were quantized.
        num_parameters: weights in them.
        share: of all parameters of the network, 0 to 1.
    """

    how: str
    num_layers: int
    num_parameters: int
    share: float


def quantize_unet(unet: nn.Module, how: str, settings: BackendSettings) -> QuantizationReport:
    """Quantize a network in place; it can make videos afterwards, but not be trained or saved.

    Args:
        unet: on its device, in its type.
        how: one of ``QUANTIZATIONS`` but ``none``.
        settings: decisions for that device, from ``hummingbird.backends.detect``.

    Raises:
        ValueError: not such a way, or one that this device cannot multiply in.
        ImportError: torchao is not installed.

    Reference:
        Int8 and float8 workflows of torchao, https://docs.pytorch.org/ao/stable/
    """
    if how not in QUANTIZATIONS or how == "none":
        raise ValueError(f"quantize: got {how!r}, expected one of {', '.join(QUANTIZATIONS[1:])}")
    if how == "fp8-dynamic" and settings.fp8_dtype is None:
        raise ValueError(
            f"quantize: got fp8-dynamic on {settings.architecture or settings.backend}, which does not "
            "multiply in 8-bit floats; expected NVIDIA sm_89 or newer, or AMD gfx942, gfx950, gfx1200 or "
            "gfx1201; use fp8 or int8 here"
        )
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise ImportError(
            "quantize: torchao is not installed; run pip install 'hummingbird-t2v[quantize]'"
        ) from error
    total = sum(parameter.numel() for parameter in unet.parameters())
    layers = [module for module in unet.modules() if _is_wide_linear(module)]
    count = sum(layer.weight.numel() for layer in layers)
    quantize_(unet, _recipe(how, settings), filter_fn=lambda module, name: _is_wide_linear(module))
    return QuantizationReport(
        how=how, num_layers=len(layers), num_parameters=count, share=count / max(total, 1)
    )


def _is_wide_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    from torch import nn

    if not isinstance(module, nn.Linear):
        return False
    sizes = (module.in_features, module.out_features)
    return all(size >= _SMALLEST and size % _MULTIPLE == 0 for size in sizes)


def _recipe(how: str, settings: BackendSettings) -> Any:
    import torch
    from torchao import quantization

    quiet: dict[str, Any] = {"set_inductor_config": False}  # nothing global changes
    if how == "int8":
        return quantization.Int8WeightOnlyConfig(**quiet)
    if how == "int8-dynamic":
        return quantization.Int8DynamicActivationInt8WeightConfig(**quiet)
    if how == "fp8":
        return quantization.Float8WeightOnlyConfig(**quiet)
    kind = getattr(torch, str(settings.fp8_dtype))
    return quantization.Float8DynamicActivationFloat8WeightConfig(
        activation_dtype=kind, weight_dtype=kind, **quiet
    )
