"""``kill -9`` of everything at random moments: the same command then ends with an unbroken run's bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from tests.data_pipeline.conftest import ROOT, TINY_CONFIG, results


def command(input_path: Path, output: Path) -> list[str]:
    places = ["--input", str(input_path), "--output", str(output)]
    return [sys.executable, "-m", "data_pipeline", "run", str(TINY_CONFIG), *places]


def killed_after(seconds: float, words: list[str]) -> bool:
    """Run a command in a process group of its own and kill all of it; whether it was still at work."""
    process = subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def check_kills(input_path: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Kill runs at random moments, ``num_kills`` times in all, a new output whenever one gets through."""
    started = time.monotonic()
    assert not killed_after(600, command(input_path, folder / "unbroken"))
    duration_s = time.monotonic() - started
    expected = results(folder / "unbroken")
    generator = random.Random(seed)
    kills = run = 0
    while kills < num_kills:
        output = folder / f"run{run}"
        while kills < num_kills and killed_after(
            generator.uniform(0.2, 0.9) * duration_s, command(input_path, output)
        ):
            kills += 1
        assert main(command(input_path, output)[3:]) == 0
        assert results(output) == expected, f"after {kills} kills"
        assert not [path for path in output.rglob("*.part*") if path.is_file()]
        run += 1


def test_killed_runs_end_with_the_same_bytes(tiny_input: Path, tmp_path: Path) -> None:
    check_kills(tiny_input, tmp_path, num_kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_end_with_the_same_bytes(tiny_input: Path, tmp_path: Path) -> None:
    check_kills(tiny_input, tmp_path, num_kills=20, seed=2)
