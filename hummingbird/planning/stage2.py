"""Stage 2 without weights: a consistency step with its three networks, rewards of decoded frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hummingbird import nano
from hummingbird.checkpoints.lora import lora_modules
from hummingbird.config import ConfigError
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.models.shells import Shell, build_shell
from hummingbird.planning.memory import KernelPaths, tensor_bytes
from hummingbird.planning.recipe import PRECISIONS, STAGE2_REWARD, STAGE2_STUDENT, Device, Recipe
from hummingbird.planning.sketches import (
    frozen_teacher,
    latent_size,
    micro_batch,
    reference,
    teacher_shell,
)
from hummingbird.planning.step import Sampling, Sketch, Slot, forward_bytes, sampling, tensors
from hummingbird.pruning.plan import load_plan
from hummingbird.rewards import (
    FrameSelection,
    ImageReward,
    Reward,
    RewardTerm,
    VideoReward,
    WeightSchedule,
    reward_loss,
)
from hummingbird.rewards.loading import reward_shell
from hummingbird.schedulers import (
    boundary_scalings,
    ddim_solver_step,
    guidance_scale_embedding,
    predict_original_and_noise,
    pseudo_huber,
)

__all__ = ["sketch_stage2"]

_CONSISTENCY = "consistency"
_ORACLE = "oracle"  # no network
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FALLBACK_STUDENT = "0.7b"
_NUM_TRAIN_TIMESTEPS = 1000
_NUM_RATED_FRAMES = 4  # of a sample video, for an image reward
_TEXT = torch.empty(1, 1, device="meta")
"""In place of a reward's features of a text, which are encoded once and cost next to nothing."""


def sketch_stage2(recipe: Recipe, device: Device) -> Sketch:
    """Few-step distillation with rewards (``train/stage2.py``)."""
    shell = teacher_shell(recipe, str(recipe.stage2("teacher")))
    teacher: Any = shell.unet
    student = _student(recipe, shell)
    size = latent_size(recipe, recipe.stage2("latents"), int(recipe.stage2("num_frames")), shell)
    low, teacher_bytes = frozen_teacher(
        teacher, str(recipe.stage2("teacher_dtype")), bool(recipe.stage2("offload_teacher")), device
    )
    terms = [_term(values, size[0]) for values in recipe.stage2("rewards") if _weight(values) > 0]
    predict = _Prediction(recipe, student, teacher, low, micro_batch(recipe, teacher, size, shell.num_tokens))
    feedback = _Feedback(recipe, shell, device)
    by_name = {term.reward.name: term for term in terms}
    steps = max(recipe.stage2("reward_steps"), default=0)  # time is counted for the most, too
    parts = (_CONSISTENCY, *by_name)
    left_out = {str(values["name"]) for values in recipe.stage2("rewards") if _weight(values) == 0}
    named = [tuple(name for name in slot if name not in left_out) for slot in recipe.stage2("layout") or ()]
    layout = [slot for slot in named if slot] or [parts]
    if unknown := {name for slot in layout for name in slot} - set(parts):
        raise ConfigError(
            f"layout: got {', '.join(sorted(unknown))}, expected names among {', '.join(parts)}"
        )

    def loss_of(names: Sequence[str]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            seen, total = None, torch.zeros((), device="meta")
            if _CONSISTENCY in names:
                seen, total = predict.with_distillation()
            scored = [by_name[name] for name in parts[1:] if name in names]
            if scored and steps:
                seen = predict.in_steps(steps, int(recipe.stage2("reward_batch_size")))
            elif seen is None:
                seen = predict.alone()
            for term in scored:
                total = total + feedback.loss(term, seen)
            return total

        return loss

    slots = []
    for names in layout:
        frozen = dict(teacher_bytes) if _CONSISTENCY in names else {}
        scored = [name for name in names if name in by_name]
        if scored:
            frozen["autoencoder"] = tensor_bytes(tensors(shell.vae))
        for name in scored:
            frozen |= _reward_bytes(by_name[name].reward)
        if device == "cpu":
            frozen = {}
        resident = teacher_bytes if _CONSISTENCY in names and device == "gpu" else {}
        slots.append(
            Slot(losses=names, loss=loss_of(names), frozen_bytes=frozen, resident_bytes=dict(resident))
        )
    held_out = [_reward(values) for values in recipe.stage2("held_out") if values.get("name") != _ORACLE]
    rewards = [*(term.reward for term in terms), *held_out]
    always = {}
    if device == "cpu":  # whatever is loaded stays in the same memory
        always = teacher_bytes | {"autoencoder": tensor_bytes(tensors(shell.vae))}
        for reward in rewards:
            always |= _reward_bytes(reward)
    latents = recipe.stage2("latents")
    if latents is None or Path(str(latents)).suffix == ".safetensors":  # a folder holds captions encoded
        always["text encoder"] = tensor_bytes(tensors(shell.text_encoder))
    if recipe.part("consistency").get("target", "student") == "ema":
        always["averaged weights as a network"] = tensor_bytes(student.parameters())
    return Sketch(
        network=student,
        slots=slots,
        frozen=[teacher, shell.vae, *(term.reward for term in terms)],
        frozen_bytes=always,
        samplings=_samplings(recipe, shell, student, size, rewards, device, always | slots[0].frozen_bytes),
    )


# --- networks -----------------------------------------------------------------------------------------------


def _student(recipe: Recipe, shell: Shell) -> Any:
    """The few-step student, and what of it is trained."""
    settings = {**STAGE2_STUDENT, **recipe.part("student")}
    source = dict(shell.unet.config)
    if (model := settings["model"]) is not None:
        if nano.resolve(str(model)) is not None or Path(str(model)).is_dir():
            source = dict(build_shell(str(model)).unet.config)
        else:
            recipe.notes.append(
                f"{model} is not here: counted as the {_FALLBACK_STUDENT} plan of the teacher"
            )
            source = load_plan(_FALLBACK_STUDENT, shell.unet.config).student_config(shell.unet.config)
    options = {name: value for name, value in source.items() if not name.startswith("_")}
    options["time_cond_proj_dim"] = options.get("time_cond_proj_dim") or settings["time_cond_proj_dim"]
    with torch.device("meta"):
        student: Any = UNetSpatioTemporalModel.from_config(options)
        student.requires_grad_(True)
        if rank := int(settings["lora_rank"]):
            from peft import LoraConfig

            targets = list(lora_modules(student))
            student.requires_grad_(False)
            student.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=rank,
                    lora_dropout=float(settings["lora_dropout"]),
                    target_modules=targets,
                    bias="none",
                )
            )
    return student


