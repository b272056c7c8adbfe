"""Jobs in SQLite and their videos beside it: whatever was accepted is still there after a crash."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hummingbird.serving.requests import VideoRequest

__all__ = ["STATES", "Job", "JobStore", "StoreError", "is_job_id"]

STATES = ("queued", "running", "done", "failed", "cancelled")
FINAL_STATES = ("done", "failed", "cancelled")
MAX_STARTS = 2
"""How often a job is begun: a second crash in the middle of it is taken for its own doing."""

_ID = re.compile(r"video_[0-9a-f]{32}")
_VERSION = 1
_COLUMNS = "id, client, request, state, created_s, started_s, finished_s, num_starts, reason, size_bytes"
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    idempotency_key TEXT,
    request TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    created_s REAL NOT NULL,
    started_s REAL,
    finished_s REAL,
    num_starts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    size_bytes INTEGER,
    UNIQUE (client, idempotency_key)
);
CREATE INDEX jobs_by_state ON jobs (state, finished_s);
CREATE INDEX jobs_by_client ON jobs (client, number);
"""


class StoreError(OSError):
    """Jobs cannot be read or written: no space, no permission, not a job store, in use elsewhere."""


@dataclass(frozen=True)
class Job:
    """One accepted request and what became of it.

    Attributes:
        id: random, ``video_`` and 32 hex digits.
        client: who sent it.
        request: what to make.
        state: one of ``STATES``.
        created_s: Unix time at which it was accepted.
        started_s: Unix time of the last start; None before.
        finished_s: Unix time at which it was done, failed or cancelled.
        num_starts: how often it was begun; 2 after a crash in the middle.
        reason: why it failed or was cancelled, one line.
        size_bytes: of the video; None where there is none (any more).
    """

    id: str
    client: str
    request: VideoRequest
    state: str
    created_s: float
    started_s: float | None
    finished_s: float | None
    num_starts: int
    reason: str | None
    size_bytes: int | None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL_STATES

    @property
    def seconds(self) -> float | None:
        """Time from the last start to the end; None before it."""
        if self.started_s is None or self.finished_s is None:
            return None
        return self.finished_s - self.started_s


def is_job_id(text: str) -> bool:
    """Whether ``text`` could be the id of a job; nothing else may become part of a path."""
    return _ID.fullmatch(text) is not None


