"""Plans: the accounting on meta tensors against arithmetic, published counts, and the training code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from hummingbird.bench import bench_shell
from hummingbird.cli import main
from hummingbird.config import ConfigError, load_config, save_config
from hummingbird.models.shells import build_shell
from hummingbird.planning import sketches, training
from hummingbird.planning.inference import count_part, plan_inference
from hummingbird.planning.memory import KernelPaths, PeakMemory, tensor_bytes
from hummingbird.planning.recipe import DEFAULTS, STAGE1_KEYS, read_changes
from hummingbird.planning.training import plan_training
from train.decoder import DecoderConfig
from train.loop import LoopConfig
from train.nano import AutoencoderConfig
from train.stage1 import Stage1Config, build_task
from train.teacher import UNetConfig

DEBUG = Path(__file__).resolve().parents[2] / "configs" / "debug"


# --- accounting ---------------------------------------------------------------------------------------------


def test_the_peak_of_a_known_computation_is_exact() -> None:
    weight = torch.empty(256, 256, device="meta", requires_grad=True)
    x = torch.empty(8, 256, device="meta")
    row, square = 8 * 256 * 4, 256 * 256 * 4
    with PeakMemory([weight, x]) as memory:
        y = x @ weight  # kept for nothing: a product's backward needs its inputs only
        assert memory.live_bytes == row
        z = y.relu()
        assert memory.live_bytes == 2 * row
        del y
        assert memory.live_bytes == row
        z.sum().backward()
    assert memory.flops == 2 * 2 * 8 * 256 * 256
    assert memory.live_bytes == row + square  # z and the gradient
    assert square + 2 * row <= memory.peak_bytes <= square + 4 * row


def test_views_and_weights_count_once() -> None:
    weight = torch.empty(4, 4, device="meta")
    with PeakMemory([weight]) as memory:
        views = [weight.t(), weight.view(16), weight[0]]
        copy = weight.clone()
        more = [copy.t(), copy.view(2, 8)]
    assert memory.live_bytes == tensor_bytes([copy, *more]) == 64
    assert len(views) == 3


def test_what_is_remembered_of_an_operation_changes_nothing() -> None:
    """The second time round results come from memory, of operations that make new tensors alone."""
    weight = torch.empty(64, 64, device="meta", requires_grad=True)
    found = []
    for _ in range(2):
        with PeakMemory([weight]) as memory:
            y = (
                (torch.empty(32, 64, device="meta") @ weight)
                .unflatten(0, (4, 8))
                .transpose(0, 1)
                .reshape(32, 64)
            )
            z = torch.utils.checkpoint.checkpoint(F.silu, y, use_reentrant=False)
            z.add_(1.0).sum().backward()
            assert z.shape == y.shape
        found.append((memory.peak_bytes, memory.live_bytes, memory.flops))
        weight.grad = None
    assert found[0] == found[1]


def test_multi_head_attention_goes_the_paths_of_its_device() -> None:
    """It is one function to torch; its products and its scores are counted as any others."""
    layer = nn.MultiheadAttention(32, 4, device="meta")
    x = torch.empty(256, 2, 32, device="meta", requires_grad=True)
    kept = {}
    for fused in (False, True):
        with PeakMemory([x, *layer.parameters()]) as memory, KernelPaths(torch.bfloat16, fused):
            out = layer(x, x, x, need_weights=False)[0]
        kept[fused] = memory.live_bytes
        assert (out.dtype, out.shape) == (torch.bfloat16, x.shape)
    assert kept[False] - kept[True] > 2 * 4 * 256 * 256 * 2 / 2
    real = nn.MultiheadAttention(32, 4)
    y = torch.randn(8, 2, 32)
    with KernelPaths(fused_attention=False):
        ours = real(y, y, y, need_weights=False)[0]
    assert torch.allclose(ours, real(y, y, y, need_weights=False)[0], atol=1e-6)


def test_fused_attention_keeps_no_scores() -> None:
    query = torch.empty(1, 2, 512, 64, device="meta", requires_grad=True)
    kept = {}
    for fused in (False, True):
        with PeakMemory([query]) as memory, KernelPaths(fused_attention=fused):
            out = F.scaled_dot_product_attention(query, query, query)
        kept[fused] = memory.live_bytes
        assert out.shape == query.shape
        del out
    scores = 2 * 512 * 512 * 4
    assert kept[False] > scores > kept[True]


def test_autocast_casts_a_weight_once_and_norms_in_full() -> None:
    layer, norm = nn.Linear(64, 64, bias=False, device="meta"), nn.LayerNorm(64, device="meta")
    x = torch.empty(2, 64, device="meta")
    with KernelPaths(torch.bfloat16) as paths:
        y = layer(layer(x))
        assert y.dtype == torch.bfloat16
        assert norm(y).dtype == torch.float32
    assert len(paths.casts) == 1


# --- inference ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tflop", "passes"),
    [("videocrafter2", 12.58, 2), ("hummingbird-0.9b", 8.18, 1), ("hummingbird-0.7b", 7.96, 1)],
)
def test_flops_of_the_published_networks(name: str, tflop: float, passes: int) -> None:
    shell = build_shell(name, dtype=torch.float16)
    cost = count_part(shell, "denoise", 16, 320, 512)
    assert cost.flops / passes / 1e12 == pytest.approx(tflop, rel=0.01)
    if passes == 2:
        assert 16 * count_part(shell, "decode", 1, 320, 512).flops / 1e12 == pytest.approx(25.0, rel=0.01)


def test_saving_memory_saves_memory() -> None:
    plan = plan_inference("nano-teacher", num_frames=4, dtype=torch.float32)
    chunks = list(plan.decode_peak_gb)
    assert chunks == [4, 2, 1]
    assert list(plan.decode_peak_gb.values()) == sorted(plan.decode_peak_gb.values(), reverse=True)
    for chunk in chunks:
        peaks = [plan.peak_gb[mode][chunk] for mode in ("none", "fp8", "model", "group")]
        assert peaks[0] > peaks[1] > peaks[2] > peaks[3] or peaks[2] >= peaks[3]
    assert plan.cards[6] == {"mode": "none", "chunk": 4, "peak_gb": round(plan.peak_gb["none"][4], 3)}
    assert plan.tflop_total == pytest.approx(
        2 * plan.tflop["text"] + 50 * plan.tflop["one step"] + plan.tflop["decoding"]
    )
    assert json.loads(json.dumps(plan.to_dict()))["model"] == "nano-teacher"
    assert "what fits" in plan.to_text()


def test_a_size_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="expected multiples of 16"):
        plan_inference("nano", height=60)
    with pytest.raises(FileNotFoundError, match="expected videocrafter2"):
        plan_inference("no-such-model")


# --- training -----------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, *flags: str) -> Path:
    config = load_config(
        Stage1Config, DEBUG / "stage1.yaml", ["--loop.output", str(tmp_path / "run"), *flags]
    )
    path = tmp_path / "recipe.yaml"
    save_config(config, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> training.TrainingPlan:
    return plan_training(recipe(tmp_path_factory.mktemp("plan")), device="cpu")


def test_a_plan_follows_what_the_training_code_does(tmp_path: Path, plain: training.TrainingPlan) -> None:
    """The real task, with real tensors, followed by the same accounting: its losses are its own."""
    config = load_config(Stage1Config, recipe(tmp_path))
    task, data = build_task(config)
    batch: dict[str, Any] = {**data.batch(0), "global_step": 3}  # every loss has its weight
    network = task.network
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    known = [p for part in (network, task.teacher, task.vae, task.text_encoder) for p in part.parameters()]
    with PeakMemory([*known, *(p.grad for p in network.parameters())]) as memory:
        loss = task.losses(batch, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
    real = memory.peak_bytes / 1e9 + plain.gradients_gb
    planned = plain.step_gb - sum(plain.parts_gb.values())
    assert planned == pytest.approx(real, rel=0.15)
    assert plain.accumulation * memory.flops / 1e12 == pytest.approx(plain.tflop_per_step, rel=0.05)


def test_what_is_there_all_the_time(plain: training.TrainingPlan) -> None:
    weights = plain.parts_gb["weights, float32"]
    assert plain.trainable_parameters == 3_082_372
    assert weights == pytest.approx(4 * 3_082_372 / 1e9, rel=0.01)
    assert plain.parts_gb["optimizer states"] == pytest.approx(2 * weights, rel=0.01)
    assert plain.parts_gb["averaged weights (EMA)"] == weights
    assert plain.parts_gb["teacher, float32"] == pytest.approx(4 * 5_948_612 / 1e9, rel=0.01)
    assert (plain.batch_size, plain.accumulation, plain.hours) == (1, 4, None)
    assert plain.peak_gb == max(plain.step_gb, plain.sample_gb or 0.0)


def test_levers_do_what_they_promise(tmp_path: Path, plain: training.TrainingPlan) -> None:
    flags = ["--loop.gradient-checkpointing", "True", "--loop.optimizer", "adamw8bit"]
    saved = plan_training(recipe(tmp_path, *flags), device="gpu", num_processes=2, tflops=0.01)
    assert saved.activations_gb < 0.5 * plain.activations_gb
    assert (
        saved.tflop_per_step > 0.5 * 1.1 * plain.tflop_per_step
    )  # half the micro-steps, each with more work
    assert saved.accumulation == 2
    assert saved.parts_gb["optimizer states"] < 0.4 * plain.parts_gb["optimizer states"]
    assert saved.parts_gb["gradient buckets (DDP)"] == saved.gradients_gb
    assert saved.parts_gb["teacher, bfloat16"] == pytest.approx(0.5 * plain.parts_gb["teacher, float32"])
    assert saved.hours == pytest.approx(saved.tflop_per_step * saved.max_steps / 0.01 / 3600)
    assert "8-bit" in saved.to_text() or "bitsandbytes" in saved.to_text()


@pytest.mark.parametrize("name", ["nano_vae", "nano_decoder", "nano_teacher", "nano_teacher_spatial"])
def test_the_other_recipes(name: str) -> None:
    plan = plan_training(DEBUG / f"{name}.yaml", device="cpu", ceiling_tflops=0.1)
    assert plan.kind == name.removeprefix("nano_").removesuffix("_spatial")
    assert plan.step_gb > sum(plan.parts_gb.values()) > 0
    assert plan.tflop_per_step > 0
    assert plan.hours is not None
    assert plan.hours_floor is not None
    assert plan.hours > plan.hours_floor


def test_a_recipe_that_cannot_be_planned_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a multiple of 3"):
        plan_training(recipe(tmp_path), device="cpu", num_processes=3)
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot read it"):
        plan_training(tmp_path / "no.yaml")
    (tmp_path / "mixed.yaml").write_text("loop: {output: x}\nrewards: []\ndistillation: {}\n")
    with pytest.raises(ConfigError, match="got a recipe with distillation, which stage 2 does not have"):
        plan_training(tmp_path / "mixed.yaml")
    with pytest.raises(ConfigError, match=r"loop\.learning_rate: a plan does not read it"):
        plan_training(recipe(tmp_path), changes={"loop.learning_rate": 1.0})
    (tmp_path / "flat.yaml").write_text("loop: {output: x}\nrewards: {name: hpsv2}\n")
    with pytest.raises(ConfigError, match="rewards: expected a list"):
        plan_training(tmp_path / "flat.yaml")
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        read_changes(["loop.batch_size"])
    with pytest.raises(ConfigError, match="the recipe has no such entry"):
        plan_training(DEBUG / "stage2.yaml", changes={"rewards.7.dtype": "float32"})
    (tmp_path / "typo.yaml").write_text("loop: {output: x, mixed_precision: half}\nteacher: nano\n")
    with pytest.raises(ConfigError, match=r"mixed_precision: got 'half', expected one of no, fp16, bf16"):
        plan_training(tmp_path / "typo.yaml")
    with pytest.raises(ConfigError, match=r"expected one of train/stage1\.py"):
        plan_training(DEBUG / "nano_latents.yaml")


def test_defaults_are_those_of_the_settings_classes() -> None:
    def defaults(cls: type[Any]) -> dict[str, Any]:
        return {f.name: f.default for f in dataclasses.fields(cls)}

    loop = defaults(LoopConfig)
    assert {name: loop[name] for name in DEFAULTS} == DEFAULTS
    assert dataclasses.asdict(UNetConfig()) == sketches.TEACHER_UNET
    tiny = defaults(DecoderConfig)
    assert {name: tiny[name] for name in sketches.TINY_BLOCKS} == sketches.TINY_BLOCKS
    vae = defaults(AutoencoderConfig)
    assert {name: vae[name] for name in sketches.VAE} == sketches.VAE
    assert {f.name for f in dataclasses.fields(Stage1Config)} == STAGE1_KEYS
    stage1 = Stage1Config(loop=LoopConfig(output="x"))
    assert (stage1.teacher, stage1.student.plan, stage1.num_frames) == ("nano-teacher", "0.7b", 16)
    assert (stage1.num_sample_prompts, stage1.sample_prompts) == (16, ())
    d = stage1.distillation
    assert (d.output_weight, d.feature_weight) == (((0, 1.0),), ((0, 0.0),))
    assert (d.guidance_scale, d.teacher_dtype, d.offload_teacher) == (None, "auto", False)


# --- the commands -------------------------------------------------------------------------------------------


def test_the_plan_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(DEBUG / "nano_decoder.yaml"), "--gpus", "2", "--tflops", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["kind"], answer["device"], answer["num_processes"]) == ("decoder", "gpu", 2)
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]
    words = [
        "plan",
        str(DEBUG / "nano_decoder.yaml"),
        "--set",
        "loop.batch_size=2",
        "--tflops",
        "1",
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["batch_size"] == 2
    assert main(["plan", str(tmp_path / "no.yaml")]) == 1
    assert "cannot read it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["plan", "--gpus", "2"])
    assert usage.value.code == 2


def test_the_bench_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", "nano", "--frames", "2", "--steps", "1", "--repeats", "1", "--device", "cpu"]
    assert main([*words, "--no-end-to-end", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(answer["parts"]) == {"text", "denoise", "decode"}
    for part in answer["parts"].values():
        assert part["ratio"] == pytest.approx(part["seconds"] / part["floor_s"])
        assert part["fastest_s"] <= part["seconds"] <= part["slowest_s"]
    assert answer["peak_memory_gb"] > 0


def test_bench_counts_what_it_runs() -> None:
    shell, counts = build_shell("nano-teacher", "cpu"), {"text": 2, "denoise": 1, "decode": 1}
    call = {"num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 1}
    report = bench_shell(shell, model="nano-teacher", repeats=1, **call)
    with PeakMemory() as memory, torch.no_grad():
        shell.vae.decode(torch.zeros(2, 4, 8, 8))
    assert report.parts["decode"].flops == pytest.approx(memory.flops, rel=0.01)
    assert report.end_to_end_s > 0
    assert report.video_s == pytest.approx(sum(n * report.parts[k].seconds for k, n in counts.items()))
    assert "decode" in report.to_text()
