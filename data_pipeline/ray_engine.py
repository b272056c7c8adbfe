"""The engine's tasks on a Ray cluster, by way of Ray Data.

What runs is what runs locally. Each actor of a Ray Data stage keeps one worker process of ``engine.Pool`` and
does nothing itself, so a clip that hangs, raises or kills its process is found out there, with the same tries
and the same words as on one machine. Ray adds what one machine does not have: places to run, GPUs and parts
of them, and new actors when a process or a node is lost. Only tasks and results travel, a kilobyte each:
paths and ids, never frames. The driver asks again for tasks whose actor was lost, and alone writes journals.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
import pickle
import queue
import resource
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_pipeline.engine import MAX_TRIES, EngineError, Failure, Pool, SetupError, Task
from hummingbird.config import config_dataclass

if TYPE_CHECKING:
    import ray.data

__all__ = ["RayConfig", "RayPool"]

_MISSING = "--engine ray needs Ray, which is not installed; pip install 'hummingbird-t2v[ray]'"
_CONNECT_TIMEOUT_S = 10.0
_MIN_FOR_DOUBT = 3
"""So many tasks lost, and not one done, speak of a broken cluster and not of broken clips."""


@config_dataclass
class RayConfig:
    """Where and how ``--engine ray`` runs.

    Attributes:
        address: ``HOST:PORT`` of a cluster, or ``auto`` on one of its nodes; None takes ``RAY_ADDRESS``, and
            without that starts a Ray on this machine, for this run, with ``workers`` processors.
        send_code: give a cluster's nodes this program's packages; without it they must be installed there.
        cpus_per_actor: processors that an actor, and the one worker under it, reserves.
        gpus_per_actor: GPUs, or a part of one, that an actor reserves in the phases that use models.
        tasks_per_block: tasks that travel together; what is done is noted, and what is lost is repeated, by
            the block. More than 1 is for tasks that take milliseconds.
        tasks_per_wave: tasks that are in Ray at a time; bounds the object store and the driver's memory.
        object_store_mib: size of the object store of a Ray that the run starts itself.
        start_timeout_s: the longest that a cluster may take to find room for the actors.
    """

    address: str | None = None
    send_code: bool = True
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    tasks_per_block: Annotated[int, Field(ge=1, le=10_000)] = 1
    tasks_per_wave: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    object_store_mib: Annotated[int, Field(ge=80)] = 128
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0


class RayPool:
    """Runs tasks as ``engine.Pool`` does, in the actors of a Ray cluster, which is reached when first needed.

    Use it as a context; a Ray that it started ends there. A Ray that this process already uses is used, too.

    Args:
        settings: where and how.
        workers: actors; 0 is as many as the cluster has room for.
        say: is told what a user should know.

    Attributes:
        worker_peak_mib: largest memory of one worker.

    Raises:
        EngineError: Ray is not installed.
    """

    def __init__(
        self, settings: RayConfig, workers: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise EngineError(_MISSING)
        self._settings = settings
        self._workers = workers
        self._say = say
        self._is_ours = False
        self.worker_peak_mib = 0.0

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            import ray

            ray.shutdown()

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
            function: importable by name on every node.
            tasks: drawn a wave at a time; of a wave those with the highest ``cost`` begin.
            timeout_s: for one try of one task.
            uses_models: reserve ``gpus_per_actor``.

        Raises:
            EngineError: the cluster cannot be reached, has no room, or gives no sign of life.
        """
        source = iter(tasks)
        while wave := list(itertools.islice(source, self._settings.tasks_per_wave)):
            self._connect()
            wave.sort(key=lambda task: -task.cost)
            yield from self._run_wave(function, wave, timeout_s, uses_models)

    def _run_wave(
        self, function: Callable[..., Any], wave: list[Task], timeout_s: float, uses_models: bool
    ) -> Iterator[tuple[str, Any]]:
        block_size = self._settings.tasks_per_block
        for number in range(MAX_TRIES):
            done: set[int] = set()
            for index, outcome in self._answers(function, wave, block_size, timeout_s, uses_models):
                done.add(index)
                yield wave[index].key, outcome
            lost = [task for index, task in enumerate(wave) if index not in done]
            if number == 0 and not done and len(lost) >= _MIN_FOR_DOUBT:
                raise EngineError(
                    f"ray: {len(lost)} tasks, and all lost their actors; see what the actors said above, and "
                    "whether the nodes have the packages and the memory"
                )
            if lost and number < MAX_TRIES - 1:
                self._say(f"ray: actors or nodes were lost; {len(lost)} tasks are done again")
            # Each alone, so that none is lost again for its neighbours' sake.
            wave, block_size = lost, 1
        message = f"its Ray actor was lost, {MAX_TRIES} times"
        yield from ((task.key, Failure(kind="died", name="actor", message=message)) for task in wave)

    def _answers(
        self,
        function: Callable[..., Any],
        wave: Sequence[Task],
        block_size: int,
        timeout_s: float,
        uses_models: bool,
    ) -> Iterator[tuple[int, Any]]:
        """(Number of the task, its outcome) of those tasks whose actors lived."""
        if not wave:
            return
        num_blocks = math.ceil(len(wave) / block_size)
        # Dealt out like cards: every block has its share of the long ones.
        blocks = [range(number, len(wave), num_blocks) for number in range(num_blocks)]
        rows = [
            {"block": _pack(timeout_s, [(index, _pack(function, wave[index].arguments)) for index in block])}
            for block in blocks
        ]
        longest_s = self._settings.start_timeout_s + MAX_TRIES * timeout_s * block_size
        for answer in _stream(self._dataset(rows, uses_models), longest_s):
            for index, outcome, peak_mib in answer:
                self.worker_peak_mib = max(self.worker_peak_mib, peak_mib)
                yield index, outcome

    def _dataset(self, rows: list[dict[str, bytes]], uses_models: bool) -> ray.data.Dataset:
        import ray.data

        num_gpus = self._settings.gpus_per_actor if uses_models else 0.0
        # One block at an actor: it is known whose actor died, and none waits behind a long one.
        actors = ray.data.ActorPoolStrategy(
            size=min(self._room(num_gpus), len(rows)), max_tasks_in_flight_per_actor=1
        )
        # A lost task comes back to the driver. Ray's own retry would wait for the same actor, which a lost
        # node may never give back.
        ray.data.DataContext.get_current().max_errored_blocks = -1
        with warnings.catch_warnings():
            # Nothing takes the place of the two last arguments yet; the extra's range of versions has them.
            warnings.filterwarnings("ignore", message=".*ray_remote_args. is deprecated")
            return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Supervisor,
                batch_size=1,
                compute=actors,
                num_cpus=self._settings.cpus_per_actor,
                num_gpus=num_gpus,
                max_restarts=-1,
                max_task_retries=0,
            )

    def _room(self, num_gpus: float) -> int:
        """How many actors to start."""
        import ray

        total = ray.cluster_resources()
        wanted = {"CPU": self._settings.cpus_per_actor, "GPU": num_gpus}
        room = min(int(total.get(name, 0) / number) for name, number in wanted.items() if number)
        if room < 1:
            raise EngineError(
                f"ray: the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, an "
                f"actor needs {wanted['CPU']:g} and {wanted['GPU']:g}; lower ray.cpus_per_actor or "
                "ray.gpus_per_actor"
            )
        return min(self._workers or room, room)

    def _connect(self) -> None:
        # Read when Ray is loaded. Nothing is reported about anybody's machine unless they ask for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.data

        if not ray.is_initialized():
            address = self._settings.address or os.environ.get("RAY_ADDRESS")
            if address is not None:
                _join(address, self._settings.send_code)
            else:
                ray.init(
                    address="local",
                    num_cpus=self._workers or len(os.sched_getaffinity(0)),
                    include_dashboard=False,
                    object_store_memory=self._settings.object_store_mib * 2**20,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
            self._is_ours = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # Ray Data logs the stack of every task whose actor died; what comes of it is said in one line.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _join(address: str, send_code: bool) -> None:
    """Connect to a cluster.

    Raises:
        EngineError: there is none, or it is not to be reached like this.
    """
    import ray

    host, _, port = address.rpartition(":")
    if "://" in address or (address != "auto" and not (host and port.isdecimal() and int(port) < 65536)):
        raise EngineError(
            f"ray.address: got {address!r}, expected HOST:PORT or auto; give the command on a node of the "
            "cluster, where the data is in any case"
        )
    packages = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "hummingbird")]
    try:
        if address != "auto":  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": packages} if send_code else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise EngineError(
            f"ray.address: no cluster at {address!r} ({said}); start one with `ray start --head`"
        ) from error


