"""What does each way to save memory cost in seconds, and is the video the same? Last line JSON.

    python benchmarks/memory.py [--config hummingbird-0.7b]     # a GPU: peak GB against seconds
    python benchmarks/memory.py --reduced                       # a CPU: nano, only whether outputs are equal

On a CPU nothing is offloaded and nothing is saved: the hooks are put on all the same, with the CPU as the
place to compute, and their video is compared with the plain one.
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

import torch

from hummingbird import backends, runtime
from hummingbird.bench import fill_zeros, random_pipeline
from hummingbird.ceilings import Stopwatch
from hummingbird.evaluation.report import environment
from hummingbird.models.shells import PRESETS, build_shell
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.planning.inference import MODES, plan_inference

REDUCED = {"num_frames": 4, "height": 64, "width": 64, "num_inference_steps": 2}


def fresh(model: str, dtype: torch.dtype) -> HummingbirdPipeline:
    torch.manual_seed(0)
    pipe = random_pipeline(build_shell(model, "cpu", dtype))
    fill_zeros(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def put(pipe: HummingbirdPipeline, device: torch.device, mode: str) -> HummingbirdPipeline:
    if device.type == "cuda" or mode in ("none", "fp8"):
        return runtime.place(pipe, device, mode)
    if mode == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        pipe.enable_group_offload(**where, offload_type="leaf_level")
    return pipe


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--config", choices=[*PRESETS, "nano"], default="hummingbird-0.7b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reduced", action="store_true")
    arguments = parser.parse_args()
    device = runtime.resolve_device(arguments.device)
    dtype = runtime.resolve_dtype("auto", device)
    backends.apply(backends.detect(device))
    model = "nano" if arguments.reduced else arguments.config
    size: dict[str, Any] = dict(REDUCED) if arguments.reduced else {}
    planned = plan_inference(model, dtype=dtype, **size)
    rows: list[dict[str, Any]] = []
    plain: torch.Tensor | None = None
    for mode in MODES:
        pipe = put(fresh(model, dtype), device, mode)
        tokens, width = planned_text(pipe)
        embeds = torch.zeros(1, tokens, width, dtype=dtype)
        call: dict[str, Any] = {"prompt_embeds": embeds, "output_type": "pt", **size}
        if not pipe.has_guidance_embedding:
            call["negative_prompt_embeds"] = embeds + 1.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def run(pipe: HummingbirdPipeline = pipe, call: dict[str, Any] = call) -> torch.Tensor:
            return pipe(**call, generator=torch.Generator().manual_seed(0)).frames

        video = run().float().cpu()
        plain = video if plain is None else plain
        seconds = Stopwatch(device).median(run, arguments.repeats)
        chunk = next(iter(planned.decode_peak_gb))
        rows.append(
            {
                "mode": mode,
                "median_s": seconds[len(seconds) // 2] if device.type == "cuda" else None,
                "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
                "planned_gb": planned.peak_gb[mode][chunk],
                "largest_difference": float((video - plain).abs().max()),
            }
        )
        print(rows[-1], flush=True)  # noqa: T201
        del pipe, run, call
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    facts = environment(device, str(dtype).removeprefix("torch."))
    print(json.dumps({"model": model, "rows": rows, "environment": facts}))  # noqa: T201


def planned_text(pipe: HummingbirdPipeline) -> tuple[int, int]:
    return int(pipe.text_encoder.config.max_position_embeddings), int(pipe.unet.config.cross_attention_dim)


if __name__ == "__main__":
    main()
