"""Files of tensors, written one tensor at a time: never more than one of them is in memory.

References:
    The safetensors format, https://github.com/huggingface/safetensors#format; torch's own zip files as
    ``torch.save`` writes them, readable by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hummingbird.checkpoints.key_map import Recipe

Progress = Callable[[str, int], None]
"""Called after each tensor with its key and the bytes written for it."""

_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_ARCHIVE = "archive"
_ZIP_LOCAL_HEADER_BYTES = 30
_ALIGNMENT_BYTES = 64
_PADDING_FIELD = 0x4246  # the zip extra field in which torch pads, "FB"


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Recipe],
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a ``.safetensors`` file.

    Args:
        path: Written in place: give a temporary name where the file must be whole or absent.
        tensors: In any order; wider types are put first, so that every tensor is aligned.
        metadata: Texts for the header; ``format: pt`` is always there.
        progress: Told of each tensor.

    Raises:
        ValueError: A type that the format does not have, or a recipe that makes another tensor than it says.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].dtype.itemsize, entry[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for key, recipe in ordered:
        end = offset + recipe.size_bytes
        dtype = _known(_SAFETENSORS_DTYPES, key, recipe)
        header[key] = {"dtype": dtype, "shape": list(recipe.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key, recipe in ordered:
            file.write(_bytes_of(key, recipe))
            if progress is not None:
                progress(key, recipe.size_bytes)


def write_torch_file(
    path: Path,
    tensors: Mapping[str, Recipe],
    *,
    nesting: str | None = "state_dict",
    entries: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write what ``torch.save({nesting: tensors, **entries})`` writes: dicts, texts and tensors only.

    Args:
        path: Written in place, as above.
        tensors: Kept in this order.
        nesting: Key under which the tensors lie; None for a dict of tensors only.
        entries: Texts beside ``nesting``.
        progress: Told of each tensor.

    Raises:
        ValueError: A type that torch has no storage for, ``entries`` without ``nesting``, or a recipe that
            makes another tensor than it says.
    """
    if nesting is None and entries:
        raise ValueError(
            "write_torch_file: entries without nesting would be taken for tensors; give a nesting"
        )
    references = {
        key: _TensorReference(index=index, recipe=recipe, storage=_known(_STORAGES, key, recipe))
        for index, (key, recipe) in enumerate(tensors.items())
    }
    content = references if nesting is None else {nesting: references, **(entries or {})}
    pickled = io.BytesIO()
    _TensorPickler(pickled, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", pickled.getbuffer())
        _add(archive, "byteorder", b"little")
        for key, reference in references.items():
            _add(archive, f"data/{reference.index}", _bytes_of(key, reference.recipe))
            if progress is not None:
                progress(key, reference.recipe.size_bytes)
        _add(archive, "version", b"3\n")


@dataclass(frozen=True, kw_only=True)
class _TensorReference:
    """Stands for a tensor in the pickle; its numbers lie beside it in the archive."""

    index: int
    recipe: Recipe
    storage: type


@dataclass(frozen=True)
class _StorageReference:
    tensor: _TensorReference


class _TensorPickler(pickle.Pickler):
    """Pickles references as ``torch.save`` pickles tensors."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _TensorReference):
            return NotImplemented
        shape = value.recipe.shape
        strides = torch.empty(shape, device="meta").stride()
        no_hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
        arguments = (_StorageReference(value), 0, shape, strides, False, no_hooks)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _StorageReference):
            return None
        tensor = value.tensor
        return "storage", tensor.storage, str(tensor.index), "cpu", tensor.recipe.num_elements


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Add a member whose bytes begin at a multiple of 64, so that torch can map the file."""
    info = zipfile.ZipInfo(f"{_ARCHIVE}/{name}")  # dated 1980: the same tensors make the same file
    info.file_size = len(content)
    assert archive.fp is not None
    start = archive.fp.tell() + _ZIP_LOCAL_HEADER_BYTES + len(info.filename) + 4
    padding = -start % _ALIGNMENT_BYTES
    info.extra = _PADDING_FIELD.to_bytes(2, "little") + padding.to_bytes(2, "little") + b"\0" * padding
    with archive.open(info, "w") as member:
        member.write(content)


def _known(names: Mapping[torch.dtype, Any], key: str, recipe: Recipe) -> Any:
    if recipe.dtype not in names:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in names)
        raise ValueError(f"{key} is {recipe.dtype}, which this file format lacks: expected one of {expected}")
    return names[recipe.dtype]


def _bytes_of(key: str, recipe: Recipe) -> memoryview:
    tensor = recipe.load()
    if tuple(tensor.shape) != recipe.shape or tensor.dtype != recipe.dtype:
        raise ValueError(
            f"{key}: got {tensor.dtype} {tuple(tensor.shape)}, expected {recipe.dtype} {recipe.shape}"
        )
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
