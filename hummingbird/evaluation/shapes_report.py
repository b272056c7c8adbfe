"""What the moving-shapes suite leaves on disk: report.json, a page, contact sheets, some videos."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from hummingbird.evaluation.report import (
    STYLE,
    VideoShelf,
    environment_section,
    interval_bar,
    percent,
    scroll,
    tile,
    write_json,
    write_text,
)
from hummingbird.nano import world
from hummingbird.nano.oracle import UNCLEAR
from hummingbird.nano.world import ATTRIBUTES
from hummingbird.page import Html, data_uri, element, join, page, table
from hummingbird.video_io import atomic_path, write_video

__all__ = [
    "VALUES",
    "keep_video",
    "model_line",
    "remove_video",
    "remove_videos",
    "render_html",
    "write_report",
]

VALUES = dict(zip(ATTRIBUTES, (world.SHAPES, world.COLORS, world.MOTIONS, world.BACKGROUNDS), strict=True))
"""Attribute -> its values in the world's order."""

_STRIP_FRAMES = 8
_TILE = 64  # shorter side of a frame in a strip, pixels
_TEXT_HEIGHT = 34
_SHOWN_FAILURES, _SHOWN_SAMPLES = 24, 12
_MAX_SHEET_BYTES = 8_000_000

Record = dict[str, Any]


# -------------------------------------------------------------------------------------------- videos


def _video_path(folder: Path, index: int) -> Path:
    return folder / "videos" / f"{index:04d}.mp4"


def _strip_path(folder: Path, index: int) -> Path:
    return folder / "strips" / f"{index:04d}.png"


def keep_video(folder: Path, index: int, video: np.ndarray, fps: float) -> None:
    """Writes a video to show, and the strip of its frames that the contact sheets are made from.

    Args:
        folder: the report's.
        index: number of the video.
        video: (F, H, W, 3) uint8 RGB.
        fps: frames per second.
    """
    write_video(video, _video_path(folder, index), fps)
    picked = video[np.linspace(0, len(video) - 1, min(_STRIP_FRAMES, len(video))).round().astype(int)]
    height, width = picked.shape[1:3]
    scale = _TILE / min(height, width)
    size = (round(width * scale), round(height * scale))
    tiles = [np.asarray(PIL.Image.fromarray(frame).resize(size)) for frame in picked]
    with atomic_path(_strip_path(folder, index)) as partial:
        PIL.Image.fromarray(np.concatenate(tiles, axis=1)).save(partial, format="PNG")


def remove_video(folder: Path, index: int) -> None:
    """Removes what ``keep_video`` wrote."""
    _video_path(folder, index).unlink(missing_ok=True)
    _strip_path(folder, index).unlink(missing_ok=True)


def remove_videos(folder: Path, keep: Collection[int] = ()) -> None:
    """Removes what ``keep_video`` wrote, but for some: an earlier report of the same folder is gone."""
    for pattern in ("videos/[0-9][0-9][0-9][0-9]*.mp4", "strips/[0-9][0-9][0-9][0-9]*.png"):
        for path in folder.glob(pattern):
            if path.stem.isdecimal() and int(path.stem) not in keep:
                path.unlink()


def _sheet(records: Sequence[Record], folder: Path, name: str) -> Path | None:
    """A contact sheet: for each video its frames, its prompt and what the oracle saw; None without videos."""
    path = folder / name
    rows = [(record, _strip_path(folder, record["index"])) for record in records]
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
    wrong = _wrong(record)
    return f"{text} (wrong: {', '.join(wrong)})" if wrong else text


