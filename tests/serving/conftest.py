"""A real engine around the embedded model, and a real server around that, on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hummingbird.serving import Engine, Job, JobStore, Limits, VideoRequest
from hummingbird.serving.http import ApiKeys, Timeouts
from hummingbird.serving.server import build_server, listen

MODELS = {"nano": "nano-teacher"}
"""A model of many steps: a test can stop it in the middle."""
SMALL: dict[str, Any] = {"num_frames": 2, "height": 16, "width": 16, "num_inference_steps": 1}
"""The cheapest video that the embedded model makes."""
PROMPT = "a red circle moving right on a black background"
LIMITS = Limits(
    max_prompt_chars=200, max_steps=1000, max_work=16 * 16 * 2 * 1000, max_queued=8, max_queued_per_client=6
)
KEYS = ("ada:0123456789abcdef-ada", "bob:0123456789abcdef-bob")


def small_request(engine: Engine, **changes: Any) -> VideoRequest:
    return engine.complete(changes.pop("prompt", PROMPT), **{**SMALL, "seed": 0, **changes})


def wait_until(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    """The first true value of ``condition``; a test that never gets one is stopped here."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("what was waited for did not happen")


def wait_for(engine: Engine, job: Job) -> Job:
    """The job once it has ended."""

    def ended() -> Job | None:
        found = engine.get(job.id)
        assert found is not None
        return found if found.is_final else None

    final: Job = wait_until(ended)
    return final


@dataclass(frozen=True)
class Serving:
    """A running server."""

    engine: Engine
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(MODELS, JobStore(tmp_path_factory.mktemp("serve")), LIMITS) as engine:
        engine.load_model("nano")
        yield engine


def running_server(engine: Engine, api_keys: ApiKeys | None = None) -> Iterator[Serving]:
    timeouts = Timeouts(header_s=0.5, body_s=0.5, write_s=0.5, idle_s=0.5)
    server = build_server(engine, api_keys=api_keys, with_page=False, timeouts=timeouts)
    socket = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    wait_until(lambda: server.started)
    yield Serving(engine, socket.getsockname()[1])
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def serving(engine: Engine) -> Iterator[Serving]:
    yield from running_server(engine)


@pytest.fixture(scope="module")
def serving_with_keys(engine: Engine) -> Iterator[Serving]:
    yield from running_server(engine, ApiKeys(KEYS))


@pytest.fixture
def no_jobs(engine: Engine) -> Iterator[Path]:
    """Leaves the shared engine as it was: nothing waits, nothing is kept. Gives the store's folder."""
    yield engine.store.folder
    for job in engine.list(limit=-1):
        engine.remove(job.id)
    wait_until(lambda: engine.stats().running == 0)
