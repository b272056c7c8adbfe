"""Budgets, units, calibration clips, and a search that finds what a network does not need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hummingbird import HummingbirdPipeline, cli
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.nano import world
from hummingbird.pruning import Cost, Probe, PruningPlan, named_plan, search_plan
from hummingbird.pruning.calibration import Calibration, calibrate
from hummingbird.pruning.costs import measure_layers, total
from hummingbird.pruning.plan import TEMPORAL_CONV, droppable_layers, whole_plan
from hummingbird.pruning.search import Budget, Resource, plan_cost, random_plan, units
from hummingbird.pruning.surgery import student_of
from hummingbird.video_io import write_video
from tests.models.tiny import tiny_unet
from tests.pipelines.tiny import tiny_pipeline

PROBE = Probe(num_frames=2, height=4, width=4, num_tokens=5, repeats=0)
WHOLE = Cost(parameters=1000, flops=2000, latency_s=0.5)


# --- budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "text", "limit"),
    [
        ("parameters", "0.55", 550),
        ("parameters", "550", 550),
        ("parameters", "5.5e2", 550),
        ("flops", "0.25", 500),
        ("latency", "0.5", 0.25),
        ("latency", "120ms", 0.12),
        ("latency", "0.3s", 0.3),
    ],
)
def test_budgets(resource: Resource, text: str, limit: float) -> None:
    assert Budget.parse(resource, text, WHOLE).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("resource", "text", "reason"),
    [
        ("parameters", "half", "got 'half', expected a share such as 0.55, or a count"),
        ("parameters", "0", "got '0'"),
        ("parameters", "-1", "got '-1'"),
        ("parameters", "nan", "got 'nan'"),
        ("parameters", "120ms", "got '120ms'"),
        ("parameters", "1", "nothing to drop"),
        ("flops", "3000", "nothing to drop"),
        ("latency", "2", "or 120ms"),
        ("latency", "700ms", "nothing to drop"),
    ],
)
def test_budgets_that_make_no_sense(resource: Resource, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Budget.parse(resource, text, WHOLE)


def test_a_time_budget_needs_times() -> None:
    with pytest.raises(ValueError, match="nothing was timed"):
        Budget.parse("latency", "0.5", Cost(parameters=1, flops=1))


# --- units -------------------------------------------------------------------------------------------


def test_units_are_every_layer_the_middle_and_pairs_that_fit() -> None:
    unet = tiny_unet(num_res_blocks=2)
    whole = whole_plan(unet.config)
    blocks = units(whole, unet.config, "blocks")
    assert set(blocks) == {
        "middle_block",
        "input_blocks.1 + output_blocks.4",
        "input_blocks.1 + output_blocks.5",
        "input_blocks.2 + output_blocks.4",
        "input_blocks.2 + output_blocks.5",
        "input_blocks.5 + output_blocks.0",
        "input_blocks.5 + output_blocks.1",
    }
    layers = units(whole, unet.config, "layers")
    assert set(layers) == set(blocks) | set(droppable_layers(unet.config))
    costs = measure_layers(unet)
    for name, plan in layers.items():
        student = student_of(unet, plan)  # every one makes a network, of the size that its layers say
        assert sum(p.numel() for p in student.parameters()) == plan_cost(plan, costs).parameters, name


def test_dropping_a_whole_forgets_its_parts() -> None:
    unet = tiny_unet()
    plan = whole_plan(unet.config)
    for name in (f"middle_block.0.{TEMPORAL_CONV}", "middle_block.0", "middle_block.1"):
        plan = units(plan, unet.config, "layers")[name]
    assert plan.pruned_layers == ("middle_block.0", "middle_block.1")
    assert f"middle_block.0.{TEMPORAL_CONV}" not in units(plan, unet.config, "layers")
    assert units(plan, unet.config, "layers")["middle_block"].pruned_layers == ()


# --- the search --------------------------------------------------------------------------------------

NEEDLESS = ("middle_block.1", "middle_block.2", "input_blocks.3.1", f"output_blocks.0.0.{TEMPORAL_CONV}")


def unet_with_needless_layers() -> UNetSpatioTemporalModel:
    """Layers whose last projection is zero change nothing; any other does."""
    unet = tiny_unet()
    with torch.no_grad():
        for name in NEEDLESS:
            layer = unet.get_submodule(name)
            last = layer.conv4[-1] if name.endswith(TEMPORAL_CONV) else layer.proj_out
            last.weight.zero_()
            last.bias.zero_()
    return unet


def clips_for(unet: UNetSpatioTemporalModel, seed: int = 0) -> Calibration:
    """Clips whose noise the unpruned network predicts without an error."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, 2, 4, 4, generator=generator)
    embeds = torch.randn(2, 5, 24, generator=generator)
    timesteps = torch.tensor([250, 750])
    with torch.no_grad():
        target = unet(noisy, timesteps, embeds, fps=8.0).sample
    return Calibration(
        noisy=noisy, timesteps=timesteps, target=target, prompt_embeds=embeds, fps=8.0, guidance_scale=1.0
    )


