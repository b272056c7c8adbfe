"""Bad connections: slow, half-open, endless, cut off, not HTTP. Each ends, and the server serves on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.serving.conftest import Serving, small_request, wait_for

pytestmark = pytest.mark.usefixtures("no_jobs")

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def still_serves(serving: Serving) -> Iterator[None]:
    yield
    assert httpx.get(f"{serving.url}/healthz").status_code == 200


def connect(serving: Serving) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", serving.port), timeout=60)
    connection.settimeout(60)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What arrives until the server closes; a server that does not makes this time out."""
    data = b""
    while True:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not chunk:
            return data
        data += chunk


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_connection_that_says_nothing_is_closed(serving: Serving) -> None:
    with connect(serving) as connection:
        assert everything(connection) == b""


def test_headers_that_trickle_in_are_not_waited_for(serving: Serving) -> None:
    start_s = time.monotonic()
    with connect(serving) as connection:
        for byte in b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 10_000:
            try:
                connection.send(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.02)
        else:
            pytest.fail(f"the server still listened after {time.monotonic() - start_s:.0f} s")


def test_trickling_after_a_first_request_is_not_waited_for_either(serving: Serving) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea")
        answer = everything(connection)
    assert status_of(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_does_not_come_is_answered_408(serving: Serving) -> None:
    with connect(serving) as connection:
        connection.sendall(HEAD + b'Content-Length: 50\r\n\r\n{"prompt"')
        answer = everything(connection)
    assert status_of(answer) == 408
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "timeout"


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_answered_413_without_being_kept(serving: Serving, announced: bool) -> None:
    size = 3 * 1024**2
    with connect(serving) as connection:
        if announced:
            connection.sendall(HEAD + f"Content-Length: {size}\r\n\r\n".encode() + b" " * size)
        else:
            chunk = b"%x\r\n" % (size // 3) + b" " * (size // 3) + b"\r\n"
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
        answer = everything(connection)
    assert status_of(answer) == 413
    assert b"larger than 1048576 bytes" in answer


def test_an_absurd_length_is_refused_before_the_body(serving: Serving) -> None:
    with connect(serving) as connection:
        connection.sendall(HEAD + b"Content-Length: 999999999999\r\n\r\n")
        assert status_of(everything(connection)) == 413


def test_a_client_that_goes_away_in_the_middle_leaves_no_job(serving: Serving) -> None:
    with connect(serving) as connection:
        connection.sendall(HEAD + b'Content-Length: 999\r\n\r\n{"prompt": "a')
    assert httpx.get(f"{serving.url}/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 2**20,
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_answered_400(serving: Serving, sent: bytes) -> None:
    with connect(serving) as connection:
        connection.sendall(sent)
        assert status_of(everything(connection)) in (400, 408)


def test_who_does_not_read_is_let_go(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of 32 MiB, far more than the kernel's buffers hold, to a client that reads none of it."""
    engine = serving.engine
    job = wait_for(engine, engine.submit(small_request(engine), "a"))
    size = 32 * 1024**2
    with open(engine.store.path_of(job.id), "wb") as file:
        file.truncate(size)
    with connect(serving) as connection:
        request = f"GET /v1/videos/{job.id}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection.sendall(request.encode())
        time.sleep(2.0)  # four times what the server waits
        assert len(everything(connection)) < size


def test_websockets_are_not_spoken(serving: Serving) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    answer = httpx.get(f"{serving.url}/v1/models", headers=upgrade)
    assert answer.status_code in (200, 400, 426)
