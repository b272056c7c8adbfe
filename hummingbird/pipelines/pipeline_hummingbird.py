"""Text to video: guidance-embedded few-step models and classic teachers through one call."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, LCMScheduler
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from hummingbird import nano
from hummingbird.export import is_exported
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pipelines.decoding import FrameDecodeError, decode_in_chunks, default_chunk_size
from hummingbird.pipelines.output import HummingbirdPipelineOutput
from hummingbird.pipelines.prompts import clean_prompt
from hummingbird.pipelines.sharing import SharablePipeline
from hummingbird.schedulers import few_step_timesteps, guidance_scale_embedding

logger = logging.get_logger(__name__)

FALLBACK_CALL: dict[str, int | float] = {
    "num_frames": 16,
    "height": 320,
    "width": 512,
    "fps": 8,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "eta": 0.0,
}
"""Call arguments of a model that has no defaults of its own."""

_ALIGNMENT_BYTES = 64  # what torch's own allocator gives
EXPORTED_COMPONENTS = ("text_encoder", "unet", "vae")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Generators = torch.Generator | list[torch.Generator]
StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], Mapping[str, Any]]


class HummingbirdPipeline(SharablePipeline, StableDiffusionLoraLoaderMixin):  # type: ignore[misc]
    """Makes videos from text.

    LoRA adapters of the U-Net and the text encoder are loaded, mixed, fused, swapped and saved as in any
    pipeline of diffusers: ``load_lora_weights``, ``set_adapters``, ``fuse_lora``, ``save_lora_weights``, ...

    Args:
        vae: Image autoencoder; frames pass through it one by one. An ``AutoencoderTiny`` (TAESD's class)
            decodes faster and a little less sharply.
        text_encoder: Its ``last_hidden_state`` conditions the U-Net.
        tokenizer: Any tokenizer of transformers whose ``model_max_length`` the text encoder takes.
        unet: Video denoiser. With ``time_cond_proj_dim`` it is a few-step model and takes the guidance scale
            as an input; without, every step runs it with and without the prompt (classifier-free guidance).
        scheduler: ``LCMScheduler`` for few-step models; any scheduler of diffusers for the others.
        default_call: Call arguments that this model works best with (keys of ``FALLBACK_CALL``); saved with
            it.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = []
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNetSpatioTemporalModel,
        scheduler: KarrasDiffusionSchedulers,
        default_call: dict | None = None,
    ) -> None:
        super().__init__()
        unknown = sorted(set(default_call or {}) - set(FALLBACK_CALL))
        if unknown:
            raise ValueError(
                f"default_call has {', '.join(unknown)}: expected only {', '.join(FALLBACK_CALL)}"
            )
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(default_call=dict(default_call or {}))
        widths = vae.config.block_out_channels if vae is not None else (0, 0, 0, 0)
        self.vae_scale_factor = 2 ** (len(widths) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale = float(FALLBACK_CALL["guidance_scale"])
        self._num_timesteps = 0
        self._current_timestep: torch.Tensor | None = None
        self._interrupt = False

    # ------------------------------------------------------------------------------------------ load and save

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> HummingbirdPipeline:
        """Load an embedded model ("nano", "nano-teacher"; no network), a folder, or a hub id.

        Args:
            pretrained_model_name_or_path: An embedded name wins over a folder of the same name; write
                ``./nano`` for the folder. A folder that ``hummingbird export`` wrote runs by its graphs;
                those of AOTInductor are native code: load only what you trust.
            **kwargs: As in diffusers. ``dtype`` is float32 where it is not given, whatever type the weights
                are stored in; a dict gives each component its own: ``{"unet": ..., "default": ...}``. Where
                there is no safetensors file, a ``.bin`` is read by torch's unpickler for tensors alone, which
                runs no code; ``use_safetensors=True`` refuses it.

        Raises:
            FileNotFoundError: Where an embedded model is not part of this installation.
            ExportError: Where an exported folder was changed, or is for another machine.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs.pop("torch_dtype", None)
            kwargs["dtype"] = torch.float32
        source: str | os.PathLike = pretrained_model_name_or_path
        folder = nano.resolve(str(source))
        if folder is not None:
            if not (folder / "model_index.json").is_file():
                raise FileNotFoundError(
                    f"the embedded model {str(source)!r} is not in this installation (no {folder}): "
                    "reinstall hummingbird, or train it with `make nano`"
                )
            source = str(folder)
        exported: dict[str, Any] = {}
        if is_exported(Path(source)):
            given = tuple(name for name in EXPORTED_COMPONENTS if name in kwargs)
            exported = _exported_parts(Path(source), given)
        for name in _left_out(Path(source)):
            kwargs.setdefault(name, None)
        pipe = super().from_pretrained(source, **kwargs)
        if exported:  # handed to diffusers, they would be warned of as unexpected types
            pipe = cls(**{**pipe.components, **exported}, default_call=pipe.config.default_call)
        pipe.origin = Path(source) if Path(source).is_dir() else None
        _align_weights(pipe)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        base: str | os.PathLike | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        time_cond_proj: Literal["random", "zeros"] = "random",
        seed: int = 0,
    ) -> HummingbirdPipeline:
        """Load a VideoCrafter2, T2V-Turbo or Hummingbird file; nothing in the file is ever run.

        Args:
            pretrained_model_link_or_path: A local ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors`` file.
            base: File or folder that has what the file lacks: the network under T2V-Turbo's ``unet_lora.pt``,
                VAE and text encoder beside a bare U-Net.
            torch_dtype: As ``dtype``.
            dtype: Type of the weights; float32 where it is not given, whatever the file stores.
            config: Options that the tensors' shapes do not tell, by component, such as
                ``{"text_encoder": {"num_attention_heads": 4}}``.
            time_cond_proj: What stands in for the guidance projection under ``unet_lora.pt``, which does not
                hold it.
            seed: Of that stand-in, where it is random.

        Raises:
            FileNotFoundError: Where there is no such file.
            ValueError: Where the file cannot be read safely, is of no known family, lacks keys or has other
                ones, or needs a base.
        """
        from hummingbird.checkpoints import load_checkpoint

        arguments, notes = load_checkpoint(
            pretrained_model_link_or_path,
            base=base,
            config=config,
            dtype=dtype or torch_dtype or torch.float32,
            time_cond_proj=time_cond_proj,
            seed=seed,
        )
        for note in notes:
            logger.warning(f"{pretrained_model_link_or_path}: {note}")
        return cls(**arguments)

    def register_modules(self, **kwargs: Any) -> None:
        """Register components; our own classes are saved under ``hummingbird``, wherever they live inside
        it."""
        super().register_modules(**kwargs)
        own = {}
        for name in kwargs:
            library, class_name = self.config[name]
            if library is not None and library.startswith("hummingbird."):
                own[name] = ("hummingbird", class_name)
        if own:
            self.register_to_config(**own)

    # --------------------------------------------------------------------------------------------- properties

    @property
    def default_call(self) -> dict[str, int | float]:
        """What a call uses for arguments that are left out: the model's own values over ``FALLBACK_CALL``."""
        return {**FALLBACK_CALL, **self.config.default_call}

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the running call; a callback may set ``_guidance_scale`` between steps."""
        return self._guidance_scale

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether the U-Net takes the guidance scale as an input, so that no unconditional pass is run."""
        return getattr(self.unet.config, "time_cond_proj_dim", None) is not None

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether every step runs the U-Net with and without the prompt."""
        return not self.has_guidance_embedding and self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of the running or last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Timestep of the running step; None outside a call."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are skipped; a callback may set ``_interrupt``."""
        return self._interrupt

    @property
    def _size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config.channel_mult) - 1)

    # ------------------------------------------------------------------------------------------------- checks

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        num_frames: int,
        height: int,
        width: int,
        fps: float,
        num_inference_steps: int,
        guidance_scale: float,
        num_videos_per_prompt: int,
        output_type: str,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        decode_chunk_size: int | None = None,
    ) -> None:
        """Refuse what cannot work, before anything is computed.

        Raises:
            ValueError: Naming the argument, what was given, what is expected and what to do.
        """
        _check_whole_numbers(
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            num_videos_per_prompt=num_videos_per_prompt,
            decode_chunk_size=1 if decode_chunk_size is None else decode_chunk_size,
        )
        multiple = self._size_multiple
        if height % multiple or width % multiple:
            near = [max(multiple, round(value / multiple) * multiple) for value in (height, width)]
            raise ValueError(
                f"height={height}, width={width}: expected multiples of {multiple} for this model; the "
                f"nearest are height={near[0]}, width={near[1]}"
            )
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
            raise ValueError(f"fps={fps!r}: expected a number of frames per second above 0")
        if not abs(guidance_scale) < float("inf"):
            raise ValueError(f"guidance_scale={guidance_scale}: expected a finite number")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: expected one of {', '.join(OUTPUT_TYPES)}")
        unknown = [
            name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs
        ]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}: expected names among "
                f"{', '.join(self._callback_tensor_inputs)}"
            )
        self._check_texts(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)

    def _check_texts(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> None:
        if (prompt is None) == (prompt_embeds is None):
            what = "neither" if prompt is None else "both"
            raise ValueError(f"{what} of prompt and prompt_embeds were given: give exactly one of them")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("negative_prompt and negative_prompt_embeds were both given: give one of them")
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            if text is not None and not _is_text(text):
                raise ValueError(
                    f"{name} is {type(text).__name__}: expected a string or a non-empty list of strings"
                )
        if self.has_guidance_embedding and negative_prompt_embeds is not None:
            logger.warning(  # encode_prompt makes them without knowing the U-Net
                "negative_prompt_embeds are not used: this few-step model has its guidance built in and "
                "never runs without the prompt"
            )
        if self.has_guidance_embedding and negative_prompt is not None:
            raise ValueError(
                "a negative prompt was given, but this few-step model has its guidance built in and never "
                "runs without the prompt: leave the negative prompt out, or use a model without guidance "
                "embedding"
            )
        if isinstance(negative_prompt, list) and len(negative_prompt) != _num_prompts(prompt, prompt_embeds):
            raise ValueError(
                f"negative_prompt has {len(negative_prompt)} entries for "
                f"{_num_prompts(prompt, prompt_embeds)} prompts: give one string, or one per prompt"
            )
        for name, embeds in (
            ("prompt_embeds", prompt_embeds),
            ("negative_prompt_embeds", negative_prompt_embeds),
        ):
            width = self.unet.config.cross_attention_dim
            if embeds is not None and (embeds.ndim != 3 or embeds.shape[-1] != width):
                raise ValueError(
                    f"{name} has shape {tuple(embeds.shape)}: expected (prompts, tokens, {width})"
                )
        if (
            prompt_embeds is not None
            and negative_prompt_embeds is not None
            and prompt_embeds.shape != negative_prompt_embeds.shape
        ):
            raise ValueError(
                f"negative_prompt_embeds has shape {tuple(negative_prompt_embeds.shape)}: expected that of "
                f"prompt_embeds, {tuple(prompt_embeds.shape)}"
            )

    # --------------------------------------------------------------------------------------------------- text

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        num_videos_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn texts into what the U-Net attends to: every token counts, padding too.

        Args:
            prompt: Text or texts; None where ``prompt_embeds`` is given.
            num_videos_per_prompt: How often each is repeated, side by side.
            do_classifier_free_guidance: Whether the negative embeddings are needed.
            negative_prompt: What to steer away from; the empty text where left out.
            prompt_embeds: Embeddings (prompts, tokens, width) instead of ``prompt``.
            negative_prompt_embeds: Embeddings instead of ``negative_prompt``.
            device: Where the result goes; the pipeline's device where left out.
            dtype: Type of the result; the text encoder's (or U-Net's) where left out.
            lora_scale: Weight of the text encoder's LoRA layers in this call.

        Returns:
            Prompt embeddings and negative ones (None without guidance), each (prompts *
            num_videos_per_prompt, tokens, width).
        """
        device = device or self._execution_device
        dtype = dtype or (self.text_encoder if self.text_encoder is not None else self.unet).dtype
        num_prompts = _num_prompts(prompt, prompt_embeds)
        with _lora_scale(self.text_encoder, lora_scale):
            if prompt_embeds is None:
                prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
                prompt_embeds = self._encode_texts(prompts, device)
            if not do_classifier_free_guidance:
                negative_prompt_embeds = None
            elif negative_prompt_embeds is None:
                texts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
                negative_prompt_embeds = self._encode_texts(texts, device)
                if len(texts) != num_prompts:
                    negative_prompt_embeds = negative_prompt_embeds.expand(num_prompts, -1, -1)
        prompt_embeds = prompt_embeds.to(device, dtype).repeat_interleave(num_videos_per_prompt, dim=0)
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.to(device, dtype)
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_videos_per_prompt, dim=0)
        return prompt_embeds, negative_prompt_embeds

    def _encode_texts(self, texts: list[str], device: torch.device) -> torch.Tensor:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "this pipeline was loaded without its text encoder: give prompt_embeds (and "
                "negative_prompt_embeds where guidance runs), or load it with text_encoder and tokenizer"
            )
        texts = [clean_prompt(text) for text in texts]
        max_length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for text, ids in zip(texts, self.tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(ids) > max_length:
                logger.warning(
                    f"the prompt {text[:40]!r}... has {len(ids)} tokens; only the first {max_length} are used"
                )
        return self.text_encoder(tokens.to(device))[0]

    # ------------------------------------------------------------------------------------- latents and frames

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        device: torch.device,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw (or take over) the initial noise (B, C, F, h, w) in float32: the sampler's arithmetic stays
        there.

        Raises:
            ValueError: Where the number of generators, or the shape of ``latents``, does not fit.
        """
        shape = (
            batch_size,
            self.unet.config.in_channels,
            num_frames,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators for {batch_size} videos: give one, or one per video"
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(
                f"latents has shape {tuple(latents.shape)}: expected {shape} for {batch_size} videos of "
                f"{num_frames} frames at {height}x{width}"
            )
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int) -> torch.Tensor:
        """Set the scheduler's timesteps and return them, on the CPU, so that no step waits for the device.

        Few-step models get the grid that they were distilled on; diffusers' own spacing is another one.
        """
        config = self.scheduler.config
        if isinstance(self.scheduler, LCMScheduler):
            timesteps = few_step_timesteps(
                num_inference_steps, config.original_inference_steps, config.num_train_timesteps
            )
            self.scheduler.set_timesteps(timesteps=timesteps, device="cpu")
        else:
            self.scheduler.set_timesteps(num_inference_steps, device="cpu")
        return self.scheduler.timesteps

    def decode_latents(self, latents: torch.Tensor, decode_chunk_size: int | None = None) -> torch.Tensor:
        """Decode latents to pixels, frame by frame, in chunks that halve where memory runs out.

        Args:
            latents: Clean latents (B, C, F, h, w), scaled as the U-Net sees them.
            decode_chunk_size: Frames at once; where left out, as many as usually fit.

        Returns:
            Video (B, 3, F, H, W) in float32, nominally in [-1, 1], not clamped.

        Raises:
            FrameDecodeError: Where one frame alone does not fit; it carries the latents.
        """
        batch_size, _, _, latent_height, latent_width = latents.shape
        scaled = latents / self.vae.config.scaling_factor
        shift = getattr(self.vae.config, "shift_factor", None)
        if shift is not None:
            scaled = scaled + shift
        frames = rearrange(scaled, "b c f h w -> (b f) c h w").to(self._execution_device, self.vae.dtype)
        height, width = latent_height * self.vae_scale_factor, latent_width * self.vae_scale_factor
        chunk_size = decode_chunk_size or default_chunk_size(height, width, frames.device)
        try:
            pixels = decode_in_chunks(self._decode_frames, frames, chunk_size)
        except MemoryError:
            pixels = None
        if pixels is None:
            raise FrameDecodeError(
                f"out of memory while decoding one frame of {height}x{width}; the latents are in this "
                "error's `latents`: free memory or call pipe.vae.enable_tiling(), then "
                "pipe.decode_latents(error.latents)",
                latents,
            )
        return rearrange(pixels, "(b f) c h w -> b c f h w", b=batch_size)

    def set_decoder(self, decoder: AutoencoderTiny) -> None:
        """Decode with a small network from now on; saved pipelines keep it.

        Args:
            decoder: Made for the latents of this model's autoencoder: TAESD for Stable Diffusion's, that of
                ``hummingbird.runtime.load_decoder("nano")`` for nano's.

        Raises:
            ValueError: It makes frames of another size, or takes other latents.
        """
        factor = 2 ** (len(decoder.config.block_out_channels) - 1)
        ours = (self.vae_scale_factor, self.unet.config.in_channels)
        theirs = (factor, decoder.config.latent_channels)
        if ours != theirs:
            raise ValueError(
                f"decoder: got one for latents of {theirs[1]} channels, {theirs[0]} pixels wide, expected "
                f"{ours[1]} channels and {ours[0]} pixels; use the one that was made for this model"
            )
        self.register_modules(vae=decoder.to(self._execution_device))

    def _decode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        if isinstance(self.vae, AutoencoderTiny) and frames.device.type == "cpu":
            frames = frames.contiguous(memory_format=torch.channels_last)  # few channels: a third faster
        return self.vae.decode(frames, return_dict=False)[0]

    # ---------------------------------------------------------------------------------------------- denoising

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        fps: float,
        attention_kwargs: dict[str, float] | None = None,
    ) -> torch.Tensor:
        """Run the U-Net for one step, guided one way or the other; returns float32 (B, C, F, h, w)."""
        sample = self.scheduler.scale_model_input(latents, timestep)
        guided = False
        if self.do_classifier_free_guidance and negative_prompt_embeds is not None:
            guided = True
            sample = torch.cat([sample, sample])
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        dtype, device = self.unet.dtype, sample.device
        timestep_cond = None
        if self.has_guidance_embedding:
            scales = torch.full((len(sample),), self._guidance_scale, dtype=torch.float32, device=device)
            width = self.unet.config.time_cond_proj_dim
            timestep_cond = guidance_scale_embedding(scales, width, dtype=dtype)
        noise_pred = self.unet(
            sample.to(dtype),
            timestep.to(device).expand(len(sample)),
            encoder_hidden_states=prompt_embeds.to(dtype),
            fps=fps,
            timestep_cond=timestep_cond,
            return_dict=False,
            attention_kwargs=attention_kwargs,
        )[0].float()
        if guided:
            unconditional, conditional = noise_pred.chunk(2)
            noise_pred = unconditional + self._guidance_scale * (conditional - unconditional)
        return noise_pred

    def prepare_extra_step_kwargs(self, generator: Generators | None, eta: float) -> dict[str, Any]:
        """Return those of ``generator`` and ``eta`` that the scheduler's step takes."""
        accepted = inspect.signature(self.scheduler.step).parameters
        offered = {"generator": generator, "eta": eta}
        return {name: value for name, value in offered.items() if name in accepted}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        eta: float | None = None,
        decode_chunk_size: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        attention_kwargs: dict[str, float] | None = None,
    ) -> Any:
        """Make videos from text.

        Arguments that are None come from ``default_call``: the model's own defaults, and where it has none 16
        frames of 320x512 at 8 fps, 4 steps, guidance scale 7.5, eta 0.

        Args:
            prompt: Text or texts.
            num_frames: Frames per video.
            height: Pixels; a multiple of the model's total downsampling (64 for the published models).
            width: As ``height``.
            fps: Frames per second that the motion is made for, above 0.
            num_inference_steps: Denoising steps: 1, 2, 4 or 8 for few-step models, 25 to 50 for teachers.
            guidance_scale: How strongly the prompt steers. For models without guidance embedding the usual
                scale ``s`` in ``uncond + s * (cond - uncond)``; at 1 the unconditional pass is skipped. For
                few-step models it is the embedded ``w`` of ``cond + w * (cond - uncond)``, given as is: ``w =
                s - 1``.
            num_videos_per_prompt: Videos per prompt.
            generator: Source of every random draw; a list gives each video its own, which makes a video
                independent of its neighbours in the batch.
            latents: Initial noise (B, C, F, h, w); gives the size where that is left out.
            prompt_embeds: Embeddings (prompts, tokens, width) instead of ``prompt``.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``; see ``HummingbirdPipelineOutput``.
            return_dict: Whether to return an output object rather than a tuple.
            negative_prompt: What to steer away from. Refused by few-step models, which have no place for it.
            negative_prompt_embeds: Embeddings instead of ``negative_prompt``. Not used by few-step models.
            eta: Noise of DDIM samplers, 0 (none) to 1; ignored by the others.
            decode_chunk_size: Frames decoded at once; halves itself where memory runs out.
            callback_on_step_end: Called as ``callback(pipe, step, timestep, tensors)`` after each step; the
                tensors it returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: Which tensors it gets.
            attention_kwargs: ``{"scale": s}`` weighs the LoRA layers of U-Net and text encoder by ``s``.

        Returns:
            ``HummingbirdPipelineOutput``, or without ``return_dict`` a tuple of its frames.

        Raises:
            ValueError: Where an argument cannot work.
            FrameDecodeError: Where not even one frame can be decoded; it carries the finished latents.
        """
        defaults = self.default_call
        if latents is not None and latents.ndim == 5:
            sizes = (latents.shape[2], *(side * self.vae_scale_factor for side in latents.shape[3:]))
            defaults.update(zip(("num_frames", "height", "width"), sizes, strict=True))
        num_frames = int(defaults["num_frames"]) if num_frames is None else num_frames
        height = int(defaults["height"]) if height is None else height
        width = int(defaults["width"]) if width is None else width
        fps = defaults["fps"] if fps is None else fps
        steps = int(defaults["num_inference_steps"]) if num_inference_steps is None else num_inference_steps
        guidance_scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        eta = defaults["eta"] if eta is None else eta
        self.check_inputs(
            prompt,
            num_frames,
            height,
            width,
            fps,
            steps,
            guidance_scale,
            num_videos_per_prompt,
            output_type,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
            decode_chunk_size,
        )
        self._guidance_scale = float(guidance_scale)
        self._interrupt = False
        device = self._execution_device

        timesteps = self.set_timesteps(steps)
        self._num_timesteps = len(timesteps)
        batch_size = _num_prompts(prompt, prompt_embeds) * num_videos_per_prompt
        sample = self.prepare_latents(batch_size, num_frames, height, width, device, generator, latents)
        embeds, negative_embeds = self.encode_prompt(
            prompt,
            num_videos_per_prompt,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            device,
            self.unet.dtype,
            (attention_kwargs or {}).get("scale"),
        )
        step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for index, timestep in enumerate(timesteps):
                if self._interrupt:
                    continue
                self._current_timestep = timestep
                noise_pred = self._predict(sample, timestep, embeds, negative_embeds, fps, attention_kwargs)
                sample = self.scheduler.step(noise_pred, timestep, sample, **step_kwargs, return_dict=False)[
                    0
                ]
                if callback_on_step_end is not None:
                    tensors: dict[str, Any] = {
                        "latents": sample,
                        "prompt_embeds": embeds,
                        "negative_prompt_embeds": negative_embeds,
                    }
                    offered = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, index, timestep, offered) or {})
                    sample, embeds = tensors["latents"], tensors["prompt_embeds"]
                    negative_embeds = tensors["negative_prompt_embeds"]
                progress_bar.update()
        self._current_timestep = None

        frames = self._frames(sample, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return HummingbirdPipelineOutput(frames=frames) if return_dict else (frames,)

    def _frames(
        self, latents: torch.Tensor, output_type: str, decode_chunk_size: int | None
    ) -> list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor:
        if output_type == "latent":
            return latents
        video = self.decode_latents(latents, decode_chunk_size)
        return self.video_processor.postprocess_video(video, output_type=output_type)


def _exported_parts(folder: Path, given: tuple[str, ...]) -> dict[str, Any]:
    """Open the graphs of an exported folder, but for the components that the caller brings."""
    from hummingbird.export.components import load_parts

    return dict(load_parts(folder, skip=given))


def _left_out(folder: Path) -> list[str]:
    """Return the components that a local folder was saved without; diffusers wants to be told."""
    index = folder / "model_index.json"
    entries = json.loads(index.read_text()) if index.is_file() else {}
    return [name for name, entry in entries.items() if entry == [None, None]]


def _align_weights(pipe: DiffusionPipeline) -> None:
    """Copy weights that lie at odd addresses of a mapped file: the CPU's kernels are slower on them and round
    differently, so that a saved and loaded pipeline would not make the very same video.
    """
    for component in pipe.components.values():
        for parameter in component.parameters() if isinstance(component, torch.nn.Module) else ():
            if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT_BYTES:
                parameter.data = parameter.data.clone()


@contextmanager
def _lora_scale(model: torch.nn.Module | None, scale: float | None) -> Iterator[None]:
    """Weigh a model's LoRA layers by ``scale`` for a while."""
    if model is None or scale is None:
        yield
        return
    scale_lora_layers(model, scale)
    try:
        yield
    finally:
        unscale_lora_layers(model, scale)


def _check_whole_numbers(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number, at least 1")


def _is_text(text: object) -> bool:
    if isinstance(text, str):
        return True
    return isinstance(text, list) and bool(text) and all(isinstance(entry, str) for entry in text)


def _num_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    if prompt_embeds is not None:
        return len(prompt_embeds)
    return len(prompt) if isinstance(prompt, list) else 1
