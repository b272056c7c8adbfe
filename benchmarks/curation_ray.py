"""The local engine against Ray on the same input: the same bytes, at which speed, and what Ray's store held.

python benchmarks/curation_ray.py --input FOLDER [--workers 2] [--config configs/data/default.yaml]

Three runs into temporary folders, each the whole command: local; ``--engine ray``, which starts and ends Ray
itself; and ``--engine ray`` on a cluster that is already there, whose object store is watched with Ray's
own figures meanwhile. Last, tasks that do nothing: what Ray costs for each. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def measure(words: list[str], output: Path, address: str | None = None) -> dict[str, Any]:
    """One run: seconds, seconds and tasks of each phase, and hashes of what it left."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", "run", *words, "--json", "--output", str(output)],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - started
    summary = json.loads(done.stdout.splitlines()[-1])
    clips = len((output / "work" / "score.journal").read_bytes().splitlines())
    files = [output / "manifest.parquet", output / "thresholds.json", *sorted((output / "shards").iterdir())]
    return {
        "clips": clips,
        "kept": summary["kept"],
        "seconds": round(seconds, 1),
        "clips_per_second": round(clips / seconds, 3),
        "worker_peak_mib": summary["worker_peak_mib"],
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


class StoreWatch(threading.Thread):
    """Asks Ray ten times a second how full its object store is."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._is_over = threading.Event()
        self.peak_bytes = 0
        self.stats: Any = None

    def run(self) -> None:
        """See ``Thread``."""
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(self._address)
        while not self._is_over.wait(0.1):
            self.stats = get_memory_info_reply(state).store_stats
            self.peak_bytes = max(self.peak_bytes, self.stats.object_store_bytes_used)

    def end(self) -> dict[str, float]:
        """The figures."""
        self._is_over.set()
        self.join()
        return {
            "object_store_peak_mib": round(self.peak_bytes / 2**20, 3),
            "object_store_size_mib": round(self.stats.object_store_bytes_avail / 2**20),
            "created_mib": round(self.stats.cumulative_created_bytes / 2**20, 3),
            "spilled_mib": round(self.stats.spilled_bytes_total / 2**20, 3),
        }


def overhead(workers: int, num_tasks: int) -> dict[str, float]:
    """Seconds to the first answer, and answers per second after it, of tasks that do nothing."""
    from data_pipeline.engine import Task
    from data_pipeline.ray_engine import RayConfig, RayPool

    found = {}
    for block in (1, 20):
        with RayPool(RayConfig(tasks_per_block=block), workers) as pool:
            tasks = [Task(key=str(number), arguments=(number,)) for number in range(num_tasks)]
            started = time.perf_counter()
            times = [time.perf_counter() - started for _ in pool.run(abs, tasks, timeout_s=60)]
        found[f"first_answer_seconds_block_{block}"] = round(times[0], 1)
        rate = (num_tasks - block) / max(times[-1] - times[0], 1e-9)
        found[f"empty_tasks_per_second_block_{block}"] = round(rate, 1)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="folder of videos")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "data" / "default.yaml")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=1000, help="tasks that do nothing")
    options = parser.parse_args(arguments)
    words = [str(options.config.resolve()), "--input", str(options.input.resolve())]
    words += ["--workers", str(options.workers)]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.path.insert(0, str(ROOT))
    import ray

    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        local = measure(words, outputs / "local")
        ours = measure([*words, "--engine", "ray"], outputs / "ray")
        started = time.perf_counter()
        ray.init(
            address="local",
            num_cpus=options.workers,
            include_dashboard=False,
            object_store_memory=128 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        start_s = time.perf_counter() - started
        address = ray.get_runtime_context().gcs_address
        watch = StoreWatch(address)
        watch.start()
        cluster = measure([*words, "--engine", "ray"], outputs / "cluster", address)
        store = watch.end()
        empty = overhead(options.workers, options.tasks)
        ray.shutdown()
    hashes = [run.pop("sha256") for run in (local, ours, cluster)]
    identical = all(found == hashes[0] for found in hashes)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors",
        "ray": ray.__version__,
        "workers": options.workers,
        "identical": identical,
        "files_compared": len(hashes[0]),
        "local": local,
        "ray_of_its_own": ours,
        "ray_cluster": {**cluster, "start_seconds": round(start_s, 1)},
        "ratio_of_its_own": round(ours["clips_per_second"] / local["clips_per_second"], 3),
        "ratio_cluster": round(cluster["clips_per_second"] / local["clips_per_second"], 3),
        **store,
        **empty,
    }
    for name in ("local", "ray_of_its_own", "ray_cluster"):
        sys.stdout.write(f"{name:<15} {result[name]}\n")
    sys.stdout.write(f"the same {len(hashes[0])} files, byte for byte: {identical}\n{json.dumps(result)}\n")
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
