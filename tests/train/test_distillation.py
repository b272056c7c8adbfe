"""The distillation task: who teaches what, when, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from hummingbird import HummingbirdPipeline
from hummingbird.config import ConfigError
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pruning import prune_unet
from hummingbird.pruning.features import capture_features, level_ends
from tests.train.conftest import recipe
from train.distillation import DistillationConfig, DistillationTask
from train.losses import guided
from train.stage1 import Stage1Config, StudentConfig, build_student, build_task, main

BOTH = {"output_weight": ((0, 1.0),), "feature_weight": ((0, 1.0),)}


@pytest.fixture(scope="module")
def teacher(parts: Path) -> HummingbirdPipeline:
    """The parts of tiny nano around a network with two blocks per level, which has blocks to lose."""
    pipe = HummingbirdPipeline.from_pretrained(parts / "teacher/model")
    torch.manual_seed(7)
    options = {**pipe.unet.config, "num_res_blocks": 2}
    pipe.register_modules(unet=UNetSpatioTemporalModel.from_config(options))
    for parameter in pipe.unet.parameters():  # layers that begin at zero would hide everything behind them
        torch.nn.init.normal_(parameter, std=0.1) if not parameter.any() else None
    return pipe


def make_task(
    teacher: HummingbirdPipeline, student: UNetSpatioTemporalModel | None = None, **changes: Any
) -> DistillationTask:
    student = prune_unet(teacher.unet, "0.7b")[0].requires_grad_(True) if student is None else student
    config = DistillationConfig(**{**BOTH, **changes})
    return DistillationTask(student, teacher, config, teacher.scheduler, gate_batch=None)


def make_batch(step: int = 0) -> dict[str, Any]:
    latents = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    captions = ["a red circle moving right on a black background", ""]
    return {"latents": latents, "captions": captions, "fps": 2.0, "global_step": step}


def losses(task: DistillationTask, step: int = 0) -> dict[str, torch.Tensor]:
    return task.losses(make_batch(step), torch.Generator().manual_seed(2))


def test_levels_are_compared_end_with_end(teacher: HummingbirdPipeline) -> None:
    student = prune_unet(teacher.unet, "0.7b")[0]
    assert level_ends(teacher.unet.config) == {
        "down0": "input_blocks.2",
        "down1": "input_blocks.5",
        "up1": "output_blocks.2",
        "up0": "output_blocks.5",
    }
    assert level_ends(student.config) == {
        "down0": "input_blocks.1",
        "down1": "input_blocks.3",
        "up1": "output_blocks.1",
        "up0": "output_blocks.3",
    }


def test_capturing_leaves_no_trace(teacher: HummingbirdPipeline) -> None:
    unet, names = teacher.unet, level_ends(teacher.unet.config)
    before = list(unet.state_dict())
    with capture_features(unet, names) as features:
        unet(torch.zeros(1, 2, 4, 8, 8), 5, torch.zeros(1, 3, 16))
    assert list(features) == list(names)
    assert features["down1"].shape == (4, 16, 4, 4)
    assert list(unet.state_dict()) == before
    assert not any(module._forward_hooks for module in unet.modules())
    with pytest.raises(RuntimeError), capture_features(unet, names):
        raise RuntimeError
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(teacher: HummingbirdPipeline) -> None:
    twin = UNetSpatioTemporalModel.from_config(teacher.unet.config)
    twin.load_state_dict(teacher.unet.state_dict())
    task = make_task(teacher, twin.eval())
    values = {name: value.detach() for name, value in losses(task).items()}
    assert float(values["output_loss"]) == 0.0
    assert float(values["feature_loss"]) == 0.0
    assert float(values["loss"]) == pytest.approx(float(values["mse"]))


def test_the_sum_is_the_weighted_parts_and_every_level_is_told(teacher: HummingbirdPipeline) -> None:
    weights = {
        "ground_truth_weight": ((0, 0.5),),
        "output_weight": ((0, 2.0),),
        "feature_weight": ((0, 3.0),),
    }
    values = {name: value.detach() for name, value in losses(make_task(teacher, **weights)).items()}
    levels = [float(values[f"feature_loss/{name}"]) for name in ("down0", "down1", "up1", "up0")]
    assert min(levels) > 0.0
    assert float(values["feature_loss"]) == pytest.approx(sum(levels) / 4)
    expected = 0.5 * values["mse"] + 2.0 * values["output_loss"] + 3.0 * values["feature_loss"]
    assert float(values["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_teacher_is_asked_only_while_it_has_weight(teacher: HummingbirdPipeline) -> None:
    task = make_task(teacher, output_weight=((2, 0.0), (4, 1.0)), feature_weight=((6, 0.0), (8, 1.0)))
    names = [set(losses(task, step)) for step in (0, 2, 3, 7)]
    assert names[0] == names[1] == {"loss", "mse"}
    assert names[2] == {"loss", "mse", "output_loss"}
    assert "feature_loss" in names[3]
    asked = []
    task.teacher.register_forward_hook(lambda *_: asked.append(1))
    losses(task, 0)
    assert asked == []


def test_training_leaves_the_teacher_alone_and_reaches_all_of_the_student(
    teacher: HummingbirdPipeline,
) -> None:
    task = make_task(teacher)
    before = {name: tensor.clone() for name, tensor in task.teacher.state_dict().items()}
    task.network.train()
    losses(task)["loss"].backward()
    assert not task.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.network.parameters())
    torch.optim.SGD(task.network.parameters(), lr=0.1).step()
    after = task.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_features_teach_even_alone(teacher: HummingbirdPipeline) -> None:
    task = make_task(teacher, ground_truth_weight=((0, 0.0),), output_weight=((0, 0.0),))
    losses(task)["loss"].backward()
    assert float(task.network.input_blocks[1][0].in_layers[2].weight.grad.abs().sum()) > 0.0


def test_the_guided_teacher_is_its_two_answers_combined(teacher: HummingbirdPipeline) -> None:
    task = make_task(teacher, guidance_scale=3.0)
    noisy, timesteps = make_batch()["latents"], torch.tensor([900, 300])
    embeds = task.encode_prompts(make_batch()["captions"])
    alphas_cumprod = teacher.scheduler.alphas_cumprod[timesteps]
    answer, features = task._ask_teacher(noisy, timesteps, embeds, 2.0, alphas_cumprod)
    with torch.no_grad():
        cond = teacher.unet(noisy, timesteps, embeds, fps=2.0).sample
        empty = task.encode_prompts(["", ""])
        uncond = teacher.unet(noisy, timesteps, empty, fps=2.0).sample
    torch.testing.assert_close(answer, guided(cond, uncond, 3.0), atol=1e-5, rtol=1e-4)
    assert float((answer - cond)[0].abs().max()) > 1e-4
    torch.testing.assert_close(answer[1], cond[1], atol=1e-5, rtol=1e-4)  # its caption is the empty one
    assert features.keys() == level_ends(teacher.unet.config).keys()


def test_precomputed_embeddings_give_the_same_losses(teacher: HummingbirdPipeline) -> None:
    task = make_task(teacher)
    batch = make_batch()
    expected = losses(task)["loss"]
    batch["prompt_embeds"] = task.encode_prompts(batch.pop("captions"))
    found = task.losses(batch, torch.Generator().manual_seed(2))["loss"]
    assert torch.equal(found, expected)


def test_checkpointed_gradients_are_the_same(teacher: HummingbirdPipeline) -> None:
    gradients = []
    for checkpointed in (False, True):
        task = make_task(teacher)
        if checkpointed:
            task.network.enable_gradient_checkpointing()
        task.network.train()
        losses(task)["loss"].backward()
        gradients.append([p.grad for p in task.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_student_of_another_prediction_type_hears_its_own_words(teacher: HummingbirdPipeline) -> None:
    """Of v, noise and clean latents the teacher gives the same picture, said in the student's type."""
    noisy, timesteps = make_batch()["latents"], torch.tensor([700, 300])
    found = {}
    for name in ("v_prediction", "sample"):
        scheduler = DDIMScheduler.from_config(teacher.scheduler.config, prediction_type=name)
        task = make_task(teacher)
        task.scheduler = scheduler
        embeds = task.encode_prompts(["", ""])
        alphas_cumprod = scheduler.alphas_cumprod[timesteps]
        found[name] = task._ask_teacher(noisy, timesteps, embeds, 2.0, alphas_cumprod)[0]
    alpha, sigma = (
        alphas_cumprod.sqrt().view(-1, 1, 1, 1, 1),
        (1 - alphas_cumprod).sqrt().view(-1, 1, 1, 1, 1),
    )
    torch.testing.assert_close(found["sample"], alpha * noisy - sigma * found["v_prediction"])


