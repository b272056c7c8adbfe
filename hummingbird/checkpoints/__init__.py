"""Weights of other families, as the classes that we run."""

from hummingbird.checkpoints.ldm import text_encoder_from_open_clip, unet_from_ldm, vae_from_ldm
from hummingbird.checkpoints.tokenizer import open_clip_tokenizer

__all__ = ["open_clip_tokenizer", "text_encoder_from_open_clip", "unet_from_ldm", "vae_from_ldm"]
