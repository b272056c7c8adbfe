"""Recipes built without weights: stage 1, the teacher, nano's autoencoder, the small decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hummingbird import nano
from hummingbird.config import ConfigError
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.models.shells import Shell, build_shell
from hummingbird.planning.memory import bytes_in_8_bits, largest_layer_bytes, tensor_bytes
from hummingbird.planning.recipe import Device, Recipe
from hummingbird.planning.step import Sampling, Sketch, Slot, sampling, tensors
from hummingbird.pruning.features import capture_features, level_ends
from hummingbird.pruning.plan import load_plan

__all__ = [
    "frozen_teacher",
    "latent_size",
    "micro_batch",
    "reference",
    "sketch_decoder",
    "sketch_stage1",
    "sketch_teacher",
    "sketch_vae",
    "teacher_shell",
]

TEACHER_UNET: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": 2,
    "attention_resolutions": (4,),
    "num_head_channels": 32,
    "norm_num_groups": 8,
    "init_attention": False,
    "temporal_conv_dropout": 0.0,
    "frame_position_embedding": True,
    "pooled_text_embedding": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
TINY_BLOCKS: dict[str, tuple[int, ...]] = {
    "num_decoder_blocks": (3, 3, 3, 1),
    "num_encoder_blocks": (1, 3, 3, 3),
}

_GATE_CLIPS = 64  # of the caption test that goes with samples of nano's world
_FALLBACK_TEACHER = "videocrafter2"


# --- what each recipe trains --------------------------------------------------------------------------------


def sketch_stage1(recipe: Recipe, device: Device) -> Sketch:
    """Pruning and distilling a teacher (``train/stage1.py``)."""
    values, student = recipe.values, recipe.part("student")
    shell = teacher_shell(recipe, str(values.get("teacher", "nano-teacher")))
    teacher = shell.unet
    if student.get("model") is not None:
        network = teacher_shell(recipe, str(student["model"])).unet
    else:
        plan = load_plan(str(student.get("plan", "0.7b")), teacher.config)
        with torch.device("meta"):
            network = UNetSpatioTemporalModel.from_config(plan.student_config(teacher.config))
    network.requires_grad_(True)
    distillation = recipe.part("distillation")
    outputs = distillation.get("output_weight", [[0, 1.0]])
    features = distillation.get("feature_weight", [[0, 0.0]])
    uses_output, uses_features = (any(weight > 0 for _, weight in points) for points in (outputs, features))
    is_guided = distillation.get("guidance_scale") is not None
    dtype, offload = distillation.get("teacher_dtype", "auto"), bool(distillation.get("offload_teacher"))
    low, teacher_bytes = frozen_teacher(teacher, dtype, offload, device)
    size = latent_size(recipe, values.get("latents"), int(values.get("num_frames", 16)), shell)
    batch = micro_batch(recipe, teacher, size, shell.num_tokens)
    ends = [level_ends(unet.config) for unet in (network, teacher)]

    def loss() -> Tensor:
        noisy, steps, text = batch
        target = torch.empty_like(noisy)
        with capture_features(network, ends[0] if uses_features else {}) as ours:
            prediction = network(noisy, steps, text, fps=8.0, return_dict=False)[0]
        total = (prediction.float() - target).square().flatten(1).mean(dim=1).mean()
        if uses_output or uses_features:
            inputs, embeds = noisy.to(low), text.to(low)
            with torch.no_grad(), capture_features(teacher, ends[1] if uses_features else {}) as theirs:
                answer = teacher(inputs, steps, embeds, fps=8.0, return_dict=False)[0].float()
            if is_guided:
                with torch.no_grad():
                    teacher(inputs, steps, embeds, fps=8.0, return_dict=False)
            total = total + (prediction.float() - answer).square().flatten(1).mean(dim=1).mean()
            for name, feature in ours.items():
                wanted = theirs[name].detach().float()
                total = total + (feature.float() - wanted).square().mean() / wanted.square().mean()
        return total

    frozen = teacher_bytes if uses_output or uses_features else {}
    latents = values.get("latents")
    if latents is None or Path(str(latents)).suffix == ".safetensors":  # a folder holds captions encoded
        frozen["text encoder"] = tensor_bytes(tensors(shell.text_encoder))
    if latents is None:
        frozen["autoencoder"] = tensor_bytes(tensors(shell.vae))
    gate = _GATE_CLIPS if latents is not None and size[1] * shell.vae_scale_factor == 64 else 0
    samplings = []
    if videos := recipe.num_sampled:
        samplings.append(sampling(shell, network, size, videos, gate, device, frozen))
        if recipe.is_guarded:
            samplings.append(reference(shell, size, videos, device, frozen))
    return Sketch(
        network=network,
        slots=[Slot(losses=("distillation",), loss=loss)],
        frozen=[teacher],
        frozen_bytes=frozen,
        samplings=samplings,
    )


def sketch_teacher(recipe: Recipe, device: Device) -> Sketch:
    """A teacher of its own (``train/teacher.py``)."""
    values, options = recipe.values, dict(recipe.part("unet"))
    shell = teacher_shell(recipe, "nano-teacher")
    frames = int(values.get("num_frames", 16))
    recipe.notes.append("autoencoder and text encoder: counted as nano's, because the recipe's are not read")
    config = {**TEACHER_UNET, **options}
    with torch.device("meta"):
        network: Any = UNetSpatioTemporalModel(
            in_channels=shell.vae.config.latent_channels,
            out_channels=shell.vae.config.latent_channels,
            cross_attention_dim=shell.text_encoder.config.hidden_size,
            **config,
        )
    if frames == 1:
        network.temporal_layers_enabled = False
        for name, module in network.named_modules():
            if type(module).__name__ in ("TemporalConvBlock", "TemporalTransformer") or name == "init_attn":
                module.requires_grad_(False)
    size = latent_size(recipe, values.get("latents"), frames, shell)
    batch = micro_batch(recipe, network, size, shell.num_tokens)

    def loss() -> Tensor:
        noisy, steps, text = batch
        prediction = network(noisy, steps, text, fps=8.0, return_dict=False)[0]
        return (prediction.float() - torch.empty_like(noisy)).square().flatten(1).mean(dim=1).mean()

    videos = recipe.num_sampled if frames > 1 else 0
    frozen = {"text encoder": tensor_bytes(tensors(shell.text_encoder))}
    return Sketch(
        network=network,
        slots=[Slot(losses=("denoising",), loss=loss)],
        frozen=[],
        frozen_bytes=frozen,
        samplings=[sampling(shell, network, size, videos, _GATE_CLIPS, device, frozen)] if videos else [],
    )


def sketch_vae(recipe: Recipe, device: Device) -> Sketch:
    """Nano's autoencoder (``train/nano.py vae``)."""
    size = 64
    options = {name: recipe.values.get(name, default) for name, default in VAE.items()}
    widths = tuple(options.pop("block_out_channels"))
    with torch.device("meta"):
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            **options,
            sample_size=size,
        )
    pixels = torch.empty(int(recipe.loop("batch_size")), 3, size, size, device="meta")

    def loss() -> Tensor:
        posterior = vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.empty_like(mean)
        error = (vae.decode(latents).sample.float() - pixels).abs()
        kl: Tensor = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(dim=1).mean()
        return ((error + error.square()) * (1.0 + _edges(pixels))).mean() + kl

    slot = Slot(losses=("reconstruction",), loss=loss)
    return Sketch(network=vae, slots=[slot], frozen=[], frozen_bytes={})