# --- the student, and what is refused ----------------------------------------------------------------------


def stage1(parts: Path, tmp_path: Path, *flags: str) -> Stage1Config:
    config: Stage1Config = recipe("stage1", parts, tmp_path, *flags)
    return config


def test_a_student_inherits_or_starts_from_nothing(
    parts: Path, tmp_path: Path, teacher: HummingbirdPipeline
) -> None:
    inherited = build_student(stage1(parts, tmp_path), teacher.unet)
    fresh = build_student(stage1(parts, tmp_path, "--student.random-weights", "True"), teacher.unet)
    again = build_student(stage1(parts, tmp_path, "--student.random-weights", "True"), teacher.unet)
    expected = prune_unet(teacher.unet, "0.7b")[0].state_dict()
    assert all(torch.equal(expected[name], value) for name, value in inherited.state_dict().items())
    assert fresh.state_dict().keys() == expected.keys()
    assert not torch.equal(fresh.input_blocks[0][0].weight, inherited.input_blocks[0][0].weight)
    assert torch.equal(fresh.input_blocks[0][0].weight, again.input_blocks[0][0].weight)
    assert all(p.requires_grad for p in inherited.parameters())


def test_a_student_can_be_a_folder(parts: Path, tmp_path: Path, teacher: HummingbirdPipeline) -> None:
    flags = ["--student.plan", "None", "--student.model", str(parts / "stage1/model")]
    student = build_student(stage1(parts, tmp_path, *flags), teacher.unet)
    trained = HummingbirdPipeline.from_pretrained(parts / "stage1/model").unet.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in student.state_dict().items())


