"""What this machine can run: device, memory, versions, codecs, embedded models, missing extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import asdict
from typing import Any

from hummingbird import __version__, backends, nano, runtime, video_io

__all__ = ["examine", "to_text"]

_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "open_clip_torch",
    "av",
    "numpy",
    "gradio",
)
_EXTRAS = {
    "ray": ("ray",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "train": ("tensorboard",),
    "quantize": ("torchao",),
}
"""Extra of pyproject.toml -> modules that it brings."""


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cores() -> int:
    """Cores this process may use; fewer than the machine has inside most containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": f"cuda:{index}",
                "hardware": properties.name,
                "memory_bytes": properties.total_memory,
                "architecture": getattr(
                    properties, "gcnArchName", f"sm_{properties.major}{properties.minor}"
                ),
                "bfloat16": torch.cuda.is_bf16_supported(),
                "settings": asdict(backends.detect(torch.device("cuda", index))),
            }
        )
    return found


def examine() -> dict[str, Any]:
    """Look at this machine; nothing is written, downloaded or put on a GPU.

    Returns:
        A dictionary that JSON can hold; sizes in bytes.
    """
    import torch

    device = runtime.resolve_device()
    settings = backends.detect(device)
    missing_extras = {
        extra: missing
        for extra, modules in _EXTRAS.items()
        if (missing := [name for name in modules if importlib.util.find_spec(name) is None])
    }
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    models = {}
    for name in nano.EMBEDDED_MODELS:
        folder = nano.resolve(name)
        models[name] = folder is not None and (folder / "model_index.json").is_file()
    return {
        "hummingbird": __version__,
        "device": str(device),
        "dtype": str(runtime.resolve_dtype("auto", device)).removeprefix("torch."),
        "backend": settings.backend,
        "backend_version": torch.version.hip or torch.version.cuda,
        "gpus": _devices(),
        "settings": asdict(settings),
        "kernel_caches": {what: str(path) for what, path in backends.kernel_caches(settings.backend).items()},
        "advice": backends.advise(settings),
        "cpu_cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "encoders": {suffix: video_io.find_encoder(suffix) for suffix in (".mp4", ".webm")},
        "embedded_models": models,
        "missing_extras": missing_extras,
    }


def to_text(report: dict[str, Any]) -> str:
    """Lay out what ``examine`` found for a person, one fact a line."""
    gib = 1024**3
    lines = [
        f"hummingbird  {report['hummingbird']} on Python {report['python']}, {report['platform']}",
        f"device       {report['device']} (backend {report['backend']}"
        + (f" {report['backend_version']}" if report["gpus"] else "")
        + f"), {report['dtype']} by default",
    ]
    lines += [
        f"gpu          {gpu['name']}: {gpu['hardware']}, {gpu['memory_bytes'] / gib:.1f} GiB, "
        f"{gpu['architecture']}"
        for gpu in report["gpus"]
    ]
    lines += [
        f"cpu          {report['cpu_cores']} cores, {report['memory_bytes'] / gib:.1f} GiB memory, "
        f"{report['disk_free_bytes'] / gib:.1f} GiB free on disk",
        "packages     "
        + ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items()),
        "encoders     "
        + ", ".join(f"{suffix} {name or 'MISSING'}" for suffix, name in report["encoders"].items()),
        "models       "
        + ", ".join(
            f"{name} {'ready' if there else 'MISSING'}" for name, there in report["embedded_models"].items()
        ),
    ]
    settings = report["settings"]
    lines.append(
        f"decisions    autoencoder {settings['vae_dtype']}, cudnn.benchmark "
        + {None: "as torch has it", True: "on", False: "off"}[settings["cudnn_benchmark"]]
        + f", MIOPEN_FIND_MODE {settings['miopen_find_mode'] or 'not set'}, fp8 "
        + f"{settings['fp8_dtype'] or 'none'}, attention {settings['attention']}, upsampling "
        + settings["upsampling"]
    )
    lines += [f"{what:<13}{path}" for what, path in report["kernel_caches"].items()]
    lines += [f"advice       {line}" for line in report["advice"]]
    lines += [
        f'missing      extra [{extra}] ({", ".join(modules)}): pip install -e ".[{extra}]"'
        for extra, modules in report["missing_extras"].items()
    ]
    return "\n".join(lines)
