"""Does a searched plan lose less than random plans of its size, and than the published one? Last line JSON.

Every plan has at most the parameters of the published 0.7b plan. Losses are those of the pruned networks
before any training, on clips that the search never saw.

python benchmarks/pruning.py [--model nano-teacher] [--num-clips 32] [--num-held-out 48]
    [--num-random 10] [--granularity layers|blocks] [--dtype auto]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import numpy as np

from hummingbird import runtime
from hummingbird.evaluation.report import environment
from hummingbird.pruning.calibration import MOVING_SHAPES, calibrate
from hummingbird.pruning.costs import Probe, measure_layers
from hummingbird.pruning.plan import PruningPlan, named_plan, whole_plan
from hummingbird.pruning.search import Budget, plan_cost, random_plan, search_plan
from hummingbird.pruning.surgery import student_of


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", default="nano-teacher")
    parser.add_argument("--data", default=MOVING_SHAPES)
    parser.add_argument("--num-clips", type=int, default=32)
    parser.add_argument("--num-held-out", type=int, default=48)
    parser.add_argument("--num-random", type=int, default=10)
    parser.add_argument("--granularity", default="layers", choices=["layers", "blocks"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=runtime.DTYPES)
    arguments = parser.parse_args()

    pipe = runtime.load_pipeline(arguments.model, arguments.device, arguments.dtype)
    unet = pipe.unet.eval()
    costs = measure_layers(unet, Probe.of(pipe, repeats=0))
    fixed = named_plan("0.7b", unet.config)
    budget = Budget(resource="parameters", limit=plan_cost(fixed, costs).parameters)
    held_out = calibrate(pipe, arguments.data, arguments.num_held_out, seed=1)

    def measure(name: str, plan: PruningPlan) -> dict[str, object]:
        row = {
            "plan": name,
            "parameters": plan_cost(plan, costs).parameters,
            "loss": round(held_out.loss(student_of(unet, plan)), 5),
        }
        print(" | ".join(str(value) for value in row.values()), flush=True)  # noqa: T201
        return row

    found = search_plan(
        unet,
        calibrate(pipe, arguments.data, arguments.num_clips, seed=0),
        budget,
        costs,
        arguments.granularity,
        progress=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
    )
    whole = measure("whole network", whole_plan(unet.config))
    published = measure("published 0.7b", fixed)
    searched = measure("searched", found.best.plan)
    rng = np.random.default_rng(0)
    drawn = [
        measure(f"random {index}", random_plan(unet.config, costs, budget, rng, arguments.granularity))
        for index in range(arguments.num_random)
    ]
    median = statistics.median(float(str(row["loss"])) for row in drawn)
    result = {
        "model": arguments.model,
        "budget_parameters": int(budget.limit),
        "granularity": arguments.granularity,
        "num_clips": arguments.num_clips,
        "num_held_out": arguments.num_held_out,
        "whole": whole,
        "published": published,
        "searched": {**searched, "steps": [step.name for step in found.steps]},
        "random": drawn,
        "random_median_loss": round(median, 5),
        "beats_random_median": float(str(searched["loss"])) < median,
        "no_worse_than_published": float(str(searched["loss"])) <= float(str(published["loss"])),
        "num_evaluations": found.num_evaluations,
        "search_s": round(found.seconds, 1),
        "environment": environment(pipe.device, arguments.dtype),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
