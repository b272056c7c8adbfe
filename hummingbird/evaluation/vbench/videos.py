"""The videos of the protocol: who makes which, under which name and seed, and what is done already.

A run may be killed at any moment and go on with another number of processes: a video counts as done when a
journal has its line and the file of that size is there. Files appear whole (written beside and renamed),
their lines after them, so the worst that a kill costs is making a video again. With one video at a time it
gets the same bytes; batches of other sizes round differently.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hummingbird.evaluation.vbench.suite import SuitePrompt, video_name
from hummingbird.video_io import VideoError, to_uint8, write_video

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Job", "Shard", "changed_videos", "make_videos", "plan_videos", "read_records", "settings_key"]

Record = dict[str, Any]

MAX_SAMPLES = 5
"""vbench 0.1.5 looks for ``{prompt}-0.mp4`` to ``{prompt}-4.mp4``."""

_MAX_JOURNAL_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th video from number ``index`` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= 100_000:
            raise ValueError(f"shard: got {self}, expected INDEX/COUNT with 0 <= INDEX < COUNT, such as 0/4")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``0/4``.

        Raises:
            ValueError: something else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, flags=re.ASCII)
        if found is None:
            raise ValueError(f"shard: got {text!r}, expected INDEX/COUNT such as 0/4")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Job:
    """One video.

    Attributes:
        prompt: of the suite; names the file.
        asked: what the model is given: the prompt or another wording of it.
        sample: number among the videos of this prompt.
        seed: of its noise, in [0, 2^63).
        file: its name.
    """

    prompt: str
    asked: str
    sample: int
    seed: int
    file: str


def plan_videos(
    prompts: Sequence[SuitePrompt], *, samples: int, seed: int, rewritten: Mapping[str, str] | None = None
) -> tuple[Job, ...]:
    """All videos of a run, in the order of the suite.

    A video's seed depends on the run's seed, its prompt and its number alone: not on which other prompts are
    asked, nor on shards or batches.

    Args:
        prompts: of the suite.
        samples: videos of each, 1 to 5; the protocol asks for 5.
        seed: of the run, at least 0.
        rewritten: prompt -> wording for the model.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(
            f"samples: got {samples}, expected 1 to {MAX_SAMPLES}: the package looks at no further ones"
        )
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected at least 0")
    return tuple(
        Job(
            prompt=prompt.text,
            asked=prompt.text if rewritten is None else rewritten[prompt.text],
            sample=sample,
            seed=_video_seed(seed, prompt.text, sample),
            file=video_name(prompt.text, sample),
        )
        for prompt in prompts
        for sample in range(samples)
    )


