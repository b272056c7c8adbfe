"""One worker thread owns the model; everybody else hands in requests and looks at what became of them."""

from __future__ import annotations

import gc
import logging
import secrets
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird import runtime, video_io
from hummingbird.serving.jobs import STATES, Job, JobStore, StoreError
from hummingbird.serving.models import ModelFacts, ModelInfo, name_models
from hummingbird.serving.preview import Preview, make_preview
from hummingbird.serving.queue import FairQueue
from hummingbird.serving.requests import Limits, RequestError, VideoRequest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Engine", "ModelInfo", "Progress", "QueueFull", "Stats", "StorageFull", "UnknownModel"]

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 30.0
"""Old videos are looked for so often."""
_STORE_RETRY_S = 1.0
_MAX_REASON_CHARS = 300


class QueueFull(RuntimeError):
    """There is no room now.

    Attributes:
        retry_after_s: whole seconds after which there probably is.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StorageFull(RuntimeError):
    """The disk has no room for another video."""


class UnknownModel(RequestError):
    """A model that this server does not offer."""


class _Stopped(Exception):
    """Raised between two steps, out of the pipeline: nobody wants the video, or the server stops."""


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        state: one of ``hummingbird.serving.jobs.STATES``.
        step: denoising steps that are done.
        num_steps: all of them.
        preview: (H, W, 3) uint8 RGB, a rough picture of the middle frame; None while there is none.
        seconds: time since the job was begun; 0 before.
        position: jobs that come before it; None unless it waits.
    """

    state: str
    step: int
    num_steps: int
    preview: np.ndarray | None
    seconds: float
    position: int | None = None


@dataclass(frozen=True)
class Stats:
    """What the engine has done since it started, and what it has before it."""

    queued: int
    running: int
    clients: int
    submitted: int
    refused: int
    ended: Mapping[str, int]
    model: str | None
    output_bytes: int


