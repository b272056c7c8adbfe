"""Where a model runs and in which precision; loading one by whatever name the user gave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird import backends, nano

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from diffusers import AutoencoderTiny

    from hummingbird.pipelines import HummingbirdPipeline

__all__ = [
    "DTYPES",
    "MEMORY_MODES",
    "backend",
    "load_decoder",
    "load_pipeline",
    "place",
    "resolve_device",
    "resolve_dtype",
    "speed_up",
]

logger = logging.getLogger(__name__)

MEMORY_MODES = ("none", "auto", "fp8", "model", "group")
ROOM = 2.0
"""Free memory in times of the weights from which on ``auto`` keeps everything on the GPU."""

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


def load_pipeline(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    decoder: str | None = None,
    memory: str = "none",
    quantization: str = "none",
) -> HummingbirdPipeline:
    """Load a pipeline onto its device.

    Args:
        model: an embedded name (``nano``), a diffusers folder, a folder that ``hummingbird export`` wrote, a
            checkpoint of the family, or a hub id (``owner/name``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: one of ``DTYPES``. With ``auto`` the autoencoder may get a type of its own, which suits the
            hardware (``hummingbird.backends``); any other one is that of every part.
        decoder: a small decoder in the autoencoder's place: ``nano``, or a folder or hub id of an
            ``AutoencoderTiny`` such as ``madebyollin/taesd``. None decodes with the model's own.
        memory: one of ``MEMORY_MODES``, as in ``place``.
        quantization: one of ``hummingbird.quantization.QUANTIZATIONS``, for the U-Net.

    Raises:
        ValueError: a device, dtype or quantization that cannot be used, or a name that is no model.
        FileNotFoundError: there is no such folder or file.
        ImportError: a quantization without torchao.
    """
    import torch

    from hummingbird.export import is_exported
    from hummingbird.quantization import quantize_unet

    embedded = nano.resolve(model) is not None
    path = Path(model)
    if not embedded and is_exported(path):
        if decoder is not None:
            raise ValueError(
                f"decoder: got {decoder!r}, but {path} is exported: its decoder is one of its graphs"
            )
        if quantization != "none":
            raise ValueError(
                f"quantize: got {quantization!r}, but {path} is exported; export it in int8 instead"
            )
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
    if decoder is not None:
        pipe.set_decoder(load_decoder(decoder, vae_precision))
    if quantization == "none":
        return place(pipe, where, memory)
    if memory not in ("none", "auto"):
        raise ValueError(
            f"quantize: got {quantization!r} with memory {memory!r}, expected one of the two; a quantized "
            "U-Net lies on its device"
        )
    pipe = place(pipe, where)
    report = quantize_unet(pipe.unet, quantization, settings)
    logger.warning(
        f"note: {quantization}: {report.num_layers} layers with {report.share:.0%} of the U-Net's weights"
    )
    return pipe


def place(pipe: HummingbirdPipeline, device: torch.device, memory: str = "none") -> HummingbirdPipeline:
    """Put a pipeline onto a device, all at once or as its memory allows.

    Args:
        pipe: in the computer's memory.
        device: where it will run.
        memory: ``none`` puts every network there; ``fp8`` stores the U-Net in 8 bits and computes as before;
            ``model`` brings one network at a time, so that the text encoder is gone when denoising begins;
            ``group`` brings layer by layer. ``auto`` is ``model`` where less than ``ROOM`` times the weights
            is free, else ``none``. With ``none``, ``speed_up`` too.

    Raises:
        ValueError: not such a mode, or one that needs a GPU.
    """
    import torch

    if memory not in MEMORY_MODES:
        raise ValueError(f"memory: got {memory!r}, expected one of {', '.join(MEMORY_MODES)}")
    if memory == "auto":
        memory = "none"
        if device.type == "cuda":
            free_bytes, weights_bytes = torch.cuda.mem_get_info(device)[0], _weights_bytes(pipe)
            if free_bytes < ROOM * weights_bytes:
                memory = "model"
                logger.warning(
                    f"note: {free_bytes / 1e9:.1f} GB free for {weights_bytes / 1e9:.1f} GB of weights: one "
                    "network at a time is on the GPU (--memory model)"
                )
    if memory in ("model", "group") and device.type == "cpu":
        raise ValueError(f"memory: got {memory!r}, which moves weights to a GPU, but this runs on the CPU")
    if memory == "model":
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    if memory == "group":
        pipe.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
        )
        return pipe
    if memory == "fp8":
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype)
    pipe = pipe.to(device)
    if memory == "none":
        speed_up((pipe.unet, pipe.vae), device)
    return pipe


def speed_up(networks: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Switch on what makes inference faster on a device and changes results by no more than rounding does.

    On a CPU in float32 wide convolutions multiply less (``hummingbird.models.winograd``), which costs memory
    for a second form of their weights. In half precision, whose kernels multiply fast enough to wait for
    memory, weights of convolutions are laid out channels-last as their inputs are, which each call would do
    anew. Elsewhere nothing changes.
    """
    import torch

    from hummingbird.models import winograd

    if device.type != "cpu":
        return
    for network in networks:
        if next(network.parameters()).dtype == torch.float32:
            winograd.enable(network)
            continue
        torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
        torch.nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)


def _weights_bytes(pipe: HummingbirdPipeline) -> int:
    networks = (pipe.text_encoder, pipe.unet, pipe.vae)
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def load_decoder(source: str, dtype: torch.dtype | None = None) -> AutoencoderTiny:
    """Load a small decoder.

    Args:
        source: ``nano``, a folder, or a hub id.
        dtype: of the weights; float32 where left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds another kind of network, or weights in another format than safetensors.
    """
    import torch
    from diffusers import AutoencoderTiny

    path = nano.resolve_decoder(source) or Path(source)
    hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if not path.is_dir() and not hub_id:
        known = ", ".join(nano.EMBEDDED_DECODERS)
        raise FileNotFoundError(
            f"decoder: got {source!r}, expected {known}, the folder of an AutoencoderTiny, or a hub id"
        )
    if path.is_dir():
        config = AutoencoderTiny.load_config(path)
        if config.get("_class_name") != "AutoencoderTiny":
            raise ValueError(
                f"decoder: {source} holds {config.get('_class_name')}, expected AutoencoderTiny; a whole "
                "autoencoder belongs into the model's folder"
            )
    network: AutoencoderTiny = AutoencoderTiny.from_pretrained(
        path if path.is_dir() else source, use_safetensors=True, torch_dtype=dtype or torch.float32
    )
    return network.eval()


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
