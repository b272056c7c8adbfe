"""Worker processes for tasks that may hang, crash or be killed.

Each worker has a pipe of its own and at most one task, so it is always known which task a dead worker had,
and one worker's death, however it came, disturbs no other. A task whose worker dies gets a second worker; if
that one dies as well, the task has failed. Workers end with their parent, even when that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal

__all__ = ["EngineError", "Failure", "Pool", "SetupError", "Task"]

MAX_TRIES = 2
_MAX_FAILED_STARTS = 3
_TICK_S = 1.0


class EngineError(RuntimeError):
    """The run cannot go on; the message is one line that says why."""


class SetupError(RuntimeError):
    """A worker cannot begin: a missing checkpoint or library, which no clip is to blame for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call of the pool's function, and the name by which its outcome is handed back.

    Attributes:
        cost: how long it may take, in any unit; for engines that choose what to begin with.
    """

    key: str
    arguments: tuple[Any, ...]
    cost: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that gave no result.

    Attributes:
        kind: the function raised; the time was over; or the worker died ``MAX_TRIES`` times.
        name: class of the exception, signal (``SIGSEGV``) or ``status N`` of the worker; empty for a timeout.
        message: one line.
        errno: of an ``OSError``.
    """

    kind: Literal["raised", "timeout", "died"]
    name: str
    message: str
    errno: int | None = None


class Pool:
    """Runs tasks in ``workers`` processes, which are started when they are first needed.

    Use it as a context; at its end, however that comes, no worker is left.
    """

    def __init__(self, workers: int) -> None:
        self._size = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    @property
    def worker_peak_mib(self) -> float:
        """Largest memory of a worker that has ended."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024

    def run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Task],
        *,
        timeout_s: float,
        uses_models: bool = False,
    ) -> Iterator[tuple[str, Any]]:
        """Call ``function(*task.arguments)`` for every task; give (key, result or ``Failure``) as they end.

        Args:
            function: importable by name; what it gets and returns travels pickled.
            tasks: drawn only as workers become free.
            timeout_s: for one try of one task.
            uses_models: for engines that hand out GPUs; here every worker sees all of the machine's.

        Raises:
            EngineError: workers die before they get a task.
        """
        source = iter(tasks)
        again: deque[_Attempt] = deque()
        drawn_all = False
        while True:
            busy = sum(worker.attempt is not None for worker in self._workers)
            while not drawn_all and len(again) < self._size - busy:
                task = next(source, None)
                drawn_all = task is None
                if task is not None:
                    again.append(_Attempt(task))
            if not again and not busy:
                return
            while len(self._workers) < min(self._size, busy + len(again)):
                self._workers.append(_Worker())
            for worker in self._workers:
                if again and worker.is_ready and worker.attempt is None:
                    worker.give(again.popleft(), function, timeout_s)
            for worker in _wait_for(self._workers):
                finished = worker.attempt
                answer = worker.receive()
                if answer is _DIED:
                    self._bury(worker)
                    if finished is not None:
                        finished.tries += 1
                        if finished.tries < MAX_TRIES:
                            again.appendleft(finished)
                        else:
                            yield finished.task.key, _death(worker)
                elif finished is not None:
                    yield finished.task.key, answer
            now = time.monotonic()
            for worker in [worker for worker in self._workers if now > worker.deadline]:
                assert worker.attempt is not None  # only a worker with a task has a deadline
                worker.process.kill()
                self._bury(worker)
                message = f"took over {timeout_s:g} s"
                yield worker.attempt.task.key, Failure(kind="timeout", name="", message=message)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise EngineError(
                f"{_MAX_FAILED_STARTS} worker processes in a row died before their first task "
                f"({_ending(worker)}); see what they said above, or is the memory full?"
            )


@dataclass
class _Attempt:
    task: Task
    tries: int = 0


_READY, _DIED = "ready", object()


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end,), name="clip worker", daemon=True)
        resource_tracker.ensure_running()  # its own start would end the block below
        with _interrupts_held_back():  # the child starts with the same mask: Ctrl-C is for the parent alone
            self.process.start()
        other_end.close()
        self.is_ready = False
        self.attempt: _Attempt | None = None
        self.deadline = float("inf")

    def give(self, attempt: _Attempt, function: Callable[..., Any], timeout_s: float) -> None:
        self.attempt = attempt
        self.deadline = time.monotonic() + timeout_s
        # A worker that died idle is found out by ``receive``.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((function, attempt.task.arguments))

    def receive(self) -> Any:
        """A result, a ``Failure``, None from a worker that is ready now, or ``_DIED``."""
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return _DIED
        if not self.is_ready:
            self.is_ready = answer == _READY
            return None
        self.attempt, self.deadline = None, float("inf")
        return answer


def _wait_for(workers: list[_Worker]) -> list[_Worker]:
    """The workers that have something to say, after waiting for the first of them or the next deadline."""
    next_deadline = min(worker.deadline for worker in workers)
    seconds = min(_TICK_S, max(0.0, next_deadline - time.monotonic()))
    said = wait([worker.connection for worker in workers], timeout=seconds)
    return [worker for worker in workers if worker.connection in said]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(worker: _Worker) -> str:
    status = worker.process.exitcode or 0
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _death(worker: _Worker) -> Failure:
    name = _ending(worker)
    return Failure(kind="died", name=name, message=f"its worker process ended with {name}, {MAX_TRIES} times")


# --- in the worker -----------------------------------------------------------------------------------------


def _work(connection: Connection) -> None:
    """Serve one task after the other until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _use_one_thread()
    connection.send(_READY)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(_call(function, arguments))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # the boundary of a process: whatever a clip causes becomes that clip's record
        message = " ".join(str(error).split()) or "no message"
        number = error.errno if isinstance(error, OSError) else None
        return Failure(kind="raised", name=type(error).__name__, message=message, errno=number)


def _use_one_thread() -> None:
    """Workers are the parallelism; sums in one thread also have one order."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # read by torch and others when they are loaded
    import cv2

    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child only
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
