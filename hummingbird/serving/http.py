"""What stands between the network and the application: bounds, deadlines, hosts, keys and headers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["ApiKeys", "Guard", "Timeouts", "client_address", "error_body", "loopback_hosts", "timed_protocol"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1024**2
_MAX_DISCARDED_BYTES = 16 * MAX_BODY_BYTES
_MIN_KEY_CHARS = 16
_MAX_KEY_FILE_BYTES = 64 * 1024

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}
_API_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}
_API_PATHS = ("/v1/", "/healthz", "/metrics", "/openapi.json")


def error_body(message: str, code: str, *, status: int, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def loopback_hosts(host: str) -> frozenset[str] | None:
    """Names under which a server is asked for that listens on ``host``; None where that is anybody's guess.

    On loopback any other name is a web page's attempt to reach the server through the visitor's browser (DNS
    rebinding).
    """
    if host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback):
        return frozenset({"localhost", "127.0.0.1", "::1", host})
    return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def client_address(scope: Scope) -> str:
    """Who asks, as far as the network tells; one IPv6 network of 64 bits is one client."""
    host = (scope.get("client") or ("unknown",))[0]
    if not _is_address(host):
        return "address:unknown"
    address = ipaddress.ip_address(host)
    if address.version == 6 and not address.is_loopback:
        return f"address:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"address:{address}"


@dataclass(frozen=True)
class Timeouts:
    """How long the other end of a connection may take, in seconds.

    Attributes:
        header_s: from opening, or the first byte of a further request, to the end of its headers.
        body_s: from there to the end of its body.
        write_s: during which it may take nothing of what it is sent.
        idle_s: between two requests.
    """

    header_s: float = 10.0
    body_s: float = 20.0
    write_s: float = 30.0
    idle_s: float = 15.0


class ApiKeys:
    """Keys that clients may use, each with a name that is shown and shares out turns.

    Args:
        lines: ``KEY`` or ``NAME:KEY``; empty lines and those that begin with ``#`` do not count.

    Raises:
        ValueError: no key, or one that is too short or holds other than printable ASCII.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._keys: list[tuple[str, bytes]] = []
        for line in map(str.strip, lines):
            if not line or line.startswith("#"):
                continue
            name, colon, key = line.partition(":")
            if not colon:
                name, key = f"key-{len(self._keys) + 1}", name
            if len(key) < _MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"API key number {len(self._keys) + 1}: expected at least {_MIN_KEY_CHARS} printable "
                    "ASCII characters without spaces; make one with `openssl rand -hex 24`"
                )
            self._keys.append((name, key.encode("ascii")))
        if not self._keys:
            raise ValueError("API keys: got none, expected one a line, KEY or NAME:KEY")

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file of keys.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds no keys.
        """
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
        try:
            if len(data) > _MAX_KEY_FILE_BYTES:
                raise ValueError(f"larger than {_MAX_KEY_FILE_BYTES} bytes, expected one key a line")
            return cls(data.decode("utf-8").splitlines())
        except ValueError as error:  # of decoding too
            raise ValueError(f"{path}: {error}") from error

    def find(self, key: str) -> str | None:
        """Name of a key; None where it is none. Takes equally long whichever it is."""
        given, found = key.encode("utf-8", "surrogateescape"), None
        for name, known in self._keys:
            if hmac.compare_digest(given, known):
                found = name
        return found


class Guard:
    """ASGI middleware that reads a request whole, within bounds, before the application sees any of it.

    Answers by itself: 400 (no or a strange ``Host``), 403 (sent by another site's page), 408 (too slow) and
    413 (too large); what it does not read it discards, within bounds. Adds security headers to every answer.

    Args:
        app: the application.
        allowed_hosts: names that ``Host`` may have; None takes any.
        max_body_bytes: of a request.
        body_timeout_s: until a request has arrived whole.
    """

    def __init__(
        self,
        app: App,
        *,
        allowed_hosts: frozenset[str] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = Timeouts.body_s,
    ) -> None:
        self.app = app
        self.allowed_hosts = allowed_hosts
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_security(scope["path"], message.get("headers", ()))
            await send(message)

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _answer(send_with_headers, *refusal)
            return
        try:
            async with asyncio.timeout(self.body_timeout_s):
                body = await _read_body(receive, headers.get(b"content-length"), self.max_body_bytes)
        except TimeoutError:
            await _answer(
                send_with_headers,
                408,
                "timeout",
                f"the request did not arrive within {self.body_timeout_s:g} s; send it faster",
            )
            return
        if body is None:
            await _answer(
                send_with_headers,
                413,
                "request_too_large",
                f"the request is larger than {self.max_body_bytes} bytes; send less",
            )
            return
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return rest.pop() if rest else await receive()

        await self.app(scope, replay, send_with_headers)

    def _refusal(self, method: str, headers: dict[bytes, str]) -> tuple[int, str, str] | None:
        host = headers.get(b"host", "")
        if self.allowed_hosts is not None and _host_name(host) not in self.allowed_hosts:
            return (
                400,
                "unknown_host",
                f"Host: got {host[:80]!r}, expected one of {', '.join(sorted(self.allowed_hosts))}; "
                "`hummingbird serve --allowed-host` adds names",
            )
        origin = headers.get(b"origin")
        if origin is not None and method not in ("GET", "HEAD") and _netloc(origin) != host.lower():
            return 403, "cross_origin", "requests from the pages of other sites are not taken"
        return None


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _netloc(origin: str) -> str:
    """Host and port of an ``Origin`` header; empty where it has none (``null``, nonsense)."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _read_body(receive: Receive, content_length: str | None, max_bytes: int) -> bytes | None:
    """The body, or None where it is larger than ``max_bytes``.

    What is too large is read on for a while, and thrown away: closing at once would reset the connection
    before the client has seen why.
    """
    announced = int(content_length) if content_length and content_length.isdecimal() else 0
    if announced > _MAX_DISCARDED_BYTES:
        return None
    body, num_bytes = bytearray(), 0
    while True:
        message = await receive()
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes <= max_bytes:
            body += chunk
        if (
            message["type"] != "http.request"
            or not message.get("more_body")
            or num_bytes > _MAX_DISCARDED_BYTES
        ):
            return bytes(body) if max(num_bytes, announced) <= max_bytes else None


def _with_security(path: str, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    headers = list(given)
    there = {name.lower() for name, _ in headers}
    wanted = dict(_HEADERS)
    if path.startswith(_API_PATHS):
        wanted |= _API_HEADERS
    return headers + [(name, value) for name, value in wanted.items() if name not in there]


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps(error_body(message, code, status=status)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def timed_protocol(timeouts: Timeouts) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with the deadlines that it lacks.

    uvicorn times out a connection only between two requests. This also ends one whose request line and
    headers do not arrive in time (a half-open connection, or one byte a second), and one whose other end does
    not take what was sent.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._header_timer = self.loop.call_later(timeouts.header_s, self._give_up)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE or self._has_request():
                self._disarm_header()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(timeouts.header_s, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm_header()
            self._disarm_write()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._close_soon()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._close_soon()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(timeouts.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._disarm_write()
            super().resume_writing()

        def _has_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _give_up(self) -> None:
            self._header_timer = None
            if not self.transport.is_closing():
                self.transport.close()
            self._close_soon()

        def _close_soon(self) -> None:
            """``close`` waits for the other end to take what is left, which it need not do."""
            self.loop.call_later(timeouts.write_s, self.transport.abort)

        def _disarm_header(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _disarm_write(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return TimedProtocol
