"""The task of stage 2: a student learns to sample in a few steps, and to please rewards while it does."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import LCMScheduler, SchedulerMixin
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor

from hummingbird.checkpoints.lora import export_lora, lora_modules
from hummingbird.config import ConfigError
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.nano import world
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.rewards import Reward, RewardTerm, reward_loss
from train.consistency import (
    ConsistencyConfig,
    ConsistencyDraw,
    ConsistencyFunction,
    check_grid,
    consistency_step,
    draw_consistency,
)
from train.guards import HELD_OUT, REWARD
from train.loop import Batch
from train.placement import CONSISTENCY, FrozenDtype, Layout, factors, place_frozen
from train.tasks import DenoisingTask

LORA_FILE = "unet_lora.pt"
"""Beside the merged model: the updates alone, as T2V-Turbo publishes its own."""
ORACLE = "oracle"
"""Held-out figure of the moving-shapes world: the mean over attributes of the share of clips that show it."""
_CACHED_PROMPTS = 20_000
_NUM_RATED_FRAMES = 4


def few_step_student(source: UNetSpatioTemporalModel, time_cond_proj_dim: int) -> UNetSpatioTemporalModel:
    """The same network with a guidance embedding, in float32; the source is not touched.

    Where the source has none, its projection starts at zero: the student begins as what the source was,
    whatever the guidance scale.

    Args:
        source: A network of stage 1, a teacher, or a few-step student that goes on learning.
        time_cond_proj_dim: Width of a guidance embedding that is added.
    """
    if source.config.time_cond_proj_dim is not None:
        time_cond_proj_dim = source.config.time_cond_proj_dim
    # diffusers notes in the configuration which options were left out, and would leave them out again
    options = {name: value for name, value in source.config.items() if not name.startswith("_")}
    options["time_cond_proj_dim"] = time_cond_proj_dim
    student = UNetSpatioTemporalModel.from_config(options)
    weights = {name: tensor.float() for name, tensor in source.state_dict().items()}
    if "time_cond_proj.weight" not in weights:
        weights["time_cond_proj.weight"] = torch.zeros_like(student.time_cond_proj.weight)
    student.load_state_dict(weights)
    return student.requires_grad_(True)


def add_lora(student: UNetSpatioTemporalModel, rank: int, dropout: float, seed: int) -> None:
    """Freezes the network and adds low-rank updates, of scale 1, to every layer of T2V-Turbo's list."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    targets = list(lora_modules(student))
    student.requires_grad_(False)
    student.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=targets, bias="none")
    )


