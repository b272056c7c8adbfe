"""Which levers bring a full-size training onto which card? Plans alone, nothing runs; last line JSON.

    python benchmarks/plan_levers.py

First stage 2 at 26x320x512 on four GPUs, lever after lever; then both stages on 1, 2 and 4 GPUs of 24 to 192
GB.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from hummingbird.evaluation.report import environment
from hummingbird.planning.inference import RESERVED_GB
from hummingbird.planning.training import Planner, TrainingPlan

STAGE1 = {"0.7B": "configs/train/stage1_0.7b.yaml", "0.9B": "configs/train/stage1_0.9b.yaml"}
STAGE2 = "configs/train/stage2_0.7b.yaml"
ASSUMED_TFLOPS = 100.0
"""Of each GPU, in the training; hours are this over the truth."""
CARDS_GB = (24, 48, 80, 192)
GPUS = (1, 2, 4)

CHECKPOINTING = {"loop.gradient_checkpointing": True}
LORA = {"student.lora_rank": 64}
EIGHT_BITS = {"loop.optimizer": "adamw8bit"}
PLAIN_STEPS = {"loop.gradient_checkpointing": False, "loop.optimizer": "adamw"}

LEVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "none: every parameter trained, all networks in float32, every GPU does everything",
        {
            **PLAIN_STEPS,
            "student.lora_rank": 0,
            "teacher_dtype": "float32",
            "rewards.0.dtype": "float32",
            "rewards.1.dtype": "float32",
            "held_out.0.dtype": "float32",
            "decode_chunk_size": 8,
            "sample_batch_size": 0,
            "layout": [],
        },
    ),
    ("gradient checkpointing", CHECKPOINTING),
    ("samples one by one", {"sample_batch_size": 1}),
    ("frames decoded one by one", {"decode_chunk_size": 1}),
    ("teacher in bfloat16", {"teacher_dtype": "bfloat16"}),
    ("rewards in bfloat16", {"rewards.0.dtype": "bfloat16", "rewards.1.dtype": "bfloat16"}),
    ("8-bit AdamW", EIGHT_BITS),
    ("layout: image and video reward apart", {}),
    ("LoRA of rank 64: the file as it is", LORA),
    ("teacher in float8", {"teacher_dtype": "float8"}),
    ("teacher offloaded", {"teacher_dtype": "bfloat16", "offload_teacher": True}),
)
"""Each one is on top of those before it."""
STAGE1_RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("AdamW", PLAIN_STEPS),
    ("checkpointing, AdamW", {**PLAIN_STEPS, **CHECKPOINTING}),
    ("the file: checkpointing, 8-bit AdamW", {}),
    ("the file, teacher float8", {"distillation.teacher_dtype": "float8"}),
    ("the file, teacher offloaded", {"distillation.offload_teacher": True}),
    ("the file, teacher offloaded, batch 1", {"distillation.offload_teacher": True, "loop.batch_size": 1}),
)
STAGE2_RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all parameters, AdamW", {**PLAIN_STEPS, "student.lora_rank": 0}),
    ("all parameters, checkpointing, AdamW", {**PLAIN_STEPS, **CHECKPOINTING, "student.lora_rank": 0}),
    ("all parameters, checkpointing, 8-bit AdamW", {"student.lora_rank": 0}),
    ("the file: LoRA, checkpointing, 8-bit AdamW", {}),
    ("the file, teacher float8", {"teacher_dtype": "float8"}),
    ("the file, teacher offloaded", {"offload_teacher": True}),
)
"""Fastest first; the first that fits is taken."""


def levers(counts: dict[Any, Any]) -> list[dict[str, Any]]:
    rows = []
    changes: dict[str, Any] = {}
    for name, change in LEVERS:
        changes |= change
        if name.startswith("layout"):
            changes.pop("layout")  # that of the file
        plan = Planner(STAGE2, changes=changes, counts=counts).plan(4, tflops=ASSUMED_TFLOPS)
        rows.append({"lever": name, **figures(plan)})
        say(rows[-1])
    return rows


def cards(counts: dict[Any, Any]) -> list[dict[str, Any]]:
    rows = []
    recipes: list[tuple[str, str, dict[str, Any], Any]] = [
        (f"stage 1, {name}", path, {}, STAGE1_RUNGS) for name, path in STAGE1.items()
    ]
    for frames in (16, 26):
        recipes.append((f"stage 2, 0.7B, {frames} frames", STAGE2, {"num_frames": frames}, STAGE2_RUNGS))
    for name, path, common, rungs in recipes:
        left = {gpus: list(CARDS_GB) for gpus in GPUS}
        for rung, changes in rungs:
            if not any(left.values()):
                break
            planner = Planner(path, changes={**common, **changes}, counts=counts)
            for gpus in GPUS:
                if not left[gpus]:
                    continue
                plan = planner.plan(gpus, tflops=ASSUMED_TFLOPS)
                row = {"training": name, "gpus": gpus, "levers": rung, **figures(plan)}
                row["cards_gb"] = [card for card in left[gpus] if plan.peak_gb <= card - RESERVED_GB]
                left[gpus] = [card for card in left[gpus] if card not in row["cards_gb"]]
                rows.append(row)
                say(row)
    return rows


def lever_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| lever, on top of those before | consistency, GB | video, GB | sampling, GB | TFLOP per step |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        peaks = (row["rank_step_gb"][0], row["rank_step_gb"][-1], row["sample_gb"])
        cells = [row["lever"], *(f"{peak:.1f}" for peak in peaks), f"{row['tflop_per_step']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def card_table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the letter of the levers, peak GB and hours."""
    lines = ["| training | GPUs | " + " | ".join(f"{card} GB" for card in CARDS_GB) + " |"]
    lines.append("|---|---:|" + "---|" * len(CARDS_GB))
    for training, gpus in dict.fromkeys((row["training"], row["gpus"]) for row in rows):
        own = [row for row in rows if (row["training"], row["gpus"]) == (training, gpus)]
        names = [name for name, _ in (STAGE1_RUNGS if "stage 1" in training else STAGE2_RUNGS)]
        cells = []
        for card in CARDS_GB:
            fits = [row for row in own if card in row["cards_gb"]]
            if not fits:
                cells.append("no")
                continue
            letter = "ABCDEF"[names.index(fits[0]["levers"])]
            cells.append(f"{letter}, {fits[0]['peak_gb']:.1f} GB, {fits[0]['hours']:.0f} h")
        lines.append(f"| {training} | {gpus} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(plan: TrainingPlan) -> dict[str, Any]:
    return {
        "rank_step_gb": [round(rank.step_gb, 2) for rank in plan.ranks],
        "sample_gb": None if plan.sample_gb is None else round(plan.sample_gb, 2),
        "peak_gb": round(plan.peak_gb, 2),
        "tflop_per_step": round(plan.tflop_per_step, 1),
        "hours": None if plan.hours is None else round(plan.hours, 1),
    }


def say(row: dict[str, Any]) -> None:
    print(" | ".join(f"{name}: {value}" for name, value in row.items()), flush=True)  # noqa: T201


def main() -> None:
    counts: dict[Any, Any] = {}
    result: dict[str, Any] = {
        "kind": "plans",
        "planned_not_run": True,
        "assumed_tflops_per_gpu": ASSUMED_TFLOPS,
        "levers": levers(counts),
        "cards": cards(counts),
        "environment": environment(torch.device("cpu"), "no"),
    }
    print(lever_table(result["levers"]), card_table(result["cards"]), sep="\n\n")  # noqa: T201
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