class JobStore:
    """The jobs of one server. Every method is atomic and durable when it returns, and safe between threads.

    Args:
        folder: made where missing, for its owner alone; one process at a time has it open.

    Raises:
        StoreError: the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.videos = self.folder / "videos"
        self._mutex = threading.RLock()
        try:
            for path in (self.folder, self.videos):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = open(self.folder / "lock", "w", encoding="ascii")  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be used for jobs ({error.strerror})") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise StoreError(
                f"{self.folder}: another server uses these jobs; stop it, or give this one its own folder"
            ) from error
        try:
            self._database = self._open()
        except BaseException:
            self._lock_file.close()
            raise

    def _open(self) -> sqlite3.Connection:
        path = self.folder / "jobs.sqlite3"
        with _store_errors(path):
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")  # an accepted job outlives a power cut too
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
                elif version != _VERSION:
                    raise StoreError(
                        f"{path}: has version {version} of the job table, expected {_VERSION}; give this "
                        "server its own folder"
                    )
            except BaseException:
                database.close()
                raise
        return database

    def close(self) -> None:
        """Let another process have the folder."""
        with self._mutex:
            self._database.close()
            self._lock_file.close()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement, which is one transaction; returns its rows."""
        with self._mutex, _store_errors(self.folder):
            return self._database.execute(sql, values).fetchall()

    # --- one job --------------------------------------------------------------------------------------------

    def add(self, request: VideoRequest, client: str, idempotency_key: str | None = None) -> Job:
        """Accept a request.

        Args:
            request: what to make.
            client: who sent it.
            idempotency_key: a client that does not know whether its request arrived sends it again under the
                same key, and gets the job that is there; see ``by_key``.

        Raises:
            StoreError: it cannot be written, so it is not accepted.
        """
        job_id = f"video_{secrets.token_hex(16)}"
        rows = self._run(
            "INSERT INTO jobs (id, client, idempotency_key, request, state, created_s) "
            f"VALUES (?, ?, ?, ?, 'queued', ?) RETURNING {_COLUMNS}",
            (job_id, client, idempotency_key, request.to_json(), time.time()),
        )
        return _job(rows[0])

    def get(self, job_id: str) -> Job | None:
        """The job of that id; None where there is none (any more)."""
        return _first(self._run(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)))

    def by_key(self, client: str, idempotency_key: str) -> Job | None:
        """The job that this client sent under this key."""
        return _first(
            self._run(
                f"SELECT {_COLUMNS} FROM jobs WHERE client = ? AND idempotency_key = ?",
                (client, idempotency_key),
            )
        )

    def start(self, job_id: str) -> Job | None:
        """Note that work begins; None where the job does not wait any more."""
        return self._move(
            job_id, "queued", "state = 'running', num_starts = num_starts + 1, started_s = ?", (time.time(),)
        )

    def finish(self, job_id: str, size_bytes: int) -> Job | None:
        """Note that the video lies at ``path_of``; None where the job does not run any more."""
        return self._move(
            job_id,
            "running",
            "state = 'done', finished_s = ?, size_bytes = ?, reason = NULL",
            (time.time(), size_bytes),
        )

    def fail(self, job_id: str, reason: str) -> Job | None:
        """Note why there will be no video; None where the job does not run any more."""
        return self._move(
            job_id, "running", "state = 'failed', finished_s = ?, reason = ?", (time.time(), reason)
        )

    def cancel(self, job_id: str, reason: str) -> Job | None:
        """Note that nobody wants it any more, whether it waits or runs; None where it has ended."""
        return self._move(
            job_id, None, "state = 'cancelled', finished_s = ?, reason = ?", (time.time(), reason)
        )

    def put_back(self, job_id: str) -> Job | None:
        """Let a running job wait again as if it had never begun: the server stops, it is not to blame."""
        return self._move(
            job_id, "running", "state = 'queued', num_starts = num_starts - 1, started_s = NULL", ()
        )

    def _move(self, job_id: str, state: str | None, change: str, values: Sequence[Any]) -> Job | None:
        states = ("queued", "running") if state is None else (state,)
        marks = ", ".join("?" * len(states))
        return _first(
            self._run(
                f"UPDATE jobs SET {change} WHERE id = ? AND state IN ({marks}) RETURNING {_COLUMNS}",
                (*values, job_id, *states),
            )
        )

    def remove(self, job_id: str) -> bool:
        """Forget a job and delete its video; False where there is none."""
        gone = bool(self._run("DELETE FROM jobs WHERE id = ? RETURNING id", (job_id,)))
        if is_job_id(job_id):
            self.path_of(job_id).unlink(missing_ok=True)
        return gone

    # --- many -----------------------------------------------------------------------------------------------

    def select(
        self,
        client: str | None = None,
        *,
        states: Sequence[str] = STATES,
        after: str | None = None,
        limit: int = 20,
        descending: bool = True,
    ) -> list[Job]:
        """Jobs in the order in which they were accepted.

        Args:
            client: of this client alone.
            states: in one of these states.
            after: id of the last job of the page before; an id that is not there gives nothing.
            limit: at most so many.
            descending: newest first.
        """
        sign, order = ("<", "DESC") if descending else (">", "ASC")
        marks = ", ".join("?" * len(states))
        where, values = [f"state IN ({marks})"], [*states]
        if client is not None:
            where.append("client = ?")
            values.append(client)
        if after is not None:
            where.append(f"number {sign} (SELECT number FROM jobs WHERE id = ?)")
            values.append(after)
        sql = f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?"
        return [_job(row) for row in self._run(sql, (*values, limit))]

    def count(self) -> dict[str, int]:
        """Number of jobs in each state."""
        found = dict(self._run("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: int(found.get(state, 0)) for state in STATES}

    def recover(self) -> list[Job]:
        """After a start: what the last server was in the middle of waits again, or has failed.

        Also deletes files that belong to no finished job, and notes which videos are not there any more.

        Returns:
            All jobs that wait, in the order in which they were accepted.
        """
        self._run(
            "UPDATE jobs SET state = 'failed', finished_s = ?, reason = ? "
            "WHERE state = 'running' AND num_starts >= ?",
            (
                time.time(),
                f"the server stopped {MAX_STARTS} times while it was making this video; not tried again",
                MAX_STARTS,
            ),
        )
        self._run("UPDATE jobs SET state = 'queued', started_s = NULL WHERE state = 'running'")
        kept = {self.path_of(job_id).name: size for job_id, size in self._sizes()}
        there = {path.name: path.stat().st_size for path in self.videos.iterdir()}
        for name in there.keys() - kept.keys():
            (self.videos / name).unlink(missing_ok=True)
        for name, size in kept.items():
            if there.get(name) != size:  # deleted by hand, or cut off by a power cut
                self._run("UPDATE jobs SET size_bytes = NULL WHERE id = ?", (Path(name).stem,))
        return self.select(states=("queued",), limit=-1, descending=False)

    def _sizes(self) -> list[tuple[Any, ...]]:
        return self._run("SELECT id, size_bytes FROM jobs WHERE size_bytes IS NOT NULL")

    # --- videos ---------------------------------------------------------------------------------------------

    def path_of(self, job_id: str) -> Path:
        """Where the video of a job lies once it is done.

        Raises:
            ValueError: not an id.
        """
        if not is_job_id(job_id):
            raise ValueError(f"id: got {job_id[:80]!r}, expected video_ and 32 hex digits")
        return self.videos / f"{job_id}.mp4"

    def expire(self, *, max_output_age_s: float, max_output_bytes: int, max_record_age_s: float) -> int:
        """Delete videos and records that are too old, and the oldest videos where all are too large.

        Returns:
            The number of videos deleted.
        """
        now = time.time()
        outputs = self._run(
            "SELECT id, finished_s, size_bytes FROM jobs WHERE size_bytes IS NOT NULL ORDER BY finished_s"
        )
        total = sum(size for _, _, size in outputs)
        num_deleted = 0
        for job_id, finished_s, size in outputs:
            if finished_s > now - max_output_age_s and total <= max_output_bytes:
                break
            self._run("UPDATE jobs SET size_bytes = NULL WHERE id = ?", (job_id,))
            self.path_of(job_id).unlink(missing_ok=True)
            total -= size
            num_deleted += 1
        self._run(
            "DELETE FROM jobs WHERE size_bytes IS NULL AND finished_s < ?",
            (now - max(max_record_age_s, max_output_age_s),),
        )
        return num_deleted

    def output_bytes(self) -> int:
        """Bytes of all videos that are kept."""
        return int(self._run("SELECT coalesce(sum(size_bytes), 0) FROM jobs")[0][0])


def _job(row: tuple[Any, ...]) -> Job:
    job_id, client, request, *rest = row
    return Job(job_id, client, VideoRequest.from_json(request), *rest)


def _first(rows: list[tuple[Any, ...]]) -> Job | None:
    return _job(rows[0]) if rows else None


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: the job store cannot be used ({error})") from error
