"""Stage 2: the distillation through the task's own path, rewards, slots, low-rank updates, what is saved."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints.lora import LoraError, export_lora, lora_modules, merge, read_lora
from hummingbird.config import ConfigError, load_config
from hummingbird.rewards import WeightSchedule, load_reward
from hummingbird.rewards.nano import nano_tokenizer
from hummingbird.rewards.weights import as_recipes
from tests.golden_files import golden_config, golden_tensors
from tests.pipelines.tiny import tiny_components
from tests.train import tiny_stage2
from tests.train.conftest import DEBUG
from tests.train.test_consistency import networks
from train import consistency_reward_task
from train.consistency import ConsistencyConfig, ConsistencyDraw
from train.consistency_reward_task import (
    LORA_FILE,
    ConsistencyRewardTask,
    add_lora,
    few_step_scheduler,
    few_step_student,
)
from train.loop import LoopConfig, accumulation_steps
from train.placement import check_layout, factors, place_frozen
from train.reward_task import NanoRewardConfig, retrieval_accuracy
from train.stage2 import Stage2Config, build_task, main, train_stage2

LAYOUT = (("consistency", "nano-image"), ("consistency", "nano-image"), ("nano-video",), ("nano-video",))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_stage2.save_tiny(tmp_path_factory.mktemp("stage2"))


def settings(tiny: dict[str, str], output: Path, *flags: str) -> Stage2Config:
    base = [word for pair in tiny.items() for word in pair]
    base += ["--loop.output", str(output), "--loop.sample-every", "0", "--loop.guard.action", "off"]
    base += ["--num-sample-prompts", "0", "--loop.tracker", "none", "--loop.best-metric", "None"]
    config: Stage2Config = load_config(Stage2Config, DEBUG / "stage2.yaml", [*base, *flags])
    return config


def batch_of(data: Any, slot: int = 0, step: int = 3, **changes: Any) -> dict[str, Any]:
    extra = {"global_step": step, "slot": slot, "num_slots": 4, "reward_scale": 1.0}
    return {**data.batch(slot), **extra, **changes}


# --- the distillation --------------------------------------------------------------------------------------


@pytest.mark.golden
def test_the_task_reproduces_the_recorded_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through ``losses``, as the loop calls it: the same loss and the same gradients as the original."""
    inputs = golden_tensors("distill_step/inputs")
    expected = golden_tensors("distill_step/outputs")
    student, teacher = networks()
    parts = {**tiny_components(few_step=False), "unet": teacher}
    parts["scheduler"] = LCMScheduler()
    task = ConsistencyRewardTask(
        student, HummingbirdPipeline(**parts), ConsistencyConfig(drop_unconditional_fps=True)
    )
    draw = ConsistencyDraw(index=inputs["index"], guidance_scale=inputs["w"], noise=inputs["noise"])
    monkeypatch.setattr(consistency_reward_task, "draw_consistency", lambda *_: draw)
    monkeypatch.setattr(task, "_unconditional", lambda: inputs["uncond_prompt_embeds"])
    student.zero_grad()
    batch = {"latents": inputs["latents"], "prompt_embeds": inputs["prompt_embeds"]}
    batch |= {"fps": golden_config("distill_step")["fps"], "global_step": 0, "slot": 0, "num_slots": 1}
    losses = task.losses(batch, torch.Generator())
    torch.testing.assert_close(losses["consistency_loss"], expected["loss_huber"][0], rtol=1e-4, atol=0)
    assert torch.equal(losses["loss"], losses["consistency_loss"])
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    for key in (key for key in expected if key.startswith("grad.")):
        torch.testing.assert_close(gradients[key.removeprefix("grad.")], expected[key], rtol=1e-3, atol=3e-4)
    student.zero_grad()


def test_a_new_student_is_what_its_source_was_at_any_guidance_scale() -> None:
    source = tiny_stage2.tiny_teacher().unet
    student = few_step_student(source, 16).eval()
    assert source.config.time_cond_proj_dim is None
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 3, 8, 8, generator=generator)
    prompt_embeds = torch.randn(2, 5, 16, generator=generator)
    call = {"fps": 8, "return_dict": False}
    with torch.no_grad():
        before = source(sample, torch.tensor([9, 999]), prompt_embeds, **call)[0]
        guidance = torch.randn(2, 16, generator=generator)
        after = student(sample, torch.tensor([9, 999]), prompt_embeds, timestep_cond=guidance, **call)[0]
    assert torch.equal(before, after)
    again = few_step_student(student, 256)  # goes on with the embedding that it has
    assert again.config.time_cond_proj_dim == 16
    assert all(p.requires_grad for p in again.parameters())


