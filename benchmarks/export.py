"""What does an export take, how far is it from PyTorch, and how fast is it? Last line JSON.

Exports one model in each format for one target, runs it, and times whole videos beside PyTorch's. What this
machine cannot build or run stays blank.

python benchmarks/export.py [--model nano] [--formats onnx aoti] [--steps 4 50] [--runs 3] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hummingbird import HummingbirdPipeline, runtime
from hummingbird.evaluation.report import environment
from hummingbird.export import FORMATS, TARGETS, Bucket, ExportManifest, read_manifest
from hummingbird.export.build import export_pipeline
from hummingbird.models import UNetSpatioTemporalModel, preset_config

PROMPT = "a red circle moving right on a black background"
VARIANTS = ("float16", "int8", "int8-dynamic")


def load(name: str) -> HummingbirdPipeline:
    """Load a model; the name of a preset gives nano's text encoder and decoder around its random U-Net."""
    if name != "hummingbird-0.7b":
        return HummingbirdPipeline.from_pretrained(name)
    pipe = HummingbirdPipeline.from_pretrained("nano-teacher")
    torch.manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    unet = UNetSpatioTemporalModel.from_config({**preset_config(name), "cross_attention_dim": width}).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():  # layers that start as zero would hide what comes before them
                parameter.normal_(std=0.02)
    parts = {**pipe.components, "unet": unet}
    return HummingbirdPipeline(**parts, default_call=pipe.config.default_call)


def seconds_of(pipe: HummingbirdPipeline, steps: int, runs: int) -> tuple[dict[str, float], Any]:
    """Time whole videos after one that warms up; return median seconds and the last one's frames.

    CPU seconds of this process say more than those of the clock where others work on the same machine.
    """
    pipe.set_progress_bar_config(disable=True)
    clock, cpu = [], []
    for _ in range(runs + 1):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        noise = torch.Generator().manual_seed(0)
        frames = pipe(PROMPT, generator=noise, num_inference_steps=steps, output_type="np").frames
        clock.append(time.perf_counter() - start_s)
        cpu.append(time.process_time() - start_cpu_s)
    medians = {"clock_s": statistics.median(clock[1:]), "cpu_s": statistics.median(cpu[1:])}
    return {name: round(value, 2) for name, value in medians.items()}, frames


def build(
    pipe: HummingbirdPipeline, folder: Path, format: str, dtype: str, buckets: list[Bucket]
) -> ExportManifest:
    """Export for this machine's CPU into a new folder."""
    folder.mkdir(parents=True)
    manifest, _ = export_pipeline(
        pipe, folder, format=format, target="cpu", dtype=dtype, buckets=buckets, progress=print
    )
    return manifest


def rows_of(manifest: ExportManifest, folder: Path) -> list[dict[str, Any]]:
    """One row of the matrix for each graph."""
    sizes = {file.name: file.size_bytes for file in manifest.files}
    return [
        {
            "format": manifest.format,
            "target": manifest.target,
            "dtype": manifest.dtype,
            "part": graph.part,
            "built": True,
            "ran": True,
            "max_abs_difference": graph.max_abs_difference,
            "build_s": graph.build_s,
            "size_mb": round(sum(sizes[name] for name in (graph.file, graph.weights) if name) / 1e6, 2),
        }
        for graph in manifest.graphs
    ]


def blank(format: str, target: str) -> list[dict[str, Any]]:
    """Rows of what was not done, in the same columns."""
    return [
        {
            "format": format,
            "target": target,
            "dtype": "float32",
            "part": part,
            "built": False,
            "ran": False,
            "max_abs_difference": None,
            "build_s": None,
            "size_mb": None,
        }
        for part in ("text_encoder", "unet", "decoder")
    ]


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--model",
        default="nano-teacher",
        help="an embedded model, a folder, or hummingbird-0.7b (random weights)",
    )
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--dtypes", nargs="*", default=list(VARIANTS), choices=VARIANTS, help="of ONNX, too")
    parser.add_argument("--bucket", help="FRAMESxHEIGHTxWIDTH; the model's own where left out")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 50])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--to", type=Path, help="keep the folders here; existing ones are used as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    buckets = []
    if arguments.bucket:
        num_frames, height, width = map(int, arguments.bucket.split("x"))
        buckets = [Bucket(num_frames=num_frames, height=height, width=width)]

    pipe = load(arguments.model)
    call = {}
    if buckets:
        call = {"num_frames": num_frames, "height": height, "width": width}
        pipe.register_to_config(default_call={**pipe.config.default_call, **call})
    rows, speed = [], []
    reference: dict[int, Any] = {}
    for steps in arguments.steps:
        taken, reference[steps] = seconds_of(pipe, steps, arguments.runs)
        speed.append({"runtime": "pytorch", "steps": steps, **taken})
        print(speed[-1])  # noqa: T201
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.to or Path(temporary)
        wanted = [(format, "float32") for format in arguments.formats]
        wanted += [("onnx", dtype) for dtype in arguments.dtypes if "onnx" in arguments.formats]
        for format, dtype in wanted:
            folder = root / f"{format}-{dtype}"
            manifest = (
                read_manifest(folder) if folder.exists() else build(pipe, folder, format, dtype, buckets)
            )
            rows += rows_of(manifest, folder)
            exported = HummingbirdPipeline.from_pretrained(folder)
            for steps in arguments.steps if dtype == "float32" else arguments.steps[:1]:
                taken, frames = seconds_of(exported, steps, arguments.runs)
                entry = {
                    "runtime": f"{format} {dtype}",
                    "steps": steps,
                    **taken,
                    "max_abs_difference_of_frames": float(abs(frames - reference[steps]).max()),
                }
                speed.append(entry)
                print(entry)  # noqa: T201
    for target in TARGETS:
        for format in FORMATS:
            if not any(row["format"] == format and row["target"] == target for row in rows):
                rows += blank(format, target)
    result = {
        "model": arguments.model,
        "backend": runtime.backend(),
        "num_threads": arguments.threads,
        "matrix": rows,
        "videos": speed,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "environment": environment(torch.device("cpu"), "float32"),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