class _Running:
    """What the worker and everybody else share about a job in the making."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start_s = time.monotonic()
        self.step = 0
        self.preview: np.ndarray | None = None
        self.is_cancelled = False


class Engine:
    """Makes videos one after the other, fairly between clients; loses none that it has accepted.

    Safe between threads. Jobs that an earlier server left in the store are taken up at once.

    Args:
        models: what may be asked for: sources that ``runtime.load_pipeline`` takes, or name -> source. The
            first is the default. Each is loaded when it is needed, and the one before it freed.
        store: where jobs are kept; ``close`` closes it.
        limits: how much is taken and kept.
        device: as for ``runtime.load_pipeline``.
        dtype: as for ``runtime.load_pipeline``.
        max_batch: videos in one call of the pipeline, where several of one shape wait. With 1, the default,
            a request gives the same video as ``hummingbird generate`` bit by bit; larger batches are faster,
            but single pixels may differ by one level (docs/serving.md).

    Raises:
        ValueError: no models, or two of one name.
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        models: Sequence[str] | Mapping[str, str],
        store: JobStore,
        limits: Limits | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 1,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: got {max_batch}, expected at least 1")
        self.models = dict(models) if isinstance(models, Mapping) else name_models(models)
        self.store = store
        self.limits = limits or Limits()
        self.started_s = time.time()
        self.on_end: list[Callable[[Job], None]] = []  # called by the worker with every job that has ended
        self.device, self.dtype, self._max_batch = device, dtype, max_batch  # as given, "auto" too
        self._facts = {name: ModelFacts.read(source) for name, source in self.models.items()}
        self._wake = threading.Condition()
        self._queue = FairQueue()
        self._running: dict[str, _Running] = {}
        self._loads: deque[tuple[str, Future[ModelInfo]]] = deque()
        self._is_closing = False
        self._fault: str | None = None
        self._counts: Counter[str] = Counter()
        self._mean_job_s = 1.0
        self._expired_s = time.monotonic()
        self._pipe: HummingbirdPipeline | None = None
        self._preview: Preview | None = None
        self._info: ModelInfo | None = None
        for job in store.recover():
            self._enqueue(job)
        self._thread = threading.Thread(target=self._work, name="hummingbird-worker", daemon=True)
        self._thread.start()

    # --- what clients call ----------------------------------------------------------------------------------

    @property
    def default_model(self) -> str:
        """Name of the model that a request gets which names none."""
        return next(iter(self.models))

    def facts(self, model: str | None = None) -> ModelFacts:
        """What a request for this model has to fit, and what it gets where it leaves something open.

        Raises:
            UnknownModel: this server does not offer it.
        """
        name = self.default_model if model is None else model
        if name not in self._facts:
            known = ", ".join(self.models)
            raise UnknownModel(f"model: got {name[:80]!r}, expected one of {known}", "model")
        return self._facts[name]

    def max_steps(self, model: str) -> int:
        """Most steps of a request for this model: of the server's limit and the model's own the smaller."""
        return min(self.limits.max_steps, self.facts(model).max_steps or self.limits.max_steps)

    def complete(self, prompt: str, model: str | None = None, **given: Any) -> VideoRequest:
        """Make a request of what a client gave; what is left out, or None, is the model's own choice.

        Args:
            prompt: what to show.
            model: the default model where left out.
            **given: other fields of ``VideoRequest``; without ``seed`` one is drawn.

        Raises:
            RequestError: what cannot be, and what can.
        """
        defaults = self.facts(model).default_call
        fields: dict[str, Any] = {
            "model": model or self.default_model,
            **{
                name: defaults[name]
                for name in ("num_frames", "height", "width", "fps", "num_inference_steps", "guidance_scale")
            },
            **{name: value for name, value in given.items() if value is not None},
        }
        if fields.get("seed") is None:
            fields["seed"] = secrets.randbelow(2**31)
        request = VideoRequest.of(prompt=prompt, **fields)
        self.check(request)
        return request

    def check(self, request: VideoRequest) -> None:
        """Refuse what this server cannot make.

        Raises:
            RequestError: what is wrong with it, in one line.
        """
        facts = self.facts(request.model)
        self.limits.check(request)
        multiple = facts.size_multiple
        if multiple and (request.height % multiple or request.width % multiple):
            near = [
                max(multiple, round(side / multiple) * multiple) for side in (request.width, request.height)
            ]
            raise RequestError(
                f"size: got {request.width}x{request.height}, expected multiples of {multiple} for the model "
                f"{request.model!r}, such as {near[0]}x{near[1]}",
                "height" if request.height % multiple else "width",
            )
        if facts.max_steps and request.num_inference_steps > facts.max_steps:
            raise RequestError(
                f"num_inference_steps: got {request.num_inference_steps}, expected at most "
                f"{facts.max_steps} for the model {request.model!r}",
                "num_inference_steps",
            )
        if facts.has_guidance_embedding and request.negative_prompt is not None:
            raise RequestError(
                f"negative_prompt: the model {request.model!r} has its guidance built in; leave it out",
                "negative_prompt",
            )

    def submit(self, request: VideoRequest, client: str, idempotency_key: str | None = None) -> Job:
        """Accept a request: from then on it ends done, failed or cancelled, whatever happens to the process.

        Args:
            request: what to make.
            client: who asks; turns are shared out by this name.
            idempotency_key: sent again under the same key, a request gives the job that is there.

        Raises:
            RequestError: too large, or nothing that the model can make.
            QueueFull: too many wait, of this client or of all.
            StorageFull: the disk is nearly full.
            StoreError: it cannot be written down.
        """
        self.check(request)
        with self._wake:
            if idempotency_key is not None:
                before = self.store.by_key(client, idempotency_key)
                if before is not None:
                    return before
            self._check_room(client)
            job = self.store.add(request, client, idempotency_key)
            self._counts["submitted"] += 1
            self._enqueue(job)
            self._wake.notify_all()
        return job

    def _check_room(self, client: str) -> None:
        limits = self.limits
        own, all_ = self._queue.count(client), len(self._queue)
        if self._is_closing:
            raise QueueFull("the server is stopping; try again soon", 10)
        if own >= limits.max_queued_per_client:
            self._counts["refused"] += 1
            wait_s = limits.retry_after_s(self._mean_job_s * self._queue.num_clients)
            raise QueueFull(
                f"{own} of your videos wait already, at most {limits.max_queued_per_client} may; try "
                f"again in {wait_s} s",
                wait_s,
            )
        if all_ >= limits.max_queued:
            self._counts["refused"] += 1
            wait_s = limits.retry_after_s(self._mean_job_s)
            raise QueueFull(f"{all_} videos wait already; try again in {wait_s} s", wait_s)
        if shutil.disk_usage(self.store.folder).free < limits.min_free_bytes:
            self._counts["refused"] += 1
            raise StorageFull("the server's disk is full; try again later, or tell whoever runs it")

    def _enqueue(self, job: Job) -> None:
        self._queue.push(job.id, job.client, job.request.work, job.request.batch_key)

    def get(self, job_id: str) -> Job | None:
        """The job of that id; None where there is none (any more)."""
        return self.store.get(job_id)

    def list(
        self,
        client: str | None = None,
        *,
        states: Sequence[str] = STATES,
        after: str | None = None,
        limit: int = 20,
        descending: bool = True,
    ) -> Sequence[Job]:
        """Jobs in the order in which they were accepted; arguments as of ``JobStore.select``."""
        return self.store.select(client, states=states, after=after, limit=limit, descending=descending)

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is; None where there is none."""
        with self._wake:
            running = self._running.get(job_id)
            position = None if running else self._queue.positions().get(job_id)
        job = running.job if running else self.store.get(job_id)
        if job is None:
            return None
        num_steps = job.request.num_inference_steps
        if running:
            seconds = time.monotonic() - running.start_s
            return Progress("running", running.step, num_steps, running.preview, seconds)
        step = num_steps if job.state == "done" else 0
        return Progress(job.state, step, num_steps, None, job.seconds or 0.0, position)

    def positions(self) -> dict[str, int]:
        """For every job that waits how many come before it; in one go, for whoever shows many."""
        with self._wake:
            return self._queue.positions()

    def cancel(self, job_id: str) -> Job | None:
        """Stop a job: at once where it waits, after the step that it is in where it runs.

        Returns:
            The job, still ``running`` until its step has ended; unchanged where it had ended before; None
            where there is none.
        """
        with self._wake:
            if self._queue.remove(job_id):
                job = self.store.cancel(job_id, "cancelled before it began")
                if job is not None:
                    self._note_end(job)
                    return job
            elif job_id in self._running:
                self._running[job_id].is_cancelled = True
        return self.store.get(job_id)

    def remove(self, job_id: str) -> bool:
        """Cancel a job, delete its video and forget it; False where there is none."""
        with self._wake:
            self._queue.remove(job_id)
            if job_id in self._running:
                self._running[job_id].is_cancelled = True
            return self.store.remove(job_id)

    def video_path(self, job_id: str) -> Path | None:
        """File of a finished video; None where there is none (yet, or any more)."""
        job = self.store.get(job_id)
        if job is None or job.size_bytes is None:
            return None
        path = self.store.path_of(job_id)
        return path if path.is_file() else None

    def load_model(self, name: str, timeout_s: float | None = None) -> ModelInfo:
        """Load a model now, after the job in the making; the one before it is freed first.

        Raises:
            UnknownModel: this server does not offer it.
            TimeoutError: it took longer than ``timeout_s``; it goes on.
            ValueError, OSError, RuntimeError: it cannot be loaded; no model is loaded then.
        """
        self.facts(name)
        done: Future[ModelInfo] = Future()
        with self._wake:
            if self._is_closing:
                raise RuntimeError("the engine is closed")
            self._loads.append((name, done))
            self._wake.notify_all()
        return done.result(timeout_s)

    @property
    def model_info(self) -> ModelInfo | None:
        """The model that is loaded now."""
        return self._info

    @property
    def fault(self) -> str | None:
        """Why nothing is made at the moment, in one line; None where all is well."""
        if not self._thread.is_alive():
            return "the worker has stopped"
        return self._fault

    def stats(self) -> Stats:
        """Figures for whoever watches."""
        with self._wake:
            return Stats(
                queued=len(self._queue),
                running=len(self._running),
                clients=self._queue.num_clients,
                submitted=self._counts["submitted"],
                refused=self._counts["refused"],
                ended={state: self._counts[state] for state in ("done", "failed", "cancelled")},
                model=self._info.name if self._info else None,
                output_bytes=self.store.output_bytes(),
            )

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the step in the making; what was in the making waits again for the next start."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        for _, done in self._loads:
            done.cancel()
        if not self._thread.is_alive():
            self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the worker -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._is_closing or self._loads or len(self._queue), timeout=HOUSEKEEPING_S
                )
                if self._is_closing:
                    return
                load = self._loads.popleft() if self._loads else None
            try:
                if load is not None:
                    self._answer_load(*load)
                else:
                    batch = self._take()
                    if batch:
                        self._make(batch)
                self._expire()
                self._fault = None
            except OSError as error:  # StoreError, or a file that cannot be deleted
                self._pause(error)
            except _Stopped:  # closed before the store could be written
                return

    def _pause(self, error: OSError) -> None:
        """Nothing can be written down: wait, rather than work for nothing."""
        if self._fault is None:
            logger.warning("%s; trying again every %g s", error, _STORE_RETRY_S)
        self._fault = "the job store cannot be written"
        with self._wake:
            self._wake.wait_for(lambda: self._is_closing, timeout=_STORE_RETRY_S)

    def _record(self, change: Callable[..., Job | None], *values: Any) -> Job | None:
        """Write down how a job went on, however long it takes until the store can be written.

        Raises:
            _Stopped: the server stops before that; the next one finds the job as it was.
        """
        while True:
            try:
                return change(*values)
            except StoreError as error:
                if self._is_closing:
                    raise _Stopped from error
                self._pause(error)

    def _take(self) -> Sequence[_Running]:
        """Begin the next job, and with it those that can be made in the same call.

        Raises:
            StoreError: it cannot be written down that the first one begins; it waits on.
        """
        batch: list[_Running] = []
        key = None
        while len(batch) < self._max_batch:
            with self._wake:
                job_id = self._queue.peek(key)
                if job_id is None:
                    break
                try:
                    job = self.store.start(job_id)
                except StoreError:
                    if not batch:
                        raise
                    break
                self._queue.pop(key)
                if job is not None:
                    key = job.request.batch_key
                    self._running[job_id] = _Running(job)
                    batch.append(self._running[job_id])
        return batch

    def _make(self, batch: Sequence[_Running]) -> None:
        """Make the videos of a batch and write down what became of each."""
        try:
            try:
                videos = self._sample(batch)
            except _Stopped:
                for running in batch:
                    self._give_up(running)
            except Exception as error:  # the boundary of a job: whatever happened to it, the next one is made
                if len(batch) == 1:
                    self._fail(batch[0], error)
                else:
                    logger.warning("%d videos in one call failed (%s); making them singly", len(batch), error)
                    for running in batch:
                        self._make([running])
            else:
                for running, frames in zip(batch, videos, strict=True):
                    self._deliver(running, frames)
        finally:
            with self._wake:
                for running in batch:
                    self._running.pop(running.job.id, None)

    def _sample(self, batch: Sequence[_Running]) -> np.ndarray:
        """Run the pipeline.

        Returns:
            (B, F, H, W, 3) uint8.

        Raises:
            _Stopped: between two steps; nobody wants any of the videos, or the server stops.
        """
        import torch

        requests = [running.job.request for running in batch]
        first = requests[0]
        pipe = self._load(first.model)
        # The CPU's generator draws the same numbers whatever the device, as in `hummingbird generate`.
        noise = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        negative = [request.negative_prompt or "" for request in requests]

        def after_step(
            pipe: HummingbirdPipeline, step: int, timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, Any]:
            if self._is_closing or all(running.is_cancelled for running in batch):
                raise _Stopped
            for running, latents in zip(batch, tensors["latents"], strict=True):
                if self._preview is not None:
                    running.preview = self._preview(latents)
                running.step = step + 1
            return {}

        out: Any = pipe(
            [request.prompt for request in requests],
            num_frames=first.num_frames,
            height=first.height,
            width=first.width,
            fps=first.fps,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            negative_prompt=None if first.negative_prompt is None else negative,
            generator=noise[0] if len(noise) == 1 else noise,
            output_type="np",
            callback_on_step_end=after_step,
        )
        return video_io.to_uint8(out.frames)

    def _deliver(self, running: _Running, frames: np.ndarray) -> None:
        """Put a video where its client finds it, then say so: never the other way round."""
        job = running.job
        if running.is_cancelled:
            self._give_up(running)
            return
        path = self.store.path_of(job.id)
        try:
            video_io.write_video(frames, path, job.request.fps)
            size_bytes = path.stat().st_size
        except (OSError, ValueError) as error:
            self._fail(running, error)
            return
        done = self._record(self.store.finish, job.id, size_bytes)
        if done is None:  # forgotten in the meantime
            path.unlink(missing_ok=True)
        else:
            self._note_end(done)

    def _fail(self, running: _Running, error: Exception) -> None:
        reason = _reason(error)
        level = logging.WARNING if isinstance(error, (ValueError, OSError, RuntimeError)) else logging.ERROR
        logger.log(level, "%s: %s", running.job.id, reason, exc_info=level == logging.ERROR)
        failed = self._record(self.store.fail, running.job.id, reason)
        if failed is not None:
            self._note_end(failed)
        if isinstance(error, RuntimeError):
            _free_memory()

    def _give_up(self, running: _Running) -> None:
        if running.is_cancelled:
            cancelled = self._record(
                self.store.cancel, running.job.id, f"cancelled after step {running.step} of its making"
            )
            if cancelled is not None:
                self._note_end(cancelled)
        else:
            self._record(self.store.put_back, running.job.id)

    def _note_end(self, job: Job) -> None:
        with self._wake:
            self._counts[job.state] += 1
            if job.state == "done" and job.seconds is not None:
                self._mean_job_s += 0.1 * (job.seconds - self._mean_job_s)
        logger.info("%s: %s%s", job.id, job.state, f" ({job.reason})" if job.reason else "")
        for tell in self.on_end:
            tell(job)

    def _expire(self) -> None:
        if time.monotonic() - self._expired_s < HOUSEKEEPING_S:
            return
        self._expired_s = time.monotonic()
        self.expire()

    def expire(self) -> int:
        """Delete what is too old or too much by the limits; the worker does it every ``HOUSEKEEPING_S``.

        Returns:
            The number of videos deleted.
        """
        return self.store.expire(
            max_output_age_s=self.limits.max_output_age_s,
            max_output_bytes=self.limits.max_output_bytes,
            max_record_age_s=self.limits.max_record_age_s,
        )

    def _answer_load(self, name: str, done: Future[ModelInfo]) -> None:
        try:
            self._load(name)
        except Exception as error:  # goes to whoever asked
            done.set_exception(error)
        else:
            assert self._info is not None
            done.set_result(self._info)

    def _load(self, name: str) -> HummingbirdPipeline:
        """The pipeline of that name; another one is freed before it is loaded."""
        if self._pipe is not None and self._info is not None and self._info.name == name:
            return self._pipe
        self.facts(name)  # a job of an earlier server may want what this one does not offer
        self._pipe = self._preview = self._info = None
        _free_memory()
        start_s = time.perf_counter()
        source = self.models[name]
        pipe = runtime.load_pipeline(source, self.device, self.dtype)
        pipe.set_progress_bar_config(disable=True)
        self._preview = make_preview(pipe)
        self._pipe = pipe
        self._info = ModelInfo.of(name, source, pipe, time.perf_counter() - start_s)
        self._facts[name] = self._info.facts
        return pipe


def _reason(error: Exception) -> str:
    """One line for a client: nothing of the server's paths."""
    if isinstance(error, OSError):
        return f"the server could not read or write a file ({error.strerror or type(error).__name__})"
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_REASON_CHARS else text[: _MAX_REASON_CHARS - 3] + "..."


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
