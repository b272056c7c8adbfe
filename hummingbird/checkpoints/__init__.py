"""Weights of other families, as the classes that we run: looked at, converted, loaded."""

from hummingbird.checkpoints.convert import ConversionReport, convert_checkpoint, load_checkpoint
from hummingbird.checkpoints.inspection import CheckpointReport, inspect_checkpoint, read_config
from hummingbird.checkpoints.ldm import text_encoder_from_open_clip, unet_from_ldm, vae_from_ldm
from hummingbird.checkpoints.tensor_file import CheckpointError
from hummingbird.checkpoints.tokenizer import open_clip_tokenizer

__all__ = [
    "CheckpointError",
    "CheckpointReport",
    "ConversionReport",
    "convert_checkpoint",
    "inspect_checkpoint",
    "load_checkpoint",
    "open_clip_tokenizer",
    "read_config",
    "text_encoder_from_open_clip",
    "unet_from_ldm",
    "vae_from_ldm",
]
