"""Opens a checkpoint file as names of tensors that are read one at a time; no code in the file is ever run.

Three formats: safetensors; the zip archives that torch has written since 1.6; the plain stream that it wrote
before. Opening reads the pickle or header and the archive's directory only, whatever the size of the file.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hummingbird.checkpoints.pickle_reader import (
    DEFAULT_LIMITS,
    CheckpointError,
    Limits,
    Pickled,
    PickledDict,
    StandIn,
    StorageReference,
    TensorReference,
    kind_of,
    read_pickle,
    shown,
)

__all__ = ["CheckpointError", "LazyTensor", "Limits", "TensorFile", "open_tensor_file"]

# Where files keep their state dict, beside optimizer states and the like.
_WRAPPERS = ("state_dict", "module", "model_state_dict", "model")
_MAX_METADATA = 1000
_MAX_METADATA_LENGTH = 65_536
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_COUNT_BYTES = 8
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that stays on disk until ``load``.

    Args:
        shape: Its shape.
        dtype: Its type.
        path: The file.
        position: Byte of the file at which its first element lies.
        stride: Steps along each axis, in elements.
        swap_bytes: Whether the file has the other byte order than this machine.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    position: int
    stride: tuple[int, ...]
    swap_bytes: bool = False

    def __post_init__(self) -> None:
        if math.prod(max(size, 1) for size in self.shape) >= 2**63:
            raise CheckpointError(f"a tensor of shape {self.shape}, which torch cannot hold")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def load(self) -> torch.Tensor:
        """Read the bytes of this tensor alone; the result is contiguous and owns its memory.

        Raises:
            CheckpointError: Where the file is shorter than when it was opened.
        """
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        data = torch.empty((last + 1) * self.dtype.itemsize, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.position)
            _read_into(file, data.numpy().data, self.path)
        if self.swap_bytes:
            parts = 2 if self.dtype.is_complex else 1
            data = data.view(-1, self.dtype.itemsize // parts).flip(-1).flatten()
        if self.dtype == torch.bool:
            data = data.ne(0)  # a byte above 1 would be an invalid bool
        return data.view(self.dtype).as_strided(self.shape, self.stride).contiguous()


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """What a checkpoint file holds.

    Args:
        path: The file.
        layout: "state_dict" (named tensors), "tensor_list" (a list without names) or "module" (a pickled
            network, whose state dict was recovered from its attributes).
        tensors: By name, in the file's order; names in nested dicts are joined by ".", items of a list are
            called "0", "1" and so on.
        metadata: Plain values beside the tensors, such as epoch; of a network, what its shapes do not tell:
            the ``num_heads`` of attention layers by their paths.
        nesting: Keys under which the state dict was found, outermost first.
        unread: Keys beside it, such as optimizer_states, whose values were left alone.
        ignored: Names of classes and functions that were not needed and never looked up, sorted.
        module_types: In the layout "module", the class name of every submodule by its path.
    """

    path: Path
    layout: str
    tensors: dict[str, LazyTensor]
    metadata: dict[str, object] = field(default_factory=dict)
    nesting: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    module_types: dict[str, str] = field(default_factory=dict)


def open_tensor_file(path: Path | str, *, limits: Limits = DEFAULT_LIMITS) -> TensorFile:
    """Open a checkpoint of any format that torch or safetensors writes, and run nothing that it holds.

    Args:
        path: The file (.safetensors, .ckpt, .pt, .pth, .bin; told apart by content).
        limits: What is taken for an attack.

    Raises:
        FileNotFoundError: Where there is no such file.
        CheckpointError: Where the file names classes or functions that it should not, is broken, is beyond
            the limits or holds no tensors.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: not a file, expected a checkpoint")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start.startswith(_ZIP_MAGIC):
            opened = _open_zip(path, limits)
        elif start[8:] == b"{":
            opened = _open_safetensors(path, limits)
        else:
            opened = _open_legacy(path, limits)
        if not opened.tensors:
            raise CheckpointError("it holds no tensors")
        _check_expansion(opened, limits)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return opened


def _check_expansion(opened: TensorFile, limits: Limits) -> None:
    """Tensors may share memory in the file, but each is loaded by itself."""
    total, file_size = sum(tensor.nbytes for tensor in opened.tensors.values()), opened.path.stat().st_size
    if total > limits.expansion * file_size:
        raise CheckpointError(
            f"its tensors would take {total} bytes, expected at most {limits.expansion} times the file's "
            f"{file_size}: raise the limit if you trust this file"
        )


def _read_at(file: io.FileIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length) or b""


