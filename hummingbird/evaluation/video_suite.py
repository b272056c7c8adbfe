"""The metrics suite: figures, reward scores and Frechet distances of folders of videos, one page of all.

A video that cannot be measured is a row with its reason; it counts in no mean.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hummingbird.evaluation import report as reporting
from hummingbird.evaluation.frechet import Features, frechet_distance
from hummingbird.evaluation.journal import Journal
from hummingbird.evaluation.metrics import METRICS, measure_video
from hummingbird.evaluation.samples import list_videos, read_prompt
from hummingbird.evaluation.sampling import video_seed
from hummingbird.video_io import VideoError, iter_frames

if TYPE_CHECKING:
    from hummingbird.rewards.base import Reward

__all__ = ["SUITE", "Source", "evaluate_videos", "measure_videos", "summarize_values"]

SUITE = "metrics"
_FORMAT = 1
_MAX_REWARD_FRAMES = 64
_MAX_SIDE = 512  # of what rewards and features see: their networks take 224 pixels

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Videos to be measured together.

    Attributes:
        name: in the report; unique.
        folder: with videos; a .txt beside a video has its prompt.
        made: settings of the model that made them, for the report.
    """

    name: str
    folder: Path
    made: Mapping[str, Any] = field(default_factory=dict)


def evaluate_videos(
    sources: Sequence[Source],
    to: Path,
    *,
    rewards: Mapping[str, Reward] | None = None,
    features: Mapping[str, Features] | None = None,
    reference: Source | None = None,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures folders of videos and writes ``report.json``, ``report.html`` and ``videos.jsonl``.

    Args:
        sources: at least one.
        to: folder of the report. Rows of an interrupted run are reused for files that have not changed.
        rewards: score videos that have a prompt beside them.
        features: of the Frechet distances from each source to the reference, and between sources.
        reference: videos that the others are to resemble.
        workers: processes that measure; figures do not depend on it.
        progress: is told how far it is.

    Returns:
        ``{"suite", "sources": [{"name", "num_videos", "num_errors", "metrics", "rewards", "errors"}],
        "reference", "frechet", "definitions", "environment"}``.

    Raises:
        ValueError: names are not unique, or ``workers`` is below 1.
        FileNotFoundError: a folder that is missing or has no videos.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"sources: got {', '.join(names) or 'none'}, expected at least one, all different")
    if reference is not None and reference.name in names:
        raise ValueError(f"reference: got {reference.name!r}, expected other videos than those measured")
    listed = [list_videos(source.folder) for source in sources]
    settings = {"format": _FORMAT, "suite": SUITE, "metrics": list(METRICS)}
    journal = Journal(to / "partial.jsonl", settings)
    rows = {
        source.name: measure_videos(source, paths, journal, workers=workers, progress=progress)
        for source, paths in zip(sources, listed, strict=True)
    }
    for source in sources:
        for name, reward in (rewards or {}).items():
            progress(f"{source.name}: {name}")
            _score(source, rows[source.name], name, reward)
    sets = [(source.name, _good(source, rows[source.name])) for source in sources]
    compared: dict[str, Any] | None = None
    if reference is not None and features:
        paths = list_videos(reference.folder)
        readable = [path for path in paths if _decodes(path)]
        sets.append((reference.name, readable))
        compared = {"name": reference.name, "num_videos": len(paths)}
        compared["num_errors"] = len(paths) - len(readable)
    result: dict[str, Any] = {
        "suite": SUITE,
        "sources": [
            {
                **_summary(rows[source.name], tuple(rewards or ())),
                "name": source.name,
                "made": dict(source.made),
            }
            for source in sources
        ],
        "reference": compared,
        "frechet": _distances(sets, features or {}, progress),
        "definitions": {
            name: {
                "definition": metric.definition,
                "range": [metric.low, None if math.isinf(metric.high) else metric.high],
                "better": metric.better or None,
                "reference": metric.reference,
            }
            for name, metric in METRICS.items()
        },
        "environment": reporting.environment(torch.device("cpu"), "float32"),
    }
    from hummingbird.evaluation.video_report import render

    lines = [{"source": name, **row} for name in names for row in rows[name]]
    reporting.write_text(
        to / "videos.jsonl", "".join(json.dumps(_public(line), allow_nan=False) + "\n" for line in lines)
    )
    reporting.write_text(to / "report.html", render(result, sources, rows))
    reporting.write_json(to / "report.json", result)
    journal.remove()
    return result


def _public(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "stamp"}


# --- metrics -----------------------------------------------------------------------------------------------


def measure_videos(
    source: Source,
    paths: Sequence[Path],
    journal: Journal,
    *,
    workers: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measures the videos of a source.

    Returns:
        For each, in order, ``{"video", "prompt", "metrics"}`` or ``{"video", "prompt", "error"}``.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    stamps = [_stamp(source, path) for path in paths]
    known = {json.dumps(row["stamp"]): row for row in journal.records}
    left = [path for path, stamp in zip(paths, stamps, strict=True) if json.dumps(stamp) not in known]
    for number, (path, figures) in enumerate(_measured(left, workers), start=1):
        row = {
            "stamp": _stamp(source, path),
            "video": path.relative_to(source.folder).as_posix(),
            "prompt": read_prompt(path),
            **figures,
        }
        journal.append([row])
        known[json.dumps(row["stamp"])] = row
        if number * 10 // len(left) > (number - 1) * 10 // len(left):
            progress(f"{source.name}: measured {number} of {len(left)}")
    return [dict(known[json.dumps(stamp)]) for stamp in stamps]


def _stamp(source: Source, path: Path) -> list[Any]:
    status = path.stat()
    return [source.name, str(path), status.st_size, status.st_mtime_ns]


def _measured(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, Row]]:
    if workers == 1 or len(paths) < 2:
        yield from ((path, measure_one(path)) for path in paths)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(paths)), mp_context=context) as pool:
        yield from zip(paths, pool.map(measure_one, paths), strict=True)


