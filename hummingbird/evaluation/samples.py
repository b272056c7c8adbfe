"""Prompts from a file, and a folder with a video of each: ``0000.mp4`` with its prompt in ``0000.txt``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hummingbird.evaluation.journal import Journal
from hummingbird.evaluation.report import write_text
from hummingbird.evaluation.sampling import Job, Sampler, video_seed
from hummingbird.nano import world
from hummingbird.nano.world import Attributes
from hummingbird.video_io import write_video

__all__ = ["VIDEO_SUFFIXES", "list_videos", "make_samples", "read_prompt", "read_prompts", "render_world"]

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".gif")
_MAX_PROMPTS_BYTES, _MAX_PROMPT_BYTES = 4_000_000, 8192
_MAX_VIDEOS = 20_000
_FORMAT = 1
_CPU_BATCH, _GPU_BATCH = 4, 16


def read_prompts(path: Path, most: int | None = None) -> list[str]:
    """Reads prompts, one a line; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no prompts, no text, or too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts: no file {path}; expected one with a prompt a line")
    if path.stat().st_size > _MAX_PROMPTS_BYTES:
        raise ValueError(f"prompts: {path} is over {_MAX_PROMPTS_BYTES} bytes, expected a prompt a line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 text ({error.reason})") from error
    prompts = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"prompts: {path} is empty, expected a prompt a line")
    return prompts[:most]


def read_prompt(video: Path) -> str | None:
    """The prompt beside a video, in a .txt of its name; None where there is none that can be read."""
    path = video.with_suffix(".txt")
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_PROMPT_BYTES:
        return None
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        return None
    return text or None


def list_videos(folder: Path) -> list[Path]:
    """Videos under a folder in order of their names; links are not followed.

    Raises:
        FileNotFoundError: no folder, or none in it.
        ValueError: too many.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"videos: no folder {folder}")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not path.name.startswith(".")
        and not path.is_symlink()
        and path.is_file()
    )
    if not found:
        raise FileNotFoundError(
            f"videos: none in {folder}; expected files that end in {', '.join(VIDEO_SUFFIXES)}"
        )
    if len(found) > _MAX_VIDEOS:
        raise ValueError(f"videos: got {len(found)} in {folder}, expected at most {_MAX_VIDEOS}")
    return found


def make_samples(
    sampler: Sampler,
    prompts: Sequence[str],
    folder: Path,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Any = lambda text: None,
) -> dict[str, Any]:
    """Makes a video of each prompt; those that an interrupted run with the same settings made are kept.

    Args:
        sampler: makes them.
        prompts: what to show.
        folder: made where it is missing.
        num_inference_steps, guidance_scale: None for the model's own default.
        seed: with a video's number, of its noise.
        batch_size: videos at once; None for what suits the device.
        progress: is told how far it is.

    Returns:
        The settings.

    Raises:
        hummingbird.video_io.VideoError: the model made NaN.
    """
    facts = sampler.facts
    defaults = facts.default_call
    sampling = {
        "num_inference_steps": int(num_inference_steps or defaults["num_inference_steps"]),
        "guidance_scale": float(defaults["guidance_scale"] if guidance_scale is None else guidance_scale),
    }
    fps = float(defaults["fps"])
    settings = {
        "format": _FORMAT,
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "seed": seed,
        **sampling,
        "fps": fps,
        "weights": facts.weights,
        "scheduler": facts.scheduler,
        "dtype": facts.dtype,
    }
    journal = Journal(folder / "samples.jsonl", settings)
    done = {record["index"] for record in journal.records if _path(folder, record["index"]).is_file()}
    for path in folder.glob("[0-9]*"):
        if path.suffix in (".mp4", ".txt") and path.stem.isdecimal() and int(path.stem) not in done:
            path.unlink()
    left = [
        Job(index=index, prompt=prompt, seed=video_seed(seed, index))
        for index, prompt in enumerate(prompts)
        if index not in done
    ]
    size = batch_size or (_CPU_BATCH if facts.device == "cpu" else _GPU_BATCH)
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    for made in sampler.run(batches, **sampling) if batches else ():
        for job, video in zip(made.jobs, made.videos, strict=True):
            write_text(_path(folder, job.index).with_suffix(".txt"), job.prompt + "\n")
            write_video(video, _path(folder, job.index), fps)
            journal.append([{"index": job.index, "seconds": round(made.seconds, 4)}])
        progress(f"videos {len(journal.records)}/{len(prompts)}")
    seconds = [record["seconds"] for record in journal.records]
    return {**settings, "seconds_per_video": round(sum(seconds) / len(seconds), 4)}


def render_world(attributes: Sequence[Attributes], folder: Path, *, seed: int = 0) -> None:
    """Writes a rendered clip of each prompt of the moving-shapes world, encoded as a model's samples are.

    Args:
        attributes: what to draw.
        folder: earlier clips in it are replaced.
        seed: of what a prompt leaves open.
    """
    for path in folder.glob("[0-9]*"):
        if path.suffix in (".mp4", ".txt") and path.stem.isdecimal():
            path.unlink()
    for index, item in enumerate(attributes):
        (clip,) = world.render_clips([item], np.random.default_rng([seed, index])).numpy()
        write_text(_path(folder, index).with_suffix(".txt"), item.prompt + "\n")
        write_video(clip, _path(folder, index), world.FPS)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.mp4"