def test_a_search_drops_what_is_not_needed_and_stops_there() -> None:
    unet = unet_with_needless_layers().train()
    weights = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    costs = measure_layers(unet, PROBE)
    whole = total(costs.values())
    needless = sum(costs[name].parameters for name in NEEDLESS)
    lines: list[str] = []
    unet.eval()
    clips = clips_for(unet)
    unet.train()
    budget = Budget(resource="parameters", limit=whole.parameters - needless)
    found = search_plan(unet, clips, budget, costs, progress=lines.append)
    assert set(found.best.plan.pruned_layers) == set(NEEDLESS)
    assert found.best.plan.middle_block
    assert found.best.loss < 1e-10
    assert found.best.cost.parameters == budget.limit
    assert len(found.steps) == len(NEEDLESS) == len(lines) - 2
    assert {unit.unit for unit in found.sensitivities[: len(NEEDLESS)]} == set(NEEDLESS)
    assert found.sensitivities[len(NEEDLESS)].loss > 1e-6
    # lazily: each step measured the layer that it dropped, and no other
    assert found.num_evaluations <= 1 + len(found.sensitivities) + len(NEEDLESS) + len(found.published)
    assert unet.training
    assert all(torch.equal(tensor, weights[key]) for key, tensor in unet.state_dict().items())
    assert json.loads(json.dumps(found.to_dict()))["best"]["loss"] == found.best.loss
    assert "searched (chosen)" in found.to_text()


