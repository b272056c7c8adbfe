"""What the hardware under torch asks for: every decision that depends on backend or card, in one place.

torch's ROCm builds answer to the device name ``cuda`` and to ``torch.cuda``, so the rest of the package does
not ask which of the two it runs on. What differs is decided here, as one frozen value, and put into effect
where a model moves to its device (``hummingbird.runtime``). Facts, their sources and what was never run on
AMD hardware: docs/rocm.md.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

__all__ = [
    "BENCHMARK_VARIABLE",
    "FIND_MODE_VARIABLE",
    "BackendSettings",
    "DeviceProperties",
    "advise",
    "apply",
    "decide",
    "detect",
    "family",
    "kernel_caches",
    "name",
]

Backend = Literal["cpu", "cuda", "rocm", "mps"]
Family = Literal["instinct", "rdna", "other"]

BENCHMARK_VARIABLE = "HUMMINGBIRD_CUDNN_BENCHMARK"
"""Set to 1, lets the library search for the fastest convolution of every shape (not on RDNA)."""
FIND_MODE_VARIABLE = "MIOPEN_FIND_MODE"
"""How MIOpen looks for a convolution that it does not know; its own default measures candidates."""
_ATTENTION_VARIABLE = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
_ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OVERRIDE_VARIABLE = "HSA_OVERRIDE_GFX_VERSION"

_INSTINCT = ("gfx908", "gfx90a", "gfx942", "gfx950")
_FUSED_ATTENTION = ("gfx90a", "gfx942", "gfx950")
_FP8: dict[str, str] = {
    "gfx942": "float8_e4m3fnuz",  # CDNA3 has the variant without a negative zero
    "gfx950": "float8_e4m3fn",
    "gfx1200": "float8_e4m3fn",
    "gfx1201": "float8_e4m3fn",
}


class DeviceProperties(Protocol):
    """The part of ``torch.cuda.get_device_properties`` that is read here."""

    name: str
    major: int
    minor: int


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """Decisions for one device.

    Args:
        backend: what torch was built for and runs on.
        architecture: ``gfx942``, ``sm_90``; None where there is no GPU.
        family: ``instinct`` (CDNA data centre cards), ``rdna`` (Radeon, Ryzen) or ``other``.
        vae_dtype: of the autoencoder where the user names none.
        cudnn_benchmark: value for ``torch.backends.cudnn.benchmark``; None leaves it as it is.
        miopen_find_mode: value for ``MIOPEN_FIND_MODE`` where that is unset; None leaves it unset.
        fp8_dtype: 8-bit float type that the card multiplies in; None where it has none.
        keep_freed_memory: whether the C library keeps what tensors gave back. A CPU's tensors come from
            there, and asking the kernel for every large one anew costs a seventh of a denoising step.
        attention: what attention runs on, everywhere.
        upsampling: how pictures grow, everywhere: never a transposed convolution.
    """

    backend: Backend
    architecture: str | None = None
    family: Family = "other"
    vae_dtype: str = "float32"
    cudnn_benchmark: bool | None = None
    miopen_find_mode: str | None = None
    fp8_dtype: str | None = None
    keep_freed_memory: bool = False
    attention: Literal["scaled_dot_product_attention"] = "scaled_dot_product_attention"
    upsampling: Literal["interpolate + convolution"] = "interpolate + convolution"


# --- detection ----------------------------------------------------------------------------------------------


def name() -> Backend:
    """What torch was built for and finds here."""
    import torch

    if torch.cuda.is_available():
        return "rocm" if torch.version.hip else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def architecture_of(properties: DeviceProperties) -> str:
    """``gfx942`` of ``gfx942:sramecc+:xnack-``; ``sm_90`` where there is no such name."""
    gcn: str = getattr(properties, "gcnArchName", "")
    return gcn.split(":")[0] if gcn.startswith("gfx") else f"sm_{properties.major}{properties.minor}"


def family(architecture: str) -> Family:
    """Sort an AMD architecture; anything unknown is ``other`` and gets the careful settings of RDNA."""
    if architecture in _INSTINCT:
        return "instinct"
    return "rdna" if re.fullmatch(r"gfx1[0-2]\d\d", architecture) else "other"


def detect(device: torch.device, environ: Mapping[str, str] | None = None) -> BackendSettings:
    """Decide for a device of this machine; nothing is changed and nothing is put on the device.

    Args:
        device: from ``hummingbird.runtime.resolve_device``.
        environ: the process's environment where left out.
    """
    import torch

    values = os.environ if environ is None else environ
    if device.type == "cpu":
        return BackendSettings(backend="cpu", keep_freed_memory=True)
    if device.type != "cuda":
        return BackendSettings(backend="mps")
    return decide(torch.cuda.get_device_properties(device), torch.version.hip, values)


def decide(properties: DeviceProperties, hip: str | None, environ: Mapping[str, str]) -> BackendSettings:
    """Decide from facts alone.

    Args:
        properties: of the GPU.
        hip: ``torch.version.hip``: the HIP version of a ROCm build, None in any other build.
        environ: environment variables.
    """
    architecture = architecture_of(properties)
    wanted = environ.get(BENCHMARK_VARIABLE, "") == "1"
    if not hip:
        capability = (properties.major, properties.minor)
        return BackendSettings(
            backend="cuda",
            architecture=architecture,
            vae_dtype="float16",
            cudnn_benchmark=True if wanted else None,
            fp8_dtype="float8_e4m3fn" if capability >= (8, 9) else None,
        )
    kind = family(architecture)
    search = wanted and kind == "instinct"
    return BackendSettings(
        backend="rocm",
        architecture=architecture,
        family=kind,
        vae_dtype="bfloat16" if _has_bfloat16(architecture) else "float32",
        cudnn_benchmark=search,
        # A search that is asked for uses MIOpen's own, thorough mode.
        miopen_find_mode=None if search else "FAST",
        fp8_dtype=_FP8.get(architecture),
    )


def _has_bfloat16(architecture: str) -> bool:
    """Whether the card multiplies in bfloat16; RDNA 1 and 2 and Vega do not, though torch says yes to all."""
    return architecture in _INSTINCT or re.fullmatch(r"gfx1[12]\d\d", architecture) is not None


# --- effect -------------------------------------------------------------------------------------------------


def apply(settings: BackendSettings, environ: MutableMapping[str, str] | None = None) -> None:
    """Put what is global in this process into effect: before the first convolution, never at import.

    A ``MIOPEN_FIND_MODE`` that is set already stays.

    Args:
        settings: from ``detect``.
        environ: the process's environment where left out.
    """
    import torch

    values = os.environ if environ is None else environ
    if settings.miopen_find_mode is not None and not values.get(FIND_MODE_VARIABLE):
        values[FIND_MODE_VARIABLE] = settings.miopen_find_mode
    if settings.cudnn_benchmark is not None:
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    if settings.keep_freed_memory and not any(values.get(name) for name in _ALLOCATOR_VARIABLES):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Raise the sizes from which glibc maps a block by itself and returns the heap's end to the kernel.

    Both to the largest that it takes, 2 GiB. Other C libraries have no such function and stay as they are.

    Reference:
        mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; <malloc.h> has the numbers.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def kernel_caches(backend: Backend, environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Folders in which kernels and search results of the backend outlive the process, by what they hold.

    Args:
        backend: of the device.
        environ: the process's environment where left out.

    Reference:
        https://rocm.docs.amd.com/projects/MIOpen/en/latest/conceptual/cache.html
    """
    if backend != "rocm":
        return {}
    values = os.environ if environ is None else environ
    home = Path(values.get("HOME") or "~").expanduser()
    return {
        "kernels": Path(values.get("MIOPEN_CUSTOM_CACHE_DIR") or home / ".cache" / "miopen"),
        "searches": Path(values.get("MIOPEN_USER_DB_PATH") or home / ".config" / "miopen"),
    }


