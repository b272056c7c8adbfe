"""A curation run, from raw videos to shards and a manifest, in phases that can be broken off anywhere.

    ingest -> split (one task per source) -> score (one per clip) -> resolve (all clips at once)
           -> recaption (one per kept clip) -> write (one per kept clip) -> shards -> manifest

Every task is a pure function of settings and a file. Its result goes into a journal under ``OUTPUT/work``
before anything builds on it, and what is built from the journals depends neither on time nor on the order in
which tasks ended. So the same command again goes on where a killed run was, and ends with the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from data_pipeline.clip import Clip, ClipSpec, Crop, Drop, Source, Stage, clip_id
from data_pipeline.engine import EngineError, Failure, Pool, SetupError, Task
from data_pipeline.journal import Journal, digest
from data_pipeline.progress import Progress
from data_pipeline.ray_engine import RayConfig, RayPool
from data_pipeline.recaption.rewrite import Question
from data_pipeline.resolve import Candidate, resolve
from data_pipeline.stages.basics import BasicsConfig
from data_pipeline.stages.dedup import DedupConfig
from data_pipeline.stages.ingest import IngestConfig
from data_pipeline.stages.motion import MotionConfig
from data_pipeline.stages.quality import QualityConfig
from data_pipeline.stages.recaption import RecaptionConfig, Recaptioner, frame_path, sample_frames
from data_pipeline.stages.shots import ShotsConfig
from data_pipeline.stages.text import TextConfig
from data_pipeline.stages.write import Sample, WriteConfig, encode_clip, write_shard
from data_pipeline.storage import (
    StorageConfig,
    StorageError,
    check_url,
    deliver,
    finished_files,
    is_url,
    remote_sources,
    staged,
)
from hummingbird.config import config_dataclass, save_config
from hummingbird.manifest import ClipRecord, write_manifest
from hummingbird.video_io import VideoError, atomic_path

__all__ = ["PipelineConfig", "Summary", "describe", "run"]

RESULTS_VERSION = 1
"""Raised when a stage gives other results for the same settings; older journals are then not used."""

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Not a clip's fault: the run stops, and goes on when there is room."""

_MAX_DETAIL = 500


@config_dataclass
class PipelineConfig:
    """A curation run.

    Attributes:
        input: folder of videos, or a list of them (see ``ingest``); a path, or a URL (see ``storage``).
        output: folder for shards, manifest and the run's state; never a URL.
        upload: URL to which shards, thresholds and manifest are copied when they are finished.
        engine: ``local`` uses processes of this machine, ``ray`` those of a cluster.
        workers: processes; 0 is one for each processor that this process may use, or that the cluster has.
        clip_timeout_s: one try of scoring or writing one clip.
        source_timeout_s: one try of finding the shots of one source.
        retry_failed: do tasks again that failed in an earlier run.
        keep_clips: leave the encoded clips in ``OUTPUT/work`` beside the shards.
    """

    input: str | Path | None = None
    output: Path | None = None
    upload: str | None = None
    engine: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    clip_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    source_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    retry_failed: bool = False
    keep_clips: bool = False
    ingest: IngestConfig = IngestConfig()
    shots: ShotsConfig = ShotsConfig()
    basics: BasicsConfig = BasicsConfig()
    motion: MotionConfig = MotionConfig()
    text: TextConfig = TextConfig()
    quality: QualityConfig = QualityConfig()
    dedup: DedupConfig = DedupConfig()
    recaption: RecaptionConfig = RecaptionConfig()
    write: WriteConfig = WriteConfig()
    ray: RayConfig = RayConfig()
    storage: StorageConfig = StorageConfig()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that look at one clip, in their order."""
        return (self.basics, self.motion, self.text, self.quality, self.dedup)

    @property
    def num_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


_GLOBAL_SETTINGS = {"quality": {"top_percent"}, "dedup": {"max_bits"}, "write": {"clips_per_shard"}}
"""Settings that no single clip's result depends on: changing them does no clip again."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        reasons: number of rows by (status, reason).
        alarms: lines about scores that cannot be right.
        captions: number of clips by (where the caption is from, why the original stayed); empty where none
            was to be rewritten.
        worker_peak_mib: largest memory of one worker.
    """

    output: Path
    num_sources: int
    num_rows: int
    reasons: dict[tuple[str, str], int]
    alarms: tuple[str, ...]
    captions: dict[tuple[str, str], int]
    num_shards: int
    seconds: float
    worker_peak_mib: float


# --- tasks: what runs in the workers ------------------------------------------------------------------------


def split_source(shots: ShotsConfig, source: Source) -> dict[str, Any]:
    """The clips of a source, without what is known from the source itself."""
    started = time.perf_counter()
    with _staged(source):
        specs = shots.split(source)
    return {
        "clips": [
            _without(asdict(spec), "source_id", "path", "caption", "damage", "remote") for spec in specs
        ],
        "damage": specs[0].damage if specs else None,
        "seconds": {"shots": time.perf_counter() - started},
    }


@contextmanager
def _staged(source: Source | ClipSpec) -> Iterator[None]:
    """A source's file is there, also where it has to be copied from a storage first."""
    with ExitStack() as stack:
        if source.path is not None:
            stack.enter_context(staged(source.path, source.remote))
        yield


