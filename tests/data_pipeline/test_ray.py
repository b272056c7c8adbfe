"""``--engine ray`` on a real Ray of this machine: the bytes of ``local``, and everything killed for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.__main__ import main
from data_pipeline.engine import EngineError, Failure, Task
from data_pipeline.pipeline import PipelineConfig, run
from data_pipeline.ray_engine import RayConfig, RayPool
from hummingbird.config import load_config
from hummingbird.video_io import write_video
from tests.data_pipeline.conftest import ROOT, TINY_CONFIG, pan, results
from tests.data_pipeline.test_engine import is_alive, misbehave, square, wait_until
from tests.data_pipeline.test_pipeline import TroubledConfig

Configure = Callable[..., PipelineConfig]

ray = pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
pytest.importorskip("ray.data", reason="Ray Data is not installed (extra `ray`)")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray with two processors and one pretended GPU, which this process uses; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))  # tasks of these tests lie in modules of these tests
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def store_stats() -> Any:
    """Ray's own figures about its object store."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats


@pytest.fixture(scope="module")
def local(tiny_input: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of the local engine leaves."""
    output = tmp_path_factory.mktemp("local") / "out"
    places = ["--input", str(tiny_input), "--output", str(output)]
    assert main(["run", str(TINY_CONFIG), *places]) == 0
    return results(output)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "got 'ray://head:10001', expected HOST:PORT or auto"),
        ("head", "got 'head', expected HOST:PORT or auto"),
        ("127.0.0.1:1", r"no cluster at '127.0.0.1:1' \(\[Errno 111\] Connection refused\); start one"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address: str, message: str) -> None:
    assert not ray.is_initialized()
    with (
        RayPool(RayConfig(address=address), 1) as pool,
        pytest.raises(EngineError, match=rf"^ray.address: {message}"),
    ):
        list(pool.run(square, [Task(key="a", arguments=(1,))], timeout_s=60))


def outcomes(
    function: Callable[..., Any],
    arguments: dict[str, tuple[Any, ...]],
    settings: RayConfig,
    workers: int = 2,
    timeout_s: float = 60,
) -> dict[str, Any]:
    with RayPool(settings, workers) as pool:
        tasks = [Task(key=key, arguments=value) for key, value in arguments.items()]
        found = list(pool.run(function, tasks, timeout_s=timeout_s))
    assert len(found) == len(arguments), "each task must have one outcome"
    return dict(found)


def kill_and_misbehave(how: str, note: str) -> str:
    """As ``misbehave``; some tasks kill the actor that looks after their process."""
    if how.startswith("kill actor"):
        with Path(note).open("a") as file:
            file.write("try\n")
        if how == "kill actor" or len(Path(note).read_text().splitlines()) == 1:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # ends with the actor
        return "second try"
    return misbehave(how, note)


@pytest.mark.timeout(600)
def test_killed_workers_killed_actors_and_hangs(cluster: str, tmp_path: Path) -> None:
    kinds = ["raise", "full disk", "die", "die once", "hang", "kill actor", "kill actor once"]
    kinds += [f"fine{n}" for n in range(4)]
    arguments = {how: (how, str(tmp_path / how.replace(" ", "_"))) for how in kinds}
    found = outcomes(kill_and_misbehave, arguments, RayConfig(), timeout_s=40)
    assert found.pop("raise") == Failure(kind="raised", name="ValueError", message="two lines")
    assert found.pop("full disk").errno == 28
    died = "its worker process ended with SIGKILL, 2 times"
    assert found.pop("die") == Failure(kind="died", name="SIGKILL", message=died)
    assert found.pop("die once") == "second try"
    assert found.pop("hang") == Failure(kind="timeout", name="", message="took over 40 s")
    lost = "its Ray actor was lost, 2 times"
    assert found.pop("kill actor") == Failure(kind="died", name="actor", message=lost)
    assert found.pop("kill actor once") == "second try"
    assert found == {f"fine{n}": f"fine{n}" for n in range(4)}
    tries = {how: len(Path(note).read_text().splitlines()) for how, note in arguments.values()}
    twice = {how for how, count in tries.items() if count == 2}
    assert twice == {"die", "die once", "kill actor", "kill actor once"}
    assert max(tries.values()) == 2
    assert {tries[f"fine{n}"] for n in range(4)} == {1}


def devices(number: int) -> tuple[float, str | None]:
    return time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_longest_first_on_a_part_of_a_gpu(cluster: str) -> None:
    costs = {"b": 2.0, "d": 4.0, "a": 1.0, "c": 3.0}
    tasks = [Task(key=key, arguments=(0,), cost=cost) for key, cost in costs.items()]
    with RayPool(RayConfig(gpus_per_actor=0.5), 1) as pool:
        found = dict(pool.run(devices, tasks, timeout_s=60, uses_models=True))
    assert sorted(found, key=lambda key: found[key][0]) == ["d", "c", "b", "a"]
    assert {device for _, device in found.values()} == {"0"}


def test_more_than_the_cluster_has_is_refused(cluster: str) -> None:
    with (
        RayPool(RayConfig(gpus_per_actor=2), 1) as pool,
        pytest.raises(EngineError, match=r"the cluster has 2 CPUs and 1 GPUs, an actor needs 1 and 2; lower"),
    ):
        list(pool.run(devices, [Task(key="a", arguments=(0,))], timeout_s=60, uses_models=True))


@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_and_ends_with_the_bytes_of_local(
    cluster: str, local: dict[str, str], tiny_input: Path, tiny_config: Configure
) -> None:
    """The driver is another process, on a cluster that outlives it and that gets our packages from it."""
    before = store_stats()
    config = tiny_config("--engine", "ray")
    assert config.output is not None
    places = ["--input", str(tiny_input), "--output", str(config.output)]
    words = [sys.executable, "-m", "data_pipeline", "run", str(TINY_CONFIG), "--engine", "ray", *places]
    journal = config.output / "work" / "score.journal"
    driver = subprocess.Popen(
        [*words, "--workers", "1"], cwd=ROOT, env={**os.environ, "RAY_ADDRESS": cluster}
    )
    try:
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0, timeout_s=240)
    finally:
        driver.kill()
        driver.wait()
    done = journal.read_bytes()
    assert done.count(b"\n") < 7, "killed too late to show anything"

    summary = run(config)
    assert results(config.output) == local
    assert summary.reasons["kept", ""] == 6
    assert summary.worker_peak_mib > 50
    lines = journal.read_bytes().splitlines()
    assert journal.read_bytes().startswith(done)
    assert len(lines) == len({line.split()[1] for line in lines}) == 7, "no clip is scored twice"
    assert not [path for path in config.output.rglob("*.part*") if path.is_file()]
    after = store_stats()
    # The clips' frames alone are 6 MB; tasks and answers are a kilobyte each, our packages are elsewhere.
    assert 0 < after.cumulative_created_bytes - before.cumulative_created_bytes < 1_000_000
    assert after.spilled_bytes_total == 0


def test_without_ray_one_line_says_what_to_install(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    places = ["--input", str(tiny_input), "--output", str(tmp_path / "out")]
    assert main(["run", str(TINY_CONFIG), "--engine", "ray", *places]) == 1
    assert capsys.readouterr().err == (
        "error: --engine ray needs Ray, which is not installed; pip install 'hummingbird-t2v[ray]'\n"
    )


def descendants(pid: int) -> set[int]:
    """Every process below one, by the system's table."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_drivers_killed_with_their_own_ray(
    local: dict[str, str], tiny_input: Path, tiny_config: Configure
) -> None:
    """Killed in each phase; Ray's processes and the workers end with the driver that started them."""
    config = tiny_config()
    assert config.output is not None
    places = ["--input", str(tiny_input), "--output", str(config.output)]
    words = [sys.executable, "-m", "data_pipeline", "run", str(TINY_CONFIG), "--engine", "ray", *places]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for phase in ("split", "score", "write"):
        journal = config.output / "work" / f"{phase}.journal"
        driver = subprocess.Popen(words, cwd=ROOT, env=environment)
        try:
            wait_until(lambda path=journal: path.exists() and path.stat().st_size > 0, timeout_s=400)
            processes = descendants(driver.pid)
        finally:
            driver.kill()
            driver.wait()
        assert len(processes) > 5
        wait_until(lambda pids=processes: not any(is_alive(pid) for pid in pids), timeout_s=120)
    assert subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode == 0
    assert results(config.output) == local
    for phase, count in (("split", 8), ("score", 7), ("write", 6)):
        lines = (config.output / "work" / f"{phase}.journal").read_text().splitlines()
        assert len(lines) == len({line.split()[1] for line in lines}) == count, f"{phase}: done twice"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rows_of_troublesome_clips_are_those_of_local(cluster: str, tmp_path: Path) -> None:
    for kind in ("segfault", "leave", "hang", "bug", "nan", "fine"):
        write_video(pan(1), tmp_path / "input" / f"{kind}.mp4", fps=12)
        (tmp_path / "input" / f"{kind}.txt").write_text(kind)
    found = {}
    for engine in ("local", "ray"):
        folder = tmp_path / engine
        (folder / "tries").mkdir(parents=True)
        settings = folder / "settings.yaml"
        settings.write_text(TINY_CONFIG.read_text() + f"folder: {folder / 'tries'}\nengine: {engine}\n")
        flags = ["--input", str(tmp_path / "input"), "--output", str(folder / "out")]
        config = load_config(TroubledConfig, settings, [*flags, "--clip-timeout-s", "15"])
        summary = run(config)
        tries = {path.name: len(path.read_text().splitlines()) for path in (folder / "tries").iterdir()}
        found[engine] = summary.reasons, tries, results(folder / "out")["manifest.parquet"]
    assert found["ray"] == found["local"]
    assert found["ray"][0]["error", "score: worker died (SIGSEGV)"] == 1
    assert found["ray"][0]["error", "score: timeout"] == 1