def few_step_scheduler(teacher: SchedulerMixin, config: ConsistencyConfig) -> LCMScheduler:
    """Consistency sampling on the teacher's noise schedule and in its prediction type."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    settings = {name: teacher.config[name] for name in names}
    return LCMScheduler(
        **settings,
        prediction_type=teacher.config.prediction_type,
        rescale_betas_zero_snr=teacher.config.get("rescale_betas_zero_snr", False),
        original_inference_steps=config.original_steps,
        timestep_scaling=config.timestep_scaling,
        clip_sample=False,
    )


class ConsistencyRewardTask(DenoisingTask):
    """Consistency distillation of a guided teacher, with rewards of what the student predicts.

    Args:
        network: The student; it has a guidance embedding.
        teacher: A whole pipeline; its U-Net is frozen, its other parts are the student's, too.
        config: Of the distillation.
        terms: Rewards and their weights.
        held_out: Rewards that only look at samples.
        use_oracle: Whether the oracle counts among the held-out ones; for prompts of the world.
        layout: Which slot computes which losses; see ``train.placement``.
        teacher_dtype: See ``place_frozen``.
        offload_teacher: See ``place_frozen``.
        decode_chunk_size: Frames decoded at once for a reward.
        reward_steps: Empty: rewards look at the prediction that the distillation makes anyway. Else at videos
            that the student makes in so many steps, with gradients through all of them; of several numbers
            one is drawn each time.
        reward_batch_size: Videos made for them, at most those of a batch; 0 makes as many.
        num_reference_steps: Of the teacher's samples, which the guard compares with.
        **settings: Those of ``DenoisingTask``.

    Raises:
        ConfigError: Teacher and student do not fit.

    Reference:
        Luo et al., arXiv 2310.04378, algorithm 1; Li et al., T2V-Turbo, arXiv 2405.18750, equation 10 (the
        weighted sum of distillation and rewards); Clark et al. (DRaFT), arXiv 2309.17400 (gradients through
        the sampling); Isobe et al. (AMD Hummingbird), arXiv 2503.18559, section 3.2.
    """

    def __init__(
        self,
        network: UNetSpatioTemporalModel,
        teacher: HummingbirdPipeline,
        config: ConsistencyConfig,
        *,
        terms: Sequence[RewardTerm] = (),
        held_out: Sequence[Reward] = (),
        use_oracle: bool = False,
        layout: Layout = (),
        teacher_dtype: FrozenDtype = "auto",
        offload_teacher: bool = False,
        decode_chunk_size: int = 1,
        reward_steps: Sequence[int] = (),
        reward_batch_size: int = 0,
        num_reference_steps: int = 25,
        **settings: Any,
    ) -> None:
        scheduler = few_step_scheduler(teacher.scheduler, config)
        super().__init__(
            network,
            teacher.text_encoder,
            teacher.tokenizer,
            teacher.vae,
            scheduler,
            gate_batch=None,
            **settings,
        )
        if network.config.time_cond_proj_dim is None:
            raise ConfigError("student: expected a network with a guidance embedding; see few_step_student")
        if teacher.unet.config.time_cond_proj_dim is not None:
            raise ConfigError(
                "teacher: got a few-step model; expected one guided by two passes, such as nano-teacher"
            )
        if not torch.allclose(scheduler.alphas_cumprod, teacher.scheduler.alphas_cumprod):
            raise ConfigError("teacher: its noise schedule is none that few-step sampling can follow")
        check_grid(config.original_steps, len(scheduler.alphas_cumprod))
        self.config, self.terms, self.held_out = config, tuple(terms), tuple(held_out)
        self.use_oracle, self.layout = use_oracle, layout
        self.teacher_pipeline = teacher
        self.teacher: UNetSpatioTemporalModel = teacher.unet.eval().requires_grad_(False)
        self.teacher_dtype, self.offload_teacher = teacher_dtype, offload_teacher
        self._teacher_is_placed = False
        self.reward_steps, self.reward_batch_size = tuple(reward_steps), reward_batch_size
        self.decode_chunk_size, self.num_reference_steps = decode_chunk_size, num_reference_steps
        self.function = ConsistencyFunction(
            config=config,
            alphas_cumprod=scheduler.alphas_cumprod,
            prediction_type=scheduler.config.prediction_type,
            time_cond_proj_dim=network.config.time_cond_proj_dim,
        )
        self._average: EMAModel | None = None
        self._target: UNetSpatioTemporalModel | None = None
        self._target_step = -1
        self._uncond_prompt_embeds: Tensor | None = None
        self._texts: OrderedDict[tuple[int, str], Tensor] = OrderedDict()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the losses, as a layout names them."""
        return CONSISTENCY, *(term.reward.name for term in self.terms)

    # --- one batch -----------------------------------------------------------------------------------------

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """``loss`` is the weighted sum of what this slot computes; the parts are logged without factors.

        ``consistency_loss`` is the distillation's, ``reward/NAME`` a mean score (higher is better),
        ``reward_weight/NAME`` its weight now, ``reward_grad_norm/NAME`` the norm of the weighted gradient on
        the predicted latents.
        """
        device = next(self.network.parameters()).device
        own = factors(self.layout, self.parts, batch["slot"], batch["num_slots"])
        latents = batch["latents"].to(device)
        prompt_embeds = self.batch_embeds(batch)
        draw = draw_consistency(latents, self.config, generator)
        figures: dict[str, Tensor] = {}
        if CONSISTENCY in own:
            step = consistency_step(
                self.network,
                self._place_teacher(device),
                latents,
                draw,
                prompt_embeds,
                self._unconditional().expand_as(prompt_embeds),
                fps=batch["fps"],
                function=self.function,
                teacher_prediction_type=self.teacher_pipeline.scheduler.config.prediction_type,
                target_network=self._target_network(batch["global_step"]),
                global_step=batch["global_step"],
            )
            prediction, loss = step.prediction, own[CONSISTENCY] * step.loss
            figures["consistency_loss"] = step.loss
        else:
            prediction, loss = None, torch.zeros((), device=device)
        terms = [term for term in self.terms if term.reward.name in own]
        is_asked = any(term.weight.at(batch["global_step"]) > 0 for term in terms)
        # Videos that no reward looks at yet are not made, unless this slot has no other loss.
        if terms and (is_asked or not self.reward_steps or prediction is None):
            seen, captions = self._seen_by_rewards(prediction, latents, prompt_embeds, draw, batch, generator)
            for term in terms:
                value, scores = self._reward(term, seen, captions, batch, generator)
                loss, figures = loss + own[term.reward.name] * value, figures | scores
        return {"loss": loss, **figures}

    def _seen_by_rewards(
        self,
        prediction: Tensor | None,
        latents: Tensor,
        prompt_embeds: Tensor,
        draw: ConsistencyDraw,
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, list[str]]:
        """Clean latents that the student made, with gradients, and their prompts."""
        captions, fps = list(batch["captions"]), batch["fps"]
        if self.reward_steps:
            some = slice(self.reward_batch_size or len(latents))
            steps = self.reward_steps[0]
            if len(self.reward_steps) > 1:
                index = torch.randint(len(self.reward_steps), (), generator=generator, device=latents.device)
                steps = self.reward_steps[int(index)]
            noise = torch.randn(latents[some].shape, generator=generator, device=latents.device)
            scale, embeds = draw.guidance_scale[some], prompt_embeds[some]
            made = self.function.generate(self.network, noise, steps, embeds, fps, scale, generator)
            return made, captions[some]
        if prediction is None:  # of this slot's losses none asks the teacher
            noisy, timesteps, _ = self.function.noisy(latents, draw)
            scale = draw.guidance_scale
            prediction = self.function(self.network, noisy, timesteps, prompt_embeds, fps, scale)
        return prediction, captions

    def _reward(
        self,
        term: RewardTerm,
        prediction: Tensor,
        captions: Sequence[str],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scale = batch["reward_scale"]
        self.vae.to(prediction.device)
        term.reward.to(prediction.device)
        value, figures = reward_loss(
            [term],
            self.vae,
            prediction,
            captions,
            step=batch["global_step"],
            generator=generator,
            chunk_size=self.decode_chunk_size,
            embed_prompts=self._embed,
        )
        scaled = {
            name: tensor * scale if name.startswith(("reward_weight/", "reward_grad_norm/")) else tensor
            for name, tensor in figures.items()
        }
        return scale * value, scaled

    def _embed(self, reward: Reward, prompts: Sequence[str]) -> Tensor:
        """A reward's features of prompts; each prompt is encoded once while it is among the recent ones."""
        keys = [(id(reward), prompt) for prompt in prompts]
        new = [
            prompt for key, prompt in dict(zip(keys, prompts, strict=True)).items() if key not in self._texts
        ]
        # One by one: features depend on how many are encoded together, and a resumed run has other new ones.
        for prompt in new:
            self._texts[id(reward), prompt] = reward.embed_prompts([prompt])[0].cpu()
        found = torch.stack([self._texts[key] for key in keys])
        for key in keys:
            self._texts.move_to_end(key)
        while len(self._texts) > _CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return found.to(next(reward.parameters()).device)

    def _unconditional(self) -> Tensor:
        """Hidden states of the empty prompt (1, L, C), encoded once."""
        if self._uncond_prompt_embeds is None:
            self._uncond_prompt_embeds = self.encode_prompts([""])
            if not self._encodes_captions:
                self.text_encoder.to("cpu")
        return self._uncond_prompt_embeds

    def _place_teacher(self, device: torch.device) -> UNetSpatioTemporalModel:
        """On first use: to its precision and its place."""
        if not self._teacher_is_placed:
            place_frozen(self.teacher, self.teacher_dtype, device, self.offload_teacher)
            self._teacher_is_placed = True
        return self.teacher.eval()

    def set_average(self, average: EMAModel) -> None:
        """The loop's averaged weights, for the target.

        Raises:
            ConfigError: they are sharded, and the target would have to be a network of its own, or processes
                would wait for each other's layers in different passes.
        """
        if isinstance(average.shadow_params[0], DTensor):
            if self.config.target == "ema":
                raise ConfigError("target: got ema with FSDP, expected student")
            if len(set(self.layout)) > 1 or len(self.reward_steps) > 1:
                raise ConfigError(
                    "layout, reward_steps: with FSDP all processes have to ask the student equally often; "
                    "leave the layout out and give one number of steps, or train without FSDP"
                )
        self._average = average

    def _target_network(self, global_step: int) -> UNetSpatioTemporalModel:
        """Whose answer one step further is the target.

        The student's own without its distributed wrapper, which would wait for gradients of this call.
        """
        student: UNetSpatioTemporalModel = extract_model_from_parallel(self.network)
        if self.config.target == "student":
            return student
        if self._average is None:
            raise RuntimeError("target: ema, but no averaged weights were handed over by the loop")
        if self._target is None:
            self._target = copy.deepcopy(student).requires_grad_(False)
        if self._target_step != global_step:
            self._average.copy_to(self._target.parameters())
            self._target_step = global_step
        return self._target.train(student.training)

    # --- samples and what is saved -------------------------------------------------------------------------

    def sample(self, network: Any, folder: Path) -> dict[str, float]:
        if not (self.num_sample_prompts or self.sample_prompts):
            return {}
        for term in self.terms:  # room for the videos
            term.reward.to("cpu")
        return self._summed_up(self.sample_videos(self.pipeline(network), folder))

    def sample_reference(self, folder: Path) -> dict[str, float]:
        """The teacher's samples with the seeds of the student's, at its own guidance scale."""
        if not self._teacher_is_placed:  # before it is rounded
            self.teacher.to(next(self.network.parameters()).device)
        own = self.teacher_pipeline.default_call
        call = {
            "num_inference_steps": self.num_reference_steps,
            "guidance_scale": own["guidance_scale"],
            "eta": own["eta"],
        }
        return self._summed_up(self.sample_videos(self.teacher_pipeline, folder, call))

    @torch.no_grad()
    def rate_clips(self, frames: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
        """What trained and held-out rewards say of sample videos; draws nothing from the run's generators."""
        device = next(self.network.parameters()).device
        clips = torch.from_numpy(frames).movedim(-1, 2)  # (B, F, 3, H, W)
        stride = max(1, clips.shape[1] // _NUM_RATED_FRAMES)
        named = [(f"{REWARD}/{term.reward.name}", term.reward) for term in self.terms]
        named += [(f"{HELD_OUT}/{reward.name}", reward) for reward in self.held_out]
        figures = {}
        for name, reward in named:
            reward.to(device)
            seen = clips if hasattr(reward, "num_frames") else clips[:, ::stride]
            generator = torch.Generator(device=device).manual_seed(0)
            scores = [
                reward(clip[None].to(device), [prompt], generator=generator)
                for clip, prompt in zip(seen, prompts, strict=True)
            ]
            figures[name] = float(torch.cat(scores).mean())
            reward.to("cpu")  # training brings back those that it needs
        return figures

    def _summed_up(self, figures: dict[str, float]) -> dict[str, float]:
        """Adds ``reward``, the weighted sum of what is trained on, and ``held_out``, the mean of the rest."""
        if self.use_oracle and "sample_all" in figures:
            shares = [figures[f"sample_{name}"] for name in world.ATTRIBUTES]
            figures[f"{HELD_OUT}/{ORACLE}"] = float(np.mean(shares))
        scores = [(figures.get(f"{REWARD}/{term.reward.name}"), term.weight.end) for term in self.terms]
        known = [(score, weight) for score, weight in scores if score is not None]
        if known:
            figures[REWARD] = sum(score * weight for score, weight in known)
        held = [value for name, value in figures.items() if name.startswith(f"{HELD_OUT}/")]
        if held:
            figures[HELD_OUT] = float(np.mean(held))
        return figures

    def pipeline(self, network: UNetSpatioTemporalModel) -> HummingbirdPipeline:
        """The trained network with its companions, as users load it."""
        return HummingbirdPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=network,
            scheduler=self.scheduler,
            default_call=self.default_call,
        )

    def save_model(self, network: Any, folder: Path) -> None:
        """A few-step pipeline; of low-rank updates both the merged network and, beside it, their list."""
        if getattr(network, "peft_config", None):
            torch.save(export_lora(network), folder / LORA_FILE)
            network = copy.deepcopy(network)
            network.fuse_lora()
            network.unload_lora()
        self.pipeline(network).save_pretrained(folder)


def default_call(
    teacher: HummingbirdPipeline, config: ConsistencyConfig, given: Mapping[str, Any]
) -> dict[str, int | float]:
    """Call arguments of the student: the teacher's size, a few steps, a guidance scale it was taught.

    Args:
        teacher: Its pipeline.
        config: For the range of guidance scales, whose middle is the default.
        given: Values that are not None replace these.
    """
    call = {**teacher.default_call, "num_inference_steps": 4, "eta": 0.0}
    call["guidance_scale"] = (config.guidance_min + config.guidance_max) / 2
    return call | {name: value for name, value in given.items() if value is not None}
