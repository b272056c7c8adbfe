"""What ``evaluate`` leaves on disk: report.json, a page in one file, contact sheets, some videos."""

from __future__ import annotations

import base64
import datetime
import html
import json
import resource
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from hummingbird.nano import world
from hummingbird.nano.oracle import UNCLEAR
from hummingbird.nano.world import ATTRIBUTES
from hummingbird.video_io import atomic_path, write_video

__all__ = ["VALUES", "environment", "keep_video", "peak_memory_mb", "remove_videos", "write_report"]

VALUES = dict(zip(ATTRIBUTES, (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), strict=True))
"""Attribute -> its values in the world's order."""

_STRIP_FRAMES = 8
_TILE = 64  # shorter side of a frame in a strip, pixels
_TEXT_HEIGHT = 34

Record = dict[str, Any]


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


# -------------------------------------------------------------------------------------------- videos


def keep_video(folder: Path, index: int, video: np.ndarray, fps: float) -> None:
    """Writes a video to show, and the strip of its frames that the contact sheets are made from.

    Args:
        folder: the report's.
        index: number of the video.
        video: (F, H, W, 3) uint8 RGB.
        fps: frames per second.
    """
    write_video(video, folder / "videos" / f"{index:04d}.mp4", fps)
    picked = video[np.linspace(0, len(video) - 1, min(_STRIP_FRAMES, len(video))).round().astype(int)]
    height, width = picked.shape[1:3]
    scale = _TILE / min(height, width)
    size = (round(width * scale), round(height * scale))
    tiles = [np.asarray(PIL.Image.fromarray(frame).resize(size)) for frame in picked]
    with atomic_path(folder / "strips" / f"{index:04d}.png") as partial:
        PIL.Image.fromarray(np.concatenate(tiles, axis=1)).save(partial, format="PNG")


def remove_videos(folder: Path) -> None:
    """Removes what ``keep_video`` wrote for an earlier report in the same folder."""
    for pattern in ("videos/[0-9][0-9][0-9][0-9]*.mp4", "strips/[0-9][0-9][0-9][0-9]*.png"):
        for path in folder.glob(pattern):
            path.unlink()


def _sheet(records: Sequence[Record], folder: Path, name: str) -> Path | None:
    """A contact sheet: for each video its frames, its prompt and what the oracle saw; None without videos."""
    path = folder / name
    rows = [(record, folder / "strips" / f"{record['index']:04d}.png") for record in records]
    rows = [(record, strip) for record, strip in rows if strip.is_file()]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    strips = [PIL.Image.open(strip).convert("RGB") for _, strip in rows]
    width = max(strip.width for strip in strips) + 8
    height = sum(strip.height + _TEXT_HEIGHT for strip in strips) + 8
    sheet = PIL.Image.new("RGB", (width, height), (250, 250, 250))
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=11)
    top = 4
    for (record, _), strip in zip(rows, strips, strict=True):
        sheet.paste(strip, (4, top))
        top += strip.height
        right = record["right"]["all"]
        draw.text((4, top + 1), f"{record['index']}: {record['prompt']}", fill=(20, 20, 20), font=font)
        draw.text((4, top + 14), _seen_text(record), fill=(0, 110, 40) if right else (180, 20, 20), font=font)
        top += _TEXT_HEIGHT
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG")
    return path


def _seen_text(record: Record) -> str:
    seen = record["seen"]
    text = f"seen: {seen['color']} {seen['shape']}, {seen['motion']}, {seen['background']} background"
    wrong = [name for name in ATTRIBUTES if not record["right"][name]]
    return f"{text} (wrong: {', '.join(wrong)})" if wrong else text


# -------------------------------------------------------------------------------------------- report