@functools.cache
def _ready(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages, set up once in each process."""
    for stage in stages:
        try:
            stage.setup()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise SetupError(f"{stage.name}: {error}") from error
    return stages


def score_clip(stages: tuple[Stage, ...], spec: ClipSpec) -> dict[str, Any]:
    """What the stages say of a clip; the first that drops it, or fails on it, is the last that is asked."""
    stages = _ready(stages)
    with _staged(spec):
        return _score(stages, spec)


def _score(stages: tuple[Stage, ...], spec: ClipSpec) -> dict[str, Any]:
    clip = Clip(spec, [view for stage in stages for view in stage.views])
    found: dict[str, Any] = {"status": "kept", "reason": "", "detail": "", "crop": None, "fingerprint": ()}
    seconds: dict[str, float] = {}
    for stage in stages:
        started, decode_s = time.perf_counter(), clip.decode_s
        try:
            verdict = stage.process(clip)
            clip.scores.update(_finite(verdict.scores))
        except Exception as error:  # a failure on one clip is that clip's record, whatever it is
            found |= _error(stage.name, type(error).__name__, str(error))
            break
        finally:
            seconds[stage.name] = time.perf_counter() - started - (clip.decode_s - decode_s)
        if isinstance(verdict, Drop):
            found |= {"status": "dropped", "reason": verdict.reason, "detail": verdict.detail}
            break
        if verdict.crop is not None:
            clip.crop = verdict.crop
            found["crop"] = asdict(verdict.crop)
        found["fingerprint"] = verdict.fingerprint or found["fingerprint"]
    return {**found, "scores": clip.scores, "seconds": {"decode": clip.decode_s, **seconds}}


def _finite(scores: Mapping[str, float]) -> dict[str, float]:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise ValueError(f"score {name} is {value}, expected a finite number")
    return {name: float(value) for name, value in scores.items()}


def _error(where: str, name: str, message: str) -> dict[str, str]:
    """Contents of an ``error`` row."""
    name = {VideoError.__name__: "unreadable", StorageError.__name__: "unavailable"}.get(name, name)
    return {"status": "error", "reason": f"{where}: {name}", "detail": " ".join(message.split())}


def write_one(settings: WriteConfig, spec: ClipSpec, crop: Crop | None, to: Path) -> dict[str, Any]:
    """Encode a clip."""
    started = time.perf_counter()
    with _staged(spec):
        encoded = encode_clip(spec, crop, settings, to)
    return {**_without(asdict(encoded), "path"), "seconds": {"encode": time.perf_counter() - started}}


def write_frames(settings: RecaptionConfig, spec: ClipSpec, crop: Crop | None, to: Path) -> dict[str, Any]:
    """Write the pictures of a clip that a captioning model is shown."""
    with _staged(spec):
        return sample_frames(settings, spec, crop, to)


def _values(settings: Any) -> dict[str, Any]:
    """Settings as JSON values."""
    values: dict[str, Any] = pydantic.TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return values


def _local(section: str, settings: Any) -> dict[str, Any]:
    """The settings that the results of single tasks depend on."""
    return _without(_values(settings), *_GLOBAL_SETTINGS.get(section, ()))


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


# --- the run -----------------------------------------------------------------------------------------------


def describe(config: PipelineConfig) -> dict[str, Any]:
    """The plan of a run, for people: what would be read, and every setting. Nothing is written.

    Raises:
        OSError, ValueError: the input cannot be used.
    """
    input_path, output = _places(config)
    counts = Counter("usable" if source.error is None else "dead" for source in _sources(config, input_path))
    values = _values(config)
    return {
        "input": str(input_path),
        "output": str(output),
        **({"upload": config.upload} if config.upload is not None else {}),
        "sources": counts.total(),
        "dead_sources": counts["dead"],
        "workers": config.num_workers,
        "stages": [
            "shots",
            *(stage.name for stage in config.stages),
            *(["recaption"] if config.recaption.backend != "none" else []),
            "write",
        ],
        "settings": {name: value for name, value in values.items() if isinstance(value, dict)},
    }


def run(config: PipelineConfig, say: Callable[[str], None] = lambda line: None) -> Summary:
    """Curate ``config.input`` into ``config.output``, or finish what an earlier run there began.

    Args:
        config: the settings.
        say: is told what a user should know, a line at a time.

    Raises:
        EngineError: another run works on the output, the disk is full, workers cannot start, or a stage
            cannot be set up. The same command goes on where it was when that is mended.
        OSError: the input cannot be read, or the output not be written.
        ValueError: the input is of no known kind.
    """
    started = time.monotonic()
    input_path, output = _places(config)
    config.recaption.check()
    # Read before anything is written: a wrong input leaves no output behind.
    sources = [_decodable(source) for source in _sources(config, input_path)]
    with ExitStack() as stack:
        stack.enter_context(_disk_errors(output))
        stack.enter_context(_locked(output))
        stack.enter_context(_without_leftovers(output))
        save_config(config, output / "config.yaml")
        pool = _pool(config, say)
        stack.enter_context(pool)
        curation = _Curation(config, output, sources, pool, stack, say)
        reasons, alarms, shards = curation.run()
        if config.upload is not None:
            url = check_url("upload", config.upload, config.storage)
            deliver(output, finished_files(output, shards), url, say)
    return Summary(
        output=output,
        num_sources=len(sources),
        num_rows=sum(reasons.values()),
        reasons=reasons,
        alarms=alarms,
        captions=curation.captions,
        num_shards=len(shards),
        seconds=time.monotonic() - started,
        worker_peak_mib=pool.worker_peak_mib,
    )


def _pool(config: PipelineConfig, say: Callable[[str], None]) -> Pool | RayPool:
    if config.engine == "ray":
        return RayPool(config.ray, config.workers, say)
    return Pool(config.num_workers)


def _places(config: PipelineConfig) -> tuple[str | Path, Path]:
    for name in ("input", "output"):
        if getattr(config, name) is None:
            raise ValueError(f"{name} is not set; give --{name}, or {name}: in the settings file")
    assert config.input is not None
    assert config.output is not None
    if is_url(config.output):
        raise ValueError(
            f"output: got {config.output}, expected a path of the file system: the run appends, locks and "
            "renames there; --upload URL copies what is finished, see docs/data_at_scale.md"
        )
    if config.upload is not None:
        if config.upload.startswith("http"):
            raise ValueError("upload: got a URL of the web, expected one of a storage that can be written")
        check_url("upload", config.upload, config.storage)
    if is_url(config.input):
        return check_url("input", str(config.input), config.storage), config.output.absolute()
    source, output = Path(config.input), config.output
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"output: {output} lies in the input, and its videos would be taken for sources; "
            "choose another folder"
        )
    if config.engine == "ray":
        # Actors need not start in the folder in which the command was given.
        return source.absolute(), output.absolute()
    return source, output


def _sources(config: PipelineConfig, place: str | Path) -> Iterator[Source]:
    if is_url(place) or (config.ingest.root is not None and is_url(config.ingest.root)):
        return remote_sources(place, config.ingest, config.storage)
    return config.ingest.sources(Path(place))


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """Say what to do when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise EngineError(
            f"{output}: {os.strerror(error.errno)}; make room, then give the same command again"
        ) from error


def _decodable(source: Source) -> Source:
    """Captions come from anywhere, and halves of surrogate pairs cannot be written as UTF-8."""
    if source.caption is None:
        return source
    return replace(source, caption=source.caption.encode("utf-8", "replace").decode())


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the output for this run; the system lets go of it however the process ends."""
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise EngineError(
                f"{output}: another run works there (process {file.read().strip() or 'unknown'}); "
                "wait for it, or choose another --output"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _without_leftovers(output: Path) -> Iterator[None]:
    """Remove files that were being written when a run or a worker was killed, now and at the end."""

    def clean() -> None:
        work = output / "work"
        for folder in (output, output / "shards", *work.glob("clips/*"), *work.glob("frames/*")):
            for path in folder.glob(".*.part*"):
                path.unlink(missing_ok=True)

    clean()
    try:
        yield
    finally:
        clean()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A clip of a source.

    Attributes:
        number, index: of the source in the run, and of the clip in the source.
        identity: changes when the file, its shots or their settings change.
    """

    number: int
    index: int
    spec: ClipSpec
    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _ToCaption:
    """A clip whose caption is to be rewritten; ``frames_key`` is that of the task that writes its frames."""

    spec: ClipSpec
    crop: Crop | None
    frames_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A clip on its way into a shard; ``key`` is that of its write task."""

    spec: ClipSpec
    crop: Crop | None
    scores: dict[str, float]
    key: str
    caption: _Caption


@dataclass(frozen=True, kw_only=True, slots=True)
class _Caption:
    """A clip's caption to train with; ``source`` and ``note`` are the manifest's columns."""

    text: str | None
    source: str = "original"
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """A shard's clips; ``content`` changes with anything in it, ``is_done`` when it is on disk like that."""

    name: str
    content: str
    clips: Sequence[_Kept]
    is_done: bool


class _Curation:
    """The phases of one run and the journals between them."""

    def __init__(
        self,
        config: PipelineConfig,
        output: Path,
        sources: list[Source],
        pool: Pool | RayPool,
        stack: ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._output = output
        self._sources = sources
        self._pool = pool
        self._say = say
        self._split = self._journal("split", stack)
        self._score = self._journal("score", stack)
        self._write = self._journal("write", stack)
        self._shards = self._journal("shards", stack)
        self._stack = stack
        self._captions: dict[str, _Caption] = {}
        self.captions: Counter[tuple[str, str]] = Counter()
        self._shots_digest = digest(RESULTS_VERSION, _local("shots", config.shots))
        self._stages_digest = digest([_local(stage.name, stage) for stage in config.stages])
        self._write_digest = digest(_local("write", config.write))
        self._split_keys = [self._split_key(source) for source in sources]

    def _journal(self, name: str, stack: ExitStack) -> Journal:
        path = self._output / "work" / f"{name}.journal"
        journal = Journal(path)
        stack.callback(journal.close)
        if journal.cut_bytes:
            self._say(f"{path}: the last {journal.cut_bytes} bytes were damaged; their tasks are done again")
        return journal

    def run(self) -> tuple[Counter[tuple[str, str]], tuple[str, ...], list[str]]:
        self._split_sources()
        self._score_clips()
        drops, alarms = self._resolve()
        if self._config.recaption.backend != "none":
            self._recaption(drops)
        shards = self._write_clips(drops)
        self._write_shards(shards)
        reasons = self._write_manifest(drops, shards)
        if not self._config.keep_clips:
            for name in ("clips", "frames"):
                shutil.rmtree(self._output / "work" / name, ignore_errors=True)
        return reasons, alarms, [shard.name for shard in shards]

    # Keys: everything that a result depends on.

    def _split_key(self, source: Source) -> str | None:
        """None for a file that cannot be opened now; nothing is noted of it, so the next run looks again."""
        if source.error is not None or source.path is None:
            return None
        if source.remote is not None:
            state_there = (source.remote.size_bytes, source.remote.version)
            return digest(source.source_id, *state_there, self._shots_digest)
        try:
            state = source.path.stat()
        except OSError:
            return None
        if not os.access(source.path, os.R_OK):
            return None
        return digest(source.source_id, state.st_size, state.st_mtime_ns, self._shots_digest)

    def _score_key(self, found: _Found) -> str:
        return digest(found.identity, self._stages_digest)

    def _write_key(self, found: _Found, crop: dict[str, int] | None) -> str:
        return digest(found.identity, crop, self._write_digest)

    # Phases.

    def _run_tasks(
        self,
        phase: str,
        unit: str,
        journal: Journal,
        function: Callable[..., dict[str, Any]],
        tasks: Callable[[], Iterator[Task]],
        timeout_s: float,
        is_lost: Callable[[str], bool] = lambda key: False,
        uses_models: bool = False,
    ) -> None:
        """Do the tasks that the journal does not have, or whose result is lost.

        Args:
            tasks: gives all tasks of the phase, anew at each call: they are never held in memory together.
        """

        dues = [self._is_due(journal, task.key) or is_lost(task.key) for task in tasks()]
        if not any(dues):
            return
        missing = (task for task, due in zip(tasks(), dues, strict=True) if due)
        progress = Progress(phase, len(dues), len(dues) - sum(dues), unit, self._output / "work")
        try:
            outcomes = self._pool.run(function, missing, timeout_s=timeout_s, uses_models=uses_models)
            for key, outcome in outcomes:
                value = self._checked(outcome, phase) if isinstance(outcome, Failure) else outcome
                journal.add(key, value)
                progress.add(value.get("reason") or "kept")
        finally:
            progress.close()
            journal.sync()

    def _is_due(self, journal: Journal, key: str) -> bool:
        if key not in journal:
            return True
        return self._config.retry_failed and journal[key].get("status") == "error"

    def _checked(self, failure: Failure, phase: str) -> dict[str, Any]:
        """A failure as a row's contents, unless it is the machine's and not the clip's.

        Raises:
            EngineError: a stage cannot be set up.
            OSError: the disk is full or read-only.
        """
        if failure.name == "SetupError":
            raise EngineError(failure.message)
        if failure.errno in _DISK_ERRORS:
            raise OSError(failure.errno, failure.message)
        names = {"raised": failure.name, "timeout": "timeout", "died": f"worker died ({failure.name})"}
        # The encoder's files have random names while they are written.
        message = re.sub(re.escape(f"{self._output}{os.sep}") + r"\S*", "file", failure.message)
        return _error(phase, names[failure.kind], message)

    def _split_sources(self) -> None:
        def tasks() -> Iterator[Task]:
            for source, key in zip(self._sources, self._split_keys, strict=True):
                if key is not None:
                    yield Task(key=key, arguments=(self._config.shots, source), cost=_size_bytes(source))

        self._run_tasks("shots", "sources", self._split, split_source, tasks, self._config.source_timeout_s)

    def _clips(self) -> Iterator[_Found]:
        """Every clip of every source, as the split tasks found them."""
        for number, (source, key) in enumerate(zip(self._sources, self._split_keys, strict=True)):
            if key is not None:
                for index, clip in enumerate(self._split[key].get("clips", ())):
                    yield self._found(number, index, source, key, clip)

    def _found(self, number: int, index: int, source: Source, key: str, clip: dict[str, Any]) -> _Found:
        assert source.path is not None  # it has been read
        spec = ClipSpec(
            **clip, source_id=source.source_id, path=source.path, caption=source.caption, remote=source.remote
        )
        return _Found(number=number, index=index, spec=spec, identity=digest(key, clip))

    def _score_clips(self) -> None:
        def tasks() -> Iterator[Task]:
            for found in self._clips():
                arguments = (self._config.stages, found.spec)
                yield Task(key=self._score_key(found), arguments=arguments, cost=_num_pixels(found.spec))

        timeout_s = self._config.clip_timeout_s
        self._run_tasks("score", "clips", self._score, score_clip, tasks, timeout_s, uses_models=True)

    def _resolve(self) -> tuple[dict[str, Drop], tuple[str, ...]]:
        """Decide what needs all clips at once, and write down the thresholds."""
        candidates = []
        for found in self._clips():
            score = self._score[self._score_key(found)]
            if score["status"] == "kept":
                candidates.append(
                    Candidate(
                        clip_id=found.spec.clip_id,
                        source_id=found.spec.source_id,
                        quality=score["scores"].get("quality"),
                        fingerprint=tuple(score["fingerprint"]),
                    )
                )
        resolution = resolve(candidates, self._config.dedup, self._config.quality.top_percent)
        sections = {stage.name: _values(stage) for stage in self._config.stages}
        with atomic_path(self._output / "thresholds.json") as partial:
            partial.write_text(json.dumps({**resolution.thresholds, "settings": sections}, indent=2) + "\n")
        for alarm in resolution.alarms:
            self._say(f"warning: {alarm}")
        return resolution.drops, resolution.alarms

    def _kept_clips(self, drops: dict[str, Drop]) -> Iterator[tuple[_Found, dict[str, Any]]]:
        """The clips that no stage dropped, with what the stages said."""
        for found in self._clips():
            score = self._score[self._score_key(found)]
            if score["status"] == "kept" and found.spec.clip_id not in drops:
                yield found, score

    def _recaption(self, drops: dict[str, Drop]) -> None:
        """Give every kept clip the caption to train with."""
        settings = self._config.recaption
        decisions = self._journal("recaption", self._stack)
        frames = self._journal("frames", self._stack)
        recaptioner = Recaptioner(settings, self._journal("answers", self._stack))
        self._stack.callback(recaptioner.close)
        clips = [self._to_caption(found, score) for found, score in self._kept_clips(drops)]
        if settings.looks_at_frames:
            self._sample_frames(clips, frames, lambda key: False)
        keys: dict[str, str] = {}
        due: dict[str, _ToCaption] = {}
        for clip in clips:
            sampled = frames[clip.frames_key] if settings.looks_at_frames else {"images": []}
            if "images" in sampled:
                key = recaptioner.key(clip.spec.caption or "", sampled["images"])
                keys[clip.spec.clip_id] = key
                if self._is_due(decisions, key):
                    due.setdefault(key, clip)
            else:
                note = sampled["reason"]
                self._captions[clip.spec.clip_id] = _Caption(text=clip.spec.caption, note=note)
        if settings.looks_at_frames:
            # Frames of clips that were answered may have gone with the end of an earlier run.
            self._sample_frames(list(due.values()), frames, lambda key: self._has_lost_frames(frames, key))
        questions = (self._question(key, clip, frames) for key, clip in due.items())
        if due:
            progress = Progress("recaption", len(due), 0, "captions", self._output / "work")
            try:
                with closing(recaptioner.results(questions)) as results:
                    for key, decision in results:
                        decisions.add(key, decision)
                        progress.add(decision["reason"] or "rewritten")
            finally:
                progress.close()
                decisions.sync()
        for clip in clips:
            if clip.spec.clip_id in keys:
                decision = decisions[keys[clip.spec.clip_id]]
                caption = _Caption(text=clip.spec.caption, note=decision["reason"])
                if decision["caption"] is not None:
                    caption = _Caption(text=decision["caption"], source=settings.backend)
                self._captions[clip.spec.clip_id] = caption
        self.captions.update((caption.source, caption.note) for caption in self._captions.values())

    def _to_caption(self, found: _Found, score: dict[str, Any]) -> _ToCaption:
        settings = self._config.recaption
        view = [settings.num_frames, settings.frame_short_side]
        crop = Crop(**score["crop"]) if score["crop"] else None
        return _ToCaption(spec=found.spec, crop=crop, frames_key=digest(found.identity, score["crop"], view))

    def _sample_frames(
        self, clips: Sequence[_ToCaption], frames: Journal, is_lost: Callable[[str], bool]
    ) -> None:
        """Write the pictures that a model is shown; by workers, since this decodes files from outside."""

        def tasks() -> Iterator[Task]:
            for clip in clips:
                arguments = (self._config.recaption, clip.spec, clip.crop, self._frames_path(clip.frames_key))
                yield Task(key=clip.frames_key, arguments=arguments)

        self._run_tasks("frames", "clips", frames, write_frames, tasks, self._config.clip_timeout_s, is_lost)

    def _frames_path(self, key: str) -> Path:
        return self._output / "work" / "frames" / key[:2] / key

    def _has_lost_frames(self, frames: Journal, key: str) -> bool:
        count = len(frames[key].get("images", ()))
        return not all(frame_path(self._frames_path(key), number).is_file() for number in range(count))

    def _question(self, key: str, clip: _ToCaption, frames: Journal) -> Question:
        count = len(frames[clip.frames_key]["images"]) if self._config.recaption.looks_at_frames else 0
        files = [frame_path(self._frames_path(clip.frames_key), number) for number in range(count)]
        return Question(key=key, caption=clip.spec.caption or "", images=tuple(files))

    def _caption(self, spec: ClipSpec) -> _Caption:
        """What the recaptioning made of a clip's caption; clips that it never saw keep theirs."""
        return self._captions.get(spec.clip_id, _Caption(text=spec.caption))

    def _write_clips(self, drops: dict[str, Drop]) -> list[_Shard]:
        """Encode every kept clip whose file is needed, and plan the shards."""
        kept = []
        for found, score in self._kept_clips(drops):
            crop = Crop(**score["crop"]) if score["crop"] else None
            kept.append(
                _Kept(
                    spec=found.spec,
                    crop=crop,
                    scores=score["scores"],
                    key=self._write_key(found, score["crop"]),
                    caption=self._caption(found.spec),
                )
            )
        kept.sort(key=lambda clip: clip.spec.clip_id)

        def encode(clips: Sequence[_Kept], is_lost: Callable[[str], bool]) -> None:
            def tasks() -> Iterator[Task]:
                for clip in clips:
                    arguments = (self._config.write, clip.spec, clip.crop, self._clip_path(clip.key))
                    yield Task(key=clip.key, arguments=arguments, cost=_num_pixels(clip.spec))

            timeout_s = self._config.clip_timeout_s
            self._run_tasks("write", "clips", self._write, write_one, tasks, timeout_s, is_lost)

        encode(kept, lambda key: False)
        shards = self._plan(kept)
        # Clips of finished shards need no file; others may have lost theirs to the end of an earlier run.
        encode([clip for shard in shards if not shard.is_done for clip in shard.clips], self._has_lost_file)
        return self._plan(kept)

    def _clip_path(self, key: str) -> Path:
        return self._output / "work" / "clips" / key[:2] / f"{key}.mp4"

    def _has_lost_file(self, key: str) -> bool:
        written, path = self._write[key], self._clip_path(key)
        if written.get("status") == "error":
            return False
        return not path.is_file() or path.stat().st_size != written["size_bytes"]

    def _plan(self, kept: Sequence[_Kept]) -> list[_Shard]:
        """Which clip goes into which shard: by their names, so that nothing else makes a difference."""
        written = [clip for clip in kept if self._write[clip.key].get("status") != "error"]
        shards = []
        for number, first in enumerate(range(0, len(written), self._config.write.clips_per_shard)):
            clips = written[first : first + self._config.write.clips_per_shard]
            name = f"shards/{number:06d}.tar"
            content = [self._metadata(clip) for clip in clips]
            path = self._output / name
            size_bytes = path.stat().st_size if path.is_file() else 0
            state = {"content": digest(content), "size_bytes": size_bytes}
            is_done = name in self._shards and self._shards[name] == state
            shards.append(_Shard(name=name, content=digest(content), clips=clips, is_done=is_done))
        return shards

    def _metadata(self, clip: _Kept) -> dict[str, Any]:
        """What a shard says of a clip: as it was written, with where it came from."""
        written = _without(self._write[clip.key], "seconds")
        span = {"source": _text(clip.spec.source_id), "start_s": clip.spec.start_s, "end_s": clip.spec.end_s}
        captions = {
            "caption": clip.caption.text,
            "original_caption": clip.spec.caption,
            "caption_source": clip.caption.source,
            "caption_note": clip.caption.note,
        }
        return {"clip_id": clip.spec.clip_id, **span, **captions, **written, "scores": clip.scores}

    def _write_shards(self, shards: Sequence[_Shard]) -> None:
        folder = self._output / "shards"
        names = {Path(shard.name).name for shard in shards}
        stale = [path for path in folder.glob("*.tar") if path.name not in names]
        stale = [path for path in stale if re.fullmatch(r"\d{6}\.tar", path.name)]
        unfinished = [shard for shard in shards if not shard.is_done]
        if stale or unfinished:
            # From here to the new manifest the old one would be wrong.
            (self._output / "manifest.parquet").unlink(missing_ok=True)
        for path in stale:
            path.unlink()
        for shard in unfinished:
            samples = [
                Sample(
                    clip_id=clip.spec.clip_id,
                    video=self._clip_path(clip.key),
                    caption=clip.caption.text or "",
                    metadata=self._metadata(clip),
                )
                for clip in shard.clips
            ]
            path = self._output / shard.name
            # The file's name stands for nothing until it is known again what the file holds.
            self._shards.add(shard.name, {"content": None})
            write_shard(samples, path)
            self._shards.add(shard.name, {"content": shard.content, "size_bytes": path.stat().st_size})
        self._shards.sync()

    def _write_manifest(self, drops: dict[str, Drop], shards: Sequence[_Shard]) -> Counter[tuple[str, str]]:
        """One row for every clip and for every source without one, in the order of their names."""
        places = {clip.spec.clip_id: (shard.name, clip.key) for shard in shards for clip in shard.clips}
        order = [(found.spec.clip_id, found.number, found.index) for found in self._clips()]
        with_clips = {number for _, number, _ in order}
        for number, source in enumerate(self._sources):
            if number not in with_clips:
                order.append((clip_id(source.source_id, None), number, -1))
        order.sort()
        names = [name for name, _, _ in order]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise EngineError(
                f"clip id {twice[0]!r} came up twice, expected every id once; rename its source"
            )
        reasons: Counter[tuple[str, str]] = Counter()

        def rows() -> Iterator[ClipRecord]:
            for _, number, index in order:
                record = self._record(number, index, drops, places)
                reasons[record.status, record.reason] += 1
                yield record

        write_manifest(rows(), self._output / "manifest.parquet", score_names=self._score_names())
        return reasons

    def _score_names(self) -> list[str]:
        return sorted(
            {
                name
                for found in self._clips()
                for name in self._score[self._score_key(found)].get("scores", ())
            }
        )

    def _record(
        self, number: int, index: int, drops: dict[str, Drop], places: dict[str, tuple[str, str]]
    ) -> ClipRecord:
        source, key = self._sources[number], self._split_keys[number]
        row = ClipRecord(
            clip_id=clip_id(source.source_id, None),
            source=source.source_id,
            caption=source.caption,
            original_caption=source.caption,
            status="error",
            reason="ingest: no usable file",
            detail=_one_line(source.error or f"{source.path}: cannot be opened", source),
        )
        if key is None:
            return row
        split = self._split[key]
        if index < 0:
            no_clip = {"status": "dropped", "reason": "shots: no clip", "detail": "", **split}
            return replace(row, **self._verdict(no_clip, split.get("damage"), source))
        found = self._found(number, index, source, key, split["clips"][index])
        spec, score = found.spec, self._score[self._score_key(found)]
        span = ("clip_id", "start_s", "end_s", "num_frames", "fps", "width", "height")
        row = replace(row, **{name: getattr(spec, name) for name in span}, scores=score.get("scores", {}))
        caption = self._caption(spec)
        row = replace(row, caption=caption.text, caption_source=caption.source, caption_note=caption.note)
        verdict = score
        if spec.clip_id in drops:
            verdict = {"status": "dropped", **asdict(drops[spec.clip_id])}
        elif spec.clip_id in places:
            shard, write_key = places[spec.clip_id]
            row = replace(row, shard=shard, sha256=self._write[write_key]["sha256"])
        elif score["status"] == "kept":
            verdict = self._write[self._write_key(found, score["crop"])]
        return replace(row, **self._verdict(verdict, split["damage"], source))

    def _verdict(self, values: dict[str, Any], damage: str | None, source: Source) -> dict[str, Any]:
        detail = values["detail"] + (f" (source damaged: {damage})" if damage else "")
        return {"status": values["status"], "reason": values["reason"], "detail": _one_line(detail, source)}


def _size_bytes(source: Source) -> int:
    if source.remote is not None:
        return source.remote.size_bytes
    try:
        return source.path.stat().st_size if source.path is not None else 0
    except OSError:  # gone by now: its task says so
        return 0


def _num_pixels(spec: ClipSpec) -> int:
    return spec.num_frames * spec.width * spec.height


def _one_line(text: str, source: Source) -> str:
    """A message without line ends, and without the folder that this run happened to read from."""
    if source.path is not None:
        text = text.replace(str(source.path), source.source_id)
    return " ".join(text.split())[:_MAX_DETAIL]


def _text(name: str) -> str:
    """Names of files need not be UTF-8, JSON in shards is."""
    return name.encode("utf-8", "backslashreplace").decode()
