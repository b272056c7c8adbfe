"""Asks an OpenAI-compatible server: ``POST BASE_URL/chat/completions``, with bounds on time, size and tries.

Written on httpx and not on the ``openai`` package. That one retries with jitter of its own, reads answers of
any size whole, and its timeout is for each read, so that a server which sends a byte a minute holds it for
ever. Here every try has a deadline, an answer has a largest size, and the waits are drawn from a seed.

Reference: OpenAI API, "Create chat completion"; RFC 9110, 10.2.3 (Retry-After).
"""

from __future__ import annotations

import base64
import datetime
import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.engine import EngineError
from data_pipeline.journal import digest
from data_pipeline.recaption.chat import NoReply, Reply

if TYPE_CHECKING:
    import httpx

    from data_pipeline.stages.recaption import RecaptionConfig

__all__ = ["ServerChat", "backoff_s"]

MAX_ANSWER_BYTES = 1_000_000
_MAX_CONNECT_S = 10.0
_MAX_QUOTE = 200

_FATAL = frozenset({401, 403, 404, 405})
"""Wrong key, address or model: no later question will fare better."""
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class _Temporary(Exception):
    """A failed try after which another one makes sense."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class ServerChat:
    """A ``Chat`` behind HTTP; may be used by many threads at the same time.

    Args:
        settings: the stage's.
        api_key: sent as a bearer token; never logged, and cut out of what the server says.
    """

    def __init__(self, settings: RecaptionConfig, api_key: str | None) -> None:
        import httpx

        self._settings = settings
        self._key = api_key
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._stopping = threading.Event()
        # Compressed answers could unpack to any size.
        headers = {"Accept-Encoding": "identity", "Accept": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.Client(
            headers=headers,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )

    @property
    def identity(self) -> str:
        """The model's name; not the address, so that moving the server asks nothing again."""
        return f"openai:{self._settings.model}"

    @property
    def threads(self) -> int:
        return self._settings.concurrency

    def close(self) -> None:
        """See ``Chat``."""
        self._stopping.set()
        self._client.close()

    def ask(self, prompt: str, images: Sequence[bytes]) -> Reply:
        """See ``Chat``."""
        settings = self._settings
        body = json.dumps(
            {
                "model": settings.model,
                "messages": [{"role": "user", "content": _content(prompt, images)}],
                "max_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "seed": settings.seed,
                "stream": False,
                **json.loads(settings.extra_body),
            }
        ).encode()
        waits = backoff_s(settings, prompt)
        while True:
            try:
                return self._try(body)
            except _Temporary as failure:
                wait_s = next(waits, None)
                if wait_s is None:
                    raise NoReply(failure.reason, f"after {settings.max_tries} tries") from failure
                # What the server asks for is a lower bound.
                wait_s = min(settings.max_wait_s, max(wait_s, failure.wait_s or 0.0))
                if self._stopping.wait(wait_s):
                    raise NoReply("server: stopped") from failure

    def _try(self, body: bytes) -> Reply:
        """One request.

        Raises:
            _Temporary, NoReply, EngineError: see ``ask``.
        """
        import httpx

        timeout_s = self._settings.timeout_s
        deadline = time.monotonic() + timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(_MAX_CONNECT_S, timeout_s), pool=None)
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            ) as response:
                content = _read(response, deadline)
        except httpx.ConnectError as error:
            raise _Temporary("server: unreachable") from error
        except httpx.TimeoutException as error:
            raise _Temporary("server: timeout") from error
        except httpx.TransportError as error:
            raise _Temporary("server: connection lost") from error
        status = response.status_code
        if status in _FATAL:
            raise EngineError(
                f"recaption: {self._url} answered {status} ({self._quote(content)}), expected 200; check "
                "recaption.base_url, recaption.model and the key that recaption.api_key_env names"
            )
        if status in _TEMPORARY:
            raise _Temporary(f"server: status {status}", _retry_after(response.headers.get("Retry-After")))
        if status != 200:
            raise NoReply(f"server: status {status}", self._quote(content))
        return _parse(content)

    def _quote(self, content: bytes) -> str:
        text = " ".join(content[: 4 * _MAX_QUOTE].decode("utf-8", "replace").split())
        if self._key:
            text = text.replace(self._key, "***")
        return "".join(character for character in text if character.isprintable())[:_MAX_QUOTE]


def backoff_s(settings: RecaptionConfig, prompt: str) -> Iterator[float]:
    """Seconds to wait after each failed try but the last: doubling, less up to a half by chance.

    The chance differs from prompt to prompt, so requests that failed together do not come back together; it
    is drawn from the seed, so it is the same in every run.
    """
    generator = random.Random(digest(settings.seed, prompt))
    for number in range(settings.max_tries - 1):
        yield generator.uniform(0.5, 1.0) * settings.backoff_s * 2**number


def _content(prompt: str, images: Sequence[bytes]) -> str | list[dict[str, Any]]:
    """A message's content; a plain text where there are no pictures, which every server understands."""
    if not images:
        return prompt
    urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode('ascii')}" for image in images]
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*pictures, {"type": "text", "text": prompt}]


def _read(response: httpx.Response, deadline: float) -> bytes:
    """The body, up to a size and a point in time."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise NoReply("server: answer too large", f"over {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _Temporary("server: timeout")
    return bytes(content)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or a date; None where the header is missing or makes no sense."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(?:\.\d{1,9})?\s*", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


def _parse(content: bytes) -> Reply:
    """The answer in a body.

    Raises:
        _Temporary: the body is not what the protocol says: cut off on its way, or not from such a server.
    """
    try:
        choice = json.loads(content)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError) as error:
        raise _Temporary("server: not JSON") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise _Temporary("server: no answer in the JSON") from error
    if text is None:  # what some servers send for an empty message
        text = ""
    if not isinstance(text, str):
        raise _Temporary("server: no answer in the JSON")
    # Half of a surrogate pair may be escaped in JSON and cannot be written as UTF-8.
    return Reply(text=text.encode("utf-8", "replace").decode(), is_cut_off=finish == "length")
