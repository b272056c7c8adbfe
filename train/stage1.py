"""Stage 1: prunes a teacher and distils it back into what is left.

accelerate launch --config_file configs/accelerate/4gpu.yaml train/stage1.py configs/train/stage1_0.7b.yaml
python train/stage1.py configs/train/nano_stage1.yaml [--loop.max-steps 100]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # `accelerate launch` starts this file, not the package

import pydantic
import torch
from pydantic import Field

from hummingbird import HummingbirdPipeline
from hummingbird.config import ConfigError, config_dataclass
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pruning import prune_unet
from hummingbird.pruning.plan import load_plan
from train.command import read_settings, run_command
from train.dataset import LatentClips
from train.distillation import DistillationConfig, DistillationTask
from train.loop import LoopConfig, run
from train.losses import LossWeighting
from train.sources import EncodedClips, load_model, open_clips


@config_dataclass
class StudentConfig:
    """Where the network that is trained comes from."""

    plan: str | None = "0.7b"
    """What stays of the teacher: 0.9b, 0.7b or a YAML file (docs/pruning.md)."""
    model: str | None = None
    """A folder of a pipeline, whose U-Net goes on training; instead of a plan."""
    random_weights: bool = False
    """The same network without what it would inherit."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> StudentConfig:
        if (self.plan is None) == (self.model is None):
            raise ValueError("student: expected a plan or a model; set the other one to null")
        return self


@config_dataclass
class ForwardConfig:
    """The forward process; what is left out is the teacher's."""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    rescale_betas_zero_snr: bool | None = None
    weighting: LossWeighting = "uniform"
    timestep_shift: float = 1.0
    """Over 1 visits noisy timesteps more often."""


@config_dataclass
class Stage1Config:
    """Pruning and distillation of one teacher."""

    loop: LoopConfig
    teacher: str = "nano-teacher"
    """An embedded model, or a folder of a pipeline; a checkpoint becomes one by `hummingbird convert`."""
    student: StudentConfig = StudentConfig()
    latents: str | None = None
    """Clips encoded by the teacher's autoencoder: a file of `train/nano.py latents`, or a folder of
    `train/precompute.py`. None renders and encodes clips of the moving-shapes world as they are needed."""
    num_frames: Annotated[int, Field(ge=1)] = 16
    """Frames per example; a folder's buckets have their own."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of captions left out, for classifier-free guidance."""
    num_sample_prompts: Annotated[int, Field(ge=0)] = 16
    """Sample videos of the moving-shapes world that the oracle judges."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample videos instead."""
    num_sample_steps: Annotated[int, Field(ge=1)] = 25
    sample_batch_size: Annotated[int, Field(ge=0)] = 0
    """Sample videos made at once; 0 makes all of them."""
    diffusion: ForwardConfig = ForwardConfig()
    distillation: DistillationConfig = DistillationConfig()


def build_task(config: Stage1Config) -> tuple[DistillationTask, EncodedClips]:
    """Student, teacher and data.

    Raises:
        ConfigError: settings that contradict each other.
        FileNotFoundError: a model or file is missing; the message says how to make it.
        ValueError: the parts do not fit together.
    """
    if config.loop.init_from is not None:
        raise ConfigError(f"loop.init_from: got {config.loop.init_from!r}; here it is called student.model")
    if config.loop.guard.action != "off" and not (config.num_sample_prompts or config.sample_prompts):
        raise ConfigError(
            "loop.guard: judges sample clips, and none are asked for; set num_sample_prompts or "
            "sample_prompts, or loop.guard.action to off"
        )
    teacher = load_model(config.teacher, "teacher")
    student = build_student(config, teacher.unet)
    data = open_clips(
        config.latents,
        teacher,
        config.loop.batch_size,
        config.loop.seed,
        config.num_frames,
        config.caption_dropout,
    )
    gate_batch = None
    if isinstance(data, LatentClips):
        assert config.latents is not None  # data comes from there
        gate = LatentClips(Path(config.latents), 64, config.loop.seed + 1, config.num_frames, 0.0, 0.0)
        gate_batch = gate.batch(0)
    task = DistillationTask(
        student,
        teacher,
        config.distillation,
        _scheduler(config.diffusion, teacher),
        gate_batch=gate_batch,
        weighting=config.diffusion.weighting,
        timestep_shift=config.diffusion.timestep_shift,
        num_sample_prompts=config.num_sample_prompts,
        sample_prompts=config.sample_prompts,
        num_sample_steps=config.num_sample_steps,
        sample_batch_size=config.sample_batch_size,
        default_call=dict(teacher.config.default_call),
    )
    return task, data


def build_student(config: Stage1Config, teacher: UNetSpatioTemporalModel) -> UNetSpatioTemporalModel:
    """The network to train, in float32; the teacher is not touched."""
    settings = config.student
    if settings.model is not None:
        student = load_model(settings.model, "student.model").unet
    elif settings.random_weights:
        assert settings.plan is not None  # validated
        student = teacher
        options = load_plan(settings.plan, teacher.config).student_config(teacher.config)
    else:
        assert settings.plan is not None  # validated
        student = prune_unet(teacher, settings.plan)[0]
    if settings.random_weights:
        torch.manual_seed(config.loop.seed)
        if settings.model is not None:
            options = dict(student.config)
        student = UNetSpatioTemporalModel.from_config(options)
    return student.requires_grad_(True)


def _scheduler(config: ForwardConfig, teacher: HummingbirdPipeline) -> object:
    given = {
        "prediction_type": config.prediction_type,
        "rescale_betas_zero_snr": config.rescale_betas_zero_snr,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    scheduler = type(teacher.scheduler).from_config(teacher.scheduler.config, **changes)
    if scheduler.config.prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0.0:
        raise ConfigError(
            "diffusion.prediction_type: got epsilon with zero terminal SNR, where the noise is the input; "
            "use v_prediction (Lin et al., arXiv 2305.08891, section 3.2)"
        )
    return scheduler


def train_stage1(config: Stage1Config) -> None:
    """The whole run, from its last checkpoint where there is one."""
    task, data = build_task(config)
    run(task, data, config.loop, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(
        lambda words: train_stage1(read_settings(Stage1Config, words, "train/stage1.py", __doc__)), argv
    )


if __name__ == "__main__":
    sys.exit(main())
