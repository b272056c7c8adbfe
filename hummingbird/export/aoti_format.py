"""AOTInductor: a trace compiled to native code in a ``.pt2`` package, for the machine it is compiled on."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from hummingbird import runtime
from hummingbird.export.manifest import ExportError, ExportManifest, Machine

__all__ = ["AotiRunner", "check_machine", "compile_package", "describe_machine", "require_compiler"]


def describe_machine(target: str) -> Machine:
    """Describe what compiled code depends on here."""
    if target == "cpu":
        accelerator = torch.backends.cpu.get_cpu_capability()
    else:
        properties = torch.cuda.get_device_properties(0)
        accelerator = getattr(properties, "gcnArchName", f"sm_{properties.major}{properties.minor}")
    return Machine(system=platform.system(), processor=platform.machine(), accelerator=accelerator)


def require_compiler(target: str) -> None:
    """See that packages for ``target`` can be compiled here.

    Raises:
        ExportError: no compiler, or not the target's machine.
    """
    from torch._inductor import config

    candidates = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else (config.cpp.cxx,)
    if not any(name and shutil.which(name) for name in candidates):
        raise ExportError(
            "AOTInductor compiles C++, but there is no g++ here: install it (Debian: apt install g++), "
            "name one in the variable CXX, or use --format onnx"
        )
    _require_backend(target)


def _require_backend(target: str) -> None:
    found = runtime.backend()
    if target != "cpu" and found != target:
        raise ExportError(
            f"the target is {target}, but torch {torch.__version__} finds {found} here: packages are "
            "compiled and run on the target machine itself; see `hummingbird doctor`"
        )


def compile_package(program: Any, path: Path) -> None:
    """Compile a trace, weights included, to ``path``."""
    # the wrapper only calls kernels, which are optimised as ever; g++ takes minutes over it otherwise
    options = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def check_machine(manifest: ExportManifest, folder: Path) -> None:
    """Refuse compiled code of another machine before it is loaded.

    Raises:
        ExportError: another backend, torch or processor.
    """
    _require_backend(manifest.target)
    built = manifest.versions.get("torch", "")
    if _minor(built) != _minor(torch.__version__):
        raise ExportError(
            f"{folder}: compiled for torch {built}, this is {torch.__version__}: export again with this torch"
        )
    here = describe_machine(manifest.target)
    if here != manifest.machine:
        was = manifest.machine
        raise ExportError(
            f"{folder}: compiled for {was.system} {was.processor} {was.accelerator}, this is {here.system} "
            f"{here.processor} {here.accelerator}: export again on this machine"
        )


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


class AotiRunner:
    """Runs one package. Loading it runs its native code: only folders that are trusted come here.

    Args:
        path: of a package whose checksum was verified.
    """

    def __init__(self, path: Path) -> None:
        self.package = torch._inductor.aoti_load_package(str(path))

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the output of named inputs."""
        # compiled code takes memory as it lay in the example and does not look again
        laid = {name: value.contiguous() for name, value in inputs.items()}
        with torch.no_grad():
            output = self.package(**laid)
        return output if isinstance(output, torch.Tensor) else output[0]