def sketch_decoder(recipe: Recipe, device: Device) -> Sketch:
    """A small decoder (``train/nano.py decoder``)."""
    values = recipe.values
    channels = int(values.get("channels", 64))
    blocks = [tuple(values.get(name, default)) for name, default in TINY_BLOCKS.items()]
    vae = _autoencoder(recipe, len(blocks[0]))
    size = vae.config.sample_size
    side = int(size if isinstance(size, int) else size[0]) // 2 ** (len(blocks[0]) - 1)
    with torch.device("meta"):
        tiny: Any = AutoencoderTiny(
            latent_channels=vae.config.latent_channels,
            decoder_block_out_channels=(channels,) * len(blocks[0]),
            encoder_block_out_channels=(channels,) * len(blocks[1]),
            num_decoder_blocks=blocks[0],
            num_encoder_blocks=blocks[1],
        )
    shape = (int(recipe.loop("batch_size")), vae.config.latent_channels, side, side)
    latents = torch.empty(shape, device="meta")

    def loss() -> Tensor:
        with torch.no_grad():
            pixels = vae.decode(latents).sample.float().clamp(-1.0, 1.0)
        decoded = tiny.decode(latents, return_dict=False)[0].float()
        encoded = tiny.encode(pixels, return_dict=False)[0].float()
        error = (decoded - pixels).abs()
        return ((error + error.square()) * (1.0 + _edges(pixels))).mean() + F.mse_loss(encoded, latents)

    frozen = {"autoencoder": tensor_bytes(tensors(vae))}
    slot = Slot(losses=("reconstruction",), loss=loss)
    return Sketch(network=tiny, slots=[slot], frozen=[vae], frozen_bytes=frozen)


# --- parts of sketches --------------------------------------------------------------------------------------


