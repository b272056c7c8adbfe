"""Where a model runs and in which precision; loading one by whatever name the user gave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import backends, nano

if TYPE_CHECKING:
    import torch

    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["DTYPES", "backend", "load_pipeline", "resolve_device", "resolve_dtype"]

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "float16", "bfloat16")


def backend() -> str:
    """What torch was built for and finds here: ``cuda``, ``rocm``, ``mps`` or ``cpu``."""
    return backends.name()


def resolve_device(device: str = "auto") -> torch.device:
    """Turn ``auto`` into a GPU where there is one that torch can use, else the CPU.

    Raises:
        ValueError: not a device, or one that this machine lacks.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected auto, cpu, cuda, cuda:N or mps") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(
            f"device: got {device!r}, but torch finds {found} GPUs here; see `hummingbird doctor`"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device: got {device!r}, which this machine lacks; see `hummingbird doctor`")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Turn ``auto`` into float16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: not one of ``DTYPES``.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]


def load_pipeline(model: str, device: str = "auto", dtype: str = "auto") -> HummingbirdPipeline:
    """Load a pipeline onto its device.

    Args:
        model: an embedded name (``nano``), a diffusers folder, a folder that ``hummingbird export`` wrote, a
            checkpoint of the family, or a hub id (``owner/name``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: one of ``DTYPES``. With ``auto`` the autoencoder may get a type of its own, which suits the
            hardware (``hummingbird.backends``); any other one is that of every part.

    Raises:
        ValueError: a device or dtype that cannot be used, or a name that is no model.
        FileNotFoundError: there is no such folder or file.
    """
    import torch

    from hummingbird.export import is_exported

    embedded = nano.resolve(model) is not None
    path = Path(model)
    if not embedded and is_exported(path):
        return _load_exported(path, device, dtype)
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    settings = backends.detect(where)
    vae_precision = resolve_dtype(settings.vae_dtype if dtype == "auto" else dtype, where)
    if not embedded and not path.exists() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        known = ", ".join(nano.EMBEDDED_MODELS)
        raise FileNotFoundError(
            f"model: got {model!r}, expected {known}, an existing folder or file, or a hub id owner/name"
        )
    if device == "auto" and where.type == "cpu" and (torch.version.hip or torch.version.cuda):
        logger.warning("note: no GPU that torch can use: running on the CPU; `hummingbird doctor` says why")
    backends.apply(settings)
    from hummingbird.pipelines import HummingbirdPipeline

    pipe: HummingbirdPipeline
    if not embedded and path.is_file():
        pipe = HummingbirdPipeline.from_single_file(path, dtype=precision)
        if vae_precision != precision:
            pipe.vae.to(vae_precision)
    else:
        pipe = HummingbirdPipeline.from_pretrained(model, dtype={"default": precision, "vae": vae_precision})
    return pipe.to(where)


def _load_exported(folder: Path, device: str, dtype: str) -> HummingbirdPipeline:
    """Load an exported folder where and in what it was exported for.

    Raises:
        ValueError: another device or dtype was asked for.
    """
    from hummingbird.export import read_manifest
    from hummingbird.pipelines import HummingbirdPipeline

    manifest = read_manifest(folder, verify=False)  # the loader verifies
    runs_on = "cpu" if manifest.target == "cpu" else "cuda"
    if device not in ("auto", runs_on):
        raise ValueError(
            f"device: got {device!r}, but {folder} was exported for {manifest.target}; leave it out, or "
            "export it for that target"
        )
    if dtype not in ("auto", manifest.dtype):
        raise ValueError(
            f"dtype: got {dtype!r}, but {folder} was exported in {manifest.dtype}; leave it out, or export "
            "it in that one"
        )
    pipe: HummingbirdPipeline = HummingbirdPipeline.from_pretrained(folder)
    return pipe
