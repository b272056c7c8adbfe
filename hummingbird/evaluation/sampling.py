"""Videos of many prompts, from a pipeline in this process or from several processes with one each.

Each video has noise of its own, drawn on the CPU from the run's seed and its number. So it is the same video
in whatever batch, order or process it is made, up to the rounding of the hardware.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hummingbird.evaluation.report import peak_memory_mb
from hummingbird.video_io import to_uint8

if TYPE_CHECKING:
    from hummingbird.pipelines import HummingbirdPipeline

__all__ = ["Job", "Made", "ModelFacts", "Sampler", "describe", "fingerprint", "open_sampler", "video_seed"]

_HASHED_VALUES = 512  # of each tensor


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to be made.

    Attributes:
        index: its number.
        prompt: what to show.
        seed: of its noise.
    """

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """One batch of videos.

    Attributes:
        jobs: what was asked for.
        videos: uint8 (B, F, H, W, 3) RGB.
        seconds: per video.
        peak_memory_mb: the most memory used so far where it was made.
    """

    jobs: tuple[Job, ...]
    videos: np.ndarray
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a report tells about a model.

    Attributes:
        default_call: arguments that the model works best with.
        device, dtype: where and in which precision it runs.
        weights: 16 hexadecimal digits that tell two sets of weights apart.
        scheduler: the same of the scheduler's settings.
        parameters: of each component; None where they cannot be counted (exported graphs).
        num_threads: of the CPU, in each process.
    """

    default_call: dict[str, Any]
    device: str
    dtype: str
    weights: str
    scheduler: str
    parameters: dict[str, int] | None
    num_threads: int


def describe(pipe: HummingbirdPipeline) -> ModelFacts:
    """Looks at a pipeline."""
    components = pipe.components
    networks = {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in networks.items()}
    config = getattr(components.get("scheduler"), "config", {})
    settings = {key: value for key, value in sorted(config.items()) if not key.startswith("_")}
    settings["class"] = type(components.get("scheduler")).__name__
    return ModelFacts(
        default_call=dict(pipe.default_call),
        device=str(pipe.device),
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        weights=fingerprint(pipe),
        scheduler=hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16],
        # The parts of an exported folder are graphs, whose weights are not ours to count.
        parameters=counts if counts.get("unet") else None,
        num_threads=torch.get_num_threads(),
    )


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
    origin = getattr(pipe, "origin", None)
    manifest = None if origin is None else Path(origin) / "export.json"
    if manifest is not None and manifest.is_file():  # it holds the hash of every graph
        digest.update(manifest.read_bytes())
    return digest.hexdigest()[:16]


def make_batch(
    pipe: HummingbirdPipeline, jobs: Sequence[Job], *, num_inference_steps: int, guidance_scale: float
) -> Made:
    """Makes one batch.

    Raises:
        hummingbird.video_io.VideoError: the model made NaN.
    """
    began = time.perf_counter()
    (frames,) = pipe(
        [job.prompt for job in jobs],
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        # The CPU's generator draws the same numbers whatever the device.
        generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
        output_type="np",
        return_dict=False,
    )
    videos = to_uint8(np.asarray(frames))
    return Made(
        jobs=tuple(jobs),
        videos=videos,
        seconds=(time.perf_counter() - began) / len(jobs),
        peak_memory_mb=peak_memory_mb(pipe.device),
    )


class Sampler:
    """Makes videos in this process.

    Args:
        pipe: what makes them.

    Attributes:
        facts: about the model.
        workers: processes that make videos.
    """

    workers = 1

    def __init__(self, pipe: HummingbirdPipeline) -> None:
        self._pipe = pipe
        self.facts = describe(pipe)

    def run(self, batches: Sequence[Sequence[Job]], **settings: Any) -> Iterator[Made]:
        """Makes videos batch by batch, in any order.

        Args:
            batches: what to make.
            **settings: ``num_inference_steps`` and ``guidance_scale``.
        """
        if self._pipe.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._pipe.device)
        for jobs in batches:
            yield make_batch(self._pipe, jobs, **settings)


class _PoolSampler(Sampler):
    """Makes videos in processes of their own, which share the CPU's cores."""

    def __init__(self, pool: ProcessPoolExecutor, workers: int) -> None:
        self._pool, self.workers = pool, workers
        self.facts = pool.submit(_describe_own).result()

    def run(self, batches: Sequence[Sequence[Job]], **settings: Any) -> Iterator[Made]:
        waiting: set[Future[Made]] = set()
        rest = iter(batches)
        while True:
            for jobs in rest:  # a few ahead, so that no process waits and few videos pile up
                waiting.add(self._pool.submit(_make_own, jobs, settings))
                if len(waiting) > self.workers:
                    break
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


@contextmanager
def open_sampler(load: Callable[[], HummingbirdPipeline], workers: int = 1) -> Iterator[Sampler]:
    """Loads a model once, or once in each of several processes, which end with the block.

    Args:
        load: loads it; for several processes it must be picklable.
        workers: processes, at least 1; each gets its share of torch's threads.

    Raises:
        RuntimeError: a process died, as when memory runs out.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    if workers == 1:
        pipe = load()
        pipe.set_progress_bar_config(disable=True)
        yield Sampler(pipe)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        # Forked processes would inherit the locks of torch's threads.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_open_own,
        initargs=(load, max(1, torch.get_num_threads() // workers)),
    )
    ended_well = False
    try:
        yield _PoolSampler(pool, workers)
        ended_well = True
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that makes videos died, perhaps because memory ran out: use fewer --workers or a "
            "smaller --batch-size; the same command goes on where it stopped"
        ) from error
    finally:
        if not ended_well:  # nobody waits for what is being made
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


# --- in a process of the pool ------------------------------------------------------------------------------


_loader: list[Callable[[], HummingbirdPipeline]] = []
"""What loads the model of this process; empty in the main process."""


@functools.cache
def _own() -> HummingbirdPipeline:
    (load,) = _loader
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _open_own(load: Callable[[], HummingbirdPipeline], num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    _be_quiet()
    _loader[:] = [load]


def _be_quiet() -> None:
    """The main process tells how far it is; what each process says of its loading is noise."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
    logging.getLogger("hummingbird").setLevel(logging.ERROR)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _describe_own() -> ModelFacts:
    return describe(_own())


def _make_own(jobs: Sequence[Job], settings: dict[str, Any]) -> Made:
    return make_batch(_own(), jobs, **settings)
