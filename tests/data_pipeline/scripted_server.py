"""An HTTP server on loopback that misbehaves on demand, for what no real model server can be made to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What goes back for one request.

    Attributes:
        announced: length in the header, if it is to be a lie.
        stall: hold the answer until the server ends, after the headers and so many bytes of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    stall: int | None = None


def said(text: str | None, finish: str = "stop") -> Answer:
    """A well-formed answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return Answer(body=json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


@dataclass
class Scripted:
    """A running server.

    Attributes:
        base_url: with ``/v1``.
        requests: bodies of all requests so far, in their order.
        headers: their headers.
    """

    base_url: str
    requests: list[dict[str, Any]]
    headers: list[dict[str, str]]
    ending: threading.Event


def prompt_of(body: dict[str, Any]) -> str:
    """The text of a request's message."""
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return content
    return str(next(part["text"] for part in content if part["type"] == "text"))


@contextmanager
def scripted(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Scripted]:
    """A server that asks ``answer(number of the request from 0, its body)`` what to send."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            length = min(int(self.headers["Content-Length"]), 10_000_000)
            body = json.loads(self.rfile.read(length))
            with lock:
                number = len(server.requests)
                server.requests.append({**body, "path": self.path})
                server.headers.append(dict(self.headers))
            sent = answer(number, body)
            self.send_response(sent.status)
            for name, value in sent.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(sent.announced or len(sent.body)))
            self.end_headers()
            if sent.stall is not None:
                self.wfile.write(sent.body[: sent.stall])
                self.wfile.flush()
                server.ending.wait(30)
                return
            self.wfile.write(sent.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients that hang up are what some tests are about

    http = Server(("127.0.0.1", 0), Handler)
    server = Scripted(
        base_url=f"http://127.0.0.1:{http.server_address[1]}/v1",
        requests=[],
        headers=[],
        ending=threading.Event(),
    )
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        http.shutdown()
        http.server_close()
        thread.join()