def _pack(*values: Any) -> bytes:
    return pickle.dumps(values)


def _stream(dataset: ray.data.Dataset, longest_s: float) -> Iterator[list[tuple[int, Any, float]]]:
    """What the actors answer, block by block, as they do.

    Args:
        dataset: is read in a thread of its own, since Ray waits without end for what does not come.
        longest_s: to wait for the next block.

    Raises:
        EngineError: nothing came for so long, or Ray gave up.
    """
    import ray.exceptions

    # Unbounded, and yet never more than the results of a wave.
    answers: queue.Queue[bytes | Exception | None] = queue.Queue()
    is_over = threading.Event()

    def read() -> None:
        try:
            for row in dataset.iter_rows():
                if is_over.is_set():
                    return
                answers.put(row["answer"])
            answers.put(None)
        except Exception as error:  # the boundary of a thread: its owner decides
            answers.put(error)

    threading.Thread(target=read, name="ray results", daemon=True).start()
    try:
        while True:
            try:
                answer = answers.get(timeout=longest_s)
            except queue.Empty:
                raise EngineError(
                    f"ray: no result for {longest_s:g} s; are the nodes alive, and is there room for the "
                    "actors? What is done is kept, the same command goes on from there"
                ) from None
            if answer is None:
                return
            if isinstance(answer, (ray.exceptions.RayError, RuntimeError, OSError)):
                said = " ".join(str(answer).split())[:300]
                raise EngineError(f"ray: {said}; the same command goes on from here") from answer
            if isinstance(answer, Exception):
                raise answer
            (found,) = pickle.loads(answer)
            yield found
    finally:
        is_over.set()


