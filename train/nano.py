"""Trains every part of nano from nothing, offline: autoencoder, text tower, latents, teacher, rewards, then
the package of these, and the student in its two stages.

    python train/nano.py all configs/train                                 # `make nano`
    python train/nano.py vae configs/train/nano_vae.yaml --loop.max-steps 100   # one part
    python train/nano.py export configs/train/nano_export.yaml             # half precision, into the package

Parts that are finished are not trained again; a part that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python train/nano.py` sees only train/

import pydantic
import torch
from diffusers import AutoencoderKL
from pydantic import Field
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hummingbird.config import ConfigError, config_dataclass, load_config
from hummingbird.nano import world
from hummingbird.pipelines import HummingbirdPipeline
from train.command import read_settings, run_command
from train.dataset import MovingShapesCaptions, MovingShapesFrames, encode_clips
from train.decoder import DecoderConfig, train_decoder
from train.loop import LoopConfig, is_finished, run
from train.reward_task import NanoRewardConfig, train_reward
from train.shards import encode_shards
from train.stage1 import Stage1Config, train_stage1
from train.stage2 import Stage2Config, train_stage2
from train.tasks import AutoencoderTask, TextTower, TextTowerTask
from train.teacher import TeacherConfig, train_teacher

NUM_PROCESSES = 2
"""The processes that ``configs/train/nano_teacher*.yaml`` count on: ``batch_size`` is that of one."""
REWARDS = ("reward_image", "reward_video")
TEACHER_STAGES = ("nano_teacher_spatial", "nano_teacher_motion", "nano_teacher")


@config_dataclass
class AutoencoderConfig:
    """A small ``AutoencoderKL`` of 64 x 64 frames."""

    loop: LoopConfig
    block_out_channels: tuple[int, ...] = (16, 32, 64)
    """One per level; every level but the first halves height and width."""
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 4
    """Few, because wide groups keep the absolute colour of flat areas."""
    kl_weight: float = 1e-4
    edge_weight: float = 4.0


@config_dataclass
class TextTowerConfig:
    """A small ``CLIPTextModel`` with a word-level tokenizer of the world's vocabulary."""

    loop: LoopConfig
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_length: int = 20


@config_dataclass
class LatentsConfig:
    """Clips kept encoded: rendered ones of the world, or those of a curated folder."""

    vae: str
    output: str
    num_clips: Annotated[int, Field(ge=1)] | None = None
    """How many to render, or at most to take of the shards; None takes all of them."""
    seed: int = 0
    shards: str | None = None
    """Output folder of ``python -m data_pipeline run``; None renders the world."""
    num_frames: Annotated[int, Field(ge=1)] = world.NUM_FRAMES
    """Frames taken of each curated clip; shorter clips are left out."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> LatentsConfig:
        if self.shards is None and self.num_clips is None:
            raise ValueError("num_clips: expected a number, because the world has no end; or give shards")
        return self


@config_dataclass
class ExportConfig:
    """A trained pipeline made small enough to ship."""

    model: str
    output: str
    rewards: tuple[str, ...] = ()
    """Folders of trained rewards, packed as well."""
    rewards_output: str = "."
    """Where each reward becomes a folder of its name."""
    students: tuple[tuple[str, str], ...] = ()
    """What stages 1 and 2 leave, and where it is packed: (model, output) each."""


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Random weights from torch's global generator."""
    levels = len(config.block_out_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=world.IMAGE_SIZE,
    )
    # Start with little posterior noise: at the default (deviation 1) it drowns the untrained latents.
    vae.quant_conv.bias.data[config.latent_channels :] = -6.0
    return vae


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per word; words outside the world are ``<unk>``."""
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    ids = {token: index for index, token in enumerate([*special, *world.vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
    )


def build_text_tower(config: TextTowerConfig, tokenizer: PreTrainedTokenizerFast) -> TextTower:
    """Random weights from torch's global generator."""
    return TextTower(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=config.max_length,
                hidden_act="gelu",
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    )


def train_autoencoder(config: AutoencoderConfig) -> None:
    _refuse_init_from(config.loop)
    torch.manual_seed(config.loop.seed)
    task = AutoencoderTask(
        build_autoencoder(config),
        config.kl_weight,
        config.edge_weight,
        test_seed=config.loop.seed + 1_000_000,
    )
    data = MovingShapesFrames(config.loop.batch_size, config.loop.seed, frames_per_clip=1)
    run(task, data, config.loop, config)


def train_text_tower(config: TextTowerConfig) -> None:
    _refuse_init_from(config.loop)
    torch.manual_seed(config.loop.seed)
    tokenizer = build_tokenizer(config.max_length)
    task = TextTowerTask(build_text_tower(config, tokenizer), tokenizer)
    run(task, MovingShapesCaptions(config.loop.batch_size, config.loop.seed), config.loop, config)


def _refuse_init_from(config: LoopConfig) -> None:
    if config.init_from is not None:
        raise ConfigError(
            f"loop.init_from: got {config.init_from!r}, but this part always starts from nothing"
        )


def write_latents(config: LatentsConfig) -> None:
    if not (Path(config.vae) / "config.json").is_file():
        raise FileNotFoundError(
            f"vae: no autoencoder in {config.vae}; train it with `python train/nano.py vae "
            "configs/train/nano_vae.yaml`"
        )
    vae = AutoencoderKL.from_pretrained(config.vae, use_safetensors=True, torch_dtype=torch.float32).eval()
    vae.to("cuda" if torch.cuda.is_available() else "cpu")
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if config.shards is not None:
        encode_shards(vae, Path(config.shards), config.num_frames, output, max_clips=config.num_clips)
    else:
        assert config.num_clips is not None  # validated
        encode_clips(vae, config.num_clips, config.seed, output)


