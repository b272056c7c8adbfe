"""The pool: results, failures, crashes, hangs and killed workers, each task on its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.engine import EngineError, Failure, Pool, Task


def square(number: int) -> int:
    return number * number


def misbehave(how: str, note: str) -> str:
    """One task of many kinds; ``note`` is a file that counts the tries."""
    with Path(note).open("a") as file:
        file.write("try\n")
    if how == "raise":
        raise ValueError("two\nlines")
    if how == "full disk":
        raise OSError(28, "No space left on device")
    if how == "leave":
        os._exit(0)
    if how == "hang":
        time.sleep(600)
    if how == "die once" and len(Path(note).read_text().splitlines()) > 1:
        return "second try"
    if how.startswith(("die", "SIG")):
        os.kill(os.getpid(), getattr(signal, how if how.startswith("SIG") else "SIGKILL"))
    return how


def pids(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def outcomes(
    function: Callable[..., Any],
    arguments: dict[str, tuple[Any, ...]],
    workers: int = 2,
    timeout_s: float = 60,
) -> dict[str, Any]:
    with Pool(workers) as pool:
        tasks = [Task(key=key, arguments=value) for key, value in arguments.items()]
        found = list(pool.run(function, tasks, timeout_s=timeout_s))
    assert len(found) == len(arguments), "each task must have one outcome"
    return dict(found)


def test_every_task_has_its_result_in_parallel() -> None:
    assert outcomes(square, {str(n): (n,) for n in range(50)}) == {str(n): n * n for n in range(50)}
    assert len(set(outcomes(pids, {str(n): (0.3,) for n in range(4)}).values())) == 2


def test_workers_are_used_again_by_the_next_function() -> None:
    with Pool(1) as pool:
        first = dict(pool.run(pids, [Task(key="a", arguments=(0.0,))], timeout_s=60))
        second = dict(pool.run(pids, [Task(key="a", arguments=(0.0,))], timeout_s=60))
        assert first == second
        pid = first["a"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_pool_without_tasks_starts_no_process() -> None:
    with Pool(2) as pool:
        assert list(pool.run(square, [], timeout_s=1)) == []
        assert not pool._workers


def test_failures_stay_with_their_task(tmp_path: Path) -> None:
    kinds = [
        "fine",
        "raise",
        "full disk",
        "leave",
        "die",
        "die once",
        "SIGSEGV",
        *(f"fine{n}" for n in range(9)),
    ]
    found = outcomes(misbehave, {how: (how, str(tmp_path / how.replace(" ", "_"))) for how in kinds})
    assert found.pop("raise") == Failure(kind="raised", name="ValueError", message="two lines")
    assert found.pop("full disk").errno == 28
    assert found.pop("die once") == "second try"
    for how, name in (("leave", "status 0"), ("die", "SIGKILL"), ("SIGSEGV", "SIGSEGV")):
        failure = found.pop(how)
        assert (failure.kind, failure.name) == ("died", name)
        assert len((tmp_path / how).read_text().splitlines()) == 2, "a crash is tried twice, no more"
    assert found == {how: how for how in found}
    for how in found:
        assert len((tmp_path / how).read_text().splitlines()) == 1, f"{how} was disturbed by another's crash"


def test_a_task_that_hangs_is_stopped_and_the_others_go_on(tmp_path: Path) -> None:
    started = time.monotonic()
    arguments = {how: (how, str(tmp_path / how)) for how in ("hang", *(f"fine{n}" for n in range(6)))}
    found = outcomes(misbehave, arguments, timeout_s=3)
    assert found.pop("hang") == Failure(kind="timeout", name="", message="took over 3 s")
    assert set(found) == set(found.values())
    assert time.monotonic() - started < 60


def test_a_worker_that_is_killed_while_idle_is_replaced() -> None:
    with Pool(1) as pool:
        for _ in range(3):
            [(_, pid)] = pool.run(pids, [Task(key="a", arguments=(0.0,))], timeout_s=60)
            assert isinstance(pid, int)
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def test_workers_that_cannot_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # the interpreter of the child dies at once
    with pytest.raises(EngineError, match="died before their first task"):
        outcomes(square, {"1": (1,)})


_PARENT = """
import sys
from data_pipeline.engine import Pool, Task
from tests.data_pipeline.test_engine import report_and_sleep
if __name__ == "__main__":
    with Pool(2) as pool:
        tasks = [Task(key=str(n), arguments=(sys.argv[1],)) for n in range(2)]
        list(pool.run(report_and_sleep, tasks, timeout_s=600))
"""


def report_and_sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "parent.py").write_text(_PARENT)
    reports = tmp_path / "reports"
    reports.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(reports)],
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    wait_until(lambda: len(list(reports.iterdir())) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_alive(int(path.name)) for path in reports.iterdir()))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """A zombie counts as gone: some containers have no init that collects orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
