"""The engine: the pipeline's own videos, stopped when told, bounded, and alive after whatever fails."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hummingbird import runtime, video_io
from hummingbird.serving import (
    Engine,
    JobStore,
    Limits,
    QueueFull,
    RequestError,
    StorageFull,
    UnknownModel,
    VideoRequest,
)
from hummingbird.serving.models import ModelFacts, name_models
from hummingbird.serving.preview import _fit, _map, make_preview
from tests.serving.conftest import LIMITS, MODELS, PROMPT, SMALL, small_request, wait_for, wait_until

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = runtime.load_pipeline("nano-teacher", "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def busy(engine: Engine) -> Iterator[str]:
    """Keeps the worker at a job of very many steps; gives its id."""
    job = engine.submit(small_request(engine, num_inference_steps=1000), "busy")
    wait_until(lambda: engine.progress(job.id).step >= 1)  # type: ignore[union-attr]
    yield job.id
    engine.remove(job.id)


def test_a_video_is_the_pipelines_own_bit_by_bit(engine: Engine, pipe: Any, tmp_path: Path) -> None:
    settings = {**SMALL, "num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "a star"}
    job = wait_for(engine, engine.submit(engine.complete(PROMPT, seed=5, fps=6.0, **settings), "a"))
    assert (job.state, job.reason, job.num_starts) == ("done", None, 1)
    noise = torch.Generator("cpu").manual_seed(5)
    out = pipe(PROMPT, generator=noise, fps=6.0, output_type="np", **settings)
    expected = video_io.write_video(video_io.to_uint8(out.frames[0]), tmp_path / "own.mp4", 6.0)
    path = engine.video_path(job.id)
    assert path is not None
    assert path.read_bytes() == expected.read_bytes()
    assert job.size_bytes == path.stat().st_size
    progress = engine.progress(job.id)
    assert progress is not None
    assert (progress.state, progress.step, progress.num_steps) == ("done", 2, 2)
    assert engine.progress("video_" + "0" * 32) is None


def test_what_is_left_open_is_the_models_own_choice(engine: Engine, pipe: Any) -> None:
    small = {"num_inference_steps": 1, "num_frames": 1}
    request = engine.complete("a star", height=16, width=16, seed=None, fps=None, **small)
    own = pipe.default_call
    assert (request.fps, request.guidance_scale) == (own["fps"], own["guidance_scale"])
    seeds = {engine.complete("a star", height=16, width=16, **small).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 24}, "size: got 16x24, expected multiples of 16 for the model 'nano', such as 16x32"),
        ({"prompt": "x" * 201}, "prompt: got 201 characters, expected at most 200"),
        ({"num_frames": 256, "num_inference_steps": 20}, "at most 100 frames"),
        ({"height": 1024, "width": 1024}, "ask for a smaller size"),
    ],
)
def test_requests_that_cannot_be_made_are_refused_at_once(
    engine: Engine, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        small_request(engine, **change)
    assert engine.list() == []


def test_more_steps_than_a_model_was_distilled_for_are_refused_at_once(tmp_path: Path) -> None:
    with Engine({"few": "nano", **MODELS}, JobStore(tmp_path), LIMITS) as engine:
        assert (engine.max_steps("few"), engine.max_steps("nano")) == (8, LIMITS.max_steps)
        with pytest.raises(RequestError, match="got 9, expected at most 8 for the model 'few'") as caught:
            engine.complete("a star", "few", **{**SMALL, "num_inference_steps": 9})
        assert caught.value.field == "num_inference_steps"
        assert (
            engine.complete("a star", "few", **{**SMALL, "num_inference_steps": 8}).num_inference_steps == 8
        )


def test_unknown_models_are_refused(engine: Engine) -> None:
    with pytest.raises(UnknownModel, match="got '/etc/passwd', expected one of nano"):
        engine.complete("a star", "/etc/passwd")
    with pytest.raises(UnknownModel):
        engine.load_model("gpt")


def test_a_running_job_stops_between_two_steps(engine: Engine, busy: str) -> None:
    before = engine.progress(busy)
    assert before is not None
    assert before.preview is not None
    assert (before.preview.shape, before.preview.dtype) == ((16, 16, 3), np.uint8)
    job = engine.cancel(busy)
    assert job is not None
    job = wait_for(engine, job)
    assert job.state == "cancelled"
    assert job.reason is not None
    assert "after step" in job.reason
    assert engine.video_path(busy) is None
    assert not engine.store.path_of(busy).exists()
    following = wait_for(engine, engine.submit(small_request(engine), "a"))
    assert following.state == "done"


def test_a_waiting_job_is_cancelled_at_once(engine: Engine, busy: str) -> None:
    job = engine.submit(small_request(engine), "a")
    progress = engine.progress(job.id)
    assert progress is not None
    assert (progress.state, progress.position) == ("queued", 0)
    cancelled = engine.cancel(job.id)
    assert cancelled is not None
    assert (cancelled.state, cancelled.num_starts) == ("cancelled", 0)
    assert engine.cancel(job.id) == cancelled
    assert engine.cancel("video_" + "0" * 32) is None
    progress = engine.progress(busy)
    assert progress is not None
    assert progress.state == "running"


def test_a_removed_job_leaves_nothing(engine: Engine, busy: str) -> None:
    assert engine.remove(busy)
    assert engine.get(busy) is None
    wait_until(lambda: engine.stats().running == 0)
    assert not engine.store.path_of(busy).exists()
    assert not engine.remove(busy)


def test_the_queue_is_bounded_for_one_and_for_all(engine: Engine, busy: str) -> None:
    request = small_request(engine)
    for _ in range(LIMITS.max_queued_per_client):
        engine.submit(request, "greedy")
    with pytest.raises(QueueFull, match="6 of your videos wait already") as caught:
        engine.submit(request, "greedy")
    assert 1 <= caught.value.retry_after_s <= 600
    engine.submit(request, "modest")
    engine.submit(request, "modest")
    with pytest.raises(QueueFull, match="8 videos wait already"):
        engine.submit(request, "third")
    assert len(engine.list("greedy", limit=100)) == 6
    assert engine.stats().refused >= 2


def test_a_key_gives_the_job_that_is_there(engine: Engine, busy: str) -> None:
    request = small_request(engine)
    job = engine.submit(request, "a", "once")
    assert engine.submit(request, "a", "once").id == job.id
    assert engine.submit(request, "b", "once").id != job.id
    assert engine.stats().queued == 2


def test_many_threads_at_once_lose_nothing(engine: Engine) -> None:
    request = small_request(engine)
    ids: list[str] = []

    def send(client: str) -> None:
        while True:
            try:
                ids.append(engine.submit(request, client).id)
                return
            except QueueFull:
                time.sleep(0.05)

    threads = [threading.Thread(target=send, args=(client,)) for client in "abcdefghijkl"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(ids)) == 12
    jobs = [engine.get(job_id) for job_id in ids]
    ended = [wait_for(engine, job) for job in jobs if job is not None]
    assert [(job.state, job.num_starts) for job in ended] == [("done", 1)] * 12


@pytest.mark.logs_error("ZeroDivisionError")
def test_a_job_that_fails_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for(engine, engine.submit(small_request(engine), "a"))
    assert engine._pipe is not None
    for error, reason in (
        (
            RuntimeError("CUDA out of memory. Tried\nto allocate"),
            "RuntimeError: CUDA out of memory. Tried to",
        ),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (ValueError("x" * 1000), "xxx"),
    ):

        def fail(*args: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(type(engine._pipe), "decode_latents", fail)
            job = wait_for(engine, engine.submit(small_request(engine), "a"))
        assert job.state == "failed"
        assert job.reason is not None
        assert job.reason.startswith(reason)
        assert len(job.reason) <= 300
    assert wait_for(engine, engine.submit(small_request(engine), "a")).state == "done"


def test_what_cannot_be_written_fails_with_its_reason(engine: Engine) -> None:
    """No file may grow at all: neither the video nor the job store can be written until that ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    job = engine.submit(small_request(engine, num_inference_steps=6, num_frames=16), "a")
    wait_until(lambda: engine.stats().running == 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        wait_until(lambda: engine.fault)
        assert engine.fault == "the job store cannot be written"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    failed = wait_for(engine, job)
    assert failed.state == "failed"
    assert failed.reason is not None
    assert "could not read or write a file (File too large)" in failed.reason
    assert str(engine.store.folder) not in failed.reason
    assert list(engine.store.videos.iterdir()) == [], "nothing half-written stays"
    wait_until(lambda: engine.fault is None)
    assert wait_for(engine, engine.submit(small_request(engine), "a")).state == "done"


def test_a_full_disk_takes_no_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "limits", Limits(min_free_bytes=2**62))
    with pytest.raises(StorageFull, match="disk is full"):
        engine.submit(small_request(engine), "a")
    assert engine.list() == []