def _read_into(file: io.FileIO, target: memoryview, path: Path) -> None:
    """Fill ``target``; one call of the system reads 2 GiB at most."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise CheckpointError(
                f"{path}: ends within a tensor; it was cut off or changed since it was opened"
            )
        done += count


# The format of safetensors


def _open_safetensors(path: Path, limits: Limits) -> TensorFile:
    """The library checks the header (types, sizes, gaps, overlaps); its offsets are read here."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > limits.header_bytes:
            raise CheckpointError(
                f"a safetensors header of {length} bytes, expected at most {limits.header_bytes}"
            )
        try:
            with safe_open(path, framework="pt"):
                header = json.loads(file.read(length), object_pairs_hook=_unique)
        except SafetensorError as error:
            raise CheckpointError(f"broken safetensors file: {shown(str(error))}") from None
    metadata = header.pop("__metadata__", {})
    _check_count(len(header), limits)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"tensor {shown(name)} is of type {entry['dtype']}, which is not supported")
        shape = tuple(entry["shape"])
        tensors[name] = LazyTensor(
            shape=shape,
            dtype=_SAFETENSORS_DTYPES[entry["dtype"]],
            path=path,
            position=8 + length + entry["data_offsets"][0],
            stride=_contiguous_stride(shape),
            swap_bytes=sys.byteorder != "little",
        )
    return TensorFile(path=path, layout="state_dict", tensors=tensors, metadata=_plain_values(metadata))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise CheckpointError("broken safetensors file: a key given twice")
    return made


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[: len(shape)][::-1]


# torch's zip archives


