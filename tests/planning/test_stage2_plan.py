"""Plans of stage 2: against the training code's own step, its settings, and what each lever promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hummingbird.config import ConfigError, load_config, save_config
from hummingbird.models.shells import build_shell
from hummingbird.planning.memory import PeakMemory, bytes_in_8_bits, tensor_bytes
from hummingbird.planning.recipe import (
    STAGE2_DEFAULTS,
    STAGE2_KEYS,
    STAGE2_REWARD,
    STAGE2_STUDENT,
    Recipe,
    read_recipe,
)
from hummingbird.planning.stage2 import sketch_stage2
from hummingbird.planning.step import Slot, play
from hummingbird.planning.training import TrainingPlan, plan_training
from hummingbird.rewards import load_reward
from hummingbird.rewards.loading import reward_shell
from train.consistency import ConsistencyConfig
from train.consistency_reward_task import few_step_student
from train.loop import LoopConfig
from train.placement import place_frozen
from train.sources import load_model
from train.stage2 import RewardConfig, Stage2Config, StudentConfig, build_task

DEBUG = Path(__file__).resolve().parents[2] / "configs" / "debug"


def saved_recipe(folder: Path, *flags: str) -> Path:
    output = ["--loop.output", str(folder / "run")]
    path = folder / "recipe.yaml"
    save_config(load_config(Stage2Config, DEBUG / "stage2.yaml", [*output, *flags]), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    return plan_training(saved_recipe(tmp_path_factory.mktemp("plan")), device="cpu")


@pytest.mark.parametrize("flags", [(), ("--reward-steps", "2")], ids=["prediction", "videos"])
def test_a_plan_follows_what_the_training_code_does(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The real task with real tensors, slot by slot, followed by the same accounting."""
    path = saved_recipe(tmp_path, *flags)
    recipe = read_recipe(path)
    sketch = sketch_stage2(recipe, "cpu")
    task, data = build_task(load_config(Stage2Config, path))
    parts = (task.network, task.teacher, task.vae, task.text_encoder, *(term.reward for term in task.terms))
    known = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    assert [slot.losses for slot in sketch.slots] == [("consistency", "nano-image"), ("nano-video",)]
    for number, slot in enumerate(sketch.slots):
        found = play(sketch, slot, recipe, "cpu", has_gradients=True)
        batch = {**data.batch(0), "global_step": 3, "slot": number, "num_slots": 4, "reward_scale": 1.0}
        task.network.train()
        for parameter in task.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        gradients = tensor_bytes(p.grad for p in task.network.parameters())
        with PeakMemory([*known, *(p.grad for p in task.network.parameters())]) as memory:
            task.losses(batch, torch.Generator().manual_seed(0))["loss"].backward()
        assert found.peak_bytes == pytest.approx(memory.peak_bytes + gradients, rel=0.15)
        assert found.flops == pytest.approx(memory.flops, rel=0.05)


def test_what_is_there_all_the_time(plain: TrainingPlan) -> None:
    student = few_step_student(load_model("nano-teacher", "teacher").unet, 256)
    count = sum(p.numel() for p in student.parameters())
    assert plain.trainable_parameters == count
    assert plain.parts_gb["weights, float32"] == pytest.approx(4 * count / 1e9)
    assert plain.parts_gb["optimizer states"] == pytest.approx(8 * count / 1e9)
    assert plain.parts_gb["teacher, float32"] == pytest.approx(4 * 5_948_612 / 1e9, rel=0.01)
    for name in ("nano-image", "nano-video"):
        real = load_reward(name)
        stored = tensor_bytes([*real.parameters(), *real.buffers()])
        assert plain.parts_gb[f"{name}, float32"] == pytest.approx(stored / 1e9, rel=0.01)
    assert (plain.kind, plain.accumulation, len(plain.ranks)) == ("stage2", 4, 1)
    assert plain.ranks[0].micro_steps == 2 * (("consistency", "nano-image"), ("nano-video",))
    assert plain.sample_gb is not None
    assert plain.peak_gb == max(plain.step_gb, plain.sample_gb)


def test_slots_follow_each_other_over_processes(tmp_path: Path, plain: TrainingPlan) -> None:
    """As the loop numbers them; on a GPU a process holds what its own slots need."""
    without = {"num_sample_prompts": 0}
    plan = plan_training(saved_recipe(tmp_path), num_processes=2, tflops=0.01, changes=without)
    first, second = plan.ranks
    assert first.micro_steps == 2 * (("consistency", "nano-image"),)
    assert second.micro_steps == 2 * (("nano-video",),)
    assert first.tflop_per_step + second.tflop_per_step == pytest.approx(
        plain.ranks[0].tflop_per_step, rel=0.01
    )
    assert {"teacher, bfloat16", "nano-image, float32"} <= set(first.parts_gb)
    assert {"teacher, bfloat16", "nano-image, float32"}.isdisjoint(second.parts_gb)
    assert "nano-video, float32" in second.parts_gb
    assert plan.step_gb == first.step_gb > second.step_gb
    assert plan.tflop_per_step == second.tflop_per_step > first.tflop_per_step  # it decodes more frames
    assert plan.hours == pytest.approx(second.tflop_per_step * plan.max_steps / 0.01 / 3600)
    assert "process 1:" in plan.to_text()
    with pytest.raises(ConfigError, match="layout: got 2 slots for 1 batches"):
        plan_training(saved_recipe(tmp_path), changes={"loop.target_global_batch": 1})