def test_videos_expire_while_the_engine_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = wait_for(engine, engine.submit(small_request(engine), "a"))
    monkeypatch.setattr(engine, "limits", Limits(max_output_bytes=1))
    assert engine.expire() == 1
    assert engine.video_path(job.id) is None
    found = engine.get(job.id)
    assert found is not None
    assert (found.state, found.size_bytes) == ("done", None)


def test_restart_takes_up_what_waited(tmp_path: Path) -> None:
    engine = Engine(MODELS, JobStore(tmp_path), LIMITS)
    long = engine.submit(small_request(engine, num_inference_steps=1000), "a")
    waiting = engine.submit(small_request(engine), "b")
    wait_until(lambda: engine.progress(long.id).step >= 1)  # type: ignore[union-attr]
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.load_model("nano")
    with Engine(MODELS, JobStore(tmp_path), LIMITS) as after:
        left = after.get(long.id)
        assert left is not None
        assert left.num_starts <= 1, "an orderly stop does not count as a start"
        after.cancel(long.id)
        done = wait_for(after, waiting)
        assert (done.state, done.num_starts) == ("done", 1)


def test_closing_does_not_wait_for_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    engine = Engine(MODELS, JobStore(tmp_path), LIMITS)
    job = engine.submit(small_request(engine, num_inference_steps=3), "a")
    wait_until(lambda: engine.stats().running)
    engine.store._database.execute("PRAGMA query_only = ON")
    wait_until(lambda: engine.fault)
    engine.close(timeout_s=60)
    assert not engine._thread.is_alive()
    with Engine(MODELS, JobStore(tmp_path), LIMITS) as after:
        done = wait_for(after, job)
    assert (done.state, done.num_starts) == ("done", 2)


