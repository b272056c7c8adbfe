"""Whole models without weights: their components by name, on any device, for counting and for timing.

What a network costs does not depend on what its weights are. On the meta device nothing is allocated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from transformers import CLIPTextConfig, CLIPTextModel

from hummingbird import nano
from hummingbird.models.presets import preset_config
from hummingbird.models.unet import UNetSpatioTemporalModel

__all__ = ["FEW_STEP_PRESETS", "PRESETS", "Shell", "build_shell"]

PRESETS = ("videocrafter2", "hummingbird-0.9b", "hummingbird-0.7b")
FEW_STEP_PRESETS = ("hummingbird-0.9b", "hummingbird-0.7b")
"""Presets that take the guidance scale as an input; the other one runs with classifier-free guidance."""

_CALL: dict[str, int | float] = {"num_frames": 16, "height": 320, "width": 512, "fps": 8}
_VAE: dict[str, Any] = {  # that of Stable Diffusion 2
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}
_TEXT: dict[str, Any] = {  # OpenCLIP ViT-H/14 up to its last block but one
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 1024,
    "bos_token_id": 0,  # ids of the tiny default vocabulary would be out of range elsewhere
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Shell:
    """The networks of a pipeline.

    Args:
        unet: video denoiser.
        vae: autoencoder.
        text_encoder: text tower.
        default_call: call arguments that the model carries.
        num_tokens: of a prompt.
    """

    unet: UNetSpatioTemporalModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    default_call: dict[str, Any]
    num_tokens: int

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether one pass of the U-Net makes one step."""
        return self.unet.config.time_cond_proj_dim is not None

    def components(self) -> dict[str, torch.nn.Module]:
        """The networks by the names that pipelines give them, in the order in which they run."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}


def build_shell(
    model: str,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    decoder: str | None = None,
) -> Shell:
    """Build the networks of a model; on real devices with random weights from torch's global generator.

    Args:
        model: a name of ``PRESETS``, an embedded model, or a folder that ``save_pretrained`` wrote, of which
            only the configurations are read.
        device: where the weights are made.
        dtype: of the weights.
        decoder: ``tiny`` puts TAESD's network in the autoencoder's place; a folder that of its configuration.

    Raises:
        FileNotFoundError: no such preset, model or folder.
    """
    with torch.device(device):
        networks = _published(model) if model in PRESETS else _of_folder(model)
        unet, vae, text, call = networks
        if decoder == "tiny":
            vae = AutoencoderTiny()
        elif decoder is not None:
            vae = AutoencoderTiny.from_config(_read(Path(decoder) / "config.json"))
    for network in (unet, vae, text):
        if dtype != torch.float32:
            torch.nn.Module.to(network, dtype)  # diffusers' own warns of every cast
        network.eval().requires_grad_(False)
    return Shell(
        unet=unet,
        vae=vae,
        text_encoder=text,
        default_call={**_CALL, **call},
        num_tokens=int(text.config.max_position_embeddings),
    )


def _published(name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    few = name in FEW_STEP_PRESETS
    unet = UNetSpatioTemporalModel.from_config(preset_config(name, guidance_embedding=few))
    call = {"num_inference_steps": 4 if few else 50, "guidance_scale": 7.5 if few else 12.0}
    return unet, AutoencoderKL(**_VAE), CLIPTextModel(CLIPTextConfig(**_TEXT)), call


def _of_folder(model: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    folder = nano.resolve(model) or Path(model)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"model: got {model!r}, expected {', '.join(PRESETS)}, an embedded model, or a folder with "
            "model_index.json"
        )
    call = _read(folder / "model_index.json").get("default_call") or {}
    vae_config = _read(folder / "vae" / "config.json")
    vae_class = AutoencoderTiny if vae_config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    text_config = CLIPTextConfig.from_dict(_read(folder / "text_encoder" / "config.json"))
    unet = UNetSpatioTemporalModel.from_config(_read(folder / "unet" / "config.json"))
    return unet, vae_class.from_config(vae_config), CLIPTextModel(text_config), call


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file of a model folder.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a model folder of diffusers")
    if path.stat().st_size > 1_000_000:
        raise ValueError(f"{path}: over 1 MB, expected a configuration of a few kilobytes")
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}, expected an object")
    return values