def stop_the_actor(note: str) -> None:
    Path(note).write_text(f"{os.getppid()}")
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(600)  # ends with the actor


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_actor_that_stands_still_does_not_hold_the_run_forever(cluster: str, tmp_path: Path) -> None:
    note = tmp_path / "actor"
    try:
        with pytest.raises(EngineError, match=r"no result for 120 s; are the nodes alive"):
            outcomes(stop_the_actor, {"a": (str(note),)}, RayConfig(start_timeout_s=100), timeout_s=10)
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)


_TWO_NODES = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from data_pipeline.engine import Task
from data_pipeline.ray_engine import RayConfig, RayPool
from tests.data_pipeline.test_ray import note_and_sleep

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    tasks = [Task(key=str(n), arguments=(str(folder), n)) for n in range(60)]
    found = {}
    with RayPool(RayConfig(address=cluster.address), 0, print) as pool:
        for key, outcome in pool.run(note_and_sleep, tasks, timeout_s=60):
            assert key not in found
            found[key] = outcome
            if second is not None and len(set(found.values())) == 2:  # both nodes are at work
                cluster.remove_node(second, allow_graceful=False)
                second = None
    assert second is None, "the second node never had a task"
    assert sorted(map(int, found)) == list(range(60))
    assert all(isinstance(outcome, int) for outcome in found.values()), found
    cluster.shutdown()
    print("nothing lost")
"""


def note_and_sleep(folder: str, number: int) -> int:
    """Which actor it was; every try leaves a line."""
    with (Path(folder) / str(number)).open("a") as file:
        file.write("try\n")
    time.sleep(1)
    return os.getppid()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tasks_of_a_lost_node_are_done_on_another(tmp_path: Path) -> None:
    script = tmp_path / "two_nodes.py"
    script.write_text(_TWO_NODES)
    (tmp_path / "tries").mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "tries")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "nothing lost"
    # Ray hands out a few more before it knows of the loss; they come back unbegun.
    assert re.search(r"ray: actors or nodes were lost; \d+ tasks are done again", done.stdout)
    tries = [len(path.read_text().splitlines()) for path in (tmp_path / "tries").iterdir()]
    assert len(tries) == 60
    assert max(tries) == 2
