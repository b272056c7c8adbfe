"""The moving-shapes suite: does a video show the shape, colour, motion and background asked for?

Prompts are drawn from the world's canonical captions, half from combinations that are never trained on. An
oracle names what each video shows without knowing its prompt; a share of right names is the accuracy.

Every video has noise of its own, drawn from the seed and its number, so batch size changes nothing. Verdicts
are kept batch by batch in ``partial.jsonl``: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
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
from hummingbird.nano import world
from hummingbird.nano.oracle import UNCLEAR, Verdict, judge_batch
from hummingbird.nano.world import ATTRIBUTES, Attributes
from hummingbird.video_io import atomic_path, to_uint8

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["SUITE", "evaluate_moving_shapes", "judge_videos", "summarize", "video_seed"]

SUITE = "moving-shapes"
_FORMAT = 1  # of partial.jsonl; an older one is not reused
_NUM_SAMPLES = 24  # videos shown whatever their verdict
_NUM_FAILURES = 48
_HASHED_VALUES = 512  # of each tensor

Record = dict[str, Any]


def evaluate_moving_shapes(
    pipe: HummingbirdPipeline,
    *,
    model: str,
    num_prompts: int = 512,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    to: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Makes a video for every prompt, has the oracle name what it shows, reports the share of right names.

    Args:
        pipe: what makes the videos.
        model: its name in the report.
        num_prompts: at least 1; the first half are combinations seen in training, the others unseen ones.
        num_inference_steps: None for the model's own default.
        guidance_scale: None for the model's own default.
        seed: draws the prompts and, with a video's number, its noise.
        batch_size: videos made at once; figures do not depend on it.
        to: folder for ``report.json``, ``report.html``, contact sheets and some videos; None writes nothing.
            Verdicts of an interrupted run with the same settings and weights are reused.
        progress: whether to tell on stderr how far it is.

    Returns:
        The report, as in ``report.json``: ``suite, model, num_prompts, num_inference_steps, seed, accuracy,
        seconds_per_video, environment`` and details. Accuracies are shares in [0, 1]; those of ``all`` count
        the videos in which the four attributes are right.

    Raises:
        ValueError: a number out of range.
        hummingbird.video_io.VideoError: the model made NaN.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    asked = world.evaluation_prompts(num_prompts, seed)
    defaults = pipe.default_call
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
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "weights": fingerprint(pipe),
    }
    folder = None if to is None else Path(to)
    records = [] if folder is None else _read_partial(folder / "partial.jsonl", settings)
    shown = set(np.linspace(0, num_prompts - 1, min(_NUM_SAMPLES, num_prompts)).round().astype(int).tolist())
    say = _Progress(len(asked), len(records), enabled=progress)
    failures = sum(not record["right"]["all"] for record in records)
    if folder is not None and not records:
        reporting.remove_videos(folder)
    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pipe.device)

    while len(records) < len(asked):
        start = len(records)
        batch = asked[start : start + batch_size]
        began = time.perf_counter()
        videos = _sample(
            pipe,
            [attributes.prompt for attributes in batch],
            [video_seed(seed, start + index) for index in range(len(batch))],
            num_inference_steps=settings["num_inference_steps"],
            guidance_scale=settings["guidance_scale"],
        )
        seconds = (time.perf_counter() - began) / len(batch)
        for record, video in zip(judge_videos(videos, batch, start=start), videos, strict=True):
            records.append({**record, "seconds": round(seconds, 4)})
            failures += not record["right"]["all"]
            failed = not record["right"]["all"] and failures <= _NUM_FAILURES
            if folder is not None and (failed or record["index"] in shown):
                reporting.keep_video(folder, record["index"], video, defaults["fps"])
        if folder is not None:
            _write_partial(folder / "partial.jsonl", settings, records)
        say.update(records)

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
        "peak_memory_mb": reporting.peak_memory_mb(pipe.device),
        "weights": settings["weights"],
        "environment": reporting.environment(pipe.device, settings["dtype"]),
    }
    if folder is not None:
        reporting.write_report(result, records, folder, samples=shown)
        (folder / "partial.jsonl").unlink(missing_ok=True)
    return result


def _sample(
    pipe: HummingbirdPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
) -> np.ndarray:
    """One video per prompt: uint8 (B, F, H, W, 3). Noise is drawn on the CPU: the same on every device."""
    (frames,) = pipe(
        prompts,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        return_dict=False,
    )
    return to_uint8(np.asarray(frames))


def video_seed(seed: int, index: int) -> int:
    """The seed of one video's noise, in [0, 2^63): neighbours and neighbouring seeds share nothing."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fingerprint(pipe: HummingbirdPipeline) -> str:
    """Tells two sets of weights apart by a sample of every tensor; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if not isinstance(component, torch.nn.Module):
            continue
        for key, tensor in sorted(component.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // _HASHED_VALUES)].to("cpu", torch.float32)
            digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------ judging


def judge_videos(videos: Tensor | np.ndarray, asked: Sequence[Attributes], *, start: int = 0) -> list[Record]:
    """Has the oracle look at each video and compares with what was asked for.

    Args:
        videos: (B, F, H, W, 3) RGB, uint8 or floating point in [0, 1].
        asked: attributes of the B prompts; they reach the comparison only, never the oracle.
        start: number of the first video.

    Returns:
        For each video ``index, prompt, unseen, asked, seen`` (attribute -> name or ``unclear``), ``right``
        (attribute and ``all`` -> bool) and ``reason`` (why something is unclear).
    """
    if len(videos) != len(asked):
        raise ValueError(f"asked: got {len(asked)} prompts for {len(videos)} videos, expected one each")
    return [
        _record(start + index, attributes, verdict)
        for index, (attributes, verdict) in enumerate(zip(asked, judge_batch(videos), strict=True))
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
        (Wilson), ``unclear`` (share of videos), ``by_value`` and ``confusion`` (asked -> seen -> count).
    """
    if not records:
        raise ValueError("records: got none, expected at least one video")
    names = (*ATTRIBUTES, "all")
    unclear = {name: _share(record["seen"][name] == UNCLEAR for record in records) for name in ATTRIBUTES}
    kinds = [_kind(part) for record in records for part in record["reason"].split("; ") if part]
    unclear["any"] = _share(UNCLEAR in record["seen"].values() for record in records)
    return {
        "accuracy": _accuracy(records),
        "accuracy_seen": _accuracy([record for record in records if not record["unseen"]]),
        "accuracy_unseen": _accuracy([record for record in records if record["unseen"]]),
        "interval_95": {
            name: wilson_interval(sum(record["right"][name] for record in records), len(records))
            for name in names
        },
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


def _by_value(records: Sequence[Record], attribute: str) -> dict[str, dict[str, float]]:
    table = {}
    for value in reporting.VALUES[attribute]:
        rows = [record for record in records if record["asked"][attribute] == value]
        if rows:
            table[value] = {
                "count": len(rows),
                "accuracy": _share(row["right"][attribute] for row in rows),
                "all": _share(row["right"]["all"] for row in rows),
                "unclear": _share(row["seen"][attribute] == UNCLEAR for row in rows),
            }
    return table


def _confusion(records: Sequence[Record], attribute: str) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for record in records:
        table.setdefault(record["asked"][attribute], Counter())[record["seen"][attribute]] += 1
    return {
        value: dict(table[value].most_common()) for value in reporting.VALUES[attribute] if value in table
    }


def _kind(reason: str) -> str:
    """The reason without its measured numbers, so that equal ones count together."""
    return re.sub(r"\d[\d.,]*%?", "N", reason)


# ------------------------------------------------------------------------------- what is kept on disk


def _read_partial(path: Path, settings: dict[str, Any]) -> list[Record]:
    """Verdicts of an interrupted run with these very settings, in order; none where there is no such run."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or json.loads(lines[0]) != settings:
        return []
    return [json.loads(line) for line in lines[1:]]


def _write_partial(path: Path, settings: dict[str, Any], records: Sequence[Record]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(
            "".join(json.dumps(line) + "\n" for line in (settings, *records)), encoding="utf-8"
        )


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self._total, self._first, self._enabled = total, done, enabled
        self._is_terminal = sys.stderr.isatty()
        self._began = time.perf_counter()
        self._tenth = -1
        if enabled and done:
            sys.stderr.write(f"going on after {done} of {total} videos\n")

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
