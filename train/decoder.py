"""Trains a small decoder that stands in for the one of a trained autoencoder.

    python train/nano.py decoder configs/train/nano_decoder.yaml

It learns from the autoencoder's own latents what the full decoder makes of them; no pictures are needed. The
class is diffusers' ``AutoencoderTiny``, as TAESD's: latents go in as the U-Net sees them, scaled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from hummingbird.config import ConfigError, config_dataclass
from hummingbird.evaluation.similarity import psnr_db, ssim
from train.dataset import open_latents
from train.loop import Batch, LoopConfig, run
from train.tasks import edge_strength, randn_like

NUM_TEST_FRAMES = 256


@config_dataclass
class DecoderConfig:
    """A small ``AutoencoderTiny`` for the latents of one autoencoder."""

    loop: LoopConfig
    vae: str
    """Folder of the ``AutoencoderKL`` to learn from; it is frozen."""
    latents: str
    """File with clips that it encoded: of the moving-shapes world, or of curated shards."""
    channels: Annotated[int, Field(ge=1)] = 64
    """The same on every level, as the class wants it."""
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """From the latents' level up: as many levels as the autoencoder has."""
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """From the pixels' level down. Videos need no encoder; the class has one."""
    latent_noise: Annotated[float, Field(ge=0)] = 0.2
    """Largest deviation of the noise that is added to latents: a sampler's are never quite clean."""
    edge_weight: Annotated[float, Field(ge=0)] = 4.0

    @pydantic.model_validator(mode="after")
    def _check(self) -> DecoderConfig:
        if len(self.num_decoder_blocks) != len(self.num_encoder_blocks):
            raise ValueError("num_decoder_blocks and num_encoder_blocks: expected the same number of levels")
        return self


class TinyPass(nn.Module):
    """Both halves in one forward, which is what distributed wrappers can wrap."""

    def __init__(self, tiny: AutoencoderTiny) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled latents (B, C, h, w) and frames (B, 3, H, W) -> frames and latents, in float32."""
        # Channels last: convolutions of few channels train twice as fast on a CPU.
        latents, pixels = (x.contiguous(memory_format=torch.channels_last) for x in (latents, pixels))
        decoded = self.tiny.decode(latents, return_dict=False)[0].float()
        return decoded, self.tiny.encode(pixels, return_dict=False)[0].float()


class DecoderTask:
    """Distils a decoder: L1 and squared error to the full decoder's frames, with a weight on edges.

    Args:
        network: what is trained.
        vae: what it learns from.
        test_latents: scaled latents (N, C, h, w) that figures are measured on.
        latent_noise: as in ``DecoderConfig``.
        edge_weight: as in ``DecoderConfig``.

    Raises:
        ConfigError: the two do not have the same number of levels.
    """

    def __init__(
        self,
        network: AutoencoderTiny,
        vae: AutoencoderKL,
        test_latents: Tensor,
        latent_noise: float,
        edge_weight: float,
    ) -> None:
        ours, theirs = len(network.config.block_out_channels), len(vae.config.block_out_channels)
        if ours != theirs:
            raise ConfigError(
                f"num_decoder_blocks: got {ours} levels, expected {theirs}, those of the autoencoder"
            )
        self.network: Any = TinyPass(network)
        self.vae = vae.eval().requires_grad_(False)
        self.test_latents = test_latents
        self.latent_noise, self.edge_weight = latent_noise, edge_weight

    @torch.no_grad()
    def full_frames(self, latents: Tensor) -> Tensor:
        """What the full decoder makes of scaled latents (B, C, h, w): (B, 3, H, W) in [-1, 1]."""
        self.vae.to(latents.device)
        shift = self.vae.config.shift_factor or 0.0
        frames = self.vae.decode(latents / self.vae.config.scaling_factor + shift).sample
        return frames.float().clamp(-1.0, 1.0)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        latents = batch["latents"].to(device).transpose(1, 2).flatten(0, 1)  # (B*F, C, h, w)
        deviation = self.latent_noise * torch.rand(len(latents), 1, 1, 1, generator=generator, device=device)
        latents = latents + deviation * randn_like(latents, generator)
        pixels = self.full_frames(latents)
        decoded, encoded = self.network(latents, pixels)
        error = (decoded - pixels).abs()
        edges = edge_strength(pixels)
        reconstruction = ((error + error.square()) * (1.0 + self.edge_weight * edges)).mean()
        latent_mse = (encoded - latents).square().mean()
        return {
            "loss": reconstruction + 0.1 * latent_mse,
            "l1": error.mean(),
            "edge_l1": (error * edges).sum() / edges.sum().clamp(min=1.0) / 3,
            "latent_mse": latent_mse,
        }

    @torch.no_grad()
    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        """Likeness to the full decoder on frames drawn apart from those of training; both on one picture."""
        latents = self.test_latents.to(next(network.parameters()).device)
        full = (self.full_frames(latents) + 1.0) / 2.0
        small = (network.tiny.decode(latents, return_dict=False)[0].float().clamp(-1.0, 1.0) + 1.0) / 2.0
        rows = torch.cat([full[:16], small[:16]], dim=2)  # full above small
        sheet = (rows * 255.0).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
        Image.fromarray(sheet.cpu().numpy()).save(folder / "decoded.png")
        return {
            "psnr_db": float(psnr_db(small, full).mean()),
            "ssim": float(ssim(small, full).mean()),
        }

    def save_model(self, network: Any, folder: Path) -> None:
        network.tiny.save_pretrained(folder)
        file = folder / "config.json"  # the class writes a value into it that it warns of when it reads it
        values = json.loads(file.read_text())
        values.pop("block_out_channels", None)
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def train_decoder(config: DecoderConfig) -> None:
    """The whole run, from its last checkpoint where there is one.

    Raises:
        ConfigError: settings that do not fit.
        FileNotFoundError: autoencoder or latents are missing.
    """
    if config.loop.init_from is not None:
        raise ConfigError(
            f"loop.init_from: got {config.loop.init_from!r}, but this part always starts from nothing"
        )
    if not (Path(config.vae) / "config.json").is_file():
        raise FileNotFoundError(f"vae: no autoencoder in {config.vae}")
    vae = AutoencoderKL.from_pretrained(config.vae, use_safetensors=True, torch_dtype=torch.float32)
    data = open_latents(Path(config.latents), config.loop.batch_size, config.loop.seed, 1, 0.0)
    test = open_latents(Path(config.latents), NUM_TEST_FRAMES, config.loop.seed + 1_000_000, 1, 0.0)
    torch.manual_seed(config.loop.seed)
    network = AutoencoderTiny(
        latent_channels=vae.config.latent_channels,
        encoder_block_out_channels=(config.channels,) * len(config.num_encoder_blocks),
        decoder_block_out_channels=(config.channels,) * len(config.num_decoder_blocks),
        num_encoder_blocks=config.num_encoder_blocks,
        num_decoder_blocks=config.num_decoder_blocks,
    )
    test_latents = test.batch(0)["latents"].transpose(1, 2).flatten(0, 1)
    task = DecoderTask(network, vae, test_latents, config.latent_noise, config.edge_weight)
    run(task, data, config.loop, config)
