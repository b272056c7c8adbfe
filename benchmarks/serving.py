"""Does the server lose a job, make one twice, grow, or favour anybody? Many clients, kill -9 in the middle.

python benchmarks/serving.py [--clients 50] [--jobs 500] [--kills 1] [--max-batch 1] [--out FILE.json]

One client is greedy and sends its share of a fifth at once; the others share the rest. Every client has an
address of its own on loopback (127.1.0.x), by which the server tells them apart, and sends each job under an
idempotency key again and again until the server has confirmed it: full queues and a dead server are part of
the exercise. Prints progress, last line JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

VIDEO = {"num_inference_steps": 1, "num_frames": 2, "size": "16x16", "seed": 0}
PROMPT = "a red circle moving right on a black background"
LIMITS = "max_queued: 256\nmax_queued_per_client: 128\nmax_record_age_s: 1000000.0\n"
START_TIMEOUT_S = 300.0
POLLS_PER_S = 10.0
"""Of all clients together: the server's two cores are for videos."""


@dataclass
class Server:
    """A server process and its successors on the same folder."""

    folder: Path
    max_batch: int = 1
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    start_seconds: list[float] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def database(self) -> Path:
        return self.folder / "data" / "jobs.sqlite3"

    def start(self) -> None:
        """Return once it listens."""
        (self.folder / "limits.yaml").write_text(LIMITS)
        before = len(self.log.read_bytes()) if self.log.exists() else 0
        began = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hummingbird.cli", "serve", "--no-page", "--device", "cpu"),
                    *("--port", str(self.port), "--data", str(self.folder / "data")),
                    *("--limits", str(self.folder / "limits.yaml"), "--max-batch", str(self.max_batch)),
                ],
                stderr=log,
                stdout=log,
            )
        while time.perf_counter() < began + START_TIMEOUT_S:
            text = self.log.read_bytes()[before:].decode()
            found = re.search(r"listening on http://127.0.0.1:(\d+) ", text)
            if found:
                self.port = int(found[1])
                self.start_seconds.append(time.perf_counter() - began)
                return
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}: {text[-2000:]}")
            time.sleep(0.05)
        raise RuntimeError(f"the server did not listen within {START_TIMEOUT_S:g} s")

    def stop(self, how: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(120)

    def resident_bytes(self) -> int:
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30) as database:
            return database.execute(sql).fetchall()


@dataclass
class Traffic:
    """What the clients saw."""

    accepted: dict[str, str] = field(default_factory=dict)  # key -> id
    request_s: list[float] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    shown: dict[str, str] = field(default_factory=dict)  # id -> status


async def ask(client: httpx.AsyncClient, traffic: Traffic, method: str, url: str, **options: Any) -> Any:
    """One request, repeated until there is an answer that is not "later"."""
    while True:
        began = time.perf_counter()
        try:
            answer = await client.request(method, url, **options)
        except httpx.TransportError as error:
            traffic.statuses[type(error).__name__] += 1
            await asyncio.sleep(0.3)
            continue
        traffic.request_s.append(time.perf_counter() - began)
        traffic.statuses[str(answer.status_code)] += 1
        if answer.status_code in (429, 503):
            await asyncio.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))
            continue
        answer.raise_for_status()
        return answer.json()


async def be_client(number: int, num_jobs: int, server: Server, traffic: Traffic, poll_s: float) -> None:
    """Send all jobs as fast as they are taken, then look until all have ended."""
    transport = httpx.AsyncHTTPTransport(local_address=f"127.1.0.{number + 1}")
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(transport=transport, base_url=base, timeout=60) as client:
        own = []
        for job in range(num_jobs):
            key = f"{number}-{job}"
            body = {"prompt": PROMPT, **VIDEO}
            made = await ask(
                client, traffic, "POST", "/v1/videos", json=body, headers={"Idempotency-Key": key}
            )
            traffic.accepted[key] = made["id"]
            own.append(made["id"])
        while own:
            after: dict[str, str] = {}
            while True:
                page = await ask(client, traffic, "GET", "/v1/videos", params={"limit": "100", **after})
                for video in page["data"]:
                    if video["status"] in ("completed", "failed"):
                        traffic.shown[video["id"]] = video["status"]
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
            own = [job_id for job_id in own if job_id not in traffic.shown]
            if own:
                await asyncio.sleep(poll_s)


async def watch(server: Server, num_jobs: int, num_kills: int, samples: list[tuple[int, int, int]]) -> None:
    """Kill the server at even distances and start it again; sample (life, jobs done, resident bytes)."""
    kills = [num_jobs * (i + 1) // (num_kills + 1) for i in range(num_kills)]
    life = 0
    while True:
        ((num_done,),) = await asyncio.to_thread(
            server.query, "SELECT count(*) FROM jobs WHERE state IN ('done', 'failed', 'cancelled')"
        )
        samples.append((life, num_done, server.resident_bytes()))
        if kills and num_done >= kills[0]:
            kills.pop(0)
            print(f"kill -9 after {num_done} jobs", flush=True)  # noqa: T201
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await asyncio.to_thread(server.start)
            print(f"back after {server.start_seconds[-1]:.1f} s", flush=True)  # noqa: T201
            life += 1
        await asyncio.sleep(0.25)


def jain(shares: list[int]) -> float:
    """1 where all got the same, 1/n where one got all.

    Reference: Jain, Chiu, Hawe, DEC-TR-301, 1984.
    """
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{rank}": round(cuts[rank - 1], 3) for rank in (50, 90, 95, 99)} | {
        "max": round(max(values), 3)
    }


