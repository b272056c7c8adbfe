"""The parts of a VideoCrafter2 / T2V-Turbo / Hummingbird checkpoint, as the classes that we run.

The original calls them ``model.diffusion_model``, ``first_stage_model`` and ``cond_stage_model``; the
functions here take a part's own configuration and its state dict with that prefix taken off. Each
``*_layout`` says, without a weight in memory, which network it is and where in the original each of its
tensors lies; ``to_ldm`` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from hummingbird.checkpoints.key_map import Recipe, Source, load_mapped
from hummingbird.models import UNetSpatioTemporalModel, config_from_ldm

SCALING_FACTOR = 0.18215
_NUM_ATTENTION_PARTS = 3  # q, k, v stacked along the first axis


def unet_from_ldm(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float32
) -> UNetSpatioTemporalModel:
    """Build the U-Net from the original's configuration and weights.

    Whether there is a middle block (the 0.7B net has none) and a guidance embedding is read off the keys: the
    configuration files do not say so reliably.

    Args:
        config: The original's ``unet_config`` parameters.
        state_dict: Its weights, any floating type.
        dtype: Type of the result.

    Returns:
        The model in eval mode, with weights of its own.

    Raises:
        ValueError: Where the configuration is not supported, or a key is missing, over or of another shape.
    """
    has_middle_block = any(key.startswith("middle_block.") for key in state_dict)
    options = config_from_ldm(config, has_middle_block=has_middle_block)
    projection = state_dict.get("time_cond_proj.weight")
    if projection is not None and options.get("time_cond_proj_dim") is None:
        options["time_cond_proj_dim"] = projection.shape[-1]
    layout = unet_layout(options, state_dict)
    load_mapped(layout.model, layout.sources, state_dict, name=layout.name, dtype=dtype)
    return layout.model.eval()


def vae_from_ldm(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float32
) -> AutoencoderKL:
    """Build diffusers' image autoencoder from the original's configuration and weights.

    Args:
        config: ``{"ddconfig": {...}, "embed_dim": int}``.
        state_dict: Its weights, any floating type.
        dtype: Type of the result.

    Returns:
        The model in eval mode, ``scaling_factor`` 0.18215.

    Raises:
        ValueError: Where the configuration is not supported, or a key is missing, over or of another shape.
    """
    layout = vae_layout(_vae_options(config))
    load_mapped(layout.model, layout.sources, state_dict, name=layout.name, dtype=dtype)
    return layout.model.eval()


def text_encoder_from_open_clip(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], *, dtype: torch.dtype = torch.float32
) -> CLIPTextModel:
    """Build the text encoder whose ``last_hidden_state`` is the penultimate block under the final norm.

    The last block, the projection and the logit scale of the OpenCLIP tower do not contribute and are left
    out.

    Args:
        config: ``{"text_cfg": {...}, "embed_dim": int}`` as in OpenCLIP's model files.
        state_dict: Its weights, keys with or without the prefix ``model.``, any floating type.
        dtype: Type of the result.

    Returns:
        The model in eval mode. It attends to every token, padding (id 0) included.

    Raises:
        ValueError: Where the configuration is not supported, or a key is missing, over or of another shape.
    """
    num_layers = config["text_cfg"]["layers"]
    if num_layers < 2:
        raise ValueError(
            f"text encoder: text_cfg.layers={num_layers}, expected at least 2 for a penultimate block"
        )
    layout = text_encoder_layout(_text_config(config), state_dict)
    load_mapped(
        layout.model, layout.sources, state_dict, name=layout.name, ignored=layout.unused, dtype=dtype
    )
    return layout.model.eval()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One of our networks, on the meta device, and where its tensors lie in the original's state dict.

    Args:
        name: What it is, for messages.
        model: The network (U-Net, autoencoder or text encoder); shapes and configuration only.
        sources: For every key of its state dict, where it comes from.
        unused: Keys of the original that are known to have no effect.
        untold: An option that must be given, because neither shapes nor the file tell it; usually empty.
    """

    name: str
    model: Any
    sources: dict[str, Source]
    unused: frozenset[str] = frozenset()
    untold: str = ""


def unet_layout(options: Mapping[str, Any], keys: Collection[str] = ()) -> Layout:
    """Lay out a U-Net.

    Args:
        options: For ``UNetSpatioTemporalModel.from_config``.
        keys: The file's keys. Files whose convolutions over frames were rewritten as two-dimensional ones say
            ``.conv2d.`` in their names and have one axis less.
    """
    with init_empty_weights():
        unet = UNetSpatioTemporalModel.from_config(dict(options))
    sources = original_sources(unet)
    for key in sources:
        rewritten = ".conv2d.".join(key.rsplit(".", 1))
        if rewritten in keys:
            sources[key] = Source(rewritten)
    return Layout(name="U-Net", model=unet, sources=sources)


def vae_layout(options: Mapping[str, Any]) -> Layout:
    """Lay out an autoencoder; ``options`` are those of ``AutoencoderKL``."""
    with init_empty_weights():
        vae = AutoencoderKL.from_config(dict(options))
    return Layout(name="VAE", model=vae, sources=original_sources(vae))