def test_sampling_follows_the_teachers_noise_schedule() -> None:
    teacher = tiny_stage2.tiny_teacher()
    scheduler = few_step_scheduler(teacher.scheduler, ConsistencyConfig())
    assert torch.equal(scheduler.alphas_cumprod, teacher.scheduler.alphas_cumprod)
    assert scheduler.alphas_cumprod[-1] == 0
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.original_inference_steps == 50


def test_target_of_averaged_weights_comes_from_the_loop(tiny: dict[str, str], tmp_path: Path) -> None:
    task, data = build_task(settings(tiny, tmp_path, "--consistency.target", "ema"))
    with pytest.raises(RuntimeError, match="no averaged weights"):
        task.losses(batch_of(data), torch.Generator().manual_seed(0))
    average = EMAModel(task.network.parameters(), decay=0.5)
    task.set_average(average)
    same = task.losses(batch_of(data), torch.Generator().manual_seed(0))["consistency_loss"]
    with torch.no_grad():
        for tensor in average.shadow_params:
            tensor.add_(0.1)
    kept = task.losses(batch_of(data), torch.Generator().manual_seed(0))["consistency_loss"]
    moved = task.losses(batch_of(data, step=4), torch.Generator().manual_seed(0))["consistency_loss"]
    assert torch.equal(same, kept)  # copied once in a step
    assert not torch.equal(same, moved)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_a_teacher_of_few_bits_says_nearly_the_same(dtype: Any) -> None:
    teacher = tiny_stage2.tiny_teacher().unet
    generator = torch.Generator().manual_seed(0)
    sample, embeds = (torch.randn(1, *shape, generator=generator) for shape in ((4, 3, 8, 8), (5, 16)))

    def ask(network: Any) -> Tensor:
        with torch.no_grad():
            inputs = (sample.to(network.dtype), torch.tensor([500]), embeds.to(network.dtype))
            return network(*inputs, fps=8, return_dict=False)[0].float()

    exact, plain = ask(teacher), copy.deepcopy(teacher).bfloat16()
    size = sum(p.numel() * p.element_size() for p in teacher.parameters())
    place_frozen(teacher, dtype, torch.device("cpu"), offload=False)
    assert sum(p.numel() * p.element_size() for p in teacher.parameters()) < 0.6 * size
    if dtype == "bfloat16":
        # How a CPU rounds on the way differs (0.015 to 0.025 in all); what the placing rounds does not.
        assert torch.equal(ask(teacher), ask(plain))
        teacher.float()
    error = (ask(teacher) - exact).norm() / exact.norm()
    assert 0 < error < (0.02 if dtype == "bfloat16" else 0.2)


# --- rewards and slots -------------------------------------------------------------------------------------


