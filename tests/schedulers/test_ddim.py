"""The teacher's sampler against the original's trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from hummingbird.checkpoints import unet_from_ldm
from hummingbird.schedulers import VideoCrafterDDIMScheduler
from tests.golden_files import golden_config, golden_tensors

TRACE = "ddim_trace"
RUNS = ["S5_scale0_eta0", "S5_scale0_eta1", "S5_scale1_eta0", "S5_scale1_eta1"]


@pytest.mark.golden
@pytest.mark.parametrize("steps", [5, 25, 50])
def test_schedule(steps):
    outputs = golden_tensors(f"{TRACE}/outputs")
    name = "S5_scale1_eta1" if steps == 5 else f"schedule{steps}"
    scheduler = VideoCrafterDDIMScheduler(use_scale=True)
    scheduler.set_timesteps(steps)
    timesteps = outputs[f"{name}.ddim_timesteps"]
    assert scheduler.timesteps.tolist() == timesteps.flip(0).tolist()
    previous = torch.cat([torch.zeros(1, dtype=torch.long), timesteps[:-1]])
    for ours, at, recorded in (
        (scheduler.alphas_cumprod, timesteps, "ddim_alphas"),
        (scheduler.alphas_cumprod, previous, "ddim_alphas_prev"),
        (scheduler.scale_arr, timesteps, "ddim_scale_arr"),
        (scheduler.scale_arr, previous, "ddim_scale_arr_prev"),
    ):
        torch.testing.assert_close(ours[at].double(), outputs[f"{name}.{recorded}"], rtol=1e-5, atol=1e-6)


def test_whole_schedules():
    scheduler = VideoCrafterDDIMScheduler()
    outputs = golden_tensors(f"{TRACE}/outputs")
    torch.testing.assert_close(scheduler.scale_arr, outputs["model.scale_arr"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        scheduler.alphas_cumprod, outputs["model.alphas_cumprod"], rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("steps", "expected"), [(7, list(range(995, 0, -142))), (3, [667, 334, 1]), (1, [1]), (999, None)]
)
def test_steps_that_do_not_divide_the_schedule(steps, expected):
    scheduler = VideoCrafterDDIMScheduler()
    scheduler.set_timesteps(steps)
    assert expected is None or scheduler.timesteps.tolist() == expected
    assert scheduler.timesteps[0] < 1000
    assert scheduler.num_inference_steps == len(scheduler.timesteps)


def test_uneven_steps_go_to_the_listed_timestep():
    """A perfect noise estimate must land on the trajectory of x_0 at the *listed* previous timestep."""
    generator = torch.Generator().manual_seed(0)
    original, noise = torch.randn(2, 1, 4, 2, 4, 4, generator=generator, dtype=torch.float64)
    for use_scale in (False, True):
        scheduler = VideoCrafterDDIMScheduler(use_scale=use_scale)
        scheduler.set_timesteps(7)
        sample = scheduler.add_noise(original, noise, scheduler.timesteps[:1])
        for index, timestep in enumerate(scheduler.timesteps):
            sample, estimate = scheduler.step(noise, timestep, sample, return_dict=False)
            torch.testing.assert_close(estimate, original, rtol=1e-3, atol=1e-3)
            previous = scheduler.timesteps[index + 1 : index + 2] if index < 7 else torch.tensor([0])
            expected = scheduler.add_noise(original, noise, previous)
            torch.testing.assert_close(sample, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("use_scale", [False, True])
def test_forward_process(use_scale):
    inputs, outputs = golden_tensors(f"{TRACE}/inputs"), golden_tensors(f"{TRACE}/outputs")
    scheduler = VideoCrafterDDIMScheduler(use_scale=use_scale)
    noisy = scheduler.add_noise(inputs["q_sample.x_start"], inputs["q_sample.noise"], inputs["q_sample.t"])
    recorded = outputs["q_sample.use_scale" if use_scale else "q_sample.no_scale"]
    torch.testing.assert_close(noisy, recorded, rtol=1e-4, atol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", RUNS)
@torch.no_grad()
def test_trace(name):
    config, inputs, outputs = (
        golden_config(TRACE),
        golden_tensors(f"{TRACE}/inputs"),
        golden_tensors(f"{TRACE}/outputs"),
    )
    run = next(run for run in config["runs"] if run["name"] == name)
    unet = unet_from_ldm(config["unet_config"], golden_tensors("unet_vc2_tiny/state_dict"))
    scheduler = VideoCrafterDDIMScheduler(use_scale=run["use_scale"])
    scheduler.set_timesteps(run["S"])
    sample = inputs["x_T"]
    for index, timestep in enumerate(scheduler.timesteps):
        unconditional, conditional = (
            unet(sample, timestep, inputs[context], fps=inputs["fps"], return_dict=False)[0]
            for context in ("uncond_context", "context")
        )
        noise_pred = unconditional + run["cfg"] * (conditional - unconditional)
        sample, original = scheduler.step(
            noise_pred,
            timestep,
            sample,
            eta=run["eta"],
            variance_noise=inputs[f"{name}.noise"][index],
            return_dict=False,
        )
        torch.testing.assert_close(sample, outputs[f"{name}.x_inter"][index + 1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(original, outputs[f"{name}.pred_x0"][index + 1], rtol=1e-3, atol=1e-3)


def test_equals_diffusers_where_both_apply():
    ours = VideoCrafterDDIMScheduler(prediction_type="v_prediction")
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    model_output, sample = torch.randn(2, 1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in ours.timesteps:
        noise = [torch.Generator().manual_seed(3) for _ in range(2)]
        left = ours.step(model_output, timestep, sample, eta=1.0, generator=noise[0]).prev_sample
        right = theirs.step(model_output, timestep, sample, eta=1.0, generator=noise[1]).prev_sample
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_save_and_load(tmp_path):
    VideoCrafterDDIMScheduler(use_scale=True, scale_b=0.5).save_pretrained(tmp_path)
    loaded = VideoCrafterDDIMScheduler.from_pretrained(tmp_path)
    assert (loaded.config.use_scale, loaded.config.scale_b, loaded.config.mid_step) == (True, 0.5, 400)
    assert loaded.scale_arr[-1] == 0.5


def test_timesteps_between_the_listed_ones():
    """Any timestep of the schedule steps to the listed one below it, 0 from the first one down."""
    scheduler = VideoCrafterDDIMScheduler()
    scheduler.set_timesteps(50)
    sample = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    alphas = scheduler.alphas_cumprod
    for timestep, previous in ((0, 0), (1, 0), (2, 1), (21, 1), (22, 21), (999, 981)):
        x_0 = (sample - (1 - alphas[timestep]) ** 0.5 * 0.1 * sample) / alphas[timestep] ** 0.5
        expected = alphas[previous] ** 0.5 * x_0 + (1 - alphas[previous]) ** 0.5 * 0.1 * sample
        torch.testing.assert_close(scheduler.step(0.1 * sample, timestep, sample).prev_sample, expected)


def test_other_schedulers_take_its_configuration_and_give_it_back(tmp_path):
    scheduler = VideoCrafterDDIMScheduler(use_scale=True, scale_b=0.5, prediction_type="v_prediction")
    for compatible in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        assert compatible in scheduler.compatibles
        back = VideoCrafterDDIMScheduler.from_config(compatible.from_config(scheduler.config).config)
        assert {name: back.config[name] for name in scheduler.config} == dict(scheduler.config)
    scheduler.save_pretrained(tmp_path)
    config = dict(scheduler.config)
    del config["_use_default_values"]
    assert VideoCrafterDDIMScheduler.from_pretrained(tmp_path).config == config


def test_trained_betas(tmp_path):
    scheduler = VideoCrafterDDIMScheduler(num_train_timesteps=2, trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    assert VideoCrafterDDIMScheduler.from_pretrained(tmp_path).betas.tolist() == scheduler.betas.tolist()


def test_misuse_is_refused():
    scheduler = VideoCrafterDDIMScheduler()
    zeros = torch.zeros(1, 4, 1, 2, 2)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(zeros, 981, zeros)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"num_inference_steps={steps}"):
            scheduler.set_timesteps(steps)
    scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="timestep=1000: expected 0 to 999"):
        scheduler.step(zeros, 1000, zeros)
    with pytest.raises(ValueError, match="both"):
        scheduler.step(zeros, 981, zeros, eta=1.0, generator=torch.Generator(), variance_noise=zeros)
    with pytest.raises(ValueError, match="clip"):
        scheduler.step(zeros, 981, zeros, use_clipped_model_output=True)