def test_what_cannot_be_taught_is_refused_in_one_line(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).resolve().parents[2] / "configs/debug/stage1.yaml"
    given = ["--teacher", str(parts / "teacher/model"), "--loop.output", str(tmp_path)]
    given += ["--latents", str(parts / "latents.safetensors")]
    for flags, status, text in (
        (["--loop.init-from", "x"], 2, "here it is called student.model"),
        (["--num-sample-prompts", "0"], 2, "loop.guard: judges sample clips"),
        (["--teacher", str(tmp_path / "none")], 1, "teacher: cannot load"),
        (["--latents", str(tmp_path / "none")], 1, "latents: no file"),
        (["--student.plan", "0.8b"], 2, "plan: got '0.8b', expected 0.9b, 0.7b or an existing YAML file"),
        (["--diffusion.rescale-betas-zero-snr", "False"], 2, "another noise schedule than the teacher's"),
        (["--diffusion.prediction-type", "epsilon"], 2, "epsilon with zero terminal SNR"),
        (["--loop.batch-size", "3"], 2, "target_global_batch: got 4, expected a multiple of 3"),
    ):
        assert main([str(file), *given, *flags]) == status, flags
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert text in line, line
    with pytest.raises(ValueError, match="expected a plan or a model"):
        StudentConfig(model="x")
    with pytest.raises(ValueError, match="ascending steps"):
        DistillationConfig(output_weight=((5, 1.0), (5, 0.0)))


def test_another_schedule_is_fine_where_nobody_teaches(parts: Path, tmp_path: Path) -> None:
    flags = ["--diffusion.rescale-betas-zero-snr", "False", "--diffusion.prediction-type", "epsilon"]
    flags += ["--distillation.output-weight", "0", "0.0", "--distillation.feature-weight", "0", "0.0"]
    task, data = build_task(stage1(parts, tmp_path, *flags))
    values = task.losses({**data.batch(0), "global_step": 9}, torch.Generator().manual_seed(0))
    assert set(values) == {"loss", "mse"}
    assert float(task.scheduler.alphas_cumprod[-1]) > 0.0


def test_networks_of_other_widths_share_no_features(teacher: HummingbirdPipeline) -> None:
    wider = UNetSpatioTemporalModel.from_config({**teacher.unet.config, "model_channels": 16})
    with pytest.raises(ConfigError, match=r"levels have \(16, 32\) channels, the teacher's \(8, 16\)"):
        make_task(teacher, wider)
    make_task(teacher, wider, feature_weight=((0, 0.0),))