def measure_one(path: Path) -> Row:
    """``{"metrics": ...}`` of a video, or ``{"error": why}``."""
    try:
        return {"metrics": measure_video(path)}
    except (VideoError, OSError) as error:
        reason = " ".join(str(error).split())
        return {"error": reason.removeprefix(f"{path}: ")}


# --- rewards and features ----------------------------------------------------------------------------------


def _frames(path: Path, most: int) -> torch.Tensor:
    """At most so many frames, evenly spaced: float32 ``(F, 3, H, W)`` in [0, 1]."""
    # Twice through the file: a long one does not fit into memory.
    with closing(iter_frames(path)) as frames:
        count = sum(1 for _ in frames)
    chosen = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
    with closing(iter_frames(path)) as frames:
        images = [frame.rgb(_MAX_SIDE) for frame in frames if frame.index in chosen]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0


def _score(source: Source, rows: Sequence[Row], name: str, reward: Reward) -> None:
    """Adds a reward's score to each row, or why it has none.

    Frames that a reward draws are drawn from the video's number, so a score can be had again. A reward of
    single frames sees as many as its original decodes.
    """
    for index, row in enumerate(rows):
        if "error" in row:
            continue
        scores, reasons = row.setdefault("rewards", {}), row.setdefault("no_reward", {})
        scores[name] = None
        if row["prompt"] is None:
            reasons[name] = "no prompt: expected a .txt of the video's name beside it"
            continue
        generator = torch.Generator().manual_seed(video_seed(0, index))
        frames = _frames(source.folder / row["video"], _MAX_REWARD_FRAMES)
        selection = reward.frame_selection
        try:
            chosen = frames[selection.indices(len(frames), generator)]
            with torch.no_grad():
                score = float(reward(chosen[None], [row["prompt"]], generator=generator))
        except ValueError as error:
            reasons[name] = " ".join(str(error).split())
            continue
        if math.isfinite(score):
            scores[name] = round(score, 6)
        else:
            reasons[name] = f"the score is {score}: the checkpoint's weights or its type do not fit"


def _good(source: Source, rows: Sequence[Row]) -> list[Path]:
    return [source.folder / row["video"] for row in rows if "error" not in row]


def _distances(
    sets: Sequence[tuple[str, Sequence[Path]]],
    features: Mapping[str, Features],
    progress: Callable[[str], None],
) -> list[Row]:
    """A Frechet distance for each kind of features and each two sets of videos."""
    found: list[Row] = []
    for name, extract in features.items():
        vectors: dict[str, np.ndarray] = {}
        for which, paths in sets:
            progress(f"{which}: features of {name}")
            parts = [extract(_frames(path, _MAX_REWARD_FRAMES), index) for index, path in enumerate(paths)]
            vectors[which] = np.concatenate(parts) if parts else np.zeros((0, 1))
        pairs = itertools.combinations((which for which, _ in sets), 2)
        for first, second in pairs:
            row: Row = {"features": name, "a": first, "b": second}
            row |= {"num_a": len(vectors[first]), "num_b": len(vectors[second])}
            row["dimensions"] = vectors[first].shape[1]
            try:
                row["distance"] = round(frechet_distance(vectors[first], vectors[second]), 6)
            except ValueError as error:
                row |= {"distance": None, "error": str(error)}
            found.append(row)
    return found


def _decodes(path: Path) -> bool:
    """Whether a video of the reference decodes to its end; others are left out, as a source's are."""
    try:
        frames = iter_frames(path)
        with closing(frames):
            for _ in frames:
                pass
            return not frames.damage
    except (VideoError, OSError):
        return False


# --- summaries ---------------------------------------------------------------------------------------------


def summarize_values(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, its 95% interval, spread and ends of what there is.

    Args:
        values: None for those that have none; they are not counted.

    Returns:
        ``count, mean, interval_95, sd, min, median, max``; all but the count None where there is no value,
        the interval and ``sd`` None of a single one. The interval is the normal approximation.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        empty = ("mean", "interval_95", "sd", "min", "median", "max")
        return {"count": 0, **dict.fromkeys(empty)}
    mean = float(known.mean())
    sd = float(known.std(ddof=1)) if len(known) > 1 else None
    half = None if sd is None else 1.959964 * sd / math.sqrt(len(known))
    return {
        "count": len(known),
        "mean": round(mean, 6),
        "interval_95": None if half is None else [round(mean - half, 6), round(mean + half, 6)],
        "sd": None if sd is None else round(sd, 6),
        "min": round(float(known.min()), 6),
        "median": round(float(np.median(known)), 6),
        "max": round(float(known.max()), 6),
    }


def _summary(rows: Sequence[Row], rewards: Sequence[str]) -> dict[str, Any]:
    good = [row for row in rows if "error" not in row]
    errors = [{"video": row["video"], "error": row["error"]} for row in rows if "error" in row]
    return {
        "num_videos": len(rows),
        "num_errors": len(errors),
        "metrics": {name: summarize_values([row["metrics"][name] for row in good]) for name in METRICS},
        "rewards": {
            name: {
                **summarize_values([row["rewards"][name] for row in good]),
                "why_missing": _reasons(row["no_reward"].get(name) for row in good),
            }
            for name in rewards
        },
        "errors": errors,
    }


def _reasons(found: Iterable[str | None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in found:
        if reason is not None:
            kind = re.sub(r"\d+", "N", reason)
            counts[kind] = counts.get(kind, 0) + 1
    return counts
