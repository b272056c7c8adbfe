"""The moving-shapes suite: does a video show the shape, colour, motion and background asked for?

Prompts are drawn from the world's canonical captions, half from combinations that are never trained on. An
oracle names what each video shows without knowing its prompt; a share of right names is the accuracy.

Every video has noise of its own, drawn from the seed and its number, so neither batch size nor the number of
processes changes anything. Verdicts are kept in ``partial.jsonl``: an interrupted run goes on from there.
"""

from __future__ import annotations

import heapq
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hummingbird.evaluation import report as reporting
from hummingbird.evaluation import shapes_report
from hummingbird.evaluation.journal import Journal
from hummingbird.evaluation.sampling import Job, Sampler, video_seed
from hummingbird.nano import world
from hummingbird.nano.oracle import UNCLEAR, Verdict, judge_batch
from hummingbird.nano.world import ATTRIBUTES, Attributes

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = [
    "SUITE",
    "evaluate_moving_shapes",
    "judge_videos",
    "summarize",
    "wilson_interval",
]

SUITE = "moving-shapes"
_FORMAT = 2  # of partial.jsonl; an older one is not reused
_NUM_SAMPLES = 24  # videos shown whatever their verdict
_NUM_FAILURES = 48
_CPU_BATCH, _GPU_BATCH = 4, 16

Record = dict[str, Any]