def _weight(values: Mapping[str, Any]) -> float:
    return float({**STAGE2_REWARD, **values}["weight"])


def _term(values: Mapping[str, Any], num_frames: int) -> RewardTerm:
    """A reward at its full weight; as many different frames as it may decode."""
    reward = _reward(values)
    wanted = int(values.get("num_frames") or reward.frame_selection.count)
    if isinstance(reward, VideoReward) and num_frames < wanted:
        raise ConfigError(
            f"rewards: {reward.name} needs clips of {wanted} frames or more, got num_frames={num_frames}"
        )
    selection = FrameSelection(rule="strided", count=min(wanted, num_frames), start=0)
    return RewardTerm(reward=reward, weight=WeightSchedule(end=1.0), frame_selection=selection)


def _reward(values: Mapping[str, Any]) -> Reward:
    settings = {**STAGE2_REWARD, **values}
    if settings["dtype"] not in _DTYPES:
        raise ConfigError(f"rewards: dtype: got {settings['dtype']!r}, expected one of {', '.join(_DTYPES)}")
    try:
        return reward_shell(str(values.get("name")), settings["checkpoint"], _DTYPES[settings["dtype"]])
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"rewards: {error}") from error


def _reward_bytes(reward: Reward) -> dict[str, int]:
    dtype = str(next(reward.parameters()).dtype).removeprefix("torch.")
    return {f"{reward.name}, {dtype}": tensor_bytes(tensors(reward))}


# --- losses -------------------------------------------------------------------------------------------------


