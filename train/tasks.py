"""Tasks: the network that is trained, what is frozen beside it, and the losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from hummingbird.evaluation.moving_shapes import judge_videos, summarize
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.nano import world
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.video_io import contact_sheet, to_uint8, write_video
from train.dataset import MovingShapesFrames
from train.guards import clip_statistics, undefined_statistics
from train.loop import Batch
from train.losses import LossWeighting, alpha_sigma, diffusion_target, kl_divergence, loss_weight


class AutoencoderPass(nn.Module):
    """There and back through an autoencoder in one forward, which is what distributed wrappers can wrap."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, 3, H, W) -> reconstruction, mean and log variance of the latents, in float32."""
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * randn_like(mean, generator)
        return self.vae.decode(latents).sample.float(), mean, logvar


class AutoencoderTask:
    """A variational autoencoder of frames: L1, a weight on edges, and a small KL term.

    Reference:
        Rombach et al., arXiv 2112.10752, section 3.1, without the adversarial and perceptual losses, which
        flat shapes do not need.
    """

    def __init__(self, vae: AutoencoderKL, kl_weight: float, edge_weight: float, test_seed: int) -> None:
        self.network: Any = AutoencoderPass(vae)
        self.kl_weight, self.edge_weight = kl_weight, edge_weight
        self.test_batch = MovingShapesFrames(64, seed=test_seed).batch(0)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = batch["pixels"].to(_device(self.network))
        decoded, mean, logvar = self.network(pixels, generator)
        error = (decoded - pixels).abs()
        edges = edge_strength(pixels)
        reconstruction = ((error + error.square()) * (1.0 + self.edge_weight * edges)).mean()
        kl = kl_divergence(mean, logvar)
        loss = reconstruction + self.kl_weight * kl
        return {
            "loss": loss,
            "l1": error.mean(),
            "edge_l1": (error * edges).sum() / edges.sum() / 3,
            "kl": kl,
        }

    @torch.no_grad()
    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        pixels = self.test_batch["pixels"].to(_device(network))
        latents = network.vae.encode(pixels).latent_dist.mode()
        decoded = network.vae.decode(latents).sample.clamp(-1.0, 1.0)
        mse = (decoded - pixels).square().mean(dim=(1, 2, 3))
        rows = torch.cat([pixels[:16], decoded[:16]], dim=2)  # original above reconstruction
        sheet = ((rows + 1.0) * 127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
        Image.fromarray(sheet.cpu().numpy()).save(folder / "reconstructions.png")
        return {
            "psnr_db": float((10.0 * torch.log10(4.0 / mse)).mean()),
            "latent_mean": float(latents.mean()),
            "latent_std": float(latents.std()),
        }

    @torch.no_grad()
    def save_model(self, network: Any, folder: Path) -> None:
        """Sets ``scaling_factor`` and ``shift_factor`` so that scaled latents have mean 0 and deviation 1."""
        vae = network.vae
        latents = vae.encode(self.test_batch["pixels"].to(_device(network))).latent_dist.mode()
        vae.register_to_config(
            scaling_factor=round(float(1.0 / latents.std()), 5), shift_factor=round(float(latents.mean()), 5)
        )
        vae.save_pretrained(folder)


def edge_strength(pixels: Tensor) -> Tensor:
    """1 near outlines, 0 on flat ground: (B, 3, H, W) -> (B, 1, H, W)."""
    spread = F.max_pool2d(pixels, 3, 1, 1) + F.max_pool2d(-pixels, 3, 1, 1)
    return F.max_pool2d((spread.amax(dim=1, keepdim=True) > 0.15).float(), 3, 1, 1)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def randn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the same shape, dtype and device."""
    return torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Padded token ids (B, L), as the pipeline makes them."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids


class TextTower(nn.Module):
    """A text encoder and, for its training only, one linear probe per attribute on its mean token."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        width = text_encoder.config.hidden_size
        values = (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS)
        self.probes = nn.ModuleList(nn.Linear(width, len(v)) for v in values)

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        """Token ids (B, L) -> logits of shape, color, motion and background."""
        pooled = self.text_encoder(input_ids=input_ids).last_hidden_state.mean(dim=1)
        return [probe(pooled) for probe in self.probes]


class TextTowerTask:
    """Teaches a text encoder to hold the four attributes linearly in its mean token.

    A video network that reads such features need not learn language on the way.
    """

    def __init__(self, network: TextTower, tokenizer: PreTrainedTokenizerBase) -> None:
        self.network: Any = network
        self.tokenizer = tokenizer

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = _device(self.network)
        logits = self.network(tokenize(self.tokenizer, batch["captions"]).to(device))
        targets = batch["indices"].to(device).T
        losses = [F.cross_entropy(x, t) for x, t in zip(logits, targets, strict=True)]
        names = [f"{name}_loss" for name in world.ATTRIBUTES]
        return {"loss": torch.stack(losses).sum(), **dict(zip(names, losses, strict=True))}

    @torch.no_grad()
    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        """Probe accuracy on every caption of the unseen triples, which are never trained on."""
        unseen = [(c, a) for c, a in world.all_captions() if a.is_unseen]
        right = np.zeros((len(unseen), 4), dtype=bool)
        for start in range(0, len(unseen), 512):
            part = unseen[start : start + 512]
            ids = tokenize(self.tokenizer, [caption for caption, _ in part])
            logits = network(ids.to(_device(network)))
            guess = np.stack([x.argmax(dim=1).cpu().numpy() for x in logits], axis=1)
            right[start : start + len(part)] = guess == np.array([a.indices for _, a in part])
        figures = {f"probe_{n}": float(right[:, i].mean()) for i, n in enumerate(world.ATTRIBUTES)}
        figures["probe_all"] = float(right.all(axis=1).mean())
        (folder / "probe.json").write_text(json.dumps(figures, indent=2) + "\n")
        return figures

    def save_model(self, network: Any, folder: Path) -> None:
        network.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


class DenoisingTask:
    """Trains a video U-Net to undo noise, with text and classifier-free guidance dropout.

    Args:
        network: the U-Net.
        text_encoder: frozen.
        tokenizer: of the text encoder.
        vae: frozen; only samples are decoded with it.
        scheduler: its noise schedule and prediction type are the training's.
        gate_batch: clips of known attributes for the caption-swap test; None where only captions are known.
        weighting: of the squared error over timesteps.
        timestep_shift: over 1 visits noisy timesteps more often.
        num_sample_prompts: sample videos, half of unseen combinations; 0 for none.
        sample_prompts: prompts of the sample videos instead of those of the moving-shapes world.
        num_sample_steps: steps of the sample videos.
        sample_batch_size: sample videos made at once; 0 makes all of them.
        default_call: call arguments of the sample videos; the saved pipeline carries them as its defaults.

    Reference:
        Ho et al., arXiv 2006.11239, equation 14; zero terminal SNR: Lin et al., arXiv 2305.08891.
    """

    def __init__(
        self,
        network: UNetSpatioTemporalModel,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        gate_batch: Batch | None,
        weighting: LossWeighting = "uniform",
        timestep_shift: float = 1.0,
        num_sample_prompts: int = 16,
        sample_prompts: Sequence[str] = (),
        num_sample_steps: int = 25,
        sample_batch_size: int = 0,
        default_call: dict[str, Any] | None = None,
    ) -> None:
        self.network: Any = network
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.gate_batch = gate_batch
        self.weighting, self.timestep_shift = weighting, timestep_shift
        self.num_sample_prompts, self.sample_prompts = num_sample_prompts, sample_prompts
        self.num_sample_steps, self.sample_batch_size = num_sample_steps, sample_batch_size
        self.default_call = default_call or {}
        self._encodes_captions = False

    @torch.no_grad()
    def encode_prompts(self, captions: Sequence[str]) -> Tensor:
        """(B, L, C) hidden states in float32."""
        device = _device(self.network)
        self.text_encoder.to(device)
        return self.text_encoder(
            input_ids=tokenize(self.tokenizer, captions).to(device)
        ).last_hidden_state.float()

    def batch_embeds(self, batch: Batch) -> Tensor:
        """Hidden states of the captions (B, L, C): the batch's own, or encoded now.

        Where the data brings them, the text encoder stays in the computer's memory but for samples.
        """
        if "prompt_embeds" in batch:
            return batch["prompt_embeds"].to(_device(self.network)).float()
        self._encodes_captions = True
        return self.encode_prompts(batch["captions"])

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        device = _device(self.network)
        latents = batch["latents"].to(device)
        noise = randn_like(latents, generator)
        uniform = torch.rand(len(latents), generator=generator, device=device)
        error, weight = self._squared_error(
            latents, noise, self._timesteps(uniform), self.batch_embeds(batch), batch["fps"]
        )
        return {"loss": (weight * error).mean(), "mse": error.mean()}

    def _timesteps(self, uniform: Tensor) -> Tensor:
        """Timesteps in [0, T); a shift over 1 visits the noisy ones more often.

        Reference:
            Esser et al., arXiv 2403.03206, equation 23.
        """
        shifted = self.timestep_shift * uniform / (1.0 + (self.timestep_shift - 1.0) * uniform)
        last = self.scheduler.config.num_train_timesteps - 1
        return (shifted * (last + 1)).long().clamp(max=last)

    def _squared_error(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, prompt_embeds: Tensor, fps: float
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error and its weight per example: (B,), (B,)."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(latents.device)[timesteps]
        prediction_type = self.scheduler.config.prediction_type
        alpha, sigma = alpha_sigma(alphas_cumprod, latents.ndim)
        target = diffusion_target(latents, noise, alphas_cumprod, prediction_type)
        prediction = self.network(
            alpha * latents + sigma * noise,
            timesteps,
            prompt_embeds,
            fps=fps,
            return_dict=False,
        )[0]
        error = (prediction.float() - target).square().flatten(1).mean(dim=1)
        return error, loss_weight(alphas_cumprod, prediction_type, self.weighting)

    @torch.no_grad()
    def caption_swap(self, network: Any, gate_batch: Batch) -> dict[str, float]:
        """Relative rise of the loss when one attribute of the caption is replaced.

        The gate before long runs: a network for which it stays at zero does not read that attribute.
        """
        # Drawn on the CPU: the figures mean the same on every device.
        generator = torch.Generator().manual_seed(0)
        latents = gate_batch["latents"]
        noise = randn_like(latents, generator)
        uniform = (torch.arange(len(latents)) + 0.5) / len(latents)
        uniform = uniform[torch.randperm(len(latents), generator=generator)]
        device = _device(network)
        latents, noise, uniform = latents.to(device), noise.to(device), uniform.to(device)
        attributes: list[world.Attributes] = gate_batch["attributes"]

        def error(items: Sequence[world.Attributes]) -> Tensor:
            embeds = self.encode_prompts([item.prompt for item in items])
            return self._squared_error(latents, noise, self._timesteps(uniform), embeds, gate_batch["fps"])[0]

        wrapped, self.network = self.network, network
        try:
            base = error(attributes).mean()
            figures = {"gate_mse": float(base)}
            for name in world.ATTRIBUTES:
                swapped = [_with_next_value(item, name) for item in attributes]
                figures[f"swap_{name}"] = float(error(swapped).mean() / base - 1.0)
        finally:
            self.network = wrapped
        return figures

    def pipeline(self, network: UNetSpatioTemporalModel) -> HummingbirdPipeline:
        """The trained network with its companions, as users load it."""
        return HummingbirdPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=network,
            scheduler=self.scheduler,
            default_call=self.default_call,
        )

    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.gate_batch is not None:
            figures = self.caption_swap(network, self.gate_batch)
            (folder / "gate.json").write_text(json.dumps(figures, indent=2) + "\n")
        if not (self.num_sample_prompts or self.sample_prompts) or not network.temporal_layers_enabled:
            return figures
        return figures | self.sample_videos(self.pipeline(network), folder)

    def rate_clips(self, frames: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
        """Further figures of sample videos (B, F, H, W, 3) in [0, 1]."""
        return {}

    def sample_videos(
        self, pipe: HummingbirdPipeline, folder: Path, call: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Videos of fixed prompts and seeds: the first as a file, all on a contact sheet, and what they show.

        Args:
            pipe: with the network to sample from; its other parts are this task's.
            folder: exists.
            call: arguments over those of ``default_call`` and ``num_sample_steps``.

        Returns:
            Statistics of the clips, what ``rate_clips`` says and, for prompts of the moving-shapes world,
            what the oracle says.
        """
        device = _device(pipe.unet)
        for part in (self.vae, self.text_encoder):
            part.to(device)
        pipe.set_progress_bar_config(disable=True)
        items = [] if self.sample_prompts else world.evaluation_prompts(self.num_sample_prompts, seed=1)
        prompts = list(self.sample_prompts) or [item.prompt for item in items]
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        settings = {**self.default_call, "num_inference_steps": self.num_sample_steps, **(call or {})}
        # Not every CPU has instructions for bfloat16, and without them it takes many times longer.
        at_once = self.sample_batch_size or len(prompts)
        parts = []
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            for start in range(0, len(prompts), at_once):
                some = slice(start, start + at_once)
                made = pipe(prompts[some], generator=generators[some], output_type="np", **settings)
                parts.append(np.asarray(made.frames))
        frames = np.concatenate(parts)
        self.vae.to("cpu")
        if not self._encodes_captions:
            self.text_encoder.to("cpu")
        if not np.isfinite(frames).all():  # nothing to see, and the guard should know
            return undefined_statistics()
        videos = to_uint8(frames)
        figures, titles = clip_statistics(videos), prompts
        if items:
            records = judge_videos(videos, items)
            accuracy = summarize(records)["accuracy"]
            figures |= {f"sample_{name}": share for name, share in accuracy.items()}
            titles = [f"{record['prompt']} | {' '.join(record['seen'].values())}" for record in records]
        figures |= self.rate_clips(frames, prompts)
        contact_sheet(list(videos), titles).save(folder / "samples.png")
        write_video(videos[0], folder / "sample-0.mp4", fps=float(pipe.default_call["fps"]))
        return figures

    def save_model(self, network: Any, folder: Path) -> None:
        self.pipeline(network).save_pretrained(folder)


def _with_next_value(item: world.Attributes, name: str) -> world.Attributes:
    """The same request with one attribute replaced by the next value of its list."""
    values = dict(
        zip(world.ATTRIBUTES, (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), strict=True)
    )
    fields = {n: getattr(item, n) for n in world.ATTRIBUTES}
    options = values[name]
    fields[name] = options[(options.index(fields[name]) + 1) % len(options)]
    return world.Attributes(**fields)
