"""Do converted checkpoints give the original's numbers? One row per recorded value; the last line is JSON.

    python benchmarks/checkpoint_parity.py

Every recorded file goes three ways: into memory (``from_single_file``), to a folder and loaded from there,
and from that folder back to one file, which is loaded again and compared tensor by tensor with the recorded
state dict. Reads tests/goldens.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers.schedulers import scheduling_lcm
from safetensors.torch import load_file

from hummingbird import HummingbirdPipeline
from hummingbird.checkpoints import convert_checkpoint
from hummingbird.checkpoints.families import schedule_buffers
from hummingbird.schedulers import VideoCrafterDDIMScheduler

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens" / "unet"
TEXT_HEADS = {"text_encoder": {"num_attention_heads": 4}}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison; it passes within ``tolerance * (1 + |value|)`` everywhere."""

    golden: str
    way: str
    value: str
    max_abs_diff: float
    tolerance: float
    passed: bool


def row(
    golden: str, way: str, value: str, ours: torch.Tensor, recorded: torch.Tensor, tolerance: float
) -> Row:
    difference = (ours.detach().double() - recorded.double()).abs()
    passed = bool((difference <= tolerance * (1 + recorded.double().abs())).all())
    return Row(golden, way, value, difference.max().item(), tolerance, passed)


def tensors(name: str) -> Tensors:
    return load_file(GOLDENS / f"{name}.safetensors")


def config(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / name / "config.json").read_text())


def three_ways(source: Path, place: Path, **options: Any) -> Iterator[tuple[str, HummingbirdPipeline]]:
    """Load a file in memory, through ``place/folder``, and through ``place/back.ckpt`` made from that."""
    yield "from_single_file", HummingbirdPipeline.from_single_file(source, **options)
    convert_checkpoint(source, place / "folder", **options)
    yield "folder", HummingbirdPipeline.from_pretrained(place / "folder")
    convert_checkpoint(place / "folder", place / "back.ckpt")
    yield "folder and back", HummingbirdPipeline.from_single_file(place / "back.ckpt")


def bits(golden: str, back: Path, expected: Tensors) -> Row:
    """Compare the file that came back with the recorded tensors, names and types included."""
    again = torch.load(back, weights_only=True)["state_dict"]
    same = again.keys() == expected.keys() and all(
        again[key].dtype == tensor.dtype and torch.equal(again[key], tensor)
        for key, tensor in expected.items()
    )
    return Row(golden, "folder and back", f"{len(expected)} tensors, bits", float(not same), 0.0, same)


def whole_modules(place: Path) -> Iterator[Row]:
    for name in ("whole_module_pickle", "whole_module_pickle_conv2d"):
        inputs, outputs = tensors(f"{name}/inputs"), tensors(f"{name}/outputs")
        (place / name).mkdir()
        for way, pipe in three_ways(GOLDENS / name / "merged_all_tiny.pt", place / name):
            noise = pipe.unet(
                inputs["x"],
                inputs["timesteps"],
                inputs["context"],
                fps=config(name)["case"]["fps"],
                timestep_cond=inputs["timestep_cond"],
                return_dict=False,
            )[0]
            hidden = pipe.text_encoder(inputs["tokens"])[0]
            yield row(name, way, "U-Net", noise, outputs["unet"], 1e-4)
            yield row(name, way, "VAE", pipe.vae.decode(inputs["z"]).sample, outputs["vae_decode"], 1e-4)
            yield row(name, way, "text", hidden, outputs["text_penultimate"], 1e-4)
        yield bits(name, place / name / "back.ckpt", tensors(f"{name}/state_dict"))


def pipeline(place: Path) -> Iterator[Row]:
    """A student's file around the recorded networks, through the recorded four steps."""
    name = "pipeline_hb07"
    stored = tensors("text_encoder_tiny/state_dict_used_rows")
    used, rows = stored.pop("used_tokens"), stored.pop("used_rows")
    stored["model.token_embedding.weight"] = torch.zeros(49408, rows.shape[1], dtype=rows.dtype)
    stored["model.token_embedding.weight"][used] = rows
    schedule = schedule_buffers(VideoCrafterDDIMScheduler(use_scale=True))
    expected = {key: recipe.load() for key, recipe in schedule.items()}
    for prefix, part in (
        ("model.diffusion_model.", tensors("unet_hb07_tiny/state_dict")),
        ("first_stage_model.", tensors(f"{name}/vae_state_dict")),
        ("cond_stage_model.", stored),
    ):
        expected |= {prefix + key: value for key, value in part.items()}
    torch.save({"state_dict": expected}, place / "model.ckpt")
    inputs, outputs = tensors(f"{name}/inputs"), tensors(f"{name}/outputs")
    for way, pipe in three_ways(place / "model.ckpt", place, config=TEXT_HEADS):
        pipe.set_progress_bar_config(disable=True)
        with mock.patch.object(scheduling_lcm, "randn_tensor", side_effect=iter(inputs["noise"])):
            latents = pipe(
                prompt_embeds=inputs["prompt_embeds"],
                latents=inputs["latents"],
                fps=config(name)["fps"],
                output_type="latent",
            ).frames
        yield row(name, way, "latents after 4 steps", latents, outputs["final_latents"], 1e-3)
        yield row(name, way, "video", pipe.decode_latents(latents), outputs["video"], 1e-3)
    yield bits(name, place / "back.ckpt", expected)


def lora(place: Path) -> Iterator[Row]:
    name = "lora_hb07"
    recorded = tensors(f"{name}/outputs")
    listed = tensors(f"{name}/lora")
    torch.save([listed[key] for key in sorted(listed)], place / "unet_lora.pt")
    inputs = tensors("unet_hb07_tiny/inputs")
    base = place / "model.ckpt"  # of the pipeline above, whose U-Net is the recorded one
    options = {"base": base, "config": TEXT_HEADS}
    convert_checkpoint(place / "unet_lora.pt", place / "merged", dtype=torch.float32, **options)
    for way, pipe in (
        ("from_single_file", HummingbirdPipeline.from_single_file(place / "unet_lora.pt", **options)),
        ("folder", HummingbirdPipeline.from_pretrained(place / "merged")),
    ):
        output = pipe.unet(
            inputs["case0.x"],
            inputs["case0.timesteps"],
            inputs["case0.context"],
            fps=inputs["case0.fps"],
            timestep_cond=inputs["case0.timestep_cond"],
            return_dict=False,
        )[0]
        yield row(name, way, "U-Net, merged", output, recorded["case0.output_merged"], 1e-4)
        weights = pipe.unet.state_dict()
        merged = {
            key.removeprefix("merged."): value for key, value in recorded.items() if key[:7] == "merged."
        }
        worst = max(merged, key=lambda key: (weights[key] - merged[key]).abs().max().item())
        yield row(name, way, f"{len(merged)} weights", weights[worst], merged[worst], 1e-6)


@torch.no_grad()
def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = list(itertools.chain(whole_modules(place), pipeline(place), lora(place)))
    print("| golden | way | value | max abs diff | tolerance | |\n|---|---|---|---:|---:|---|")  # noqa: T201
    for entry in rows:
        verdict = "ok" if entry.passed else "FAILED"
        print(  # noqa: T201
            f"| {entry.golden} | {entry.way} | {entry.value} | {entry.max_abs_diff:.1e} | "
            f"{entry.tolerance:.0e} | {verdict} |"
        )
    result = {"passed": all(entry.passed for entry in rows), "rows": [asdict(entry) for entry in rows]}
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
