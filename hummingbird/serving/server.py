"""One process, one queue: the API and the page, served until a signal comes."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hummingbird.serving.http import ApiKeys, Timeouts, loopback_hosts, timed_protocol

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn
    from fastapi import FastAPI

    from hummingbird.serving.engine import Engine

__all__ = ["API_KEY_VARIABLE", "build_server", "find_api_keys", "listen", "mount_page"]

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "HUMMINGBIRD_API_KEY"
MAX_CONNECTIONS = 1000
_GRACE_S = 10


def find_api_keys(path: Path | None) -> ApiKeys | None:
    """Keys from a file, else one from the environment, else none. Never from the command line, which
    everybody on the machine can read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no usable keys.
    """
    if path is not None:
        return ApiKeys.read(path)
    key = os.environ.get(API_KEY_VARIABLE)
    return ApiKeys([key]) if key else None


def mount_page(api: FastAPI, engine: Engine, api_keys: ApiKeys | None) -> FastAPI:
    """Put the page, if this installation has Gradio, at ``/`` of the API: on the same engine and queue.

    Where there are API keys the page asks for one too: any user name, the key as password.

    Raises:
        ValueError: the environment names a chat server for prompts that cannot be one.
    """
    if importlib.util.find_spec("gradio") is None:
        return api
    import gradio as gr

    from hummingbird.app.page import build_page, page_options
    from hummingbird.app.rewriting import Rewriter

    def knows(user: str, password: str) -> bool:
        return api_keys is not None and api_keys.find(password) is not None

    mounted: FastAPI = gr.mount_gradio_app(
        api,
        build_page(engine, Rewriter.from_environment()),
        path="/",
        auth=knows if api_keys is not None else None,
        **page_options(engine),
    )
    return mounted


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before anything slow is done for it.

    Args:
        host: address or name.
        port: 0 takes any that is free.

    Raises:
        OSError: it is taken, not this machine's, or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"{host}:{port}: cannot listen there ({reason}); choose another --port or --host"
        ) from error


def build_server(
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    api_keys: ApiKeys | None = None,
    allowed_hosts: frozenset[str] = frozenset(),
    with_page: bool = True,
    timeouts: Timeouts | None = None,
    on_start: Callable[[], None] | None = None,
) -> uvicorn.Server:
    """Make the server; its ``run(sockets=[listen(...)])`` returns after SIGINT or SIGTERM.

    Args:
        engine: makes the videos; whoever made it closes it.
        host: address that it listens on.
        api_keys: who may use it.
        allowed_hosts: names in ``Host`` beside those of loopback; none takes any name on other addresses.
        with_page: whether the page is mounted.
        timeouts: for slow and half-open connections.
        on_start: called once connections are taken.
    """
    import uvicorn

    from hummingbird.serving.api import build_api

    timeouts = timeouts or Timeouts()
    known = loopback_hosts(host)
    hosts = allowed_hosts | known if known is not None else allowed_hosts or None
    api = build_api(engine, api_keys, allowed_hosts=hosts, timeouts=timeouts)
    if with_page:
        api = mount_page(api, engine, api_keys)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_start is not None:
                on_start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn's own would raise the signal again at the end, past the engine's close().
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    return Server(
        uvicorn.Config(
            api,
            http=timed_protocol(timeouts),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=timeouts.idle_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=_GRACE_S,
            lifespan="on",
        )
    )
