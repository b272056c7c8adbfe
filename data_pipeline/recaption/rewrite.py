"""Captions of many clips: asks, checks, asks once more, decides; many at a time, and nothing asked twice."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.engine import EngineError
from data_pipeline.journal import Journal, digest
from data_pipeline.recaption.chat import Chat, NoReply, Reply
from data_pipeline.recaption.guards import Guards, clip_tokens, looks_injected, tidy
from data_pipeline.recaption.rules import clean_caption

if TYPE_CHECKING:
    from data_pipeline.stages.recaption import RecaptionConfig

__all__ = ["Question", "Rewriter", "escape", "rewrite", "rewrite_all"]

MAX_SOURCE_CHARS = 1000
_UNASKED = ("injection", "no caption")
"""Decided without the model."""
_MARKS = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "{": "(", "}": ")", "\\": "/"})

_HINTS = {
    "empty": "Your last answer was empty. Answer with one caption.",
    "refusal": "Your last answer was not a caption. Answer with one caption and nothing else.",
    "cut off": "Your last answer was too long. Use at most 30 words.",
    "too long": "Your last answer was too long. Use at most 30 words.",
    "echo": "Your last answer repeated the task. Answer with the caption alone.",
    "wrong language": "Your last answer was not in English. Answer in English.",
    "no overlap": "Your last answer was about something else. Use the words of the caption.",
}
"""What the second prompt adds: the same prompt would get the same answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A clip's caption that is to be rewritten.

    Attributes:
        key: of the result.
        caption: as it came with the source; empty where it had none.
        images: JPEG files of its frames, in their order in time.
    """

    key: str
    caption: str
    images: tuple[Path, ...] = ()


def escape(caption: str) -> str:
    """A caption as it may stand in a prompt: one bounded line, in which nothing can end the marks around it.

    Chat templates know their own marks (``<|im_end|>``, ``[INST]``, ``</s>``) by the brackets, which become
    others that no tokenizer treats specially.
    """
    return " ".join(caption.translate(_MARKS).split())[:MAX_SOURCE_CHARS]


class _Answers:
    """The cache of a model's answers: a journal that many threads may use."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._is_open = True

    def get(self, key: str) -> Reply | None:
        with self._lock:
            known = self._is_open and key in self._journal
            return Reply(**self._journal[key]) if known else None

    def add(self, key: str, reply: Reply) -> None:
        with self._lock:
            if self._is_open:
                self._journal.add(key, {"text": reply.text, "is_cut_off": reply.is_cut_off})

    def close(self) -> None:
        """From here on nothing is written: the journal belongs to somebody who may close its file."""
        with self._lock:
            self._is_open = False


class Rewriter:
    """Decides about one caption after the other; may be used by many threads at the same time.

    Args:
        settings: the stage's.
        chat: the model.
        cache: answers by model, prompt, pictures and sampling.
    """

    def __init__(self, settings: RecaptionConfig, chat: Chat, cache: Journal) -> None:
        self._settings = settings
        self._chat = chat
        self._answers = _Answers(cache)
        self._guards = Guards(
            instruction=settings.prompt.replace("{caption}", " "),
            language=settings.language,
            min_overlap=settings.min_overlap,
            max_clip_tokens=settings.max_clip_tokens,
        )
        clip_tokens("")  # loads the tokenizer here, before many threads want it at once

    def close(self) -> None:
        """Threads that are still waiting for an answer change nothing any more."""
        self._answers.close()

    def decide(self, question: Question) -> dict[str, Any]:
        """What becomes of a caption; where the original stays ``caption`` is None and ``reason`` says why."""
        source = clean_caption(question.caption)
        if looks_injected(question.caption):
            return _kept("injection")
        if not source and not question.images:
            return _kept("no caption")
        try:
            images = [path.read_bytes() for path in question.images]
            prompt = self._settings.prompt.replace("{caption}", escape(source) or "(none)")
            reason, text = self._ask(prompt, images, source)
            if reason is not None:
                reason, text = self._ask(f"{prompt}\n\n{_HINTS[reason]}", images, source)
        except NoReply as failure:
            return {**_kept(failure.reason), "status": "error"}
        return _kept(reason) if reason is not None else {"status": "kept", "caption": text, "reason": ""}

    def _ask(self, prompt: str, images: list[bytes], source: str) -> tuple[str | None, str]:
        """The guard that objects to the answer, if any, and the answer."""
        settings = self._settings
        key = digest(
            self._chat.identity,
            prompt,
            [digest(image.hex()) for image in images],
            [settings.max_new_tokens, settings.temperature, settings.seed, settings.extra_body],
        )
        reply = self._answers.get(key)
        if reply is None:
            reply = self._chat.ask(prompt, images)
            self._answers.add(key, reply)
        text = tidy(reply.text)
        return self._guards.check(text, source, is_cut_off=reply.is_cut_off), text


