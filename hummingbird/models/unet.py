"""The spatio-temporal U-Net of VideoCrafter2, T2V-Turbo and the Hummingbird students.

Module names are those of the published checkpoints, so that loading one is a plain ``load_state_dict``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from torch import nn

from hummingbird.models.blocks import (
    RESIDUAL_NORM_EPS,
    Downsample,
    GroupNorm,
    PassThrough,
    ResBlock,
    SpatialTransformer,
    TemporalTransformer,
    Upsample,
    zero_init,
)
from hummingbird.models.embeddings import FrameEmbedding, sinusoidal_embedding

DEFAULT_FPS = 16
# more than the distinct block shapes of any preset (torch gives up after 8 by default)
_COMPILED_VARIANTS_PER_BLOCK = 128


@dataclass
class UNetSpatioTemporalOutput(BaseOutput):
    """Output of :class:`UNetSpatioTemporalModel`.

    Args:
        sample: the prediction, ``(B, out_channels, F, h, w)``.
    """

    sample: torch.Tensor


class BlockSequence(nn.Sequential):
    """Layers that run one after the other, each given what it needs."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        num_frames: int,
        temporal: bool,
    ) -> torch.Tensor:
        """Map frames ``(B*F, C, H, W)`` to the frames after the last layer.

        Args:
            hidden_states: frames.
            emb: embedding ``(B, 1 or F, E)``.
            encoder_hidden_states: text ``(B, L, cross_attention_dim)``.
            num_frames: F.
            temporal: False bypasses every temporal layer.
        """
        for layer in self:
            args: tuple[object, ...]
            if isinstance(layer, ResBlock):
                args = (emb, num_frames, temporal)
            elif isinstance(layer, SpatialTransformer):
                args = (encoder_hidden_states,)
            elif isinstance(layer, TemporalTransformer):
                if not temporal:
                    continue
                args = (num_frames,)
            else:
                args = ()
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(layer, hidden_states, *args)
            else:
                hidden_states = layer(hidden_states, *args)
        return hidden_states