def test_batches_are_the_single_videos_within_a_level(tmp_path: Path, pipe: Any) -> None:
    prompts = [PROMPT, "a yellow star bouncing on a navy background", "a cyan square"]
    settings = {**SMALL, "num_inference_steps": 2}
    with Engine(MODELS, JobStore(tmp_path), LIMITS, max_batch=3) as engine:
        first = engine.submit(small_request(engine, num_inference_steps=500), "busy")
        wait_until(lambda: engine.progress(first.id).step >= 1)  # type: ignore[union-attr]
        jobs = [
            engine.submit(engine.complete(prompt, seed=seed, **settings), f"client {seed % 2}")
            for seed, prompt in enumerate(prompts)
        ]
        other = engine.submit(small_request(engine), "client 0")
        engine.cancel(first.id)
        jobs = [wait_for(engine, job) for job in jobs]
        assert {job.state for job in (*jobs, wait_for(engine, other))} == {"done"}
        starts = [job.started_s for job in jobs]
        assert None not in starts
        ends = [job.finished_s for job in jobs]
        assert max(starts) < min(ends), "all three were in the making at once"  # type: ignore[type-var]
        sampled = []
        monitor = engine._sample
        for seed, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
            noise = torch.Generator("cpu").manual_seed(seed)
            alone = video_io.to_uint8(pipe(prompt, generator=noise, output_type="np", **settings).frames)
            sampled.append(alone[0].astype(int))
            path = engine.video_path(job.id)
            assert path is not None
            assert len(video_io.read_video(path).frames) == 2
        from hummingbird.serving.engine import _Running

        engine.load_model("nano")
        together = monitor([_Running(job) for job in jobs])
    for one, many in zip(sampled, together, strict=True):
        assert np.abs(one - many).max() <= 1
    assert np.abs(sampled[0] - sampled[1]).max() > 20, "the prompts and seeds do make a difference"


