"""Stage 2: distils a student into few steps, with feedback of image and video rewards, guarded.

accelerate launch --config_file configs/accelerate/4gpu.yaml train/stage2.py configs/train/stage2_0.7b.yaml
python train/stage2.py configs/train/nano_stage2.yaml [--loop.max-steps 100] [--rewards.0.weight 0]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # `accelerate launch` starts this file, not the package

import pydantic
import torch
from pydantic import Field

from hummingbird.config import ConfigError, config_dataclass
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.rewards import (
    FrameSelection,
    ImageReward,
    Reward,
    RewardTerm,
    VideoReward,
    WeightSchedule,
    load_reward,
)
from train.buckets import BucketedClips
from train.command import read_settings, run_command
from train.consistency import ConsistencyConfig
from train.consistency_reward_task import (
    ORACLE,
    ConsistencyRewardTask,
    add_lora,
    default_call,
    few_step_student,
)
from train.loop import Count, CountOrNone, LoopConfig, accumulation_steps, run
from train.placement import CONSISTENCY, FrozenDtype, Layout, check_layout, without
from train.sources import EncodedClips, load_model, open_clips

RewardName = Literal["hpsv2", "pickscore", "viclip", "internvideo2", "nano-image", "nano-video"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@config_dataclass
class StudentConfig:
    """Where the network that is trained comes from, and what of it is trained."""

    model: str | None = None
    """A folder of a pipeline, such as stage 1 leaves; None starts from the teacher."""
    time_cond_proj_dim: Annotated[int, Field(ge=4)] = 256
    """Width of the guidance embedding, where the model has none."""
    lora_rank: CountOrNone = 0
    """0 trains every parameter; T2V-Turbo's is 64."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


