"""Is `hummingbird plan` right? Runs real steps of a recipe on this CPU and compares; last line JSON.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 \
        python benchmarks/plan.py stage1 configs/train/nano_stage1.yaml [--latents FILE] [--loop.field VALUE]

The first word is stage1, stage2 or teacher.

Measured: what weights, averages and optimizer are stored in, counted, and by how much the process grows
in a step after the first (the kernel's own peak, reset before it; with these variables the allocator gives
memory back at once).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hummingbird.ceilings import measure_ceilings
from hummingbird.config import load_config, save_config
from hummingbird.evaluation.report import environment
from hummingbird.planning.memory import tensor_bytes
from hummingbird.planning.training import plan_training
from train import loop, stage1, stage2, teacher
from train.consistency_reward_task import ConsistencyRewardTask

RECIPES: dict[str, Any] = {
    "stage1": (stage1.Stage1Config, stage1.build_task),
    "stage2": (stage2.Stage2Config, stage2.build_task),
    "teacher": (teacher.TeacherConfig, teacher.build_task),
}
REPEATS = 1
LATE_STEP = 1000
"""Every loss of nano's stages has its weight by then."""


def status_bytes(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def grown_bytes(run: loop._Run) -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run._optimizer_step()
    return status_bytes("VmHWM") - before


def stored_bytes(run: loop._Run) -> int:
    tensors: list[Tensor] = [*run.network.parameters(), *run.network.buffers(), *run.ema.shadow_params]
    for state in run.optimizer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    task: Any = run.task
    frozen = [getattr(task, name) for name in ("teacher", "text_encoder") if hasattr(task, name)]
    if isinstance(task, ConsistencyRewardTask):
        frozen += [task.vae, *(term.reward for term in task.terms), *task.held_out]
    for module in frozen:
        tensors += [*module.parameters(), *module.buffers()]
    return tensor_bytes(tensors)


def main() -> None:
    kind, path, *overrides = sys.argv[1:]
    config_class, build_task = RECIPES[kind]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*overrides, "--loop.output", folder, "--loop.tracker", "none"]
        config = load_config(config_class, path, flags)
        saved = Path(folder) / "recipe.yaml"
        save_config(config, saved)
        task, data = build_task(config)
        run = loop._Run(task, data, config.loop, None, threading.Event())
        run.window, run.progress = loop._Window(0), tqdm(disable=True)
        run.step = LATE_STEP
        run.ema.to(run.accelerator.device)
        run._optimizer_step()
        grown, seconds = [], []
        for _ in range(REPEATS):
            began = time.perf_counter()
            grown.append(grown_bytes(run))
            seconds.append(time.perf_counter() - began)
        ceilings = measure_ceilings(torch.device("cpu"), torch.float32, repeats=3)
        plan = plan_training(saved, device="cpu", ceiling_tflops=ceilings.flops_per_s / 1e12)
    measured = (stored_bytes(run) + statistics.median(grown)) / 1e9
    step_s = statistics.median(seconds)
    result = {
        "kind": kind,
        "config": path,
        "overrides": overrides,
        "planned_gb": round(plan.step_gb, 4),
        "measured_gb": round(measured, 4),
        "ratio": round(plan.step_gb / measured, 3),
        "stored_gb": round(stored_bytes(run) / 1e9, 4),
        "planned_stored_gb": round(sum(plan.parts_gb.values()), 4),
        "grown_gb": [round(value / 1e9, 4) for value in grown],
        "tflop_per_step": round(plan.tflop_per_step, 4),
        "step_median_s": round(step_s, 3),
        "efficiency": round(plan.tflop_per_step * 1e12 / step_s / ceilings.flops_per_s, 3),
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        "environment": environment(torch.device("cpu"), config.loop.mixed_precision),
    }
    for name, value in result.items():
        print(f"{name}: {value}")  # noqa: T201
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
