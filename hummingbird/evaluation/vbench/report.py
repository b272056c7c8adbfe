"""The report of a VBench run: report.json, and one page with everything in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hummingbird.evaluation.vbench.totals import DIMENSIONS
from hummingbird.page import Html, bar, data_uri, element, page, short, table
from hummingbird.video_io import atomic_path

__all__ = ["render", "write_report"]

_NUM_SHOWN = 12
_MAX_SHOWN_BYTES = 4 * 2**20  # of one video; larger ones are named, not shown


def write_report(report: Mapping[str, Any], records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``report.html`` and, last, ``report.json``.

    Args:
        report: as ``evaluate_vbench`` returns it.
        records: of the videos, in their order; some are shown.
        folder: of the run.
    """
    for name, text in (
        ("report.html", render(report, records, folder)),
        ("report.json", json.dumps(report, indent=2) + "\n"),
    ):
        with atomic_path(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def render(report: Mapping[str, Any], records: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The page; ``records`` may be empty."""
    title = f"{report['model']} on VBench"
    settings = report["settings"]
    seconds = report["seconds_per_video"]
    wording = "rewritten" if settings["rewritten_prompts"] else "as given"
    made, planned = report["videos"]["made"], report["videos"]["planned"]
    line = (
        f"{made:,} of {planned:,} videos, {settings['num_prompts']:,} "
        f"prompts x {settings['samples']}; {settings['num_frames']} frames of {settings['width']}x"
        f"{settings['height']} at {settings['fps']:g} fps, {settings['num_inference_steps']} steps, guidance "
        f"scale {settings['guidance_scale']:g}, prompts {wording}"
        + ("" if seconds is None else f", {seconds:.2f} s a video")
    )
    return page(
        title,
        element("h1", title),
        element("p", line, class_="soft"),
        element("div", *(_tile(name, report["totals"][name]) for name in report["totals"]), class_="tiles"),
        *_notes(report),
        element("h2", "Dimensions"),
        _dimensions(report["dimensions"]),
        element("h2", "Videos"),
        element("div", *_shown(records, folder), class_="cards"),
        element("h2", "Settings"),
        table(("", ""), [(name, _plain(value)) for name, value in settings.items()]),
        element("h2", "Scorers"),
        table(("dimension", "versions"), [(name, _plain(value)) for name, value in report["scorer"].items()]),
        element("h2", "Environment"),
        *(
            table(("", ""), [(key, _plain(value)) for key, value in facts.items()], caption=f"shard {name}")
            for name, facts in report["environment"].items()
        ),
        has_videos=True,
    )


def _tile(name: str, value: float | None) -> Html:
    return element("div", element("b", "-" if value is None else f"{value:.2f}"), name, class_="tile")


def _notes(report: Mapping[str, Any]) -> list[Html]:
    notes = list(report["deviations"])
    if report["status"] == "sampling":
        notes.insert(0, f"videos are missing, first {report['videos']['first_missing']!r}: no scores yet")
    elif report["status"] == "made":
        notes.insert(0, "not scored: --vbench-python names an environment that has the vbench package")
    return [element("p", note, class_="card note") for note in notes]


def _dimensions(scores: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = []
    for name, ends in DIMENSIONS.items():
        found = scores.get(name)
        what = (ends.group, f"{ends.weight:g}", f"{ends.low:g} to {ends.high:g}")
        if found is None:
            rows.append((name, *what, "-", "-", "-"))
            continue
        share = min(max(found["normalized"], 0.0), 1.0)
        label = f"{name}: {found['normalized']:.4f}"
        rows.append(
            (
                name,
                *what,
                f"{found['score']:.4f}",
                element("span", f"{found['normalized']:.4f}", bar([("kept", share)], 1.0, label)),
                f"{found['num_scored']:,} of {found['num_videos']:,}",
            )
        )
    return table(("dimension", "group", "weight", "counts as 0 to 1", "raw", "normalized", "videos"), rows)


def _shown(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Html]:
    made = [record for record in records if "sha256" in record]
    picked = np.linspace(0, len(made) - 1, min(_NUM_SHOWN, len(made))).round().astype(int).tolist()
    figures = []
    for record in (made[index] for index in picked):
        path = folder / "videos" / record["file"]
        text = element(
            "figcaption", short(record["prompt"], 120), f" ({record['sample']}, seed {record['seed']})"
        )
        if not path.is_file() or path.stat().st_size > _MAX_SHOWN_BYTES:
            picture = element("div", record["file"], class_="missing")
        else:
            picture = element(
                "video",
                src=data_uri(path.read_bytes(), "video/mp4"),
                controls=True,
                loop=True,
                muted=True,
                playsinline=True,
                width="100%",
            )
        figures.append(element("figure", picture, text, class_="card"))
    return figures


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
