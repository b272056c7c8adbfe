"""A guided teacher, rewards and clips of the world, all real and tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler

from hummingbird import HummingbirdPipeline
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.rewards.nano import Kind, build_nano_network, nano_tokenizer
from tests.pipelines.tiny import tiny_components
from train.loop import LoopConfig
from train.reward_task import NanoRewardConfig, NanoRewardTask, model_config


def tiny_teacher() -> HummingbirdPipeline:
    """v-prediction with zero terminal SNR, like the embedded one; 64 x 64 pixels, 8 frames."""
    parts = tiny_components(few_step=False)
    torch.manual_seed(1)
    unet = UNetSpatioTemporalModel(
        model_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        num_head_channels=8,
        cross_attention_dim=16,
        init_attention=False,
        temporal_conv_dropout=0.0,
        norm_num_groups=4,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "norm" not in name and parameter.ndim > 1:
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8],
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    call = {"num_frames": 8, "height": 64, "width": 64, "fps": 8, "guidance_scale": 2.5}
    call["num_inference_steps"] = 2
    changed = {"unet": unet.eval(), "vae": vae.eval(), "scheduler": scheduler}
    return HummingbirdPipeline(**{**parts, **changed}, default_call=call)


def save_tiny(folder: Path) -> dict[str, Any]:
    """Teacher and rewards as folders; the flags that put them into the debug recipe."""
    tiny_teacher().save_pretrained(folder / "teacher")
    kinds: tuple[Kind, ...] = ("image", "video")
    for seed, kind in enumerate(kinds):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"width": 4, "heads": 2} if kind == "image" else {"width": 8, "heads": 2}
        sizes |= {"image_size": 32, "text_width": 8, "text_heads": 2, "text_layers": 1, "embed_dim": 8}
        config = NanoRewardConfig(
            loop=LoopConfig(output="unused"), kind=kind, channels=(4, 4), layers=1, **sizes
        )
        network = build_nano_network(kind, model_config(config, nano_tokenizer()))
        target = folder / f"reward_{kind}"
        target.mkdir()
        NanoRewardTask(network.eval(), nano_tokenizer(), config).save_model(network, target)
    return {
        "--teacher": str(folder / "teacher"),
        "--rewards.0.checkpoint": str(folder / "reward_image"),
        "--rewards.1.checkpoint": str(folder / "reward_video"),
    }
