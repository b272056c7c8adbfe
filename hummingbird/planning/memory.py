"""Memory of a computation that is not run: every tensor's storage is followed from its making to its end.

On meta tensors operations allocate nothing, yet torch makes the same objects and drops them at the same
moments. What kernels need inside themselves is not seen.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

__all__ = ["KernelPaths", "PeakMemory", "bytes_in_8_bits", "largest_layer_bytes", "tensor_bytes"]

_NOT_CAST = (nn.GroupNorm, nn.LayerNorm, nn.Embedding)
"""Kinds of layer that diffusers' layerwise casting leaves in the computing type."""


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of what the tensors are stored in, shared storages counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def bytes_in_8_bits(network: nn.Module) -> int:
    """Of a network whose layers are stored in float8, as diffusers' layerwise casting does."""
    skipped = getattr(network, "_skip_layerwise_casting_patterns", None) or ()
    size = 0
    for name, layer in network.named_modules():
        own = list(layer.parameters(recurse=False))
        is_kept = isinstance(layer, _NOT_CAST) or any(re.search(pattern, name) for pattern in skipped)
        size += tensor_bytes(own) if is_kept else sum(p.numel() for p in own)
    return size


def largest_layer_bytes(network: nn.Module) -> int:
    """Weights of the largest layer."""
    return max(tensor_bytes(layer.parameters(recurse=False)) for layer in network.modules())


class PeakMemory(TorchDispatchMode):
    """Follows how many bytes are alive while the block runs, and counts matrix products and convolutions.

    Args:
        known: tensors that were there before, such as weights; they are not counted.

    Attributes:
        live_bytes: of tensors made inside and not yet gone.
        peak_bytes: the most that were alive at once.
        flops: done, a multiply-add counted as two.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}
        self._known = list(known)  # kept alive, so that no other storage gets the same address
        self._known_ids = {tensor.untyped_storage()._cdata for tensor in self._known}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out, flops = _computed(func, args, kwargs or {})
        self.flops += flops
        for value in _flat(out):
            self._note(value)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._known_ids:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += self._sizes[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)


_MAX_RESULTS = 50_000
_RESULTS: dict[Any, tuple[Any, int]] = {}
"""Operation and what its arguments look like -> what its result looks like, and FLOPs. Asking torch for the
shape of a result takes about a millisecond, and blocks and layers repeat."""


@dataclass(frozen=True)
class _Look:
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Unknown(Exception):
    """Arguments whose result is not remembered."""


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """The result and its FLOPs; of meta tensors, where an operation makes new ones, by memory."""
    try:
        key = (func, _look(args), _look(tuple(kwargs.items())))
        known = _RESULTS.get(key)
    except (_Unknown, TypeError):  # real tensors, or arguments that cannot be told apart
        key, known = None, None
    if known is not None:
        look, flops = known
        return (tuple(map(_made, look)) if isinstance(look, tuple) else _made(look)), flops
    out = func(*args, **kwargs)
    count = flop_registry.get(getattr(func, "_overloadpacket", None))
    flops = 0 if count is None else int(count(*args, **kwargs, out_val=out))
    if key is not None and _is_new(out, args, kwargs):
        if len(_RESULTS) >= _MAX_RESULTS:
            _RESULTS.clear()
        look = tuple(map(_remembered, out)) if isinstance(out, tuple) else _remembered(out)
        _RESULTS[key] = look, flops
    return out, flops


def _flat(value: Any) -> Iterator[Tensor]:
    """Tensors of arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "meta":
            raise _Unknown
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(_look(item) for item in value)
    return type(value), value


def _is_new(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the result is a tensor or several, each with a storage of its own, on the meta device."""
    given = {x.untyped_storage()._cdata for x in _flat((*args, *kwargs.values()))}
    results = list(_flat(out))
    return (
        bool(given and results)
        and not isinstance(out, list)
        and all(x.device.type == "meta" and x.untyped_storage()._cdata not in given for x in results)
    )


def _remembered(value: Any) -> Any:
    return _Look(value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _made(value: Any) -> Any:
    if isinstance(value, _Look):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    return value


_LOW_PRECISION = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    Tensor.matmul,
    Tensor.__matmul__,
}
_FULL_PRECISION = {
    F.layer_norm,
    F.rms_norm,
    F.group_norm,
    F.interpolate,
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.mse_loss,
}


class KernelPaths(TorchFunctionMode):
    """Makes meta tensors go the way that those of a device would.

    Args:
        autocast: type that matrix products and convolutions are done in; normalisations are then done in
            float32. None leaves every type as it is.
        fused_attention: attention keeps no scores, as on a GPU; else they are tensors like others.

    Reference:
        https://docs.pytorch.org/docs/stable/amp.html, the lists of operations for CUDA.
    """

    def __init__(self, autocast: torch.dtype | None = None, fused_attention: bool = True) -> None:
        super().__init__()
        self.autocast, self.fused_attention = autocast, fused_attention
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}
        """Weights that were cast once in this forward, as autocast keeps them until it ends."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.autocast is not None and func in _LOW_PRECISION:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self.autocast is not None and func in _FULL_PRECISION:
            args, kwargs = tree_map(_raised, (args, kwargs))
        if self.fused_attention and func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:  # its own operations are not seen otherwise
                return _multi_head_attention(*args, **kwargs)
        if self.fused_attention and func is F.dropout:
            return _fused_dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.autocast)
        if id(value) not in self.casts:
            self.casts[id(value)] = value, value.to(self.autocast)  # kept: nothing else gets its id
        return self.casts[id(value)][1]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.requires_grad:
        raise ValueError("plan: got attention with a mask that is trained, expected a constant one or none")
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return out


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    num_heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    attn_mask: Tensor | None = None,
    need_weights: bool = True,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What ``nn.MultiheadAttention`` computes of a sequence (L, B, C) and itself."""
    if key is not query or value is not query or need_weights:
        raise ValueError(
            "plan: got multi-head attention of two sequences or with its weights as a result, expected that "
            "of one sequence, as in the towers of rewards"
        )
    length, batch, _ = query.shape
    if in_weight is None:
        weights = [w for w in (q_proj_weight, k_proj_weight, v_proj_weight) if w is not None]
        biases = [None] * 3 if in_bias is None else in_bias.chunk(3)
        maps = [F.linear(query, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    else:
        packed = F.linear(query, in_weight, in_bias).unflatten(-1, (3, width))
        maps = list(packed.movedim(-2, 0).contiguous())
    q, k, v = (x.reshape(length, batch, num_heads, -1).permute(1, 2, 0, 3) for x in maps)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    joined = mixed.permute(2, 0, 1, 3).reshape(length * batch, width)
    return F.linear(joined, out_weight, out_bias).view(length, batch, -1), None


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU keeps a mask of one byte per number."""
    if not training or p == 0.0:
        return input
    out: Tensor = torch.native_dropout(input, p, True)[0]
    return out