def text_encoder_layout(config: CLIPTextConfig, keys: Collection[str] = ()) -> Layout:
    """Lay out a text tower.

    Args:
        config: Of our encoder, which has one block less than the original's tower.
        keys: The file's keys, with or without the prefix ``model.``.
    """
    with init_empty_weights():
        encoder = CLIPTextModel(config)
    prefix = "model." if any(key.startswith("model.") for key in keys) else ""
    last_block = f"{prefix}transformer.resblocks.{config.num_hidden_layers}."
    unused = {key for key in keys if key.startswith(last_block)}
    unused |= {prefix + key for key in ("text_projection", "logit_scale", "attn_mask")}
    sources = original_sources(encoder, text_prefix=prefix)
    return Layout(name="text encoder", model=encoder, sources=sources, unused=frozenset(unused))


def original_sources(model: nn.Module, text_prefix: str = "model.") -> dict[str, Source]:
    """Return where each tensor of one of our networks lies in the original's state dict."""
    keys = list(model.state_dict())
    if isinstance(model, AutoencoderKL):
        num_levels = len(model.config.block_out_channels)
        return {key: Source(_ldm_vae_key(key, num_levels)) for key in keys}
    if isinstance(model, CLIPTextModel):
        return {key: _open_clip_source(key, text_prefix) for key in keys}
    return {key: Source(key) for key in keys}


def to_ldm(model: nn.Module, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Rename, stack and reshape a network's tensors as the original stores them.

    Args:
        model: One of our networks.
        recipes: Its tensors by our keys, all of them.
    """
    sources = original_sources(model)
    slices: dict[str, list[Recipe]] = {source.key: [] for source in sources.values()}
    for key, source in sorted(sources.items(), key=lambda entry: entry[1].part):
        slices[source.key].append(recipes[key])
    stored = {key: _stack(parts) for key, parts in slices.items()}
    return {
        key: recipe.reshape((*recipe.shape, 1, 1)) if _is_vae_attention_weight(key, recipe) else recipe
        for key, recipe in stored.items()
    }


def _stack(recipes: list[Recipe]) -> Recipe:
    if len(recipes) == 1:
        return recipes[0]
    shape = (sum(recipe.shape[0] for recipe in recipes), *recipes[0].shape[1:])
    return replace(recipes[0], shape=shape, load=lambda: torch.cat([recipe.load() for recipe in recipes]))


def _is_vae_attention_weight(key: str, recipe: Recipe) -> bool:
    """The original's autoencoder attends by 1x1 convolutions, diffusers' by linear layers."""
    return ".mid.attn_1." in key and len(recipe.shape) == 2


def _vae_options(config: Mapping[str, Any]) -> dict[str, Any]:
    layout, embed_dim = config["ddconfig"], config["embed_dim"]
    if embed_dim != layout["z_channels"]:
        raise ValueError(
            f"VAE: embed_dim={embed_dim} differs from z_channels={layout['z_channels']}: not supported"
        )
    if layout.get("attn_resolutions"):
        raise ValueError(
            f"VAE: attn_resolutions={layout['attn_resolutions']}: only attention in the middle ([]) is "
            "supported"
        )
    if not layout.get("double_z", True):
        raise ValueError("VAE: double_z=False: only encoders that give mean and log-variance are supported")
    widths = [layout["ch"] * multiplier for multiplier in layout["ch_mult"]]
    return {
        "in_channels": layout["in_channels"],
        "out_channels": layout["out_ch"],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": layout["num_res_blocks"],
        "latent_channels": layout["z_channels"],
        "sample_size": layout["resolution"],
        "scaling_factor": SCALING_FACTOR,
        "force_upcast": False,
    }


_VAE_RENAMES = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
    ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
    ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ("down_blocks.", "down."),
    (".resnets.", ".block."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    ("conv_shortcut.", "nin_shortcut."),
    ("conv_norm_out.", "norm_out."),
)


def _ldm_vae_key(key: str, num_levels: int) -> str:
    """Return the original's name of a diffusers VAE key. The original counts decoder levels from the
    output."""
    key = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{num_levels - 1 - int(match[1])}.", key)
    for ours, theirs in _VAE_RENAMES:
        key = key.replace(ours, theirs)
    return key


def _text_config(config: Mapping[str, Any]) -> CLIPTextConfig:
    text = config["text_cfg"]
    return CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=int(text["width"] * text.get("mlp_ratio", 4.0)),
        projection_dim=config["embed_dim"],
        num_hidden_layers=text["layers"] - 1,
        num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"],
        hidden_act="quick_gelu" if config.get("quick_gelu", False) else "gelu",
        layer_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=text["vocab_size"] - 2,
        eos_token_id=text["vocab_size"] - 1,
    )


_TEXT_RENAMES = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def _open_clip_source(key: str, prefix: str) -> Source:
    """Return where a CLIPTextModel key comes from; OpenCLIP stacks q, k and v in one tensor."""
    key = key.removeprefix("text_model.")  # some versions of transformers nest the tower
    for ours, theirs in _TEXT_RENAMES:
        key = key.replace(ours, theirs)
    match = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", key)
    if match is None:
        return Source(prefix + key)
    stacked = f"{prefix}{match[1]}.attn.in_proj_{match[3]}"
    return Source(stacked, part="qkv".index(match[2]), parts=_NUM_ATTENTION_PARTS)