def test_rewards_reach_the_student_alone(tiny: dict[str, str], tmp_path: Path) -> None:
    task, data = build_task(settings(tiny, tmp_path, "--consistency.original-steps", "50"))
    frozen = [*task.teacher.parameters(), *task.vae.parameters(), *task.text_encoder.parameters()]
    frozen += [p for term in task.terms for p in term.reward.parameters()]
    before = [parameter.clone() for parameter in frozen]
    losses = task.losses(batch_of(data, slot=1), torch.Generator().manual_seed(0))
    assert "consistency_loss" not in losses  # nobody asked the teacher
    assert {"reward/nano-video", "reward_weight/nano-video", "reward_grad_norm/nano-video"} <= set(losses)
    assert losses["reward_grad_norm/nano-video"] > 0
    losses["loss"].backward()
    assert sum(float(p.grad.abs().sum()) for p in task.network.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    task.network.zero_grad()
    lower = task.losses(batch_of(data, slot=1, reward_scale=0.25), torch.Generator().manual_seed(0))
    assert lower["loss"].item() == pytest.approx(0.25 * losses["loss"].item(), rel=1e-5)
    assert float(lower["reward/nano-video"]) == float(losses["reward/nano-video"])
    for name in ("reward_weight/nano-video", "reward_grad_norm/nano-video"):
        assert float(lower[name]) == pytest.approx(0.25 * float(losses[name]), rel=1e-5)


def test_rewards_look_at_what_users_will_see(tiny: dict[str, str], tmp_path: Path) -> None:
    """Videos of a few steps: the pipeline's own to the last digits, and gradients reach the first step."""
    flags = ("--reward-steps", "3", "--consistency.original-steps", "8", "--loop.batch-size", "2")
    task, data = build_task(settings(tiny, tmp_path, *flags, "--reward-batch-size", "1"))
    network = task.network.eval()
    noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    prompt_embeds = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        made = task.function.generate(
            network, noise, 3, prompt_embeds, 8.0, torch.tensor([1.5]), torch.Generator().manual_seed(7)
        )
        pipe = task.pipeline(network)
        pipe.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 3, "guidance_scale": 1.5, "fps": 8.0, "output_type": "latent"}
        expected = pipe(
            prompt_embeds=prompt_embeds, latents=noise, generator=torch.Generator().manual_seed(7), **call
        )
    torch.testing.assert_close(made, torch.as_tensor(expected.frames), rtol=1e-4, atol=1e-4)

    seen = []
    term = task.terms[1]
    rate = term.reward.forward
    term.reward.forward = lambda frames, *a, **k: seen.append(frames.shape) or rate(frames, *a, **k)
    losses = task.losses(batch_of(data, slot=1), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert seen == [(1, 8, 3, 64, 64)]
    assert "consistency_loss" not in losses
    assert losses["reward_grad_norm/nano-video"] > 0
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0
    # Before its weight rises nobody makes videos for it, where the slot has another loss.
    later = replace(term, weight=WeightSchedule(end=1.0, first_step=9, last_step=9))
    task.terms, task.layout = (later,), ()
    assert set(task.losses(batch_of(data), torch.Generator().manual_seed(0))) == {"loss", "consistency_loss"}


def test_of_several_numbers_of_steps_one_is_drawn(tiny: dict[str, str], tmp_path: Path) -> None:
    flags = ("--reward-steps", "1", "3", "--loop.batch-size", "2", "--reward-batch-size", "1")
    task, data = build_task(settings(tiny, tmp_path, *flags))
    calls: list[int] = []
    task.network.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for seed in (0, 1, 2, 3, 0):
        calls.clear()
        losses = task.losses(batch_of(data, slot=1), torch.Generator().manual_seed(seed))
        counts.append((len(calls), float(losses["loss"].detach())))
    assert {count for count, _ in counts} == {1, 3}
    assert counts[0] == counts[-1]


def test_prompts_are_encoded_once(tiny: dict[str, str], tmp_path: Path) -> None:
    task, data = build_task(settings(tiny, tmp_path))
    asked: list[list[str]] = []
    for term in task.terms:
        embed = term.reward.embed_prompts
        term.reward.embed_prompts = lambda prompts, embed=embed: asked.append(list(prompts)) or embed(prompts)
    first = task.losses(batch_of(data, slot=1), torch.Generator().manual_seed(0))
    again = task.losses(batch_of(data, slot=1), torch.Generator().manual_seed(0))
    assert asked == [[caption] for caption in data.batch(1)["captions"]]
    assert torch.equal(first["reward/nano-video"], again["reward/nano-video"])


def test_slots_add_up_to_every_loss_once() -> None:
    parts = ["consistency", "nano-image", "nano-video"]
    for layout in ((), LAYOUT, (("consistency",), ("nano-image", "nano-video"), ("consistency",))):
        slots = 4 * max(len(layout), 1)
        check_layout(layout, parts, slots)
        shares = [factors(layout, parts, slot, slots) for slot in range(slots)]
        for name in parts:
            assert sum(share.get(name, 0.0) for share in shares) / slots == pytest.approx(1.0)
    assert factors(LAYOUT, parts, 2, 4) == {"nano-video": 2.0}


@pytest.mark.parametrize(
    ("layout", "slots", "message"),
    [
        ((("consistency", "hpsv2"),), 1, "got hpsv2, expected names among consistency, nano-image"),
        ((("consistency",),), 1, "nobody computes nano-image"),
        ((("consistency", "nano-image"), ()), 2, "slot without losses"),
        ((("consistency",), ("nano-image",)), 3, "got 2 slots for 3 batches per step"),
    ],
)
def test_layouts_that_cannot_be(layout: Any, slots: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layout(layout, ["consistency", "nano-image"], slots)


def with_layout(config: Stage2Config, layout: Any, batch_size: int = 1) -> Stage2Config:
    loop = replace(config.loop, batch_size=batch_size, target_global_batch=4, max_steps=2)
    return replace(config, layout=layout, loop=loop)


def _train_as(rank: int, world: int, port: int, config: Stage2Config) -> None:
    """In a process of its own: one rank of a run that talks through gloo."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    train_stage2(config)


def train_with_processes(config: Stage2Config, world: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked from a process that imported once, not from this one: autograd's threads do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_stage2"])
    workers = [context.Process(target=_train_as, args=(rank, world, port, config)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=250)
    alive = [worker for worker in workers if worker.is_alive()]
    for worker in alive:
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * world


@pytest.mark.parametrize("layout", [LAYOUT, ()], ids=["split", "together"])
def test_four_processes_take_the_step_that_one_takes(
    layout: Any, tiny: dict[str, str], tmp_path: Path
) -> None:
    """Ranks with different losses, or each with all of them: the weights of one process alone."""
    runs = {}
    for world in (4, 1):
        folder = tmp_path / str(world)
        at_once = ["--rewards.1.from-step", "0", "--rewards.1.full-step", "0"]
        config = with_layout(settings(tiny, folder, *at_once), layout)
        assert accumulation_steps(config.loop, world) == 4 // world
        if world == 1:
            train_stage2(config)
        else:
            train_with_processes(config, world)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        unet = HummingbirdPipeline.from_pretrained(folder / "model").unet
        runs[world] = (lines, unet.state_dict())
    start = build_task(with_layout(settings(tiny, tmp_path / "start"), layout))[0].network.state_dict()
    lines, alone = zip(*runs.values(), strict=True)
    assert max(float((alone[1][name] - start[name]).abs().max()) for name in start) > 1e-5  # it learned
    for name in start:
        torch.testing.assert_close(alone[0][name], alone[1][name], rtol=0, atol=2e-6, msg=name)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [1, 2]
    for left, right in zip(*lines, strict=True):
        figures = [key for key in right if "/" in key or key.endswith(("loss", "norm"))]
        assert {"consistency_loss", "reward/nano-image", "reward/nano-video"} <= set(figures)
        for key in figures:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-6), key


# --- low-rank updates --------------------------------------------------------------------------------------


def test_low_rank_updates_train_alone_and_survive_their_list(tiny: dict[str, str], tmp_path: Path) -> None:
    flags = ["--student.lora-rank", "2", "--student.lora-dropout", "0.0", "--loop.learning-rate", "1e-2"]
    config = with_layout(settings(tiny, tmp_path, *flags), (), batch_size=4)
    train_stage2(config)
    source = few_step_student(HummingbirdPipeline.from_pretrained(tiny["--teacher"]).unet, 256)
    merged = HummingbirdPipeline.from_pretrained(tmp_path / "model").unet.state_dict()
    tensors = torch.load(tmp_path / "model" / LORA_FILE, weights_only=True)
    assert isinstance(tensors, list)
    assert len(tensors) == 2 * len(lora_modules(source))
    recipes = list(as_recipes({str(i): tensor for i, tensor in enumerate(tensors)}).values())
    updates = read_lora(source, recipes)
    expected = dict(source.state_dict())
    base = as_recipes(source.state_dict())
    moved = 0
    for name, (up, down) in updates.items():
        key = f"{name}.weight"
        expected[key] = merge(base[key], up, down).load()
        moved += not torch.equal(expected[key], source.state_dict()[key])
    assert moved > 0.9 * len(updates)
    assert merged.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


def test_a_list_needs_an_update_of_every_layer() -> None:
    student = few_step_student(tiny_stage2.tiny_teacher().unet, 16)
    with pytest.raises(LoraError, match="has no update named 'default'"):
        export_lora(student)
    add_lora(student, 3, 0.0, seed=0)
    ups, downs = export_lora(student)[::2], export_lora(student)[1::2]
    assert all(not up.any() for up in ups)  # a new update is none
    assert all(down.shape[0] == 3 for down in downs)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


# --- what is saved, samples, settings ----------------------------------------------------------------------


def test_a_run_ends_in_a_few_step_pipeline_and_is_judged_by_a_reward_it_never_saw(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    """Trained on one reward, held out the other; samples, best checkpoint, guard's memory."""
    flags = ["--rewards.1.weight", "0", "--num-sample-prompts", "2", "--loop.max-steps", "2"]
    flags += ["--loop.best-metric", "held_out"]
    flags += ["--loop.guard.action", "warn", "--loop.guard.start-step", "9", "--loop.batch-size", "4"]
    flags += ["--held-out.0.name", "nano-video", "--held-out.0.checkpoint", tiny["--rewards.1.checkpoint"]]
    config = replace(settings(tiny, tmp_path, *flags), layout=())
    train_stage2(config)
    figures = json.loads((tmp_path / "samples/step-2/figures.json").read_text())
    assert figures["held_out"] == figures["held_out/nano-video"]
    assert figures["reward"] == pytest.approx(0.5 * figures["reward/nano-image"])
    assert -1 <= figures["reward/nano-image"] <= 1
    best = json.loads((tmp_path / "checkpoints/best.json").read_text())
    assert best == {"step": 2, "metric": "held_out", "value": figures["held_out"]}
    history = json.loads((tmp_path / "guard.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [2]
    pipe = HummingbirdPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.has_guidance_embedding
    assert pipe.default_call["num_inference_steps"] == 4
    assert pipe.default_call["guidance_scale"] == 1.5
    noise = torch.Generator().manual_seed(0)
    video = pipe("a red circle", num_inference_steps=2, generator=noise, output_type="np").frames
    assert video.shape == (1, 8, 64, 64, 3)
    assert pipe.scheduler.timesteps.tolist() == [999, 499]


def test_clips_of_26_frames(tiny: dict[str, str], tmp_path: Path) -> None:
    task, data = build_task(settings(tiny, tmp_path, "--num-frames", "26", "--call.fps", "13"))
    assert task.default_call["num_frames"] == 26
    assert task.default_call["fps"] == 13
    batch = batch_of(data, slot=1)
    assert batch["latents"].shape[2] == 26
    assert batch["fps"] == 13
    losses = task.losses(batch, torch.Generator().manual_seed(0))
    assert torch.isfinite(losses["loss"])


def test_settings_that_cannot_be(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, *flags: str) -> None:
        with pytest.raises((ConfigError, SystemExit)) as caught:  # a flag's error is usage: status 2
            build_task(settings(tiny, tmp_path, *flags))
        text = str(caught.value) if isinstance(caught.value, ConfigError) else capsys.readouterr().err
        assert message in re.sub(r"[\s│]+", " ", text)

    refused("is trained on; name a reward that is not", "--held-out.0.name", "nano-image",
            "--held-out.0.checkpoint", tiny["--rewards.0.checkpoint"])  # fmt: skip
    refused("judges sample clips, and none are asked for", "--loop.guard.action", "warn")
    refused("expected at least from_step", "--rewards.0.from-step", "9")
    refused("nano-video reads 8 frames, got num_frames=4", "--rewards.1.num-frames", "4")
    refused("needs clips of 8 frames or more, got num_frames=4", "--num-frames", "4")
    refused("here it is called student.model", "--loop.init-from", "x")
    refused("reward_steps: got 51, expected at most consistency.original_steps=50", "--reward-steps", "51")
    refused("call.num_inference_steps: got 4, expected at most", "--consistency.original-steps", "2")
    refused("reward_batch_size: got 1, expected at most", "--reward-batch-size", "1")
    refused("reward_batch_size: got 2, expected", "--reward-steps", "1", "--reward-batch-size", "2")
    student = few_step_student(tiny_stage2.tiny_teacher().unet, 16)
    few_step = copy.copy(tiny_stage2.tiny_teacher())
    few_step.unet = student
    with pytest.raises(ConfigError, match="got a few-step model"):
        ConsistencyRewardTask(student, few_step, ConsistencyConfig())
    refused("held_out: nano-video needs clips of 8 frames or more", "--num-frames", "4", "--held-out.0.name",
            "nano-video", "--held-out.0.checkpoint", tiny["--rewards.1.checkpoint"],
            "--rewards.1.weight", "0")  # fmt: skip
    refused("original_steps: got 300, whose grid ends at timestep 899 of 1000; expected a divisor",
            "--consistency.original-steps", "300")  # fmt: skip
    refused("original_steps: got 2000", "--consistency.original-steps", "2000")


def test_a_student_that_means_something_else_is_refused(tiny: dict[str, str], tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"prediction_type": "epsilon"}, "predicts epsilon, expected the teacher's v_prediction"),
        ({"beta_end": 0.02}, "another noise schedule than the teacher's"),
    ]
    for index, (change, message) in enumerate(changes):
        student = tiny_stage2.tiny_teacher()
        student.scheduler = DDIMScheduler.from_config(student.scheduler.config, **change)
        student.save_pretrained(tmp_path / str(index))
        with pytest.raises(ConfigError, match=f"student.model: .*{message}"):
            build_task(settings(tiny, tmp_path, "--student.model", str(tmp_path / str(index))))
    assert build_task(settings(tiny, tmp_path, "--student.model", tiny["--teacher"]))


def test_rewards_of_weight_zero_are_left_out_of_the_layout(tiny: dict[str, str], tmp_path: Path) -> None:
    config = settings(tiny, tmp_path, "--rewards.0.weight", "0")
    assert any("nano-image" in slot for slot in config.layout)
    task, _ = build_task(config)
    assert task.layout == (("consistency",), ("nano-video",))
    task, _ = build_task(settings(tiny, tmp_path, "--rewards.1.weight", "0"))
    assert task.layout == (("consistency", "nano-image"),)


def test_processes_that_share_layers_must_ask_alike(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.consistency_reward_task.DTensor", torch.Tensor)
    average = EMAModel([torch.nn.Parameter(torch.zeros(1))])
    task, _ = build_task(settings(tiny, tmp_path))
    with pytest.raises(ConfigError, match="with FSDP all processes have to ask the student equally often"):
        task.set_average(average)
    task.layout = ()
    task.set_average(average)
    task.reward_steps = (2, 4)
    with pytest.raises(ConfigError, match="give one number of steps"):
        task.set_average(average)


def test_where_no_reward_is_trained_a_rollback_lowers_the_rate(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LoopConfig] = []
    monkeypatch.setattr("train.stage2.run", lambda task, data, loop, config: seen.append(loop))
    config = settings(tiny, tmp_path, "--loop.guard.lowers", "reward_weight")
    train_stage2(config)
    train_stage2(replace(config, rewards=(), layout=()))
    assert [loop.guard.lowers for loop in seen] == ["reward_weight", "learning_rate"]


def test_help_and_errors_are_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--consistency.guidance-min",
        "--student.lora-rank",
        "--loop.guard.lowers",
        "--teacher-dtype",
    ):
        assert flag in text
    words = [str(DEBUG / "stage2.yaml"), "--teacher", str(tmp_path / "none"), "--loop.output", str(tmp_path)]
    assert main(words) == 1
    assert "teacher: cannot load" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("kind", "bars"), [("image", ("color", "background")), ("video", ("motion",))])
def test_shipped_rewards_find_the_right_caption(kind: Any, bars: tuple[str, ...]) -> None:
    """Loaded without a checkpoint; 16 distractors, half of the clips of combinations never trained on."""
    reward = load_reward(f"nano-{kind}")
    assert next(reward.network.parameters()).dtype == torch.float32
    config = load_config(NanoRewardConfig, DEBUG.parent / "train" / f"nano_reward_{kind}.yaml")
    figures = retrieval_accuracy(reward.network, nano_tokenizer(), replace(config, num_test_clips=64))
    for name in bars:
        assert figures[f"retrieval_{name}"] >= 0.95, figures
    folder = DEBUG.parents[1] / "hummingbird/nano/weights"
    files = [path for name in ("nano-image", "nano-video") for path in (folder / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_samples_made_one_by_one_are_those_made_at_once(tiny: dict[str, str], tmp_path: Path) -> None:
    figures = []
    for size in ("0", "1"):
        flags = ["--num-sample-prompts", "2", "--sample-batch-size", size]
        task, _ = build_task(settings(tiny, tmp_path / "run", *flags))
        folder = tmp_path / f"samples{size}"
        folder.mkdir()
        figures.append(task.sample(task.network.eval(), folder))
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
    assert {"reward/nano-image", "reward/nano-video", "held_out/oracle"} <= set(figures[0])
