"""The ``vbench`` package in an environment of its own, called as a program, its answers checked.

Its pins (numpy below 2, transformers 4.33) are not ours, so it is never imported here: ``score_script.py``
runs under the other interpreter, in isolated mode, for one dimension at a time, within a time limit. What it
writes is read with a bound on its size and taken only if it speaks of exactly the videos that were made.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hummingbird.evaluation.vbench.totals import DIMENSIONS

__all__ = ["DimensionScore", "Facts", "describe", "score_dimension"]

_SCRIPT = Path(__file__).with_name("score_script.py")
_MAX_RESULT_BYTES = 64 * 2**20
_DESCRIBE_S = 600.0
_NOT_IMPORTABLE = 3
_TAIL = 400  # characters of its last words in an error


class ScoringError(RuntimeError):
    """The other environment gave no usable answer."""


@dataclass(frozen=True)
class Facts:
    """What an environment has.

    Attributes:
        versions: of Python and packages.
        device: what it scores on.
        full_info: the prompts inside the package; None where it has none.
    """

    versions: Mapping[str, str]
    device: str
    full_info: Path | None


@dataclass(frozen=True)
class DimensionScore:
    """What the package says of one dimension.

    Attributes:
        dimension: its name.
        score: raw, in [-1, 1].
        num_videos: how many the package found.
        num_scored: for how many it gave a score of their own; it leaves out some where it sees no object.
        versions: of the environment.
        device: what it ran on.
    """

    dimension: str
    score: float
    num_videos: int
    num_scored: int
    versions: Mapping[str, str]
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(python: Path) -> Facts:
    """Ask an environment for its versions.

    Raises:
        FileNotFoundError: no such interpreter.
        ScoringError: it cannot import vbench.
    """
    with tempfile.TemporaryDirectory(prefix="hummingbird-vbench-") as name:
        folder = Path(name)
        return _call(python, [], folder, log=folder / "log.txt", timeout_s=_DESCRIBE_S, purpose="describe")


def score_dimension(
    python: Path,
    dimension: str,
    *,
    entries: Sequence[Mapping[str, Any]],
    videos: Path,
    expected: Iterable[str],
    log: Path,
    device: str = "auto",
    timeout_s: float = 6 * 3600.0,
) -> DimensionScore:
    """Have one dimension scored.

    Args:
        python: interpreter of the environment that has vbench.
        dimension: one of ``DIMENSIONS``.
        entries: rows of ``VBench_full_info.json`` for the prompts that were asked.
        videos: folder of all videos.
        expected: names of those that this dimension judges.
        log: file for what the package prints.
        device: ``auto``, ``cuda`` or ``cpu``.
        timeout_s: the process and what it started are ended after so many seconds.

    Raises:
        FileNotFoundError: no such interpreter.
        ScoringError: it failed, took too long, or its result is not one for exactly these videos.
    """
    if dimension not in DIMENSIONS:
        raise ValueError(f"dimension: got {dimension!r}, expected one of {', '.join(DIMENSIONS)}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hummingbird-vbench-") as name:
        folder = Path(name)
        prompts = folder / "prompts.json"
        prompts.write_text(json.dumps(list(entries)), encoding="utf-8")
        arguments = ["--dimension", dimension, "--videos", str(videos.resolve()), "--prompts", str(prompts)]
        arguments += ["--output", str(folder), "--device", device]
        facts = _call(python, arguments, folder, log=log, timeout_s=timeout_s, purpose=dimension)
        names = set(expected)
        _check_found(_read_json(folder / f"{dimension}_full_info.json", dimension), dimension, names)
        result = _read_json(folder / f"{dimension}_eval_results.json", dimension)
        score, num_scored = _check_result(result, dimension, names)
    return DimensionScore(dimension, score, len(names), num_scored, facts.versions, facts.device)


def _call(
    python: Path, arguments: Sequence[str], folder: Path, *, log: Path, timeout_s: float, purpose: str
) -> Facts:
    program = shutil.which(str(python))
    if program is None:
        raise FileNotFoundError(f"vbench-python: got {python}, expected an interpreter that can be run")
    facts = folder / "facts.json"
    # -I: neither our PYTHONPATH nor the current folder reaches the other environment.
    command = [program, "-I", str(_SCRIPT), "--facts", str(facts), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(Path(program)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ScoringError(
                f"vbench, {purpose}: no result after {timeout_s:g} s; --score-timeout allows more; see {log}"
            ) from error
        finally:
            _end(process)
    if status == _NOT_IMPORTABLE:
        raise ScoringError(
            f"vbench-python: {python} has no working vbench ({_last_words(log)}); pip install vbench"
        )
    if status != 0:
        raise ScoringError(
            f"vbench, {purpose}: status {status} ({_last_words(log)}); all it said is in {log}"
        )
    return _facts(_read_json(facts, purpose), python)


def _environment(program: Path) -> dict[str, str]:
    """Ours without what belongs to our interpreter; programs of that environment come first."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    kept["PATH"] = os.pathsep.join([str(program.parent), kept.get("PATH", os.defpath)])
    return kept


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started; no child may hold a GPU after us."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * _TAIL))
        text = file.read().decode("utf-8", errors="replace")
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words[-_TAIL:] or "it said nothing"


