"""The store: what was accepted is there after a crash, begun again once, and ends once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hummingbird.serving import JobStore, VideoRequest
from hummingbird.serving.jobs import StoreError, is_job_id
from tests.serving.test_requests import GOOD

REQUEST = VideoRequest.of(**GOOD)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "jobs")
    yield store
    store.close()


def finished(store: JobStore, content: bytes = b"video", client: str = "a") -> str:
    job = store.add(REQUEST, client)
    store.start(job.id)
    store.path_of(job.id).write_bytes(content)
    store.finish(job.id, len(content))
    return job.id


def test_a_job_goes_its_way_and_no_step_twice(store: JobStore) -> None:
    job = store.add(REQUEST, "a")
    assert is_job_id(job.id)
    assert (job.state, job.request, job.client, job.num_starts) == ("queued", REQUEST, "a", 0)
    assert store.finish(job.id, 1) is None
    started = store.start(job.id)
    assert started is not None
    assert (started.state, started.num_starts) == ("running", 1)
    assert store.start(job.id) is None
    done = store.finish(job.id, 17)
    assert done is not None
    assert (done.state, done.size_bytes, done.is_final) == ("done", 17, True)
    assert done.seconds is not None
    assert [store.finish(job.id, 1), store.fail(job.id, "x"), store.cancel(job.id, "x")] == [None] * 3
    assert store.get(job.id) == done


def test_ids_are_random_and_nothing_else_becomes_a_path(store: JobStore) -> None:
    assert len({store.add(REQUEST, "a").id for _ in range(50)}) == 50
    for text in ("../../etc/passwd", "video_" + "0" * 31 + "/", "video_" + "g" * 32, "", "video_" + "0" * 33):
        assert not is_job_id(text)
        with pytest.raises(ValueError, match="expected video_ and 32 hex digits"):
            store.path_of(text)


def test_text_is_text_to_the_database(store: JobStore) -> None:
    evil = "x'); DROP TABLE jobs; --"
    job = store.add(VideoRequest.of(**{**GOOD, "prompt": evil}), evil, evil)
    assert store.get(job.id) == store.by_key(evil, evil) == job
    assert store.get(evil) is None
    assert list(store.select(evil)) == [job]


def test_pages_cover_everything_once(store: JobStore) -> None:
    ids = [store.add(REQUEST, "ab"[i % 2]).id for i in range(11)]
    seen: list[str] = []
    while page := store.select(after=seen[-1] if seen else None, limit=3):
        seen += [job.id for job in page]
    assert seen == ids[::-1]
    assert [job.id for job in store.select("b", limit=99, descending=False)] == ids[1::2]
    assert store.select(after="video_" + "0" * 32) == []


def _work_and_die(folder: str) -> None:
    store = JobStore(folder)
    for job in store.recover():
        store.start(job.id)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_is_begun_again_once_after_a_crash_then_given_up(tmp_path: Path) -> None:
    with_job = JobStore(tmp_path)
    job = with_job.add(REQUEST, "a")
    with_job.close()
    for expected in ("queued", "failed"):
        process = multiprocessing.get_context("spawn").Process(target=_work_and_die, args=(str(tmp_path),))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        store = JobStore(tmp_path)
        found = store.get(job.id)
        assert found is not None
        assert found.state == "running"
        waiting = store.recover()
        found = store.get(job.id)
        assert found is not None
        assert found.state == expected
        assert [entry.id for entry in waiting] == ([job.id] if expected == "queued" else [])
        store.close()
    assert found.reason is not None
    assert "stopped 2 times" in found.reason


def test_an_orderly_stop_is_not_held_against_the_job(store: JobStore) -> None:
    job = store.add(REQUEST, "a")
    for _ in range(5):
        store.start(job.id)
        store.put_back(job.id)
    assert [(entry.id, entry.num_starts) for entry in store.recover()] == [(job.id, 0)]


def test_recovery_clears_up(store: JobStore) -> None:
    kept, lost, cut = (finished(store) for _ in range(3))
    store.path_of(lost).unlink()
    store.path_of(cut).write_bytes(b"vid")
    (store.videos / f".{kept}.abc.part.mp4").write_bytes(b"half")
    store.path_of("video_" + "0" * 32).write_bytes(b"of no job")
    store.recover()
    assert {path.name for path in store.videos.iterdir()} == {f"{kept}.mp4", f"{cut}.mp4"}
    sizes = {job.id: job.size_bytes for job in store.select()}
    assert sizes == {kept: 5, lost: None, cut: None}


def expire(store: JobStore, **limits: Any) -> int:
    return store.expire(
        **{"max_output_age_s": 1e9, "max_output_bytes": 10**9, "max_record_age_s": 1e9, **limits}
    )


def test_videos_expire_by_total_size_oldest_first(store: JobStore) -> None:
    ids = [finished(store, b"x" * 10) for _ in range(5)]
    assert expire(store) == 0
    assert expire(store, max_output_bytes=30) == 2
    assert [store.path_of(job_id).exists() for job_id in ids] == [False, False, True, True, True]
    assert store.output_bytes() == 30
    assert store.count()["done"] == 5, "their records stay"


def test_videos_and_records_expire_by_age(store: JobStore) -> None:
    job_id = finished(store)
    waiting = store.add(REQUEST, "a")
    assert expire(store, max_output_age_s=-1) == 1
    assert not store.path_of(job_id).exists()
    found = store.get(job_id)
    assert found is not None
    assert found.size_bytes is None
    expire(store, max_output_age_s=-1, max_record_age_s=-1)
    assert store.get(job_id) is None
    assert store.get(waiting.id) == waiting, "what waits does not expire"


def test_removing_deletes_the_video(store: JobStore) -> None:
    job_id = finished(store)
    assert store.remove(job_id)
    assert not store.path_of(job_id).exists()
    assert not store.remove(job_id)
    assert not store.remove("../jobs.sqlite3")
    assert (store.folder / "jobs.sqlite3").exists()


def test_one_server_per_folder(store: JobStore) -> None:
    with pytest.raises(StoreError, match="another server uses these jobs"):
        JobStore(store.folder)


def test_a_file_that_is_no_job_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="job store cannot be used"):
        JobStore(tmp_path)
    (tmp_path / "jobs.sqlite3").unlink()
    newer = sqlite3.connect(tmp_path / "jobs.sqlite3")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StoreError, match="has version 99"):
        JobStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used for jobs"):
        JobStore(tmp_path / "file")