def split(num_jobs: int, num_clients: int) -> list[int]:
    """Jobs of each client: a fifth for the first, the rest shared out."""
    greedy = num_jobs // 5
    rest, extra = divmod(num_jobs - greedy, num_clients - 1)
    return [greedy, *(rest + (index < extra) for index in range(num_clients - 1))]


def run_load(
    folder: Path, num_clients: int, num_jobs: int, num_kills: int, max_batch: int = 1
) -> dict[str, Any]:
    """Drive one server, and those that follow it, until all jobs have ended; then take stock."""
    server, traffic, samples = Server(folder, max_batch), Traffic(), []
    shares = split(num_jobs, num_clients)
    server.start()

    async def drive() -> None:
        watcher = asyncio.create_task(watch(server, num_jobs, num_kills, samples))
        clients = [
            be_client(number, share, server, traffic, num_clients / POLLS_PER_S)
            for number, share in enumerate(shares)
        ]
        work = asyncio.ensure_future(asyncio.gather(*clients))
        done, _ = await asyncio.wait({watcher, work}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watcher, work):
            if task not in done:
                task.cancel()
        for task in done:
            task.result()

    began = time.perf_counter()
    try:
        asyncio.run(drive())
        seconds = time.perf_counter() - began
        metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).text
    finally:
        status = server.stop(signal.SIGTERM)
    return take_stock(server, traffic, samples, shares) | {
        "seconds": round(seconds, 1),
        "exit_status": status,
        "up": "hummingbird_up 1.0" in metrics,
    }


def take_stock(
    server: Server, traffic: Traffic, samples: list[tuple[int, int, int]], shares: list[int]
) -> dict[str, Any]:
    rows = server.query(
        "SELECT id, client, state, reason, num_starts, created_s, started_s, finished_s, size_bytes "
        "FROM jobs ORDER BY finished_s"
    )
    ends = re.findall(r"(video_[0-9a-f]{32}): (?:done|failed|cancelled)", server.log.read_text())
    videos = {path.stem for path in (server.folder / "data" / "videos").iterdir()}
    done = {row[0] for row in rows if row[2] == "done"}
    left = collections.Counter(shares_of(shares))
    finished: collections.Counter[str] = collections.Counter()
    for row in rows:  # until the first client has nothing left: from then on they do not compete
        finished[row[1]] += 1
        left[row[1]] -= 1
        if left[row[1]] == 0:
            break
    window = [finished[client] for client in shares_of(shares)]
    greedy, *_ = shares_of(shares)
    latency = {
        name: percentiles([row[7] - row[5] for row in rows if (row[1] == greedy) == is_greedy])
        for name, is_greedy in (("greedy", True), ("others", False))
    }
    last = [sample for sample in samples if sample[0] == samples[-1][0]]
    settled = [size for _, num_done, size in last if num_done >= last[0][1] + 20] or [last[-1][2]]
    return {
        "clients": len(shares),
        "jobs": sum(shares),
        "accepted": len(set(traffic.accepted.values())),
        "records": len(rows),
        "lost": len(set(traffic.accepted.values()) - {row[0] for row in rows}),
        "states": dict(collections.Counter(row[2] for row in rows)),
        "without_reason": sum(row[2] != "done" and not row[3] for row in rows),
        "ended_twice": sum(count > 1 for count in collections.Counter(ends).values()),
        "videos_missing": len(done - videos),
        "videos_left_over": len(videos - done),
        "begun_again": sum(row[4] > 1 for row in rows),
        "job_seconds": percentiles([row[7] - row[6] for row in rows]),
        "latency_s": latency,
        "http_s": percentiles(traffic.request_s),
        "http_answers": dict(traffic.statuses),
        "fairness": {
            "jain": round(jain(window), 4),
            "jobs_in_window": sum(window),
            "greedy_in_window": window[0],
            "others_in_window": [min(window[1:]), max(window[1:])],
        },
        "resident_mb": {
            "after_20_jobs": round(settled[0] / 1e6, 1),
            "end": round(settled[-1] / 1e6, 1),
            "max": round(max(settled) / 1e6, 1),
        },
        "start_seconds": [round(value, 1) for value in server.start_seconds],
    }


def shares_of(shares: list[int]) -> dict[str, int]:
    return {f"address:127.1.0.{number + 1}": share for number, share in enumerate(shares)}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_load(
            Path(folder), arguments.clients, arguments.jobs, arguments.kills, arguments.max_batch
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
