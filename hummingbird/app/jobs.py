"""From what stands in the page to jobs of the engine, and their way to the end."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from hummingbird.app.cards import VideoView
from hummingbird.app.videos import Videos, unfinished

if TYPE_CHECKING:
    from hummingbird.serving import Engine, VideoRequest

__all__ = ["MAX_SEED", "client_of", "follow", "new_seed", "requests_of", "stop", "submit"]

MAX_SEED = 2**53 - 1
"""JavaScript has no larger whole numbers."""
_POLL_S = 0.2
_CLIENT = re.compile(r"page-[0-9a-f]{32}")


def client_of(stored: Any) -> str:
    """The browser's secret name, under which its videos are found again; a new one where it has none."""
    if isinstance(stored, str) and _CLIENT.fullmatch(stored):
        return stored
    return f"page-{secrets.token_hex(16)}"


def new_seed() -> int:
    """Short enough to be read out to somebody."""
    return secrets.randbelow(1_000_000)


def requests_of(engine: Engine, form: dict[str, Any], seed: int, count: int = 1) -> list[VideoRequest]:
    """Requests for ``count`` videos that differ in their seeds alone, counted up as by the command line.

    Args:
        engine: completes and checks them.
        form: ``prompt``, ``model`` and other fields of ``VideoRequest``; a field that is None or empty is the
            model's own choice.
        seed: of the first one.
        count: at least 1.

    Raises:
        hummingbird.serving.RequestError: one line on what cannot be.
    """
    fields = {name: value for name, value in form.items() if value not in (None, "")}
    fields.setdefault("prompt", "")
    return [engine.complete(seed=seed + index, **fields) for index in range(count)]


def submit(engine: Engine, requests: Sequence[VideoRequest], client: str) -> tuple[list[str], str]:
    """Hand in one request after the other, until the queue takes no more.

    Returns:
        Ids of the accepted jobs, and one line on why not all were; empty where they were.

    Raises:
        hummingbird.serving.QueueFull, hummingbird.serving.StorageFull, OSError: none was accepted.
    """
    from hummingbird.serving import QueueFull, StorageFull

    ids: list[str] = []
    for request in requests:
        try:
            ids.append(engine.submit(request, client).id)
        except (QueueFull, StorageFull, OSError) as error:
            if not ids:
                raise
            return ids, f"{len(ids)} of {len(requests)} videos were accepted: {error}"
    return ids, ""


async def follow(
    videos: Videos, ids: Sequence[str], client: str, labels: Sequence[str] = ()
) -> AsyncIterator[list[VideoView | None]]:
    """Look at jobs until all have ended; leaving early stops no job."""
    names = [*labels, *[""] * (len(ids) - len(labels))]
    while True:
        views = await asyncio.to_thread(
            lambda: [videos.view(job_id, client, name) for job_id, name in zip(ids, names, strict=True)]
        )
        yield views
        if not unfinished(views):
            return
        await asyncio.sleep(_POLL_S)


def stop(engine: Engine, videos: Videos, ids: Sequence[Any], client: str) -> int:
    """Cancel what this browser asked for and what has not ended; returns how many that were."""
    count = 0
    for job_id in ids:
        job = videos.owned(job_id, client)
        if job is not None and not job.is_final:
            engine.cancel(job.id)
            count += 1
    return count
