"""How long a curation of many clips takes on how many processors, what it costs, and where the driver ends.

python benchmarks/data_scale.py --rate 0.29 [--clips 10000000] [--days 1 7 30] [--core-hour PRICE]
       [--gpu-rate CLIPS_PER_S --gpu-hour PRICE] [--kept 0.6 --clip-mib 2.0 --storage-month PRICE]

``--rate`` is clips per second and core, measured on a sample of your own videos with benchmarks/curation.py.
Prices are yours, in any currency; without one its column is left out. Nothing here is measured. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a run that ends in ``days``.

    Attributes:
        days: it may take.
        cores, gpus: that it needs for that.
        compute_cost: of both, for the whole run; None without prices.
        tasks_per_second: that the driver hands out: it is one process.
        tasks_per_block: the smallest setting with which the driver keeps up.
    """

    days: float
    cores: int
    gpus: int
    compute_cost: float | None
    tasks_per_second: float
    tasks_per_block: int


def plan(options: argparse.Namespace, days: float) -> Plan:
    """Sizes and costs.

    core hours = clips / (rate * efficiency) / 3600, and the same with the GPUs' rate; both work side by side.
    A clip is two tasks, score and write, the second for those kept; the sources' tasks are few beside them.
    """
    core_hours = options.clips / (options.rate * options.efficiency) / 3600
    gpu_hours = options.clips / (options.gpu_rate * options.efficiency) / 3600 if options.gpu_rate else 0.0
    prices = [
        hours * price
        for hours, price in ((core_hours, options.core_hour), (gpu_hours, options.gpu_hour))
        if price is not None
    ]
    tasks_per_second = options.clips * (1 + options.kept) / (days * 86400)
    return Plan(
        days=days,
        cores=math.ceil(core_hours / (24 * days)),
        gpus=math.ceil(gpu_hours / (24 * days)),
        compute_cost=round(sum(prices), 2) if prices else None,
        tasks_per_second=round(tasks_per_second, 1),
        tasks_per_block=max(1, math.ceil(tasks_per_second / options.blocks_per_second)),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--rate", type=float, required=True, help="clips per second and core")
    parser.add_argument("--efficiency", type=float, default=0.8, help="share of the paid time that works")
    parser.add_argument("--days", type=float, nargs="+", default=[1, 7, 30])
    parser.add_argument("--core-hour", type=float, help="price of one core for an hour")
    parser.add_argument("--gpu-rate", type=float, help="clips per second and GPU, where models use GPUs")
    parser.add_argument("--gpu-hour", type=float, help="price of one GPU for an hour")
    parser.add_argument("--kept", type=float, default=0.6, help="share of the clips that is written")
    parser.add_argument("--clip-mib", type=float, default=2.0, help="size of a written clip")
    parser.add_argument("--storage-month", type=float, help="price of a GiB for a month")
    parser.add_argument(
        "--blocks-per-second", type=float, default=50.0, help="that one driver hands out, measured"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not (options.rate > 0 and 0 < options.efficiency <= 1 and 0 <= options.kept <= 1):
        parser.error("expected --rate over 0, --efficiency in (0, 1] and --kept in [0, 1]")
    if min(options.days) <= 0 or options.blocks_per_second <= 0 or (options.gpu_rate or 1) <= 0:
        parser.error("expected --days, --blocks-per-second and --gpu-rate over 0")
    plans = [plan(options, days) for days in options.days]
    # Clips lie in OUTPUT/work and in shards until the run ends.
    written_gib = options.clips * options.kept * options.clip_mib / 1024
    sys.stdout.write(f"{'days':>6}{'cores':>8}{'gpus':>6}{'cost':>14}{'tasks/s':>9}{'block':>7}\n")
    for row in plans:
        cost = "-" if row.compute_cost is None else f"{row.compute_cost:,.0f}"
        sys.stdout.write(
            f"{row.days:>6g}{row.cores:>8}{row.gpus:>6}{cost:>14}{row.tasks_per_second:>9}"
            f"{row.tasks_per_block:>7}\n"
        )
    storage = {"shards_gib": round(written_gib), "output_peak_gib": round(2 * written_gib)}
    if options.storage_month is not None:
        storage["storage_cost_per_month"] = round(written_gib * options.storage_month, 2)
    sys.stdout.write(f"{storage}\n{json.dumps({'plans': [asdict(row) for row in plans], **storage})}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
