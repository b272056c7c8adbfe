"""Whole checkpoints as their publishers save them, tiny, with recorded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hummingbird.checkpoints.families import schedule_buffers
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.golden_files import golden_tensors
from tests.models.tiny import tiny_unet

TEXT_HEADS: dict[str, Any] = {"text_encoder": {"num_attention_heads": 4}}
"""What no shape tells of the tiny text tower, whose heads have 8 channels instead of 64."""
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")

Tensors = dict[str, torch.Tensor]


def text_tower() -> Tensors:
    """The recorded tower, of whose 49408 token rows only the used ones are kept in the repository."""
    stored = golden_tensors("text_encoder_tiny/state_dict_used_rows")
    tokens, rows = stored.pop("used_tokens"), stored.pop("used_rows")
    table = torch.zeros(49408, rows.shape[1], dtype=rows.dtype)
    table[tokens] = rows
    return {**stored, "model.token_embedding.weight": table}


def original(unet: Tensors) -> Tensors:
    """A whole checkpoint around a U-Net: schedule, recorded VAE and text tower, by the original's names."""
    schedule = schedule_buffers(VideoCrafterDDIMScheduler(use_scale=True))
    parts = (unet, golden_tensors("pipeline_hb07/vae_state_dict"), text_tower())
    tensors = {name: recipe.load() for name, recipe in schedule.items()}
    for prefix, part in zip(PREFIXES, parts, strict=True):
        tensors |= {prefix + key: value for key, value in part.items()}
    return tensors


def student() -> Tensors:
    """A 0.7B student made small: guidance projection, no middle block."""
    return original(golden_tensors("unet_hb07_tiny/state_dict"))


def teacher() -> Tensors:
    """A VideoCrafter2 made small, in float16 with the schedule in float32."""
    unet = tiny_unet(num_res_blocks=2, num_head_channels=8, cross_attention_dim=32)
    return original({key: value.half() for key, value in unet.state_dict().items()})


def write(path: Path, tensors: Tensors, nesting: str | None = "state_dict", wrapper: str = "") -> Path:
    """Save as ``torch.save`` or safetensors do, by the path's suffix."""
    named = {wrapper + key: value.contiguous() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named if nesting is None else {nesting: named, "global_step": 7}, path)
    return path


def golden_list(name: str = "lora_hb07/lora") -> list[torch.Tensor]:
    """The recorded ``unet_lora.pt``: up and down matrices by turns."""
    tensors = golden_tensors(name)
    return [tensors[key] for key in sorted(tensors)]
