"""What do 8-bit matrix products save, and how far does the video go from the plain one? Last line JSON.

    python benchmarks/quantization.py                               # nano: also what the oracle says
    python benchmarks/quantization.py --config hummingbird-0.7b     # a GPU: full size, random weights

Every way gets the same noise. fp8-dynamic is left out where the device does not multiply in it. Seconds on a
CPU are CPU time of one denoising step for one video.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch

from hummingbird import backends, runtime
from hummingbird.bench import fill_zeros, random_pipeline
from hummingbird.ceilings import Stopwatch
from hummingbird.evaluation import judge_videos
from hummingbird.evaluation.report import environment
from hummingbird.models.shells import PRESETS, build_shell
from hummingbird.nano import world
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.quantization import QUANTIZATIONS, quantize_unet
from hummingbird.video_io import to_uint8


def fresh(config: str | None, model: str, device: torch.device) -> HummingbirdPipeline:
    if config is None:
        pipe = runtime.load_pipeline(model, str(device))
    else:
        torch.manual_seed(0)
        pipe = random_pipeline(build_shell(config, device, runtime.resolve_dtype("auto", device)))
        fill_zeros(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def videos(pipe: HummingbirdPipeline, prompts: list[str | None], steps: int | None) -> torch.Tensor:
    """One video per prompt, (N, F, H, W, 3) in [0, 1]; without a prompt a random embedding."""
    made = []
    for seed, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed)
        call: dict[str, Any] = {"num_inference_steps": steps} if steps else {}
        if prompt is None:
            tokens = int(pipe.text_encoder.config.max_position_embeddings)
            width = int(pipe.unet.config.cross_attention_dim)
            embeds = torch.randn(1, tokens, width, generator=generator).to(pipe.device, pipe.unet.dtype)
            call["prompt_embeds"] = embeds
            if not pipe.has_guidance_embedding:
                call["negative_prompt_embeds"] = torch.zeros_like(embeds)
        else:
            call["prompt"] = prompt
        out = pipe(**call, generator=generator, output_type="np")
        made.append(torch.from_numpy(out.frames[0]))
    return torch.stack(made)


def step_seconds(pipe: HummingbirdPipeline, repeats: int) -> float:
    """One call of the U-Net for one video: the median, by events on a GPU, in CPU time elsewhere."""
    call, device, dtype = pipe.default_call, pipe.unet.device, pipe.unet.dtype
    generator = torch.Generator().manual_seed(0)
    size = [int(call[name]) // pipe.vae_scale_factor for name in ("height", "width")]
    sample = torch.randn(1, 4, int(call["num_frames"]), *size, generator=generator).to(device, dtype)
    tokens, width = pipe.text_encoder.config.max_position_embeddings, pipe.unet.config.cross_attention_dim
    embeds = torch.randn(1, int(tokens), int(width), generator=generator).to(device, dtype)
    options: dict[str, Any] = {"fps": 8, "return_dict": False}
    if pipe.has_guidance_embedding:
        options["timestep_cond"] = torch.zeros(1, int(pipe.unet.config.time_cond_proj_dim)).to(device, dtype)

    def step() -> object:
        with torch.no_grad():
            return pipe.unet(sample, 500, embeds, **options)

    step()
    if device.type == "cuda":
        return statistics.median(Stopwatch(device).median(step, repeats))
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--config", choices=PRESETS, help="a published network with random weights")
    parser.add_argument("--model", default="nano-teacher", help="a model of the moving-shapes world")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, help="(default: the model's own)")
    parser.add_argument("--num-videos", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    device = runtime.resolve_device(arguments.device)
    settings = backends.detect(device)
    asked = [] if arguments.config else world.evaluation_prompts(arguments.num_videos, seed=0)
    prompts: list[str | None] = [attributes.prompt for attributes in asked] or [None] * arguments.num_videos
    plain: torch.Tensor | None = None
    rows: list[dict[str, Any]] = []
    for how in QUANTIZATIONS:
        if how == "fp8-dynamic" and settings.fp8_dtype is None:
            continue
        pipe = fresh(arguments.config, arguments.model, device)
        report = None if how == "none" else quantize_unet(pipe.unet, how, settings)
        made = videos(pipe, prompts, arguments.steps)
        plain = made if plain is None else plain
        error = float((made - plain).square().mean())
        row: dict[str, Any] = {
            "quantize": how,
            "layers": report.num_layers if report else 0,
            "share_of_weights": report.share if report else 0.0,
            "step_s": step_seconds(pipe, arguments.repeats),
            "psnr_db": None if error == 0 else -10 * math.log10(error),
            "largest_difference": float((made - plain).abs().max()),
        }
        if asked:
            verdicts = judge_videos(to_uint8(made.numpy()), asked)
            row["all_four_right"] = sum(verdict["right"]["all"] for verdict in verdicts)
        rows.append(row)
        print(row, flush=True)  # noqa: T201
    facts = environment(device, str(pipe.unet.dtype).removeprefix("torch."))
    model = arguments.config or arguments.model
    print(json.dumps({"model": model, "num_videos": len(prompts), "rows": rows, "environment": facts}))  # noqa: T201


if __name__ == "__main__":
    main()
