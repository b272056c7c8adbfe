"""Pay once for what the first video of a size costs: compiling and choosing kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird import backends
from hummingbird.compilation import cache_folder, check_mode, compile_networks

if TYPE_CHECKING:
    import torch

    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Pass", "WarmUp", "warm_up"]

_PROMPT = "a boat on a lake at sunset"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Seconds of one run, of which the first pays for the kernels.

    Args:
        denoise_s: text encoder and one denoising step.
        decode_s: all frames.
    """

    denoise_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What a warm-up ran and what it left on disk.

    Args:
        device: that it ran on.
        num_frames: of the video.
        height: pixels.
        width: pixels.
        passes: the first one, and a second one for comparison.
        cache_bytes: size of each kernel cache afterwards, by folder; empty where the backend keeps none.
        added_bytes: by how much they grew.
    """

    device: str
    num_frames: int
    height: int
    width: int
    passes: tuple[Pass, ...]
    cache_bytes: dict[str, int]
    added_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def warm_up(
    pipe: HummingbirdPipeline,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    guidance_scale: float | None = None,
    compile_mode: str = "none",
    progress: Callable[[str], None] = lambda line: None,
) -> WarmUp:
    """Run one denoising step and the decoder at one size, twice.

    Kernels belong to shapes and types, not to values, and every step of a call has the same shapes: one step
    finds all that a video of this size needs. On ROCm they stay in the folders of ``backends.kernel_caches``,
    what torch.compile makes in ``compilation.cache_folder``.

    Args:
        pipe: on its device.
        num_frames: per video; the model's own where left out, and so for the next three.
        height: pixels.
        width: pixels.
        guidance_scale: at 1 a teacher runs without its unconditional half, which is another shape.
        compile_mode: one of ``compilation.COMPILE_MODES``; the pipeline stays compiled.
        progress: called with a line before and after each pass.

    Raises:
        ValueError: a size that the model cannot make, or a mode that cannot be.
    """
    import torch

    check_mode(compile_mode, pipe.device.type)
    caches = backends.kernel_caches(backends.detect(pipe.device).backend)
    if compile_mode != "none":
        caches["compiled"] = cache_folder()
    before = {str(folder): _size_bytes(folder) for folder in caches.values()}
    wanted = {"num_frames": num_frames, "height": height, "width": width, "guidance_scale": guidance_scale}
    call = {**pipe.default_call, **{key: value for key, value in wanted.items() if value is not None}}
    frames, rows, columns = (int(call[key]) for key in ("num_frames", "height", "width"))

    def run(label: str) -> Pass:
        progress(f"{label} pass: {frames} frames of {rows}x{columns} on {pipe.device}")
        start_s = time.perf_counter()
        out: Any = pipe(
            _PROMPT,
            num_frames=frames,
            height=rows,
            width=columns,
            guidance_scale=float(call["guidance_scale"]),
            num_inference_steps=1,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
        )
        _wait(pipe.device)
        denoised_s = time.perf_counter()
        with torch.no_grad():
            pipe.decode_latents(out.frames)
        _wait(pipe.device)
        seconds = Pass(
            denoise_s=round(denoised_s - start_s, 3), decode_s=round(time.perf_counter() - denoised_s, 3)
        )
        progress(f"{label} pass: one step {seconds.denoise_s:.1f} s, decoder {seconds.decode_s:.1f} s")
        return seconds

    compile_networks(pipe.unet, pipe.vae, compile_mode, lambda: run("plain"))
    passes = (run("first"), run("second"))
    after = {str(folder): _size_bytes(folder) for folder in caches.values()}
    return WarmUp(
        device=str(pipe.device),
        num_frames=frames,
        height=rows,
        width=columns,
        passes=passes,
        cache_bytes=after,
        added_bytes=sum(after.values()) - sum(before.values()),
    )


def _wait(device: torch.device) -> None:
    """Wait for the GPU, which works on after a call has returned."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
