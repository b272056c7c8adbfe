"""Few-step sampling arithmetic against the original's recorded values."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler
from diffusers.schedulers import scheduling_lcm

from hummingbird.schedulers import (
    VideoCrafterDDIMScheduler,
    boundary_scalings,
    ddim_solver_step,
    few_step_timesteps,
    guidance_scale_embedding,
    predict_original_and_noise,
    pseudo_huber,
)
from tests.golden_files import golden_tensors

MATH = "guidance_and_distill_math"
TURBO = "t2vturbo_scheduler"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [999]), (2, [999, 499]), (4, [999, 759, 519, 279]), (8, [999, 879, 759, 639, 519, 399, 279, 159])],
)
def test_timesteps_are_the_originals(steps, expected):
    assert few_step_timesteps(steps) == expected


@pytest.mark.golden
def test_every_recorded_number_of_steps():
    recorded = {
        int(key.rsplit(".n", 1)[1]): value.tolist()
        for key, value in golden_tensors(f"{TURBO}/outputs").items()
        if key.startswith("timesteps.origin50")
    }
    assert len(recorded) > 5
    assert {steps: few_step_timesteps(steps) for steps in recorded} == recorded


@pytest.mark.parametrize(("steps", "origin"), [(0, 50), (51, 50), (4, 0), (4, 1001)])
def test_impossible_counts_are_refused(steps, origin):
    with pytest.raises(ValueError, match="steps"):
        few_step_timesteps(steps, origin)


@pytest.mark.golden
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_scheduler_follows_the_original(steps, monkeypatch):
    inputs, outputs = golden_tensors(f"{TURBO}/inputs"), golden_tensors(f"{TURBO}/outputs")
    scheduler = LCMScheduler()
    torch.testing.assert_close(scheduler.alphas_cumprod, outputs["alphas_cumprod"], rtol=1e-6, atol=0)
    scheduler.set_timesteps(timesteps=few_step_timesteps(steps))
    drawn = iter(range(steps))
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda *_, **__: inputs[f"n{steps}.noise.{next(drawn)}"]
    )
    sample = inputs["x_T"]
    for index, timestep in enumerate(scheduler.timesteps):
        model_output = inputs[f"n{steps}.model_output.{index}"]
        sample, denoised = scheduler.step(model_output, timestep, sample, return_dict=False)
        torch.testing.assert_close(denoised, outputs[f"n{steps}.denoised.{index}"], rtol=1e-5, atol=1e-4)
        if index < steps - 1:
            torch.testing.assert_close(sample, outputs[f"n{steps}.prev_sample.{index}"], rtol=1e-5, atol=1e-4)
    assert torch.equal(sample, denoised)  # the original, too, returns the last estimate


@pytest.mark.golden
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_lcm_scheduler_other_predictions(prediction_type, monkeypatch):
    inputs, outputs = golden_tensors(f"{TURBO}/inputs"), golden_tensors(f"{TURBO}/outputs")
    scheduler = LCMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(timesteps=few_step_timesteps(2))
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: inputs["n2.noise.0"])
    sample, denoised = scheduler.step(
        inputs["n2.model_output.0"], scheduler.timesteps[0], inputs["x_T"], return_dict=False
    )
    torch.testing.assert_close(denoised, outputs[f"{prediction_type}.n2.denoised.0"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sample, outputs[f"{prediction_type}.n2.prev_sample.0"], rtol=1e-5, atol=1e-4)


@pytest.mark.golden
def test_guidance_embedding():
    inputs, outputs = golden_tensors(f"{MATH}/inputs"), golden_tensors(f"{MATH}/outputs")
    embedding = guidance_scale_embedding(inputs["w"], 256)
    torch.testing.assert_close(embedding, outputs["guidance_embedding.dim256"], rtol=0, atol=2e-3)


def test_guidance_embedding_of_odd_width_and_bad_input():
    embedding = guidance_scale_embedding(torch.tensor([7.5, 8.0]), 33, dtype=torch.float16)
    assert embedding.shape == (2, 33)
    assert embedding.dtype == torch.float16
    assert embedding[:, -1].tolist() == [0.0, 0.0]
    assert torch.equal(embedding[:, :32], guidance_scale_embedding(torch.tensor([7.5, 8.0]), 32).half())
    with pytest.raises(ValueError, match="guidance_scale"):
        guidance_scale_embedding(torch.tensor(7.5))


@pytest.mark.golden
def test_boundary_scalings():
    inputs, outputs = golden_tensors(f"{MATH}/inputs"), golden_tensors(f"{MATH}/outputs")
    c_skip, c_out = boundary_scalings(inputs["boundary.t"])
    torch.testing.assert_close(c_skip, outputs["boundary.c_skip"], rtol=1e-6, atol=0)
    torch.testing.assert_close(c_out, outputs["boundary.c_out"], rtol=1e-6, atol=0)
    assert (c_skip[0].item(), c_out[0].item()) == (1.0, 0.0)  # the identity at timestep 0


@pytest.mark.golden
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_estimates(prediction_type):
    inputs, outputs = golden_tensors(f"{MATH}/inputs"), golden_tensors(f"{MATH}/outputs")
    original, noise = predict_original_and_noise(
        inputs["pred.model_output"],
        inputs["boundary.t"],
        inputs["pred.sample"],
        LCMScheduler().alphas_cumprod,
        prediction_type,
    )
    torch.testing.assert_close(original, outputs[f"pred.{prediction_type}.x0"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise, outputs[f"pred.{prediction_type}.noise"], rtol=1e-4, atol=1e-4)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction_type='velocity'"):
        predict_original_and_noise(
            torch.zeros(1, 1), torch.tensor([1]), torch.zeros(1, 1), torch.full((9,), 0.5), "velocity"
        )


@pytest.mark.golden
@pytest.mark.parametrize("use_scale", [False, True])
def test_solver_step(use_scale):
    inputs, outputs = golden_tensors(f"{MATH}/inputs"), golden_tensors(f"{MATH}/outputs")
    scheduler = VideoCrafterDDIMScheduler(use_scale=use_scale)
    previous = ddim_solver_step(
        inputs["solver.pred_x0"],
        inputs["solver.pred_noise"],
        inputs["solver.index"],
        scheduler.alphas_cumprod,
        scale_arr=scheduler.scale_arr if use_scale else None,
    )
    torch.testing.assert_close(
        previous, outputs[f"solver.scale{int(use_scale)}.x_prev"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.golden
def test_pseudo_huber():
    inputs, outputs = golden_tensors(f"{MATH}/inputs"), golden_tensors(f"{MATH}/outputs")
    loss = pseudo_huber(inputs["pred.model_output"], inputs["pred.sample"])
    torch.testing.assert_close(loss[None], outputs["huber_c0.001"], rtol=1e-5, atol=0)