def evaluate_moving_shapes(
    pipe: HummingbirdPipeline | Sampler,
    *,
    model: str,
    num_prompts: int = 512,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    to: str | Path | None = None,
    progress: bool = True,
    keep_journal: bool = False,
) -> dict[str, Any]:
    """Makes a video for every prompt, has the oracle name what it shows, reports the share of right names.

    Args:
        pipe: what makes the videos: a pipeline, or a sampler of several processes.
        model: its name in the report.
        num_prompts: at least 1; the first half are combinations seen in training, the others unseen ones.
        num_inference_steps: None for the model's own default.
        guidance_scale: None for the model's own default.
        seed: draws the prompts and, with a video's number, its noise.
        batch_size: videos made at once; figures do not depend on it. None for what suits the device.
        to: folder for ``report.json``, ``report.html``, contact sheets and some videos; None writes nothing.
            Verdicts of an interrupted run with the same settings and weights are reused.
        progress: whether to tell on stderr how far it is.
        keep_journal: leave the verdicts for the same call to find: it is one of several that end together.

    Returns:
        The report, as in ``report.json``: ``suite, model, num_prompts, num_inference_steps, seed, accuracy,
        seconds_per_video, environment`` and details. Accuracies are shares in [0, 1]; those of ``all`` count
        the videos in which the four attributes are right.

    Raises:
        ValueError: a number out of range.
        hummingbird.video_io.VideoError: the model made NaN.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    asked = world.evaluation_prompts(num_prompts, seed)
    sampler = pipe if isinstance(pipe, Sampler) else Sampler(pipe)
    facts = sampler.facts
    device_type = facts.device.partition(":")[0]
    batch_size = batch_size or (_CPU_BATCH if device_type == "cpu" else _GPU_BATCH)
    defaults = facts.default_call
    settings = {
        "format": _FORMAT,
        "suite": SUITE,
        "model": model,
        "num_prompts": num_prompts,
        "num_inference_steps": int(
            defaults["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        ),
        "guidance_scale": float(defaults["guidance_scale"] if guidance_scale is None else guidance_scale),
        "seed": seed,
        "dtype": facts.dtype,
        "device": device_type,
        "weights": facts.weights,
        "scheduler": facts.scheduler,
    }
    folder = None if to is None else Path(to)
    journal = Journal(None if folder is None else folder / "partial.jsonl", settings)
    kept = _Kept(folder, num_prompts, defaults["fps"], journal.records)
    say = _Progress(len(asked), journal.records, enabled=progress)

    done = {record["index"] for record in journal.records}
    left = [
        Job(index=index, prompt=attributes.prompt, seed=video_seed(seed, index))
        for index, attributes in enumerate(asked)
        if index not in done
    ]
    batches = [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
    sampling = {name: settings[name] for name in ("num_inference_steps", "guidance_scale")}
    for made in sampler.run(batches, **sampling) if batches else ():
        records = judge_videos(
            made.videos, [asked[job.index] for job in made.jobs], indices=[job.index for job in made.jobs]
        )
        measured = {"seconds": round(made.seconds, 4), "peak_memory_mb": made.peak_memory_mb}
        for record, video in zip(records, made.videos, strict=True):
            kept.add(record, video)
        journal.append({**record, **measured} for record in records)
        say.update(journal.records)

    records = sorted(journal.records, key=lambda record: record["index"])
    result = {
        "suite": SUITE,
        "model": model,
        "num_prompts": num_prompts,
        "num_inference_steps": settings["num_inference_steps"],
        "guidance_scale": settings["guidance_scale"],
        "seed": seed,
        **summarize(records),
        "seconds_per_video": round(float(np.mean([record["seconds"] for record in records])), 4),
        "batch_size": batch_size,
        "workers": sampler.workers,
        "peak_memory_mb": max(record["peak_memory_mb"] for record in records),
        "parameters": facts.parameters,
        "weights": facts.weights,
        "scheduler": facts.scheduler,
        "environment": {
            **reporting.environment(torch.device(facts.device), facts.dtype),
            "torch_threads": facts.num_threads,
        },
    }
    if folder is not None:
        shapes_report.write_report(result, records, folder, samples=kept.samples)
        if not keep_journal:
            journal.remove()
    return result


class _Kept:
    """Which videos are kept to be shown: some whatever their verdict, and the first wrong ones.

    Args:
        folder: of the report; None keeps none.
        num_prompts: how many there will be.
        fps: of the videos.
        records: verdicts of videos that were made before.
    """

    def __init__(self, folder: Path | None, num_prompts: int, fps: float, records: Sequence[Record]) -> None:
        self._folder, self._fps = folder, fps
        count = min(_NUM_SAMPLES, num_prompts)
        self.samples = set(np.linspace(0, num_prompts - 1, count).round().astype(int).tolist())
        # Largest number first, by its negative: the one that goes when an earlier one comes.
        wrong = sorted(record["index"] for record in records if not record["right"]["all"])
        self._failures = [-index for index in wrong[:_NUM_FAILURES]]
        heapq.heapify(self._failures)
        if folder is not None:
            kept = {record["index"] for record in records} & (self.samples | set(wrong[:_NUM_FAILURES]))
            shapes_report.remove_videos(folder, keep=kept)

    def add(self, record: Record, video: np.ndarray) -> None:
        if self._folder is None:
            return
        index = record["index"]
        is_kept = index in self.samples
        if not record["right"]["all"]:
            heapq.heappush(self._failures, -index)
            gone = -heapq.heappop(self._failures) if len(self._failures) > _NUM_FAILURES else None
            is_kept = is_kept or gone != index
            if gone is not None and gone != index and gone not in self.samples:
                shapes_report.remove_video(self._folder, gone)
        if is_kept:
            shapes_report.keep_video(self._folder, index, video, self._fps)


# ------------------------------------------------------------------------------------------ judging


def judge_videos(
    videos: Tensor | np.ndarray, asked: Sequence[Attributes], *, indices: Sequence[int] | None = None
) -> list[Record]:
    """Has the oracle look at each video and compares with what was asked for.

    Args:
        videos: (B, F, H, W, 3) RGB, uint8 or floating point in [0, 1].
        asked: attributes of the B prompts; they reach the comparison only, never the oracle.
        indices: numbers of the videos; from 0 where left out.

    Returns:
        For each video ``index, prompt, unseen, asked, seen`` (attribute -> name or ``unclear``), ``right``
        (attribute and ``all`` -> bool) and ``reason`` (why something is unclear).
    """
    if len(videos) != len(asked):
        raise ValueError(f"asked: got {len(asked)} prompts for {len(videos)} videos, expected one each")
    numbers = range(len(asked)) if indices is None else indices
    return [
        _record(index, attributes, verdict)
        for index, attributes, verdict in zip(numbers, asked, judge_batch(videos), strict=True)
    ]


def _record(index: int, asked: Attributes, verdict: Verdict) -> Record:
    return {
        "index": index,
        "prompt": asked.prompt,
        "unseen": asked.is_unseen,
        "asked": {name: getattr(asked, name) for name in ATTRIBUTES},
        "seen": {name: getattr(verdict, name) for name in ATTRIBUTES},
        "right": verdict.matches(asked),
        "reason": verdict.reason,
    }


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Accuracies, their intervals and confusions.

    Args:
        records: as ``judge_videos`` gives them, at least one.

    Returns:
        ``accuracy``, ``accuracy_seen`` and ``accuracy_unseen`` (None without such prompts), ``interval_95``
        of each (Wilson), ``unclear`` (share of videos), ``by_value`` and ``confusion`` (asked -> seen ->
        count).
    """
    if not records:
        raise ValueError("records: got none, expected at least one video")
    unclear = {name: _share(record["seen"][name] == UNCLEAR for record in records) for name in ATTRIBUTES}
    kinds = [_kind(part) for record in records for part in record["reason"].split("; ") if part]
    seen, unseen = ([record for record in records if record["unseen"] == which] for which in (False, True))
    unclear["any"] = _share(UNCLEAR in record["seen"].values() for record in records)
    return {
        "accuracy": _accuracy(records),
        "accuracy_seen": _accuracy(seen),
        "accuracy_unseen": _accuracy(unseen),
        "interval_95": _intervals(records),
        "interval_95_seen": _intervals(seen),
        "interval_95_unseen": _intervals(unseen),
        "unclear": unclear,
        "unclear_reasons": dict(Counter(kinds).most_common()),
        "by_value": {name: _by_value(records, name) for name in ATTRIBUTES},
        "confusion": {name: _confusion(records, name) for name in ATTRIBUTES},
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return round(sum(values) / len(values), 6)


def _accuracy(records: Sequence[Record]) -> dict[str, float] | None:
    if not records:
        return None
    return {name: _share(record["right"][name] for record in records) for name in (*ATTRIBUTES, "all")}


def _intervals(records: Sequence[Record]) -> dict[str, tuple[float, float]] | None:
    if not records:
        return None
    return {
        name: wilson_interval(sum(record["right"][name] for record in records), len(records))
        for name in (*ATTRIBUTES, "all")
    }


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share.

    Args:
        hits: how many of ``count``.
        count: at least 1.
        z: quantile of the normal distribution, by default for 95%.

    Reference:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share = hits / count
    scale = 1.0 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1.0 - share) / count + z * z / (4 * count * count)) / scale
    return round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6)


