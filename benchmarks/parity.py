"""How far are our numbers from the original's? One row per recorded value; the last line is JSON.

    python benchmarks/parity.py [--reference FOLDER] [--json]

FOLDER holds the reference folders (``unet_vc2_tiny``, ``vae_tiny``, ...); without it the copies in
tests/goldens and, where it is there, ../shared/reference/unet/visible are read. A folder that is missing is
reported as such.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import LCMScheduler
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file

from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints import text_encoder_from_open_clip, unet_from_ldm, vae_from_ldm
from hummingbird.schedulers import (
    VideoCrafterDDIMScheduler,
    boundary_scalings,
    ddim_solver_step,
    few_step_timesteps,
    guidance_scale_embedding,
    predict_original_and_noise,
    pseudo_huber,
)

ROOT = Path(__file__).parent.parent
DEFAULT_FOLDERS = (
    ROOT.parent / "shared" / "reference" / "unet" / "visible",
    ROOT / "tests" / "goldens" / "unet",
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison; it passes within ``tolerance * (1 + |value|)`` everywhere."""

    golden: str
    value: str
    max_abs_diff: float
    largest: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Reference:
    """Recorded folders."""

    folders: tuple[Path, ...]

    def path(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(name)

    def config(self, name: str) -> dict[str, Any]:
        return json.loads(self.path(f"{name}/config.json").read_text())

    def tensors(self, name: str) -> Tensors:
        return load_file(self.path(f"{name}.safetensors"))

    def names(self, prefix: str) -> list[str]:
        found = {path.name for folder in self.folders for path in folder.glob(f"{prefix}*") if path.is_dir()}
        return sorted(found)


def row(golden: str, value: str, ours: torch.Tensor, recorded: torch.Tensor, tolerance: float) -> Row:
    ours, recorded = ours.detach().double(), recorded.double()
    difference = (ours - recorded).abs()
    passed = bool((difference <= tolerance * (1 + recorded.abs())).all())
    return Row(golden, value, difference.max().item(), recorded.abs().max().item(), tolerance, passed)


def unets(reference: Reference) -> Iterator[Row]:
    for name in reference.names("unet_"):
        inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
        unet = unet_from_ldm(reference.config(name)["unet_config"], reference.tensors(f"{name}/state_dict"))
        for case in sorted(key.removesuffix(".output") for key in outputs if key.endswith(".output")):
            fps = case_fps(reference, name, case, inputs)
            output = unet(
                inputs[f"{case}.x"],
                inputs[f"{case}.timesteps"],
                inputs[f"{case}.context"],
                timestep_cond=inputs.get(f"{case}.timestep_cond"),
                return_dict=False,
                **fps,
            )[0]
            yield row(name, case, output, outputs[f"{case}.output"], 5e-5)


def case_fps(reference: Reference, name: str, case: str, inputs: Tensors) -> dict[str, Any]:
    """Return how a case gives the frame rate: as a tensor, as a whole number ("int 8"), or not at all."""
    if f"{case}.fps" in inputs:
        return {"fps": inputs[f"{case}.fps"]}
    described = reference.config(name)["cases"][int(case.removeprefix("case"))]["kwargs"]["fps"]
    kind, _, value = described.partition(" ")
    return {"fps": int(value)} if kind == "int" else {}


def vaes(reference: Reference) -> Iterator[Row]:
    for name in reference.names("vae_"):
        inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
        vae = vae_from_ldm(reference.config(name), reference.tensors(f"{name}/state_dict"))
        posterior = vae.encode(inputs["x"]).latent_dist
        yield row(name, "moments", posterior.parameters, outputs["moments"], 1e-4)
        yield row(name, "decode_z", vae.decode(inputs["z"]).sample, outputs["decode_z"], 1e-4)
        frames = inputs["latents"][0].transpose(0, 1) / vae.config.scaling_factor
        video = vae.decode(frames).sample.transpose(0, 1)[None]
        yield row(name, "decode video", video, outputs["decode_first_stage_2DAE"], 1e-4)


def text_encoders(reference: Reference) -> Iterator[Row]:
    for name in reference.names("text_encoder"):
        inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
        encoder = text_encoder_from_open_clip(reference.config(name), reference.tensors(f"{name}/state_dict"))
        yield row(name, "penultimate", encoder(inputs["tokens"])[0], outputs["penultimate"], 1e-4)


def few_step_scheduler(reference: Reference) -> Iterator[Row]:
    name = "t2vturbo_scheduler"
    inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
    config = reference.config(name)
    for steps in config["steps"]:
        scheduler = LCMScheduler()
        scheduler.set_timesteps(timesteps=few_step_timesteps(steps, config["lcm_origin_steps"]))
        sample, samples, estimates = inputs["x_T"], [], []
        noise = iter([inputs[f"n{steps}.noise.{index}"] for index in range(steps if steps > 1 else 0)])
        with mock.patch.object(scheduling_lcm, "randn_tensor", side_effect=noise):
            for index, timestep in enumerate(scheduler.timesteps):
                model_output = inputs[f"n{steps}.model_output.{index}"]
                sample, estimate = scheduler.step(model_output, timestep, sample, return_dict=False)
                samples.append(sample)
                estimates.append(estimate)
        recorded = [outputs[f"n{steps}.denoised.{index}"] for index in range(steps)]
        yield row(name, f"{steps} steps, denoised", torch.stack(estimates), torch.stack(recorded), 1e-5)
        if steps > 1:
            recorded = [outputs[f"n{steps}.prev_sample.{index}"] for index in range(steps - 1)]
            yield row(name, f"{steps} steps, samples", torch.stack(samples[:-1]), torch.stack(recorded), 1e-5)


def distillation_math(reference: Reference) -> Iterator[Row]:
    name = "guidance_and_distill_math"
    inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
    for key in sorted(key for key in outputs if key.startswith("guidance_embedding.dim")):
        embedding = guidance_scale_embedding(inputs["w"], int(key.rsplit("dim", 1)[1]))
        yield row(name, key, embedding, outputs[key], 2e-3)
    for value, ours in zip(("c_skip", "c_out"), boundary_scalings(inputs["boundary.t"]), strict=True):
        yield row(name, value, ours, outputs[f"boundary.{value}"], 1e-6)
    alphas_cumprod = LCMScheduler().alphas_cumprod
    for kind in ("epsilon", "sample", "v_prediction"):
        output, timesteps, sample = inputs["pred.model_output"], inputs["boundary.t"], inputs["pred.sample"]
        estimates = predict_original_and_noise(output, timesteps, sample, alphas_cumprod, kind)
        for value, ours in zip(("x0", "noise"), estimates, strict=True):
            yield row(name, f"{kind} -> {value}", ours, outputs[f"pred.{kind}.{value}"], 1e-4)
    for scaled in (0, 1):
        previous = ddim_solver_step(
            inputs["solver.pred_x0"],
            inputs["solver.pred_noise"],
            inputs["solver.index"],
            alphas_cumprod,
            scale_arr=VideoCrafterDDIMScheduler().scale_arr if scaled else None,
        )
        yield row(
            name, f"solver, use_scale {scaled}", previous, outputs[f"solver.scale{scaled}.x_prev"], 1e-4
        )
    loss = pseudo_huber(inputs["pred.model_output"], inputs["pred.sample"])
    yield row(name, "pseudo-Huber", loss[None], outputs["huber_c0.001"], 1e-5)


def teacher_sampling(reference: Reference) -> Iterator[Row]:
    name = "ddim_trace"
    config = reference.config(name)
    inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
    unet = unet_from_ldm(config["unet_config"], reference.tensors("unet_vc2_tiny/state_dict"))
    for run in config["runs"]:
        scheduler = VideoCrafterDDIMScheduler(use_scale=run["use_scale"])
        scheduler.set_timesteps(run["S"])
        sample, samples, estimates = inputs["x_T"], [], []
        for index, timestep in enumerate(scheduler.timesteps):
            unconditional, conditional = (
                unet(sample, timestep, inputs[context], fps=inputs["fps"], return_dict=False)[0]
                for context in ("uncond_context", "context")
            )
            guided = unconditional + run["cfg"] * (conditional - unconditional)
            noise = inputs[f"{run['name']}.noise"][index]
            sample, estimate = scheduler.step(
                guided, timestep, sample, eta=run["eta"], variance_noise=noise, return_dict=False
            )
            samples.append(sample)
            estimates.append(estimate)
        for value, ours in (("x_inter", samples), ("pred_x0", estimates)):
            recorded = outputs[f"{run['name']}.{value}"][1:]
            yield row(name, f"{run['name']}, {value}", torch.stack(ours), recorded, 1e-3)


def pipelines(reference: Reference) -> Iterator[Row]:
    for name in reference.names("pipeline_"):
        config = reference.config(name)
        inputs, outputs = reference.tensors(f"{name}/inputs"), reference.tensors(f"{name}/outputs")
        unet_name = config["unet"].split("/")[1]
        pipe = HummingbirdPipeline(
            vae=vae_from_ldm(
                {"ddconfig": config["vae_ddconfig"], "embed_dim": config["vae_embed_dim"]},
                reference.tensors(f"{name}/vae_state_dict"),
            ),
            text_encoder=None,
            tokenizer=None,
            unet=unet_from_ldm(config["unet_config"], reference.tensors(f"{unet_name}/state_dict")),
            scheduler=LCMScheduler(original_inference_steps=config["lcm_origin_steps"]),
        )
        pipe.set_progress_bar_config(disable=True)
        noise = iter(inputs["noise"])
        with mock.patch.object(scheduling_lcm, "randn_tensor", side_effect=noise):
            latents = pipe(
                prompt_embeds=inputs["prompt_embeds"],
                latents=inputs["latents"],
                fps=config["fps"],
                guidance_scale=config["guidance_scale"],
                num_inference_steps=config["num_inference_steps"],
                output_type="latent",
            ).frames
        yield row(name, "final latents", latents, outputs["final_latents"], 1e-3)
        yield row(name, "video", pipe.decode_latents(latents), outputs["video"], 1e-3)


CHECKS: tuple[Callable[[Reference], Iterator[Row]], ...] = (
    unets,
    vaes,
    text_encoders,
    few_step_scheduler,
    distillation_math,
    teacher_sampling,
    pipelines,
)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, help="folder of reference folders")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    options = parser.parse_args(arguments)
    folders = (options.reference,) if options.reference else DEFAULT_FOLDERS
    reference = Reference(tuple(folder for folder in folders if folder.is_dir()))
    write = sys.stdout.write
    rows: list[Row] = []
    missing: list[str] = []
    if not options.json:
        write("| golden | value | max abs difference | largest value | tolerance | |\n")
        write("|---|---|---:|---:|---:|---|\n")
    for check in CHECKS:
        try:
            for result in check(reference):
                rows.append(result)
                if not options.json:
                    verdict = "ok" if result.passed else "DIFFERS"
                    write(
                        f"| {result.golden} | {result.value} | {result.max_abs_diff:.2e} "
                        f"| {result.largest:.3g} | {result.tolerance:.0e} | {verdict} |\n"
                    )
        except FileNotFoundError as error:
            missing.append(f"{check.__name__}: {error}")
    passed = bool(rows) and all(result.passed for result in rows)
    summary = {"passed": passed, "missing": missing, "rows": [asdict(result) for result in rows]}
    write(json.dumps(summary) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