def teacher_shell(recipe: Recipe, model: str) -> Shell:
    """The networks of a teacher; the published ones where they are not on this machine."""
    known = nano.resolve(model) is not None or Path(model).is_dir()
    if not known:
        recipe.notes.append(f"{model} is not here: counted as {_FALLBACK_TEACHER}, 1.4B parameters")
        model = _FALLBACK_TEACHER
    return build_shell(model)


def frozen_teacher(
    teacher: nn.Module, dtype: str, offload: bool, device: Device
) -> tuple[torch.dtype, dict[str, int]]:
    """Brings a teacher to its precision; the type that it computes in, and what it takes on the device.

    Raises:
        ConfigError: no such precision.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float8"):
        raise ConfigError(f"teacher_dtype: got {dtype!r}, expected auto, float32, bfloat16 or float8")
    computing = torch.bfloat16 if device == "gpu" else torch.float32
    low = computing if dtype in ("auto", "float8") else getattr(torch, dtype)
    if low != torch.float32:
        nn.Module.to(teacher, low)  # diffusers' own warns of every cast
    layer = largest_layer_bytes(teacher)
    if offload and device == "gpu":
        return low, {"teacher, offloaded (largest layers)": 2 * layer}
    if dtype == "float8":  # each layer is cast for its call
        return low, {"teacher, float8": bytes_in_8_bits(teacher) + layer}
    return low, {f"teacher, {str(low).removeprefix('torch.')}": tensor_bytes(tensors(teacher))}


def reference(
    shell: Shell, size: tuple[int, int, int], num_videos: int, device: Device, frozen_bytes: Mapping[str, int]
) -> Sampling:
    """The teacher's videos that a guard compares with: made first, before the teacher is rounded.

    Args:
        shell: of the teacher.
        size: frames, height and width of latents.
        num_videos: made at once.
        device: a GPU has nothing else yet.
        frozen_bytes: what is loaded, by name; on a CPU it is all there.
    """
    teacher: Any = shell.unet
    frozen = dict(frozen_bytes) if device == "cpu" else {}
    frozen["teacher, float32"] = 4 * sum(p.numel() for p in teacher.parameters())
    return sampling(shell, teacher, size, num_videos, 0, device, frozen, has_optimizer_states=False)


def _autoencoder(recipe: Recipe, num_levels: int) -> Any:
    """That of the recipe where it is here; else nano's, or one like it with as many levels."""
    folder = Path(str(recipe.values["vae"]))
    nano_vae = nano.resolve("nano-teacher")
    if not (folder / "config.json").is_file() and nano_vae is not None:
        recipe.notes.append(f"{folder} is not here: counted as nano's autoencoder")
        folder = nano_vae / "vae"
    config = dict(AutoencoderKL.load_config(folder))
    if len(config["block_out_channels"]) != num_levels:
        recipe.notes.append(f"the autoencoder was given {num_levels} levels, those of the decoder")
        widths = (*config["block_out_channels"], *(config["block_out_channels"][-1],) * num_levels)
        config["block_out_channels"] = widths[:num_levels]
        config["down_block_types"] = ("DownEncoderBlock2D",) * num_levels
        config["up_block_types"] = ("UpDecoderBlock2D",) * num_levels
    with torch.device("meta"):
        return AutoencoderKL.from_config(config).eval().requires_grad_(False)


def latent_size(recipe: Recipe, latents: Any, num_frames: int, shell: Shell) -> tuple[int, int, int]:
    """Frames, height and width of the latents: of the file where there is one, else of the model's call."""
    path = Path(str(latents)) if latents is not None else None
    if path is not None and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                height, width = file.get_slice("latents").get_shape()[-2:]
        except SafetensorError as error:
            raise ConfigError(f"latents: {path} is not a file of latents ({error})") from error
        return num_frames, int(height), int(width)
    call, factor = shell.default_call, shell.vae_scale_factor
    height, width = int(call["height"]), int(call["width"])
    if path is not None:
        recipe.notes.append(
            f"{path} is not read: counted as {num_frames} frames of {height}x{width}, the model's own size"
        )
    return num_frames, height // factor, width // factor


def micro_batch(
    recipe: Recipe, unet: Any, size: tuple[int, int, int], num_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents (B, C, F, h, w), timesteps (B,) and hidden states of the text (B, L, D)."""
    count = int(recipe.loop("batch_size"))
    return (
        torch.empty(count, unet.config.in_channels, *size, device="meta"),
        torch.zeros(count, dtype=torch.long, device="meta"),
        torch.empty(count, num_tokens, unet.config.cross_attention_dim, device="meta"),
    )


def _edges(pixels: Tensor) -> Tensor:
    spread = F.max_pool2d(pixels, 3, 1, 1) + F.max_pool2d(-pixels, 3, 1, 1)
    return F.max_pool2d((spread.amax(dim=1, keepdim=True) > 0.15).float(), 3, 1, 1)