# --- on the nodes ------------------------------------------------------------------------------------------


class _Supervisor:
    """An actor: one worker process, and no work of its own that could kill it."""

    def __init__(self) -> None:
        # The worker would run this process's script first, and with it load Ray, which it has no use for.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._pool = Pool(1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (block,) = batch["block"]
        timeout_s, arguments = pickle.loads(block)
        tasks = [Task(key=str(index), arguments=(packed,)) for index, packed in arguments]
        found: dict[int, tuple[Any, float]] = {}
        try:
            for key, outcome in self._pool.run(_call, tasks, timeout_s=timeout_s):
                found[int(key)] = (outcome, 0.0) if isinstance(outcome, Failure) else outcome
        except EngineError as error:  # no worker starts on this node: the driver ends the run
            failure = Failure(kind="raised", name=SetupError.__name__, message=str(error))
            found |= {index: (failure, 0.0) for index, _ in arguments if index not in found}
        return {"answer": [_pack([(index, *outcome) for index, outcome in found.items()])]}


def _call(packed: bytes) -> tuple[Any, float]:
    """In the worker: a task's result, and the largest memory so far in MiB."""
    try:
        function, arguments = pickle.loads(packed)
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"ray: a node cannot load the task ({error}); give every node the same packages"
        ) from error
    result = function(*arguments)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
