"""One engine, one page and one browser for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hummingbird.app.page import build_page, page_options
from hummingbird.app.rewriting import Rewriter
from hummingbird.serving import Engine, JobStore, Limits
from tests.data_pipeline.scripted_server import Answer, Scripted, said, scripted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
REWRITTEN = "a yellow star bouncing on a navy background"


def answer(number: int, body: dict[str, Any]) -> Answer:
    """A chat server that knows one sentence, and fails where it is asked to."""
    return Answer(status=503, body=b"overloaded") if "fail" in str(body["messages"]) else said(REWRITTEN)


@pytest.fixture(scope="session")
def chat_server() -> Iterator[Scripted]:
    with scripted(answer) as server:
        yield server


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Engine]:
    limits = Limits(max_steps=100, max_queued_per_client=3)
    store = JobStore(tmp_path_factory.mktemp("page"))
    # The embedded teacher: a test can stop a model of many steps in the middle.
    with Engine({"nano": "nano-teacher", "tiny": str(tiny_model)}, store, limits) as made:
        made.load_model("nano")
        yield made


@pytest.fixture(scope="session")
def page_url(
    engine: Engine, chat_server: Scripted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a running page."""
    pytest.importorskip("gradio")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    demo = build_page(engine, Rewriter(base_url=chat_server.base_url, model="m"))
    _, url, _ = demo.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **page_options(engine)
    )
    yield url
    demo.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real chromium; tests that need one are skipped where there is none.

    It is gone before another file's tests: while it lives, asyncio has a running loop on this thread.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the Python package playwright is not here"
    )
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, page_url: str) -> Iterator[Any]:
    """The page in a fresh browser profile; any request that leaves this machine fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(60_000)
    left: list[str] = []
    faults: list[str] = []

    def watch(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            left.append(request.url)

    context.on("request", watch)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(page_url)
    page.get_by_role("button", name="Generate", exact=True).wait_for()
    # Whatever is kept in the browser has been read by then, and the rest has been set.
    page.wait_for_function("localStorage.getItem('hummingbird-client') !== null")
    yield page
    context.close()
    assert not left, left
    assert not faults, faults
