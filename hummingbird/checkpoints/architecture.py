"""Which network do these weights belong to? Read off the names and shapes of the original's tensors.

What shapes do not tell is the same in every published file and taken from there: eight heads in the first
temporal transformer (its inner width then gives the channels per head), heads of 64 channels in the text
tower, 32 groups in every norm.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from transformers import CLIPTextConfig

from hummingbird.checkpoints.ldm import _text_config, _vae_options
from hummingbird.models import UNetSpatioTemporalModel, preset_config

Shapes = Mapping[str, tuple[int, ...]]

_INIT_ATTENTION_HEADS = 8
_TEXT_HEAD_DIM = 64
_VIT_H_WIDTH, _VIT_H_LAYERS = 1024, 24
_TEXT_OPTIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_PRESETS = ("videocrafter2", "hummingbird-0.9b", "hummingbird-0.7b")


class ArchitectureError(ValueError):
    """The names and shapes do not say which network it is; the message is one line that says why."""


def unet_options(shapes: Shapes, text_width: int | None = None) -> dict[str, Any]:
    """Return the options of ``UNetSpatioTemporalModel`` under which its tensors have these shapes.

    Args:
        shapes: Of the original's tensors, by their names inside the U-Net.
        text_width: Width of a text token, for a net that never looks at the text; 1024 where left out.

    Raises:
        ArchitectureError: Where a tensor is missing without which the structure cannot be told.
    """
    model_channels, in_channels = _shape(shapes, "input_blocks.0.0.weight", "U-Net")[:2]
    levels: list[list[tuple[int, bool]]] = [[]]  # of each block: width, and whether it has transformers
    index = 1
    while any(key.startswith(f"input_blocks.{index}.") for key in shapes):
        name = f"input_blocks.{index}"
        if f"{name}.0.op.weight" in shapes:
            levels.append([])
        else:
            width = _shape(shapes, f"{name}.0.out_layers.3.weight", "U-Net")[0]
            levels[-1].append((width, _has(shapes, f"{name}.1.transformer_blocks.")))
        index += 1
    if not all(levels):
        raise ArchitectureError("U-Net: a level of input_blocks has no residual block; is the file complete?")
    widths = [level[-1][0] for level in levels]
    if any(width % model_channels for width in widths):
        raise ArchitectureError(
            f"U-Net: widths {widths} are no multiples of {model_channels}, the width of the first convolution"
        )
    blocks = [len(level) for level in levels]
    attention = [2**level for level, entries in enumerate(levels) if entries[0][1]]
    init_attention = _has(shapes, "init_attn.")
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": _shape(shapes, "out.2.weight", "U-Net")[0],
        "model_channels": model_channels,
        "channel_mult": tuple(width // model_channels for width in widths),
        "num_res_blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        "attention_resolutions": tuple(reversed(attention)),
        "cross_attention_dim": _text_width(shapes) or text_width or 1024,
        "transformer_depth": max(1, _count(shapes, r"init_attn\.0\.transformer_blocks\.(\d+)\.")),
        "has_middle_block": _has(shapes, "middle_block."),
        "init_attention": init_attention,
        "temporal_conv": any(".temopral_conv." in key for key in shapes),
        "temporal_attention": any(re.match(r"input_blocks\.\d+\.2\.", key) for key in shapes)
        or not attention,
        "fps_conditioning": _has(shapes, "fps_embedding."),
        "time_cond_proj_dim": shapes.get("time_cond_proj.weight", (0, None))[1],
    }
    if init_attention:
        inner = _shape(shapes, "init_attn.0.proj_in.weight", "U-Net")[0]
        options["num_head_channels"] = inner // _INIT_ATTENTION_HEADS
    return options


def vae_options(shapes: Shapes) -> dict[str, Any]:
    """Return the options of ``AutoencoderKL`` under which the original's tensors have these shapes.

    Raises:
        ArchitectureError: Where a tensor is missing without which the structure cannot be told.
        ValueError: Where it is an autoencoder that is not supported.
    """
    width, in_channels = _shape(shapes, "encoder.conv_in.weight", "VAE")[:2]
    num_levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [_shape(shapes, f"encoder.down.{i}.block.0.conv2.weight", "VAE")[0] for i in range(num_levels)]
    has_attention = any(re.match(r"encoder\.down\.\d+\.attn\.", key) for key in shapes)
    resolution = 256  # of the training crops; no tensor depends on it
    return _vae_options(
        {
            "embed_dim": _shape(shapes, "post_quant_conv.weight", "VAE")[1],
            "ddconfig": {
                "ch": width,
                "ch_mult": [level // width for level in widths],
                "in_channels": in_channels,
                "out_ch": _shape(shapes, "decoder.conv_out.weight", "VAE")[0],
                "num_res_blocks": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
                "z_channels": _shape(shapes, "decoder.conv_in.weight", "VAE")[1],
                "attn_resolutions": ["some"] if has_attention else [],
                "resolution": resolution,
            },
        }
    )


def text_encoder_config(shapes: Shapes, num_heads: int | None = None) -> CLIPTextConfig:
    """Return the configuration of our text encoder for an OpenCLIP tower of these shapes.

    Args:
        shapes: Of the tower's tensors, with or without the prefix ``model.``.
        num_heads: Attention heads; where left out, those of ``text_encoder_heads`` or else 1.

    Raises:
        ArchitectureError: Where a tensor is missing without which the structure cannot be told.
    """
    shapes = {key.removeprefix("model."): shape for key, shape in shapes.items()}
    vocab_size, width = _shape(shapes, "token_embedding.weight", "text encoder")
    num_layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    if width == _VIT_H_WIDTH and num_layers != _VIT_H_LAYERS:
        raise ArchitectureError(
            f"text encoder: got {num_layers} blocks, expected {_VIT_H_LAYERS} with the last, unused one"
        )
    return _text_config(
        {
            "embed_dim": _shape(shapes, "text_projection", "text encoder")[1],
            "text_cfg": {
                "context_length": _shape(shapes, "positional_embedding", "text encoder")[0],
                "vocab_size": vocab_size,
                "width": width,
                "heads": num_heads or text_encoder_heads(shapes) or 1,
                "layers": num_layers,
                "mlp_ratio": _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", "text encoder")[0]
                / width,
            },
        }
    )


def text_encoder_heads(shapes: Shapes) -> int | None:
    """Return the attention heads of an OpenCLIP tower, one for every 64 channels; None for other widths."""
    shapes = {key.removeprefix("model."): shape for key, shape in shapes.items()}
    width = _shape(shapes, "token_embedding.weight", "text encoder")[1]
    return None if width % _TEXT_HEAD_DIM else width // _TEXT_HEAD_DIM


def preset_of(unet: UNetSpatioTemporalModel) -> str | None:
    """Return the name of the published network that a U-Net is, guidance embedding aside; None for others."""
    for name in _PRESETS:
        preset = preset_config(name, guidance_embedding=unet.config.time_cond_proj_dim is not None)
        expected = {**_defaults(UNetSpatioTemporalModel), **preset}
        if all(_plain(unet.config[key]) == _plain(value) for key, value in expected.items()):
            return name
    return None


def plain_config(model: Any) -> dict[str, Any]:
    """Return the options of one of our networks, without what the libraries note beside them."""
    if isinstance(model.config, CLIPTextConfig):
        config = model.config.to_dict()
        return {key: config[key] for key in _TEXT_OPTIONS}
    return {key: _plain(value) for key, value in model.config.items() if not key.startswith("_")}


def _defaults(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    return {entry.name: entry.default for entry in parameters}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _shape(shapes: Shapes, key: str, part: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ArchitectureError(
            f"{part}: {key} is missing, so its structure cannot be told; is the file complete?"
        )
    return shapes[key]


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that ``pattern`` finds at the start of a key."""
    found = [int(match[1]) for key in shapes if (match := re.match(pattern, key))]
    return max(found, default=-1) + 1


def _text_width(shapes: Shapes) -> int | None:
    """Width of what the first spatial transformer attends to."""
    for key, shape in shapes.items():
        if re.fullmatch(
            r"(input_blocks\.\d+|middle_block)\.1\.transformer_blocks\.0\.attn2\.to_k\.weight", key
        ):
            return shape[1]
    return None