def export(config: ExportConfig) -> None:
    """Packs the teacher."""
    export_pipeline(config.model, config.output)


def export_students(config: ExportConfig) -> None:
    """Packs what stages 1 and 2 have left so far."""
    for model, output in config.students:
        if Path(model).is_dir():
            export_pipeline(model, output)


def export_pipeline(model: str, output: str) -> None:
    """Writes a pipeline with half-precision weights; loading casts them back to float32."""
    pipe = HummingbirdPipeline.from_pretrained(model)
    for name in ("vae", "text_encoder", "unet"):
        getattr(pipe, name).half()
    pipe.save_pretrained(output)
    # drop where the pipeline and its parts were loaded from
    for path in (Path(output) / "model_index.json", *Path(output).rglob("*config.json")):
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def export_rewards(config: ExportConfig) -> None:
    """Writes each reward with half-precision weights, as ``load_reward`` reads them without a checkpoint."""
    for source in map(Path, config.rewards):
        kind = json.loads((source / "config.json").read_text())["kind"]
        folder = Path(config.rewards_output) / f"nano-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text((source / "config.json").read_text())
        weights = load_file(source / "model.safetensors")
        halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        save_file(halved, folder / "model.safetensors")


def export_all(config: ExportConfig) -> None:
    export(config)
    export_rewards(config)


PARTS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "vae": (AutoencoderConfig, train_autoencoder),
    "text": (TextTowerConfig, train_text_tower),
    "latents": (LatentsConfig, write_latents),
    "decoder": (DecoderConfig, train_decoder),
    "reward_image": (NanoRewardConfig, train_reward),
    "reward_video": (NanoRewardConfig, train_reward),
    "export": (ExportConfig, export_all),
    "export_rewards": (ExportConfig, export_rewards),
    "export_students": (ExportConfig, export_students),
}


STUDENT_STAGES: tuple[tuple[str, str, type[Any], Callable[[Any], None]], ...] = (
    ("stage1", "stage1.py", Stage1Config, train_stage1),
    ("stage2", "stage2.py", Stage2Config, train_stage2),
    ("stage2_eight", "stage2.py", Stage2Config, train_stage2),
)
"""Name, entry point, settings, training."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(_main, argv)


def _main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="train/nano.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("part", choices=["all", *PARTS])
    part = parser.parse_args(words[:1]).part
    if part in PARTS:
        config_class, function = PARTS[part]
        function(read_settings(config_class, words[1:], f"train/nano.py {part}", config_class.__doc__))
        return
    parser.add_argument("folder", type=Path, help="where all the YAML files are")
    train_all(parser.parse_args(words).folder)


def train_stage(path: Path) -> None:
    """One stage of the teacher, with the total batch of ``NUM_PROCESSES`` whatever the machine.

    On a CPU that many processes beat as many threads (docs/log.md); one GPU takes the whole batch at once.
    """
    config = load_config(TeacherConfig, path)
    if is_finished(config.loop):
        return
    cores = os.cpu_count() or 1
    if torch.cuda.is_available() or cores < NUM_PROCESSES:
        loop = dataclasses.replace(config.loop, batch_size=NUM_PROCESSES * config.loop.batch_size)
        train_teacher(dataclasses.replace(config, loop=loop))
        return
    _launch("teacher.py", path)


def train_student_stage(
    script: str, config_class: type[Any], function: Callable[[Any], None], path: Path
) -> None:
    """One stage of the student; its ``target_global_batch`` holds whatever the number of processes.

    A batch too small to be divided is computed by one process.
    """
    config = load_config(config_class, path)
    if is_finished(config.loop):
        return
    divides = (config.loop.target_global_batch or 0) % (NUM_PROCESSES * config.loop.batch_size) == 0
    if torch.cuda.is_available() or (os.cpu_count() or 1) < NUM_PROCESSES or not divides:
        function(config)
    else:
        _launch(script, path)


def _launch(script_name: str, path: Path) -> None:
    """Runs an entry point in ``NUM_PROCESSES`` processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = str(Path(__file__).with_name(script_name))
    command = [*launcher, "--nproc_per_node", str(NUM_PROCESSES), script, str(path)]
    threads = str((os.cpu_count() or 1) // NUM_PROCESSES)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    if status := subprocess.run(command, env=environment, check=False).returncode:
        raise RuntimeError(f"{path}: training ended with status {status}; its own message is above")


def train_all(folder: Path) -> None:
    """Every part in order; what is already there is kept."""
    for name in ("vae", "text"):
        config_class, function = PARTS[name]
        config = load_config(config_class, folder / f"nano_{name}.yaml")
        if not is_finished(config.loop):
            function(config)
    latents = load_config(LatentsConfig, folder / "nano_latents.yaml")
    if not Path(latents.output).exists():
        write_latents(latents)
    for stage in TEACHER_STAGES:
        train_stage(folder / f"{stage}.yaml")
    for name in REWARDS:
        reward = load_config(NanoRewardConfig, folder / f"nano_{name}.yaml")
        if not is_finished(reward.loop):
            train_reward(reward)
    packing = load_config(ExportConfig, folder / "nano_export.yaml")
    export_all(packing)
    for name, script, config_class, function in STUDENT_STAGES:
        # The debug twins stand for the recipes of the full size as well, and are not named after nano.
        path = folder / f"nano_{name}.yaml"
        path = path if path.is_file() else folder / f"{name}.yaml"
        train_student_stage(script, config_class, function, path)
        export_students(packing)  # stage 2 starts from what stage 1 packed


if __name__ == "__main__":
    sys.exit(main())
