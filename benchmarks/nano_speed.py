"""How long does one nano video take, and how much memory? Prints a line per run, last line JSON.

python benchmarks/nano_speed.py [--model nano] [--runs 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import torch

from hummingbird import HummingbirdPipeline
from hummingbird.evaluation.report import environment

PROMPT = "a red circle moving right on a black background"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    began = time.perf_counter()
    pipe = HummingbirdPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    load_s = time.perf_counter() - began
    seconds = []
    for run in range(arguments.runs + 1):  # the first one warms up
        began = time.perf_counter()
        pipe(PROMPT, generator=torch.Generator().manual_seed(run))
        seconds.append(time.perf_counter() - began)
        print(f"run {run}: {seconds[-1]:.2f} s{' (warm-up)' if run == 0 else ''}")  # noqa: T201
    result = {
        "model": arguments.model,
        "num_inference_steps": pipe.default_call["num_inference_steps"],
        "num_threads": arguments.threads,
        "dtype": "float32",
        "load_s": round(load_s, 2),
        "first_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds[1:]), 2),
        "min_s": round(min(seconds[1:]), 2),
        "max_s": round(max(seconds[1:]), 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "environment": environment(torch.device("cpu"), "float32"),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
