"""A whole VBench run: prompts, videos, scores, report. Each part that is done already is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird import __version__
from hummingbird.evaluation.report import environment
from hummingbird.evaluation.sampling import fingerprint
from hummingbird.evaluation.vbench import bridge, suite, videos
from hummingbird.evaluation.vbench.report import write_report
from hummingbird.evaluation.vbench.suite import Suite, SuitePrompt
from hummingbird.evaluation.vbench.totals import DIMENSIONS, normalize, totals
from hummingbird.evaluation.vbench.videos import MAX_SAMPLES, Job, Shard
from hummingbird.video_io import atomic_path

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["SUITE", "evaluate_vbench"]

SUITE = "vbench"
_FORMAT = 1  # of the folder; one of another format is not continued


@dataclass(frozen=True)
class _Plan:
    suite: Suite
    prompts: tuple[SuitePrompt, ...]
    dimensions: tuple[str, ...]
    jobs: tuple[Job, ...]
    settings: dict[str, Any]


def evaluate_vbench(
    pipe: HummingbirdPipeline,
    *,
    model: str,
    to: str | Path,
    prompts: str | Path | None = None,
    dimensions: Sequence[str] | None = None,
    num_prompts: int | None = None,
    samples: int = MAX_SAMPLES,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    rewritten: str | Path | None = None,
    shard: str = "0/1",
    batch_size: int = 1,
    vbench_python: str | Path | None = None,
    vbench_device: str = "auto",
    score_timeout_s: float = 6 * 3600.0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Make the videos of the protocol, have them scored, write the report.

    May be stopped at any moment and called again; several processes may share the folder, each with a shard.
    Whoever finishes last, or any later call, writes the report.

    Args:
        pipe: what makes the videos.
        model: its name in the report.
        to: folder for ``videos/``, ``journal/``, ``scores/``, ``report.json`` and ``report.html``.
        prompts: the official suite (``read_suite``); None for that of an installed package, here or under
            ``vbench_python``.
        dimensions: None for all sixteen.
        num_prompts: None for all; fewer are spread over the suite, for a rehearsal.
        samples: videos of each prompt.
        num_inference_steps: None for the model's own default.
        guidance_scale: None for the model's own default.
        seed: at least 0; each video's own seed is drawn from it, its prompt and its number.
        rewritten: JSON file, original prompt -> wording for the model.
        shard: ``INDEX/COUNT``.
        batch_size: videos at once.
        vbench_python: interpreter of the environment with the ``vbench`` package; None scores nothing.
        vbench_device: ``auto``, ``cuda`` or ``cpu``.
        score_timeout_s: for one dimension.
        progress: told a line now and then.

    Returns:
        The report, as in ``report.json``. ``status`` is ``sampling`` (videos are missing), ``made`` (not all
        dimensions are scored) or ``scored``; ``totals`` are None where something they need is missing.

    Raises:
        ValueError: bad arguments, or a folder whose videos were made with other settings.
        FileNotFoundError: there is no suite, or no such interpreter.
        hummingbird.evaluation.vbench.bridge.ScoringError: the other environment gave no usable answer.
    """
    folder, python = Path(to), None if vbench_python is None else Path(vbench_python)
    part = Shard.parse(shard)
    facts = None if python is None else bridge.describe(python)
    place = None if prompts is None else Path(prompts)
    if place is None and facts is not None:
        place = facts.full_info
    plan = _plan(
        pipe,
        suite.read_suite(place),
        model=model,
        dimensions=dimensions,
        num_prompts=num_prompts,
        samples=samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        rewritten=None if rewritten is None else Path(rewritten),
    )
    _claim(folder, plan.settings)
    _write_json(
        folder / "journal" / f"{part.index}-of-{part.count}.environment.json",
        environment(pipe.device, plan.settings["dtype"]),
    )
    videos.make_videos(
        pipe,
        plan.jobs,
        folder,
        settings=plan.settings,
        shard=part,
        batch_size=batch_size,
        progress=progress,
    )
    records = videos.read_records(folder, videos.settings_key(plan.settings))
    missing = [job for job in plan.jobs if not videos.is_made(folder, records.get(job.file))]
    scores: dict[str, bridge.DimensionScore] = {}
    if not missing:
        made = {job.file: records[job.file] for job in plan.jobs}
        changed = videos.changed_videos(folder, made)
        if changed:
            raise ValueError(
                f"{folder / 'videos'}: {len(changed)} files are not what was made, first {changed[0]!r}; "
                "delete them and run again"
            )
        if python is not None and facts is not None:
            scores = _score(plan, made, folder, python, facts, vbench_device, score_timeout_s, progress)
    report = _report(plan, records, missing, scores, folder)
    if not missing or part.count == 1:
        write_report(report, [records[job.file] for job in plan.jobs if job.file in records], folder)
    return report


