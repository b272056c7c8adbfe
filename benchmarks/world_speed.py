"""How many clips does one core render, and judge, in a second? Last line JSON.

python benchmarks/world_speed.py
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from hummingbird.evaluation.report import environment
from hummingbird.nano import world
from hummingbird.nano.oracle import judge_batch


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    items = world.random_attributes(1024, rng)
    world.render_clips(items[:64], rng)  # warm-up
    began = time.perf_counter()
    clips = world.render_clips(items, rng)
    rendered = len(items) / (time.perf_counter() - began)
    judge_batch(clips[:8].numpy())
    began = time.perf_counter()
    judge_batch(clips[:512].numpy())
    judged = 512 / (time.perf_counter() - began)
    print(f"rendered {rendered:.0f} clips/s, judged {judged:.0f} clips/s on one core")  # noqa: T201
    figures = {"rendered_clips_per_second": round(rendered), "judged_clips_per_second": round(judged)}
    print(json.dumps({**figures, "environment": environment(torch.device("cpu"), "float32")}))  # noqa: T201


if __name__ == "__main__":
    main()