class _Prediction:
    """The student's clean latents, and the distillation loss; the steps of ``train/consistency.py``."""

    def __init__(
        self,
        recipe: Recipe,
        student: Any,
        teacher: Any,
        teacher_dtype: torch.dtype,
        batch: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        self.student, self.teacher, self.low = student, teacher, teacher_dtype
        self.latents, self.timesteps, self.text = batch
        self.is_huber = recipe.part("consistency").get("loss", "huber") == "huber"
        self.alphas_cumprod = torch.empty(_NUM_TRAIN_TIMESTEPS, device="meta")
        self.guidance_scale = torch.empty(len(self.latents), device="meta")

    def alone(self) -> Tensor:
        """Of a micro-step that only rewards look at."""
        return self._clean(torch.empty_like(self.latents))

    def in_steps(self, steps: int, count: int) -> Tensor:
        """Videos made from noise, with gradients through every step: ``count``, or 0 for a whole batch."""
        some = slice(count or len(self.latents))
        sample = torch.empty_like(self.latents[some])
        for step in range(steps):
            if step:
                sample = self.alphas_cumprod[0] * sample + torch.empty_like(sample)
            sample = self._clean(sample, some)
        return sample

    def with_distillation(self) -> tuple[Tensor, Tensor]:
        """The prediction and the distillation loss."""
        noisy = torch.empty_like(self.latents)
        prediction = self._clean(noisy)
        with torch.no_grad():
            sample = noisy.to(self.low)
            weight = self.guidance_scale.view(-1, *[1] * (noisy.ndim - 1))
            with_prompt, without = self._ask(sample, noisy), self._ask(sample, noisy)
            original, noise = (
                cond + weight * (cond - uncond) for cond, uncond in zip(with_prompt, without, strict=True)
            )
            previous = ddim_solver_step(original, noise, self.timesteps, self.alphas_cumprod)
            target = self._clean(previous)
        if self.is_huber:
            return prediction, pseudo_huber(prediction, target)
        return prediction, (prediction.float() - target.float()).square().mean()

    def _clean(self, sample: Tensor, some: slice = slice(None)) -> Tensor:
        width = self.student.config.time_cond_proj_dim
        timesteps, text = self.timesteps[some], self.text[some]
        embedding = guidance_scale_embedding(self.guidance_scale[some], width).to(sample.dtype)
        options = {"fps": 8.0, "timestep_cond": embedding, "return_dict": False}
        output = self.student(sample, timesteps, text, **options)[0].float()
        original, _ = predict_original_and_noise(output, timesteps, sample, self.alphas_cumprod)
        c_skip, c_out = (factor.view(-1, *[1] * (sample.ndim - 1)) for factor in boundary_scalings(timesteps))
        return c_skip * sample + c_out * original

    def _ask(self, sample: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
        text = self.text.to(self.low)
        output = self.teacher(sample, self.timesteps, text, fps=8.0, return_dict=False)[0].float()
        return predict_original_and_noise(output, self.timesteps, noisy, self.alphas_cumprod)


class _Decoder:
    """An autoencoder whose decoding goes a device's ways, also when it is done again for the gradient."""

    def __init__(self, vae: Any, precision: torch.dtype | None, device: Device) -> None:
        self.vae, self.precision, self.device = vae, precision, device
        self.config, self.dtype = vae.config, vae.dtype

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        with KernelPaths(self.precision, fused_attention=self.device == "gpu"):
            return self.vae.decode(latents, return_dict=return_dict)


class _Feedback:
    """Rewards of decoded frames, by the code of the training itself."""

    def __init__(self, recipe: Recipe, shell: Shell, device: Device) -> None:
        self.decoder = _Decoder(shell.vae, PRECISIONS[recipe.loop("mixed_precision")], device)
        self.chunk_size = int(recipe.stage2("decode_chunk_size"))

    def loss(self, term: RewardTerm, prediction: Tensor) -> Tensor:
        value, _ = reward_loss(
            [term],
            self.decoder,
            prediction,
            [""] * len(prediction),
            step=0,
            generator=torch.Generator().manual_seed(0),
            chunk_size=self.chunk_size,
            embed_prompts=lambda reward, prompts: _TEXT.expand(len(prompts), 1),
        )
        return value


# --- samples ------------------------------------------------------------------------------------------------


def _samplings(
    recipe: Recipe,
    shell: Shell,
    student: Any,
    size: tuple[int, int, int],
    rewards: Sequence[Reward],
    device: Device,
    frozen: Mapping[str, int],
) -> list[Sampling]:
    """Making videos, the teacher's before the first step, and judging them with one reward after another."""
    videos = recipe.num_sampled
    if not videos:
        return []
    moved = {name for reward in rewards for name in _reward_bytes(reward)} if device == "gpu" else set()
    apart = {name: count for name, count in frozen.items() if name not in moved}
    found = [sampling(shell, student, size, videos, 0, device, dict(apart))]
    if recipe.is_guarded:
        found.append(reference(shell, size, videos, device, apart))
    without_vae = {name: count for name, count in apart.items() if name != "autoencoder" or device == "cpu"}
    for reward in rewards:
        found.append(
            Sampling({**without_vae, **_reward_bytes(reward)}, _judging(reward, shell, size, device))
        )
    return found


def _judging(reward: Reward, shell: Shell, size: tuple[int, int, int], device: Device) -> Callable[[], int]:
    frames, height, width = size
    factor = shell.vae_scale_factor
    seen = frames
    if isinstance(reward, ImageReward):
        seen = len(range(0, frames, max(1, frames // _NUM_RATED_FRAMES)))

    def peak() -> int:
        clip = torch.empty(1, seen, 3, height * factor, width * factor, device="meta")
        generator = torch.Generator().manual_seed(0)

        def score() -> Tensor:
            return reward(clip, prompt_embeds=_TEXT, generator=generator)

        return tensor_bytes([clip]) + forward_bytes(reward, score, device, None)

    return peak
