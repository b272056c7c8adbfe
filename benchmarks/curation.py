"""How many clips a curation does per second and core, and where the time goes.

python benchmarks/curation.py --input FOLDER [--workers 1 2] [--config configs/data/default.yaml]

Each number of workers does a run of its own into a temporary folder. Clips per second count every clip that
was scored; the time is that of the whole command, from its start to the manifest. The shares are of the time
that tasks took in the workers, as the journals have it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def measure(input_path: Path, config: Path, workers: int, output: Path) -> dict[str, Any]:
    """One run; its speed and the seconds of each kind of work."""
    command = [sys.executable, "-m", "data_pipeline", "run", str(config), "--json"]
    places = ["--input", str(input_path), "--output", str(output), "--workers", str(workers)]
    started = time.perf_counter()
    done = subprocess.run([*command, *places], cwd=ROOT, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout.splitlines()[-1])
    spent = Counter[str]()
    num_clips = 0
    for name in ("split", "score", "write"):
        for value in journal_values(output / "work" / f"{name}.journal"):
            spent.update(value.get("seconds", {}))
            num_clips += name == "score"
    total = sum(spent.values())
    return {
        "workers": workers,
        "clips": num_clips,
        "kept": summary["kept"],
        "seconds": round(seconds, 1),
        "clips_per_second_per_worker": round(num_clips / seconds / workers, 3),
        "task_seconds": round(total, 1),
        "shares": {name: round(value / total, 3) for name, value in spent.most_common()},
        "worker_peak_mib": summary["worker_peak_mib"],
    }


def journal_values(path: Path) -> list[dict[str, Any]]:
    """Results in a journal, which are the third word of its lines."""
    lines = path.read_bytes().splitlines()
    assert all(int(line[:8], 16) == zlib.crc32(line[9:] + b"\n") for line in lines)
    return [json.loads(line.split(b" ", 2)[2]) for line in lines]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="folder of videos")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "data" / "default.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    rows = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(options.input.resolve(), options.config.resolve(), workers, Path(folder) / "out")
        rows.append(row)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items())
        sys.stdout.write(
            f"{workers} workers: {row['clips']} clips ({row['kept']} kept) in {row['seconds']} s, "
            f"{row['clips_per_second_per_worker']} clips/s per worker; {shares}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"machine": platform.processor() or platform.machine(), "runs": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
