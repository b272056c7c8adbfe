"""What does the small decoder cost in likeness, verdicts and seconds? A line per figure, last line JSON.

python benchmarks/decoder.py --latents runs/nano/latents.safetensors [--num-clips 512]   # encoded clips
python benchmarks/decoder.py --num-prompts 64 [--model nano] [--steps 20]                 # sampled ones
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hummingbird import HummingbirdPipeline, runtime
from hummingbird.evaluation.moving_shapes import judge_videos, summarize, video_seed
from hummingbird.evaluation.report import environment
from hummingbird.evaluation.similarity import psnr_db, ssim
from hummingbird.nano import world
from hummingbird.video_io import to_uint8
from train.dataset import LatentClips

SEED = 1_000_003


def encoded(path: Path, num_clips: int) -> Iterator[tuple[Tensor, list[world.Attributes]]]:
    data = LatentClips(path, 16, SEED, world.NUM_FRAMES, 0.0, 0.0)
    for index in range(num_clips // 16):
        batch = data.batch(index)
        yield batch["latents"], batch["attributes"]


def sampled(
    pipe: HummingbirdPipeline, num_prompts: int, steps: int | None
) -> Iterator[tuple[Tensor, list[world.Attributes]]]:
    items = world.evaluation_prompts(num_prompts, 0)
    for start in range(0, num_prompts, 16):
        part = items[start : start + 16]
        noise = [torch.Generator().manual_seed(video_seed(0, start + i)) for i in range(len(part))]
        out: Any = pipe(
            [x.prompt for x in part], num_inference_steps=steps, generator=noise, output_type="latent"
        )
        yield out.frames, part


@torch.no_grad()
def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", default="nano-teacher")
    parser.add_argument("--decoder", default="nano")
    parser.add_argument("--latents", type=Path)
    parser.add_argument("--num-clips", type=int, default=512)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    pipes = {
        "full": runtime.load_pipeline(arguments.model, "cpu", "float32"),
        "tiny": runtime.load_pipeline(arguments.model, "cpu", "float32", decoder=arguments.decoder),
    }
    pipes["full"].set_progress_bar_config(disable=True)
    if arguments.latents is not None:
        source = encoded(arguments.latents, arguments.num_clips)
    else:
        source = sampled(pipes["full"], arguments.num_prompts, arguments.steps)
    records: dict[str, list[Any]] = {name: [] for name in pipes}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    likeness: dict[str, list[float]] = {"psnr_db": [], "ssim": []}
    for latents, items in source:
        videos = {}
        for name, pipe in pipes.items():
            frames = []
            for clip in latents:
                began = time.perf_counter()
                frames.append(pipe.decode_latents(clip[None]))
                seconds[name].append(time.perf_counter() - began)
            videos[name] = (torch.cat(frames).clamp(-1.0, 1.0) + 1.0) / 2.0  # (B, 3, F, H, W)
            uint8 = to_uint8(videos[name].permute(0, 2, 3, 4, 1).numpy())
            records[name] += judge_videos(uint8, items, start=len(records[name]))
        small, full = (videos[name].transpose(1, 2).flatten(0, 1) for name in ("tiny", "full"))
        likeness["psnr_db"] += psnr_db(small, full).tolist()
        likeness["ssim"] += ssim(small, full).tolist()
        print(len(records["full"]), flush=True)  # noqa: T201
    same = [a["seen"] == b["seen"] for a, b in zip(*records.values(), strict=True)]
    result = {
        "source": str(arguments.latents or f"{arguments.model}, {arguments.steps} steps"),
        "num_clips": len(same),
        "likeness": {name: round(statistics.mean(values), 4) for name, values in likeness.items()},
        "accuracy": {name: summarize(rows)["accuracy"] for name, rows in records.items()},
        "same_verdict": round(sum(same) / len(same), 4),
        "decode_median_s": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "num_threads": torch.get_num_threads(),
        "environment": environment(torch.device("cpu"), "float32"),
    }
    for name, value in result.items():
        print(f"{name}: {value}")  # noqa: T201
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
