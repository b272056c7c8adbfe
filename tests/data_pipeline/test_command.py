"""``python -m data_pipeline``: what a user types and sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from tests.data_pipeline.conftest import ROOT, TINY_CONFIG, results

Capture = pytest.CaptureFixture[str]


def words(tiny_input: Path, output: Path, *more: str) -> list[str]:
    return ["run", str(TINY_CONFIG), "--input", str(tiny_input), "--output", str(output), *more]


def test_a_run_ends_with_a_table_and_one_json_line(tiny_input: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(words(tiny_input, tmp_path / "out", "--json")) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    summary = json.loads(lines[-1])
    assert (summary["sources"], summary["rows"], summary["error"]) == (8, 8, 1)
    assert summary["kept"] + summary["dropped"] == 7
    assert summary["reasons"]["error: shots: unreadable"] == 1
    assert lines[0].split() == ["status", "clips", "reason"]
    assert any(line.split() == ["kept", str(summary["kept"])] for line in lines)
    assert "clips/s" in captured.err
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_a_dry_run_prints_the_plan_and_touches_nothing(
    tiny_input: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words(tiny_input, tmp_path / "out", "--dry-run", "--json", "--motion.max-jitter", "7.5")) == 0
    out = capsys.readouterr().out
    plan = json.loads(out.splitlines()[-1])
    assert (plan["sources"], plan["workers"]) == (8, 2)
    assert plan["stages"] == ["shots", "basics", "motion", "text", "quality", "dedup", "write"]
    assert plan["settings"]["motion"]["max_jitter"] == 7.5
    assert "max_jitter 7.5" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--input", "ftp://host/videos"], 1, "input: got protocol 'ftp', expected one of s3, gs"),
        (
            ["--output", "s3://bucket/out"],
            1,
            "output: got s3:/bucket/out, expected a path of the file system",
        ),
        (["--input", "/nonexistent"], 1, "/nonexistent: no such file or folder"),
        (["--output", "/proc/nowhere"], 1, "/proc/nowhere"),
    ],
)
def test_errors_are_one_line(
    more: list[str], status: int, message: str, tiny_input: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words(tiny_input, tmp_path / "out", *more)) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_input_and_output_must_be_given(capsys: Capture) -> None:
    assert main(["run", str(TINY_CONFIG)]) == 1
    assert (
        capsys.readouterr().err == "error: input is not set; give --input, or input: in the settings file\n"
    )


@pytest.mark.parametrize(
    "bad",
    [["run"], ["walk"], ["run", "x.yaml", "--no-such.flag", "1"], ["run", "x.yaml", "--workers", "-1"], []],
)
def test_bad_usage_is_status_2(bad: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(TINY_CONFIG) if word == "x.yaml" else word for word in bad])
    assert caught.value.code == 2


def test_a_settings_file_with_a_wrong_name_is_status_2(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("motion:\n  max_jiter: 3.0\n")
    assert main(["run", str(path)]) == 2
    assert "did you mean 'max_jitter'?" in capsys.readouterr().err


def test_help_lists_every_setting(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--motion.max-jitter" in out
    assert "--dry-run" in out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        main(
            [
                "run",
                str(TINY_CONFIG),
                "--input",
                str(tmp_path / "x"),
                "--output",
                str(tmp_path / "y"),
                "--debug",
            ]
        )


@pytest.mark.parametrize("moment_s", [0.9, 2.0])
def test_ctrl_c_is_one_line_and_the_run_goes_on(moment_s: float, tiny_input: Path, tmp_path: Path) -> None:
    """The whole process group gets the signal, as on a terminal."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "data_pipeline", *words(tiny_input, output, "--workers", "1")]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (output / "work" / "lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(moment_s)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been quicker
        assert process.returncode == 130, error
        assert error.splitlines()[-1].startswith("interrupted: everything that was finished is kept")
        assert "Traceback" not in error
    assert not [path for path in output.rglob("*.part*") if path.is_file()]
    assert main(words(tiny_input, output)) == 0
    assert main(words(tiny_input, tmp_path / "fresh")) == 0
    assert results(output) == results(tmp_path / "fresh")
