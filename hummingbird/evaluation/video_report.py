"""The page of the metrics suite."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from hummingbird.evaluation.metrics import METRICS
from hummingbird.evaluation.report import STYLE, VideoShelf, environment_section, scroll, tile
from hummingbird.page import Html, data_uri, element, histogram, join, number, page, short, table
from hummingbird.video_io import VideoError, iter_frames, probe_video

if TYPE_CHECKING:
    from hummingbird.evaluation.video_suite import Source

__all__ = ["render"]

_SHOWN_VIDEOS, _SHOWN_ERRORS = 8, 50
_MAX_VIDEO_BYTES = 1_500_000
_STRIP_FRAMES, _STRIP_SIDE = 4, 90
_MAX_HISTOGRAMS = 3  # sources whose histograms are drawn
_MIN_VALUES = 8  # a histogram of fewer shows nothing that the means do not

Row = dict[str, Any]


def render(result: Mapping[str, Any], sources: Sequence[Source], rows: Mapping[str, Sequence[Row]]) -> str:
    """One page with everything in it.

    Args:
        result: as ``evaluate_videos`` returns it.
        sources: what was measured.
        rows: of each source.
    """
    shelf = VideoShelf()
    summaries = result["sources"]
    count = sum(summary["num_videos"] for summary in summaries)
    errors = sum(summary["num_errors"] for summary in summaries)
    title = "Metrics of " + short(", ".join(summary["name"] for summary in summaries), 80)
    return page(
        title,
        element("h1", title),
        element(
            "div",
            tile(f"{count:,}", "videos"),
            tile(f"{errors:,}", "that cannot be measured"),
            tile(len(METRICS), "metrics"),
            tile(len(summaries[0]["rewards"]), "rewards"),
            class_="tiles",
        ),
        element("h2", "Means", id="means"),
        element(
            "p",
            "Mean over videos with its 95% interval (normal approximation). An arrow tells which way is "
            "better where one is; what a metric does not tell is in docs/evaluation.md.",
            class_="soft",
        ),
        element("div", scroll(_means(summaries)), class_="card wide"),
        _rewards(summaries),
        _frechet(result["frechet"]),
        element("h2", "Metric by metric", id="metrics"),
        element("div", *(_metric(name, summaries, rows) for name in METRICS), class_="plots"),
        element("h2", "Videos", id="videos"),
        *(_videos(source, rows[source.name], shelf) for source in sources),
        shelf.note(),
        _errors(summaries),
        environment_section(result["environment"]),
        style=STYLE,
        has_videos=True,
    )


def _mean(summary: Mapping[str, Any]) -> str:
    if not summary["count"]:
        return "none"
    text = number(summary["mean"])
    if summary["interval_95"] is not None:
        text += f" ± {number(summary['interval_95'][1] - summary['mean'])}"
    return text


_ARROWS = {"low": " \u2193", "high": " \u2191", "": ""}


def _means(summaries: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        (metric.title + _ARROWS[metric.better], *(_mean(summary["metrics"][name]) for summary in summaries))
        for name, metric in METRICS.items()
    ]
    return table(("", *(summary["name"] for summary in summaries)), rows)


def _rewards(summaries: Sequence[Mapping[str, Any]]) -> Html | None:
    names = list(summaries[0]["rewards"])
    if not names:
        return None
    rows = [(name, *(_mean(summary["rewards"][name]) for summary in summaries)) for name in names]
    notes = [
        element("p", f"{summary['name']}, {name}: {count} videos without a score: {reason}", class_="soft")
        for summary in summaries
        for name in names
        for reason, count in summary["rewards"][name]["why_missing"].items()
    ]
    head = ("reward", *(summary["name"] for summary in summaries))
    return join(
        element("h2", "Rewards", id="rewards"),
        element(
            "p",
            "Cosine of a video and its prompt under each reward's model, higher is better. Scores of "
            "different rewards have different scales.",
            class_="soft",
        ),
        element("div", scroll(table(head, rows)), class_="card wide"),
        *notes,
    )


def _frechet(found: Sequence[Mapping[str, Any]]) -> Html | None:
    if not found:
        return None
    rows = []
    for row in found:
        value = row["error"] if row["distance"] is None else f"{row['distance']:.4g}"
        counts = f"{row['num_a']} and {row['num_b']}"
        rows.append((row["features"], f"{row['a']} to {row['b']}", value, counts, row["dimensions"]))
    head = ("features", "between", "squared distance", "features of each", "dimensions")
    return join(
        element("h2", "Frechet distances", id="frechet"),
        element(
            "p",
            "Lower is more alike. Only distances over the same features and numbers of features compare: "
            "with fewer features than dimensions they are far too high.",
            class_="soft",
        ),
        element("div", scroll(table(head, rows)), class_="card wide"),
    )


def _metric(name: str, summaries: Sequence[Mapping[str, Any]], rows: Mapping[str, Sequence[Row]]) -> Html:
    metric = METRICS[name]
    high = "no end" if metric.high == float("inf") else f"{metric.high:g}"
    charts = []
    for index, summary in enumerate(summaries[:_MAX_HISTOGRAMS]):
        values = [row["metrics"][name] for row in rows[summary["name"]] if "error" not in row]
        known = np.array([value for value in values if value is not None])
        if len(known) >= _MIN_VALUES:
            group = (summary["name"], "kept", known)
            if len(summaries) > 1:
                charts.append(element("p", summary["name"], class_="soft"))
            charts.append(histogram(f"{name.replace('_', '')}{index}", metric.title, [group], num_bins=24))
    return element(
        "div",
        element("h3", metric.title, element("span", _ARROWS[metric.better])),
        element("p", f"{metric.definition}. From {metric.low:g} to {high}.", class_="soft"),
        *charts,
        class_="card",
    )


def _videos(source: Source, rows: Sequence[Row], shelf: VideoShelf) -> Html | None:
    good = [row for row in rows if "error" not in row]
    step = max(1, len(good) // _SHOWN_VIDEOS)
    figures = []
    for row in good[::step][:_SHOWN_VIDEOS]:
        values = row["metrics"]
        facts = ", ".join(
            f"{METRICS[name].title.lower()} {number(values[name])}"
            for name in ("motion_smoothness", "dynamic_degree", "flicker")
            if values[name] is not None
        )
        caption = (short(row["prompt"] or row["video"], 120), element("span", facts, class_="soft"))
        path = source.folder / row["video"]
        figures.append(shelf.figure(path, *caption) if _plays(path) else _strip(path, *caption))
    if not figures:
        return None
    return join(element("h3", source.name, class_="sheet"), element("div", *figures, class_="media"))


def _plays(path: Path) -> bool:
    """Whether browsers play the file and it is small."""
    try:
        if path.suffix.lower() != ".mp4" or path.stat().st_size > _MAX_VIDEO_BYTES:
            return False
        return probe_video(path).codec == "h264"
    except (VideoError, OSError):  # it was there when it was measured
        return False


def _strip(path: Path, *lines: object) -> Html | None:
    """Frames of a video that a page does not play."""
    try:
        with closing(iter_frames(path)) as frames:
            count = sum(1 for _ in frames)
        chosen = np.linspace(0, count - 1, min(_STRIP_FRAMES, count)).round().astype(int).tolist()
        with closing(iter_frames(path)) as frames:
            tiles = [frame.rgb(_STRIP_SIDE) for frame in frames if frame.index in set(chosen)]
    except (VideoError, OSError):
        return None
    tiles = tiles[:: len(tiles) - 1] if len(tiles) == 3 else tiles
    rows = [np.concatenate(tiles[start : start + 2], axis=1) for start in range(0, len(tiles), 2)]
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.concatenate(rows)).save(buffer, format="JPEG", quality=85)
    image = element("img", src=data_uri(buffer.getvalue(), "image/jpeg"), alt=f"frames of {path.name}")
    texts = [element("p", line) for line in lines if line]
    return element("figure", image, element("figcaption", *texts), class_="card")


def _errors(summaries: Sequence[Mapping[str, Any]]) -> Html | None:
    rows = [
        (summary["name"], error["video"], error["error"])
        for summary in summaries
        for error in summary["errors"]
    ]
    if not rows:
        return None
    more = len(rows) - _SHOWN_ERRORS
    return join(
        element("h2", "Not measured", id="errors"),
        element("div", scroll(table(("of", "video", "why"), rows[:_SHOWN_ERRORS])), class_="card wide"),
        element("p", f"{more} more are in videos.jsonl.", class_="soft") if more > 0 else None,
    )