def test_a_published_plan_under_the_budget_is_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is better than what the search came to, it is taken."""
    from hummingbird.pruning import search

    unet = tiny_unet(num_res_blocks=2)
    costs = measure_layers(unet, PROBE)
    fixed = named_plan("0.7b", unet.config)
    limit = plan_cost(fixed, costs).parameters
    found = search_plan(unet, clips_for(unet), Budget(resource="parameters", limit=limit), costs, "blocks")
    (published,) = [trial for trial in found.published if trial.name == "0.7b"]
    assert found.best.loss == min(found.steps[-1].loss, published.loss)
    monkeypatch.setattr(search, "_descend", lambda *args: [found.whole.__class__(
        name="bad", plan=fixed, loss=1e9, cost=published.cost)])  # fmt: skip
    again = search_plan(unet, clips_for(unet), Budget(resource="parameters", limit=limit), costs, "blocks")
    assert again.best == published


def test_a_budget_out_of_reach_is_refused_before_anything_runs() -> None:
    unet = tiny_unet()
    costs = measure_layers(unet, PROBE)
    budget = Budget(resource="flops", limit=100)
    with pytest.raises(ValueError, match=r"by dropping blocks the smallest network here has"):
        search_plan(unet, None, budget, costs, "blocks")  # type: ignore[arg-type]


def test_random_plans_have_the_size_and_vary() -> None:
    unet = tiny_unet(num_res_blocks=2)
    costs = measure_layers(unet, PROBE)
    budget = Budget(resource="parameters", limit=0.6 * total(costs.values()).parameters)
    rng = np.random.default_rng(0)
    plans = [random_plan(unet.config, costs, budget, rng, least=0.9) for _ in range(5)]
    assert len(set(plans)) > 3
    for plan in plans:
        assert 0.9 * budget.limit <= plan_cost(plan, costs).parameters <= budget.limit
        plan.student_config(unet.config)
    again = random_plan(unet.config, costs, budget, np.random.default_rng(0), least=0.9)
    assert again == plans[0]


# --- calibration clips -------------------------------------------------------------------------------

CALL = {"num_frames": 3, "height": 16, "width": 24, "fps": 8}


@pytest.fixture(scope="module")
def pipe() -> HummingbirdPipeline:
    return tiny_pipeline(few_step=False, default_call=CALL)


def write_clips(folder: Path, count: int, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        frames = np.broadcast_to(rng.integers(0, 255, (1, 1, 1, 3), dtype=np.uint8), (num_frames, 32, 64, 3))
        write_video(frames, folder / f"{index}.mp4", fps=16)
        (folder / f"{index}.txt").write_text("a red circle\n")


def test_clips_of_a_folder(pipe: HummingbirdPipeline, tmp_path: Path) -> None:
    write_clips(tmp_path, 3, num_frames=6)
    clips = calibrate(pipe, str(tmp_path), num_clips=2, seed=0)
    assert clips.noisy.shape == (2, 4, 3, 8, 12)
    assert sorted(clips.timesteps.tolist()) == [250, 750]
    assert clips.fps == 8
    # the target is the velocity of these latents: at zero signal-to-noise it is the clean latents, reversed
    alphas = pipe.scheduler.alphas_cumprod[clips.timesteps].view(-1, 1, 1, 1, 1)
    clean = alphas.sqrt() * clips.noisy - (1 - alphas).sqrt() * clips.target
    frames = clean.transpose(1, 2).flatten(0, 1)
    assert torch.allclose(frames[0], frames[2], atol=1e-1)  # a still clip
    assert clips.loss(pipe.unet) > 0
    again = calibrate(pipe, str(tmp_path), num_clips=2, seed=0)
    assert torch.equal(again.noisy, clips.noisy)
    (tmp_path / "1.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.mp4 has no caption"):
        calibrate(pipe, str(tmp_path), num_clips=2, seed=0)


def test_clips_that_are_too_short(pipe: HummingbirdPipeline, tmp_path: Path) -> None:
    write_clips(tmp_path, 1, num_frames=4)
    with pytest.raises(ValueError, match="none of them with 3 frames at 8 per second"):
        calibrate(pipe, str(tmp_path), num_clips=2, seed=0)


def test_stored_latents(pipe: HummingbirdPipeline, tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    latents = torch.randn(5, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0)).half()
    captions = json.dumps(["a red circle"] * 5)
    save_file({"latents": latents}, path, metadata={"captions": captions, "fps": "12"})
    clips = calibrate(pipe, str(path), num_clips=4, seed=0)
    assert clips.noisy.shape == (4, 4, 3, 8, 12)
    assert clips.fps == 12
    save_file({"latents": latents}, path)
    with pytest.raises(ValueError, match="expected the tensor latents and metadata captions and fps"):
        calibrate(pipe, str(path), num_clips=4, seed=0)
    save_file({"latents": latents[:, :, :3].contiguous()}, path, metadata={"captions": captions, "fps": "12"})
    with pytest.raises(ValueError, match=r"has latents of shape \(4, 3, 3, 8, 12\)"):
        calibrate(pipe, str(path), num_clips=4, seed=0)


def test_rendered_clips_fit_the_world_only(pipe: HummingbirdPipeline) -> None:
    with pytest.raises(ValueError, match="moving-shapes has 64x64 pixels, this model makes 16x24"):
        calibrate(pipe, "moving-shapes", num_clips=2, seed=0)
    with pytest.raises(FileNotFoundError, match="data: got 'nowhere'"):
        calibrate(pipe, "nowhere", num_clips=2, seed=0)


def test_the_embedded_model_denoises_rendered_clips() -> None:
    """Rendering, encoding, captions and targets are what the model was trained on, or its error is large."""
    nano = HummingbirdPipeline.from_pretrained("nano-teacher")
    clips = calibrate(nano, "moving-shapes", num_clips=4, seed=0)
    assert clips.noisy.shape == (4, 4, world.NUM_FRAMES, 16, 16)
    assert clips.fps == world.FPS
    nano.unet.eval()
    loss = clips.loss(nano.unet)
    assert loss < 0.1
    assert clips.loss(nano.unet, batch_size=3) == pytest.approx(loss, rel=1e-4)
    assert clips.loss(student_of(nano.unet, named_plan("0.7b", nano.unet.config))) > 3 * loss


# --- the command -------------------------------------------------------------------------------------


def test_the_command_prunes_and_searches(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path, 2, num_frames=6)
    common = ["--device", "cpu", "--no-timing", "--json"]
    words = ["prune", "--model", str(tiny_model), "--plan", "0.7b", "--to", str(tmp_path / "a"), *common]
    assert cli.main(words) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["to"] == str(tmp_path / "a")
    assert answer["plan"]["middle_block"] is False
    assert answer["search"] is None
    assert answer["after"]["parameters"] < answer["before"]["parameters"]
    assert HummingbirdPipeline.from_pretrained(tmp_path / "a").unet.config.has_middle_block is False
    assert cli.main(words) == 1  # never over a model that is there
    assert "not empty" in capsys.readouterr().err
    words = ["prune", "--model", str(tiny_model), "--search",
             "--budget-parameters", "0.8", "--granularity", "blocks", "--num-clips", "1",
             "--data", str(tmp_path), "--to", str(tmp_path / "b"), *common]  # fmt: skip
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out.splitlines()[-1])
    assert answer["after"]["parameters"] <= 0.8 * answer["before"]["parameters"]
    assert answer["search"]["best"]["plan"] == answer["plan"]
    assert "skipped alone" in printed.err
    assert json.loads((tmp_path / "b" / "pruning.json").read_text()) == {
        key: value for key, value in answer.items() if key != "to"
    }
    # the plan that was found is a plan like any other
    words = ["prune", "--model", str(tiny_model), "--plan", str(tmp_path / "b" / "plan.yaml"),
             "--to", str(tmp_path / "c"), *common]  # fmt: skip
    assert cli.main(words) == 0
    same = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert same["after"] == answer["after"]


@pytest.mark.parametrize(
    "words",
    [
        ["--plan", "0.7b"],
        ["--to", "x"],
        ["--plan", "0.7b", "--search", "--to", "x"],
        ["--search", "--to", "x"],
        ["--plan", "0.7b", "--budget-flops", "0.5", "--to", "x"],
        ["--search", "--budget-flops", "0.5", "--budget-parameters", "0.5", "--to", "x"],
        ["--search", "--budget-latency", "0.5", "--no-timing", "--to", "x"],
        ["--search", "--budget-flops", "0.5", "--model", "some/folder", "--to", "x"],
        ["--search", "--budget-flops", "0.5", "--granularity", "atoms", "--to", "x"],
    ],
    ids=" ".join,
)
def test_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["prune", *words])
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_bad_plan_or_budget_leaves_nothing(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["prune", "--model", str(tiny_model), "--device", "cpu", "--to", str(tmp_path / "a")]
    assert cli.main([*common, "--plan", "0.8b"]) == 1
    assert "expected 0.9b, 0.7b or an existing YAML file" in capsys.readouterr().err
    assert cli.main([*common, "--search", "--budget-flops", "7", "--data", str(tmp_path), "--no-timing"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert not list(tmp_path.iterdir())


def test_plans_are_values() -> None:
    plan = PruningPlan(input_blocks=(0, 1), middle_block=False, output_blocks=(0, 1))
    assert plan == PruningPlan(input_blocks=(0, 1), middle_block=False, output_blocks=(0, 1))
    with pytest.raises(AttributeError):
        plan.middle_block = True  # type: ignore[misc]
