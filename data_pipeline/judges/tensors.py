"""Reads the tensors of a file that nobody vouches for: no code is run, and sizes are bounded."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["read_tensors"]

_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)
"""What readers raise on bytes that are something else; ``RecursionError`` is a ``RuntimeError``."""


def read_tensors(path: Path, *, max_bytes: int) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU.

    Args:
        path: ``.safetensors``; any other suffix is taken for torch's format. A mapping under the one name
            ``state_dict`` is taken for what the file holds.
        max_bytes: largest file, also when it is unpacked.

    Raises:
        ValueError: the file is too large, or holds something else.
        OSError: it cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > max_bytes:
        raise ValueError(f"{path}: holds {size} bytes, expected at most {max_bytes}; give a file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (*_DAMAGED, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read as tensors ({reason}); expected a state dict") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {str(name)[:80]!r} is a {type(value).__name__}, expected a tensor")
        if value.layout != torch.strided or value.numel() * value.element_size() > max_bytes:
            raise ValueError(f"{path}: {name[:80]!r} is no dense tensor of up to {max_bytes} bytes")
    return dict(found)
