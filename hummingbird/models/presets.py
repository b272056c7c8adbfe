"""Configurations of the published networks, and the translation of their own configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GUIDANCE_EMBEDDING_DIM = 256

_PUBLISHED: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "attention_resolutions": (4, 2, 1),
    "num_head_channels": 64,
    "cross_attention_dim": 1024,
    "transformer_depth": 1,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "videocrafter2": {"num_res_blocks": 2, "has_middle_block": True},
    "hummingbird-0.9b": {"num_res_blocks": 1, "has_middle_block": True},
    "hummingbird-0.7b": {"num_res_blocks": 1, "has_middle_block": False},
}


def preset_config(name: str, guidance_embedding: bool = False) -> dict[str, Any]:
    """Return the configuration of a published network, for ``UNetSpatioTemporalModel.from_config``.

    Args:
        name: ``videocrafter2`` (1.4B, also T2V-Turbo), ``hummingbird-0.9b`` or ``hummingbird-0.7b``.
        guidance_embedding: whether the guidance scale is an input (the few-step networks).

    Raises:
        ValueError: unknown name.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset: got {name!r}, expected one of {', '.join(sorted(_PRESETS))}")
    dim = GUIDANCE_EMBEDDING_DIM if guidance_embedding else None
    return {**_PUBLISHED, **_PRESETS[name], "time_cond_proj_dim": dim}


# option of the original -> our name
_RENAMED = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "num_res_blocks": "num_res_blocks",
    "attention_resolutions": "attention_resolutions",
    "num_head_channels": "num_head_channels",
    "context_dim": "cross_attention_dim",
    "transformer_depth": "transformer_depth",
    "dropout": "dropout",
    "temporal_conv": "temporal_conv",
    "temporal_attention": "temporal_attention",
    "addition_attention": "init_attention",
    "fps_cond": "fps_conditioning",
    "time_cond_proj_dim": "time_cond_proj_dim",
}
# the original's own defaults where they differ from ours
_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "dropout": 0.0,
    "temporal_conv": False,
    "temporal_attention": True,
    "addition_attention": False,
    "fps_cond": False,
    "time_cond_proj_dim": None,
}
_REQUIRED = (
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "attention_resolutions",
    "num_head_channels",
    "context_dim",
)
# option -> (values that mean what we built, why another value is refused)
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_linear": ((True,), "transformers project tokens by linear layers here"),
    "temporal_selfatt_only": ((True,), "temporal layers attend to frames only"),
    "use_relative_position": ((False,), "temporal attention has no relative positions here"),
    "use_causal_attention": ((False,), "temporal attention has no causal mask here"),
    "motion_cond_proj_dim": ((None,), "there is no motion condition here"),
    "conv_resample": ((True,), "resolution changes by convolutions here"),
    "dims": ((2,), "spatial layers are two-dimensional here"),
    "num_heads": ((-1, None), "heads are given by num_head_channels here"),
    "use_scale_shift_norm": ((False,), "the embedding is added, not used as scale and shift, here"),
    "resblock_updown": ((False,), "resolution changes outside residual blocks here"),
    "tempspatial_aware": ((False,), "convolutions over frames are 3x1x1 here"),
    "use_image_attention": ((False,), "there is no image attention here"),
}
# options that do not change the network's function
_WITHOUT_EFFECT = ("use_checkpoint", "use_fp16", "temporal_length")


def config_from_ldm(unet_config: Mapping[str, Any], has_middle_block: bool = True) -> dict[str, Any]:
    """Translate the ``unet_config`` parameters of an original configuration file.

    Args:
        unet_config: the original's options.
        has_middle_block: whether the checkpoint has keys under ``middle_block.``; the files of the 0.7B
            network, which has none, do not say so.

    Returns:
        A configuration for ``UNetSpatioTemporalModel.from_config``.

    Raises:
        ValueError: an option is missing, unknown, or asks for a network that is not built here.
    """
    missing = [key for key in _REQUIRED if unet_config.get(key) is None]
    if missing:
        raise ValueError(f"unet_config: missing {', '.join(missing)}")
    for key, value in unet_config.items():
        if key in _FIXED:
            allowed, reason = _FIXED[key]
            if value not in allowed:
                raise ValueError(f"unet_config: {key}={value!r} is not supported: {reason}")
        elif key not in _RENAMED and key not in _WITHOUT_EFFECT:
            raise ValueError(f"unet_config: unknown option {key}={value!r}; remove it if it has no effect")
    options = {**_ORIGINAL_DEFAULTS, **{key: unet_config[key] for key in _RENAMED if key in unet_config}}
    config = {_RENAMED[key]: _plain(value) for key, value in options.items()}
    return {**config, "has_middle_block": has_middle_block}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