def _plan(
    pipe: HummingbirdPipeline,
    read: Suite,
    *,
    model: str,
    dimensions: Sequence[str] | None,
    num_prompts: int | None,
    samples: int,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    seed: int,
    rewritten: Path | None,
) -> _Plan:
    asked = suite.select(read, dimensions, num_prompts)
    wordings, wordings_sha256 = None, None
    if rewritten is not None:
        wordings, wordings_sha256 = suite.read_rewritten(rewritten, asked)
    defaults = pipe.default_call
    steps = defaults["num_inference_steps"] if num_inference_steps is None else num_inference_steps
    guidance = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
    settings = {
        "format": _FORMAT,
        "model": model,
        "weights": fingerprint(pipe),
        "num_inference_steps": int(steps),
        "guidance_scale": float(guidance),
        "num_frames": int(defaults["num_frames"]),
        "height": int(defaults["height"]),
        "width": int(defaults["width"]),
        "fps": float(defaults["fps"]),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "scheduler": type(pipe.scheduler).__name__,
        "seed": seed,
        "suite_sha256": read.sha256,
        "rewritten_sha256": wordings_sha256,
        "hummingbird": __version__,
    }
    wanted = DIMENSIONS if dimensions is None else dimensions
    covered = {name for prompt in asked for name in prompt.dimensions}
    return _Plan(
        suite=read,
        prompts=asked,
        dimensions=tuple(name for name in DIMENSIONS if name in wanted and name in covered),
        jobs=videos.plan_videos(asked, samples=samples, seed=seed, rewritten=wordings),
        settings=settings,
    )


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """The first run writes its settings into the folder; others must have the same.

    Prompts, dimensions and samples may grow from run to run: they decide which videos there are, not how one
    looks.
    """
    path = folder / "settings.json"
    if not path.is_file():
        _write_json(path, settings)
    there = json.loads(path.read_text(encoding="utf-8"))
    names = sorted({*there, *settings})
    differ = [name for name in names if there.get(name) != settings.get(name)]
    if differ:
        pairs = ", ".join(f"{name} {there.get(name)!r} there, {settings.get(name)!r} now" for name in differ)
        raise ValueError(f"to: {folder} has videos made with other settings ({pairs}); expected a new folder")


def _score(
    plan: _Plan,
    made: Mapping[str, Mapping[str, Any]],
    folder: Path,
    python: Path,
    facts: bridge.Facts,
    device: str,
    timeout_s: float,
    progress: Callable[[str], None] | None,
) -> dict[str, bridge.DimensionScore]:
    """Scores of all dimensions; those of the same videos by the same version are read, not made."""
    entries = plan.suite.entries
    if entries is None:
        if facts.full_info is None:
            raise FileNotFoundError(
                f"prompts: {plan.suite.source} has lists only, and scoring needs {suite.FULL_INFO}, which "
                f"the vbench of {python} lacks; give it with --prompts"
            )
        entries = suite.read_suite(facts.full_info).entries
        assert entries is not None
    asked = {prompt.text for prompt in plan.prompts}
    rows = [row for row in entries if row["prompt_en"] in asked]
    scores = {}
    for dimension in plan.dimensions:
        judged = {prompt.text for prompt in plan.prompts if dimension in prompt.dimensions}
        files = {job.file: made[job.file]["sha256"] for job in plan.jobs if job.prompt in judged}
        key = hashlib.sha256(json.dumps([dict(facts.versions), sorted(files.items())]).encode()).hexdigest()
        path = folder / "scores" / f"{dimension}.json"
        found = _read_score(path, key)
        if found is None:
            if progress is not None:
                progress(f"vbench {facts.versions['vbench']}: {dimension}, {len(files)} videos")
            found = bridge.score_dimension(
                python,
                dimension,
                entries=[row for row in rows if dimension in row["dimension"]],
                videos=folder / "videos",
                expected=files,
                log=folder / "scores" / f"{dimension}.log",
                device=device,
                timeout_s=timeout_s,
            )
            _write_json(path, {"key": key, **found.to_dict()})
        scores[dimension] = found
    return scores


