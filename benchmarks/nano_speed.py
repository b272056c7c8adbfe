"""How long does one nano video take, and how much memory? Prints a line per case, last line JSON.

    python benchmarks/nano_speed.py [--model nano] [--runs 5] [--threads 2]
    python benchmarks/nano_speed.py --steps 1 2 4 8 --frames 16 26 --batch-size 1 4 --dtype float32 bfloat16

Cases of several numbers take turns in one process, run by run. Frames of another type are compared with
those of the first one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import time
from typing import Any

import torch

from hummingbird import runtime
from hummingbird.evaluation.report import environment
from hummingbird.evaluation.similarity import psnr_db

PROMPT = "a red circle moving right on a black background"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, nargs="+", help="(default: the model's own)")
    parser.add_argument("--frames", type=int, nargs="+", help="(default: the model's own)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="videos in one call")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    began = time.perf_counter()
    pipes = {dtype: runtime.load_pipeline(arguments.model, "cpu", dtype) for dtype in arguments.dtype}
    load_s = time.perf_counter() - began
    first, *_ = pipes.values()
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    rows: list[dict[str, Any]] = [
        {"dtype": dtype, "num_inference_steps": steps, "num_frames": frames, "batch_size": batch_size,
         "seconds": []}
        for steps, frames, batch_size, dtype in itertools.product(
            arguments.steps or [first.default_call["num_inference_steps"]],
            arguments.frames or [first.default_call["num_frames"]],
            arguments.batch_size,
            arguments.dtype,
        )
    ]  # fmt: skip
    for run in range(arguments.runs + 1):  # the first one warms up
        frames_of_case: dict[tuple[int, ...], torch.Tensor] = {}
        for row in rows:
            case = row["num_inference_steps"], row["num_frames"], row["batch_size"]
            began = time.perf_counter()
            made = pipes[row["dtype"]](
                [PROMPT] * row["batch_size"],
                num_inference_steps=row["num_inference_steps"],
                num_frames=row["num_frames"],
                generator=torch.Generator().manual_seed(run),
                output_type="pt",
            ).frames
            row["seconds"].append(time.perf_counter() - began)
            reference = frames_of_case.setdefault(case, made)
            if reference is not made:
                row["psnr_db"] = round(float(psnr_db(made[None], reference[None])), 1)  # of all frames as one
    for row in rows:
        first_s, *seconds = row.pop("seconds")
        row |= {"first_s": round(first_s, 2), "median_s": round(statistics.median(seconds), 3),
                "min_s": round(min(seconds), 3), "max_s": round(max(seconds), 3)}  # fmt: skip
        print(  # noqa: T201
            f"{row['dtype']:8} {row['num_inference_steps']:2} steps, {row['num_frames']} frames, "
            f"{row['batch_size']} at once: {row['median_s']:.3f} s ({row['min_s']:.3f} to "
            f"{row['max_s']:.3f}; first {row['first_s']:.2f})"
            + (f", {row['psnr_db']} dB to {arguments.dtype[0]}" if "psnr_db" in row else "")
        )
    result = {
        "model": arguments.model,
        "num_threads": arguments.threads,
        "runs": arguments.runs,
        "load_s": round(load_s, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows": rows,
        "environment": environment(torch.device("cpu"), ", ".join(arguments.dtype)),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