def _by_value(records: Sequence[Record], attribute: str) -> dict[str, dict[str, Any]]:
    table = {}
    for value in shapes_report.VALUES[attribute]:
        rows = [record for record in records if record["asked"][attribute] == value]
        if rows:
            table[value] = {
                "count": len(rows),
                "accuracy": _share(row["right"][attribute] for row in rows),
                "interval_95": wilson_interval(sum(row["right"][attribute] for row in rows), len(rows)),
                "all": _share(row["right"]["all"] for row in rows),
                "unclear": _share(row["seen"][attribute] == UNCLEAR for row in rows),
            }
    return table


def _confusion(records: Sequence[Record], attribute: str) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for record in records:
        table.setdefault(record["asked"][attribute], Counter())[record["seen"][attribute]] += 1
    return {
        value: dict(table[value].most_common()) for value in shapes_report.VALUES[attribute] if value in table
    }


def _kind(reason: str) -> str:
    """The reason without its measured numbers, so that equal ones count together."""
    return re.sub(r"\d[\d.,]*%?", "N", reason)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, records: Sequence[Record], *, enabled: bool) -> None:
        self._total, self._first, self._enabled = total, len(records), enabled
        self._is_terminal = sys.stderr.isatty()
        self._began = time.perf_counter()
        self._tenth = -1
        if enabled and records:
            sys.stderr.write(f"going on after {len(records)} of {total} videos\n")

    def update(self, records: Sequence[Record]) -> None:
        if not self._enabled:
            return
        done = len(records)
        left = (time.perf_counter() - self._began) / max(done - self._first, 1) * (self._total - done)
        right = sum(record["right"]["all"] for record in records) / done
        text = f"videos {done}/{self._total}, all four right {right:.1%}, {left:.0f} s left"
        if self._is_terminal:
            sys.stderr.write(f"\r{text}  " + ("\n" if done == self._total else ""))
            sys.stderr.flush()
        elif done * 10 // self._total > self._tenth:
            self._tenth = done * 10 // self._total
            sys.stderr.write(text + "\n")