@config_dataclass
class ScorerConfig:
    """A reward and its files."""

    name: RewardName | Literal["oracle"]
    """The oracle of the moving-shapes world is no network: it can only be held out."""
    checkpoint: str | None = None
    """As ``load_reward`` takes it; the nano rewards need none."""
    vocabulary: str | None = None
    """Of ``internvideo2``; found beside the checkpoint where left out."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@config_dataclass
class RewardConfig:
    """A reward that is trained on."""

    name: RewardName
    checkpoint: str | None = None
    vocabulary: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of its mean score; 0 leaves the reward out."""
    from_step: CountOrNone = 0
    full_step: CountOrNone = 0
    """The weight is 0 up to ``from_step`` and rises evenly until ``full_step``."""
    num_frames: Count | None = None
    """Decoded for it: random ones for an image reward, evenly spaced ones for a video reward. None takes its
    original's number; a video reward reads a fixed number."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> RewardConfig:
        if self.full_step < self.from_step:
            raise ValueError(f"full_step: got {self.full_step}, expected at least from_step={self.from_step}")
        return self


@config_dataclass
class CallConfig:
    """Call arguments that the student carries as its defaults; None follows teacher or training."""

    num_inference_steps: Count = 4
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """In the convention cond + w * (cond - uncond); None is the middle of the trained range."""
    fps: Annotated[float, Field(gt=0)] | None = None


@config_dataclass
class Stage2Config:
    """Few-step distillation of one student with rewards."""

    loop: LoopConfig
    teacher: str = "nano-teacher"
    """An embedded model, or a folder of a pipeline, that is guided by two passes."""
    student: StudentConfig = StudentConfig()
    latents: str | None = None
    """Clips encoded by the teacher's autoencoder: a file of `train/nano.py latents`, or a folder of
    `train/precompute.py`. None renders and encodes clips of the moving-shapes world as they are needed."""
    num_frames: Count = 16
    """Frames per example; a folder's buckets have their own. The student's default call has as many."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    rewards: tuple[RewardConfig, ...] = ()
    held_out: tuple[ScorerConfig, ...] = ()
    """Rewards that are never trained on: they look at samples, for the guard and for the best checkpoint."""
    layout: Layout = ()
    """Which losses each slot computes, such as [[consistency, hpsv2], [internvideo2]]; empty: every slot does
    everything. See docs/training_stage2.md."""
    reward_steps: tuple[Count, ...] = ()
    """Empty: rewards look at the one-step prediction that the distillation makes anyway, as published. Else
    at videos made from noise in so many steps, with gradients through all of them; of several numbers, such
    as [2, 4, 8], one is drawn each time."""
    reward_batch_size: CountOrNone = 0
    """Videos made for them; 0 makes as many as a batch has examples."""
    decode_chunk_size: Count = 1
    """Frames decoded at once for a reward."""
    teacher_dtype: FrozenDtype = "auto"
    """auto is bfloat16 on a GPU and float32 on a CPU; float8 keeps weights in it and computes in auto's."""
    offload_teacher: bool = False
    """Keeps the teacher's weights in the computer's memory and brings them to the GPU layer by layer."""
    call: CallConfig = CallConfig()
    num_sample_prompts: CountOrNone = 16
    """Sample videos of the moving-shapes world that the oracle judges."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample videos instead."""
    sample_batch_size: CountOrNone = 0
    """Sample videos made at once; 0 makes all of them."""
    num_reference_steps: Count = 25
    """Of the teacher's samples that the guard compares with."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Stage2Config:
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards: got {', '.join(names)}, expected each name once")
        trained = {(reward.name, reward.checkpoint) for reward in self.rewards if reward.weight > 0}
        for scorer in self.held_out:
            if (scorer.name, scorer.checkpoint) in trained:
                raise ValueError(f"held_out: {scorer.name} is trained on; name a reward that is not")
        grid = self.consistency.original_steps
        for name, steps in (
            ("reward_steps", max(self.reward_steps, default=0)),
            ("call.num_inference_steps", self.call.num_inference_steps),
        ):
            if steps > grid:
                raise ValueError(f"{name}: got {steps}, expected at most consistency.original_steps={grid}")
        if self.reward_batch_size > (self.loop.batch_size if self.reward_steps else 0):
            raise ValueError(
                f"reward_batch_size: got {self.reward_batch_size}, expected at most loop.batch_size="
                f"{self.loop.batch_size}, and 0 without reward_steps"
            )
        has_samples = bool(self.num_sample_prompts or self.sample_prompts)
        if self.loop.best_metric is not None and not has_samples:
            raise ValueError("loop.best_metric: chooses by samples, and none are asked for; set it to null")
        if self.loop.guard.action != "off":
            if not has_samples:
                raise ValueError(
                    "loop.guard: judges sample clips, and none are asked for; set num_sample_prompts or "
                    "sample_prompts, or loop.guard.action to off"
                )
            if trained and not self.held_out:
                raise ValueError(
                    "loop.guard: cannot tell a hacked reward without held_out; name a reward that is not "
                    "trained on, or set loop.guard.action to off"
                )
        if any(scorer.name == ORACLE for scorer in self.held_out) and self.sample_prompts:
            raise ValueError(
                "held_out: the oracle judges prompts of the moving-shapes world; drop sample_prompts"
            )
        return self


def build_task(config: Stage2Config) -> tuple[ConsistencyRewardTask, EncodedClips]:
    """Student, teacher, rewards and data.

    Raises:
        ConfigError: Settings that contradict each other.
        FileNotFoundError: A model or file is missing; the message says how to make it.
        ValueError: The parts do not fit together.
    """
    if config.loop.init_from is not None:
        raise ConfigError(f"loop.init_from: got {config.loop.init_from!r}; here it is called student.model")
    rewards = [reward for reward in config.rewards if reward.weight > 0]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    num_slots = processes * accumulation_steps(config.loop, processes)
    left_out = {reward.name for reward in config.rewards if reward.weight == 0}
    layout = without(config.layout, left_out)
    check_layout(layout, [CONSISTENCY, *(reward.name for reward in rewards)], num_slots)
    teacher = load_model(config.teacher, "teacher")
    source = teacher if config.student.model is None else load_model(config.student.model, "student.model")
    _check_student(source, teacher)
    student = few_step_student(source.unet, config.student.time_cond_proj_dim)
    if config.student.lora_rank:
        add_lora(student, config.student.lora_rank, config.student.lora_dropout, config.loop.seed)
    data = open_clips(  # no caption is left out: the student is never asked without one
        config.latents,
        teacher,
        config.loop.batch_size,
        config.loop.seed,
        config.num_frames,
        caption_dropout=0.0,
    )
    if rewards and isinstance(data, BucketedClips) and not data.has_captions:
        raise ValueError(
            f"latents: {config.latents} was encoded without its captions, which rewards read; encode it "
            "again with `python train/precompute.py`"
        )
    task = ConsistencyRewardTask(
        student,
        teacher,
        config.consistency,
        terms=[_term(reward, config.num_frames) for reward in rewards],
        held_out=[
            _held_out(scorer, config.num_frames) for scorer in config.held_out if scorer.name != ORACLE
        ],
        use_oracle=any(scorer.name == ORACLE for scorer in config.held_out),
        layout=layout,
        teacher_dtype=config.teacher_dtype,
        offload_teacher=config.offload_teacher,
        reward_steps=config.reward_steps,
        reward_batch_size=config.reward_batch_size,
        decode_chunk_size=config.decode_chunk_size,
        num_sample_prompts=config.num_sample_prompts,
        sample_prompts=config.sample_prompts,
        num_sample_steps=config.call.num_inference_steps,
        sample_batch_size=config.sample_batch_size,
        num_reference_steps=config.num_reference_steps,
        default_call=default_call(
            teacher, config.consistency, {**vars(config.call), "num_frames": config.num_frames}
        ),
    )
    return task, data


def _load_reward(config: ScorerConfig | RewardConfig) -> Reward:
    options: dict[str, Any] = {} if config.vocabulary is None else {"vocabulary": config.vocabulary}
    reward = load_reward(config.name, config.checkpoint, dtype=DTYPES[config.dtype], **options)
    reward.tokenize(["a"])  # a vocabulary that is missing or another's is noticed here, not hours later
    return reward


def _held_out(config: ScorerConfig, num_frames: int) -> Reward:
    reward = _load_reward(config)
    _check_length("held_out", reward, num_frames)
    return reward


def _check_length(setting: str, reward: Reward, num_frames: int) -> None:
    if isinstance(reward, VideoReward) and num_frames < reward.num_frames:
        raise ConfigError(
            f"{setting}: {reward.name} needs clips of {reward.num_frames} frames or more, got "
            f"num_frames={num_frames}"
        )


def _check_student(student: HummingbirdPipeline, teacher: HummingbirdPipeline) -> None:
    """Refuses a student whose predictions or inputs mean something else than the teacher's."""
    for name in ("in_channels", "out_channels", "cross_attention_dim"):
        got, expected = student.unet.config[name], teacher.unet.config[name]
        if got != expected:
            raise ConfigError(f"student.model: got {name}={got}, expected the teacher's {expected}")
    got, expected = (pipe.scheduler.config.prediction_type for pipe in (student, teacher))
    if got != expected:
        raise ConfigError(
            f"student.model: predicts {got}, expected the teacher's {expected}; distil it in stage 1 with "
            f"diffusion.prediction_type={expected}"
        )
    own, other = (pipe.scheduler.alphas_cumprod for pipe in (student, teacher))
    if own.shape != other.shape or not torch.allclose(own, other, atol=1e-6):
        raise ConfigError("student.model: got another noise schedule than the teacher's, expected the same")


def _term(config: RewardConfig, num_frames: int) -> RewardTerm:
    reward = _load_reward(config)
    selection = None
    if config.num_frames is not None:
        if isinstance(reward, VideoReward) and config.num_frames != reward.num_frames:
            raise ConfigError(
                f"rewards: {config.name} reads {reward.num_frames} frames, got num_frames={config.num_frames}"
            )
        rule: Literal["random", "strided"] = "random" if isinstance(reward, ImageReward) else "strided"
        selection = FrameSelection(rule=rule, count=config.num_frames)
    _check_length("rewards", reward, num_frames)
    schedule = WeightSchedule(end=config.weight, first_step=config.from_step, last_step=config.full_step)
    return RewardTerm(reward=reward, weight=schedule, frame_selection=selection)


def train_stage2(config: Stage2Config) -> None:
    """The whole run, from its last checkpoint where there is one."""
    task, data = build_task(config)
    loop = config.loop
    if not task.terms:  # no weight that a rollback could lower
        loop = replace(loop, guard=replace(loop.guard, lowers="learning_rate"))
    run(task, data, loop, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(
        lambda words: train_stage2(read_settings(Stage2Config, words, "train/stage2.py", __doc__)), argv
    )


if __name__ == "__main__":
    sys.exit(main())