def test_models_are_switched_and_described(tmp_path: Path, tiny_model: Path) -> None:
    with Engine(MODELS | {"model": str(tiny_model)}, JobStore(tmp_path), LIMITS) as engine:
        assert list(engine.models) == ["nano", "model"]
        facts = engine.facts("model")
        info = engine.load_model("model")
        assert info.facts == facts, "what the folder's files tell is what the loaded model is"
        assert engine.model_info == info
        assert (info.device, info.dtype) == ("cpu", "float32")
        assert info.memory_bytes == 4 * info.num_parameters
        job = wait_for(engine, engine.submit(small_request(engine), "a"))
        assert job.state == "done"
        assert engine.model_info is not None
        assert engine.model_info.name == "nano"


def test_a_model_that_cannot_be_loaded_fails_its_jobs_alone(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with Engine({**MODELS, "broken": str(tmp_path / "broken")}, JobStore(tmp_path / "jobs")) as engine:
        with pytest.raises((ValueError, OSError)):
            engine.load_model("broken")
        assert engine.model_info is None
        broken = engine.complete("a star", "broken", **SMALL)
        jobs = [engine.submit(broken, "a"), engine.submit(small_request(engine), "b")]
        assert [wait_for(engine, job).state for job in jobs] == ["failed", "done"]


def test_a_job_for_a_model_that_is_not_offered_any_more_says_so(tmp_path: Path, engine: Engine) -> None:
    fields = {**SMALL, "fps": 8, "guidance_scale": 1, "seed": 0}
    store = JobStore(tmp_path)
    job = store.add(VideoRequest.of(prompt="a star", model="retired", **fields), "a")
    store.close()
    with Engine(MODELS, JobStore(tmp_path), LIMITS) as after:
        failed = wait_for(after, job)
    assert (failed.state, failed.reason) == ("failed", "model: got 'retired', expected one of nano")


def test_facts_are_read_without_loading(pipe: Any) -> None:
    assert ModelFacts.read("nano-teacher") == ModelFacts.of(pipe)
    assert ModelFacts.read("nano") == ModelFacts.of(runtime.load_pipeline("nano", "cpu"))
    unknown = ModelFacts.read("some/hub-id")
    assert (unknown.size_multiple, unknown.default_call["num_frames"]) == (None, 16)


def test_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="both called 'model'"):
        name_models([str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model")])
    with pytest.raises(ValueError, match="got none"):
        name_models([])


def test_previews_show_what_the_video_shows(pipe: Any) -> None:
    """A small decoder's own picture, and the linear map that stands in for a large one."""
    from hummingbird.nano import world

    rng = np.random.default_rng(0)
    clips = world.render_clips(world.random_attributes(8, rng), rng, num_frames=1)  # 8 1 64 64 3, uint8
    images = clips[:, 0].permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(images).latent_dist.mode()
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    show = make_preview(pipe)
    assert show is not None
    weight = _fit(pipe)
    mapped = []
    for image, latent in zip(images, latents, strict=True):
        target = (image.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(show(latent[:, None]) - target).mean() < 12
        mapped.append(_map(weight, latent[:, None], pipe.vae_scale_factor).numpy())
    assert np.corrcoef(np.stack(mapped).ravel(), images.numpy().ravel())[0, 1] > 0.75


def test_requests_of_another_server_are_checked_again(engine: Engine) -> None:
    request = VideoRequest.of(
        prompt="a star",
        model="elsewhere",
        num_frames=1,
        height=16,
        width=16,
        fps=8,
        num_inference_steps=1,
        guidance_scale=1,
        seed=0,
    )
    with pytest.raises(UnknownModel):
        engine.submit(request, "a")