def _read_json(path: Path, purpose: str) -> Any:
    if not path.is_file():
        raise ScoringError(
            f"vbench, {purpose}: it ended well but wrote no {path.name}; another version's layout?"
        )
    if path.stat().st_size > _MAX_RESULT_BYTES:
        raise ScoringError(f"vbench, {purpose}: {path.name} has over {_MAX_RESULT_BYTES} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ScoringError(f"vbench, {purpose}: {path.name} is no JSON ({error})") from error


def _facts(answer: Any, python: Path) -> Facts:
    versions = answer.get("versions") if isinstance(answer, dict) else None
    if not isinstance(versions, dict) or "vbench" not in versions:
        raise ScoringError(f"vbench-python: {python} does not say which version of vbench it has")
    info = answer.get("full_info")
    return Facts(
        versions={str(name): str(value)[:80] for name, value in versions.items()},
        device=str(answer.get("device"))[:80],
        full_info=Path(info) if isinstance(info, str) else None,
    )


def _check_found(answer: Any, dimension: str, expected: set[str]) -> None:
    """The package says which videos it found; a mean over fewer would pass for the whole."""
    rows = answer if isinstance(answer, list) else []
    paths = [
        path
        for row in rows
        if isinstance(row, dict) and dimension in row.get("dimension", ())
        for path in row.get("video_list", ())
    ]
    found = {Path(path).name for path in paths if isinstance(path, str)}
    if found != expected:
        lost = sorted(expected - found) or sorted(found - expected)
        raise ScoringError(
            f"vbench, {dimension}: it looked at {len(found)} videos, expected {len(expected)}; "
            f"the first that differs is {lost[0]!r}"
        )


def _check_result(answer: Any, dimension: str, expected: set[str]) -> tuple[float, int]:
    """The score and the number of videos that have one; raises where either is doubtful."""
    pair = answer.get(dimension) if isinstance(answer, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], list):
        raise ScoringError(f"vbench, {dimension}: got another layout than [score, [videos]] in its result")
    score, rows = pair
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ScoringError(f"vbench, {dimension}: got score {score!r}, expected a finite number")
    if not -1.0 <= score <= 1.0:
        raise ScoringError(f"vbench, {dimension}: got score {score!r}, expected at most 1")
    names = [
        Path(row["video_path"]).name
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("video_path"), str)
    ]
    strange = sorted(set(names) - expected)
    if strange or not names or len(names) != len(rows):
        raise ScoringError(
            f"vbench, {dimension}: got scores of {len(rows)} videos"
            + (
                f", among them {strange[0]!r}, which was not asked for"
                if strange
                else ", expected named ones"
            )
        )
    return float(score), len(set(names))
