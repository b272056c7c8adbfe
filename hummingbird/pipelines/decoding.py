"""Latents to frames in chunks that fit into memory, whatever the memory is."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

_CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator: not enough memory", "DefaultCPUAllocator: can't allocate memory")
_PIXELS_PER_CHUNK = {"cpu": 2 * 320 * 512}
_DEFAULT_PIXELS_PER_CHUNK = 8 * 320 * 512


class FrameDecodeError(RuntimeError):
    """Not even one frame could be decoded in the memory there is. Nothing is lost: the latents are attached.

    Args:
        message: What happened and what to do.
        latents: The finished latents (B, C, F, h, w), float32, as ``output_type="latent"`` would give them;
            ``pipe.decode_latents(error.latents)`` tries again.
    """

    def __init__(self, message: str, latents: torch.Tensor) -> None:
        super().__init__(message)
        self.latents = latents


def default_chunk_size(height: int, width: int, device: torch.device) -> int:
    """Return how many frames of ``height`` x ``width`` pixels to decode at once, at least 1."""
    return max(1, _PIXELS_PER_CHUNK.get(device.type, _DEFAULT_PIXELS_PER_CHUNK) // (height * width))


def decode_in_chunks(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """Decode frame latents chunk by chunk; a chunk that runs out of memory is halved and tried again.

    Args:
        decode: Maps latents (N, C, h, w) to frames (N, 3, H, W).
        latents: All frames' latents, (N, C, h, w).
        chunk_size: Frames to start with, at least 1. Once halved it stays so.

    Returns:
        Frames (N, 3, H, W) in float32.

    Raises:
        MemoryError: Where a single frame does not fit.
    """
    frames: list[torch.Tensor] = []
    done = 0
    while done < len(latents):
        decoded = _attempt(decode, latents[done : done + chunk_size])
        if decoded is not None:
            frames.append(decoded)
            done += len(decoded)
            continue
        _free_memory()
        if chunk_size == 1:
            raise MemoryError("one frame does not fit")
        chunk_size //= 2
    return torch.cat(frames)


def _attempt(decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor | None:
    """Return float32 frames, or None where memory ran out.

    A function of its own, so that the failed attempt's tensors, which its traceback holds, are gone on
    return.
    """
    try:
        return decode(latents).float()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if any(text in str(error) for text in _CPU_OUT_OF_MEMORY):
            return None
        raise


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
