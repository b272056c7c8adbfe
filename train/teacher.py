"""Trains a video diffusion teacher on encoded clips.

accelerate launch train/teacher.py configs/train/nano_teacher.yaml [--loop.max-steps 100]
python train/teacher.py configs/train/nano_teacher.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # `accelerate launch` starts this file, not the package

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from hummingbird.config import config_dataclass
from hummingbird.models import UNetSpatioTemporalModel
from train.command import read_settings, run_command
from train.dataset import CaptionedLatents, LatentClips, open_latents
from train.loop import LoopConfig, run
from train.losses import LossWeighting
from train.tasks import DenoisingTask


@config_dataclass
class UNetConfig:
    """The parts of ``UNetSpatioTemporalModel``'s configuration that recipes vary."""

    model_channels: int = 32
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4,)
    num_head_channels: int = 32
    norm_num_groups: int = 8
    init_attention: bool = False
    temporal_conv_dropout: float = 0.0
    frame_position_embedding: bool = True
    pooled_text_embedding: bool = True


@config_dataclass
class DiffusionConfig:
    """The forward process and the loss."""

    prediction_type: str = "v_prediction"
    rescale_betas_zero_snr: bool = True
    weighting: LossWeighting = "uniform"
    timestep_shift: float = 1.0


@config_dataclass
class CallConfig:
    """Call arguments that the trained pipeline carries as its defaults."""

    num_frames: int = 16
    height: int = 64
    width: int = 64
    fps: int = 8
    num_inference_steps: int = 50
    guidance_scale: float = 2.5
    eta: float = 0.0


@config_dataclass
class TeacherConfig:
    """One stage of the teacher's training."""

    loop: LoopConfig
    vae: str
    """Folder of an ``AutoencoderKL``."""
    text: str
    """Folder with ``text_encoder`` and ``tokenizer``."""
    latents: str
    """File with clips encoded by that autoencoder: of the moving-shapes world, or of curated shards."""
    num_frames: int = 16
    """Frames per example; 1 trains the spatial layers alone."""
    caption_dropout: float = 0.1
    num_sample_prompts: int = 16
    unet: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    default_call: CallConfig = CallConfig()


def build_task(config: TeacherConfig) -> tuple[DenoisingTask, LatentClips | CaptionedLatents]:
    """The task and its data; weights come from ``config.loop.init_from`` or from the seed.

    Raises:
        FileNotFoundError: a part that is made before this stage is missing; the message says how to make it.
        ValueError: the parts do not fit together.
    """
    _require("vae", Path(config.vae) / "config.json", "vae")
    _require("text", Path(config.text) / "text_encoder" / "config.json", "text")
    _require("latents", Path(config.latents), "latents")
    # float32 whatever the files hold: those of the package are in half precision.
    vae = AutoencoderKL.from_pretrained(config.vae, use_safetensors=True, torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(
        Path(config.text) / "text_encoder", use_safetensors=True, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(config.text) / "tokenizer")
    torch.manual_seed(config.loop.seed)
    unet = UNetSpatioTemporalModel(
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        cross_attention_dim=text_encoder.config.hidden_size,
        **vars(config.unet),
    )
    if config.loop.init_from is not None:
        weights = Path(config.loop.init_from) / "unet" / "diffusion_pytorch_model.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(
                f"loop.init_from: no file {weights}; train the stage before this one first"
            )
        unet.load_state_dict(load_file(weights))
    if config.num_frames == 1:
        freeze_temporal_layers(unet)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=config.diffusion.prediction_type,
        rescale_betas_zero_snr=config.diffusion.rescale_betas_zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    path = Path(config.latents)
    data = open_latents(
        path, config.loop.batch_size, config.loop.seed, config.num_frames, config.caption_dropout
    )
    if data.latents.shape[2] != vae.config.latent_channels:
        raise ValueError(
            f"latents: {path} has {data.latents.shape[2]} channels, the autoencoder "
            f"{vae.config.latent_channels}; encode the clips again with `python train/nano.py latents`"
        )
    gate_batch = None
    if isinstance(data, LatentClips):
        gate = LatentClips(
            path, 64, config.loop.seed + 1, config.num_frames, caption_dropout=0.0, reverse=0.0
        )
        gate_batch = gate.batch(0)
    task = DenoisingTask(
        unet,
        text_encoder,
        tokenizer,
        vae,
        scheduler,
        gate_batch=gate_batch,
        weighting=config.diffusion.weighting,
        timestep_shift=config.diffusion.timestep_shift,
        num_sample_prompts=config.num_sample_prompts,
        default_call=vars(config.default_call),
    )
    return task, data


def freeze_temporal_layers(unet: UNetSpatioTemporalModel) -> None:
    """Bypasses every layer that looks across frames and keeps its weights as they are."""
    unet.temporal_layers_enabled = False
    for name, module in unet.named_modules():
        if type(module).__name__ in ("TemporalConvBlock", "TemporalTransformer"):
            module.requires_grad_(False)
        if name == "init_attn":
            module.requires_grad_(False)


def _require(name: str, path: Path, part: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: no file {path}; make it with "
            f"`python train/nano.py {part} configs/train/nano_{part}.yaml`"
        )


def train_teacher(config: TeacherConfig) -> None:
    """One stage, from its last checkpoint where there is one."""
    task, data = build_task(config)
    run(task, data, config.loop, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(
        lambda words: train_teacher(read_settings(TeacherConfig, words, "train/teacher.py", __doc__)), argv
    )


if __name__ == "__main__":
    sys.exit(main())
