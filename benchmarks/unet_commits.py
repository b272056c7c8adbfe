"""How much faster is the U-Net than at its first commit, on this CPU? Last line JSON.

    OMP_NUM_THREADS=1 python benchmarks/unet_commits.py
    OMP_NUM_THREADS=1 python benchmarks/unet_commits.py --variants first memory winograd now compiled

Both commits are unpacked by `git archive`, each variant runs in a process of its own, and all take turns with
the same weights and inputs. Counted are seconds of CPU time (user and system) of one forward pass: other
programs do not add to them, though they slow memory down. `now` is what `hummingbird generate` runs: freed
memory that is kept (hummingbird.backends) and what hummingbird.runtime.speed_up does, in float32 fast
convolutions (hummingbird.models.winograd), in bfloat16 another layout of weights; `memory` and `winograd` are
the new commit with one of the two, `plain` with none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FIRST = "28c07b0"  # the first U-Net that landed
VARIANTS = ("first", "plain", "memory", "winograd", "now", "compiled")
# Largest difference from the first variant, as a share of its largest output, that still is the same network.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
ROOT = Path(__file__).resolve().parents[1]


def unpack(commit: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "hummingbird"], cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def worker(options: dict[str, Any]) -> None:
    """Build the network, then answer each line on stdin by one forward pass."""
    import torch

    from hummingbird.models import UNetSpatioTemporalModel, preset_config

    variant, threads = options["variant"], options["threads"]
    torch.set_num_threads(threads)
    config = preset_config(options["preset"], guidance_embedding=True)
    with torch.device("meta"):
        unet = UNetSpatioTemporalModel.from_config(config)
    dtype = getattr(torch, options["dtype"])
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 2500
        parameter.normal_(0.0, fan_in**-0.5, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
            parameter.add_(1.0)
    unet = unet.to(dtype)
    if variant in ("memory", "now", "compiled"):
        from hummingbird import backends

        backends.apply(backends.detect(torch.device("cpu")))
    if variant == "winograd":
        from hummingbird.models import winograd

        winograd.enable(unet)
    if variant in ("now", "compiled"):
        from hummingbird import runtime

        runtime.speed_up([unet], torch.device("cpu"))

    def inputs(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        shape = (1, 4, options["frames"], options["height"], options["width"])
        return {
            "sample": torch.randn(shape, generator=generator).to(dtype),
            "timestep": torch.tensor(500 + seed),
            "encoder_hidden_states": torch.randn(
                1, 77, config["cross_attention_dim"], generator=generator
            ).to(dtype),
            "fps": 8 + seed,
            "timestep_cond": torch.randn(1, config["time_cond_proj_dim"], generator=generator).to(dtype),
        }

    with torch.no_grad():
        began = time.process_time()
        output = unet(**inputs(0), return_dict=False)[0]
        if variant == "compiled":
            unet.compile_repeated_blocks()
            output = unet(**inputs(0), return_dict=False)[0]
        np.save(options["output"], output.float().numpy())
        answer({"warmup_cpu_s": time.process_time() - began})
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if variant == "compiled" else 0
        for line in sys.stdin:
            given = inputs(int(line))
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            unet(**given, return_dict=False)
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            recompiled = 0
            if variant == "compiled":
                recompiled = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
            answer({"cpu_s": user + system, "system_s": system, "wall_s": wall, "graphs": graphs,
                    "recompiled": recompiled, "peak_gb": after.ru_maxrss * 1024 / 1e9})  # fmt: skip


def answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def ask(process: subprocess.Popen[str], seed: int | None) -> dict[str, Any]:
    """Send a seed, or only wait for what comes first; lines of libraries are passed over."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    if seed is not None:
        stdin.write(f"{seed}\n")
        stdin.flush()
    for line in stdout:
        if line.startswith("{"):
            values: dict[str, Any] = json.loads(line)
            return values
    raise RuntimeError(f"a worker ended with exit status {process.wait()}; its messages are above")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--first", default=FIRST, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--now", default="HEAD", help="commit to measure (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["first", "now"])
    parser.add_argument("--preset", default="hummingbird-0.7b")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--height", type=int, default=24, help="of the latents")
    parser.add_argument("--width", type=int, default=32, help="of the latents")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3, help="turns of every variant")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {True: unpack(arguments.first, Path(folder) / "first")}
        sources[False] = unpack(arguments.now, Path(folder) / "now")
        processes = {}
        for variant in arguments.variants:
            output = Path(folder) / f"{variant}.npy"
            options = {**vars(arguments), "variant": variant, "output": str(output)}
            environment = {**os.environ, "PYTHONPATH": str(sources[variant == "first"])}
            processes[variant] = subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(options)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            results[variant] = {**ask(processes[variant], None), "turns": []}
        for turn in range(arguments.pairs):
            for variant, process in processes.items():
                values = ask(process, turn)
                results[variant]["turns"].append(values)
                print(f"turn {turn}, {variant}: {values['cpu_s']:.2f} s of CPU", flush=True)  # noqa: T201
        for process in processes.values():
            process.communicate()
        outputs = {variant: np.load(Path(folder) / f"{variant}.npy") for variant in results}
    base = arguments.variants[0]
    for variant, result in results.items():
        turns = result.pop("turns")
        for key in ("cpu_s", "system_s", "wall_s"):
            result[key] = statistics.median(values[key] for values in turns)
        result |= {key: turns[-1][key] for key in ("peak_gb", "graphs", "recompiled")}
        result["cpu_s_of_turns"] = [round(values["cpu_s"], 3) for values in turns]
        result["times_as_fast"] = results[base]["cpu_s"] / result["cpu_s"]
        result["max_difference"] = float(np.abs(outputs[variant] - outputs[base]).max())
        if result["max_difference"] > TOLERANCE[arguments.dtype] * float(np.abs(outputs[base]).max()):
            raise RuntimeError(
                f"{variant}: differs from {base} by {result['max_difference']:.2g}: not the same network"
            )
        print(  # noqa: T201
            f"{variant:10} {result['cpu_s']:8.2f} s of CPU ({result['system_s']:.2f} in the kernel), "
            f"x{result['times_as_fast']:.2f}, differs by {result['max_difference']:.1e}, "
            f"{result['peak_gb']:.1f} GB"
        )
    scale = float(outputs[base].std())
    print(json.dumps({**vars(arguments), "output_std": scale, "load": os.getloadavg(), "results": results}))  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()
