"""`hummingbird serve` as a process: killed in the middle of the work, started again, and stopped in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import jain, run_load, split
from hummingbird import cli


@pytest.mark.timeout(900)
def test_kill_9_in_the_middle_loses_no_job_and_makes_none_twice(tmp_path: Path) -> None:
    """The small twin of benchmarks/serving.py."""
    figures = run_load(tmp_path, num_clients=5, num_jobs=20, num_kills=1)
    assert (figures["jobs"], figures["accepted"], figures["records"]) == (20, 20, 20)
    assert figures["states"] == {"done": 20}
    assert (figures["lost"], figures["ended_twice"]) == (0, 0)
    assert (figures["videos_missing"], figures["videos_left_over"]) == (0, 0)
    assert figures["begun_again"] <= 1, "only what was in the making"
    assert len(figures["start_seconds"]) == 2
    assert figures["up"]
    assert figures["exit_status"] == 0, "SIGTERM is an orderly end"


def test_the_load_is_what_it_says() -> None:
    assert split(500, 50) == [100, *[9] * 8, *[8] * 41]
    assert sum(split(20, 5)) == 20
    assert jain([5, 5, 5, 5]) == 1
    assert jain([20, 0, 0, 0]) == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limits", "missing.yaml"], "missing.yaml: cannot read it"),
        (["--api-key-file", "missing"], "No such file or directory: 'missing'"),
        (["--host", "203.0.113.1", "--port", "0"], "203.0.113.1:0: cannot listen there"),
        (["--port", "0", "--data", "file"], "cannot be used for jobs"),
    ],
)
def test_what_cannot_start_says_why_at_once(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUMMINGBIRD_API_KEY", raising=False)
    (tmp_path / "file").touch()
    assert cli.main(["serve", *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("note: ")] == [lines[-1]]
    assert message in lines[-1]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("port", ["-1", "65536", "http", "8000.0"])
def test_ports_are_checked_on_the_command_line(port: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--port", port])
    assert caught.value.code == 2
