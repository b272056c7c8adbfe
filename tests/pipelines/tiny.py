"""The real classes, made tiny."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hummingbird import HummingbirdPipeline
from hummingbird.models import UNetSpatioTemporalModel

WORDS = ["a", "red", "blue", "circle", "square", "moving", "right", "left", "on", "black", "white", "growing"]
TOKENS = 8
CALL: dict[str, Any] = {
    "num_frames": 3,
    "height": 16,
    "width": 24,
    "fps": 8,
    "num_inference_steps": 2,
    "output_type": "np",
}
"""A small call: latents are 8 x 12."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<start>", "<end>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TOKENS,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
    )


def tiny_components(few_step: bool = True, seed: int = 0) -> dict[str, Any]:
    """Return components of a few-step pipeline, or of a classic teacher, with all weights random."""
    torch.manual_seed(seed)
    unet = UNetSpatioTemporalModel(
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2, 1),
        num_head_channels=8,
        cross_attention_dim=16,
        init_attention_heads=2,
        norm_num_groups=8,
        time_cond_proj_dim=32 if few_step else None,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4 + len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            projection_dim=16,
        )
    )
    for model in (unet, vae, text_encoder):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name and parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.eval()
    scheduler = LCMScheduler() if few_step else teacher_scheduler()
    return {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tiny_tokenizer(),
        "unet": unet,
        "scheduler": scheduler,
    }


def teacher_scheduler() -> DDIMScheduler:
    """Zero terminal SNR with v-prediction: the plain diffusers sampler of the nano teacher."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def tiny_pipeline(few_step: bool = True, **options: Any) -> HummingbirdPipeline:
    pipe = HummingbirdPipeline(**tiny_components(few_step), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> torch.Generator | list[torch.Generator]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators[0] if len(generators) == 1 else generators