class UNetSpatioTemporalModel(ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin):  # type: ignore[misc]
    """Denoises a latent video, given text, timestep, frame rate and (distilled nets) guidance scale.

    Frames pass through 2D residual blocks and transformers; between them, convolutions and transformers
    over frames. There is no temporal position and no mask, so that any number of frames works.

    Args:
        in_channels: channels of the latent video.
        out_channels: channels of the prediction.
        model_channels: width of the first level; the embedding is four times as wide.
        channel_mult: width of each level as a multiple of ``model_channels``; each level but the first
            has half the height and width of the one before.
        num_res_blocks: residual blocks per level on the way down (one more on the way up); one number, or
            one per level.
        attention_resolutions: downsampling factors (1, 2, 4, ...) at which transformers are present.
        num_head_channels: channels per attention head.
        cross_attention_dim: width of a text token.
        transformer_depth: blocks in each transformer.
        has_middle_block: whether there are layers at the lowest resolution between the two ways.
        init_attention: whether a temporal transformer follows the first convolution.
        init_attention_heads: its heads, each of ``num_head_channels``.
        temporal_conv: whether residual blocks end with convolutions over frames.
        temporal_attention: whether each spatial transformer is followed by a temporal one.
        fps_conditioning: whether the frame rate is an input.
        time_cond_proj_dim: width of the guidance embedding, None for a net that has none.
        norm_num_groups: groups of every group norm.
        dropout: in residual blocks and transformers while training, in [0, 1).
        temporal_conv_dropout: in the convolutions over frames while training, in [0, 1); the published
            nets were trained with 0.1.
        frame_position_embedding: tell residual blocks the relative position of each frame.
        pooled_text_embedding: tell residual blocks the mean text token.
        pruned_layers: names of layers that are left out, such as ``"input_blocks.1.2"`` (a transformer, or
            a residual block that keeps its width) or ``"input_blocks.1.0.temopral_conv"``.

    Attributes:
        temporal_layers_enabled: set to False to bypass every temporal layer, which makes each frame an
            image of its own: spatial layers are trained on single frames first, and motion is added
            afterwards (Guo et al., AnimateDiff, arXiv 2307.04725). Not a part of the configuration.
        channels_last: memory layout of the frames inside: True for channels-last, False for contiguous,
            None for the faster one on a CPU (channels-last) and contiguous elsewhere. Changes no result.

    Raises:
        ValueError: the configuration cannot make a network; the message says why.
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = True
    _no_split_modules: ClassVar[list[str]] = ["ResBlock", "SpatialTransformer", "TemporalTransformer"]
    _repeated_blocks: ClassVar[list[str]] = ["ResBlock", "SpatialTransformer", "TemporalTransformer"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "norm",
        r"in_layers\.0",
        r"out_layers\.0",
        r"conv[1-4]\.0",
        r"^out\.",
        "time_embed",
        "fps_embedding",
        "time_cond_proj",
        "frame_embedding",
    ]

    temporal_layers_enabled: bool = True
    channels_last: bool | None = None

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int | Sequence[int] = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_head_channels: int = 64,
        cross_attention_dim: int = 1024,
        transformer_depth: int = 1,
        has_middle_block: bool = True,
        init_attention: bool = True,
        init_attention_heads: int = 8,
        temporal_conv: bool = True,
        temporal_attention: bool = True,
        fps_conditioning: bool = True,
        time_cond_proj_dim: int | None = None,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        temporal_conv_dropout: float = 0.1,
        frame_position_embedding: bool = False,
        pooled_text_embedding: bool = False,
        pruned_layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        blocks_per_level = (
            [num_res_blocks] * levels if isinstance(num_res_blocks, int) else list(num_res_blocks)
        )
        widths = [model_channels * mult for mult in channel_mult]
        attention = [2**level in attention_resolutions for level in range(levels)]
        _check_config(widths, blocks_per_level, attention, num_head_channels, norm_num_groups)
        if not set(attention_resolutions) <= {2**level for level in range(levels)}:
            raise ValueError(
                f"attention_resolutions: got {list(attention_resolutions)}, expected a selection of the "
                f"downsampling factors {[2**level for level in range(levels)]}"
            )
        embedding_dim = 4 * model_channels
        to_prune = set(pruned_layers)

        def mlp() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(model_channels, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
            )

        def res_block(name: str, in_width: int, out_width: int) -> nn.Module:
            if name in to_prune:
                to_prune.discard(name)
                if in_width != out_width:
                    raise ValueError(
                        f"pruned_layers: {name} maps {in_width} to {out_width} channels and cannot be "
                        "left out"
                    )
                return PassThrough()
            has_conv = temporal_conv and f"{name}.temopral_conv" not in to_prune
            to_prune.discard(f"{name}.temopral_conv")
            return ResBlock(
                in_width, out_width, embedding_dim, norm_num_groups, dropout, has_conv, temporal_conv_dropout
            )

        def transformers(name: str, position: int, width: int) -> list[nn.Module]:
            layers: list[nn.Module] = [
                SpatialTransformer(
                    width, num_head_channels, cross_attention_dim, transformer_depth, norm_num_groups, dropout
                )
            ]
            if temporal_attention:
                heads = width // num_head_channels
                layers.append(
                    TemporalTransformer(
                        width, heads, num_head_channels, transformer_depth, norm_num_groups, dropout
                    )
                )
            for index in range(len(layers)):
                layer_name = f"{name}.{position + index}"
                if layer_name in to_prune:
                    to_prune.discard(layer_name)
                    layers[index] = PassThrough()
            return layers

        self.time_embed = mlp()
        if fps_conditioning:
            self.fps_embedding = mlp()
        if time_cond_proj_dim is not None:
            self.time_cond_proj = nn.Linear(time_cond_proj_dim, model_channels, bias=False)

        self.input_blocks = nn.ModuleList(
            [BlockSequence(nn.Conv2d(in_channels, model_channels, 3, padding=1))]
        )
        width = model_channels
        skip_widths = [width]
        for level in range(levels):
            for _ in range(blocks_per_level[level]):
                name = f"input_blocks.{len(self.input_blocks)}"
                layers = [res_block(f"{name}.0", width, widths[level])]
                width = widths[level]
                if attention[level]:
                    layers += transformers(name, 1, width)
                self.input_blocks.append(BlockSequence(*layers))
                skip_widths.append(width)
            if level < levels - 1:
                self.input_blocks.append(BlockSequence(Downsample(width)))
                skip_widths.append(width)

        if init_attention:
            self.init_attn = BlockSequence(
                TemporalTransformer(
                    model_channels,
                    init_attention_heads,
                    num_head_channels,
                    transformer_depth,
                    norm_num_groups,
                    dropout,
                    pointwise_conv=True,
                )
            )

        if has_middle_block:
            first = res_block("middle_block.0", width, width)
            middle = transformers("middle_block", 1, width)
            last = res_block(f"middle_block.{1 + len(middle)}", width, width)
            self.middle_block = BlockSequence(first, *middle, last)

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            for index in range(blocks_per_level[level] + 1):
                name = f"output_blocks.{len(self.output_blocks)}"
                layers = [res_block(f"{name}.0", width + skip_widths.pop(), widths[level])]
                width = widths[level]
                if attention[level]:
                    layers += transformers(name, 1, width)
                if level > 0 and index == blocks_per_level[level]:
                    layers.append(Upsample(width))
                self.output_blocks.append(BlockSequence(*layers))

        self.out = nn.Sequential(
            GroupNorm(norm_num_groups, width, eps=RESIDUAL_NORM_EPS),
            nn.SiLU(),
            zero_init(nn.Conv2d(width, out_channels, 3, padding=1)),
        )
        if frame_position_embedding or pooled_text_embedding:
            self.frame_embedding = FrameEmbedding(
                model_channels if frame_position_embedding else None,
                cross_attention_dim if pooled_text_embedding else None,
                embedding_dim,
            )
        if to_prune:
            raise ValueError(f"pruned_layers: no layer that can be left out is called {sorted(to_prune)}")

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        fps: torch.Tensor | float = DEFAULT_FPS,
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, float] | None = None,
    ) -> UNetSpatioTemporalOutput | tuple[torch.Tensor]:
        """Predict the noise (or what the net was trained to predict) in a latent video.

        Args:
            sample: noisy latents ``(B, in_channels, F, h, w)``; h and w divisible by 2 for every level
                but the first.
            timestep: in [0, 1000); one number, or one per video ``(B,)``.
            encoder_hidden_states: text tokens ``(B, L, cross_attention_dim)``; all are attended to.
            fps: frames per second; one number, or one per video ``(B,)``. 16 if left out, as in the
                published code. Ignored by a net without ``fps_conditioning``.
            timestep_cond: guidance embedding ``(B, time_cond_proj_dim)``, or None for no guidance term.
            return_dict: return an output object instead of a tuple.
            attention_kwargs: ``{"scale": s}`` weighs the LoRA layers by ``s`` in this call; by keyword only.

        Returns:
            The prediction ``(B, out_channels, F, h, w)`` as ``.sample``, or as a tuple of one.

        Raises:
            ValueError: a shape cannot work; the message says which and why.
        """
        if attention_kwargs:
            raise ValueError(
                f"attention_kwargs: got {', '.join(attention_kwargs)}, expected only 'scale', the weight of "
                "LoRA layers"
            )
        self._check_inputs(sample, encoder_hidden_states, timestep_cond)
        batch_size, _, num_frames, _, _ = sample.shape
        temporal = self.temporal_layers_enabled
        emb = self._embed(sample, timestep, encoder_hidden_states, fps, timestep_cond)

        hidden_states = sample.transpose(1, 2).flatten(0, 1)  # (B*F, C, h, w)
        if sample.device.type == "cpu" if self.channels_last is None else self.channels_last:
            # views instead of copies between frames, videos and tokens
            hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)
        context = encoder_hidden_states.to(sample.dtype)
        args = (emb, context, num_frames, temporal)

        skips = []
        for index, block in enumerate(self.input_blocks):
            hidden_states = block(hidden_states, *args)
            if index == 0 and self.config.init_attention:
                hidden_states = self.init_attn(hidden_states, *args)
            skips.append(hidden_states)
        if self.config.has_middle_block:
            hidden_states = self.middle_block(hidden_states, *args)
        for block in self.output_blocks:
            hidden_states = block(torch.cat([hidden_states, skips.pop()], dim=1), *args)
        hidden_states = self.out(hidden_states)

        output = hidden_states.unflatten(0, (batch_size, num_frames)).transpose(1, 2).contiguous()
        return UNetSpatioTemporalOutput(sample=output) if return_dict else (output,)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile residual blocks and transformers, one variant per shape, shared by blocks of equal shape.

        Shapes are compiled as constants unless ``dynamic`` says otherwise: every level has its own width
        and size anyway, and constants make faster kernels. Arguments are those of ``torch.compile``.
        """
        kwargs.setdefault("dynamic", False)
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("recompile_limit", _COMPILED_VARIANTS_PER_BLOCK)
        else:  # an older torch has only the process-wide limit
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, _COMPILED_VARIANTS_PER_BLOCK)
        super().compile_repeated_blocks(*args, **kwargs)

    def _embed(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        fps: torch.Tensor | float,
        timestep_cond: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the embedding ``(B, 1, E)``, or ``(B, F, E)`` where frames differ, in the sample's dtype."""
        batch_size, _, num_frames, _, _ = sample.shape
        dtype, device = sample.dtype, sample.device
        width = self.config.model_channels
        timesteps = _per_video(timestep, "timestep", batch_size, device)
        time_embedding = sinusoidal_embedding(timesteps, width).to(dtype)
        if timestep_cond is not None:
            time_embedding = time_embedding + self.time_cond_proj(timestep_cond.to(dtype))
        emb = self.time_embed(time_embedding)
        if self.config.fps_conditioning:
            rates = _per_video(fps, "fps", batch_size, device)
            emb = emb + self.fps_embedding(sinusoidal_embedding(rates, width).to(dtype))
        emb = emb[:, None]  # (B, 1, E)
        if self.config.frame_position_embedding or self.config.pooled_text_embedding:
            emb = emb + self.frame_embedding(encoder_hidden_states.to(dtype), num_frames)
        return emb

    def _check_inputs(
        self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep_cond: torch.Tensor | None
    ) -> None:
        config = self.config
        if sample.ndim != 5 or sample.shape[1] != config.in_channels:
            raise ValueError(
                f"sample: got shape {tuple(sample.shape)}, expected (batch, "
                f"{config.in_channels}, frames, height, width)"
            )
        batch_size, _, num_frames, height, width = sample.shape
        factor = 2 ** (len(config.channel_mult) - 1)
        if num_frames < 1:
            raise ValueError("sample: got 0 frames, expected at least 1")
        if height < factor or width < factor or height % factor or width % factor:
            raise ValueError(
                f"sample: got height {height} and width {width}, expected multiples of {factor}, because "
                f"the network halves them {len(config.channel_mult) - 1} times; pad or resize the latents"
            )
        narrowest = config.model_channels * min(
            config.channel_mult[-2:]
        )  # of what the lowest level normalises
        lowest = (height // factor) * (width // factor) * narrowest
        if lowest <= config.norm_num_groups:
            raise ValueError(
                f"sample: got height {height} and width {width}, which leaves one value per group to "
                "normalise at the lowest level; use larger latents"
            )
        if (
            encoder_hidden_states.ndim != 3
            or encoder_hidden_states.shape[0] != batch_size
            or encoder_hidden_states.shape[1] < 1
            or encoder_hidden_states.shape[2] != config.cross_attention_dim
        ):
            raise ValueError(
                f"encoder_hidden_states: got shape {tuple(encoder_hidden_states.shape)}, expected "
                f"({batch_size}, tokens, {config.cross_attention_dim}): one text per video"
            )
        if timestep_cond is None:
            return
        if config.time_cond_proj_dim is None:
            raise ValueError(
                "timestep_cond: given, but this network has no guidance embedding (time_cond_proj_dim is "
                "None); leave it out and use classifier-free guidance"
            )
        if timestep_cond.ndim != 2 or timestep_cond.shape not in (
            (batch_size, config.time_cond_proj_dim),
            (1, config.time_cond_proj_dim),
        ):
            raise ValueError(
                f"timestep_cond: got shape {tuple(timestep_cond.shape)}, expected ({batch_size}, "
                f"{config.time_cond_proj_dim})"
            )


def _per_video(value: torch.Tensor | float, name: str, batch_size: int, device: torch.device) -> torch.Tensor:
    """Return one number per video ``(B,)``, without a wait for the device."""
    if not isinstance(value, torch.Tensor):
        return torch.full((batch_size,), float(value), dtype=torch.float32, device=device)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, batch_size)):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected one number or ({batch_size},)")
    return value.to(device).expand(batch_size)


def _check_config(
    widths: list[int],
    blocks_per_level: list[int],
    attention: list[bool],
    num_head_channels: int,
    norm_num_groups: int,
) -> None:
    if len(blocks_per_level) != len(widths) or min(blocks_per_level) < 1:
        raise ValueError(
            f"num_res_blocks: got {blocks_per_level}, expected at least 1 for each of {len(widths)} levels"
        )
    for width, has_attention in zip(widths, attention, strict=True):
        if width % norm_num_groups:
            raise ValueError(
                f"norm_num_groups: got {norm_num_groups}, which does not divide a width of {width}"
            )
        if has_attention and width % num_head_channels:
            raise ValueError(
                f"num_head_channels: got {num_head_channels}, which does not divide a width of {width}"
            )
