"""``export.json``: what an exported folder holds, for which machine, and how to see that it is unchanged."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import pydantic

from hummingbird.config import config_dataclass

__all__ = [
    "DTYPES",
    "FILE_NAME",
    "FORMATS",
    "MAX_BATCHES",
    "PARTS",
    "TARGETS",
    "Bucket",
    "ExportError",
    "ExportManifest",
    "ExportedFile",
    "ExportedGraph",
    "Machine",
    "describe_file",
    "is_exported",
    "read_manifest",
    "write_manifest",
]

FILE_NAME = "export.json"
FORMATS = ("onnx", "aoti")
TARGETS = ("cpu", "cuda", "rocm")
DTYPES = ("float32", "float16", "bfloat16", "int8", "int8-dynamic")
PARTS = ("text_encoder", "unet", "decoder")
MAX_BATCHES = {"text_encoder": 4096, "unet": 4096, "decoder": 63}
"""Most inputs at once; from 64 pictures on, diffusers' decoder takes a path that is not in the graph."""

MAX_MANIFEST_BYTES = 1_000_000
MAX_FILE_BYTES = 64 * 1024**3
_MAX_FILES = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CHUNK_BYTES = 1 << 20


class ExportError(ValueError):
    """A folder that cannot be written or used; the message is one line that says why and what to do."""


@config_dataclass
class Bucket:
    """A size that the graphs are made for.

    Args:
        num_frames: frames per video.
        height: pixels.
        width: pixels.
    """

    num_frames: int = pydantic.Field(ge=1, le=4096)
    height: int = pydantic.Field(ge=1, le=16384)
    width: int = pydantic.Field(ge=1, le=16384)

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@config_dataclass
class ExportedFile:
    """One file of the folder that holds a graph or weights."""

    name: str
    size_bytes: int = pydantic.Field(ge=0, le=MAX_FILE_BYTES)
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


@config_dataclass
class ExportedGraph:
    """One graph.

    Args:
        part: which part of the pipeline it is.
        file: its name in the folder.
        weights: name of the file beside it that holds its weights; None where they are inside.
        bucket: the size it is made for; None where a part has no size (the text encoder).
        inputs: shape of each input; "batch" stands for any number.
        max_abs_difference: largest absolute difference from PyTorch float32, measured where it was built;
            None where the target's provider was not there to run it.
        build_s: seconds that tracing, conversion and compilation took.
    """

    part: Literal["text_encoder", "unet", "decoder"]
    file: str
    weights: str | None = None
    bucket: Bucket | None = None
    inputs: dict[str, tuple[int | str, ...]]
    max_abs_difference: float | None
    build_s: float


@config_dataclass
class Machine:
    """What compiled code depends on.

    Args:
        system: operating system, as Python names it.
        processor: instruction set, such as ``x86_64``.
        accelerator: vector instructions of a CPU (``AVX2``), architecture of a GPU (``sm_90``, ``gfx942``).
    """

    system: str
    processor: str
    accelerator: str


@config_dataclass
class ExportManifest:
    """Everything about an exported folder.

    Args:
        format_version: of this file.
        format: ``onnx`` or ``aoti``.
        target: where it runs.
        dtype: of weights and arithmetic inside.
        opset: of the ONNX graphs.
        versions: of the packages that wrote it.
        machine: where it was built.
        configs: configuration of each part, as the pipeline reads it.
        graphs: all of them.
        files: every file that a graph consists of.
    """

    format_version: Literal[1] = 1
    format: Literal["onnx", "aoti"]
    target: Literal["cpu", "cuda", "rocm"]
    dtype: Literal["float32", "float16", "bfloat16", "int8", "int8-dynamic"]
    opset: int | None = None
    versions: dict[str, str]
    machine: Machine
    configs: dict[str, dict[str, Any]]
    graphs: tuple[ExportedGraph, ...]
    files: tuple[ExportedFile, ...]

    @property
    def buckets(self) -> list[Bucket]:
        """The sizes that it makes videos of."""
        return [graph.bucket for graph in self.graphs if graph.part == "unet" and graph.bucket is not None]


def is_exported(folder: Path) -> bool:
    """Whether ``folder`` is a local folder that ``hummingbird export`` wrote; nothing in it is opened."""
    return (folder / FILE_NAME).is_file()


def describe_file(path: Path) -> ExportedFile:
    """Measure a file and compute its checksum."""
    return ExportedFile(name=path.name, size_bytes=path.stat().st_size, sha256=_sha256(path))


def write_manifest(manifest: ExportManifest, folder: Path) -> None:
    """Write ``export.json``."""
    text = pydantic.TypeAdapter(ExportManifest).dump_json(manifest, indent=2)
    (folder / FILE_NAME).write_bytes(text + b"\n")


def read_manifest(folder: Path, verify: bool = True) -> ExportManifest:
    """Read ``export.json`` and verify every file that it names; nothing is loaded or run.

    Args:
        folder: with the file.
        verify: False leaves the other files alone, where only the description is wanted.

    Raises:
        ExportError: it is not what ``hummingbird export`` writes, names a file outside the folder, or a file
            is missing, a link, or not the one that was written.
    """
    path = folder / FILE_NAME
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ExportError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; expected a few kilobytes of JSON")
    try:
        adapter = pydantic.TypeAdapter(ExportManifest)
        manifest: ExportManifest = adapter.validate_json(path.read_bytes(), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise ExportError(
            f"{path}: {where}: {first['msg']}; expected what `hummingbird export` of this version writes"
        ) from error
    _check_names(manifest, path)
    for file in manifest.files if verify else ():
        _verify(folder / file.name, file)
    return manifest


def _check_names(manifest: ExportManifest, path: Path) -> None:
    names = [file.name for file in manifest.files]
    if len(names) > _MAX_FILES or len(set(names)) != len(names):
        raise ExportError(f"{path}: names {len(names)} files, some of them twice or too many; export again")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ExportError(f"{path}: names the file {name!r}; expected a plain name inside the folder")
    for graph in manifest.graphs:
        for wanted in (graph.file, graph.weights):
            if wanted is not None and wanted not in names:
                raise ExportError(f"{path}: a graph uses {wanted!r}, which has no checksum; export again")
    missing = set(PARTS) - {graph.part for graph in manifest.graphs} | {"unet", "vae"} - set(manifest.configs)
    if missing:
        raise ExportError(f"{path}: lacks {', '.join(sorted(missing))}; export again")


def _verify(path: Path, file: ExportedFile) -> None:
    if path.is_symlink() or not path.is_file():
        raise ExportError(f"{path}: missing or a link, but {FILE_NAME} names it; copy the whole folder again")
    size = path.stat().st_size
    if size != file.size_bytes:
        raise ExportError(f"{path}: has {size} bytes, expected {file.size_bytes}; copy the folder again")
    if _sha256(path) != file.sha256:
        raise ExportError(
            f"{path}: its checksum is not the one in {FILE_NAME}; it was changed after the export"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
