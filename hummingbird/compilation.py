"""torch.compile for inference: one kernel where there were several, per block, kept on disk between runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hummingbird.models import UNetSpatioTemporalModel

__all__ = ["CACHE_VARIABLE", "COMPILE_MODES", "cache_folder", "check_mode", "compile_networks"]

COMPILE_MODES = ("none", "blocks", "graphs")
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch.compile keeps what it made; its own default is in /tmp, which a restart may empty."""


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Folder in which compiled kernels outlive the process: the variable's, or one of ours.

    Args:
        environ: the process's environment where left out.
    """
    values = os.environ if environ is None else environ
    if given := values.get(CACHE_VARIABLE):
        return Path(given)
    home = Path(values.get("XDG_CACHE_HOME") or Path(values.get("HOME") or "~").expanduser() / ".cache")
    return home / "hummingbird" / "compiled"


def check_mode(mode: str, device_type: str) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: not one of ``COMPILE_MODES``, or graphs without a GPU.
    """
    if mode not in COMPILE_MODES:
        raise ValueError(f"compile: got {mode!r}, expected one of {', '.join(COMPILE_MODES)}")
    if mode == "graphs" and device_type != "cuda":
        raise ValueError(
            f"compile: got graphs, but only a GPU has them and this is {device_type}; use blocks"
        )


def compile_networks(
    unet: UNetSpatioTemporalModel,
    vae: Any,
    mode: str,
    run: Callable[[], object],
    environ: MutableMapping[str, str] | None = None,
) -> None:
    """Compile both networks for one size of video; other sizes are compiled when they come.

    Prompt, seed, timestep, rate and guidance are inputs: nothing is compiled again for them.

    Args:
        unet: on its device. ``blocks`` compiles its residual blocks and transformers, equal ones once; with
            ``graphs`` the whole network, whose launches the GPU then replays (CUDA or HIP graphs).
        vae: whose decoder is compiled as a whole.
        mode: one of ``COMPILE_MODES``; with ``none`` nothing happens.
        run: runs both once at the size that is wanted. It is called before, because fast convolutions
            (``hummingbird.models.winograd``) hand graphs what they prepared in a plain call.
        environ: the process's environment where left out.

    Raises:
        ValueError: as ``check_mode``, or an exported network.
    """
    from hummingbird.models import UNetSpatioTemporalModel

    check_mode(mode, unet.device.type)
    if mode == "none":
        return
    if not isinstance(unet, UNetSpatioTemporalModel):
        raise ValueError(f"compile: got {mode!r} for an exported model, whose code is compiled already")
    values = os.environ if environ is None else environ
    values[CACHE_VARIABLE] = str(cache_folder(values))
    run()
    if mode == "graphs":
        unet.compile(mode="reduce-overhead", dynamic=False)
    else:
        unet.compile_repeated_blocks()
    vae.decoder.compile(dynamic=False)