def _kept(reason: str) -> dict[str, Any]:
    return {"status": "kept", "caption": None, "reason": reason}


def rewrite(caption: str) -> dict[str, Any]:
    """What the rules make of a caption, in the form of ``Rewriter.decide``."""
    cleaned = clean_caption(caption)
    if not cleaned:
        return _kept("empty" if caption.strip() else "no caption")
    return {"status": "kept", "caption": cleaned, "reason": ""}


def rewrite_all(
    settings: RecaptionConfig, chat: Chat, questions: Iterable[Question], cache: Journal
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Decide about captions, ``chat.threads`` at a time; give (key, decision) as they are made.

    A failure of the server is handed out only when a later answer shows that the server is alive: failures
    in a row up to the moment at which the run stops are nobody's result, and are asked again by the next run.

    Raises:
        EngineError: the server is down and ``settings.on_server_failure`` is ``stop``; or it refuses us.
    """
    rewriter = Rewriter(settings, chat, cache)
    waiting: list[tuple[str, dict[str, Any]]] = []
    is_down = threading.Event()

    def decide(question: Question) -> dict[str, Any]:
        if is_down.is_set():
            return {**_kept("server: down"), "status": "error"}
        return rewriter.decide(question)

    def stop() -> EngineError:
        return EngineError(
            f"recaption: {len(waiting)} clips in a row got no answer from {settings.model!r} at "
            f"{settings.base_url} (the last: {waiting[-1][1]['reason']}); start the server and give the same "
            "command again, or set recaption.on_server_failure to keep and go on with the original captions"
        )

    try:
        for question, decision in _concurrently(decide, questions, chat.threads):
            if decision["reason"] in _UNASKED:
                yield question.key, decision  # says nothing about the server
                continue
            if decision["reason"].startswith("server: ") and not is_down.is_set():
                waiting.append((question.key, decision))
                if len(waiting) < settings.max_failures:
                    continue
                if settings.on_server_failure == "stop":
                    raise stop()
                is_down.set()
            else:
                waiting.append((question.key, decision))
            yield from waiting
            waiting.clear()
        # Too few to stop for, unless nothing but a dead server explains them.
        if settings.on_server_failure == "stop" and any(
            decision["reason"] == "server: unreachable" for _, decision in waiting
        ):
            raise stop()
        yield from waiting
    finally:
        rewriter.close()


T = TypeVar("T")
R = TypeVar("R")


def _concurrently(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Call a function in threads; give (item, result) as they end. Items are drawn as threads become free.

    The threads are daemons: Ctrl-C need not wait for a server that does not answer.
    """
    todo: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[T, R | None, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        while (item := todo.get()) is not None:
            try:
                done.put((item, function(item), None))
            except Exception as error:  # the boundary of a thread: raised again where the results are read
                done.put((item, None, error))

    for _ in range(threads):
        threading.Thread(target=work, name="recaption", daemon=True).start()
    source = iter(items)
    busy = 0
    try:
        while True:
            while busy < threads and (item := next(source, None)) is not None:
                todo.put(item)
                busy += 1
            if not busy:
                return
            finished, result, error = done.get()
            busy -= 1
            if error is not None:
                raise error
            yield finished, result  # type: ignore[misc]
    finally:
        for _ in range(threads):
            todo.put(None)
