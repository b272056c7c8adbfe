"""Memory and work of making videos, from meta tensors: what fits on which card, and with what switched on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hummingbird.models.shells import Shell, build_shell
from hummingbird.pipelines.decoding import default_chunk_size
from hummingbird.planning.memory import (
    KernelPaths,
    PeakMemory,
    bytes_in_8_bits,
    largest_layer_bytes,
    tensor_bytes,
)

__all__ = ["CARDS_GB", "MODES", "InferencePlan", "PartCost", "count_part", "plan_inference"]

CARDS_GB = (6, 8, 12, 16, 24)
RESERVED_GB = 0.8
"""Of every card: driver, kernels and what the allocator cannot reuse. A guess, not measured."""
MODES = ("none", "fp8", "model", "group")
"""Fastest first: everything on the card; U-Net stored in 8 bits; one network at a time; layer by layer."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """One part of a video: text of one prompt, one denoising step, or the decoding of all frames.

    Args:
        flops: a multiply-add counts as two.
        weight_bytes: read at least once.
        peak_bytes: what is alive at most beside the weights.
    """

    flops: int
    weight_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What one video needs. Gigabytes are 10^9 bytes.

    Args:
        model: name or folder.
        num_frames: of the video.
        height: pixels.
        width: pixels.
        num_inference_steps: denoising steps.
        dtype: of the weights.
        decoder: what stands in the autoencoder's place.
        weights_gb: by network.
        tflop: of text, one step, and decoding, by name.
        tflop_total: of the video.
        decode_peak_gb: beside the weights, by how many frames are decoded at once.
        peak_gb: mode of ``MODES`` -> chunk -> peak.
        cards: card's GB -> the fastest mode that fits and the largest chunk with it; None where none does.
    """

    model: str
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    dtype: str
    decoder: str | None
    weights_gb: dict[str, float]
    tflop: dict[str, float]
    tflop_total: float
    decode_peak_gb: dict[int, float]
    peak_gb: dict[str, dict[int, float]]
    cards: dict[int, dict[str, Any] | None]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for people."""
        size = f"{self.num_frames} frames of {self.height}x{self.width}"
        lines = [f"{self.model}: {size}, {self.num_inference_steps} steps, {self.dtype}"]
        lines += [f"  {name:14} {value:7.3f} GB of weights" for name, value in self.weights_gb.items()]
        lines += [f"  {name:14} {value:7.3f} TFLOP" for name, value in self.tflop.items()]
        lines.append(f"  {'whole video':14} {self.tflop_total:7.3f} TFLOP")
        chunks = list(self.decode_peak_gb)
        lines.append(
            "peak in GB when decoding " + ", ".join(str(chunk) for chunk in chunks) + " frames at once"
        )
        for mode, peaks in self.peak_gb.items():
            lines.append(f"  {mode:6} " + " ".join(f"{peaks[chunk]:8.2f}" for chunk in chunks))
        lines.append(f"what fits ({RESERVED_GB} GB of each card are taken for the driver and fragments):")
        for card, choice in self.cards.items():
            text = "nothing: make it smaller" if choice is None else _advice(choice)
            lines.append(f"  {card:3} GB: {text}")
        return "\n".join(lines)


def _advice(choice: dict[str, Any]) -> str:
    return f"--memory {choice['mode']}, {choice['chunk']} frames decoded at once, {choice['peak_gb']:.2f} GB"


def plan_inference(
    model: str,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    dtype: torch.dtype = torch.float16,
    decoder: str | None = None,
) -> InferencePlan:
    """Plan one video on a GPU.

    Args:
        model: a preset, an embedded model, or a folder.
        num_frames: the model's own where left out, and so for the next three.
        height: pixels.
        width: pixels.
        num_inference_steps: denoising steps.
        dtype: of weights and activations.
        decoder: as in ``build_shell``.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a size that the model cannot make.
    """
    shell = build_shell(model, "meta", dtype, decoder)
    call = dict(shell.default_call)
    given = {
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": num_inference_steps,
    }
    call.update({name: value for name, value in given.items() if value is not None})
    frames, rows, columns = (int(call[name]) for name in ("num_frames", "height", "width"))
    steps = int(call.get("num_inference_steps", 4))
    multiple = shell.vae_scale_factor * 2 ** (len(shell.unet.config.channel_mult) - 1)
    if rows % multiple or columns % multiple or min(frames, rows, columns, steps) < 1:
        raise ValueError(f"size: got {frames}x{rows}x{columns}, expected multiples of {multiple} pixels")
    chunks = _chunks(frames, default_chunk_size(rows, columns, torch.device("cuda")))
    text = count_part(shell, "text", frames, rows, columns)
    denoise = count_part(shell, "denoise", frames, rows, columns)
    decodes = {chunk: count_part(shell, "decode", chunk, rows, columns) for chunk in chunks}
    # Decoded chunks are kept in float32 and joined.
    pixels = 2 * 3 * frames * rows * columns * 4
    weights = {name: tensor_bytes(module.parameters()) for name, module in shell.components().items()}
    peaks = {
        mode: {
            chunk: _peak(mode, shell, weights, text, denoise, cost.peak_bytes + pixels) / 1e9
            for chunk, cost in decodes.items()
        }
        for mode in MODES
    }
    one_frame = decodes[chunks[-1]].flops // chunks[-1]
    tflop = {
        "text": text.flops / 1e12,
        "one step": denoise.flops / 1e12,
        "decoding": one_frame * frames / 1e12,
    }
    passes = 1 if shell.has_guidance_embedding else 2  # the text of guidance is encoded once more
    return InferencePlan(
        model=model,
        num_frames=frames,
        height=rows,
        width=columns,
        num_inference_steps=steps,
        dtype=str(dtype).removeprefix("torch."),
        decoder=decoder,
        weights_gb={name: size / 1e9 for name, size in weights.items()},
        tflop=tflop,
        tflop_total=passes * tflop["text"] + steps * tflop["one step"] + tflop["decoding"],
        decode_peak_gb={chunk: cost.peak_bytes / 1e9 for chunk, cost in decodes.items()},
        peak_gb=peaks,
        cards={card: _fit(peaks, card - RESERVED_GB) for card in CARDS_GB},
    )


def count_part(
    shell: Shell, part: str, num_frames: int, height: int, width: int, num_videos: int = 1
) -> PartCost:
    """Count one part of a video on meta tensors.

    Args:
        shell: on the meta device.
        part: ``text``, ``denoise`` (one step, both passes where guidance needs two) or ``decode``.
        num_frames: of the video, or of a chunk of it.
        height: pixels.
        width: pixels.
        num_videos: at once.
    """
    unet, dtype, factor = shell.unet, shell.unet.dtype, shell.vae_scale_factor
    latent = (num_frames, height // factor, width // factor)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    network: Any = shell.components()[{"text": "text_encoder", "denoise": "unet", "decode": "vae"}[part]]
    passes = 1 if shell.has_guidance_embedding else 2
    batch = num_videos * (passes if part == "denoise" else 1)
    with torch.no_grad(), PeakMemory(_all_tensors(network)) as memory, KernelPaths():
        if part == "text":
            network(torch.zeros(batch, shell.num_tokens, dtype=torch.long, device="meta"))
        elif part == "denoise":
            cond = None
            if shell.has_guidance_embedding:
                cond = empty(batch, unet.config.time_cond_proj_dim)
            text = empty(batch, shell.num_tokens, unet.config.cross_attention_dim)
            sample = empty(batch, unet.config.in_channels, *latent)
            steps = torch.zeros(batch, device="meta")
            network(sample, steps, text, timestep_cond=cond, return_dict=False)
        else:
            channels = unet.config.in_channels
            network.decode(empty(num_videos * num_frames, channels, *latent[1:]), return_dict=False)
    weights = network.decoder if part == "decode" else network
    return PartCost(
        flops=memory.flops,
        weight_bytes=tensor_bytes(weights.parameters()),
        peak_bytes=memory.peak_bytes,
    )


def _all_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _chunks(num_frames: int, largest: int) -> list[int]:
    """Frames decoded at once: what the pipeline starts with, and its halves."""
    chunk = min(num_frames, largest)
    found = [chunk]
    while chunk > 1:
        chunk //= 2
        found.append(chunk)
    return found


def _peak(
    mode: str, shell: Shell, weights: dict[str, int], text: PartCost, denoise: PartCost, decode: int
) -> int:
    """Bytes on the card at the worst moment."""
    work = {"text_encoder": text.peak_bytes, "unet": denoise.peak_bytes, "vae": decode}
    if mode == "model":
        return max(weights[name] + work[name] for name in weights)
    if mode == "group":  # by leaves; the next one is brought while one works
        return max(
            2 * largest_layer_bytes(module) + work[name] for name, module in shell.components().items()
        )
    resident = sum(weights.values())
    if mode == "fp8":
        resident += bytes_in_8_bits(shell.unet) - weights["unet"]
        work["unet"] += largest_layer_bytes(shell.unet)
    return resident + max(work.values())


def _fit(peaks: dict[str, dict[int, float]], room_gb: float) -> dict[str, Any] | None:
    """The fastest mode that fits, with the largest chunk."""
    for mode, by_chunk in peaks.items():
        for chunk, peak_gb in by_chunk.items():
            if peak_gb <= room_gb:
                return {"mode": mode, "chunk": chunk, "peak_gb": round(peak_gb, 3)}
    return None
