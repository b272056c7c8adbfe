"""How fast a model is here, part by part, against what the device could do at best.

Time does not depend on what weights are, so full-size presets run with random ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import nn

from hummingbird.ceilings import Ceilings, Stopwatch, measure_ceilings
from hummingbird.compilation import compile_networks
from hummingbird.evaluation.report import environment, peak_memory_mb
from hummingbird.models.shells import Shell, build_shell
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.planning.inference import PartCost, count_part

__all__ = ["BenchReport", "PartTime", "bench_shell", "fill_zeros", "random_pipeline"]


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """One part of a video.

    Args:
        seconds: median.
        fastest_s: of all runs.
        slowest_s: of all runs.
        floor_s: what neither the device's matrix product nor its copy could beat.
        flops: of the part; a multiply-add counts as two.
        weight_bytes: that must be read at least.
    """

    seconds: float
    fastest_s: float
    slowest_s: float
    floor_s: float
    flops: int
    weight_bytes: int

    @property
    def ratio(self) -> float:
        """How many floors it took."""
        return self.seconds / self.floor_s


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured; seconds are medians.

    Args:
        parts: ``text``, ``denoise`` (one step) and ``decode`` (all frames).
        video_s: text, all steps and decoding, added up.
        end_to_end_s: of the whole call, measured by itself.
        peak_memory_gb: of the device, or of the process on a CPU; weights included.
    """

    model: str
    weights: str
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    fps: float
    dtype: str
    decoder: str | None
    quantization: str
    compile_mode: str
    repeats: int
    ceilings: Ceilings
    parts: dict[str, PartTime]
    video_s: float
    floor_s: float
    end_to_end_s: float
    peak_memory_gb: float
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        values = asdict(self)
        for name, part in self.parts.items():
            values["parts"][name]["ratio"] = part.ratio
        values["ratio"] = self.video_s / self.floor_s
        values["seconds_per_second_of_video"] = self.end_to_end_s * self.fps / self.num_frames
        return values

    def to_text(self) -> str:
        """A table for people."""
        top = self.ceilings
        size = f"{self.num_frames}x{self.height}x{self.width}, {self.num_inference_steps} steps, {self.dtype}"
        size += f", {self.quantization}" if self.quantization != "none" else ""
        size += f", compiled: {self.compile_mode}" if self.compile_mode != "none" else ""
        lines = [
            f"{self.model} ({self.weights} weights), {size} on {top.device}; ceilings "
            f"{top.flops_per_s / 1e12:.3g} TFLOP/s, {top.bytes_per_s / 1e9:.3g} GB/s",
            f"{'part':16} {'median s':>10} {'floor s':>10} {'ratio':>7} {'TFLOP':>9}",
        ]
        for name, part in self.parts.items():
            times = f"{part.seconds:10.4f} {part.floor_s:10.4f} {part.ratio:7.2f}"
            lines.append(f"{name:16} {times} {part.flops / 1e12:9.4f}")
        ratio = self.video_s / self.floor_s
        lines.append(f"{'video':16} {self.video_s:10.4f} {self.floor_s:10.4f} {ratio:7.2f}")
        lines.append(f"{'end to end':16} {self.end_to_end_s:10.4f}; peak memory {self.peak_memory_gb:.2f} GB")
        return "\n".join(lines)


def random_pipeline(shell: Shell) -> HummingbirdPipeline:
    """A pipeline of random networks, which takes embeddings instead of prompts."""
    shared: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    }
    few = shell.has_guidance_embedding
    scheduler = LCMScheduler(**shared) if few else DDIMScheduler(**shared)
    return HummingbirdPipeline(
        vae=shell.vae,
        text_encoder=shell.text_encoder,
        tokenizer=None,  # type: ignore[arg-type]
        unet=shell.unet,
        scheduler=scheduler,
        default_call=shell.default_call,
    )


@torch.no_grad()
def fill_zeros(network: nn.Module) -> None:
    """Give layers that begin at zero small random weights: they would hide every difference before them.

    Args:
        network: with random weights; drawn from torch's global generator.
    """
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.02)