def _wrong(record: Record) -> list[str]:
    return [name for name in ATTRIBUTES if not record["right"][name]]


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
        "samples": _sheet(chosen, folder, "samples.png"),
        "failures": _sheet(failures, folder, "failures.png"),
    }
    write_text(folder / "verdicts.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(folder / "report.html", render_html(report, records, folder, sheets, samples=samples))
    write_json(folder / "report.json", report)


def render_html(
    report: dict[str, Any],
    records: Sequence[Record],
    folder: Path,
    sheets: Mapping[str, Path | None],
    *,
    samples: Collection[int] = (),
) -> str:
    """One page with everything in it.

    Args:
        report: as ``evaluate_moving_shapes`` returns it.
        records: one verdict per video.
        folder: where ``keep_video`` wrote videos.
        sheets: ``failures`` and ``samples`` -> picture, embedded into the page; None ones are left out.
        samples: numbers of the videos that are shown whatever their verdict.
    """
    shelf = VideoShelf()
    low, high = report["interval_95"]["all"]
    parameters = report.get("parameters")
    tiles = [
        tile(percent(report["accuracy"]["all"]), f"all four right ({percent(low)} to {percent(high)})"),
        tile(f"{report['num_prompts']:,}", "prompts, half of them unseen combinations"),
        tile(report["num_inference_steps"], f"steps, guidance scale {report['guidance_scale']:g}"),
        tile(f"{report['seconds_per_video']:.2f} s", _where(report)),
        tile(f"{report['peak_memory_mb']:,.0f} MiB", "peak memory of a process"),
        tile(f"{sum(parameters.values()) / 1e6:.2f} M", "parameters") if parameters else None,
    ]
    failures = [record for record in records if not record["right"]["all"]]
    chosen = [record for record in records if record["index"] in samples]
    title = f"{report['model']} on {report['suite']}"
    return page(
        title,
        element("h1", title),
        element("p", model_line(report), class_="soft"),
        element("div", *tiles, class_="tiles"),
        element("h2", "Accuracy", id="accuracy"),
        element(
            "p",
            "A video is right where the oracle, which is not told the prompt, names what the prompt asks "
            "for. Intervals are Wilson's, 95%.",
            class_="soft",
        ),
        _accuracy(report),
        _media("Failures", failures, folder, shelf, sheets.get("failures"), _SHOWN_FAILURES),
        _media("Samples", chosen, folder, shelf, sheets.get("samples"), _SHOWN_SAMPLES),
        shelf.note(),
        element("h2", "Asked for and seen", id="confusion"),
        element("p", "Rows are what was asked for, columns what the oracle saw.", class_="soft"),
        *(_confusion_table(name, counts) for name, counts in report["confusion"].items()),
        element("h2", "By value", id="values"),
        element("div", *(_by_value(name, rows) for name, rows in report["by_value"].items()), class_="plots"),
        _unclear(report),
        environment_section(report["environment"]),
        style=STYLE,
        has_videos=True,
    )


def _where(report: Mapping[str, Any]) -> str:
    workers, threads = report.get("workers", 1), report["environment"].get("torch_threads")
    text = f"a video, {report['environment']['device']}, batches of {report['batch_size']}"
    if str(report["environment"]["device"]).startswith("cpu"):
        text += f", {workers} process{'es' if workers > 1 else ''} of {threads} thread{'s' * (threads != 1)}"
    return text


def model_line(report: Mapping[str, Any]) -> str:
    """What a report is of, in one line."""
    environment = report["environment"]
    commit = (environment.get("git_commit") or "no repository")[:12]
    return (
        f"seed {report['seed']}, weights {report['weights']}, {environment['dtype']}, "
        f"{environment['hardware']}, {environment['date'][:10]}, commit {commit}"
    )


def _accuracy(report: Mapping[str, Any]) -> Html:
    rows = []
    for name, share in report["accuracy"].items():
        low, high = report["interval_95"][name]
        unclear = report["unclear"].get(name, report["unclear"]["any"])
        rows.append(
            (
                "all four" if name == "all" else name,
                percent(share),
                interval_bar(share, low, high),
                f"{percent(low)} to {percent(high)}",
                _group(report, name, "seen"),
                _group(report, name, "unseen"),
                percent(unclear),
            )
        )
    head = ("", "right", "", "95% interval", "seen combinations", "unseen combinations", "unclear")
    return element("div", scroll(table(head, rows)), class_="card wide")


def _group(report: Mapping[str, Any], name: str, group: str) -> str:
    shares, intervals = report[f"accuracy_{group}"], report[f"interval_95_{group}"]
    if shares is None:
        return "-"
    low, high = intervals[name]
    return f"{percent(shares[name])} ({percent(low)} to {percent(high)})"


def _media(
    title: str,
    records: Sequence[Record],
    folder: Path,
    shelf: VideoShelf,
    sheet: Path | None,
    most: int,
) -> Html | None:
    """Videos with what was asked for and seen, and the contact sheet of more of them."""
    if not records:
        return None
    figures = []
    for record in records[:most]:
        right = record["right"]["all"]
        verdict = element("span", _seen_text(record), class_="good" if right else "bad")
        caption = f"{record['index']}: {record['prompt']}"
        figures.append(shelf.figure(_video_path(folder, record["index"]), caption, verdict))
    picture = None
    if sheet is not None and sheet.stat().st_size <= _MAX_SHEET_BYTES:
        image = element(
            "img",
            src=data_uri(sheet.read_bytes(), "image/png"),
            alt=f"{title}: frames, prompt and verdict of each video",
            class_="sheet-image",
        )
        picture = element("details", element("summary", f"Contact sheet ({sheet.name})"), image)
    return join(
        element("h2", title, id=title.lower()),
        element("p", f"{min(len(records), most)} of {len(records)} videos", class_="soft"),
        element("div", *figures, class_="media"),
        picture,
    )


def _confusion_table(name: str, counts: Mapping[str, Mapping[str, int]]) -> Html:
    columns = (*VALUES[name], UNCLEAR)
    rows = []
    for asked, row in counts.items():
        total = sum(row.values())
        cells = []
        for column in columns:
            count = row.get(column, 0)
            kind = "hit" if column == asked else "miss"
            kind = f"{kind} heat{math.ceil(5 * count / total)}" if count else "zero"
            cells.append(element("td", count or "·", class_=kind))
        rows.append(element("tr", element("th", asked, scope="row"), *cells))
    head = element("tr", *(element("th", text, scope="col") for text in (name, *columns)))
    return element(
        "div",
        scroll(element("table", element("thead", head), element("tbody", *rows))),
        class_="card wide confusion",
    )


def _by_value(name: str, values: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = [
        (
            value,
            row["count"],
            percent(row["accuracy"]),
            interval_bar(row["accuracy"], *row["interval_95"]),
            percent(row["all"]),
            percent(row["unclear"]),
        )
        for value, row in values.items()
    ]
    head = (name, "videos", "right", "", "all four", "unclear")
    return element("div", scroll(table(head, rows)), class_="card")


def _unclear(report: Mapping[str, Any]) -> Html | None:
    reasons = report["unclear_reasons"]
    if not reasons:
        return None
    rows = [(reason, count) for reason, count in reasons.items()]
    return join(
        element("h2", "Why unclear", id="unclear"),
        element("div", table(("reason", "videos"), rows), class_="card wide"),
    )
