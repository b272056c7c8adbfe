"""What all reports share: the environment of a measurement, and pieces of their pages."""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hummingbird.page import Html, data_uri, element, join, table
from hummingbird.video_io import atomic_path, probe_video

__all__ = [
    "STYLE",
    "VideoShelf",
    "environment",
    "environment_section",
    "git_commit",
    "interval_bar",
    "peak_memory_mb",
    "percent",
    "scroll",
    "tile",
    "write_json",
    "write_text",
]


# -------------------------------------------------------------------------------------- measurements


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far: torch's on a GPU, the whole process's on a CPU (MiB)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def environment(device: torch.device, dtype: str) -> dict[str, Any]:
    """Hardware, versions, commit and date of a measurement.

    Args:
        device: what the model ran on.
        dtype: in which precision.
    """
    from hummingbird.doctor import examine

    seen = examine()
    hardware = _cpu_model()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_properties(device).name
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "dtype": dtype,
        "hardware": hardware,
        "cpu": _cpu_model(),
        "cpu_cores": seen["cpu_cores"],
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": seen["memory_bytes"],
        "platform": seen["platform"],
        "python": seen["python"],
        "hummingbird": seen["hummingbird"],
        "packages": seen["packages"],
        "git_commit": git_commit(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of the source that runs, with ``-dirty`` where files differ; None outside a repository.

    Args:
        folder: where to look; by default that of this file, and only if the repository knows this file.
    """
    here = Path(__file__)
    where = folder or here.parent
    known = ["ls-files", "--error-unmatch", here.name] if folder is None else ["status"]
    if _git(where, *known) is None or (commit := _git(where, "rev-parse", "HEAD")) is None:
        return None
    return commit + ("-dirty" if _git(where, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --------------------------------------------------------------------------------------------- pages

STYLE = """
.media { display: grid; gap: .9rem; margin: .9rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 45%), 1fr)) }
.media video { display: block; width: 100%; background: var(--track) }
.media .pixels { image-rendering: pixelated }
.media figcaption { font-size: .8rem; line-height: 1.4 }
.scroll { overflow-x: auto }
.scroll th, .scroll td { padding-right: .45rem; white-space: nowrap }
td.hit { background: color-mix(in srgb, var(--kept) var(--share), transparent); font-weight: 600 }
td.miss { background: color-mix(in srgb, var(--error) var(--share), transparent) }
.heat1 { --share: 14% } .heat2 { --share: 24% } .heat3 { --share: 36% } .heat4 { --share: 48% }
.heat5 { --share: 60% }
td.zero { color: var(--soft) }
.range { min-width: 4rem; vertical-align: middle }
.scroll .number { text-align: left }
.facts thead { display: none }
.facts th { white-space: nowrap; padding-right: 1rem; color: var(--soft) }
.confusion td, .confusion thead th { text-align: center }
.confusion thead th:first-child { text-align: left }
.range .whisker { stroke: var(--ink); stroke-width: 1.5 }
.sheet-image { display: block; max-width: 100%; height: auto; margin: .6rem 0; border-radius: 8px;
  border: 1px solid var(--line) }
.good { color: var(--kept) }
.plots { display: grid; gap: .9rem; margin: .9rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
"""
"""Rules of pages of evaluations, beside those of all pages."""

_VIDEO_BUDGET_BYTES = 24_000_000
_SMALL_PX = 160


class VideoShelf:
    """Videos inside one page: as many as a bound on its size allows."""

    def __init__(self, budget_bytes: int = _VIDEO_BUDGET_BYTES) -> None:
        self._left = budget_bytes
        self.shown = self.left_out = 0

    def figure(self, path: Path, *lines: object) -> Html | None:
        """A video with lines of text under it; None where it is missing or the page is full.

        Small videos are enlarged without blur and play by themselves.

        Args:
            path: an .mp4 that browsers play.
            lines: the first is what it should show.
        """
        if not path.is_file() or path.stat().st_size > self._left:
            self.left_out += 1
            return None
        content = path.read_bytes()
        self._left -= len(content)
        self.shown += 1
        info = probe_video(path)
        small = min(info.width, info.height) <= _SMALL_PX
        video = element(
            "video",
            src=data_uri(content, "video/mp4"),
            class_="pixels" if small else None,
            autoplay=True if small else None,
            controls=None if small else True,
            loop=True,
            muted=True,
            playsinline=True,
            preload="auto" if small else "metadata",
            title=lines[0] if lines else None,
        )
        texts = [element("p", line) for line in lines if line]
        return element("figure", video, element("figcaption", *texts), class_="card")

    def note(self) -> Html | None:
        """Says how many videos had no room; None where none."""
        if not self.left_out:
            return None
        text = f"{self.left_out} more videos lie in the folder: the page would have become too large."
        return element("p", text, class_="soft")


def tile(value: object, label: object) -> Html:
    """One figure in large letters."""
    return element("div", element("b", value), element("span", label, class_="soft"), class_="tile")


def interval_bar(share: float, low: float, high: float) -> Html:
    """A share in [0, 1] with its interval, as a bar."""
    says = f"{percent(share)}, 95% interval {percent(low)} to {percent(high)}"
    return element(
        "svg",
        element("title", says),
        element("rect", class_="track", width="100%", height=14),
        element("rect", class_="kept", width=f"{100 * share:.2f}%", height=14),
        element("line", class_="whisker", x1=f"{100 * low:.2f}%", x2=f"{100 * high:.2f}%", y1=7, y2=7),
        class_="bar range",
        role="img",
        aria_label=says,
    )


def percent(share: float) -> str:
    """A share for people: 12.3%."""
    return f"{100.0 * share:.1f}%"


def scroll(*children: object) -> Html:
    """What may be wider than a phone."""
    return element("div", *children, class_="scroll")


def environment_section(environment: Mapping[str, Any]) -> Html:
    """Hardware, versions, commit and date, for the end of a page."""
    rows = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        rows.append((key.replace("_", " "), "none" if value is None else str(value)))
    heading = element("h2", "Environment", id="environment")
    return join(heading, element("div", table(("", ""), rows), class_="card wide facts"))


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step; NaN is refused, which other programs cannot read."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