class _BoundedFile(io.FileIO):
    """A file that refuses to read a lot at once: an archive states the length of its directory itself."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._most:
            raise CheckpointError(f"a zip directory of {size} bytes, expected at most {self._most}")
        return super().read(size) or b""


def _open_zip(path: Path, limits: Limits) -> TensorFile:
    members = _zip_members(path, limits)
    with path.open("rb", buffering=0) as file:
        position = _member_position(file, members, "data.pkl")
        length = members["data.pkl"].file_size
        if length > limits.pickle_bytes:
            raise CheckpointError(f"a pickle of {length} bytes, expected at most {limits.pickle_bytes}")
        pickled = read_pickle(io.BytesIO(_read_at(file, position, length)), limits=limits)
        byte_order = b"little"
        if "byteorder" in members:
            length = min(members["byteorder"].file_size, len(byte_order))
            byte_order = _read_at(file, _member_position(file, members, "byteorder"), length)
        if byte_order not in (b"little", b"big"):
            raise CheckpointError(f"byte order {byte_order!r}, expected little or big")
        positions = {}
        for key, storage in pickled.storages.items():
            positions[key] = _member_position(file, members, f"data/{key}")
            size = members[f"data/{key}"].file_size
            if size != storage.nbytes:
                raise CheckpointError(
                    f"storage {shown(key)} has {size} bytes, its pickle says {storage.nbytes}"
                )
    return _Tree(path, pickled, positions, byte_order.decode() != sys.byteorder, limits).tensor_file()


def _zip_members(path: Path, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """Read the archive's directory; return its members by their names below the archive's folder."""
    try:
        with _BoundedFile(path, limits.directory_bytes) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise CheckpointError(f"broken zip archive: {shown(str(error))}") from None
    if len(infos) > limits.num_members:
        raise CheckpointError(f"{len(infos)} files in the archive, expected at most {limits.num_members}")
    infos.sort(key=lambda info: info.header_offset)
    for info, following in itertools.pairwise(infos):
        if info.header_offset + _LOCAL_HEADER.size + info.compress_size > following.header_offset:
            raise CheckpointError(f"files {shown(info.filename)} and {shown(following.filename)} overlap")
    folders = {info.filename.partition("/")[0] for info in infos}
    if len(folders) != 1:
        raise CheckpointError(
            f"{len(folders)} folders in the archive, expected the one that torch.save writes"
        )
    members = {info.filename.partition("/")[2]: info for info in infos}
    if len(members) != len(infos):
        raise CheckpointError("two files of one name in the archive")
    if "constants.pkl" in members:
        raise CheckpointError("a TorchScript archive, which is code; expected a file of torch.save")
    return members


def _member_position(file: io.FileIO, members: Mapping[str, zipfile.ZipInfo], name: str) -> int:
    """Return where the bytes of a member begin.

    Raises:
        CheckpointError: Where it is missing, compressed or not within the file.
    """
    info = members.get(name)
    if info is None:
        raise CheckpointError(f"no {shown(name)} in the archive, expected a file of torch.save")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise CheckpointError(
            f"{shown(name)} is compressed or encrypted: unpack the archive and zip it with -0"
        )
    file_size = os.fstat(file.fileno()).st_size
    if not 0 <= info.header_offset < file_size - _LOCAL_HEADER.size:
        raise CheckpointError(f"broken zip archive: {shown(name)} lies outside of the file")
    header = _read_at(file, info.header_offset, _LOCAL_HEADER.size)
    if not header.startswith(_ZIP_MAGIC):
        raise CheckpointError(f"broken zip archive: no header before {shown(name)}")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    position = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if position + info.file_size > file_size:
        raise CheckpointError(f"{shown(name)} ends beyond the file: it was cut off")
    return position


# torch's files before 1.6: five pickles, then every storage behind its number of elements


def _open_legacy(path: Path, limits: Limits) -> TensorFile:
    with path.open("rb", buffering=0) as file:
        data = io.BytesIO(file.read(limits.pickle_bytes))
        try:
            magic = read_pickle(data, limits=limits).root
        except CheckpointError as error:
            raise CheckpointError(f"neither safetensors nor a file of torch.save: {error}") from None
        if magic != _LEGACY_MAGIC:
            raise CheckpointError(
                f"a bare pickle of {kind_of(magic)}, expected safetensors or a file of torch.save"
            )
        protocol = read_pickle(data, limits=limits).root
        if protocol != _LEGACY_PROTOCOL:
            raise CheckpointError(f"unknown protocol of torch.save, expected {_LEGACY_PROTOCOL}")
        system = read_pickle(data, limits=limits).root
        little = system.entries.get("little_endian", True) if isinstance(system, PickledDict) else True
        pickled = read_pickle(data, limits=limits)
        keys = read_pickle(data, limits=limits).root
        positions = _legacy_positions(file, data.tell(), keys, pickled.storages)
    return _Tree(path, pickled, positions, bool(little) != (sys.byteorder == "little"), limits).tensor_file()


def _legacy_positions(
    file: io.FileIO, position: int, keys: Any, storages: Mapping[str, StorageReference]
) -> dict[str, int]:
    """Walk over the storages, which lie one behind the other in the order of ``keys``."""
    is_names = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_names or sorted(keys) != sorted(storages):
        raise CheckpointError("the list of storages at its end is not that of its pickle")
    file_size = os.fstat(file.fileno()).st_size
    positions = {}
    for key in keys:
        numel = int.from_bytes(_read_at(file, position, _LEGACY_COUNT_BYTES), "little")
        nbytes = storages[key].nbytes
        if numel * storages[key].dtype.itemsize != nbytes:
            raise CheckpointError(
                f"storage {shown(key)} has {numel} elements, its pickle says {nbytes} bytes"
            )
        positions[key] = position + _LEGACY_COUNT_BYTES
        position = positions[key] + nbytes
        if position > file_size:
            raise CheckpointError(f"it ends within storage {shown(key)}: it was cut off")
    return positions


# From what the pickle describes to names of tensors


class _Tree:
    """Finds the tensors in what a pickle describes, which may contain itself: every loop is bounded."""

    def __init__(
        self, path: Path, pickled: Pickled, positions: Mapping[str, int], swap_bytes: bool, limits: Limits
    ) -> None:
        self._path = path
        self._pickled = pickled
        self._positions = positions
        self._swap_bytes = swap_bytes
        self._limits = limits
        self._tensors: dict[str, LazyTensor] = {}
        self._metadata: dict[str, object] = {}
        self._module_types: dict[str, str] = {}
        self._num_visits = 0
        self._path_to = ""

    def tensor_file(self) -> TensorFile:
        found, nesting, unread = self._find()
        self._path_to = "".join(f"{key}." for key in nesting)
        if isinstance(found, StandIn) and "_modules" in found.state:
            layout = "module"
            self._add_module("", found, depth=0)
        elif isinstance(found, (list, tuple)):
            layout = "tensor_list"
            self._add_items("", dict(zip(map(str, range(len(found))), found, strict=True)), depth=0)
        elif isinstance(found, PickledDict):
            layout = "state_dict"
            self._add_dict("", found, depth=0)
        else:
            raise CheckpointError(
                f"its content is {kind_of(found)}, expected a dict or list of tensors or a network"
            )
        ignored = tuple(sorted(self._pickled.ignored))
        if ignored and layout != "module" and not nesting:
            names = ", ".join(shown(name) for name in ignored[:5])
            raise CheckpointError(f"refused global {names}: tensors alone do not need it")
        return TensorFile(
            path=self._path,
            layout=layout,
            tensors=self._tensors,
            metadata=self._metadata,
            nesting=nesting,
            unread=unread,
            ignored=ignored,
            module_types=self._module_types,
        )

    def _find(self) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
        """Descend to the state dict; return it, the keys that lead to it and the keys beside it."""
        found = self._pickled.root
        nesting: list[str] = []
        unread: list[str] = []
        while isinstance(found, PickledDict) and len(nesting) < len(_WRAPPERS):
            key = next((name for name in _WRAPPERS if _is_wrapped(found.entries.get(name))), None)
            if key is None:
                break
            here = "".join(f"{outer}." for outer in nesting)
            beside = {name: value for name, value in found.entries.items() if name != key}
            plain = _plain_values(beside)
            self._metadata.update({here + name: value for name, value in plain.items()})
            unread += [here + name for name in beside if name not in plain]
            nesting.append(key)
            found = found.entries[key]
        return found, tuple(nesting), tuple(unread)

    def _visit(self, name: str, depth: int, num_places: int = 1) -> None:
        self._num_visits += num_places
        _check_count(self._num_visits, self._limits)
        if len(name) > self._limits.name_length:
            raise CheckpointError(
                f"a name of {len(name)} letters, expected at most {self._limits.name_length}"
            )
        if depth > self._limits.nesting:
            raise CheckpointError(
                f"{shown(name)} lies deeper than {self._limits.nesting} levels, or contains itself"
            )

    def _add_tensor(self, name: str, tensor: TensorReference) -> None:
        if name in self._tensors:
            raise CheckpointError(f"two tensors of the name {shown(name)}")
        storage = tensor.storage
        self._tensors[name] = LazyTensor(
            shape=tensor.shape,
            dtype=tensor.dtype,
            path=self._path,
            position=self._positions[storage.key] + storage.offset + tensor.offset * tensor.dtype.itemsize,
            stride=tensor.stride,
            swap_bytes=self._swap_bytes and tensor.dtype.itemsize > 1,
        )

    def _add_dict(self, prefix: str, values: PickledDict, depth: int) -> None:
        if values.num_others:
            raise CheckpointError(f"{values.num_others} keys of dict {shown(prefix)} are not text")
        self._add_items(prefix, values.entries, depth)

    def _add_items(self, prefix: str, values: Mapping[str, Any], depth: int) -> None:
        for key, value in values.items():
            name = prefix + key
            self._visit(name, depth)
            if isinstance(value, TensorReference):
                self._add_tensor(name, value)
            elif isinstance(value, PickledDict):
                self._add_dict(f"{name}.", value, depth + 1)
            elif isinstance(value, (list, tuple)):
                self._add_items(f"{name}.", {str(i): item for i, item in enumerate(value)}, depth + 1)
            elif _is_plain(value):
                self._metadata[self._path_to + name] = value
            else:
                raise CheckpointError(f"refused {shown(name)}, {kind_of(value)}: expected a tensor")

    def _add_module(self, prefix: str, module: StandIn, depth: int) -> None:
        """Recover a network's tensors from its attributes, in the order of its ``state_dict()``."""
        self._module_types[prefix[:-1]] = module.origin
        heads = module.state.get("num_heads")  # of attention layers; the shapes do not tell
        if type(heads) is int:
            self._metadata[f"{prefix}num_heads"] = heads
        transient = module.state.get("_non_persistent_buffers_set", [])
        if not isinstance(transient, list):
            raise CheckpointError(f"network {shown(prefix)}: a set of names is {kind_of(transient)}")
        self._visit(prefix, depth, len(transient))
        left_out = {name for name in transient if isinstance(name, str)}
        for group, expected in (
            ("_parameters", TensorReference),
            ("_buffers", TensorReference),
            ("_modules", StandIn),
        ):
            members = module.state.get(group)
            if not isinstance(members, PickledDict) or members.num_others:
                raise CheckpointError(
                    f"network {shown(prefix)}: {group} is {kind_of(members)}, expected a dict keyed by names"
                )
            for key, value in members.entries.items():
                self._visit(prefix + key, depth)
                if value is None or (group == "_buffers" and key in left_out):
                    continue
                if not isinstance(value, expected):
                    raise CheckpointError(f"refused {shown(prefix + key)} in {group}, {kind_of(value)}")
                if isinstance(value, StandIn):
                    self._add_module(f"{prefix}{key}.", value, depth + 1)
                else:
                    self._add_tensor(prefix + key, value)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.num_tensors:
        raise CheckpointError(f"more than {limits.num_tensors} tensors, or places to look for them")


def _is_wrapped(value: Any) -> bool:
    """Tell whether a value is a state dict or network by itself."""
    if isinstance(value, StandIn):
        return "_modules" in value.state
    return isinstance(value, PickledDict) and any(
        isinstance(item, TensorReference) for item in value.entries.values()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_METADATA_LENGTH
    return value is None or isinstance(value, (bool, int, float))


def _plain_values(values: Mapping[str, Any]) -> dict[str, object]:
    plain = ((key, value) for key, value in values.items() if _is_plain(value))
    return dict(itertools.islice(plain, _MAX_METADATA))