# --- advice -------------------------------------------------------------------------------------------------


def advise(
    settings: BackendSettings,
    environ: Mapping[str, str] | None = None,
    *,
    built_for: Backend | None = None,
    compiled_architectures: list[str] | None = None,
    dev: Path = Path("/dev"),
) -> list[str]:
    """Say in plain lines what would go wrong, or could go better, on this device.

    Args:
        settings: from ``detect``.
        environ: the process's environment where left out.
        built_for: what torch was built for; looked up where left out.
        compiled_architectures: what torch holds kernels for; looked up where left out.
        dev: folder of device files.
    """
    import torch

    values = os.environ if environ is None else environ
    if built_for is None:
        built_for = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    if settings.backend == "cpu":
        return _advise_without_gpu(built_for, dev)
    if settings.backend != "rocm":
        return []
    if compiled_architectures is None:
        compiled_architectures = torch.cuda.get_arch_list()
    card = settings.architecture
    lines = []
    if compiled_architectures and card not in compiled_architectures and not values.get(_OVERRIDE_VARIABLE):
        lines.append(
            f"this torch has no kernels for {card} (it has {', '.join(compiled_architectures)}): install a "
            f"ROCm build that lists it; {_OVERRIDE_VARIABLE} is a workaround that AMD does not support"
        )
    mode = values.get(FIND_MODE_VARIABLE)
    if mode and mode.upper() not in ("FAST", "2"):
        lines.append(
            f"{FIND_MODE_VARIABLE}={mode} is kept: the first video of each size may take many minutes; "
            "`hummingbird warmup` pays for it once"
        )
    if values.get(BENCHMARK_VARIABLE) == "1" and settings.family != "instinct":
        lines.append(
            f"{BENCHMARK_VARIABLE}=1 is not used on {card}: on cards that are not Instinct the search it "
            "starts took 10 to 30 minutes for one decoder, and crashed some"
        )
    if settings.family == "instinct" and not settings.cudnn_benchmark:
        lines.append(
            f"{BENCHMARK_VARIABLE}=1 and `hummingbird warmup` once per size may make the decoder faster "
            "(others measured about a third on Instinct)"
        )
    if card not in _FUSED_ATTENTION and values.get(_ATTENTION_VARIABLE) != "1":
        lines.append(
            f"{_ATTENTION_VARIABLE}=1 lets torch try its fused attention on {card}; without it attention "
            "needs more memory"
        )
    lines.append("after an update of ROCm or torch run `hummingbird warmup` once per size: see docs/rocm.md")
    return lines


def _advise_without_gpu(built_for: Backend, dev: Path) -> list[str]:
    amd, nvidia = dev / "kfd", dev / "nvidiactl"
    if amd.exists() and built_for != "rocm":
        return [f"{amd} says that there is an AMD GPU, but this torch is not a ROCm build: see docs/rocm.md"]
    if amd.exists() and not os.access(amd, os.R_OK | os.W_OK):
        return [
            f"{amd} cannot be opened by this user: add it to the groups render and video (containers: "
            "--group-add render --group-add video)"
        ]
    if built_for == "rocm" and not amd.exists():
        return [
            f"this torch is a ROCm build, but there is no {amd}: load the amdgpu driver (containers: "
            "--device /dev/kfd --device /dev/dri)"
        ]
    if nvidia.exists() and built_for == "cuda":
        return [
            f"{nvidia} says that there is an NVIDIA GPU, but torch cannot use it: its driver may be too old"
        ]
    return []
