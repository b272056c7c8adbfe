"""Rewriting by a chat server: what is sent, what comes back, and one clear line for whatever goes wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hummingbird.app.rewriting import MAX_ANSWER_BYTES, Rewriter, RewritingError, instruction_for
from hummingbird.nano import world
from tests.data_pipeline.scripted_server import Answer, said, scripted

KEY = "sk-very-secret-0123456789"


def test_the_answer_becomes_one_line() -> None:
    with scripted(lambda number, body: said(' "A red fox\n trots." ')) as server:
        rewriter = Rewriter(base_url=server.base_url, model="m", api_key=KEY)
        assert rewriter.rewrite("fox", "be brief") == "A red fox trots."
        (body,) = server.requests
        assert body["messages"] == [{"role": "user", "content": "be brief\n\n<text>fox</text>"}]
        assert (body["path"], body["model"]) == ("/v1/chat/completions", "m")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(rewriter)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer(status=401, body=f"bad key {KEY}".encode()),
            r"answered 401 \(bad key \*\*\*\), expected 200",
        ),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}), "answered 302"),
        (Answer(status=500, body=b"\xff\x00oops\n"), "answered 500"),
        (Answer(body=b"<html>it works!</html>"), "not a chat completion"),
        (Answer(body=b'{"choices": []}'), "not a chat completion"),
        (Answer(body=b"[" * 100_000), "not a chat completion"),
        (said(None), "has no text"),
        (said("  "), "0 characters"),
        (said("x" * 3000), "3000 characters, expected 1 to 2000"),
        (Answer(body=b" " * (MAX_ANSWER_BYTES + 1)), "expected a sentence"),
        (Answer(body=b"{}", announced=50), "cannot be reached"),
    ],
)
def test_what_goes_wrong_is_one_line(answer: Answer, message: str) -> None:
    with scripted(lambda number, body: answer) as server:
        rewriter = Rewriter(base_url=server.base_url, model="m", api_key=KEY)
        with pytest.raises(RewritingError, match=message) as caught:
            rewriter.rewrite("fox", "be brief")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_server_that_stalls_or_is_not_there() -> None:
    with scripted(lambda number, body: Answer(body=b"{}", announced=50, stall=1)) as server:
        rewriter = Rewriter(base_url=server.base_url, model="m", timeout_s=0.2)
        with pytest.raises(RewritingError, match=r"no answer within 0\.2 s"):
            rewriter.rewrite("fox", "be brief")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RewritingError, match=rf"127\.0\.0\.1:{port} cannot be reached"):
        Rewriter(base_url=f"http://127.0.0.1:{port}/v1", model="m").rewrite("fox", "be brief")


def test_configuration() -> None:
    assert Rewriter.from_environment({}) is None
    found = Rewriter.from_environment(
        {
            "HUMMINGBIRD_REWRITER_URL": "http://localhost:1/v1",
            "HUMMINGBIRD_REWRITER_MODEL": "small",
            "HUMMINGBIRD_REWRITER_API_KEY": KEY,
        },
        model="large",
    )
    assert found == Rewriter(base_url="http://localhost:1/v1", model="large", api_key=KEY)
    with pytest.raises(ValueError, match="got no model"):
        Rewriter.from_environment({}, base_url="http://localhost:1/v1")
    with pytest.raises(ValueError, match="got the address 'file:///etc'"):
        Rewriter.from_environment({}, base_url="file:///etc", model="m")


def test_a_model_of_the_world_is_described_to_the_server() -> None:
    instruction = instruction_for(speaks_world=True)
    for words in (world.SHAPES, world.COLORS, world.BACKGROUNDS, ("moving diagonally up", "circling around")):
        assert all(word in instruction for word in words)
    assert "40 words" in instruction_for(speaks_world=False)


@pytest.mark.slow
def test_a_real_chat_server(tmp_path: Path) -> None:
    from tests.data_pipeline.tiny_chat import make_chat_model, serving

    pytest.importorskip("openai")  # the server takes its types from it
    answers = {"be brief <text>fox</text>": "a red fox trots"}
    model = make_chat_model(tmp_path / "chat", answers)
    with serving(tmp_path / "server.log") as base_url:
        rewriter = Rewriter(base_url=base_url, model=str(model), timeout_s=120.0)
        assert rewriter.rewrite("fox", "be brief") == "a red fox trots"