@torch.no_grad()
def bench_shell(
    shell: Shell,
    *,
    model: str,
    weights: str = "random",
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    decoder: str | None = None,
    quantization: str = "none",
    compile_mode: str = "none",
    repeats: int = 10,
    end_to_end: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> BenchReport:
    """Time text, one denoising step, decoding and the whole call, after warm-up.

    Args:
        shell: on the device, in the type that is wanted.
        model: its name, for the report and for counting its work again on the meta device.
        weights: in words.
        num_frames: the model's own where left out, and so for the next three.
        height: pixels.
        width: pixels.
        num_inference_steps: denoising steps.
        decoder: as in ``build_shell``.
        quantization: what was done to the shell's U-Net, for the report.
        compile_mode: one of ``hummingbird.compilation.COMPILE_MODES``; the time of compiling is not counted.
        repeats: runs of each part, of which the median counts.
        end_to_end: whether the whole call is run once more; else its time is that of the parts.
        progress: called with a line before each part.
    """
    pipe = random_pipeline(shell)
    pipe.set_progress_bar_config(disable=True)
    device, dtype = shell.unet.device, shell.unet.dtype
    call = dict(pipe.default_call)
    given = {
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": num_inference_steps,
    }
    call.update({name: value for name, value in given.items() if value is not None})
    frames, rows, columns = (int(call[name]) for name in ("num_frames", "height", "width"))
    steps = int(call["num_inference_steps"])
    progress("ceilings")
    ceilings = measure_ceilings(device, dtype, repeats)
    watch = Stopwatch(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    works = _works(pipe, shell, frames, rows, columns, steps, float(call["guidance_scale"]))
    if compile_mode != "none":
        progress("compile")

    def run_once() -> None:
        works["denoise"]()
        works["decode"]()

    compile_networks(shell.unet, shell.vae, compile_mode, run_once)
    sketch = build_shell(model, "meta", dtype, decoder)
    parts = {}
    for name, work in works.items():
        progress(name)
        seconds = watch.median(work, repeats, warmups=2 if device.type == "cuda" else 1)
        cost = count_part(sketch, name, frames, rows, columns)
        parts[name] = _part_time(seconds, cost, ceilings)
    counts = {"text": 1 if shell.has_guidance_embedding else 2, "denoise": steps, "decode": 1}
    video_s = sum(counts[name] * part.seconds for name, part in parts.items())
    whole_s = video_s
    if end_to_end:
        progress("end to end")
        whole_s = statistics.median(watch.median(_whole_call(pipe, shell, call), min(3, repeats)))
    if device.type == "cuda":
        peak_gb = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        peak_gb = peak_memory_mb(device) * 2**20 / 1e9
    return BenchReport(
        model=model,
        weights=weights,
        num_frames=frames,
        height=rows,
        width=columns,
        num_inference_steps=steps,
        fps=float(call["fps"]),
        dtype=str(dtype).removeprefix("torch."),
        decoder=decoder,
        quantization=quantization,
        compile_mode=compile_mode,
        repeats=repeats,
        ceilings=ceilings,
        parts=parts,
        video_s=video_s,
        floor_s=sum(counts[name] * part.floor_s for name, part in parts.items()),
        end_to_end_s=whole_s,
        peak_memory_gb=peak_gb,
        environment=environment(device, str(dtype).removeprefix("torch.")),
    )


def _part_time(seconds: list[float], cost: PartCost, ceilings: Ceilings) -> PartTime:
    return PartTime(
        seconds=statistics.median(seconds),
        fastest_s=seconds[0],
        slowest_s=seconds[-1],
        floor_s=ceilings.floor_s(cost.flops, cost.weight_bytes),
        flops=cost.flops,
        weight_bytes=cost.weight_bytes,
    )


def _works(
    pipe: HummingbirdPipeline,
    shell: Shell,
    frames: int,
    rows: int,
    columns: int,
    steps: int,
    guidance_scale: float,
) -> dict[str, Callable[[], object]]:
    """The parts as the pipeline runs them: encoder, one guided prediction and scheduler step, decoder."""
    device = shell.unet.device
    tokens = torch.zeros(1, shell.num_tokens, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(0)
    latents = pipe.prepare_latents(1, frames, rows, columns, device, generator)
    embeds = shell.text_encoder(tokens)[0]
    timestep = pipe.set_timesteps(steps)[0]
    pipe._guidance_scale = guidance_scale

    def denoise() -> None:
        predicted = pipe._predict(latents, timestep, embeds, embeds, 8.0)
        pipe.set_timesteps(steps)  # the scheduler counts its steps
        pipe.scheduler.step(predicted, timestep, latents, return_dict=False)

    return {
        "text": lambda: shell.text_encoder(tokens),
        "denoise": denoise,
        "decode": lambda: pipe.decode_latents(latents),
    }


def _whole_call(pipe: HummingbirdPipeline, shell: Shell, call: dict[str, Any]) -> Callable[[], object]:
    tokens = torch.zeros(1, shell.num_tokens, dtype=torch.long, device=shell.unet.device)
    settings = {name: value for name, value in call.items() if name != "eta"}

    def run() -> object:
        embeds = shell.text_encoder(tokens)[0]
        extra = (
            {} if shell.has_guidance_embedding else {"negative_prompt_embeds": shell.text_encoder(tokens)[0]}
        )
        noise = torch.Generator().manual_seed(0)
        return pipe(prompt_embeds=embeds, generator=noise, output_type="pt", **settings, **extra)

    return run