def _read_score(path: Path, key: str) -> bridge.DimensionScore | None:
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    return bridge.DimensionScore(**saved) if saved.pop("key") == key else None


def _report(
    plan: _Plan,
    records: Mapping[str, Mapping[str, Any]],
    missing: Sequence[Job],
    scores: Mapping[str, bridge.DimensionScore],
    folder: Path,
) -> dict[str, Any]:
    samples = len(plan.jobs) // len(plan.prompts)
    planned = [records[job.file] for job in plan.jobs if job.file in records]
    seconds = [record["seconds"] for record in planned if "seconds" in record]
    status = "sampling" if missing else "scored" if len(scores) == len(plan.dimensions) else "made"
    settings = plan.settings
    return {
        "suite": SUITE,
        "model": settings["model"],
        "status": status,
        "totals": {
            name: None if value is None else round(100 * value, 4)
            for name, value in totals({name: found.score for name, found in scores.items()}).items()
        },
        "dimensions": {
            name: {
                "group": DIMENSIONS[name].group,
                "weight": DIMENSIONS[name].weight,
                "score": found.score,
                "normalized": round(normalize(name, found.score), 6),
                "num_videos": found.num_videos,
                "num_scored": found.num_scored,
            }
            for name, found in scores.items()
        },
        "settings": {
            "num_frames": settings["num_frames"],
            "height": settings["height"],
            "width": settings["width"],
            "fps": settings["fps"],
            "num_inference_steps": settings["num_inference_steps"],
            "guidance_scale": settings["guidance_scale"],
            "seed": settings["seed"],
            "dtype": settings["dtype"],
            "scheduler": settings["scheduler"],
            "weights": settings["weights"],
            "rewritten_prompts": settings["rewritten_sha256"] is not None,
            "rewritten_sha256": settings["rewritten_sha256"],
            "suite_sha256": settings["suite_sha256"],
            "num_prompts": len(plan.prompts),
            "samples": samples,
            "hummingbird": settings["hummingbird"],
        },
        "deviations": _deviations(plan, samples),
        "num_prompts": len(plan.prompts),
        "num_inference_steps": settings["num_inference_steps"],
        "seed": settings["seed"],
        "videos": {
            "planned": len(plan.jobs),
            "made": len(plan.jobs) - len(missing),
            "failed": sum("error" in record for record in planned),
            "first_missing": missing[0].file if missing else None,
        },
        "seconds_per_video": round(sum(seconds) / len(seconds), 4) if seconds else None,
        "scorer": {name: {"device": found.device, **found.versions} for name, found in scores.items()},
        "environment": dict(videos.environments(folder)),
    }


def _deviations(plan: _Plan, samples: int) -> list[str]:
    """In which ways these figures are not those of the leaderboard, in plain words."""
    notes = []
    if len(plan.prompts) < len(plan.suite.prompts):
        notes.append(f"{len(plan.prompts)} of the suite's {len(plan.suite.prompts)} prompts")
    if samples != MAX_SAMPLES:
        notes.append(f"{samples} videos of each prompt, where the protocol asks for {MAX_SAMPLES}")
    lacking = [name for name in DIMENSIONS if name not in plan.dimensions]
    if lacking:
        notes.append(f"not scored: {', '.join(lacking)}")
    if plan.settings["rewritten_sha256"] is not None:
        notes.append("rewritten prompts: comparable with entries that are marked as such only")
    if "temporal_flickering" in plan.dimensions:
        notes.append(
            "temporal flickering: upstream advises 25 videos of each of its prompts and a filter of still "
            "ones; here there are as many as of the others, and no filter"
        )
    return notes


def _write_json(path: Path, value: Any) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