def test_the_teacher_stays_while_videos_are_made_whichever_slot_asks_it(tmp_path: Path) -> None:
    image, video = ["consistency", "nano-image"], ["nano-video"]
    path = saved_recipe(tmp_path)
    first, last = (
        plan_training(path, changes={"layout": layout}) for layout in ([image, video], [video, image])
    )
    assert first.sample_gb is not None
    assert last.sample_gb == pytest.approx(first.sample_gb)


def test_levers_do_what_they_promise(tmp_path: Path, plain: TrainingPlan) -> None:
    fewer = {"num_sample_prompts": 0, "loop.target_global_batch": 2}
    base = plan_training(saved_recipe(tmp_path), changes=fewer)
    levers = {
        **fewer,
        "student.lora_rank": 4,
        "teacher_dtype": "float8",
        "loop.gradient_checkpointing": True,
        "loop.optimizer": "adamw8bit",
        "rewards.0.dtype": "bfloat16",
    }
    saved = plan_training(saved_recipe(tmp_path), changes=levers)
    assert saved.trainable_parameters < 0.2 * plain.trainable_parameters
    assert saved.gradients_gb == pytest.approx(4 * saved.trainable_parameters / 1e9)
    assert saved.activations_gb < 0.5 * base.activations_gb
    assert saved.parts_gb["optimizer states"] < 0.1 * base.parts_gb["optimizer states"]
    assert saved.parts_gb["nano-image, bfloat16"] == pytest.approx(
        0.5 * base.parts_gb["nano-image, float32"], rel=0.01
    )
    assert saved.parts_gb["teacher, float8"] < 0.6 * base.parts_gb["teacher, bfloat16"]
    sketch = sketch_stage2(read_recipe(saved_recipe(tmp_path), {"offload_teacher": True}), "gpu")
    offloaded = sketch.slots[0].frozen_bytes["teacher, offloaded (largest layers)"]
    assert offloaded < 0.2e9 * base.parts_gb["teacher, bfloat16"]


def test_low_rank_updates_are_those_of_the_training_code(tmp_path: Path) -> None:
    path = saved_recipe(tmp_path, "--student.lora-rank", "4")
    task, _ = build_task(load_config(Stage2Config, path))
    network: Any = sketch_stage2(read_recipe(path), "cpu").network
    ours, theirs = (
        {name: (p.shape, p.requires_grad) for name, p in module.named_parameters()}
        for module in (network, task.network)
    )
    assert ours == theirs


def test_a_float8_teacher_is_as_large_as_planned() -> None:
    teacher = load_model("nano-teacher", "teacher").unet
    planned = bytes_in_8_bits(build_shell("nano-teacher").unet)
    place_frozen(teacher, "float8", torch.device("cpu"), offload=False)
    assert tensor_bytes(teacher.parameters()) == pytest.approx(planned, rel=0.01)


def test_decoding_is_done_frame_by_frame(tmp_path: Path) -> None:
    recipe = read_recipe(saved_recipe(tmp_path))
    peaks = []
    for chunk in (1, 8):
        values = {**recipe.values, "decode_chunk_size": chunk}
        sketch = sketch_stage2(Recipe(values=values, kind="stage2"), "gpu")
        slot: Slot = sketch.slots[1]
        peaks.append(play(sketch, slot, recipe, "gpu", has_gradients=False).peak_bytes)
    assert peaks[0] < peaks[1]


def test_published_rewards_are_built_without_weights() -> None:
    """open_clip counts 986.11M for ViT-H-14; transformers' CLIPModel of the same sizes is as large."""
    sizes = {"hpsv2": 986_109_441, "pickscore": 986_109_441}
    for name, count in sizes.items():
        assert sum(p.numel() for p in reward_shell(name).parameters()) == count
    video = reward_shell("internvideo2", dtype=torch.bfloat16)
    assert 1.0e9 < sum(p.numel() for p in video.network.vision_encoder.parameters()) < 1.1e9
    assert {p.dtype for p in video.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in reward_shell("viclip").parameters()} == {"meta"}
    with pytest.raises(ValueError, match="expected one of hpsv2"):
        reward_shell("oracle")


def test_defaults_are_those_of_the_settings_classes() -> None:
    config = Stage2Config(loop=LoopConfig(output="x"))
    assert {name: getattr(config, name) for name in STAGE2_DEFAULTS} == STAGE2_DEFAULTS
    assert {f.name for f in dataclasses.fields(Stage2Config)} == STAGE2_KEYS
    assert {name: getattr(StudentConfig(), name) for name in STAGE2_STUDENT} == STAGE2_STUDENT
    reward = RewardConfig(name="hpsv2")
    assert {name: getattr(reward, name) for name in STAGE2_REWARD} == STAGE2_REWARD
    assert (ConsistencyConfig().target, ConsistencyConfig().loss) == ("student", "huber")
    assert LoopConfig(output="x").guard.action == "off"