def write_report(
    report: dict[str, Any], records: Sequence[Record], folder: Path, *, samples: Collection[int] = ()
) -> None:
    """Writes contact sheets, ``verdicts.jsonl``, ``report.html`` and, last, ``report.json``.

    Args:
        report: as ``evaluate_moving_shapes`` returns it.
        records: one verdict per video.
        folder: made where it is missing.
        samples: numbers of the videos on ``samples.png``; ``failures.png`` has wrong ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [record for record in records if record["index"] in samples]
    failures = [record for record in records if not record["right"]["all"]]
    sheets = {
        "Samples": _sheet(chosen, folder, "samples.png"),
        "Failures": _sheet(failures, folder, "failures.png"),
    }
    _write_text(folder / "verdicts.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    _write_text(folder / "report.html", render_html(report, sheets))
    _write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


_STYLE = """
body { font: 15px/1.45 sans-serif; color: #1c1c1c; margin: 2rem auto; max-width: 62rem; padding: 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } caption { text-align: left; font-weight: 600 }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child { text-align: left }
img { max-width: 100%; border: 1px solid #ddd } .hit { background: #d9f2df } .miss { background: #fbdcd8 }
""".strip()


def render_html(report: dict[str, Any], sheets: dict[str, Path | None]) -> str:
    """One page with everything in it.

    Args:
        report: as ``evaluate_moving_shapes`` returns it.
        sheets: heading -> picture, embedded into the page; None ones are left out.
    """
    title = f"{report['model']} on {report['suite']}"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{report['num_prompts']} prompts, {report['num_inference_steps']} steps, guidance scale "
        f"{report['guidance_scale']:g}, seed {report['seed']}, {report['seconds_per_video']:.2f} s a video "
        f"in batches of {report['batch_size']}, peak memory {report['peak_memory_mb']:.0f} MiB.</p>",
        _accuracy_table(report),
    ]
    for heading, path in sheets.items():
        if path is not None:
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f"<h2>{heading}</h2><img alt='{heading}: frames, prompt and verdict of each video' "
                f"src='data:image/png;base64,{data}'>"
            )
    parts.append("<h2>By value</h2>")
    for name, values in report["by_value"].items():
        rows = [
            (value, row["count"], _percent(row["accuracy"]), _percent(row["all"]), _percent(row["unclear"]))
            for value, row in values.items()
        ]
        parts.append(_table(name, ("asked for", "videos", "right", "all four right", "unclear"), rows))
    parts.append("<h2>Asked for and seen</h2>")
    parts += [_confusion_table(name, table) for name, table in report["confusion"].items()]
    reasons = report["unclear_reasons"].items()
    parts += ["<h2>Why unclear</h2>", _table("", ("reason", "videos"), reasons)]
    facts = [(key, json.dumps(value)) for key, value in report["environment"].items()]
    parts += ["<h2>Environment</h2>", _table("", ("", ""), facts), "</body></html>\n"]
    return "\n".join(parts)


def _accuracy_table(report: dict[str, Any]) -> str:
    rows = []
    for name, share in report["accuracy"].items():
        low, high = report["interval_95"][name]
        groups = (report["accuracy_seen"], report["accuracy_unseen"])
        shares = ["-" if group is None else _percent(group[name]) for group in groups]
        unclear = report["unclear"].get(name, report["unclear"]["any"])
        interval = f"{_percent(low)} to {_percent(high)}"
        rows.append((name, _percent(share), interval, *shares, _percent(unclear)))
    head = ("", "right", "95% interval", "seen combinations", "unseen combinations", "unclear")
    return _table("Accuracy", head, rows)


def _confusion_table(name: str, table: dict[str, dict[str, int]]) -> str:
    columns = (*VALUES[name], UNCLEAR)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in (f"{name} asked", *columns))
    lines = []
    for asked, counts in table.items():
        cells = []
        for column in columns:
            count = counts.get(column, 0)
            kind = "" if not count else " class='hit'" if column == asked else " class='miss'"
            cells.append(f"<td{kind}>{count or ''}</td>")
        lines.append(f"<tr><th>{html.escape(asked)}</th>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th>{html.escape(str(first))}</th>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<tr>{top}</tr>{body}</table>"


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}%"
