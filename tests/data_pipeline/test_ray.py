"""``--engine ray`` on a real Ray of this machine: the bytes of ``local``, and everything killed for real."""

from __future__ import annotations

import os
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
from tests.data_pipeline.conftest import ROOT, TINY_CONFIG, results
from tests.data_pipeline.test_engine import misbehave, wait_until

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


def test_the_same_bytes_as_local_and_next_to_nothing_in_the_object_store(
    cluster: str, local: dict[str, str], tiny_config: Configure
) -> None:
    before = store_stats()
    config = tiny_config("--engine", "ray")
    summary = run(config)
    assert config.output is not None
    assert results(config.output) == local
    assert summary.reasons["kept", ""] == 6
    assert summary.worker_peak_mib > 50
    after = store_stats()
    # The clips' frames alone are 6 MB; tasks and answers are a kilobyte each.
    assert 0 < after.cumulative_created_bytes - before.cumulative_created_bytes < 1_000_000
    assert after.spilled_bytes_total == 0


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


def test_killed_workers_killed_actors_and_hangs(cluster: str, tmp_path: Path) -> None:
    kinds = ["raise", "full disk", "die", "die once", "hang", "kill actor", "kill actor once"]
    kinds += [f"fine{n}" for n in range(4)]
    arguments = {how: (how, str(tmp_path / how.replace(" ", "_"))) for how in kinds}
    found = outcomes(kill_and_misbehave, arguments, RayConfig(), timeout_s=20)
    assert found.pop("raise") == Failure(kind="raised", name="ValueError", message="two lines")
    assert found.pop("full disk").errno == 28
    died = "its worker process ended with SIGKILL, 2 times"
    assert found.pop("die") == Failure(kind="died", name="SIGKILL", message=died)
    assert found.pop("die once") == "second try"
    assert found.pop("hang") == Failure(kind="timeout", name="", message="took over 20 s")
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


def test_a_killed_driver_goes_on_where_it_was(
    cluster: str, local: dict[str, str], tiny_input: Path, tiny_config: Configure
) -> None:
    """The driver is another process, on a cluster that outlives it and that gets our packages from it."""
    config = tiny_config("--engine", "ray", "--workers", "1")
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
    run(config)
    assert results(config.output) == local
    lines = journal.read_bytes().splitlines()
    assert journal.read_bytes().startswith(done)
    assert len(lines) == len({line.split()[1] for line in lines}) == 7, "no clip is scored twice"
    assert not [path for path in config.output.rglob("*.part*") if path.is_file()]


def test_without_ray_one_line_says_what_to_install(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    places = ["--input", str(tiny_input), "--output", str(tmp_path / "out")]
    assert main(["run", str(TINY_CONFIG), "--engine", "ray", *places]) == 1
    assert capsys.readouterr().err == (
        "error: --engine ray needs Ray, which is not installed; pip install 'hummingbird-t2v[ray]'\n"
    )
