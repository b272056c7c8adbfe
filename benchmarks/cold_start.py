"""How long from starting `hummingbird generate` to a file? Medians of fresh processes; last line JSON.

    python benchmarks/cold_start.py [--runs 5] [--model FOLDER] [--decoder nano] [--against COMMIT]

Without --model, the embedded few-step model. With --against the program of another commit takes turns with
this one and reads the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees only its own folder

from benchmarks.unet_commits import ROOT, unpack
from hummingbird.nano import resolve

PROMPT = "a red circle moving right on a black background"
IMPORTS = ("torch", "diffusers.utils", "transformers", "hummingbird.pipelines")


def import_seconds(environment: dict[str, str]) -> dict[str, float]:
    """Seconds of imports with all that they bring, by ``-X importtime``."""
    command = [sys.executable, "-X", "importtime", "-c", "import hummingbird.pipelines"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = {}
    for line in done.stderr.splitlines():
        match = re.match(r"import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", line)
        if match and match[2] in IMPORTS:
            found[match[2]] = int(match[1]) / 1e6
    return found


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model")
    parser.add_argument("--decoder")
    parser.add_argument("--against", help="a commit to compare with")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"now": ROOT}
        if arguments.against:
            sources = {arguments.against: unpack(arguments.against, Path(folder) / "against"), **sources}
        model = arguments.model or str(resolve("nano"))
        command = [sys.executable, "-m", "hummingbird.cli", "generate", PROMPT, "--model", model]
        command += ["--out", str(Path(folder) / "video.mp4")]
        if arguments.decoder:
            command += ["--decoder", arguments.decoder]
        for run in range(arguments.runs + 1):  # the first one fills the caches of files
            for name, source in sources.items():
                result = results.setdefault(name, {"runs_s": [], "runs_cpu_s": []})
                environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                began = time.perf_counter()
                subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=True)
                wall = time.perf_counter() - began
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                result["runs_s"].append(round(wall, 2))
                result["runs_cpu_s"].append(round(cpu, 2))
                print(f"run {run}, {name}: {wall:.2f} s, {cpu:.2f} s of CPU", flush=True)  # noqa: T201
        for name, source in sources.items():
            result = results[name]
            result["median_s"] = round(statistics.median(result["runs_s"][1:]), 2)
            result["median_cpu_s"] = round(statistics.median(result["runs_cpu_s"][1:]), 2)
            result["imports_s"] = import_seconds({**os.environ, "PYTHONPATH": str(source)})
    summary = {"decoder": arguments.decoder, "load_average": os.getloadavg(), **results}
    print(json.dumps(summary))  # noqa: T201


if __name__ == "__main__":
    main()