def _video_seed(seed: int, prompt: str, sample: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, prompt, sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def settings_key(settings: Mapping[str, Any]) -> str:
    """Tells runs apart whose videos must not be mixed; 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------- journals


def read_records(folder: Path, key: str) -> dict[str, Record]:
    """What the journals of all shards say of this run: file -> its last line, errors among them.

    Args:
        folder: of the run.
        key: of its settings; lines of other runs do not count.
    """
    records: dict[str, Record] = {}
    for path in sorted((folder / "journal").glob("*.jsonl")):
        if path.stat().st_size > _MAX_JOURNAL_BYTES:
            raise ValueError(f"{path}: got over {_MAX_JOURNAL_BYTES} bytes, expected a line for each video")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            record = _parse(line)
            if record is None or record["key"] != key:
                continue
            # A video made by one shard stands, whatever another one says of an earlier try.
            if "sha256" in record or "sha256" not in records.get(record["file"], {}):
                records[record["file"]] = record
    return records


def _parse(line: str) -> Record | None:
    """None for a line that was cut off in writing: its video is made again."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("file"), str) and "key" in record
    return record if known else None


def is_made(folder: Path, record: Record | None) -> bool:
    """Whether a video is there as its line says."""
    if record is None or "sha256" not in record:
        return False
    path = folder / "videos" / record["file"]
    return path.is_file() and path.stat().st_size == record["size_bytes"]


def changed_videos(folder: Path, records: Mapping[str, Record]) -> list[str]:
    """Names of videos whose bytes are not those that were made."""
    return [
        name for name, record in records.items() if _sha256(folder / "videos" / name) != record.get("sha256")
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Journal:
    """Appends lines; each is on its way to the disk when ``add`` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() and path.read_bytes()[-1:] != b"\n":
            self._file.write(b"\n")  # after a line that a kill cut off

    def add(self, record: Record) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


# --------------------------------------------------------------------------------------------- making


def make_videos(
    pipe: HummingbirdPipeline,
    jobs: Sequence[Job],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    shard: Shard = Shard(),
    batch_size: int = 1,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Make the videos of a shard that are not there yet.

    A video that has NaN becomes a line with ``error`` in the journal, not a file, and is tried again by the
    next run; the rest goes on.

    Args:
        pipe: what makes them.
        jobs: of the whole run.
        folder: gets ``videos/`` and ``journal/``.
        settings: with ``num_inference_steps, guidance_scale, num_frames, height, width, fps``.
        shard: which of the jobs.
        batch_size: videos at once, at least 1.
        progress: told a line now and then.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    key = settings_key(settings)
    records = read_records(folder, key)
    mine = jobs[shard.index :: shard.count]
    missing = [job for job in mine if not is_made(folder, records.get(job.file))]
    say = _Progress(progress, f"shard {shard}" if shard.count > 1 else "videos", len(mine), len(missing))
    with _Journal(folder / "journal" / f"{shard.index}-of-{shard.count}.jsonl") as journal:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            began = time.perf_counter()
            videos = _sample(pipe, batch, settings)
            seconds = (time.perf_counter() - began) / len(batch)
            for job, video in zip(batch, videos, strict=True):
                journal.add(_keep(job, video, folder, settings, key, seconds))
            say.update(start + len(batch))


def _sample(pipe: HummingbirdPipeline, batch: Sequence[Job], settings: Mapping[str, Any]) -> np.ndarray:
    """(B, F, H, W, 3) in [0, 1]; noise is drawn on the CPU: the same on every device."""
    names = ("num_inference_steps", "guidance_scale", "num_frames", "height", "width", "fps")
    (frames,) = pipe(
        [job.asked for job in batch],
        generator=[torch.Generator().manual_seed(job.seed) for job in batch],
        output_type="np",
        return_dict=False,
        **{name: settings[name] for name in names},
    )
    return np.asarray(frames)


def _keep(
    job: Job, frames: np.ndarray, folder: Path, settings: Mapping[str, Any], key: str, seconds: float
) -> Record:
    record: Record = {
        "key": key,
        "file": job.file,
        "prompt": job.prompt,
        "sample": job.sample,
        "seed": job.seed,
    }
    if job.asked != job.prompt:
        record["asked"] = job.asked
    path = folder / "videos" / job.file
    try:
        write_video(to_uint8(frames), path, fps=float(settings["fps"]))
    except VideoError as error:
        return {**record, "error": str(error)}
    return {
        **record,
        "seconds": round(seconds, 4),
        "size_bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


class _Progress:
    """A line at every hundredth of the videos, and at the first."""

    def __init__(self, say: Callable[[str], None] | None, label: str, total: int, missing: int) -> None:
        self._say, self._label, self._missing = say, label, missing
        self._began, self._last = time.perf_counter(), -1
        if say is not None:
            say(f"{label}: {total - missing} of {total} are there, {missing} to make")

    def update(self, done: int) -> None:
        if self._say is None:
            return
        part = done * 100 // self._missing
        if part > self._last:
            self._last = part
            left = (time.perf_counter() - self._began) / done * (self._missing - done)
            self._say(f"{self._label}: {done} of {self._missing} made, about {left:.0f} s left")


def environments(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each shard ran on, as it noted."""
    for path in sorted((folder / "journal").glob("*.environment.json")):
        yield path.name.removesuffix(".environment.json"), json.loads(path.read_text(encoding="utf-8"))
